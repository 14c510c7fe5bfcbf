//! mirai objects: making, reading, waiting for and cancelling them.
//!
//! A mirai is an environment that holds `data` and, hidden, `.task`: an external
//! pointer to the core's [`Task`], whose protected value is the environment
//! itself. While the value has not been read, `data` is an active binding whose
//! function lives in that environment and so finds `.task` there; upon the first
//! reading after resolution it becomes an ordinary variable and the task is let go.

use std::ffi::{c_void, CStr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use extendr_ffi::{
    R_CallMethodDef, R_ClassSymbol, R_ClearExternalPtr, R_ExternalPtrAddr, R_ExternalPtrProtected,
    R_MakeExternalPtr, R_NamesSymbol, R_NewEnv, R_NilValue, R_RegisterCFinalizerEx,
    R_SetExternalPtrAddr, Rboolean, Rf_allocVector, Rf_defineVar, Rf_error, Rf_getAttrib, Rf_lcons,
    Rf_protect, Rf_setAttrib, Rf_unprotect, Rf_xlength, INTEGER, LOGICAL, SET_VECTOR_ELT, SEXP,
    SEXPTYPE, TYPEOF, VECTOR_ELT,
};
use mirai_core::dispatcher::Target;
use mirai_core::host;
use mirai_core::protocol::Kind;
use mirai_core::task::{Constants, Outcome, Payload, Task};
use mirai_core::wait::{self, Bell, Patience, Waited};

use crate::profiles::{self, Found};
use crate::r::{
    self, symbols, Constant, R_MakeActiveBinding, Rf_ScalarInteger, Rf_ScalarLogical, Rf_eval,
    Rf_inherits, Rf_lang2, Rf_list3,
};
use crate::serialize::{self, hooks, Buffer};

pub fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"submit", submit as *const (), 6),
        r::routine(c"submit_map", submit_map as *const (), 5),
        r::routine(c"submit_everywhere", submit_everywhere as *const (), 5),
        r::routine(c"submit_to", submit_to as *const (), 4),
        r::routine(c"resolved", resolved as *const (), 1),
        r::routine(c"data", data as *const (), 1),
        r::routine(c"collect", collect as *const (), 1),
        r::routine(c"collect_list", collect_list as *const (), 1),
        r::routine(c"wait_all", wait_all as *const (), 1),
        r::routine(c"wait_some", wait_some as *const (), 3),
        r::routine(c"first_failure", first_failure as *const (), 1),
        r::routine(c"race", race as *const (), 1),
        r::routine(c"pending", pending as *const (), 1),
        r::routine(c"cancel", cancel as *const (), 1),
        r::routine(c"obey_interrupt", obey_interrupt as *const (), 0),
        r::routine(c"set_hooks", set_hooks as *const (), 1),
        r::routine(c"encode", encode as *const (), 1),
        r::routine(c"decode", decode as *const (), 1),
    ]
}

symbols! {
    DATA = c"data";
    TASK = c".task";
    ID = c"id";
    FUNCTION = c"function";
}

static CLASS: Constant = Constant::new(|| unsafe { r::string("mirai") });
static ERROR_CLASS: Constant = Constant::new(|| unsafe { r::string("errorValue") });

static UNRESOLVED: Constant = Constant::new(|| unsafe {
    let value = Rf_protect(Rf_allocVector(SEXPTYPE::LGLSXP, 1));
    *LOGICAL(value) = i32::MIN; // NA
    let class = Rf_protect(r::string("unresolvedValue"));
    Rf_setAttrib(value, R_ClassSymbol, class);
    extendr_ffi::MARK_NOT_MUTABLE(value);
    Rf_unprotect(2);
    value
});

/// The call `function(value) <body>`, whose evaluation in a mirai makes the
/// function of its active binding; formals and body are shared by all of them.
static BINDING: Constant = Constant::new(|| unsafe {
    let template = r::our_function(c"data_binding");
    let formals = extendr_ffi::backports::get_closure_formals(template);
    let body = r::R_ClosureExpr(template);
    let rest = Rf_protect(Rf_list3(formals, body, R_NilValue));
    let call = Rf_lcons(FUNCTION.get(), rest);
    Rf_unprotect(1);
    call
});

