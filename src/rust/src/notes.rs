//! What comes beside a value: conditions and output that the daemon has noted, and reports that a task has sent ahead.
//!
//! Notes are R's business: `take_notes()` in R/notes.R makes raw bytes of them on the daemon, and the host's R reads them
//! again. A mirai keeps them, once its value has been read, in a hidden variable beside the value.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use extendr_ffi::{
    R_CallMethodDef, R_NilValue, Rf_allocVector, Rf_defineVar, Rf_install, Rf_protect,
    Rf_setAttrib, Rf_unprotect, Rf_xlength, RAW, SET_VECTOR_ELT, SEXP, SEXPTYPE, TYPEOF,
};
use mirai_core::memory::Content;
use mirai_core::task::{Outcome, Task};

use crate::r::{self, Rf_eval, Rf_lang2};
use crate::serialize::Buffer;
use crate::tasks::{is_mirai, task_of, value_of};

pub(crate) fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"noted", noted as *const (), 0),
        r::routine(c"notes", notes as *const (), 1),
        r::routine(c"reports", reports as *const (), 2),
    ]
}

r::symbols! {
    NOTES = c".notes";
    REPORTS = c".reports";
}

/// On a daemon: whether R has noted anything since notes were taken last.
static NOTED: AtomicBool = AtomicBool::new(false);

/// `.Call(noted)`: R has noted something about the task that runs.
unsafe extern "C-unwind" fn noted() -> SEXP {
    NOTED.store(true, Ordering::Relaxed);
    // SAFETY: R's own constant.
    unsafe { R_NilValue }
}

/// Whether there are notes to take.
pub(crate) fn are_there() -> bool {
    NOTED.load(Ordering::Relaxed)
}

r::symbols! {
    TAKE = c"take_notes";
}

/// Appends to `out` the notes about the task that is over, and what it has written, and begins anew. Returns their
/// length in bytes.
///
/// # Safety
/// On R's main thread, where long jumps end. Nobody else uses `out`.
pub(crate) unsafe fn append(out: *mut Buffer, written: &str) -> usize {
    NOTED.store(false, Ordering::Relaxed);
    // SAFETY: `raw` is protected while its bytes are copied.
    unsafe {
        let written = Rf_protect(r::string(written));
        let call = Rf_protect(Rf_lang2(TAKE.get(), written));
        let raw = Rf_protect(Rf_eval(call, r::NAMESPACE.get()));
        let bytes = if TYPEOF(raw) == SEXPTYPE::RAWSXP {
            std::slice::from_raw_parts(RAW(raw), Rf_xlength(raw) as usize)
        } else {
            &[]
        };
        let appended = (*out).append_notes(bytes);
        let n = if appended { bytes.len() } else { 0 };
        Rf_unprotect(3);
        n
    }
}

/// Keeps in a mirai's environment what is beside its value, before its task is let go.
///
/// # Safety
/// On R's main thread; `env` is protected.
pub(crate) unsafe fn keep(env: SEXP, task: &Task) {
    // SAFETY: as this function demands; what was allocated is protected.
    unsafe {
        let content = match task.outcome() {
            Some(Outcome::Value(content) | Outcome::Error(content)) => Some(content),
            Some(Outcome::Stored(stored)) => stored.content().ok(),
            _ => None,
        };
        if let Some(bytes) = content.and_then(Content::notes) {
            let raw = Rf_protect(raw(bytes));
            Rf_defineVar(NOTES.get(), raw, env);
            Rf_unprotect(1);
        }
        let list = raw_reports(task, 0);
        if list != R_NilValue {
            Rf_protect(list);
            Rf_defineVar(REPORTS.get(), list, env);
            Rf_unprotect(1);
        }
    }
}

unsafe fn raw(bytes: &[u8]) -> SEXP {
    // SAFETY: on R's main thread. The vector has room for the bytes.
    unsafe {
        let out = Rf_allocVector(SEXPTYPE::RAWSXP, bytes.len() as isize);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), RAW(out), bytes.len());
        out
    }
}

/// The reports of a task, but for the first `n` that it has sent, as a list of raw vectors. Attribute `dropped` has the
/// number of those before them. `NULL` if there are none.
unsafe fn raw_reports(task: &Task, n: u64) -> SEXP {
    // SAFETY: on R's main thread; what was allocated is protected. Only a failure to allocate could lose `reports`.
    unsafe {
        let reports = task.reports().after(n);
        if reports.kept.is_empty() {
            return R_NilValue;
        }
        let kept: Vec<Arc<Content>> = reports.kept.into_iter().collect();
        let list = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, kept.len() as isize));
        for (i, report) in kept.iter().enumerate() {
            SET_VECTOR_ELT(list, i as isize, raw(&report.plain()));
        }
        let dropped = Rf_protect(r::Rf_ScalarInteger(
            reports.dropped.min(i32::MAX as u64) as i32
        ));
        Rf_setAttrib(list, Rf_install(c"dropped".as_ptr()), dropped);
        Rf_unprotect(2);
        list
    }
}

/// `.Call(notes, mirai)`: the raw bytes of the daemon's notes; `NULL` if there are none, or it has not resolved.
unsafe extern "C-unwind" fn notes(mirai: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument.
    unsafe { beside(mirai, NOTES.get()) }
}

/// `.Call(reports, mirai, n)`: the reports so far but for the first `n`, as `raw_reports` has them. Once the mirai has
/// resolved: all that are kept.
unsafe extern "C-unwind" fn reports(mirai: SEXP, n: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument. The mirai, which is not settled meanwhile, keeps
    // the task.
    unsafe {
        match is_mirai(mirai).then(|| task_of(mirai)).flatten() {
            Some(task) if !task.is_resolved() => {
                raw_reports(task, r::as_number(n).unwrap_or_default() as u64)
            }
            _ => beside(mirai, REPORTS.get()),
        }
    }
}

unsafe fn beside(mirai: SEXP, name: SEXP) -> SEXP {
    // SAFETY: on R's main thread; `mirai` is protected.
    unsafe {
        if !is_mirai(mirai) {
            return R_NilValue;
        }
        match task_of(mirai) {
            Some(task) if !task.is_resolved() => return R_NilValue,
            // Reading the value puts in place what is beside it.
            Some(_) => {
                value_of(mirai);
            }
            None => {}
        }
        r::get_var_in_frame(name, mirai)
    }
}
