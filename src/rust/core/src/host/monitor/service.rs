//! Answers monitors, on the I/O thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::super::Shared;
pub use super::client::Monitor;
pub(super) use super::place::remove_stale;
pub use super::place::sessions;
use super::place::{self, Socket};
use super::snapshot::{self, Snapshot};
use super::{ATTACHED, CHANGED, INTERVAL, MOST_MONITORS, STATE};
use crate::descriptors::out_of_the_way;
use crate::sys::io_thread;
use crate::transport::unix;

/// How long the next snapshot may wait, without a change, while the throughput of the last is not zero.
const FADING: Duration = Duration::from_secs(1);

/// Time to rest after a connection could not be accepted, most likely for want of descriptors.
const CANNOT_ACCEPT: Duration = Duration::from_millis(100);

pub(super) struct Service {
    /// Removed from the file system when this is dropped.
    _socket: Socket,
    serving: JoinHandle<()>,
}

impl Service {
    pub(super) fn start() -> io::Result<Service> {
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

    /// Lets all monitors go.
    pub(super) fn stop(self) {
        self.serving.abort();
        let _ = io_thread::handle().block_on(self.serving);
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
