//! A daemon's loop: takes tasks from the link, has R evaluate them, answers.
//!
//! R is entered through [`within_r`] only, which a long jump cannot leave. What is called there owns nothing.
//!
//! Establishing R's condition handlers costs more than everything else that is done for a
//! small task. So they are established around the loop that serves the link: Rust
//! ([`serve`]) calls R (`serve()` in R/evaluate.R), which calls Rust again ([`serve_tasks`]),
//! where tasks are evaluated one after the other. A task that ends in an error leaves that
//! loop with the error as the value of R's `serve()`; it is answered, and a new loop begins.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::time::Instant;

use extendr_ffi::{
    R_CallMethodDef, R_ClearExternalPtr, R_ExternalPtrAddr, R_GlobalEnv, R_MakeExternalPtr,
    R_NilValue, Rboolean, Rf_defineVar, Rf_getAttrib, Rf_install, Rf_protect, Rf_unprotect, SEXP,
};
use mirai_core::process::Owner;
use mirai_core::protocol::{Done, Kind};
use mirai_core::worker::output::Output;
use mirai_core::worker::{Assignment, Next, Worker};

use super::attempts;
use super::limits::{End, Limits};
use super::payload::{prepare, read, CONTEXT, ENVIR, EXPR, WHEN};
use super::settings::Settings;
use crate::cleanup::{self, Snapshot};
use crate::gc;
use crate::notes;
use crate::r::{self, Constant, Rf_eval, Rf_lang2, Rf_lang3};
use crate::serialize::{self, hooks, Buffer};

pub(super) fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"serve_tasks", serve_tasks as *const (), 2),
        r::routine(c"daemon_state", daemon_state as *const (), 0),
        r::routine(c"report", report as *const (), 1),
    ]
}

/// Whether this process is a daemon.
#[derive(Clone, Copy)]
pub(super) enum State {
    NoDaemon = 0,
    Daemon = 1,
    /// It evaluates an element of a map.
    Map = 2,
}

static STATE: AtomicI32 = AtomicI32::new(State::NoDaemon as i32);

impl State {
    /// Notes the new state and returns the one before.
    pub(super) fn set(self) -> State {
        match STATE.swap(self as i32, Ordering::Relaxed) {
            1 => State::Daemon,
            2 => State::Map,
            _ => State::NoDaemon,
        }
    }
}

/// `.Call(daemon_state)`: the number of the [`State`].
unsafe extern "C-unwind" fn daemon_state() -> SEXP {
    // SAFETY: R calls it on its main thread.
    unsafe { r::Rf_ScalarInteger(STATE.load(Ordering::Relaxed)) }
}

/// Works until the link ends or a limit is reached.
pub(super) fn serve(
    worker: &mut Worker,
    settings: &Settings,
    output: Option<&Output>,
    limits: &mut Limits,
    snapshot: &mut Snapshot,
) -> End {
    let mut out = Buffer::new();
    out.share(worker.passes_memory());
    let mut serving = Serving {
        worker,
        settings,
        output,
        limits,
        snapshot,
        out,
        report: Buffer::new(),
        owner: Owner::this(),
        error: None,
        task: None,
        traced: false,
        end: None,
    };
    let this = &raw mut serving;
    let _current = Current::set(this);
    loop {
        // Returns for every task that ends otherwise than with a value.
        // SAFETY: in a top-level context, on the main thread; `serving` outlives it, and R
        // forgets it then. What a long jump leaves owns nothing.
        unsafe {
            within_r(|| {
                let pointer = Rf_protect(R_MakeExternalPtr(this.cast(), R_NilValue, R_NilValue));
                let call = Rf_protect(Rf_lang2(SERVE.get(), pointer));
                let outcome = Rf_protect(Rf_eval(call, R_GlobalEnv));
                R_ClearExternalPtr(pointer);
                if (*this).task.is_some() {
                    (*this).answer(outcome);
                }
                Rf_unprotect(3);
            });
            if (*this).task.is_some() {
                (*this).give_up(Stage::Evaluating);
            }
            if let Some(end) = (*this).end {
                return end;
            }
        }
    }
}

/// A link that is served, for [`serve_tasks`].
struct Serving<'a> {
    worker: &'a mut Worker,
    settings: &'a Settings,
    /// What tasks write, if it is kept.
    output: Option<&'a Output>,
    limits: &'a mut Limits,
    snapshot: &'a mut Snapshot,
    out: Buffer,
    /// For what is sent ahead of a value.
    report: Buffer,
    /// This process.
    owner: Owner,
    /// Message of the error in which the task has ended.
    error: Option<String>,
    /// The task under evaluation.
    task: Option<Assignment>,
    /// It continues a trace of its host's.
    traced: bool,
    /// Why there is no next one.
    end: Option<End>,
}

