//! The daemon: takes tasks from its link, evaluates them in R, answers.
//!
//! [`run`] holds the link and all other Rust values; R is entered through
//! [`within_r`] only, which a long jump cannot leave. What is called in there
//! owns nothing.
//!
//! Establishing R's condition handlers costs more than everything else that is done for a
//! small task. So they are established around the loop that serves the link: Rust
//! ([`serve`]) calls R (`serve()` in R/evaluate.R), which calls Rust again ([`serve_tasks`]),
//! where tasks are evaluated one after the other. A task that ends in an error leaves that
//! loop with the error as the value of R's `serve()`; it is answered, and a new loop begins.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use extendr_ffi::{
    R_CallMethodDef, R_ClearExternalPtr, R_ExternalPtrAddr, R_GlobalEnv, R_MakeExternalPtr,
    R_NamesSymbol, R_NewEnv, R_NilValue, Rboolean, Rf_defineVar, Rf_getAttrib, Rf_install,
    Rf_protect, Rf_unprotect, Rf_xlength, INTEGER, LOGICAL, SEXP, SEXPTYPE, STRING_ELT, TYPEOF,
    VECTOR_ELT,
};
use mirai_core::process::line;
use mirai_core::protocol::Kind;
use mirai_core::transport::Address;
use mirai_core::worker::{Assignment, AutoExit, DialError, Next, Options, Runtime, Worker};

use crate::cleanup::{self, Snapshot};
use crate::r::{self, Constant, Rf_eval, Rf_installChar, Rf_lang2, Rf_lang3};
use crate::serialize::{self, hooks, Buffer, Source};
use crate::streams::random_seed;
use crate::tls::trust;
use crate::{forks, shared};

pub fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"run_daemon", run_daemon as *const (), 2),
        r::routine(c"serve_tasks", serve_tasks as *const (), 2),
        r::routine(c"serve_forks", serve_forks as *const (), 1),
        r::routine(c"daemon_state", daemon_state as *const (), 0),
    ]
}

r::symbols! {
    SEED = c".Random.seed";
    EXPR = c".expr.";
    ENVIR = c".envir.";
    ELEMENT = c".x";
}

/// 0: not a daemon; 1: a daemon; 2: one that evaluates an element of a map.
static STATE: AtomicI32 = AtomicI32::new(0);

unsafe extern "C-unwind" fn daemon_state() -> SEXP {
    r::Rf_ScalarInteger(STATE.load(Ordering::Relaxed))
}

