//! The way from a resolved task to a promise, without anybody looking: the thread
//! that resolves the task schedules a callback on an event loop of package later,
//! by its C interface, and later runs it on R's main thread. While tasks are
//! pending there is a small callback with each and nothing else.
//!
//! What shall happen is R's business: functions, which are [kept](Kept) until they have been called.
//! Other threads know them by a [`Key`] only.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use extendr_ffi::{
    R_CallMethodDef, R_NilValue, R_PreserveObject, R_ReleaseObject, Rboolean, Rf_allocVector,
    Rf_install, Rf_protect, Rf_unprotect, Rf_xlength, LOGICAL, SET_VECTOR_ELT, SEXP, SEXPTYPE,
    TYPEOF, VECTOR_ELT,
};

use mirai_core::sys::Bell;

use crate::forks;
use crate::r::{self, R_GetCCallable, Rf_ScalarInteger, Rf_eval, Rf_inherits, Rf_lang3};
use crate::tasks::{read_value, task_of};

pub(crate) fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"prepare_promise", prepare_promise as *const (), 0),
        r::routine(c"when_resolved", when_resolved as *const (), 3),
        r::routine(c"when_reported", when_reported as *const (), 3),
        r::routine(c"promises_kept", promises_kept as *const (), 0),
    ]
}

/// later's `execLaterNative2`: may be called from any thread.
type ExecLater = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, f64, c_int);

/// `None` before the first promise, and when the session is over: R then unloads
/// later while our threads still run. Locked during each call for the same reason.
static EXEC_LATER: Mutex<Option<ExecLater>> = Mutex::new(None);

fn exec_later() -> MutexGuard<'static, Option<ExecLater>> {
    EXEC_LATER.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(unix)]
mod during_forks {
    use std::cell::UnsafeCell;
    use std::sync::{MutexGuard, Once};

    use super::{exec_later, ExecLater};

    /// What `fork(3)` holds while it copies this process: [`EXEC_LATER`]. Else a thread of ours could hold later's own
    /// lock at that moment, and the child would wait for it for ever as soon as it used later.
    struct HeldByFork(UnsafeCell<Option<MutexGuard<'static, Option<ExecLater>>>>);

    // SAFETY: only used by the handlers below, of which fork(3) runs one after the other on the thread that forks.
    unsafe impl Sync for HeldByFork {}

    static HELD_BY_FORK: HeldByFork = HeldByFork(UnsafeCell::new(None));

    pub(super) fn hold_during_forks() {
        static ONCE: Once = Once::new();
        unsafe extern "C" fn before() {
            // SAFETY: `fork(3)` runs the handlers on one thread, so nobody else uses the cell.
            unsafe {
                *HELD_BY_FORK.0.get() = Some(exec_later());
            }
        }
        unsafe extern "C" fn after() {
            // SAFETY: as in `before`.
            unsafe {
                *HELD_BY_FORK.0.get() = None;
            }
        }
        // SAFETY: the handlers call nothing that may not be called around a fork.
        ONCE.call_once(|| unsafe {
            libc::pthread_atfork(Some(before), Some(after), Some(after));
        });
    }
}

/// From now on nothing is scheduled.
pub(crate) fn close() {
    *exec_later() = None;
}

/// Where functions are kept. A place is used again; then `serial` tells whose it is.
#[derive(Clone, Copy)]
struct Key {
    place: usize,
    serial: u64,
}

/// R's functions by number, without a symbol for each, which R would keep for ever.
struct Kept {
    /// A list of R's, preserved, or null; grows by doubling.
    list: SEXP,
    /// For each place the serial number of what is there; 0: nothing.
    serials: Vec<u64>,
    free: Vec<usize>,
    last: u64,
}

/// Places in the first list.
const FIRST: usize = 64;

thread_local! {
    /// Of R's main thread. Never borrowed while R is called.
    static KEPT: RefCell<Kept> = const {
        RefCell::new(Kept { list: std::ptr::null_mut(), serials: Vec::new(), free: Vec::new(), last: 0 })
    };
}

impl Kept {
    /// Keeps an R object, which is protected.
    unsafe fn keep(object: SEXP) -> Key {
        // SAFETY: on R's main thread; `object` is protected. The list is preserved, and has a place for each
        // serial number.
        unsafe {
            while KEPT.with_borrow(|kept| kept.free.is_empty()) {
                Kept::grow();
            }
            KEPT.with_borrow_mut(|kept| {
                let place = kept.free.pop().unwrap_or_default();
                kept.last += 1;
                let serial = kept.last;
                kept.serials[place] = serial;
                SET_VECTOR_ELT(kept.list, place as _, object);
                Key { place, serial }
            })
        }
    }

