//! Launching daemons. On this machine: programs, or forks of the fork server. Elsewhere: commands, which are
//! started all at once and watched together.

use std::ffi::OsString;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use extendr_api::prelude::*;
use extendr_ffi::{R_CallMethodDef, R_NilValue, SEXP, VECTOR_ELT};
#[cfg(target_os = "linux")]
use extendr_ffi::{Rf_install, Rf_lcons, Rf_protect, Rf_unprotect};
use mirai_core::host::{Host, MakeJob, Respawn};
use mirai_core::process::{self, command, Child, Job, Program};
use mirai_core::sys::{Bell, Waited};
use mirai_core::task::Task;
use mirai_core::transport::Address;

#[cfg(target_os = "linux")]
use crate::daemon::within_r;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::forks;
use crate::functions::functions;
use crate::r;
use crate::session::{self, with_session, Profile};
use crate::streams::with_part;

pub(crate) fn routines() -> Vec<R_CallMethodDef> {
    vec![r::routine(c"serve_forks", serve_forks as *const (), 1)]
}

/// Submits a task to a process that is started for it. `launch` is a value of `single_use()` in R/launch.R: the
/// program, its arguments, the URL that it will dial, and the code for a fork, or `NULL`.
///
/// # Errors
/// What to tell the user: no process can be started.
///
/// # Safety
/// On R's main thread. `launch` is a list of character vectors, of which the last may be `NULL`.
pub(crate) unsafe fn submit_to_new(
    task: Arc<Task>,
    timeout: Option<Duration>,
    launch: SEXP,
) -> Result<()> {
    // SAFETY: as this function demands: `launch` keeps its strings, and R is not called.
    unsafe {
        let text = |i| r::as_str(VECTOR_ELT(launch, i)).unwrap_or_default();
        let args = VECTOR_ELT(launch, 1);
        let args = (0..extendr_ffi::Rf_xlength(args)).map(|i| {
            std::ffi::CStr::from_ptr(extendr_ffi::R_CHAR(extendr_ffi::STRING_ELT(args, i)))
                .to_string_lossy()
                .into_owned()
        });
        let code = r::as_str(VECTOR_ELT(launch, 3));
        let program = program(text(0), args, false, code);
        let address: Address = text(2).parse().map_err(Error::launch)?;
        let failed = |e: &dyn std::fmt::Display| {
            Error::launch(format!("a process for the task cannot be started: {e}"))
        };
        let submitted = session::unless_forked(|session| {
            // The system may refuse the host its thread or descriptors. That is a panic, which must not reach R: this
            // is called by a plain routine, around which nothing catches it.
            let made = catch_unwind(AssertUnwindSafe(|| {
                session.single_use_host();
            }));
            made.map_err(|panic| failed(&panic.downcast_ref::<String>().map_or("", |x| x)))?;
            let host = session.single_use_host();
            host.submit_to_new(task, timeout, &address, &program)
                .map_err(|e| failed(&e))
        });
        submitted.unwrap_or_else(|| Err(forks::error()))
    }
}

/// How to start an R process.
fn program(
    path: &str,
    args: impl Iterator<Item = String>,
    output: bool,
    code: Option<&str>,
) -> Program {
    // R CMD check sets it to the name of a file that the child would look for in its own directory.
    let env = vec![(OsString::from("R_TESTS"), None)];
    Program {
        path: path.into(),
        args: args.map(OsString::from).collect(),
        env,
        output,
        code: code.map(String::from),
        attached: true,
        surroundings: None,
    }
}

/// Starts the fork server, a program that calls `serve_forks` on its stdin. `FALSE` if that
/// cannot be done.
fn start_fork_server(path: &str, args: Vec<String>) -> Result<bool> {
    with_session(|_| {
        #[cfg(target_os = "linux")]
        let started = {
            let program = program(path, args.into_iter(), false, None);
            process::fork::start_server(&program).is_ok()
        };
        #[cfg(not(target_os = "linux"))]
        let started = {
            let _ = (path, args);
            false
        };
        Ok(started)
    })
}

/// Whether there is a fork server.
fn has_fork_server() -> Result<bool> {
    #[cfg(target_os = "linux")]
    return Ok(process::fork::is_running());
    #[cfg(not(target_os = "linux"))]
    return Ok(false);
}

/// Has R read the functions of our package.
#[cfg(target_os = "linux")]
fn read_functions() {
    // SAFETY: on R's main thread, in `within_r`, where long jumps end; the call is protected.
    within_r(|| unsafe {
        let name = Rf_install(c"read_functions".as_ptr());
        let call = Rf_protect(Rf_lcons(name, R_NilValue));
        r::Rf_eval(call, r::NAMESPACE.get());
        Rf_unprotect(1);
    });
}