/// The link that is served, for [`report`]; null if there is none.
static CURRENT: AtomicPtr<Serving<'static>> = AtomicPtr::new(std::ptr::null_mut());

/// Puts back what [`CURRENT`] was before.
struct Current(*mut Serving<'static>);

impl Current {
    fn set(serving: *mut Serving<'_>) -> Current {
        Current(CURRENT.swap(serving.cast(), Ordering::Relaxed))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        CURRENT.store(self.0, Ordering::Relaxed);
    }
}

/// `.Call(report, value)`: sends a value ahead of that of the task that runs. `FALSE` if no task of a daemon runs here, or
/// its host is gone.
unsafe extern "C-unwind" fn report(value: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument. `serve` clears the pointer before `Serving` goes;
    // while a task is evaluated, nobody else refers to it. A long jump out of `write` leaves nothing that is owned.
    unsafe {
        let serving = CURRENT.load(Ordering::Relaxed);
        // A process forked from a daemon shares its link, on which it must not say anything.
        if serving.is_null() || (*serving).task.is_none() || (*serving).owner.has_forked() {
            return r::Rf_ScalarLogical(0);
        }
        (*serving).report.share((*serving).worker.passes_memory());
        if !serialize::write(&raw mut (*serving).report, value) {
            r::raise_again();
        }
        let Some(seq) = (*serving).task.as_ref().map(|task| task.seq) else {
            return r::Rf_ScalarLogical(0);
        };
        let sent = (*serving).worker.report(seq, (*serving).report.as_slice());
        (*serving).report.let_go();
        r::Rf_ScalarLogical(sent.into())
    }
}

/// `.Call(serve_tasks, serving, frame)`: evaluates one task after the other, as long as there are
/// any and they have values. One that ends in an error leaves this by the long jump of the
/// handlers that R has established around it, once for all tasks.
unsafe extern "C-unwind" fn serve_tasks(serving: SEXP, frame: SEXP) -> SEXP {
    // SAFETY: `serve` has made the pointer, and clears it before `Serving` goes. A long jump that leaves this
    // drops no reference: `serving` is a pointer.
    unsafe {
        let serving = R_ExternalPtrAddr(serving).cast::<Serving<'_>>();
        if serving.is_null() {
            r::raise("the link is no longer served");
        }
        while (*serving).begin(frame) {
            let traced = (*serving).traced;
            let call = if traced { &TRACED_CALL } else { &TASK_CALL };
            let value = Rf_protect(Rf_eval(call.get(), frame));
            (*serving).answer(value);
            Rf_unprotect(1);
        }
        R_NilValue
    }
}

// R's long jumps end in each of these.
impl Serving<'_> {
    /// Waits for the next task and puts its expression and environment into `frame`. False
    /// when the link or the daemon's time is over.
    unsafe fn begin(&mut self, frame: SEXP) -> bool {
        // SAFETY: on R's main thread, with `frame` protected by R, which evaluates there. Within `within_r`,
        // nothing owns anything.
        unsafe {
            let mut pause = gc::worth_collecting_when_idle().then(|| Instant::now() + gc::PAUSE);
            while self.end.is_none() {
                let until = [self.limits.until(), pause].into_iter().flatten().min();
                let task = match self.worker.next(until, r::interrupted) {
                    Next::Task(task) => task,
                    Next::TimedOut if pause.is_some_and(|end| Instant::now() >= end) => {
                        pause = None;
                        let start = Instant::now();
                        within_r(|| {
                            // The last task's have no other hold, unless it has seen to that.
                            Rf_defineVar(EXPR.get(), R_NilValue, frame);
                            Rf_defineVar(ENVIR.get(), R_NilValue, frame);
                            Rf_defineVar(WHEN.get(), R_NilValue, frame);
                            gc::collect();
                        });
                        self.worker.exclude_from_task_time(start.elapsed());
                        continue;
                    }
                    Next::Configuration(bytes) => {
                        configure(&bytes);
                        continue;
                    }
                    Next::TimedOut if self.limits.wall_is_over() => {
                        self.end = Some(End::Wall);
                        break;
                    }
                    Next::TimedOut => {
                        self.end = Some(End::Idle);
                        break;
                    }
                    Next::Interrupted if self.settings.dial.interruptible => {
                        self.end = Some(End::Interrupted);
                        break;
                    }
                    Next::Interrupted => {
                        // Ctrl-C on an idle daemon means nothing.
                        r::clear_interrupt();
                        continue;
                    }
                    Next::Lost { end } => {
                        self.limits.told_to_end = end;
                        self.end = Some(End::Lost);
                        break;
                    }
                };
                let state = match task.kind {
                    Kind::Map => State::Map,
                    Kind::Task | Kind::Setup => State::Daemon,
                };
                state.set();
                if let Some(output) = self.output {
                    output.task_begins(task.number);
                }
                let task = self.task.insert(task);
                let traced = &raw mut self.traced;
                let prepared = within_r(|| {
                    *traced = prepare(task, frame);
                    // So that `failure` knows whether an error was what ended it.
                    r::forget_error();
                });
                if prepared {
                    return true;
                }
                self.give_up(Stage::Reading);
            }
            false
        }
    }

    /// Answers the task with its value, which is protected.
    unsafe fn answer(&mut self, value: SEXP) {
        // SAFETY: on R's main thread, with `value` protected. `out` outlives `within_r`, in which nobody else uses
        // it.
        unsafe {
            finish(self.worker);
            let out = &raw mut self.out;
            let error = &raw mut self.error;
            let mut written = false;
            let (mut failed, mut raised) = (true, false);
            within_r(|| {
                written = serialize::write(out, value);
                failed = r::Rf_inherits(value, c"errorValue".as_ptr()) == Rboolean::TRUE;
                if failed {
                    raised = r::Rf_inherits(value, c"miraiError".as_ptr()) == Rboolean::TRUE;
                    *error = message_of(value);
                }
            });
            if written && failed {
                self.reply(attempts::outcome(raised));
            } else if written {
                self.reply(Done::Value);
            } else {
                self.give_up(Stage::Writing);
            }
        }
    }

    /// Answers the task with what R has last said. It was left by a long jump that nothing
    /// caught.
    unsafe fn give_up(&mut self, stage: Stage) {
        // SAFETY: on R's main thread. `out` outlives `within_r`, in which nobody else uses it.
        unsafe {
            finish(self.worker);
            let out = &raw mut self.out;
            let error = &raw mut self.error;
            let written = within_r(|| {
                let value = Rf_protect(failure(stage));
                if !serialize::write(out, value) {
                    (*out).let_go();
                }
                *error = message_of(value);
                Rf_unprotect(1);
            });
            if !written {
                // Out of memory, most likely. An empty value is an error on the host.
                self.out.let_go();
            }
            self.reply(attempts::outcome(true));
        }
    }

    /// Sends what is in `out` and cleans up.
    unsafe fn reply(&mut self, outcome: Done) {
        let Some(task) = self.task.take() else { return };
        let mut noted = 0;
        let mut written = self.output.map(Output::take).unwrap_or_default();
        // R has no strings with zeros in them.
        written.retain(|c| c != '\0');
        if notes::are_there() || !written.is_empty() {
            let out = &raw mut self.out;
            // SAFETY: long jumps end in `within_r`, in which nobody else uses `out`.
            within_r(|| noted = unsafe { notes::append(out, &written) });
        }
        let error = self.error.take();
        let parts = self.out.as_slice();
        // If that fails, the link has ended with it, and the host hears so; the next call returns why.
        let _sent = self
            .worker
            .reply_noted(task.seq, parts, outcome, noted, error.as_deref());
        self.out.let_go();
        match task.kind {
            Kind::Setup => {
                if let Some(now) = take_snapshot() {
                    *self.snapshot = now.following(self.snapshot);
                }
            }
            Kind::Task | Kind::Map => {
                clean_up(self.snapshot, self.settings.cleanup);
                self.limits.tasks += 1;
            }
        }
        self.limits.start_timers(self.settings);
        let most = self.settings.maxtasks;
        if most.is_some_and(|most| self.limits.tasks >= most) {
            self.end = Some(End::MaxTasks);
        } else if self.limits.wall_is_over() {
            self.end = Some(End::Wall);
        }
    }
}

