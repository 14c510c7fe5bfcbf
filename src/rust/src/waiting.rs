//! Waiting for mirai, looking at whether they have resolved, and cancelling them.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use extendr_ffi::{
    R_CallMethodDef, R_NamesSymbol, R_NilValue, Rboolean, Rf_allocVector, Rf_getAttrib, Rf_protect,
    Rf_setAttrib, Rf_unprotect, Rf_xlength, LOGICAL, SET_VECTOR_ELT, SEXP, SEXPTYPE, TYPEOF,
    VECTOR_ELT,
};
use mirai_core::sys::Waited;
use mirai_core::task::{Group, Task};

use crate::events::{self, Events};
use crate::forks;
use crate::r::{self, Rf_ScalarInteger, Rf_eval, Rf_inherits, Rf_lang2};
use crate::tasks::{is_mirai, read_value, task_of, value_of};
use crate::{gc, promises, session};

pub(crate) fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"collect", collect as *const (), 1),
        r::routine(c"collect_list", collect_list as *const (), 1),
        r::routine(c"wait_all", wait_all as *const (), 1),
        r::routine(c"wait_some", wait_some as *const (), 2),
        r::routine(c"wait_showing", wait_showing as *const (), 4),
        r::routine(c"first_failure", first_failure as *const (), 1),
        r::routine(c"failures", failures as *const (), 1),
        r::routine(c"race", race as *const (), 1),
        r::routine(c"pending", pending as *const (), 1),
        r::routine(c"done", done as *const (), 1),
        r::routine(c"cancel", cancel as *const (), 1),
    ]
}

/// `.Call(collect, x)`: waits for a mirai and returns its value.
unsafe extern "C-unwind" fn collect(x: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument.
    unsafe {
        wait_all(x);
        value_of(x)
    }
}

/// The mirai in `x`, which is one, or a list that may hold some.
unsafe fn each(x: SEXP) -> impl Iterator<Item = SEXP> + Clone {
    // SAFETY: on R's main thread; `x` is protected, and indices are below its length.
    unsafe {
        let list = TYPEOF(x) == SEXPTYPE::VECSXP;
        let n = if list { Rf_xlength(x) } else { 1 };
        (0..n)
            .map(move |i| if list { VECTOR_ELT(x, i) } else { x })
            .filter(|m| is_mirai(*m))
    }
}

/// `.Call(wait_all, x)`: waits until all mirai in `x` have resolved; returns `x`.
unsafe extern "C-unwind" fn wait_all(x: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument.
    unsafe {
        Wait::new(x, false).run(usize::MAX, None);
        x
    }
}

/// `.Call(wait_some, x, until_failure)`: waits until all mirai in `x` have resolved, or one has failed
/// (if `until_failure`); returns `x`.
unsafe extern "C-unwind" fn wait_some(x: SEXP, until_failure: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the arguments; `until_failure` is logical.
    unsafe {
        Wait::new(x, *LOGICAL(until_failure) == 1).run(usize::MAX, None);
        x
    }
}

/// The shortest time between two calls of `show`: nobody reads faster.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);

/// `.Call(wait_showing, x, until_failure, show, step)`: waits as `wait_some` does. Meanwhile calls
/// `show` with the number that have resolved: when `step` more have than at its last call, but not
/// before [`SHOW_INTERVAL`] is over, and at the end.
unsafe extern "C-unwind" fn wait_showing(
    x: SEXP,
    until_failure: SEXP,
    show: SEXP,
    step: SEXP,
) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the arguments. `wait` owns nothing when R is called; what
    // was allocated is protected.
    unsafe {
        let step = r::as_number(step).unwrap_or(1.0).max(1.0) as usize;
        let mut wait = Wait::new(x, *LOGICAL(until_failure) == 1);
        let mut shown = 0;
        loop {
            let mut over = wait.run(usize::MAX, Some(SHOW_INTERVAL));
            if !over && wait.resolved < shown + step {
                over = wait.run(shown + step, None);
            }
            shown = wait.resolved;
            let number = Rf_protect(Rf_ScalarInteger(shown as i32));
            let call = Rf_protect(Rf_lang2(show, number));
            Rf_eval(call, r::NAMESPACE.get());
            Rf_unprotect(2);
            if over {
                return x;
            }
        }
    }
}

