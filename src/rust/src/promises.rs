//! The way from a resolved task to a promise, without anybody looking: the thread
//! that resolves the task schedules a callback on an event loop of package later,
//! by its C interface, and later runs it on R's main thread. While tasks are
//! pending there is a small callback with each and nothing else.
//!
//! What shall happen is R's business. It is known by a number, under which R keeps
//! a function (see R/promises.R), so nothing of R is held here.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use extendr_ffi::{
    R_CallMethodDef, R_NilValue, Rboolean, Rf_install, Rf_protect, Rf_unprotect, Rf_xlength, SEXP,
    SEXPTYPE, TYPEOF, VECTOR_ELT,
};

use crate::profiles::{self, FORKED};
use crate::r::{self, R_GetCCallable, Rf_ScalarInteger, Rf_eval, Rf_inherits, Rf_lang3};
use crate::tasks::{task_of, DATA};

pub fn routines() -> Vec<R_CallMethodDef> {
    vec![r::routine(c"when_resolved", when_resolved as *const (), 3)]
}

/// later's `execLaterNative2`: may be called from any thread.
type ExecLater = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, f64, c_int);

/// `None` before the first promise, and when the session is over: R then unloads
/// later while our threads still run. Locked during each call for the same reason.
static EXEC_LATER: Mutex<Option<ExecLater>> = Mutex::new(None);

fn exec_later() -> MutexGuard<'static, Option<ExecLater>> {
    EXEC_LATER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on nothing is scheduled.
pub fn close() {
    *exec_later() = None;
}

/// Several tasks that R wants to hear of under one number.
struct Watch {
    key: i32,
    event_loop: c_int,
    pending: AtomicUsize,
}

impl Watch {
    /// The task at this index (from 1) has resolved.
    fn tick(&self, index: i32, failed: bool) {
        if failed {
            self.schedule(index);
        }
        if self.pending.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.schedule(0);
        }
    }

    fn schedule(&self, index: i32) {
        if let Some(exec_later) = *exec_later() {
            let key = self.key;
            let due = Box::into_raw(Box::new(Due { key, index }));
            // SAFETY: it calls `run` with `due` once, or never if the loop is gone.
            unsafe { exec_later(run, due.cast(), 0.0, self.event_loop) };
        }
    }
}

/// What R is to be told: which task has failed, or 0 when all have resolved.
struct Due {
    key: i32,
    index: i32,
}

/// `.Call(when_resolved, x, key, loop)`: has `settle_promise(key, index)` called from the event
/// loop of that number, for each mirai in `x` (one, or a list) that fails, with its index
/// from 1, and with 0 when all have resolved. later's namespace has to be loaded.
unsafe extern "C-unwind" fn when_resolved(x: SEXP, key: SEXP, event_loop: SEXP) -> SEXP {
    if profiles::is_forked() {
        r::raise(FORKED);
    }
    // Here, because only the main thread may ask R for it.
    let function = R_GetCCallable(c"later".as_ptr(), c"execLaterNative2".as_ptr());
    *exec_later() = std::mem::transmute::<extendr_ffi::DL_FUNC, Option<ExecLater>>(function);
    let list = TYPEOF(x) == SEXPTYPE::VECSXP;
    let n = if list { Rf_xlength(x) } else { 1 };
    let watch = Arc::new(Watch {
        key: r::as_number(key).unwrap_or_default() as i32,
        event_loop: r::as_number(event_loop).unwrap_or_default() as c_int,
        pending: AtomicUsize::new(n as usize),
    });
    if n == 0 {
        watch.schedule(0);
    }
    for i in 0..n {
        let mirai = if list { VECTOR_ELT(x, i) } else { x };
        let index = i as i32 + 1;
        match task_of(mirai) {
            Some(task) => {
                let watch = watch.clone();
                task.on_resolved(Box::new(move |outcome| {
                    watch.tick(index, outcome.is_failure());
                }));
            }
            None => {
                let value = r::get_var_in_frame(DATA.get(), mirai);
                let failed = Rf_inherits(value, c"errorValue".as_ptr()) == Rboolean::TRUE;
                watch.tick(index, failed);
            }
        }
    }
    R_NilValue
}

/// Called by later on R's main thread.
unsafe extern "C" fn run(due: *mut c_void) {
    let due = Box::from_raw(due.cast::<Due>());
    // A forked child has inherited what was scheduled; the promise is not its own.
    if !profiles::is_forked() {
        let due = std::ptr::from_ref(&*due).cast_mut().cast();
        // A Ctrl-C that comes meanwhile is for whoever runs the loop, afterwards.
        r::without_interrupts(|| r::R_ToplevelExec(Some(settle), due));
    }
}

unsafe extern "C" fn settle(due: *mut c_void) {
    let due = &*due.cast::<Due>();
    let key = Rf_protect(Rf_ScalarInteger(due.key));
    let index = Rf_protect(Rf_ScalarInteger(due.index));
    let call = Rf_protect(Rf_lang3(Rf_install(c"settle_promise".as_ptr()), key, index));
    Rf_eval(call, r::NAMESPACE.get());
    Rf_unprotect(3);
}