/// The one buffer of the main thread. A static rather than a local, so that an R
/// error in the middle of serialization does not lose it.
static mut BUFFER: Buffer = Buffer::new();

fn buffer() -> *mut Buffer {
    std::ptr::addr_of_mut!(BUFFER)
}

/// Makes a mirai without a task yet.
unsafe fn new_mirai() -> (SEXP, SEXP) {
    let env = Rf_protect(R_NewEnv(r::NAMESPACE.get(), 0, 0));
    let pointer = Rf_protect(R_MakeExternalPtr(std::ptr::null_mut(), R_NilValue, env));
    Rf_defineVar(TASK.get(), pointer, env);
    Rf_setAttrib(env, R_ClassSymbol, CLASS.get());
    Rf_unprotect(2);
    (env, pointer)
}

unsafe fn set_id(env: SEXP, id: u64) {
    let id = Rf_protect(r::integers(&[id as i32]));
    Rf_setAttrib(env, ID.get(), id);
    Rf_unprotect(1);
}

/// Gives a new mirai (whose `env` is protected) what it needs to follow a task.
/// Everything that R can fail at happens here, before there is a task.
unsafe fn prepare(env: SEXP, pointer: SEXP, id: u64) {
    let function = Rf_protect(Rf_eval(BINDING.get(), env));
    R_MakeActiveBinding(DATA.get(), function, env);
    R_RegisterCFinalizerEx(pointer, Some(finalize), Rboolean::FALSE);
    set_id(env, id);
    Rf_unprotect(1);
}

/// R has dropped a mirai whose value was never read.
unsafe extern "C" fn finalize(pointer: SEXP) {
    // A forked process leaves alone what it shares with its parent's threads: one of
    // them may have held a lock when it was forked.
    if !profiles::is_forked() {
        release(pointer);
    }
}

unsafe fn release(pointer: SEXP) {
    let task = R_ExternalPtrAddr(pointer).cast::<Task>();
    R_ClearExternalPtr(pointer);
    if !task.is_null() {
        drop(Arc::from_raw(task.cast_const()));
    }
}

unsafe fn hold(pointer: SEXP, task: Arc<Task>) {
    R_SetExternalPtrAddr(pointer, Arc::into_raw(task).cast_mut().cast());
}

/// The task of a mirai, or `None` if it has been let go: the value is there.
/// Borrowed for as long as the mirai is reachable and its value is not read.
pub unsafe fn task_of<'a>(mirai: SEXP) -> Option<&'a Task> {
    let pointer = r::get_var_in_frame(TASK.get(), mirai);
    if TYPEOF(pointer) != SEXPTYPE::EXTPTRSXP {
        return None;
    }
    R_ExternalPtrAddr(pointer).cast::<Task>().as_ref()
}

unsafe fn is_mirai(x: SEXP) -> bool {
    TYPEOF(x) == SEXPTYPE::ENVSXP && Rf_inherits(x, c"mirai".as_ptr()) == Rboolean::TRUE
}

/// Serializes what a daemon needs for one evaluation into the buffer. False if a hook
/// has failed.
unsafe fn write_payload(expr: SEXP, globals: SEXP, args: SEXP) -> bool {
    let payload = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, 3));
    SET_VECTOR_ELT(payload, 0, expr);
    SET_VECTOR_ELT(payload, 1, globals);
    SET_VECTOR_ELT(payload, 2, args);
    let written = Buffer::write(buffer(), payload);
    Rf_unprotect(1);
    written
}

/// The error value for R's last error.
unsafe fn failure() -> SEXP {
    let text = r::string(&CStr::from_ptr(r::R_curErrorBuf()).to_string_lossy());
    let name = extendr_ffi::Rf_install(c"failure_value".as_ptr());
    let call = Rf_protect(Rf_lang2(name, Rf_protect(text)));
    let value = Rf_eval(call, r::NAMESPACE.get());
    Rf_unprotect(2);
    value
}

/// Makes a new mirai one that has failed before it could be sent.
unsafe fn fail(env: SEXP) {
    let value = Rf_protect(failure());
    r::R_removeVarFromFrame(DATA.get(), env);
    Rf_defineVar(DATA.get(), value, env);
    Rf_unprotect(1);
}

