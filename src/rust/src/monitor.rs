//! Monitors: this session as others see it, and the sessions that this one watches.

use std::cell::RefCell;
use std::io;
use std::time::{Duration, Instant};

use extendr_api::prelude::*;
use extendr_ffi::{R_CallMethodDef, R_NilValue, SEXP};
use mirai_core::host::monitor::{self, Heard, Monitor, Profile, Snapshot};
use rustc_hash::FxHashMap;

use crate::error::{Class, Error, Result};
use crate::events::{self, Events};
use crate::functions::functions;
use crate::session::with_session;
use crate::{error, promises, r};

pub(crate) fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"monitor_next", monitor_next as *const (), 3),
        r::routine(c"monitor_when_ready", monitor_when_ready as *const (), 3),
    ]
}

/// What this session watches, by numbers. Not owned by a frame: R may leave a wait by a long jump.
#[derive(Default)]
struct Attached {
    monitors: FxHashMap<i32, Monitor>,
    last: i32,
}

thread_local! {
    /// Only R's main thread uses it.
    static ATTACHED: RefCell<Attached> = RefCell::default();
}

/// The sessions of this user that can be watched: their process ids and command lines.
fn monitor_sessions() -> Result<Robj> {
    let sessions = monitor::sessions();
    let pids: Vec<i32> = sessions.iter().map(|s| s.pid as i32).collect();
    let commands: Vec<&str> = sessions.iter().map(|s| s.command.as_str()).collect();
    Ok(list!(pid = pids, command = commands).into())
}

/// Whether this session has a profile with daemons.
///
/// # Errors
/// It has, but monitors cannot attach.
fn monitor_own() -> Result<bool> {
    with_session(|_| match monitor::unavailable() {
        Some(reason) if monitor::is_shown() => Err(Error::other(format!(
            "this session cannot be watched: {reason}"
        ))),
        _ => Ok(monitor::is_shown()),
    })
}

/// Attaches to the session of a process id. Returns the number by which this session knows it.
fn monitor_attach(pid: i32) -> Result<i32> {
    let attached =
        u32::try_from(pid).map_or_else(|_| Err(io::ErrorKind::NotFound.into()), Monitor::attach);
    let monitor = attached.map_err(|e| {
        let why = match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "it is no running session of yours that has had daemons set".into()
            }
            _ => e.to_string(),
        };
        Error::connect(format!("cannot watch process {pid}: {why}"))
    })?;
    ATTACHED.with_borrow_mut(|attached| {
        attached.last += 1;
        attached.monitors.insert(attached.last, monitor);
        Ok(attached.last)
    })
}

/// Ends what [`monitor_attach`] has begun.
fn monitor_detach(number: i32) -> Result<()> {
    ATTACHED.with_borrow_mut(|attached| attached.monitors.remove(&number));
    Ok(())
}

fn hear(number: i32, newest: bool, left: Option<Duration>) -> io::Result<Heard> {
    ATTACHED.with_borrow_mut(|attached| match attached.monitors.get_mut(&number) {
        Some(monitor) => monitor.next(newest, left, Events::new()),
        None => Ok(Heard::Ended),
    })
}

/// `.Call(monitor_next, number, newest, timeout)`: waits, at most `timeout` milliseconds, for a snapshot and returns it as a
/// line of JSON; with `newest` the last of several. `NULL` if there is none in time, `FALSE` if the session has ended.
unsafe extern "C-unwind" fn monitor_next(number: SEXP, newest: SEXP, timeout: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the arguments. What is owned has been dropped when R is served,
    // and when an error is raised; a string is lost only if R has no memory for it.
    unsafe {
        let number = r::as_number(number).unwrap_or_default() as i32;
        let newest = r::as_flag(newest).unwrap_or_default();
        let timeout = r::as_number(timeout).unwrap_or_default().max(0.0) / 1000.0;
        let timeout = Duration::try_from_secs_f64(timeout).ok();
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            match hear(number, newest, left) {
                Ok(Heard::Snapshot(line)) => return r::string(&line),
                Ok(Heard::Ended) => return r::Rf_ScalarLogical(0),
                Ok(Heard::TimedOut) => return R_NilValue,
                Ok(Heard::Interrupted) => events::serve(),
                Ok(Heard::Refused(reason)) => error::raise(
                    Class::Connect,
                    format!("the session cannot be watched: {reason}"),
                ),
                Err(e) => error::raise(Class::Connect, e),
            }
        }
    }
}

