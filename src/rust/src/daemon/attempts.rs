//! Whether another attempt may mend the error in which a task has ended: what the daemon tells the host.

use std::sync::atomic::{AtomicU8, Ordering};

use extendr_ffi::{R_CallMethodDef, R_NilValue, SEXP};
use mirai_core::protocol::Done;

use crate::r;

pub(super) fn routines() -> Vec<R_CallMethodDef> {
    vec![r::routine(c"retry", retry as *const (), 0)]
}

/// The host alone decides: the task has no function `when`.
const NOT_ASKED: u8 = 0;
/// The task has a function `when`, which has not asked for another attempt.
const FINAL: u8 = 1;
/// That function has asked for another attempt.
const AGAIN: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(NOT_ASKED);

/// A task begins. `asks`: it has a function `when`.
pub(super) fn begin(asks: bool) {
    STATE.store(if asks { FINAL } else { NOT_ASKED }, Ordering::Relaxed);
}

/// `.Call(retry)`: the task's function `when` asks for another attempt.
unsafe extern "C-unwind" fn retry() -> SEXP {
    STATE.store(AGAIN, Ordering::Relaxed);
    // SAFETY: R's own constant.
    unsafe { R_NilValue }
}

/// What a task has ended as whose value is an error value; `raised`: an error of R's, rather than an interrupt, or an
/// error value that it has from elsewhere.
pub(super) fn outcome(raised: bool) -> Done {
    if raised && STATE.load(Ordering::Relaxed) != FINAL {
        Done::Error
    } else {
        Done::Final
    }
}
