//! What the host has sent for a task: from its bytes to variables.

use extendr_ffi::{
    R_GlobalEnv, R_NamesSymbol, R_NewEnv, R_NilValue, Rboolean, Rf_defineVar, Rf_getAttrib,
    Rf_protect, Rf_unprotect, Rf_xlength, SEXP, SEXPTYPE, STRING_ELT, TYPEOF, VECTOR_ELT,
};
use mirai_core::worker::Assignment;

use super::attempts;
use crate::r::{self, Rf_installChar};
use crate::serialize::{self, Source};
use crate::streams::random_seed;

r::symbols! {
    SEED = c".Random.seed";
    EXPR = c".expr.";
    ENVIR = c".envir.";
    WHEN = c".when.";
    ELEMENT = c".x";
    CONTEXT = c".context.";
}

/// Reads an object that was sent.
pub(super) unsafe fn read(source: Source<'_>) -> SEXP {
    // SAFETY: in `within_r`, where long jumps end; the caller's `Assignment` outlives it.
    unsafe { serialize::read_or_raise(source) }
}

/// Puts a task's objects in place, and into `frame` what to evaluate and where. True if the task continues a trace.
pub(super) unsafe fn prepare(task: &Assignment, frame: SEXP) -> bool {
    // SAFETY: in `within_r`, where long jumps end. What was read is protected until a variable has it; indices are
    // below the length checked.
    unsafe {
        attempts::begin(false);
        let own = Source::new(&task.body, &task.pieces);
        let common = task
            .constants
            .as_ref()
            .map(|c| Source::new(&c.bytes, &c.pieces).common());
        let payload = Rf_protect(read(common.unwrap_or(own)));
        // R does not check an index.
        if TYPEOF(payload) != SEXPTYPE::VECSXP || !(3..=4).contains(&Rf_xlength(payload)) {
            r::raise("what the host has sent is no task");
        }
        if let Some(stream) = task.stream {
            let seed = Rf_protect(r::integers(&random_seed(stream)));
            Rf_defineVar(SEED.get(), seed, R_GlobalEnv);
            Rf_unprotect(1);
        }
        define_all(VECTOR_ELT(payload, 1), R_GlobalEnv);
        let env = Rf_protect(R_NewEnv(R_GlobalEnv, 0, 0));
        define_all(VECTOR_ELT(payload, 2), env);
        if task.constants.is_some() {
            let element = Rf_protect(read(own));
            Rf_defineVar(ELEMENT.get(), element, env);
            Rf_unprotect(1);
        }
        // See `with_context()` in R/traces.R.
        let expr = VECTOR_ELT(payload, 0);
        let traced = TYPEOF(expr) == SEXPTYPE::VECSXP
            && Rf_xlength(expr) == 2
            && r::Rf_inherits(expr, c"miraiContext".as_ptr()) == Rboolean::TRUE;
        if traced {
            Rf_defineVar(CONTEXT.get(), VECTOR_ELT(expr, 1), frame);
        }
        let expr = if traced { VECTOR_ELT(expr, 0) } else { expr };
        Rf_defineVar(EXPR.get(), expr, frame);
        Rf_defineVar(ENVIR.get(), env, frame);
        let asks = Rf_xlength(payload) == 4;
        let when = if asks {
            VECTOR_ELT(payload, 3)
        } else {
            R_NilValue
        };
        Rf_defineVar(WHEN.get(), when, frame);
        attempts::begin(asks);
        Rf_unprotect(2);
        traced
    }
}

/// Assigns the elements of a named list, which is empty afterwards.
unsafe fn define_all(list: SEXP, env: SEXP) {
    // SAFETY: on R's main thread. `list` is protected; names and values of a list have the same length.
    unsafe {
        let names = Rf_getAttrib(list, R_NamesSymbol);
        let is_named = TYPEOF(list) == SEXPTYPE::VECSXP && TYPEOF(names) == SEXPTYPE::STRSXP;
        if !is_named && Rf_xlength(list) > 0 {
            r::raise("what the host has sent is no task");
        }
        for i in 0..Rf_xlength(list) {
            Rf_defineVar(
                Rf_installChar(STRING_ELT(names, i)),
                VECTOR_ELT(list, i),
                env,
            );
            // Now the variable alone has it, so that it can be changed without a copy.
            extendr_ffi::SET_VECTOR_ELT(list, i, R_NilValue);
        }
    }
}
