//! Waiting for mirai, looking at whether they have resolved, and cancelling them.

use extendr_ffi::{
    R_CallMethodDef, R_NamesSymbol, R_NilValue, Rboolean, Rf_allocVector, Rf_getAttrib, Rf_protect,
    Rf_setAttrib, Rf_unprotect, Rf_xlength, LOGICAL, SET_VECTOR_ELT, SEXP, SEXPTYPE, TYPEOF,
    VECTOR_ELT,
};
use mirai_core::task::Task;
use mirai_core::wait::{self, Patience, Waited};

use crate::profiles::{self, FORKED};
use crate::r::{self, Rf_ScalarInteger, Rf_inherits};
use crate::shared;
use crate::submit::milliseconds;
use crate::tasks::{is_mirai, task_of, value_of, DATA};

pub fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"collect", collect as *const (), 1),
        r::routine(c"collect_list", collect_list as *const (), 1),
        r::routine(c"wait_all", wait_all as *const (), 1),
        r::routine(c"wait_some", wait_some as *const (), 3),
        r::routine(c"first_failure", first_failure as *const (), 1),
        r::routine(c"race", race as *const (), 1),
        r::routine(c"pending", pending as *const (), 1),
        r::routine(c"cancel", cancel as *const (), 1),
        r::routine(c"obey_interrupt", obey_interrupt as *const (), 0),
    ]
}

/// `.Call(collect, x)`: waits for a mirai and returns its value.
unsafe extern "C-unwind" fn collect(x: SEXP) -> SEXP {
    wait_all(x);
    value_of(x)
}

/// The mirai in `x`, which is one, or a list that may hold some.
unsafe fn each(x: SEXP) -> impl Iterator<Item = SEXP> + Clone {
    let list = TYPEOF(x) == SEXPTYPE::VECSXP;
    let n = if list { Rf_xlength(x) } else { 1 };
    (0..n)
        .map(move |i| if list { VECTOR_ELT(x, i) } else { x })
        .filter(|m| is_mirai(*m))
}

/// `.Call(wait_all, x)`: waits until all mirai in `x` have resolved; returns `x`.
unsafe extern "C-unwind" fn wait_all(x: SEXP) -> SEXP {
    while wait_for(x, Patience::for_all(usize::MAX)) == Waited::Interrupted {
        r::obey_interrupt();
    }
    x
}

/// `.Call(wait_some, x, until_failure, milliseconds)`: waits until all mirai in `x` have
/// resolved, one has failed (if `until_failure`), or the time is over (unless `NULL`).
/// The number that have resolved.
unsafe extern "C-unwind" fn wait_some(x: SEXP, until_failure: SEXP, timeout: SEXP) -> SEXP {
    let patience = Patience {
        enough: usize::MAX,
        until_failure: *LOGICAL(until_failure) == 1,
        timeout: r::as_number(timeout).map(milliseconds),
    };
    while wait_for(x, patience) == Waited::Interrupted {
        r::obey_interrupt();
    }
    let resolved = each(x).filter(|m| !is_pending(*m)).count();
    Rf_ScalarInteger(resolved as i32)
}

/// Waits as `patience` says, but for no more mirai than there are in `x`.
unsafe fn wait_for(x: SEXP, patience: Patience) -> Waited {
    // Nothing resolves in a forked process, and it shares the bell with its parent.
    if profiles::is_forked() && each(x).any(|m| is_pending(m)) {
        r::raise(FORKED);
    }
    // Before any task is borrowed: a finalizer may read one of the mirai, and so let its task go.
    if patience.timeout.is_none() && shared::is_laden() && each(x).any(|m| is_pending(m)) {
        shared::collect();
    }
    if TYPEOF(x) == SEXPTYPE::ENVSXP {
        // The common case, without a list.
        let patience = Patience {
            enough: 1,
            ..patience
        };
        return match task_of(x) {
            Some(task) => wait::wait_for(std::iter::once(task), patience, r::interrupted),
            None => Waited::Ready,
        };
    }
    let mut tasks: Vec<&Task> = each(x).filter_map(|m| task_of(m)).collect();
    let read = each(x).count() - tasks.len();
    // The same mirai twice is one to wait for.
    tasks.sort_unstable_by_key(|task| task.id());
    tasks.dedup_by_key(|task| task.id());
    let patience = Patience {
        enough: tasks.len().min(patience.enough.saturating_sub(read)),
        ..patience
    };
    wait::wait_for(tasks.iter().copied(), patience, r::interrupted)
}

