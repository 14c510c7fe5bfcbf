//! Submission: from R objects to a task in the hands of a host.
//!
//! Whatever R can fail at (making the mirai, serializing) happens before there is a task.

mod arguments;
mod map;

use std::time::Duration;

use extendr_ffi::{
    R_CallMethodDef, R_NilValue, Rf_allocVector, Rf_defineVar, Rf_lcons, Rf_protect, Rf_unprotect,
    Rf_xlengthgets, INTEGER, LOGICAL, SET_VECTOR_ELT, SEXP, SEXPTYPE, TYPEOF, VECTOR_ELT,
};
use mirai_core::dispatcher::Target;
use mirai_core::protocol::Kind;
use mirai_core::sys::{Bell, Waited};
use mirai_core::task::{Outcome, Payload};

use crate::error::{self, Class, Error};
use crate::events::{self, Events};
use crate::failures::{argument_failure, failure};
use crate::forks;
use crate::launch;
use crate::r::{self, Constant, Rf_ScalarLogical, Rf_eval};
use crate::rules;
use crate::serialize::{self, buffer};
use crate::session::{self, Found};
use crate::tasks::{new_pending, new_task, new_task_needing, DATA, TASK};
use crate::waiting::Lookout;

use self::arguments::Arguments;

pub(crate) fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"submit", submit as *const (), 9),
        r::routine(c"submit_map", map::submit_map as *const (), 10),
        r::routine(c"submit_everywhere", submit_everywhere as *const (), 5),
        r::routine(c"submit_to", submit_to as *const (), 4),
    ]
}

/// Serializes what a daemon of a profile needs for one evaluation into the buffer. `when` is the function that decides on
/// another attempt, or `NULL`. False if a hook has failed.
unsafe fn write_payload(expr: SEXP, arguments: Arguments, when: SEXP, profile: SEXP) -> bool {
    // SAFETY: on R's main thread, with protected arguments; `payload` is protected, and no reference to the buffer
    // is held while R is called.
    unsafe {
        let length = match (when != R_NilValue, arguments.places != R_NilValue) {
            (_, true) => 5,
            (true, _) => 4,
            _ => 3,
        };
        let payload = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, length));
        SET_VECTOR_ELT(payload, 0, expr);
        SET_VECTOR_ELT(payload, 1, arguments.globals);
        SET_VECTOR_ELT(payload, 2, arguments.args);
        if length > 3 {
            SET_VECTOR_ELT(payload, 3, when);
        }
        if length > 4 {
            SET_VECTOR_ELT(payload, 4, arguments.places);
        }
        (*buffer()).share(session::passes_memory(profile));
        let written = serialize::write(buffer(), payload);
        Rf_unprotect(1);
        written
    }
}

/// Makes a new mirai one that has failed before it could be sent, by R's last error.
unsafe fn fail(env: SEXP, profile: SEXP) {
    // SAFETY: as of the other function; the value is protected.
    unsafe {
        fail_with(env, Rf_protect(failure()), profile);
        Rf_unprotect(1);
    }
}

/// The same, by an argument that has come to an error value.
unsafe fn fail_for(env: SEXP, argument: SEXP, profile: SEXP) {
    // SAFETY: as of the other function; both values are protected.
    unsafe {
        fail_with(env, Rf_protect(argument_failure(argument)), profile);
        Rf_unprotect(1);
    }
}

/// The same, with this value. Its profile counts it all the same.
unsafe fn fail_with(env: SEXP, value: SEXP, profile: SEXP) {
    // SAFETY: on R's main thread; `env` is a mirai and protected, and so is `value`.
    unsafe {
        session::with_profile(profile, |current| {
            current
                .and_then(|p| p.host())
                .inspect(|host| host.count_unsubmitted());
        });
        r::R_removeVarFromFrame(DATA.get(), env);
        Rf_defineVar(DATA.get(), value, env);
    }
}

pub(crate) fn milliseconds(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or(Duration::MAX)
}

/// Why a submission did not lead to a task.
enum Refusal {
    /// The tasks that wait have as much memory as they may.
    NoRoom,
    /// Daemons were set or reset after the submission had begun.
    Changed,
    /// No process can be started for the task.
    NotStarted(Error),
}