    unsafe fn grow() {
        // SAFETY: on R's main thread. The new list is protected until it is preserved; indices are below the
        // lengths of both lists.
        unsafe {
            let size = KEPT.with_borrow(|kept| kept.serials.len());
            let larger = (2 * size).max(FIRST);
            // May leave by a long jump. May also run finalizers, which could come here themselves.
            let list = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, larger as _));
            R_PreserveObject(list);
            Rf_unprotect(1);
            let unused = KEPT.with_borrow_mut(|kept| {
                if kept.serials.len() != size {
                    return list;
                }
                for place in 0..size {
                    SET_VECTOR_ELT(list, place as _, VECTOR_ELT(kept.list, place as _));
                }
                kept.serials.resize(larger, 0);
                kept.free.extend((size..larger).rev());
                std::mem::replace(&mut kept.list, list)
            });
            if !unused.is_null() {
                R_ReleaseObject(unused);
            }
        }
    }

    /// What is kept there, unless it has been let go.
    unsafe fn get(key: Key) -> Option<SEXP> {
        // SAFETY: the list is preserved and has a place for each serial number.
        unsafe {
            KEPT.with_borrow(|kept| {
                let there = kept.serials.get(key.place) == Some(&key.serial);
                there.then(|| VECTOR_ELT(kept.list, key.place as _))
            })
        }
    }

    unsafe fn let_go(key: Key) {
        // SAFETY: the list is preserved and has a place for each serial number; it is released once, after nobody
        // knows it any more.
        unsafe {
            let unused = KEPT.with_borrow_mut(|kept| {
                if kept.serials.get(key.place) != Some(&key.serial) {
                    return None;
                }
                kept.serials[key.place] = 0;
                SET_VECTOR_ELT(kept.list, key.place as _, R_NilValue);
                kept.free.push(key.place);
                // After many, not for each: a large list is given back once it is empty.
                let last = kept.free.len() == kept.serials.len() && kept.serials.len() > 16 * FIRST;
                last.then(|| {
                    kept.serials = Vec::new();
                    kept.free = Vec::new();
                    let list = kept.list;
                    kept.list = std::ptr::null_mut();
                    list
                })
            });
            if let Some(list) = unused {
                R_ReleaseObject(list);
            }
        }
    }
}

/// `.Call(promises_kept)`: how many have not been settled.
unsafe extern "C-unwind" fn promises_kept() -> SEXP {
    // SAFETY: R calls it on its main thread.
    unsafe {
        let n = KEPT.with_borrow(|kept| kept.serials.len() - kept.free.len());
        Rf_ScalarInteger(n as i32)
    }
}

/// Several tasks that R wants to hear of by the same functions.
struct Watch {
    key: Key,
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
        self.schedule_once(index, None);
    }

    /// The same, but nothing if that is still to come: `scheduled` says so.
    fn schedule_once(&self, index: i32, scheduled: Option<Arc<AtomicBool>>) {
        let before = |it: &Arc<AtomicBool>| it.swap(true, Ordering::SeqCst);
        if scheduled.as_ref().is_some_and(before) {
            return;
        }
        if let Some(exec_later) = *exec_later() {
            let key = self.key;
            let due = Box::into_raw(Box::new(Due {
                key,
                index,
                scheduled,
            }));
            // SAFETY: it calls `run` with `due` once, or never if the loop is gone.
            unsafe { exec_later(run, due.cast(), 0.0, self.event_loop) };
        }
    }
}