fn milliseconds(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or(Duration::MAX)
}

/// How a submission went that did not lead to a task.
enum Refusal {
    NoRoom,
    Message(String),
}

/// `.Call(submit, expr, globals, args, timeout, profile, or_give_up)`.
///
/// `globals` and `args` are named lists or `NULL`, `timeout` milliseconds or
/// `NULL`, `profile` a string; `or_give_up` says whether to return `NULL` rather than
/// wait for room. Returns the mirai. With a synchronous
/// profile returns `FALSE`: evaluation is R's job then.
unsafe extern "C-unwind" fn submit(
    expr: SEXP,
    globals: SEXP,
    args: SEXP,
    timeout: SEXP,
    profile: SEXP,
    or_give_up: SEXP,
) -> SEXP {
    let launch = match profiles::find(profile) {
        Found::Host => R_NilValue,
        Found::Nothing => Rf_eval(LAUNCH.get(), r::NAMESPACE.get()),
        Found::Sync => return Rf_ScalarLogical(0),
        Found::Forked => Rf_error(FORKED.as_ptr()),
    };
    Rf_protect(launch);
    let (env, pointer) = new_mirai();
    Rf_protect(env);
    let id = host::next_task_id();
    prepare(env, pointer, id);
    // Last, because R code that it may run could use the buffer itself.
    if !write_payload(expr, globals, args) {
        fail(env);
        Rf_unprotect(2);
        return env;
    }
    loop {
        match submit_buffer(id, pointer, timeout, profile, launch) {
            Ok(()) => break,
            Err(Refusal::NoRoom) if *LOGICAL(or_give_up) == 1 => {
                Rf_unprotect(2);
                return R_NilValue;
            }
            Err(Refusal::NoRoom) => {
                if wait_for_room(profile) == Waited::Interrupted {
                    r::obey_interrupt();
                    // It has returned: somebody handled the interrupt, in R, and
                    // may have used the buffer.
                    if !write_payload(expr, globals, args) {
                        raise("a serialization hook has failed".into());
                    }
                }
            }
            Err(Refusal::Message(text)) => raise(text),
        }
    }
    Rf_unprotect(2);
    env
}

pub static FORKED: &std::ffi::CStr =
    c"mirai cannot be used in a process that was forked from an R session: \
                                    use it in the session itself";

/// The call that describes how to start a process for a single task.
static LAUNCH: Constant = Constant::new(|| unsafe {
    Rf_lcons(extendr_ffi::Rf_install(c"single_use".as_ptr()), R_NilValue)
});

/// Raises an R error with a message that is let go first.
unsafe fn raise(text: String) -> ! {
    let mut line = [0u8; 1024];
    let n = text.len().min(line.len() - 1);
    line[..n].copy_from_slice(&text.as_bytes()[..n]);
    drop(text);
    Rf_error(c"%s".as_ptr(), line.as_ptr())
}

/// Makes a task of what is in the buffer and hands it to the profile's host.
/// Nothing of R is called here but plain reading, so Rust values may live.
unsafe fn submit_buffer(
    id: u64,
    pointer: SEXP,
    timeout: SEXP,
    profile: SEXP,
    launch: SEXP,
) -> Result<(), Refusal> {
    let timeout = r::as_number(timeout).map(milliseconds);
    let make = |stream| {
        let payload = Payload {
            kind: Kind::Task,
            stream,
            constants: None,
            body: (*buffer()).take(),
        };
        let task = Arc::new(Task::new(id, payload));
        hold(pointer, task.clone());
        task
    };
    let submitted = profiles::with_current(profile, |current| {
        let profile = current?;
        let Some(host) = profile.host() else {
            return Some(Err(Refusal::Message(
                "daemons were changed meanwhile".into(),
            )));
        };
        if !host.has_room((*buffer()).len() as u64) {
            return Some(Err(Refusal::NoRoom));
        }
        host.submit(make(profile.task_stream()), timeout, Target::Any);
        Some(Ok(()))
    });
    submitted.unwrap_or_else(|| {
        if launch == R_NilValue {
            return Err(Refusal::Message("daemons were changed meanwhile".into()));
        }
        profiles::submit_to_new(make(None), timeout, launch).map_err(Refusal::Message)
    })
}