/// `.Call(submit, expr, globals, args, timeout, profile, or_give_up, rules, names, given)`.
///
/// `globals` and `args` are named lists or `NULL`. `names` is `NULL` unless `globals` were given one by one, and `given` is
/// what `args` are made of: mirai in them stand for their values, but not objects of an environment. `timeout` is
/// milliseconds or
/// `NULL`, `profile` a string; `or_give_up` says whether to return `NULL` rather than
/// wait for room; `rules` is a value of `task_rules()`, or `NULL`. Returns the mirai. With a synchronous
/// profile returns `FALSE`: evaluation is R's job then.
unsafe extern "C-unwind" fn submit(
    expr: SEXP,
    globals: SEXP,
    args: SEXP,
    timeout: SEXP,
    profile: SEXP,
    or_give_up: SEXP,
    rules: SEXP,
    names: SEXP,
    given: SEXP,
) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the arguments. What was allocated is protected. When an
    // error is raised, the message is dropped first and nothing else is owned.
    unsafe {
        let (launch, when) = match session::find(profile) {
            Found::Host { asks } => (R_NilValue, rules::when(rules, profile, asks)),
            // It has one attempt.
            Found::Nothing => (Rf_eval(LAUNCH.get(), r::NAMESPACE.get()), R_NilValue),
            Found::Sync => return Rf_ScalarLogical(0),
            Found::Forked => forks::error().raise(),
        };
        Rf_protect(launch);
        Rf_protect(when);
        let (env, pointer) = new_pending();
        Rf_protect(env);
        let given_one_by_one = TYPEOF(given) != SEXPTYPE::ENVSXP;
        let arguments = Arguments::new(globals, names != R_NilValue, args, given_one_by_one, false);
        Rf_protect(arguments.frame);
        if arguments.failure != R_NilValue {
            fail_for(env, arguments.failure, profile);
            Rf_unprotect(4);
            return env;
        }
        // Last, because R code that it may run could use the buffer itself.
        if !write_payload(expr, arguments, when, profile) {
            fail(env, profile);
            Rf_unprotect(4);
            return env;
        }
        loop {
            match submit_buffer(pointer, timeout, profile, launch, rules, arguments) {
                Ok(()) => break,
                Err(Refusal::NoRoom) if *LOGICAL(or_give_up) == 1 => {
                    Rf_unprotect(4);
                    return R_NilValue;
                }
                Err(Refusal::NoRoom) => {
                    if !wait_for_room(profile) && !write_payload(expr, arguments, when, profile) {
                        error::raise(Class::Other, "a serialization hook has failed");
                    }
                }
                Err(Refusal::Changed) => {
                    error::raise(Class::Other, "daemons were changed meanwhile")
                }
                Err(Refusal::NotStarted(error)) => error.raise(),
            }
        }
        Rf_unprotect(4);
        env
    }
}

/// The call that describes how to start a process for a single task.
// SAFETY: on R's main thread; symbols need no protection.
static LAUNCH: Constant = Constant::new(|| unsafe {
    Rf_lcons(extendr_ffi::Rf_install(c"single_use".as_ptr()), R_NilValue)
});

/// Makes a task of what is in the buffer and hands it to the profile's host.
/// Nothing of R is called here but plain reading, so Rust values may live.
unsafe fn submit_buffer(
    pointer: SEXP,
    timeout: SEXP,
    profile: SEXP,
    launch: SEXP,
    rules: SEXP,
    arguments: Arguments,
) -> Result<(), Refusal> {
    // SAFETY: on R's main thread, which is not left: R is called for reading only. The buffer is used here alone.
    unsafe {
        let timeout = r::as_number(timeout).map(milliseconds);
        let make = |stream| {
            let payload = Payload {
                kind: Kind::Task,
                stream,
                constants: None,
                body: (*buffer()).take(),
            };
            new_task_needing(pointer, payload, None, arguments.take())
        };
        let submitted = session::with_profile(profile, |current| {
            let profile = current?;
            let Some(host) = profile.host() else {
                return Some(Err(Refusal::Changed));
            };
            if !host.has_room((*buffer()).len() as u64) {
                return Some(Err(Refusal::NoRoom));
            }
            let task = make(profile.task_stream());
            host.submit_with(task, timeout, Target::Any, rules::rules(rules));
            Some(Ok(()))
        });
        submitted.unwrap_or_else(|| {
            if launch == R_NilValue {
                return Err(Refusal::Changed);
            }
            launch::submit_to_new(make(None), timeout, launch).map_err(Refusal::NotStarted)
        })
    }
}

