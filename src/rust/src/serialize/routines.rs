//! Serialization as R sees it: registering hooks, and the two ends for tests.

use extendr_ffi::{
    R_CallMethodDef, R_NilValue, Rf_allocVector, Rf_xlength, SEXP, SEXPTYPE, TYPEOF,
};

use super::{buffer, hooks};
use crate::{r, session};

pub(crate) fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"set_hooks", set_hooks as *const (), 1),
        r::routine(c"encode", encode as *const (), 1),
        r::routine(c"decode", decode as *const (), 1),
    ]
}

/// `.Call(encode, x)`: the raw vector that would be sent.
unsafe extern "C-unwind" fn encode(x: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument. `out` has room for all bytes; a failure to
    // allocate it loses them.
    unsafe {
        (*buffer()).share(false);
        if !super::write(buffer(), x) {
            r::raise_again();
        }
        // Taken, because allocation may run a finalizer that uses the buffer.
        let bytes = (*buffer()).take().bytes;
        let out = Rf_allocVector(SEXPTYPE::RAWSXP, bytes.len() as isize);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), extendr_ffi::RAW(out), bytes.len());
        drop(bytes);
        out
    }
}

/// `.Call(decode, raw)`: the object that was sent.
unsafe extern "C-unwind" fn decode(raw: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument, whose bytes stay until this returns.
    unsafe {
        if TYPEOF(raw) != SEXPTYPE::RAWSXP {
            r::raise("not a raw vector");
        }
        let n = Rf_xlength(raw) as usize;
        let bytes = std::slice::from_raw_parts(extendr_ffi::RAW(raw), n);
        super::read_or_raise(bytes)
    }
}

/// `.Call(set_hooks, registry)`: registers serialization hooks, here and on all daemons,
/// present and future.
unsafe extern "C-unwind" fn set_hooks(registry: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument.
    unsafe {
        hooks::set(R_NilValue);
        // Without hooks, because it holds the hooks.
        (*buffer()).share(false);
        if !super::write(buffer(), registry) {
            r::raise_again();
        }
        hooks::set(registry);
        session::configure((*buffer()).take().bytes);
        R_NilValue
    }
}