unsafe fn wait_for_room(profile: SEXP) -> Waited {
    let size = (*buffer()).len() as u64;
    Bell::get().wait(None, r::interrupted, || {
        profiles::with_current(profile, |current| {
            current
                .and_then(|p| p.host())
                .is_none_or(|h| h.has_room(size))
        })
    })
}

/// `.Call(submit_map, expr, globals, args, elements, profile)`: a list of mirai, one
/// for each of `elements`, a list. Each evaluates `expr` with its element as `.x`;
/// what they have in common is serialized once. `FALSE` if the profile is synchronous.
unsafe extern "C-unwind" fn submit_map(
    expr: SEXP,
    globals: SEXP,
    args: SEXP,
    elements: SEXP,
    profile: SEXP,
) -> SEXP {
    match profiles::find(profile) {
        Found::Host => {}
        Found::Nothing => Rf_error(c"no daemons set".as_ptr()),
        Found::Sync => return Rf_ScalarLogical(0),
        Found::Forked => Rf_error(FORKED.as_ptr()),
    }
    let n = Rf_xlength(elements);
    let out = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, n));
    // In R's keeping, because serializing an element may leave by a long jump.
    let keeper = Rf_protect(R_MakeExternalPtr(
        std::ptr::null_mut(),
        R_NilValue,
        R_NilValue,
    ));
    R_RegisterCFinalizerEx(keeper, Some(release_constants), Rboolean::FALSE);
    let common = write_payload(expr, globals, args);
    if common {
        make_constants(keeper, profile);
    }
    for i in 0..n {
        let (env, pointer) = new_mirai();
        SET_VECTOR_ELT(out, i, env);
        let id = host::next_task_id();
        prepare(env, pointer, id);
        let element = VECTOR_ELT(elements, i);
        if !common || !Buffer::write(buffer(), element) {
            fail(env);
            continue;
        }
        while !submit_element(id, pointer, keeper, profile) {
            if wait_for_room(profile) == Waited::Interrupted {
                r::obey_interrupt();
                if !Buffer::write(buffer(), element) {
                    raise("a serialization hook has failed".into());
                }
            }
        }
    }
    release_constants(keeper);
    Rf_unprotect(2);
    out
}

/// Makes constants of what is in the buffer.
unsafe fn make_constants(keeper: SEXP, profile: SEXP) {
    profiles::with_current(profile, |current| {
        if let Some(host) = current.and_then(|p| p.host()) {
            let constants = host.constants((*buffer()).take());
            R_SetExternalPtrAddr(keeper, Arc::into_raw(constants).cast_mut().cast());
        }
    });
}

unsafe extern "C" fn release_constants(keeper: SEXP) {
    let constants = R_ExternalPtrAddr(keeper).cast::<Constants>();
    R_ClearExternalPtr(keeper);
    if !constants.is_null() {
        drop(Arc::from_raw(constants.cast_const()));
    }
}

/// Submits the element in the buffer. False if there is no room for it.
unsafe fn submit_element(id: u64, pointer: SEXP, keeper: SEXP, profile: SEXP) -> bool {
    profiles::with_current(profile, |current| {
        let constants = R_ExternalPtrAddr(keeper).cast::<Constants>();
        let profile = current.filter(|_| !constants.is_null());
        let host = profile.and_then(|p| p.host());
        if host.is_some_and(|h| !h.has_room((*buffer()).len() as u64)) {
            return false;
        }
        let shared = (!constants.is_null()).then(|| {
            Arc::increment_strong_count(constants.cast_const());
            Arc::from_raw(constants.cast_const())
        });
        let payload = Payload {
            kind: Kind::Map,
            stream: profile.and_then(|p| p.task_stream()),
            constants: shared,
            body: (*buffer()).take(),
        };
        let task = Arc::new(Task::new(id, payload));
        hold(pointer, task.clone());
        match host {
            Some(host) => host.submit(task, None, Target::Any),
            // Daemons were reset meanwhile (by a finalizer, say).
            None => task.resolve(Outcome::Reset),
        }
        true
    })
}

