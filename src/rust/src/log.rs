//! The log of tasks and daemons as R sees it: lists of columns, of which R/log.R makes data frames.

use std::time::{Duration, SystemTime};

use extendr_api::prelude::*;
use mirai_core::host::Log;

use crate::error::Result;
use crate::functions::functions;
use crate::session::with_session;

/// Seconds since 1970 of a time in a log; NA if there is none.
fn seconds<R>(log: &Log<R>, time: Option<Duration>) -> f64 {
    let since = |t: Duration| (log.origin + t).duration_since(SystemTime::UNIX_EPOCH).ok();
    time.and_then(since).map_or_else(na, |t| t.as_secs_f64())
}

fn na() -> f64 {
    f64::na()
}

fn or_na<T>(value: Option<T>, number: impl Fn(T) -> f64) -> f64 {
    value.map_or_else(na, number)
}

/// Columns of the task log of a profile, the last `n` rows; `NULL` if no daemons are set.
fn log_of_tasks(name: &str, n: f64) -> Result<Robj> {
    let log = with_session(|session| {
        let host = session.find(name).and_then(|p| p.host());
        // A float that is too large becomes the largest integer.
        Ok(host.map(|host| host.task_log(n as usize)))
    })?;
    let Some(log) = log else {
        return Ok(().into());
    };
    let rows = &log.rows;
    let times = |f: &dyn Fn(usize) -> Option<Duration>| -> Vec<f64> {
        (0..rows.len()).map(|i| seconds(&log, f(i))).collect()
    };
    let names: Vec<Rstr> = rows
        .iter()
        .map(|row| text(row.label.name.as_deref()))
        .collect();
    let errors: Vec<Rstr> = rows.iter().map(|row| text(row.error.as_deref())).collect();
    let states: Vec<&str> = rows.iter().map(|row| row.state.name()).collect();
    let daemons: Vec<Option<i32>> = rows.iter().map(|r| r.peer.map(|p| p as i32)).collect();
    let ids: Vec<i32> = rows.iter().map(|row| row.label.number as i32).collect();
    let attempts: Vec<i32> = rows.iter().map(|row| row.attempts as i32).collect();
    let spent = rows.iter().map(|r| or_na(r.spent, |t| t.as_secs_f64()));
    let bytes_in = rows.iter().map(|row| row.bytes_in as f64);
    let bytes_out = rows.iter().map(|row| or_na(row.bytes_out, |n| n as f64));
    Ok(list!(
        id = ids,
        name = Strings::from_values(names),
        state = states,
        daemon = daemons,
        submitted = times(&|i| Some(rows[i].submitted)),
        started = times(&|i| rows[i].started),
        ended = times(&|i| rows[i].ended),
        spent = spent.collect::<Vec<_>>(),
        attempts = attempts,
        bytes_in = bytes_in.collect::<Vec<_>>(),
        bytes_out = bytes_out.collect::<Vec<_>>(),
        error = Strings::from_values(errors)
    )
    .into())
}

/// Columns of the daemon log of a profile; `NULL` if no daemons are set.
fn log_of_daemons(name: &str) -> Result<Robj> {
    let log = with_session(|session| {
        let host = session.find(name).and_then(|p| p.host());
        Ok(host.map(|host| host.daemon_log()))
    })?;
    let Some(log) = log else {
        return Ok(().into());
    };
    let rows = &log.rows;
    let hosts: Vec<Rstr> = rows
        .iter()
        .map(|row| text(Some(row.host.as_str()).filter(|host| !host.is_empty())))
        .collect();
    let reasons: Vec<Rstr> = rows.iter().map(|row| text(row.reason.as_deref())).collect();
    let daemons: Vec<i32> = rows.iter().map(|row| row.row.peer as i32).collect();
    let urls: Vec<&str> = rows.iter().map(|row| row.url.as_str()).collect();
    let pids: Vec<Option<i32>> = rows
        .iter()
        .map(|row| i32::try_from(row.pid).ok().filter(|pid| *pid > 0))
        .collect();
    let states: Vec<&str> = rows.iter().map(|row| row.row.state.name()).collect();
    // Since when it is in this state, as far as that is known: connected, or gone.
    let since = rows
        .iter()
        .map(|row| seconds(&log, row.row.ended.or(Some(row.row.joined))));
    let tasks = rows.iter().map(|row| row.row.tasks as f64);
    let busy = rows.iter().map(|row| row.row.busy.as_secs_f64());
    let memory = rows.iter().map(|row| or_na(row.memory, |n| n as f64));
    Ok(list!(
        daemon = daemons,
        url = urls,
        host = Strings::from_values(hosts),
        pid = pids,
        state = states,
        since = since.collect::<Vec<_>>(),
        tasks = tasks.collect::<Vec<_>>(),
        busy = busy.collect::<Vec<_>>(),
        memory = memory.collect::<Vec<_>>(),
        reason = Strings::from_values(reasons)
    )
    .into())
}

/// Tasks of a profile that are over, by how they ended: done, failed, cancelled, timed out, lost; `NULL` if no daemons
/// are set.
fn tally_of_tasks(name: &str) -> Result<Robj> {
    let tally = with_session(|session| {
        let host = session.find(name).and_then(|p| p.host());
        Ok(host.map(|host| host.tally()))
    })?;
    Ok(tally.map_or_else(
        || ().into(),
        |t| {
            let counts = [t.done, t.failed, t.canceled, t.timed_out, t.lost];
            counts.map(|n| n as f64).to_vec().into()
        },
    ))
}

fn text(text: Option<&str>) -> Rstr {
    text.map_or_else(Rstr::na, Rstr::from)
}

functions! {
    fn log_of_tasks(name, n);
    fn log_of_daemons(name);
    fn tally_of_tasks(name);
}