/// Waits until there is room for what is in the buffer. False if R has done something meanwhile
/// for which it has used the buffer, which is to be written again.
unsafe fn wait_for_room(profile: SEXP) -> bool {
    // SAFETY: on R's main thread; `events::serve` may leave by a long jump, and nothing is owned then.
    unsafe {
        let size = (*buffer()).len() as u64;
        let uses = serialize::uses();
        let has_room = || {
            session::with_profile(profile, |current| {
                current
                    .and_then(|p| p.host())
                    .is_none_or(|h| h.has_room(size))
            })
        };
        let mut lookout = Lookout::new();
        while Bell::get().wait(None, Events::new(), has_room) == Waited::Interrupted {
            events::serve();
            lookout.look(|| session::deserted(profile));
            if serialize::uses() != uses {
                return false;
            }
        }
        true
    }
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
    // SAFETY: R calls it on its main thread and protects the arguments. `out` is protected and has each new mirai
    // at once.
    unsafe {
        match session::find(profile) {
            Found::Host { .. } => {}
            Found::Nothing => return R_NilValue,
            Found::Sync => return Rf_ScalarLogical(0),
            Found::Forked => forks::error().raise(),
        }
        let min = r::as_number(min).unwrap_or(1.0) as usize;
        let mut n = session::with_profile(profile, |p| {
            p.and_then(|p| p.host()).map_or(0, |h| h.peers().len())
        });
        // Again if more daemons have connected before the tasks were handed over: R cannot be called in the middle of that.
        loop {
            n = n.max(min);
            let out = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, n as _));
            for i in 0..n {
                let (env, ..) = new_pending();
                SET_VECTOR_ELT(out, i as _, env);
            }
            let arguments = Arguments::plain(globals, args);
            if !write_payload(expr, arguments, R_NilValue, profile) {
                for i in 0..n {
                    fail(VECTOR_ELT(out, i as _), profile);
                }
                Rf_unprotect(1);
                return out;
            }
            match submit_pinned(out, n, min, profile) {
                Ok(n) => {
                    let out = Rf_xlengthgets(out, n as _);
                    Rf_unprotect(1);
                    return out;
                }
                Err(needed) => n = needed,
            }
            Rf_unprotect(1);
        }
    }
}

/// Hands over the buffer as a task for each daemon, `min` at least, which those of the `n` new mirai in `out` become
/// that are needed. Returns how many; as an error, how many it takes, if there are too few.
unsafe fn submit_pinned(out: SEXP, n: usize, min: usize, profile: SEXP) -> Result<usize, usize> {
    // SAFETY: on R's main thread; `out` has `n` mirai, and R is called for reading only.
    unsafe {
        session::with_profile(profile, |current| {
            // Daemons were reset meanwhile (by a finalizer, say): these resolve like those that come too late.
            let host = current.and_then(|p| p.host());
            let body = (*buffer()).take();
            let task = |i| {
                let env = VECTOR_ELT(out, i as _);
                let pointer = r::get_var_in_frame(TASK.get(), env);
                let payload = Payload {
                    kind: Kind::Setup,
                    stream: None,
                    constants: None,
                    body: body.clone(),
                };
                new_task(pointer, payload, None)
            };
            let mut tasks: Vec<_> = (0..n).map(task).collect();
            let Some(host) = host else {
                for task in tasks {
                    task.resolve(Outcome::Reset);
                }
                return Ok(n);
            };
            let mut used = n;
            host.submit_to_each(min, |needed| {
                used = needed;
                (needed <= n).then(|| tasks.drain(..needed).collect())
            })?;
            Ok(used)
        })
    }
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
    // SAFETY: R calls it on its main thread and protects the arguments; `endpoint` is an integer. `env` is
    // protected.
    unsafe {
        match session::find(profile) {
            Found::Host { .. } => {}
            Found::Nothing | Found::Sync => return R_NilValue,
            Found::Forked => forks::error().raise(),
        }
        let (env, pointer) = new_pending();
        Rf_protect(env);
        let arguments = Arguments::plain(R_NilValue, args);
        if !write_payload(expr, arguments, R_NilValue, profile) {
            fail(env, profile);
            Rf_unprotect(1);
            return env;
        }
        session::with_profile(profile, |current| {
            let payload = Payload {
                kind: Kind::Setup,
                stream: None,
                constants: None,
                body: (*buffer()).take(),
            };
            let task = new_task(pointer, payload, None);
            let endpoint = *INTEGER(endpoint) as usize - 1;
            match current.and_then(|p| p.host()) {
                Some(host) => host.submit(task, None, Target::Endpoint(endpoint)),
                None => task.resolve(Outcome::Reset),
            }
        });
        Rf_unprotect(1);
        env
    }
}