/// Calls `f` where R's long jumps end. False if one did.
pub(crate) fn within_r<F: FnMut()>(mut f: F) -> bool {
    unsafe extern "C" fn call<F: FnMut()>(data: *mut c_void) {
        // SAFETY: `data` is the closure that `within_r` passes, and nobody else uses it.
        unsafe {
            (*data.cast::<F>())();
        }
    }
    let data = std::ptr::from_mut(&mut f).cast();
    // SAFETY: `f` outlives the call. It is not dropped by a long jump but here.
    unsafe { r::R_ToplevelExec(Some(call::<F>), data) == Rboolean::TRUE }
}

pub(super) fn take_snapshot() -> Option<Snapshot> {
    let mut taken = None;
    // SAFETY: in a top-level context, on the main thread.
    within_r(|| taken = Some(unsafe { Snapshot::take() }));
    taken
}

fn clean_up(snapshot: &mut Snapshot, what: c_int) {
    snapshot.task_has_ended();
    // Where a step that has failed, and so left by a long jump, can be seen to have begun.
    let begun = Cell::new(0);
    while begun.get() < cleanup::STEPS.len() && what != 0 {
        within_r(|| {
            while let Some(step) = cleanup::STEPS.get(begun.get()) {
                begun.set(begun.get() + 1);
                // SAFETY: in a top-level context, on the main thread.
                unsafe { snapshot.restore(step & what) };
            }
        });
    }
}