/// `.Call(monitor_when_ready, number, functions, loop)`: has `settle_promise(functions, 0)` called from the event loop of
/// that number when `monitor_next` has something to return.
unsafe extern "C-unwind" fn monitor_when_ready(
    number: SEXP,
    functions: SEXP,
    event_loop: SEXP,
) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the arguments; nothing is owned when an error is raised.
    unsafe {
        let number = r::as_number(number).unwrap_or_default() as i32;
        let event_loop = r::as_number(event_loop).unwrap_or_default() as i32;
        let wake = promises::waker(functions, event_loop);
        let watched = ATTACHED.with_borrow(|attached| match attached.monitors.get(&number) {
            Some(monitor) => monitor.when_ready(wake),
            None => Ok(()),
        });
        if let Err(e) = watched {
            error::raise(Class::Connect, e);
        }
        R_NilValue
    }
}

/// A snapshot as R sees it: lists, of which the tables are lists of columns.
fn monitor_read(line: &str) -> Result<Robj> {
    let snapshot = Snapshot::parse(line)
        .map_err(|e| Error::connect(format!("the session has sent what is not a snapshot: {e}")))?;
    let names: Vec<&str> = snapshot.profiles.iter().map(|p| p.name.as_str()).collect();
    let mut profiles = List::from_values(snapshot.profiles.iter().map(profile));
    profiles.set_names(names).map_err(Error::other)?;
    Ok(list!(
        pid = snapshot.pid as i32,
        host = snapshot.host,
        time = snapshot.time,
        memory = snapshot.memory.map_or(f64::na(), |n| n as f64),
        profiles = profiles,
        profiles_more = snapshot.profiles_more as f64
    )
    .into())
}

fn profile(profile: &Profile) -> Robj {
    let tasks = &profile.tasks;
    let states = [
        tasks.queued,
        tasks.running,
        tasks.done,
        tasks.failed,
        tasks.cancelled,
        tasks.timed_out,
        tasks.lost,
    ];
    let running = &profile.running;
    let failures = &profile.failures;
    list!(
        urls = profile.urls.iter().map(String::as_str).collect::<Vec<_>>(),
        tasks = states.map(|n| n as f64).to_vec(),
        throughput = [profile.throughput.last_1s, profile.throughput.last_10s],
        queue = [
            profile.queue.bytes as f64,
            profile.queue.peak as f64,
            profile.queue.capacity.map_or(f64::INFINITY, |n| n as f64)
        ],
        running = list!(
            id = numbers(running, |t| t.id),
            name = texts(running, |t| t.name.as_deref()),
            daemon = numbers(running, |t| Some(t.daemon)),
            started = running.iter().map(|t| t.started).collect::<Vec<_>>()
        ),
        running_more = profile.running_more as f64,
        daemons = daemons(&profile.daemons),
        daemons_more = profile.daemons_more as f64,
        gone = daemons(&profile.gone),
        failures = list!(
            id = numbers(failures, |t| t.id),
            name = texts(failures, |t| t.name.as_deref()),
            state = texts(failures, |t| Some(t.state.as_str())),
            daemon = numbers(failures, |t| t.daemon),
            ended = failures.iter().map(|t| t.ended).collect::<Vec<_>>(),
            error = texts(failures, |t| t.error.as_deref())
        )
    )
    .into()
}

fn daemons(rows: &[monitor::Daemon]) -> List {
    let column = |f: fn(&monitor::Daemon) -> f64| rows.iter().map(f).collect::<Vec<_>>();
    list!(
        daemon = numbers(rows, |d| Some(d.daemon)),
        host = texts(rows, |d| d.host.as_deref()),
        pid = numbers(rows, |d| d.pid),
        state = texts(rows, |d| Some(d.state.as_str())),
        since = column(|d| d.since),
        tasks = column(|d| d.tasks as f64),
        busy = column(|d| d.busy),
        memory = column(|d| d.memory.map_or(f64::na(), |n| n as f64)),
        reason = texts(rows, |d| d.reason.as_deref())
    )
}

fn numbers<T>(rows: &[T], number: impl Fn(&T) -> Option<u32>) -> Vec<Option<i32>> {
    let number = |row| number(row).and_then(|n| i32::try_from(n).ok());
    rows.iter().map(number).collect()
}

fn texts<T>(rows: &[T], text: impl Fn(&T) -> Option<&str>) -> Strings {
    let text = |row| text(row).map_or_else(Rstr::na, Rstr::from);
    Strings::from_values(rows.iter().map(text))
}

/// Random characters that nobody can guess, for the address of the page.
fn monitor_token() -> Result<String> {
    Ok(mirai_core::sys::token())
}

/// Rows and columns of the terminal to which this process writes; 0 if there is none.
fn terminal_size() -> Result<Vec<i32>> {
    let (rows, columns) = mirai_core::sys::terminal_size().unwrap_or_default();
    Ok(vec![rows.into(), columns.into()])
}

functions! {
    fn monitor_sessions();
    fn monitor_own();
    fn monitor_attach(pid);
    fn monitor_detach(number);
    fn monitor_read(line);
    fn monitor_token();
    fn terminal_size();
}