/// `.Call(collect_list, x)`: waits for all mirai in a list; a list of their values with
/// the same names.
unsafe extern "C-unwind" fn collect_list(x: SEXP) -> SEXP {
    wait_all(x);
    let n = Rf_xlength(x);
    let out = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, n));
    for i in 0..n {
        SET_VECTOR_ELT(out, i, value_of(VECTOR_ELT(x, i)));
    }
    let names = Rf_protect(Rf_getAttrib(x, R_NamesSymbol));
    if names != R_NilValue {
        Rf_setAttrib(out, R_NamesSymbol, names);
    }
    Rf_unprotect(2);
    out
}

/// `.Call(first_failure, x)`: index of the first mirai in the list that has resolved to an
/// error value, 0 if there is none.
unsafe extern "C-unwind" fn first_failure(x: SEXP) -> SEXP {
    let failed = |m| match task_of(m) {
        Some(task) => task.has_failed(),
        None => {
            let value = r::get_var_in_frame(DATA.get(), m);
            Rf_inherits(value, c"errorValue".as_ptr()) == Rboolean::TRUE
        }
    };
    let first = (0..Rf_xlength(x)).find(|i| failed(VECTOR_ELT(x, *i)));
    Rf_ScalarInteger(first.map_or(0, |i| i as i32 + 1))
}

/// `.Call(race, x)`: waits for the first mirai in the list to resolve and returns
/// its index, 0 for a list without mirai.
unsafe extern "C-unwind" fn race(x: SEXP) -> SEXP {
    while wait_for(x, Patience::for_all(1)) == Waited::Interrupted {
        r::obey_interrupt();
    }
    let list = TYPEOF(x) == SEXPTYPE::VECSXP;
    let n = if list { Rf_xlength(x) } else { 1 };
    let first = (0..n).find(|i| {
        let m = if list { VECTOR_ELT(x, *i) } else { x };
        is_mirai(m) && !is_pending(m)
    });
    Rf_ScalarInteger(first.map_or(0, |i| i as i32 + 1))
}

unsafe fn is_pending(mirai: SEXP) -> bool {
    task_of(mirai).is_some_and(|t| !t.is_resolved())
}

/// `.Call(pending, x)`: the number of unresolved mirai (or unresolved values).
unsafe extern "C-unwind" fn pending(x: SEXP) -> SEXP {
    let n = match TYPEOF(x) {
        SEXPTYPE::VECSXP => (0..Rf_xlength(x))
            .filter(|i| unresolved(VECTOR_ELT(x, *i)))
            .count(),
        _ => usize::from(unresolved(x)),
    };
    Rf_ScalarInteger(n as i32)
}

unsafe fn unresolved(x: SEXP) -> bool {
    if is_mirai(x) {
        is_pending(x)
    } else {
        TYPEOF(x) == SEXPTYPE::LGLSXP
            && Rf_inherits(x, c"unresolvedValue".as_ptr()) == Rboolean::TRUE
    }
}

/// `.Call(cancel, x)`: cancels the mirai in `x`; for each whether that came in time.
unsafe extern "C-unwind" fn cancel(x: SEXP) -> SEXP {
    let n = if TYPEOF(x) == SEXPTYPE::VECSXP {
        Rf_xlength(x)
    } else {
        1
    };
    let out = Rf_protect(Rf_allocVector(SEXPTYPE::LGLSXP, n));
    // From the last to the first: cancelling the running one first would only have
    // its daemon begin the next, to be cancelled as well.
    for i in (0..n).rev() {
        let m = if TYPEOF(x) == SEXPTYPE::VECSXP {
            VECTOR_ELT(x, i)
        } else {
            x
        };
        let done = is_mirai(m) && task_of(m).is_some_and(profiles::cancel);
        *LOGICAL(out).add(i as usize) = done.into();
    }
    Rf_unprotect(1);
    out
}

/// `.Call(obey_interrupt)`: after a routine has said that it was interrupted.
unsafe extern "C-unwind" fn obey_interrupt() -> SEXP {
    r::obey_interrupt();
    R_NilValue
}