/// `.Call(submit_everywhere, expr, globals, args, min, profile)`: a list of
/// mirai, one for each connected daemon and at least `min`, the others being for
/// the next daemons that connect. `NULL` if no daemons are set, `FALSE` if the
/// profile is synchronous.
unsafe extern "C-unwind" fn submit_everywhere(
    expr: SEXP,
    globals: SEXP,
    args: SEXP,
    min: SEXP,
    profile: SEXP,
) -> SEXP {
    match profiles::find(profile) {
        Found::Host => {}
        Found::Nothing => return R_NilValue,
        Found::Sync => return Rf_ScalarLogical(0),
        Found::Forked => Rf_error(FORKED.as_ptr()),
    }
    let min = r::as_number(min).unwrap_or(1.0) as usize;
    let count = profiles::with_current(profile, |p| {
        p.and_then(|p| p.host()).map_or(0, |h| h.peers().len())
    });
    let n = count.max(min);
    let out = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, n as _));
    for i in 0..n {
        let (env, pointer) = new_mirai();
        SET_VECTOR_ELT(out, i as _, env);
        prepare(env, pointer, host::next_task_id());
    }
    if write_payload(expr, globals, args) {
        submit_pinned(out, n, profile);
    } else {
        for i in 0..n {
            fail(VECTOR_ELT(out, i as _));
        }
    }
    Rf_unprotect(1);
    out
}

unsafe fn submit_pinned(out: SEXP, n: usize, profile: SEXP) {
    profiles::with_current(profile, |current| {
        let Some(host) = current.and_then(|p| p.host()) else {
            return;
        };
        let body: Bytes = (*buffer()).take();
        let peers = host.peers().into_iter().map(Target::Peer);
        let mut targets = peers.chain((0..).map(Target::Join));
        for i in 0..n {
            let env = VECTOR_ELT(out, i as _);
            let pointer = r::get_var_in_frame(TASK.get(), env);
            let id = *INTEGER(Rf_getAttrib(env, ID.get())) as u64;
            let payload = Payload {
                kind: Kind::Setup,
                stream: None,
                constants: None,
                body: body.clone(),
            };
            let task = Arc::new(Task::new(id, payload));
            hold(pointer, task.clone());
            if let Some(target) = targets.next() {
                host.submit(task, None, target);
            }
        }
    });
}

/// `.Call(submit_to, expr, args, endpoint, profile)`: a mirai that is evaluated by the
/// first daemon that has connected at an endpoint, or will, and by no other; what it
/// leaves behind there stays. `NULL` if no daemons are set.
unsafe extern "C-unwind" fn submit_to(
    expr: SEXP,
    args: SEXP,
    endpoint: SEXP,
    profile: SEXP,
) -> SEXP {
    match profiles::find(profile) {
        Found::Host => {}
        Found::Nothing | Found::Sync => return R_NilValue,
        Found::Forked => Rf_error(FORKED.as_ptr()),
    }
    let (env, pointer) = new_mirai();
    Rf_protect(env);
    let id = host::next_task_id();
    prepare(env, pointer, id);
    if !write_payload(expr, R_NilValue, args) {
        fail(env);
        Rf_unprotect(1);
        return env;
    }
    profiles::with_current(profile, |current| {
        let payload = Payload {
            kind: Kind::Setup,
            stream: None,
            constants: None,
            body: (*buffer()).take(),
        };
        let task = Arc::new(Task::new(id, payload));
        hold(pointer, task.clone());
        let endpoint = *INTEGER(endpoint) as usize - 1;
        match current.and_then(|p| p.host()) {
            Some(host) => host.submit(task, None, Target::Endpoint(endpoint)),
            None => task.resolve(Outcome::Reset),
        }
    });
    Rf_unprotect(1);
    env
}

/// `.Call(resolved, value)`: a mirai that has this value from the beginning.
unsafe extern "C-unwind" fn resolved(value: SEXP) -> SEXP {
    let (env, _) = new_mirai();
    Rf_protect(env);
    Rf_defineVar(DATA.get(), value, env);
    set_id(env, host::next_task_id());
    Rf_unprotect(1);
    env
}