/// `.Call(serve_forks, tempdir())`: the fork server. `NULL` when it is over; in each process
/// that it forks, the code to evaluate there. Such a process has to call `tempdir(check = TRUE)`
/// first, which makes it a session directory: it has inherited the name of the server's.
unsafe extern "C-unwind" fn serve_forks(tempdir: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument. `code` is dropped before this returns.
    unsafe {
        #[cfg(target_os = "linux")]
        {
            if !give_up_directory(r::as_str(tempdir).unwrap_or_default()) {
                r::raise("the session directory cannot be given up");
            }
            if let Some(forked) = mirai_core::process::fork::serve(read_functions) {
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
}

/// Replaces the fork server's session directory, which it does not need, by a file. A fork's
/// `tempdir(check = TRUE)` makes a new directory only where the present one is not a
/// directory; R's API has no other way to ask for one. If the name were left free, another user
/// could make a directory of that name, and forks would take it for theirs. R removes
/// the file when the server ends.
#[cfg(target_os = "linux")]
fn give_up_directory(path: &str) -> bool {
    std::fs::remove_dir_all(path).is_ok() && std::fs::File::create_new(path).is_ok()
}

/// Starts a program that will dial one of the profile's URLs, or another host's if no daemons are
/// set for the profile. `code` is what a fork evaluates instead; `NULL` if it must not be a fork. With
/// `awaited`, `wait_connected()` reports its failure. `respawn`: whether it is started again, see `respawn_code()`;
/// 3: it is in reserve, and is started when the queue asks for it.
fn launch(
    name: &str,
    path: &str,
    args: Vec<String>,
    output: bool,
    code: Nullable<String>,
    awaited: bool,
    respawn: i32,
) -> Result<()> {
    let (place, code) = (path.to_string(), code.into_option());
    let make = move |before| {
        let again = |text: &String| with_part(text, before);
        let code = code.as_ref().map(again);
        program(&place, args.iter().map(again), output, code.as_deref())
    };
    let respawn = match respawn {
        0 => Some(Respawn::Never),
        1 => Some(Respawn::Crashed),
        2 => Some(Respawn::Always),
        _ => None,
    };
    let failed = |e| Error::launch(format!("'{path}' cannot be started: {e}"));
    with_session(|session| {
        let Some(profile) = session.find(name) else {
            // A daemon of a host elsewhere may outlive this session, also before it has connected.
            let program = Program {
                attached: false,
                ..make(0)
            };
            process::start(&program, |_| {}).map_err(failed)?;
            return Ok(());
        };
        let host = session.host(name)?;
        let Some(respawn) = respawn else {
            host.reserve(make);
            return Ok(());
        };
        let child = host.keep(respawn, make).map_err(failed)?;
        if awaited {
            profile.children().borrow_mut().push(child);
        }
        Ok(())
    })
}

/// Waits until `n` daemons have connected since the profile was set up: `TRUE`. `FALSE` if R has
/// something to do first: call `serve_events`. A message if one of the processes launched has ended
/// without having connected.
fn wait_connected(name: &str, n: i32) -> Result<Robj> {
    let waited = with_session(|session| {
        let profile = session.profile(name)?;
        let host = session.host(name)?;
        let children = profile.children().borrow();
        let connected = || host.counts().cumulative >= n as u64;
        let failed = || children.iter().position(|c| c.exit().is_some());
        let waited = Bell::get().wait(None, Events::new(), || connected() || failed().is_some());
        if waited == Waited::Interrupted {
            return Ok(std::result::Result::Ok(false));
        }
        if connected() {
            drop(children);
            profile.children().borrow_mut().clear();
            return Ok(std::result::Result::Ok(true));
        }
        let i = failed().unwrap_or_default();
        let how = children[i]
            .exit()
            .map(|exit| exit.to_string())
            .unwrap_or_default();
        let said = children[i].stderr();
        let said = if said.trim().is_empty() {
            "(it wrote nothing to stderr)"
        } else {
            said.trim()
        };
        Ok(Err(format!(
            "daemon {} could not start ({how}):\n{said}",
            i + 1
        )))
    })?;
    Ok(waited.map_or_else(Robj::from, Robj::from))
}

/// A command that is running, or has ended.
struct Launched {
    job: Job,
    child: Arc<Child>,
}

impl Launched {
    fn has_failed(&self) -> bool {
        self.job.failure(&self.child).is_some()
    }
}

/// A job of `remote_jobs()` in R/remote-jobs.R: a list of `name`, `path`, `args`, `input` (or `NULL`) and `service` (or
/// `NULL`).
fn job(job: &List) -> Result<Job> {
    let text = |name| job.dollar(name).and_then(String::try_from);
    let option = |name| {
        let text = job.dollar(name).and_then(Nullable::<String>::try_from);
        text.map(Nullable::into_option)
    };
    Ok(Job {
        name: text("name")?,
        path: text("path")?,
        args: job.dollar("args").and_then(Vec::try_from)?,
        input: option("input")?,
        service: option("service")?,
        surroundings: None,
    })
}

/// The same, for a launch after `before` others: the daemon's stream is another part of that of the first.
fn again(job: &Job, before: u32) -> Job {
    let again = |text: &String| with_part(text, before);
    Job {
        args: job.args.iter().map(again).collect(),
        input: job.input.as_ref().map(again),
        ..job.clone()
    }
}

fn cannot_be_started(path: &str) -> impl Fn(std::io::Error) -> Error + '_ {
    move |e| Error::launch(format!("'{path}' cannot be started: {e}"))
}

/// Starts a command: see [`job`].
fn run_command(command: List) -> Result<Robj> {
    if forks::is_forked() {
        return Err(forks::error());
    }
    let job = job(&command)?;
    let child = command::run(&job, |_| {}).map_err(cannot_be_started(&job.path))?;
    Ok(ExternalPtr::new(Launched { job, child }).into())
}

/// Has a profile launch daemons by these commands as its queue asks, one command for each of its URLs. A launch is given
/// up after `seconds`.
fn launch_as_asked(profile: &str, commands: List, seconds: f64) -> Result<()> {
    let jobs = commands
        .values()
        .map(|command| Ok(remade(job(&List::try_from(command)?)?)))
        .collect::<Result<Vec<_>>>()?;
    with_session(|session| {
        let patience = Duration::from_secs_f64(seconds);
        session.host(profile)?.launch_as_asked(jobs, patience);
        Ok(())
    })
}

fn remade(job: Job) -> MakeJob {
    Box::new(move |before| again(&job, before))
}

/// Replaces the command of the `i`th URL, from 1, which has changed.
fn change_command(profile: &str, i: i32, command: List) -> Result<()> {
    let job = remade(job(&command)?);
    with_session(|session| {
        session.host(profile)?.change_job(i as usize - 1, job);
        Ok(())
    })
}

/// Starts a command that launches a daemon at the `i`th URL, from 1, of a profile that launches as its queue asks.
fn launch_now(profile: &str, i: i32, command: List) -> Result<Robj> {
    let job = job(&command)?;
    let child = with_session(|session| {
        let host = session.host(profile)?;
        host.launch_at(i as usize - 1, job.clone())
            .map_err(cannot_be_started(&job.path))
    })?;
    let child = child.ok_or_else(|| Error::launch("a daemon is being launched already"))?;
    Ok(ExternalPtr::new(Launched { job, child }).into())
}

/// What a user is to be told of launches, as the queue asked for them, that have failed since the last call.
fn launch_reports(profile: &str) -> Result<Vec<String>> {
    with_session(|session| {
        let host = session.find(profile).and_then(Profile::host);
        Ok(host.map(Host::launch_reports).unwrap_or_default())
    })
}

/// Waits until all commands have ended, one of them has failed, `cumulative` daemons have
/// connected since the profile was set up, or the time is over (unless `NULL`): `TRUE`. `FALSE` if R has
/// something to do first: call `serve_events`. `cumulative` is infinite if the daemons do not connect
/// to the profile.
fn wait_commands(
    profile: Robj,
    commands: List,
    cumulative: f64,
    seconds: Nullable<f64>,
) -> Result<bool> {
    let commands = commands
        .values()
        .map(ExternalPtr::<Launched>::try_from)
        .collect::<extendr_api::Result<Vec<_>>>()?;
    let connected = || {
        // SAFETY: it is an R object.
        let counts = unsafe {
            session::with_profile(profile.get(), |profile| {
                profile.and_then(Profile::host).map(|host| host.counts())
            })
        };
        match counts {
            Some(counts) => counts.cumulative as f64 >= cumulative,
            // The profile has been closed, so nobody else will connect.
            None => cumulative.is_finite(),
        }
    };
    let settled = || {
        commands.iter().any(|c| c.has_failed())
            || commands.iter().all(|c| c.child.exit().is_some())
            || connected()
    };
    let timeout = seconds.into_option().map(Duration::from_secs_f64);
    Ok(Bell::get().wait(timeout, Events::new(), settled) != Waited::Interrupted)
}

/// The state of a command. `failure`: why it has failed, for the user, or `NULL`.
fn command_state(command: ExternalPtr<Launched>) -> Result<List> {
    let failure = command.job.failure(&command.child);
    Ok(list!(
        running = command.child.exit().is_none(),
        failure = failure.map_or(Nullable::Null, Nullable::NotNull),
        pid = command.child.pid() as i32
    ))
}

functions! {
    fn start_fork_server(path, args);
    fn has_fork_server();
    fn launch(name, path, args, output, code, awaited, respawn);
    fn wait_connected(name, n);
    fn run_command(command);
    fn launch_as_asked(profile, commands, seconds);
    fn change_command(profile, i, command);
    fn launch_now(profile, i, command);
    fn launch_reports(profile);
    fn wait_commands(profile, commands, cumulative, seconds);
    fn command_state(command);
}
