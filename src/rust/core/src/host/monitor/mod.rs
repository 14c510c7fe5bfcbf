//! The monitor: tells other processes of the same user what this session's hosts do.
//!
//! The session listens at a Unix socket (see [`place`]) from its first compute profile to its end. The I/O thread answers,
//! so the main thread may be busy, or blocked in a wait. A monitor that attaches gets lines of JSON, a [`Snapshot`] each:
//! one at once, then one when something has changed, at most every [`INTERVAL`]. A monitor sends nothing: what it sends
//! ends its connection.
//!
//! A snapshot is made once for all monitors. One that does not read fast enough misses snapshots: it is sent the
//! newest when its socket has room again.
//!
//! Without a monitor, an event costs one relaxed load: see [`changed`].

mod client;
mod place;
mod snapshot;

pub use client::{Heard, Monitor};
pub use place::{Session, sessions};
pub use snapshot::{
    Daemon, FORMAT, Failure, Memory, Past, Profile, Running, Snapshot, Tasks, Throughput,
};

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use self::place::Socket;
use super::{Host, Shared};
use crate::descriptors::out_of_the_way;
use crate::sys::io_thread;
use crate::transport::unix;

/// The shortest time between two snapshots.
pub const INTERVAL: Duration = Duration::from_millis(250);

/// Limit of the monitors that are attached at once.
pub const MOST_MONITORS: usize = 16;

/// How long the next snapshot may wait, without a change, while the throughput of the last is not zero.
const FADING: Duration = Duration::from_secs(1);

/// Time to rest after a connection could not be accepted, most likely for want of descriptors.
const CANNOT_ACCEPT: Duration = Duration::from_millis(100);

/// Number of monitors that are attached.
static ATTACHED: AtomicUsize = AtomicUsize::new(0);

/// Something has changed since the last snapshot. Only told while a monitor is attached.
static CHANGED: Notify = Notify::const_new();

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

struct Service {
    /// Removed from the file system when this is dropped.
    _socket: Socket,
    serving: JoinHandle<()>,
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
        service.serving.abort();
        let _ = io_thread::handle().block_on(service.serving);
    }
}

/// A process that was started here is gone; it may have been a session, and have left its socket behind.
pub(super) fn process_gone(pid: u32) {
    place::remove_stale(pid);
    // It may be known now why a daemon was lost.
    changed();
}

impl Service {
    fn start() -> io::Result<Service> {
        let (listener, socket) = place::listen()?;
        let listener = std::os::unix::net::UnixListener::from(out_of_the_way(listener.into()));
        listener.set_nonblocking(true)?;
        let _inside = io_thread::handle().enter();
        let listener = UnixListener::from_std(listener)?;
        Ok(Service {
            _socket: socket,
            serving: io_thread::handle().spawn(serve(listener)),
        })
    }
}

/// Accepts monitors and makes snapshots for them. They are let go when this ends.
async fn serve(listener: UnixListener) {
    let mut monitors = JoinSet::new();
    let (newest, _) = watch::channel(Bytes::new());
    let mut last = Instant::now();
    let mut fading = false;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Some(monitor) = admit(stream, monitors.len()) {
                        let newest = newest.subscribe();
                        ATTACHED.fetch_add(1, Ordering::SeqCst);
                        monitors.spawn(monitor.attend(newest));
                        CHANGED.notify_one();
                    }
                }
                Err(_) => tokio::time::sleep(CANNOT_ACCEPT).await,
            },
            Some(_) = monitors.join_next(), if !monitors.is_empty() => {
                if monitors.is_empty() {
                    newest.send_replace(Bytes::new());
                }
            }
            () = due(last, fading), if !monitors.is_empty() => {
                let snapshot = Snapshot::take(&hosts());
                fading = snapshot.is_fading();
                newest.send_replace(snapshot.to_line());
                last = Instant::now();
            }
        }
    }
}

/// Waits until the next snapshot is to be made.
async fn due(last: Instant, fading: bool) {
    tokio::time::sleep_until(last + INTERVAL).await;
    if fading {
        let _ = tokio::time::timeout_at(last + FADING, CHANGED.notified()).await;
    } else {
        CHANGED.notified().await;
    }
}

fn hosts() -> Vec<(String, Arc<Shared>)> {
    let state = STATE.lock();
    let hosts = state.hosts.iter();
    hosts
        .filter_map(|(name, host)| Some((name.clone(), host.upgrade()?)))
        .filter(|(_, host)| !host.is_closed())
        .collect()
}

/// Takes in a process that has connected, or tells it in one line why not.
fn admit(stream: UnixStream, attached: usize) -> Option<Attached> {
    let stream = stream.into_std().ok()?;
    let refused = match unix::check_peer(&stream) {
        Err(_) => Some("this session belongs to another user".to_owned()),
        Ok(()) if attached >= MOST_MONITORS => {
            Some(format!("{attached} monitors are attached already"))
        }
        Ok(()) => None,
    };
    if let Some(reason) = refused {
        // Nothing has been sent yet, so there is room for a line.
        let _ = unix::send_all(&stream, &snapshot::refusal(&reason), &[], None);
        return None;
    }
    // Dropped also if it fails, and then it is not counted yet.
    UnixStream::from_std(stream).ok().map(Attached)
}

/// A monitor. Its connection ends when this is dropped, also if a process forked from this one holds it.
struct Attached(UnixStream);

impl Attached {
    async fn attend(self, newest: watch::Receiver<Bytes>) {
        let _counted = Counted;
        tokio::select! {
            () = self.tell(newest) => {}
            () = self.hear() => {}
        }
    }

    /// Sends snapshots until the connection ends.
    async fn tell(&self, mut newest: watch::Receiver<Bytes>) {
        while newest.changed().await.is_ok() {
            let snapshot = newest.borrow_and_update().clone();
            let mut rest = &snapshot[..];
            while !rest.is_empty() {
                if self.0.writable().await.is_err() {
                    return;
                }
                match self.0.try_write(rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        }
    }

    /// Waits until the monitor hangs up, or says something.
    async fn hear(&self) {
        while self.0.readable().await.is_ok() {
            match self.0.try_read(&mut [0]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

/// One of [`ATTACHED`], for as long as this lives.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        ATTACHED.fetch_sub(1, Ordering::SeqCst);
    }
}
