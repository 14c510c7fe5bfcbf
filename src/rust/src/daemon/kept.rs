//! What the elements of a map have in common, kept as R objects from one to the next.
//!
//! No element may see what another has done to the function or the arguments. So what is kept is never given away: each
//! element gets a duplicate, as R makes it for an assignment. That is as good as reading the bytes again for objects that
//! are all their own: code, and vectors without references to anything that can be changed in place. A duplicate of a
//! function shares formals and body with it, which are calls and constants, that R does not change. Of anything else
//! (environments, as those of most functions made by functions, or pointers), each element reads its own from the bytes.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use extendr_ffi::backports::{get_closure_env, get_closure_formals};
use extendr_ffi::{
    R_BaseEnv, R_BaseNamespace, R_EmptyEnv, R_GlobalEnv, R_IsNamespaceEnv, R_NilValue,
    R_PreserveObject, R_ReleaseObject, Rboolean, Rf_protect, Rf_unprotect, Rf_xlength, CAR, CDR,
    SEXP, SEXPTYPE, TAG, TYPEOF, VECTOR_ELT,
};
use mirai_core::worker::Common;

use crate::r::{self, Constant};
use crate::serialize::digest::{SRCFILE, SRCREF, WHOLE_SRCREF};

/// Limit of the bytes of what is kept.
const MOST_BYTES: usize = 64 * 1024;
/// Levels of nesting that are looked at.
const DEEPEST: u32 = 100;

struct Kept {
    /// Whose objects they are. As long as this lives, no others have the same address.
    bytes: Weak<Vec<u8>>,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    /// They have been used once.
    Seen,
    /// They cannot be kept.
    Passing,
    /// R keeps this object.
    Kept(SEXP),
}

thread_local! {
    static KEPT: RefCell<Kept> = const {
        RefCell::new(Kept { bytes: Weak::new(), state: State::Passing })
    };
}

/// The payload that tasks have in common.
pub(super) struct Payload {
    pub(super) object: SEXP,
    /// Others will be given the same, so it must stay as it is, and so must all of its parts.
    pub(super) is_kept: bool,
}

/// The payload in `common`, which `read` reads.
///
/// # Safety
/// On R's main thread, where long jumps end: `read` may leave by one. The object is to be protected.
pub(super) unsafe fn payload(common: &Common, read: impl FnOnce() -> SEXP) -> Payload {
    // SAFETY: as this function demands. Nothing is borrowed or owned while R is called.
    unsafe {
        let state = match state_of(common) {
            State::Kept(object) => {
                return Payload {
                    object,
                    is_kept: true,
                };
            }
            state => state,
        };
        let object = read();
        let is_kept = matches!(state, State::Seen) && {
            Rf_protect(object);
            let lasts = is_self_contained(object, 0);
            if lasts {
                R_PreserveObject(object);
            }
            Rf_unprotect(1);
            lasts
        };
        if matches!(state, State::Seen) {
            set(match is_kept {
                true => State::Kept(object),
                false => State::Passing,
            });
        }
        Payload { object, is_kept }
    }
}

/// What is known of these. If nothing is, what is kept of others is let go.
unsafe fn state_of(common: &Common) -> State {
    // SAFETY: on R's main thread. R is called for a release only, which runs no code.
    unsafe {
        let is_small = common.bytes.len() <= MOST_BYTES && common.pieces.is_empty();
        if !is_small || common.layout.attached() > 0 {
            return State::Passing;
        }
        KEPT.with_borrow_mut(|kept| {
            if std::ptr::eq(kept.bytes.as_ptr(), Arc::as_ptr(&common.bytes)) {
                return kept.state;
            }
            if let State::Kept(object) = kept.state {
                R_ReleaseObject(object);
            }
            kept.bytes = Arc::downgrade(&common.bytes);
            kept.state = State::Seen;
            // The first to use them: there may be no second one.
            State::Passing
        })
    }
}

fn set(state: State) {
    KEPT.with_borrow_mut(|kept| kept.state = state);
}

/// Whether nothing that R's functions do to a duplicate of an object can be seen in the object.
unsafe fn is_self_contained(object: SEXP, depth: u32) -> bool {
    // SAFETY: on R's main thread; the outermost object is protected, and reaches all others. Each accessor is used on an
    // object of its type. R is called for reading only.
    unsafe {
        let part = |part| is_self_contained(part, depth + 1);
        if depth > DEEPEST {
            return false;
        }
        match TYPEOF(object) {
            SEXPTYPE::NILSXP
            | SEXPTYPE::SYMSXP
            | SEXPTYPE::CHARSXP
            | SEXPTYPE::BUILTINSXP
            | SEXPTYPE::SPECIALSXP => true,
            SEXPTYPE::ENVSXP => is_well_known(object),
            SEXPTYPE::CLOSXP => {
                attributes_are(object, part)
                    && is_well_known(get_closure_env(object))
                    && part(get_closure_formals(object))
                    && part(r::R_ClosureExpr(object))
            }
            SEXPTYPE::LISTSXP | SEXPTYPE::LANGSXP => {
                let mut cell = object;
                while matches!(TYPEOF(cell), SEXPTYPE::LISTSXP | SEXPTYPE::LANGSXP) {
                    if !attributes_are(cell, part) || !part(TAG(cell)) || !part(CAR(cell)) {
                        return false;
                    }
                    cell = CDR(cell);
                }
                cell == R_NilValue
            }
            SEXPTYPE::LGLSXP
            | SEXPTYPE::INTSXP
            | SEXPTYPE::REALSXP
            | SEXPTYPE::CPLXSXP
            | SEXPTYPE::RAWSXP
            | SEXPTYPE::STRSXP => r::ALTREP(object) == 0 && attributes_are(object, part),
            SEXPTYPE::VECSXP | SEXPTYPE::EXPRSXP => {
                r::ALTREP(object) == 0
                    && (0..Rf_xlength(object)).all(|i| part(VECTOR_ELT(object, i)))
                    && attributes_are(object, part)
            }
            _ => false,
        }
    }
}

/// Whether all attributes of an object are `part`s. Those with source references need not be, which lead to an environment
/// with the lines of a file: R alone changes that.
unsafe fn attributes_are(object: SEXP, part: impl Fn(SEXP) -> bool) -> bool {
    // SAFETY: on R's main thread; `object` keeps its attributes.
    unsafe {
        let of_source = [&SRCREF, &SRCFILE, &WHOLE_SRCREF].map(Constant::get);
        !r::has_attributes(object)
            || r::all_attributes(object, |name, value| {
                of_source.contains(&name) || part(value)
            })
    }
}

/// An environment that a task finds by itself, whatever it is given.
unsafe fn is_well_known(env: SEXP) -> bool {
    // SAFETY: on R's main thread; `env` is an environment.
    unsafe {
        [R_GlobalEnv, R_BaseEnv, R_BaseNamespace, R_EmptyEnv].contains(&env)
            || R_IsNamespaceEnv(env) == Rboolean::TRUE
    }
}