/// What the host wants its daemons to know: the serialization hooks, and with them its edition.
fn configure(bytes: &[u8]) {
    // SAFETY: in a top-level context, on the main thread.
    within_r(|| unsafe {
        let registry = Rf_protect(read(bytes.into()));
        if !hooks::set(registry) {
            r::raise("what the host has sent are no hooks");
        }
        let call = Rf_lang2(Rf_install(c"keep_edition".as_ptr()), registry);
        Rf_eval(Rf_protect(call), r::NAMESPACE.get());
        Rf_unprotect(2);
    });
}

/// How far a task had come that was left by a long jump.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Reading,
    Evaluating,
    Writing,
}

/// The evaluation is over: an interrupt that was meant for it must not be felt
/// by anything later.
fn finish(worker: &Worker) {
    if worker.finish() {
        // The signal has been sent, but it is delivered at the latest upon return
        // from a system call.
        // SAFETY: no arguments.
        #[cfg(unix)]
        unsafe {
            libc::sched_yield()
        };
    }
    r::clear_interrupt();
}

/// The message of an error value; `None` if it has none.
unsafe fn message_of(value: SEXP) -> Option<String> {
    // SAFETY: on R's main thread; `value` is protected, and so are its attributes. Nothing is called that could jump
    // after the string is made.
    unsafe {
        let message = Rf_getAttrib(value, Rf_install(c"message".as_ptr()));
        r::as_str(message)
            .filter(|text| !text.is_empty())
            .map(String::from)
    }
}

/// The function of R/evaluate.R that establishes handlers and calls [`serve_tasks`].
// SAFETY: on R's main thread; R keeps our namespace and its functions.
static SERVE: Constant = Constant::new(|| unsafe { r::our_function(c"serve") });

/// `eval(.expr., .envir.)`: within `eval()`, so that a task may `return()`, and as R/evaluate.R
/// calls it, which knows such a call for none of the task's.
// SAFETY: on R's main thread; symbols need no protection.
static TASK_CALL: Constant = Constant::new(|| unsafe {
    let function = Rf_install(c"eval".as_ptr());
    Rf_lang3(function, EXPR.get(), ENVIR.get())
});

/// `in_span(eval(.expr., .envir.), .context.)`
// SAFETY: on R's main thread. The call is preserved by `Constant`, and has the other in it.
static TRACED_CALL: Constant = Constant::new(|| unsafe {
    let function = Rf_install(c"in_span".as_ptr());
    Rf_lang3(function, TASK_CALL.get(), CONTEXT.get())
});

/// The value of a task that left by a long jump that nothing caught.
unsafe fn failure(stage: Stage) -> SEXP {
    // SAFETY: on R's main thread; what was allocated is protected.
    unsafe {
        let text = r::last_error().to_string_lossy();
        let text = if stage == Stage::Evaluating && !text.ends_with('\n') {
            // A jump to top level, such as by the abort restart. What is there without an
            // end of line is the message of an error that was handled before.
            R_NilValue
        } else if stage == Stage::Writing && serialize::TOO_DEEP.load(Ordering::Relaxed) {
            // R has words about its stack for that.
            r::string("the value is nested too deeply to be sent")
        } else {
            // Errors of a full stack, too, get here: R shows them to no calling handler.
            r::string(&text)
        };
        let text = Rf_protect(text);
        let name = Rf_install(c"failure_value".as_ptr());
        let call = Rf_protect(Rf_lang2(name, text));
        let value = Rf_eval(call, r::NAMESPACE.get());
        Rf_unprotect(2);
        value
    }
}
