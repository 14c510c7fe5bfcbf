//! The daemon: dials the host, serves the link, and ends when a limit is reached or the link is lost.

mod attempts;
mod evaluate;
mod kept;
mod limits;
mod payload;
mod settings;
#[cfg_attr(windows, path = "watched_windows.rs")]
mod watched;

use std::sync::Arc;

use extendr_ffi::{R_CallMethodDef, SEXP};
use mirai_core::process::line;
use mirai_core::transport::Address;
use mirai_core::worker::output::{Keep, Output};
use mirai_core::worker::{AutoExit, DialError, Worker};

use crate::error::{Error, Result};
use crate::tls::trust;
use crate::{forks, r};
#[cfg(target_os = "linux")]
pub(crate) use evaluate::within_r;
use evaluate::{serve, take_snapshot, State};
use limits::{End, Limits};
use settings::{Settings, Streams};
use watched::RSession;

pub(crate) fn routines() -> Vec<R_CallMethodDef> {
    let mut all = evaluate::routines();
    all.extend(attempts::routines());
    all.push(r::routine(c"run_daemon", run_daemon as *const (), 2));
    all
}

/// `.Call(run_daemon, url, settings)`: the number of [`End`].
unsafe extern "C-unwind" fn run_daemon(url: SEXP, settings: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the arguments. Nothing else is alive when an
    // error is raised.
    unsafe {
        if forks::is_forked_from_session() {
            // It shares R's session directory, and a host would have it removed with this process.
            forks::error().raise();
        }
        match run(Settings::read(url, settings)) {
            Ok(end) => r::Rf_ScalarInteger(end as i32),
            Err(error) => error.raise(),
        }
    }
}

fn run(mut settings: Settings) -> Result<End> {
    // SAFETY: on the main thread, and no other thread of this crate uses the line yet.
    unsafe { line::find() };
    line::tell_directory(settings.dial.tempdir.as_ref());
    let address: Address = settings.url.parse().map_err(Error::connect)?;
    let trust = settings.tls.as_deref().map(trust).transpose();
    settings.dial.trust =
        trust.map_err(|e| Error::connect(format!("'tls' cannot be used: {e}")))?;
    let keep = match settings.streams {
        // Somebody may have a prompt there, to whom no other task's lines are shown.
        Streams::Shown if settings.dial.interruptible => None,
        Streams::Shown => Some(Keep::Shown),
        Streams::Discarded => Some(Keep::LastWords),
        Streams::Kept => Some(Keep::Tasks),
    };
    let not_kept = |e| Error::other(format!("output cannot be kept: {e}"));
    keep.map_or(Ok(()), Output::can_be_kept).map_err(not_kept)?;
    let runtime = Arc::new(RSession::new(settings.dial.tempdir.clone().into()));
    watched::obey_the_watcher();
    watched::sleep_once();
    // Taken before any task, kept across reconnections.
    let mut snapshot =
        take_snapshot().ok_or_else(|| Error::other("the session's state cannot be read"))?;
    let mut limits = Limits::new(&settings);
    let before = State::Daemon.set();
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
            Err(e) => break Err(Error::connect(e)),
        };
        line::tell_connected();
        // After a reconnection the host may present another certificate for a while.
        settings.dial.insist = true;
        // Not before: until here, the process that launched this one reads failures from stderr.
        let output = match keep.map(Output::begin).transpose() {
            Ok(output) => output,
            Err(e) => break Err(not_kept(e)),
        };
        if let Some(output) = &output {
            worker.tell_last_words(output);
        }
        let ended = serve(
            &mut worker,
            &settings,
            output.as_ref(),
            &mut limits,
            &mut snapshot,
        );
        match ended {
            End::Lost if settings.dial.autoexit == AutoExit::Never && !limits.told_to_end => {}
            End::Lost => break Ok(End::Lost),
            end => {
                worker.leave();
                break Ok(end);
            }
        }
    };
    before.set();
    end
}