/// A task that has sent values ahead of which R has not been told yet. package later calls nothing while R code runs,
/// so waits tell R themselves: see [`tell_reports`].
struct Report {
    key: Key,
    index: i32,
    /// True while it is in the queue: there is one for each task at most.
    queued: Arc<AtomicBool>,
}

/// Those that are to be told.
static REPORTS: Mutex<Vec<Report>> = Mutex::new(Vec::new());

/// Whether there are any, for those who ask often.
static REPORTED: AtomicBool = AtomicBool::new(false);

/// Whether R is being told: a function that waits itself is not interrupted by others.
static TELLING: AtomicBool = AtomicBool::new(false);

fn reports() -> MutexGuard<'static, Vec<Report>> {
    REPORTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Report {
    /// From any thread.
    fn queue(key: Key, index: i32, queued: &Arc<AtomicBool>) {
        if !queued.swap(true, Ordering::SeqCst) {
            let queued = queued.clone();
            reports().push(Report { key, index, queued });
            REPORTED.store(true, Ordering::SeqCst);
            Bell::get().ring();
        }
    }

    /// Forgets those whose functions have been called for the last time, by package later. On R's main thread.
    fn forget_old() {
        let mut reports = reports();
        if reports.len() == reports.capacity() {
            // SAFETY: on R's main thread.
            reports.retain(|report| unsafe { Kept::get(report.key).is_some() });
            let more = reports.len().max(FIRST);
            reports.reserve(more);
        }
    }
}

/// Whether a wait should end to [`tell_reports`]. On R's main thread.
pub(crate) fn has_reports() -> bool {
    REPORTED.load(Ordering::Relaxed) && !TELLING.load(Ordering::Relaxed) && !forks::is_forked()
}

/// Calls the functions of those that have asked for reports, which package later would do once R is idle. Afterwards it
/// calls them for nothing.
///
/// # Safety
/// On R's main thread. May run any R code; long jumps end here.
pub(crate) unsafe fn tell_reports() {
    if !has_reports() {
        return;
    }
    TELLING.store(true, Ordering::Relaxed);
    REPORTED.store(false, Ordering::SeqCst);
    let told = std::mem::take(&mut *reports());
    for Report { key, index, queued } in told {
        queued.store(false, Ordering::SeqCst);
        let due = Due {
            key,
            index,
            scheduled: None,
        };
        let due = std::ptr::from_ref(&due).cast_mut().cast();
        // SAFETY: on R's main thread; `due` outlives the call.
        unsafe {
            r::without_interrupts(|| r::R_ToplevelExec(Some(settle), due));
        }
    }
    TELLING.store(false, Ordering::Relaxed);
}

/// What R is to be told: which task has failed or reported, or 0 when all have resolved.
struct Due {
    key: Key,
    index: i32,
    /// True until R looks.
    scheduled: Option<Arc<AtomicBool>>,
}

/// `.Call(prepare_promise)`, before a promise is made. In a forked child, this is an error, and not a promise
/// that is rejected: rejecting takes a lock of later's, which later's timer thread may have held when the process was
/// forked. Nobody releases it in the child.
unsafe extern "C-unwind" fn prepare_promise() -> SEXP {
    // SAFETY: R calls it on its main thread.
    unsafe {
        if forks::is_forked() {
            forks::error().raise();
        }
        #[cfg(unix)]
        during_forks::hold_during_forks();
        R_NilValue
    }
}

/// Finds later's function, whose namespace has to be loaded.
unsafe fn find_exec_later() {
    // SAFETY: on R's main thread, as only that may ask R for it. The function has the type `ExecLater`, by later's
    // documentation.
    unsafe {
        let function = R_GetCCallable(c"later".as_ptr(), c"execLaterNative2".as_ptr());
        *exec_later() = std::mem::transmute::<extendr_ffi::DL_FUNC, Option<ExecLater>>(function);
    }
}

/// What any thread may call to have `settle_promise(functions, 0)` called from the event loop of that number. later's
/// namespace has to be loaded.
///
/// # Safety
/// On R's main thread; `functions` is protected.
pub(crate) unsafe fn waker(functions: SEXP, event_loop: i32) -> impl FnOnce() + Send + 'static {
    // SAFETY: as this function demands.
    let watch = unsafe {
        find_exec_later();
        Watch {
            key: Kept::keep(functions),
            event_loop,
            pending: AtomicUsize::new(0),
        }
    };
    move || watch.schedule(0)
}

