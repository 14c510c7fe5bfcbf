//! Frames that wait until their socket takes them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use parking_lot::Mutex;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use smallvec::SmallVec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::descriptors::{SCARCE, SEND, SPACE, TRIES, descriptors, is_scarcity};
use crate::descriptors::out_of_the_way;
use crate::protocol::Frame;

/// Limit of frames in one system call.
const BATCH: usize = 32;

/// Sends as much of the first frames in the queue as one call takes. The `usize` of a frame is the number of
/// its bytes sent before.
fn send_batch(fd: impl AsFd, queue: &VecDeque<(Frame, usize)>) -> Result<usize, rustix::io::Errno> {
    let mut iov = [IoSlice::new(&[]); 2 * BATCH];
    let mut used = 0;
    for (frame, done) in queue.iter().take(BATCH) {
        // Descriptors go with the first byte of what is sent.
        if used > 0 && !frame.insets().is_empty() {
            break;
        }
        let of_head = (*done).min(frame.head.len());
        iov[used] = IoSlice::new(&frame.head[of_head..]);
        iov[used + 1] = IoSlice::new(&frame.body[*done - of_head..]);
        used += 2;
    }
    let pass = match queue.front() {
        Some((frame, 0)) => descriptors(frame.insets()),
        _ => SmallVec::new(),
    };
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !pass.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&pass));
    }
    let flags = SEND | SendFlags::DONTWAIT;
    rustix::net::sendmsg(fd, &iov[..used], &mut control, flags)
}

/// Frames that wait for their socket, which may not take them all at once.
pub struct Outbox {
    pub(super) fd: AsyncFd<OwnedFd>,
    queue: Mutex<VecDeque<(Frame, usize)>>,
    /// Set when the socket was full: see [`drain_when_writable`](Outbox::drain_when_writable).
    blocked: Notify,
}

impl Outbox {
    /// Must be called within the I/O runtime.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Outbox> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Outbox {
            fd: crate::sys::io_thread::register(out_of_the_way(fd))?,
            queue: Mutex::default(),
            blocked: Notify::new(),
        })
    }

    pub(super) fn post(&self, frame: Frame) {
        self.queue.lock().push_back((frame, 0));
    }

    pub(super) fn flush(&self) {
        if self.try_flush().is_err() {
            self.blocked.notify_one();
        }
    }

    /// Writes until the queue is empty, the socket is full (`WouldBlock`), or the system has no memory for it
    /// (`OutOfMemory`). When the peer is gone, or a frame cannot be sent, the queue is emptied and the link
    /// ends; the reader will notice.
    fn try_flush(&self) -> io::Result<()> {
        let mut queue = self.queue.lock();
        while !queue.is_empty() {
            let passing = matches!(queue.front(), Some((frame, 0)) if !frame.insets().is_empty());
            match send_batch(&self.fd, &queue) {
                Ok(mut sent) => {
                    while let Some((frame, done)) = queue.front_mut() {
                        let left = frame.head.len() + frame.body.len() - *done;
                        if sent < left {
                            *done += sent;
                            break;
                        }
                        sent -= left;
                        queue.pop_front();
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
                // Too many descriptors are in flight.
                Err(rustix::io::Errno::TOOMANYREFS) if passing => {
                    if let Some((frame, _)) = queue.pop_front() {
                        queue.push_front((frame.plain(), 0));
                    }
                }
                Err(e) if is_scarcity(e) => return Err(io::ErrorKind::OutOfMemory.into()),
                Err(_) => {
                    queue.clear();
                    self.shutdown();
                }
            }
        }
        Ok(())
    }

    /// Runs on the I/O thread for as long as the link lives.
    pub(super) async fn drain_when_writable(&self) {
        loop {
            self.blocked.notified().await;
            let mut tries = 0;
            let write = || self.fd.async_io(Interest::WRITABLE, |_| self.try_flush());
            while let Err(e) = write().await {
                if e.kind() != io::ErrorKind::OutOfMemory || tries == TRIES {
                    return;
                }
                tries += 1;
                tokio::time::sleep(SCARCE).await;
            }
        }
    }

    pub(super) fn shutdown(&self) {
        // Not only closed: a process forked by user code may hold a copy.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }
}
