//! The monitor: tells other processes of the same user what this session's hosts do.
//!
//! The session listens at a Unix socket (see `place`) from its first compute profile to its end. The I/O thread answers,
//! so the main thread may be busy, or blocked in a wait. A monitor that attaches gets lines of JSON, a [`Snapshot`] each:
//! one at once, then one when something has changed, at most every [`INTERVAL`]. A monitor sends nothing: what it sends
//! ends its connection.
//!
//! A snapshot is made once for all monitors. One that does not read fast enough misses snapshots: it is sent the
//! newest when its socket has room again.
//!
//! Without a monitor, an event costs one relaxed load: see [`changed`].

#[cfg(unix)]
mod client;
#[cfg(unix)]
mod place;
#[cfg_attr(windows, path = "no_service.rs")]
mod service;
#[cfg_attr(windows, allow(dead_code))] // nothing makes snapshots there
mod snapshot;

use service::Service;
pub use service::{Monitor, sessions};
pub use snapshot::{
    Daemon, FORMAT, Failure, Memory, Past, Profile, Running, Snapshot, Tasks, Throughput,
};

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Host, Shared};

/// The shortest time between two snapshots.
pub const INTERVAL: Duration = Duration::from_millis(250);

/// Limit of the monitors that are attached at once.
pub const MOST_MONITORS: usize = 16;

/// Number of monitors that are attached.
static ATTACHED: AtomicUsize = AtomicUsize::new(0);

/// Something has changed since the last snapshot. Only told while a monitor is attached.
static CHANGED: Notify = Notify::const_new();

/// What came of waiting for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A line of JSON, without its end.
    Snapshot(String),
    /// The session does not let us attach: why not.
    Refused(String),
    /// The session has ended.
    Ended,
    /// The given time was over.
    TimedOut,
    /// The caller's [`Attention`](crate::sys::Attention) has ended the wait.
    Interrupted,
}

/// A session of this user that monitors can attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its process id.
    pub pid: u32,
    /// Its command line, as far as the system tells; may be empty.
    pub command: String,
}

static STATE: Mutex<State> = Mutex::new(State {
    hosts: Vec::new(),
    service: None,
});

struct State {
    /// By the names of their profiles.
    hosts: Vec<(String, Weak<Shared>)>,
    /// Of the first profile; also if it could not be had.
    service: Option<Result<Service, String>>,
}

/// A host has changed. From any thread, under no lock of a host.
pub(super) fn changed() {
    // Relaxed: the change was made under the lock that a snapshot takes. If this sees no monitor, then one that attaches
    // at the same time will take the lock later, and its first snapshot will have the change.
    if ATTACHED.load(Ordering::Relaxed) > 0 {
        CHANGED.notify_one();
    }
}

/// Shows a host to monitors, as the profile of this name, in place of one that had it. The first call makes the session's
/// socket. If there can be none, [`unavailable`] says why, and the host is none the worse.
pub fn watch(name: &str, host: &Host) {
    let mut state = STATE.lock();
    state.hosts.retain(|(known, _)| known != name);
    state.hosts.push((name.into(), Arc::downgrade(&host.0)));
    state.hosts.sort_by(|a, b| a.0.cmp(&b.0));
    if state.service.is_none() {
        state.service = Some(Service::start().map_err(|e| e.to_string()));
    }
    drop(state);
    changed();
}

/// No longer shows the profile of this name.
pub fn forget(name: &str) {
    STATE.lock().hosts.retain(|(known, _)| known != name);
    changed();
}

/// Whether this session has a profile to show.
pub fn is_shown() -> bool {
    !STATE.lock().hosts.is_empty()
}

/// Why monitors cannot attach to this session, if it is so.
pub fn unavailable() -> Option<String> {
    match &STATE.lock().service {
        Some(Err(e)) => Some(e.clone()),
        _ => None,
    }
}

/// The session is over: monitors see it end, and its socket is removed. Waits for the I/O thread, so it must not be called
/// there.
pub fn close() {
    let mut state = STATE.lock();
    state.hosts.clear();
    let service = state.service.take();
    drop(state);
    if let Some(Ok(service)) = service {
        service.stop();
    }
}

/// A process that was started here is gone; it may have been a session, and have left its socket behind.
pub(super) fn process_gone(pid: u32) {
    service::remove_stale(pid);
    // It may be known now why a daemon was lost.
    changed();
}