/// A wait for the mirai in `x`. Owns nothing, because R is served in between, which may leave by a
/// long jump: what is to be kept meanwhile is in [`UNDER_WAY`].
struct Wait {
    x: SEXP,
    /// Whether one that has failed ends it.
    until_failure: bool,
    number: u64,
    /// The number of mirai in `x`.
    count: usize,
    /// How many of them had been read when the wait began.
    read: usize,
    /// How many had resolved at the last look.
    resolved: usize,
    /// Whether there was nothing more to wait for at the last look.
    over: bool,
    lookout: Lookout,
}

/// A wait of this time without any daemon is worth a message.
const SILENCE: Duration = Duration::from_secs(3);
/// Time until the next look whether there is a daemon.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

r::symbols! {
    TELL_DESERTED = c"tell_deserted";
}

/// When to look next whether there is a daemon that could evaluate what is waited for. `None` once the user was told
/// that there is none.
pub(crate) struct Lookout(Option<Instant>);

impl Lookout {
    pub(crate) fn new() -> Lookout {
        Lookout(Instant::now().checked_add(SILENCE))
    }

    /// If it is time, asks for the name of the profile that has no daemons, and has R tell the user, once.
    ///
    /// # Safety
    /// On R's main thread. May leave by a long jump: no Rust value that owns anything may be alive in the callers'
    /// frames.
    pub(crate) unsafe fn look(&mut self, deserted: impl FnOnce() -> Option<String>) {
        // SAFETY: as this function demands. The name is dropped before R may run code.
        unsafe {
            if self.0.is_none_or(|time| Instant::now() < time) {
                return;
            }
            self.0 = Instant::now().checked_add(LOOK_AGAIN);
            let name = {
                let Some(name) = deserted() else {
                    return;
                };
                Rf_protect(r::string(&name))
            };
            let call = Rf_protect(Rf_lang2(TELL_DESERTED.get(), name));
            let told = Rf_protect(Rf_eval(call, r::NAMESPACE.get()));
            if r::as_flag(told) == Some(true) {
                self.0 = None;
            }
            Rf_unprotect(3);
        }
    }
}

thread_local! {
    /// The tasks of the wait of this number. If R waits for others meanwhile, these take the
    /// place, and the first wait begins anew. After a long jump nobody asks for them again.
    static UNDER_WAY: Cell<Option<(u64, Group)>> = const { Cell::new(None) };
}

impl Wait {
    unsafe fn new(x: SEXP, until_failure: bool) -> Wait {
        // SAFETY: on R's main thread; `x` is protected.
        unsafe {
            static LAST: AtomicU64 = AtomicU64::new(0);
            // Before any task is borrowed: a finalizer may read one of the mirai, and so let its task go.
            let worth = gc::worth_collecting_when_idle() || gc::worth_collecting_let_down();
            if worth && each(x).any(|m| is_pending(m)) {
                gc::collect();
            }
            Wait {
                x,
                until_failure,
                number: LAST.fetch_add(1, Ordering::Relaxed),
                count: 0,
                read: 0,
                resolved: 0,
                over: false,
                lookout: Lookout::new(),
            }
        }
    }