/// `.Call(when_resolved, x, functions, loop)`: has `settle_promise(functions, index)` called from the
/// event loop of that number, for each mirai in `x` (one, or a list) that fails, with its index
/// from 1, and with 0 when all have resolved, until it returns `TRUE`. later's namespace has to be
/// loaded.
unsafe extern "C-unwind" fn when_resolved(x: SEXP, functions: SEXP, event_loop: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the arguments.
    unsafe { watch(x, functions, event_loop, Event::Failure) }
}

/// `.Call(when_reported, x, functions, loop)`: the same, for each mirai in `x` that has sent values ahead.
unsafe extern "C-unwind" fn when_reported(x: SEXP, functions: SEXP, event_loop: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the arguments.
    unsafe { watch(x, functions, event_loop, Event::Report) }
}

/// Of what R is told besides the end.
#[derive(Clone, Copy, PartialEq)]
enum Event {
    Failure,
    Report,
}

unsafe fn watch(x: SEXP, functions: SEXP, event_loop: SEXP, event: Event) -> SEXP {
    // SAFETY: on R's main thread; the arguments are protected.
    unsafe {
        find_exec_later();
        if event == Event::Report {
            Report::forget_old();
        }
        let list = TYPEOF(x) == SEXPTYPE::VECSXP;
        let n = if list { Rf_xlength(x) } else { 1 };
        let watch = Arc::new(Watch {
            key: Kept::keep(functions),
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
                    if event == Event::Report {
                        let (watch, scheduled) = (watch.clone(), Arc::new(AtomicBool::new(false)));
                        let queued = Arc::new(AtomicBool::new(false));
                        task.on_report(Arc::new(move || {
                            watch.schedule_once(index, Some(scheduled.clone()));
                            Report::queue(watch.key, index, &queued);
                        }));
                    }
                    let watch = watch.clone();
                    task.on_resolved(Box::new(move |outcome| {
                        watch.tick(index, event == Event::Failure && outcome.is_failure());
                    }));
                }
                None => {
                    let value = read_value(mirai);
                    let failed = Rf_inherits(value, c"errorValue".as_ptr()) == Rboolean::TRUE;
                    watch.tick(index, event == Event::Failure && failed);
                }
            }
        }
        R_NilValue
    }
}

/// Called by later on R's main thread.
unsafe extern "C" fn run(due: *mut c_void) {
    // SAFETY: later calls it once for each `Due`, which `schedule` has made from a `Box`.
    unsafe {
        let due = Box::from_raw(due.cast::<Due>());
        // A forked child has inherited what was scheduled; the promise is not its own.
        if !forks::is_forked() {
            let due = std::ptr::from_ref(&*due).cast_mut().cast();
            // A Ctrl-C that comes meanwhile is for whoever runs the loop, afterwards.
            r::without_interrupts(|| r::R_ToplevelExec(Some(settle), due));
        }
    }
}

unsafe extern "C" fn settle(due: *mut c_void) {
    // SAFETY: `run` passes a `Due` that outlives the call. What was allocated is protected; long jumps end in
    // `R_ToplevelExec()`.
    unsafe {
        let due = &*due.cast::<Due>();
        let Some(functions) = Kept::get(due.key) else {
            return;
        };
        Rf_protect(functions);
        if let Some(scheduled) = &due.scheduled {
            scheduled.store(false, Ordering::SeqCst);
        }
        let index = Rf_protect(Rf_ScalarInteger(due.index));
        let name = Rf_install(c"settle_promise".as_ptr());
        let call = Rf_protect(Rf_lang3(name, functions, index));
        let settled = Rf_eval(call, r::NAMESPACE.get());
        if TYPEOF(settled) == SEXPTYPE::LGLSXP && Rf_xlength(settled) == 1 && *LOGICAL(settled) == 1
        {
            Kept::let_go(due.key);
        }
        Rf_unprotect(3);
    }
}