/// `.Call(serve_forks, tempdir())`: the fork server. `NULL` when it is over; in each process
/// that it forks, the code to evaluate there. Such a process has to call `tempdir(check = TRUE)`
/// first, which makes it a session directory: it has inherited the name of the server's.
unsafe extern "C-unwind" fn serve_forks(tempdir: SEXP) -> SEXP {
    #[cfg(target_os = "linux")]
    {
        if !give_up_directory(r::as_str(tempdir).unwrap_or_default()) {
            r::raise("the session directory cannot be given up");
        }
        if let Some(forked) = mirai_core::process::fork::serve() {
            // Had the server been interrupted, that would not be for this process.
            r::clear_interrupt();
            let code = forked.code_if_wanted();
            let out = r::string(&code);
            drop(code);
            return out;
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = tempdir;
    R_NilValue
}

/// Replaces the fork server's session directory, which it does not need, by a file. A fork's
/// `tempdir(check = TRUE)` makes a new directory only where the present one is not a
/// directory; R's API has no other way to ask for one. If the name were left free, another user
/// could make a directory of that name, and forks would take it for theirs. R removes
/// the file when the server ends.
#[cfg(target_os = "linux")]
fn give_up_directory(path: &str) -> bool {
    std::fs::remove_dir_all(path).is_ok() && File::create_new(path).is_ok()
}

/// Arguments of `daemon()`, checked by R.
struct Settings {
    url: String,
    dial: Options,
    /// How to know the host: certificates, or the name of a file with them.
    tls: Option<String>,
    cleanup: c_int,
    output: bool,
    idletime: Option<Duration>,
    walltime: Option<Duration>,
    maxtasks: Option<u64>,
    timerstart: u64,
}

/// Why a daemon has ended: the value of `daemon()`.
#[derive(Clone, Copy)]
enum End {
    Lost = 0,
    Idle = 1,
    Wall = 2,
    MaxTasks = 3,
    /// The user has pressed Ctrl-C; R is told when Rust is done.
    Interrupted = -1,
}

/// `.Call(run_daemon, url, settings)`: the code above, or an error message.
unsafe extern "C-unwind" fn run_daemon(url: SEXP, settings: SEXP) -> SEXP {
    if forks::is_forked_from_session() {
        // It shares R's session directory, and a host would have it removed with this process.
        r::raise(forks::FORKED);
    }
    match run(read_settings(url, settings)) {
        Ok(end) => r::Rf_ScalarInteger(end as i32),
        Err(message) => {
            let out = r::string(&message);
            drop(message);
            out
        }
    }
}

/// `settings` is what `daemon()` in R/daemon.R makes: a list in this order.
unsafe fn read_settings(url: SEXP, settings: SEXP) -> Settings {
    let number = |i| r::as_number(VECTOR_ELT(settings, i)).unwrap_or(f64::INFINITY);
    let flag = |i| *LOGICAL(VECTOR_ELT(settings, i)) == 1;
    let time = |i| Duration::try_from_secs_f64(number(i) / 1000.0).ok();
    let autoexit = match *INTEGER(VECTOR_ELT(settings, 0)) {
        0 => AutoExit::Never,
        1 => AutoExit::Now,
        i32::MIN => AutoExit::AfterTask,
        signal => AutoExit::Signal(signal - 100),
    };
    let maxtasks = number(5);
    Settings {
        url: r::as_str(url).unwrap_or_default().into(),
        dial: Options {
            autoexit,
            asyncdial: flag(7) || autoexit == AutoExit::Never,
            insist: false,
            tempdir: r::as_str(VECTOR_ELT(settings, 8))
                .unwrap_or_default()
                .into(),
            interruptible: flag(9),
            slots: 1,
            trust: None,
        },
        tls: r::as_str(VECTOR_ELT(settings, 10)).map(String::from),
        cleanup: number(1) as c_int,
        output: flag(2),
        idletime: time(3),
        walltime: time(4),
        maxtasks: maxtasks.is_finite().then_some(maxtasks as u64),
        timerstart: number(6) as u64,
    }
}

fn run(mut settings: Settings) -> Result<End, String> {
    // SAFETY: on the main thread, before any of ours is started that does so.
    unsafe { line::find() };
    line::tell_directory(settings.dial.tempdir.as_ref());
    let address: Address = settings.url.parse().map_err(|e| format!("{e}"))?;
    let trust = settings.tls.as_deref().map(trust).transpose();
    settings.dial.trust = trust.map_err(|e| format!("'tls' cannot be used: {e}"))?;
    let runtime = Arc::new(RSession {
        // SAFETY: always succeeds.
        main: unsafe { libc::pthread_self() },
        tempdir: settings.dial.tempdir.clone().into(),
    });
    obey_the_watcher();
    // Taken before any task, kept across reconnections.
    let mut snapshot = take_snapshot().ok_or("the session's state cannot be read")?;
    let mut limits = Limits::new(&settings);
    let before = STATE.swap(1, Ordering::Relaxed);
    let end = loop {
        let dialled = Worker::dial(
            &address,
            &settings.dial,
            runtime.clone(),
            limits.wall,
            || r::interrupted() || line::is_abandoned(),
        );
        let mut worker = match dialled {
            Ok(worker) => worker,
            Err(DialError::TimedOut) => break Ok(End::Wall),
            Err(DialError::Interrupted) => break Ok(End::Interrupted),
            Err(e) => break Err(e.to_string()),
        };
        line::tell_connected();
        // Whoever listens next may have another certificate for a while.
        settings.dial.insist = true;
        // Only now: until here stderr is how whoever launched us hears of failure.
        let _silence = (!settings.output).then(Silence::begin);
        match serve(&mut worker, &settings, &mut limits, &mut snapshot) {
            End::Lost if settings.dial.autoexit == AutoExit::Never && !limits.told_to_end => {}
            End::Lost => break Ok(End::Lost),
            end => {
                worker.leave();
                break Ok(end);
            }
        }
    };
    STATE.store(before, Ordering::Relaxed);
    end
}

/// When a daemon leaves by itself. Limits are soft: they are looked at between tasks.
struct Limits {
    tasks: u64,
    timers_run: bool,
    idle: Option<Duration>,
    wall: Option<Instant>,
    told_to_end: bool,
}

impl Limits {
    fn new(settings: &Settings) -> Limits {
        let mut limits = Limits {
            tasks: 0,
            timers_run: false,
            idle: None,
            wall: None,
            told_to_end: false,
        };
        limits.start_timers(settings);
        limits
    }

    fn start_timers(&mut self, settings: &Settings) {
        if !self.timers_run && self.tasks >= settings.timerstart {
            self.timers_run = true;
            self.idle = settings.idletime;
            self.wall = settings
                .walltime
                .and_then(|t| Instant::now().checked_add(t));
        }
    }

    /// Until when to wait for a task.
    fn until(&self) -> Option<Instant> {
        let idle = self.idle.and_then(|t| Instant::now().checked_add(t));
        [idle, self.wall].into_iter().flatten().min()
    }

    fn wall_is_over(&self) -> bool {
        self.wall.is_some_and(|t| Instant::now() >= t)
    }
}

/// Works until the link ends or a limit is reached.
fn serve(
    worker: &mut Worker,
    settings: &Settings,
    limits: &mut Limits,
    snapshot: &mut Snapshot,
) -> End {
    let mut out = Buffer::new();
    out.share(worker.passes_memory());
    let mut session = Session {
        worker,
        settings,
        limits,
        snapshot,
        out,
        task: None,
        end: None,
    };
    let this = &raw mut session;
    loop {
        // Returns for every task that ends otherwise than with a value.
        // SAFETY: in a top-level context, on the main thread; `session` outlives it, and R
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
struct Session<'a> {
    worker: &'a mut Worker,
    settings: &'a Settings,
    limits: &'a mut Limits,
    snapshot: &'a mut Snapshot,
    out: Buffer,
    /// The task under evaluation.
    task: Option<Assignment>,
    /// Why there is no next one.
    end: Option<End>,
}

/// `.Call(serve_tasks, session, frame)`: evaluates one task after the other, as long as there are
/// any and they have values. One that ends in an error leaves this by the long jump of the
/// handlers that R has established around it, once for all tasks.
unsafe extern "C-unwind" fn serve_tasks(session: SEXP, frame: SEXP) -> SEXP {
    let session = R_ExternalPtrAddr(session).cast::<Session<'_>>();
    if session.is_null() {
        r::raise("the link is no longer served");
    }
    while (*session).begin(frame) {
        let value = Rf_protect(Rf_eval(TASK_CALL.get(), frame));
        (*session).answer(value);
        Rf_unprotect(1);
    }
    R_NilValue
}

// R's long jumps end in each of these.
impl Session<'_> {
    /// Waits for the next task and puts its expression and environment into `frame`. False
    /// when the link or the daemon's time is over.
    unsafe fn begin(&mut self, frame: SEXP) -> bool {
        let mut pause =
            shared::worth_collecting_when_idle().then(|| Instant::now() + shared::PAUSE);
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
                        shared::collect();
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
            let state = if task.kind == Kind::Map { 2 } else { 1 };
            STATE.store(state, Ordering::Relaxed);
            let task = self.task.insert(task);
            let prepared = within_r(|| {
                prepare(task, frame);
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

    /// Answers the task with its value, which is protected.
    unsafe fn answer(&mut self, value: SEXP) {
        finish(self.worker);
        let out = &raw mut self.out;
        let mut written = false;
        let mut failed = true;
        within_r(|| {
            written = Buffer::write(out, value);
            failed = r::Rf_inherits(value, c"errorValue".as_ptr()) == Rboolean::TRUE;
        });
        if written {
            self.reply(failed);
        } else {
            self.give_up(Stage::Writing);
        }
    }

    /// Answers the task with what R has last said. It was left by a long jump that nothing
    /// caught.
    unsafe fn give_up(&mut self, stage: Stage) {
        finish(self.worker);
        let out = &raw mut self.out;
        let written = within_r(|| {
            let value = Rf_protect(failure(stage));
            if !Buffer::write(out, value) {
                (*out).let_go();
            }
            Rf_unprotect(1);
        });
        if !written {
            // Out of memory, most likely. An empty value is an error on the host.
            self.out.let_go();
        }
        self.reply(true);
    }

    /// Sends what is in `out` and cleans up.
    unsafe fn reply(&mut self, failed: bool) {
        let Some(task) = self.task.take() else { return };
        // If that fails, the link has ended with it, and the host hears so; the next call returns why.
        let _sent = self.worker.reply(task.seq, self.out.as_slice(), failed);
        self.out.let_go();
        match task.kind {
            Kind::Setup => {
                if let Some(now) = take_snapshot() {
                    *self.snapshot = now;
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
fn within_r<F: FnMut()>(mut f: F) -> bool {
    unsafe extern "C" fn call<F: FnMut()>(data: *mut c_void) {
        (*data.cast::<F>())();
    }
    let data = std::ptr::from_mut(&mut f).cast();
    // SAFETY: `f` outlives the call. It is not dropped by a long jump but here.
    unsafe { r::R_ToplevelExec(Some(call::<F>), data) == Rboolean::TRUE }
}

fn take_snapshot() -> Option<Snapshot> {
    let mut taken = None;
    // SAFETY: in a top-level context, on the main thread.
    within_r(|| taken = Some(unsafe { Snapshot::take() }));
    taken
}

fn clean_up(snapshot: &mut Snapshot, what: c_int) {
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
        unsafe { libc::sched_yield() };
    }
    r::clear_interrupt();
}

/// Reads an object that was sent.
unsafe fn read(source: Source<'_>) -> SEXP {
    serialize::read_or_raise(source)
}

/// Puts a task's objects in place, and into `frame` what to evaluate and where.
unsafe fn prepare(task: &Assignment, frame: SEXP) {
    let own = Source::new(&task.body, &task.pieces);
    let common = task
        .constants
        .as_ref()
        .map(|c| Source::new(&c.bytes, &c.pieces).common());
    let payload = Rf_protect(read(common.unwrap_or(own)));
    // R does not check an index.
    if TYPEOF(payload) != SEXPTYPE::VECSXP || Rf_xlength(payload) != 3 {
        r::raise("what the host has sent is no task");
    }
    if let Some(stream) = task.stream {
        let seed = Rf_protect(r::integers(&random_seed(stream)));
        Rf_defineVar(SEED.get(), seed, R_GlobalEnv);
        Rf_unprotect(1);
    }
    define_all(VECTOR_ELT(payload, 1), R_GlobalEnv);
    let env = Rf_protect(R_NewEnv(R_GlobalEnv, 0, 0));
    define_all(VECTOR_ELT(payload, 2), env);
    if task.constants.is_some() {
        let element = Rf_protect(read(own));
        Rf_defineVar(ELEMENT.get(), element, env);
        Rf_unprotect(1);
    }
    Rf_defineVar(EXPR.get(), VECTOR_ELT(payload, 0), frame);
    Rf_defineVar(ENVIR.get(), env, frame);
    Rf_unprotect(2);
}

/// The function of R/evaluate.R that establishes handlers and calls [`serve_tasks`].
static SERVE: Constant = Constant::new(|| unsafe { r::our_function(c"serve") });

/// `eval(.expr., .envir.)`: within `eval()`, so that a task may `return()`, and as R/evaluate.R
/// calls it, which knows such a call for none of the task's.
static TASK_CALL: Constant = Constant::new(|| unsafe {
    let function = Rf_install(c"eval".as_ptr());
    Rf_lang3(function, EXPR.get(), ENVIR.get())
});

/// Assigns the elements of a named list, which is empty afterwards.
unsafe fn define_all(list: SEXP, env: SEXP) {
    let names = Rf_getAttrib(list, R_NamesSymbol);
    let is_named = TYPEOF(list) == SEXPTYPE::VECSXP && TYPEOF(names) == SEXPTYPE::STRSXP;
    if !is_named && Rf_xlength(list) > 0 {
        r::raise("what the host has sent is no task");
    }
    for i in 0..Rf_xlength(list) {
        Rf_defineVar(
            Rf_installChar(STRING_ELT(names, i)),
            VECTOR_ELT(list, i),
            env,
        );
        // Now the variable alone has it, so that it can be changed without a copy.
        extendr_ffi::SET_VECTOR_ELT(list, i, R_NilValue);
    }
}

/// The value of a task that left by a long jump that nothing caught.
unsafe fn failure(stage: Stage) -> SEXP {
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

/// Whether the watcher has sent a SIGINT: see [`obey_the_watcher`].
static ASKED_TO_INTERRUPT: AtomicBool = AtomicBool::new(false);

/// Makes the watcher's SIGINT interrupt R in a daemon that was started with SIGINT ignored. A shell starts background jobs
/// of a script so (`Rscript -e 'mirai::daemon(...)' &`), and R 4.6 keeps ignoring SIGINT except in `Sys.sleep()`. The daemon
/// still ignores Ctrl-C: the handler acts only if the watcher has set `ASKED_TO_INTERRUPT`.
fn obey_the_watcher() {
    extern "C" fn handle(_: c_int) {
        if ASKED_TO_INTERRUPT.swap(false, Ordering::SeqCst) {
            r::set_interrupt();
        }
    }
    // SAFETY: the structures are C's, for which all zeros are valid; the handler only stores two numbers.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGINT, std::ptr::null(), &raw mut now);
        if now.sa_sigaction == libc::SIG_IGN {
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = handle as extern "C" fn(c_int) as libc::sighandler_t;
            // Without SA_RESTART: what the task waits for in the system ends.
            libc::sigaction(libc::SIGINT, &raw const new, std::ptr::null_mut());
        }
    }
}

/// What the watcher may do to this R session.
struct RSession {
    main: libc::pthread_t,
    tempdir: PathBuf,
}

// SAFETY: a thread's name is only used to send it signals; the main thread lives
// as long as the process.
unsafe impl Send for RSession {}
// SAFETY: as above.
unsafe impl Sync for RSession {}

impl Runtime for RSession {
    fn interrupt(&self) {
        ASKED_TO_INTERRUPT.store(true, Ordering::SeqCst);
        // SAFETY: the main thread lives.
        unsafe { libc::pthread_kill(self.main, libc::SIGINT) };
    }

    fn forget_interrupt(&self) {
        r::clear_interrupt();
    }

    fn exit(&self) {
        // R cannot do it: it is busy.
        let _ = std::fs::remove_dir_all(&self.tempdir);
        // SAFETY: ends the process without running anything of R's.
        unsafe { libc::_exit(1) };
    }

    fn raise(&self, signal: i32) {
        // SAFETY: our own process.
        unsafe { libc::kill(libc::getpid(), signal) };
    }
}

/// Discards what is written to stdout and stderr for as long as it lives.
struct Silence {
    saved: [Option<OwnedFd>; 2],
}

impl Silence {
    fn begin() -> Silence {
        let saved = [1, 2].map(duplicate);
        if let Ok(null) = File::options().write(true).open("/dev/null") {
            for fd in [1, 2] {
                // SAFETY: replaces a standard stream by an open descriptor.
                unsafe { libc::dup2(null.as_raw_fd(), fd) };
            }
        }
        Silence { saved }
    }
}

fn duplicate(fd: c_int) -> Option<OwnedFd> {
    // SAFETY: a fresh descriptor, if it is one, is ours.
    unsafe {
        let copy = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10);
        (copy >= 0).then(|| OwnedFd::from_raw_fd(copy))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        for (saved, fd) in self.saved.iter().zip([1, 2]) {
            if let Some(saved) = saved {
                // SAFETY: puts the stream back.
                unsafe { libc::dup2(saved.as_raw_fd(), fd) };
            }
        }
    }
}
