//! Error values: those of R's errors, and those that are numbers.

use std::ffi::{c_void, CStr};

use extendr_ffi::{R_ClassSymbol, Rf_protect, Rf_setAttrib, Rf_unprotect, SEXP};
use mirai_core::task::Task;

use crate::r::{self, Constant, Rf_eval, Rf_lang2};
use crate::serialize::Unread;

// SAFETY: on R's main thread.
static ERROR_CLASS: Constant = Constant::new(|| unsafe { r::string("errorValue") });

/// The error value for R's last error.
pub(crate) unsafe fn failure() -> SEXP {
    // SAFETY: on R's main thread.
    unsafe { failure_with(r::string(&r::last_error().to_string_lossy())) }
}

pub(crate) unsafe fn failure_of(unread: Unread) -> SEXP {
    // SAFETY: on R's main thread; the text is dropped before R is called again.
    unsafe {
        let text = unread.to_string();
        let string = r::string(&text);
        drop(text);
        failure_with(string)
    }
}

pub(crate) unsafe fn failure_with(text: SEXP) -> SEXP {
    // SAFETY: on R's main thread; what was allocated is protected.
    unsafe {
        let value = value_by(c"failure_value", Rf_protect(text));
        Rf_unprotect(1);
        value
    }
}

/// An error value that is a number.
pub(crate) unsafe fn error_value(code: i32) -> SEXP {
    // SAFETY: on R's main thread; `value` is protected.
    unsafe {
        let value = Rf_protect(r::integers(&[code]));
        Rf_setAttrib(value, R_ClassSymbol, ERROR_CLASS.get());
        Rf_unprotect(1);
        value
    }
}

/// An error value 19 that says which daemon was lost, and why, or that daemons were reset.
pub(crate) unsafe fn reset_value(task: &Task) -> SEXP {
    // SAFETY: on R's main thread; what was allocated is protected. The text is dropped before R may run code.
    unsafe {
        let value = Rf_protect(error_value(19));
        if let Some(text) = task.reset_reason() {
            let reason = Rf_protect(r::string(&text));
            Rf_setAttrib(value, extendr_ffi::Rf_install(c"reason".as_ptr()), reason);
            Rf_unprotect(1);
        }
        Rf_unprotect(1);
        value
    }
}

/// The error value of a task of which an argument has come to `cause`, an error value.
///
/// # Safety
/// On R's main thread; `cause` is protected. May leave by a long jump.
pub(crate) unsafe fn argument_failure(cause: SEXP) -> SEXP {
    // SAFETY: as this function demands.
    unsafe { value_by(c"argument_error", cause) }
}

/// The error value for an R error in the middle of reading, such as of a hook, or for lack of memory.
pub(crate) unsafe extern "C" fn unreadable(condition: SEXP, _: *mut c_void) -> SEXP {
    // SAFETY: on R's main thread; R protects the condition.
    unsafe { value_by(c"unreadable_value", condition) }
}

/// What a function of this package's R code makes of its argument, which is protected. On R's main thread.
unsafe fn value_by(function: &CStr, argument: SEXP) -> SEXP {
    // SAFETY: as this function demands; the call is protected.
    unsafe {
        let name = extendr_ffi::Rf_install(function.as_ptr());
        let call = Rf_protect(Rf_lang2(name, argument));
        let value = Rf_eval(call, r::NAMESPACE.get());
        Rf_unprotect(1);
        value
    }
}