    /// Waits until `enough` have resolved, or all, or one has failed (if that ends it), or the time
    /// is over. Serves R meanwhile. True if there is nothing more to wait for.
    unsafe fn run(&mut self, enough: usize, timeout: Option<Duration>) -> bool {
        // SAFETY: on R's main thread; nothing is owned when `events::serve` leaves by a long jump.
        unsafe {
            let end = timeout.and_then(|t| Instant::now().checked_add(t));
            while self.once(enough, end) == Waited::Interrupted {
                events::serve();
                if gc::worth_collecting_passed() || gc::worth_collecting_let_down() {
                    gc::collect();
                }
                let x = self.x;
                self.lookout.look(|| {
                    let waiting = each(x).filter_map(|m| task_of(m));
                    let task = { waiting }.find(|task| !task.is_resolved());
                    task.and_then(session::deserted_profile)
                });
            }
            // Those that came with the last result.
            promises::tell_reports();
            self.over
        }
    }

    unsafe fn once(&mut self, enough: usize, end: Option<Instant>) -> Waited {
        // SAFETY: on R's main thread; nothing is owned when the error is raised.
        unsafe {
            // Nothing resolves in a forked process, and it shares the bell with its parent.
            if forks::is_forked() && each(self.x).any(|m| is_pending(m)) {
                forks::error().raise();
            }
            let kept = UNDER_WAY
                .take()
                .filter(|(number, _)| *number == self.number);
            let Some(group) = kept.map(|(_, group)| group).or_else(|| self.begin(enough)) else {
                return Waited::Ready;
            };
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let waited = group.wait(enough.saturating_sub(self.read), left, Events::new());
            self.note(group.resolved(), group.len(), group.has_failed());
            if !self.over {
                UNDER_WAY.set(Some((self.number, group)));
            }
            waited
        }
    }

    /// The tasks to wait for; `None` if there is no need to wait.
    unsafe fn begin(&mut self, enough: usize) -> Option<Group> {
        // SAFETY: on R's main thread; R is called for reading only, so no task goes while it is borrowed.
        unsafe {
            if TYPEOF(self.x) == SEXPTYPE::ENVSXP {
                // The common case, without a list.
                let task = task_of(self.x);
                self.begin_with(task.as_slice(), usize::from(task.is_none()), enough)
            } else {
                let mut tasks: Vec<&Task> = each(self.x).filter_map(|m| task_of(m)).collect();
                let read = each(self.x).count() - tasks.len();
                // The same mirai twice is one to wait for.
                tasks.sort_unstable_by_key(|task| task.id());
                tasks.dedup_by_key(|task| task.id());
                self.begin_with(&tasks, read, enough)
            }
        }
    }

    unsafe fn begin_with(&mut self, tasks: &[&Task], read: usize, enough: usize) -> Option<Group> {
        // SAFETY: on R's main thread; R is called for reading only.
        unsafe {
            self.read = read;
            self.count = each(self.x).count();
            let resolved = tasks.iter().filter(|task| task.is_resolved()).count();
            let failed = self.until_failure && each(self.x).any(|m| has_failed(m));
            self.note(resolved, tasks.len(), failed);
            let wait = !self.over && read + resolved < enough;
            wait.then(|| Group::new(tasks.iter().copied(), self.until_failure))
        }
    }

    /// Notes that `resolved` of the tasks have resolved.
    fn note(&mut self, resolved: usize, tasks: usize, failed: bool) {
        let all = resolved == tasks;
        self.over = all || failed;
        self.resolved = if all {
            self.count
        } else {
            self.read + resolved
        };
    }
}

/// Whether a mirai has resolved to an error value.
unsafe fn has_failed(mirai: SEXP) -> bool {
    // SAFETY: on R's main thread; `mirai` is protected.
    unsafe {
        match task_of(mirai) {
            Some(task) => task.has_failed(),
            None => Rf_inherits(read_value(mirai), c"errorValue".as_ptr()) == Rboolean::TRUE,
        }
    }
}

