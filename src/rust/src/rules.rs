//! Rules of tasks that are not the default, from R's objects: see R/retry.R.

use std::sync::Arc;
use std::time::Duration;

use extendr_ffi::{R_NilValue, Rf_protect, Rf_unprotect, Rf_xlength, REAL, SEXP, SEXPTYPE, TYPEOF};
use mirai_core::dispatcher::{Backoff, Priority, Retry, Rules};

use crate::r::{self, Rf_eval};

/// Number of further attempts; infinite for no limit.
fn attempts(n: f64) -> u32 {
    // A float that is too large, or infinite, becomes the largest integer, which stands for no limit.
    n as u32
}

/// From the numbers of `retry_numbers()`: crash, error, and first, factor and most of the back-off, in seconds.
pub(crate) fn retry(numbers: &[f64]) -> Retry {
    let &[crash, error, first, factor, most] = numbers else {
        return Retry::default();
    };
    let seconds = |s| Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX);
    Retry {
        crash: attempts(crash),
        error: attempts(error),
        backoff: Backoff {
            first: seconds(first),
            factor,
            most: seconds(most),
        },
    }
}

/// From a value of `task_rules()`, or `NULL`.
///
/// # Safety
/// On R's main thread; `rules` is protected. R is called for reading only.
pub(crate) unsafe fn rules(rules: SEXP) -> Option<Arc<Rules>> {
    // SAFETY: as this function demands. The numbers are read while R keeps them.
    unsafe {
        if rules == R_NilValue {
            return None;
        }
        let numbers = r::element(rules, "retry");
        let numbers = (TYPEOF(numbers) == SEXPTYPE::REALSXP).then(|| {
            std::slice::from_raw_parts(REAL(numbers).cast_const(), Rf_xlength(numbers) as usize)
        });
        Some(Arc::new(Rules {
            retry: numbers.map(retry),
            priority: Priority::new(r::as_number(r::element(rules, "priority")).unwrap_or(0.0)),
        }))
    }
}

/// The function `when` of a task, or `NULL`: of its own rules, or if these say nothing of attempts, of its profile's;
/// `asks`: that has one.
///
/// # Safety
/// On R's main thread, which may be left by a long jump; the objects are protected.
pub(crate) unsafe fn when(rules: SEXP, profile: SEXP, asks: bool) -> SEXP {
    // SAFETY: as this function demands; the call is protected.
    unsafe {
        if rules != R_NilValue && r::element(rules, "retry") != R_NilValue {
            return r::element(rules, "when");
        }
        if !asks {
            return R_NilValue;
        }
        let name = extendr_ffi::Rf_install(c"profile_when".as_ptr());
        let call = Rf_protect(r::Rf_lang2(name, profile));
        let when = Rf_eval(call, r::NAMESPACE.get());
        Rf_unprotect(1);
        when
    }
}