/// `.Call(data, .task)`: the value, or an unresolved value.
unsafe extern "C-unwind" fn data(pointer: SEXP) -> SEXP {
    match R_ExternalPtrAddr(pointer).cast::<Task>().as_ref() {
        Some(task) if task.is_resolved() => settle(pointer),
        Some(_) => UNRESOLVED.get(),
        // A copy that came through serialization has a value only if it had been
        // read before; a binding that is still active would lead back to here.
        None => error_value(7),
    }
}

/// Makes the value of a resolved task the mirai's ordinary `data`.
unsafe fn settle(pointer: SEXP) -> SEXP {
    let env = Rf_protect(R_ExternalPtrProtected(pointer));
    let task = R_ExternalPtrAddr(pointer).cast::<Task>().cast_const();
    // Reading may run code of the user's (hooks, finalizers), which may read the same
    // mirai; it may also leave by a long jump.
    Arc::increment_strong_count(task);
    let held = task.cast_mut().cast();
    let value = r::R_ExecWithCleanup(Some(read_outcome), held, Some(drop_task), held);
    Rf_protect(value);
    r::R_removeVarFromFrame(DATA.get(), env);
    Rf_defineVar(DATA.get(), value, env);
    release(pointer);
    Rf_unprotect(2);
    value
}

unsafe extern "C" fn read_outcome(task: *mut c_void) -> SEXP {
    match (*task.cast::<Task>()).outcome() {
        Some(Outcome::Value(bytes) | Outcome::Error(bytes)) => {
            serialize::read(bytes).unwrap_or_else(|| failure())
        }
        Some(Outcome::TimedOut) => error_value(5),
        Some(Outcome::Reset) => error_value(19),
        Some(Outcome::Canceled) | None => error_value(20),
    }
}

unsafe extern "C" fn drop_task(task: *mut c_void) {
    drop(Arc::from_raw(task.cast::<Task>().cast_const()));
}

unsafe fn error_value(code: i32) -> SEXP {
    let value = Rf_protect(r::integers(&[code]));
    Rf_setAttrib(value, R_ClassSymbol, ERROR_CLASS.get());
    Rf_unprotect(1);
    value
}

/// The value of a mirai that has resolved.
unsafe fn value_of(mirai: SEXP) -> SEXP {
    if task_of(mirai).is_some() {
        settle(r::get_var_in_frame(TASK.get(), mirai))
    } else {
        r::get_var_in_frame(DATA.get(), mirai)
    }
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
        Rf_error(FORKED.as_ptr());
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

/// `.Call(encode, x)`: the raw vector that would be sent.
unsafe extern "C-unwind" fn encode(x: SEXP) -> SEXP {
    if !Buffer::write(buffer(), x) {
        Rf_error(c"%s".as_ptr(), r::R_curErrorBuf());
    }
    // Taken, because allocation may run a finalizer that uses the buffer.
    let bytes = (*buffer()).take();
    let out = Rf_allocVector(SEXPTYPE::RAWSXP, bytes.len() as isize);
    std::ptr::copy_nonoverlapping(bytes.as_ptr(), extendr_ffi::RAW(out), bytes.len());
    drop(bytes);
    out
}

/// `.Call(decode, raw)`: the object that was sent.
unsafe extern "C-unwind" fn decode(raw: SEXP) -> SEXP {
    if TYPEOF(raw) != SEXPTYPE::RAWSXP {
        Rf_error(c"not a raw vector".as_ptr());
    }
    let n = Rf_xlength(raw) as usize;
    let bytes = std::slice::from_raw_parts(extendr_ffi::RAW(raw), n);
    match serialize::read(bytes) {
        Some(object) => object,
        None => Rf_error(c"%s".as_ptr(), r::R_curErrorBuf()),
    }
}

/// `.Call(set_hooks, registry)`: registers serialization hooks, here and on all daemons,
/// present and future.
unsafe extern "C-unwind" fn set_hooks(registry: SEXP) -> SEXP {
    hooks::set(R_NilValue);
    // Without hooks, because it holds the hooks.
    if !Buffer::write(buffer(), registry) {
        Rf_error(c"%s".as_ptr(), r::R_curErrorBuf());
    }
    hooks::set(registry);
    profiles::configure((*buffer()).take());
    R_NilValue
}