/// `.Call(collect_list, x)`: waits for all mirai in a list; a list of their values with
/// the same names.
unsafe extern "C-unwind" fn collect_list(x: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument; what was allocated is protected.
    unsafe {
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
}

/// `.Call(first_failure, x)`: index of the first mirai in the list that has resolved to an
/// error value, 0 if there is none.
unsafe extern "C-unwind" fn first_failure(x: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument, a list.
    unsafe {
        let first = (0..Rf_xlength(x)).find(|i| has_failed(VECTOR_ELT(x, *i)));
        Rf_ScalarInteger(first.map_or(0, |i| i as i32 + 1))
    }
}

/// `.Call(failures, x)`: number of mirai in the list that have resolved to an error value.
unsafe extern "C-unwind" fn failures(x: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument, a list.
    unsafe {
        let failed = (0..Rf_xlength(x)).filter(|i| has_failed(VECTOR_ELT(x, *i)));
        Rf_ScalarInteger(failed.count() as i32)
    }
}

/// `.Call(race, x)`: waits for the first mirai in the list to resolve and returns
/// its index, 0 for a list without mirai.
unsafe extern "C-unwind" fn race(x: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument.
    unsafe {
        Wait::new(x, false).run(1, None);
        let list = TYPEOF(x) == SEXPTYPE::VECSXP;
        let n = if list { Rf_xlength(x) } else { 1 };
        let first = (0..n).find(|i| {
            let m = if list { VECTOR_ELT(x, *i) } else { x };
            is_mirai(m) && !is_pending(m)
        });
        Rf_ScalarInteger(first.map_or(0, |i| i as i32 + 1))
    }
}

unsafe fn is_pending(mirai: SEXP) -> bool {
    // SAFETY: on R's main thread; `mirai` is protected.
    unsafe { task_of(mirai).is_some_and(|t| !t.is_resolved()) }
}

/// `.Call(pending, x)`: the number of unresolved mirai (or unresolved values, or maps in a list).
unsafe extern "C-unwind" fn pending(x: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument.
    unsafe {
        let n = match TYPEOF(x) {
            SEXPTYPE::VECSXP => (0..Rf_xlength(x))
                .filter(|i| unresolved(VECTOR_ELT(x, *i)))
                .count(),
            _ => usize::from(unresolved(x)),
        };
        Rf_ScalarInteger(n as i32)
    }
}

/// `.Call(done, x)`: for each mirai in a list whether it has resolved.
unsafe extern "C-unwind" fn done(x: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument; `out` has as many elements, and nothing is
    // allocated while it is written.
    unsafe {
        let n = Rf_xlength(x);
        let out = Rf_allocVector(SEXPTYPE::LGLSXP, n);
        for i in 0..n {
            *LOGICAL(out).add(i as usize) = i32::from(!unresolved(VECTOR_ELT(x, i)));
        }
        out
    }
}

unsafe fn unresolved(x: SEXP) -> bool {
    // SAFETY: on R's main thread; `x` is protected.
    unsafe {
        if is_mirai(x) {
            is_pending(x)
        } else if TYPEOF(x) == SEXPTYPE::VECSXP {
            Rf_inherits(x, c"mirai_map".as_ptr()) == Rboolean::TRUE
                && (0..Rf_xlength(x)).any(|i| unresolved(VECTOR_ELT(x, i)))
        } else {
            TYPEOF(x) == SEXPTYPE::LGLSXP
                && Rf_inherits(x, c"unresolvedValue".as_ptr()) == Rboolean::TRUE
        }
    }
}

/// `.Call(cancel, x)`: cancels the mirai in `x`, and what these alone have needed; for each whether that came in time.
unsafe extern "C-unwind" fn cancel(x: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument; `out` is protected, and has `n` elements.
    unsafe {
        // Whether a mirai can still be asked for its value, only R's collector knows.
        if each(x).any(|m| task_of(m).is_some_and(|task| !task.needs().is_empty())) {
            gc::collect();
        }
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
            let task = is_mirai(m).then(|| task_of(m)).flatten();
            let done = task.is_some_and(session::cancel);
            *LOGICAL(out).add(i as usize) = done.into();
        }
        Rf_unprotect(1);
        out
    }
}
