//! What the host has sent for a task: from its bytes to variables.

use std::ops::Range;

use extendr_ffi::{
    R_GlobalEnv, R_NamesSymbol, R_NewEnv, R_NilValue, Rboolean, Rf_allocVector, Rf_defineVar,
    Rf_duplicate, Rf_getAttrib, Rf_protect, Rf_unprotect, Rf_xlength, INTEGER_ELT, SET_VECTOR_ELT,
    SEXP, SEXPTYPE, STRING_ELT, TYPEOF, VECTOR_ELT,
};
use mirai_core::memory::{Layout, Piece};
use mirai_core::worker::Assignment;

use super::{attempts, kept};
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
        let own = Body {
            bytes: &task.body,
            pieces: &task.pieces,
            layout: &task.layout,
            common: false,
        };
        let shared = task.constants.as_ref();
        let common = shared.map(|c| Body {
            bytes: &c.bytes,
            pieces: &c.pieces,
            layout: &c.layout,
            common: true,
        });
        let read_it = || read(common.unwrap_or(own).message());
        let (payload, is_kept) = match shared.map(|shared| kept::payload(shared, read_it)) {
            Some(payload) => (payload.object, payload.is_kept),
            None => (read_it(), false),
        };
        Rf_protect(payload);
        // R does not check an index.
        if TYPEOF(payload) != SEXPTYPE::VECSXP || !(3..=5).contains(&Rf_xlength(payload)) {
            no_task();
        }
        if Rf_xlength(payload) == 5 {
            put_in_place(payload, common.unwrap_or(own));
        }
        if let Some(stream) = task.stream {
            let seed = Rf_protect(r::integers(&random_seed(stream)));
            Rf_defineVar(SEED.get(), seed, R_GlobalEnv);
            Rf_unprotect(1);
        }
        define_all(VECTOR_ELT(payload, 1), R_GlobalEnv, is_kept);
        let env = Rf_protect(R_NewEnv(R_GlobalEnv, 0, 0));
        define_all(VECTOR_ELT(payload, 2), env, is_kept);
        if task.constants.is_some() {
            // The value of a mirai, if there is one.
            let element = Rf_protect(read(own.value(0).unwrap_or(own.message())));
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
        let when = if Rf_xlength(payload) > 3 {
            VECTOR_ELT(payload, 3)
        } else {
            R_NilValue
        };
        Rf_defineVar(WHEN.get(), when, frame);
        attempts::begin(when != R_NilValue);
        Rf_unprotect(2);
        traced
    }
}

/// A message with the values that are attached to it.
#[derive(Clone, Copy)]
struct Body<'a> {
    bytes: &'a [u8],
    pieces: &'a [Piece],
    layout: &'a Layout,
    /// Other daemons have mapped the pieces, too.
    common: bool,
}

impl<'a> Body<'a> {
    fn message(self) -> Source<'a> {
        let (bytes, pieces) = self.layout.message(self.bytes, self.pieces);
        self.source(bytes, 0..bytes.len(), pieces)
    }

    /// The value of this number from 0; `None` if there is none.
    fn value(self, i: usize) -> Option<Source<'a>> {
        let (range, pieces) = self.layout.value(i, self.pieces)?;
        Some(self.source(self.bytes, range, pieces))
    }

    fn source(self, bytes: &'a [u8], range: Range<usize>, pieces: &'a [Piece]) -> Source<'a> {
        let source = Source::part(bytes, range, pieces);
        if self.common {
            source.common()
        } else {
            source
        }
    }
}

/// Puts the values that are attached to a payload where its last element says: see `submit/arguments.rs`.
unsafe fn put_in_place(payload: SEXP, body: Body<'_>) {
    // SAFETY: on R's main thread, where long jumps end. `payload`, which is a list of five, is protected and nobody else's,
    // and so are its lists; `values` and `lists` are protected. Indices are below the lengths checked.
    unsafe {
        let places = VECTOR_ELT(payload, 4);
        let n_places = Rf_xlength(places) / 4;
        if TYPEOF(places) != SEXPTYPE::INTSXP || Rf_xlength(places) % 4 != 0 {
            no_task();
        }
        let n = body.layout.attached();
        let values = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, n as isize));
        for i in 0..n {
            if let Some(source) = body.value(i) {
                SET_VECTOR_ELT(values, i as isize, read(source));
            }
        }
        // All lists are found before the first value is put anywhere: so none of them is part of a value, and no value
        // becomes part of itself.
        let lists = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, n_places));
        for i in 0..n_places {
            let number = |j| INTEGER_ELT(places, 4 * i + j);
            let args = VECTOR_ELT(payload, 2);
            let mut list = match number(0) {
                1 => VECTOR_ELT(payload, 1),
                2 => args,
                3 => VECTOR_ELT(args, index(args, 2)),
                _ => no_task(),
            };
            let argument = index(list, number(1));
            if number(2) != 0 {
                list = VECTOR_ELT(list, argument);
                index(list, number(2));
            }
            index(values, number(3));
            SET_VECTOR_ELT(lists, i, list);
        }
        for i in 0..n_places {
            let number = |j| INTEGER_ELT(places, 4 * i + j);
            let place = if number(2) != 0 { number(2) } else { number(1) };
            let value = VECTOR_ELT(values, number(3) as isize - 1);
            SET_VECTOR_ELT(VECTOR_ELT(lists, i), place as isize - 1, value);
        }
        // Now the arguments alone have them, so that they can be changed without a copy.
        for list in [lists, values] {
            for i in 0..Rf_xlength(list) {
                SET_VECTOR_ELT(list, i, R_NilValue);
            }
        }
        Rf_unprotect(2);
    }
}

/// A place in a list by its number from 1, as an index from 0.
unsafe fn index(list: SEXP, number: i32) -> isize {
    // SAFETY: on R's main thread; `list` is protected.
    unsafe {
        let i = number as isize - 1;
        if TYPEOF(list) != SEXPTYPE::VECSXP || !(0..Rf_xlength(list)).contains(&i) {
            no_task();
        }
        i
    }
}

/// Raises R's error of a message that no host of ours would send.
unsafe fn no_task() -> ! {
    // SAFETY: on R's main thread; nothing here has a destructor, nor do the callers own anything that has.
    unsafe { r::raise("what the host has sent is no task") }
}

/// Assigns the elements of a named list, or duplicates of them if the list `is_kept`. Otherwise it is empty afterwards.
unsafe fn define_all(list: SEXP, env: SEXP, is_kept: bool) {
    // SAFETY: on R's main thread. `list` is protected; names and values of a list have the same length. A duplicate is
    // protected until a variable has it.
    unsafe {
        let names = Rf_getAttrib(list, R_NamesSymbol);
        let is_named = TYPEOF(list) == SEXPTYPE::VECSXP && TYPEOF(names) == SEXPTYPE::STRSXP;
        if !is_named && Rf_xlength(list) > 0 {
            no_task();
        }
        for i in 0..Rf_xlength(list) {
            let name = Rf_installChar(STRING_ELT(names, i));
            let value = VECTOR_ELT(list, i);
            if is_kept {
                Rf_defineVar(name, Rf_protect(Rf_duplicate(value)), env);
                Rf_unprotect(1);
            } else {
                Rf_defineVar(name, value, env);
                // Now the variable alone has it, so that it can be changed without a copy.
                SET_VECTOR_ELT(list, i, R_NilValue);
            }
        }
    }
}
