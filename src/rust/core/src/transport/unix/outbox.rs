//! Frames that wait until their socket takes them.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use smallvec::SmallVec;
use tokio::io::Interest;
#[cfg(not(target_os = "linux"))]
use tokio::io::unix::AsyncFd;

use super::descriptors::{SCARCE, SEND, SPACE, TRIES, descriptors, is_scarcity};
use crate::descriptors::out_of_the_way;
use crate::protocol::Frame;
#[cfg(target_os = "linux")]
use crate::sys::io_thread::register_for;
use crate::sys::locks::{Mutex, Notify};

/// Limit of frames in one system call.
const BATCH: usize = 32;

/// Frames, and for each the number of its bytes sent before.
type Queue = VecDeque<(Frame, usize)>;

/// Where an [`Outbox`] sends to: a socket, or that of the model.
pub trait Sink: Sync {
    /// Sends as much of the first frames in the queue as one call takes. Returns the number of bytes.
    fn send_batch(&self, queue: &Queue) -> Result<usize, Errno>;

    /// Ends the link.
    fn shutdown(&self);

    /// Calls `write` until it says something else than `WouldBlock`: now, and whenever there is room again.
    fn when_writable(
        &self,
        write: impl FnMut() -> io::Result<()> + Send,
    ) -> impl Future<Output = io::Result<()>> + Send;
}

/// A socket. On Linux, the I/O thread watches it only while it is full: each message that the peer has read would make
/// it writable again, and wake that thread for nothing.
#[cfg(target_os = "linux")]
pub(super) type Socket = OwnedFd;
/// A socket, which the I/O thread watches.
#[cfg(not(target_os = "linux"))]
pub(super) type Socket = AsyncFd<OwnedFd>;

#[cfg(target_os = "linux")]
fn socket(fd: OwnedFd) -> io::Result<Socket> {
    Ok(fd)
}

#[cfg(not(target_os = "linux"))]
fn socket(fd: OwnedFd) -> io::Result<Socket> {
    crate::sys::io_thread::register(fd)
}

impl Sink for Socket {
    fn send_batch(&self, queue: &Queue) -> Result<usize, Errno> {
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
        rustix::net::sendmsg(self, &iov[..used], &mut control, flags)
    }

    fn shutdown(&self) {
        // Not only closed: a process forked by user code may hold a copy.
        let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Both);
    }

    async fn when_writable(
        &self,
        mut write: impl FnMut() -> io::Result<()> + Send,
    ) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        let watched = &register_for(self.as_fd(), Interest::WRITABLE)?;
        #[cfg(not(target_os = "linux"))]
        let watched = self;
        watched.async_io(Interest::WRITABLE, |_| write()).await
    }
}

/// Frames that wait for their socket, which may not take them all at once.
pub struct Outbox<S = Socket> {
    pub(super) sink: S,
    queue: Mutex<Queue>,
    /// Set when the socket was full: see [`drain_when_writable`](Outbox::drain_when_writable).
    blocked: Notify,
}

impl Outbox {
    /// Must be called within the I/O runtime.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Outbox> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        socket(out_of_the_way(fd)).map(Outbox::to)
    }
}

impl<S: Sink> Outbox<S> {
    fn to(sink: S) -> Outbox<S> {
        Outbox {
            sink,
            queue: Mutex::default(),
            blocked: Notify::new(),
        }
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
            match self.sink.send_batch(&queue) {
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
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
                // Too many descriptors are in flight.
                Err(Errno::TOOMANYREFS) if passing => {
                    if let Some((frame, _)) = queue.pop_front() {
                        queue.push_front((frame.plain(), 0));
                    }
                }
                Err(e) if is_scarcity(e) => return Err(io::ErrorKind::OutOfMemory.into()),
                Err(_) => {
                    queue.clear();
                    self.sink.shutdown();
                }
            }
        }
        Ok(())
    }

    /// Runs on the I/O thread for as long as the link lives. It ends if frames cannot be sent, or not be waited for.
    pub(super) async fn drain_when_writable(&self) -> io::Error {
        loop {
            self.blocked.notified().await;
            let mut tries = 0;
            let write = || self.sink.when_writable(|| self.try_flush());
            while let Err(e) = write().await {
                if e.kind() != io::ErrorKind::OutOfMemory || tries == TRIES {
                    return e;
                }
                tries += 1;
                tokio::time::sleep(SCARCE).await;
            }
        }
    }

    pub(super) fn shutdown(&self) {
        self.sink.shutdown();
    }
}

/// The outbox as loom explores it, with almost every order in which those who post, the I/O thread and the peer can meet:
/// `tools/sanitize loom`.
#[cfg(all(test, mirai_loom))]
mod model {
    use std::pin::pin;
    use std::task::Poll;

    use loom::future::block_on;
    use loom::thread;

    use super::*;
    use crate::protocol::Control;

    /// A socket that takes one frame. The peer makes room for the next when it has read that.
    struct OneFrame {
        full: Mutex<bool>,
        filled: Notify,
        emptied: Notify,
    }

    impl Sink for OneFrame {
        fn send_batch(&self, queue: &Queue) -> Result<usize, Errno> {
            let mut full = self.full.lock();
            if *full {
                return Err(Errno::AGAIN);
            }
            *full = true;
            self.filled.notify_one();
            Ok(queue[0].0.head.len() + queue[0].0.body.len())
        }

        fn shutdown(&self) {
            panic!("no send fails");
        }

        async fn when_writable(
            &self,
            mut write: impl FnMut() -> io::Result<()> + Send,
        ) -> io::Result<()> {
            loop {
                match write() {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.emptied.notified().await;
                    }
                    written => return written,
                }
            }
        }
    }

    impl OneFrame {
        /// The peer reads `frames` frames, and waits for each.
        fn read(&self, frames: usize) {
            for _ in 0..frames {
                block_on(self.filled.notified());
                *self.full.lock() = false;
                self.emptied.notify_one();
            }
        }
    }

    /// Two frames are posted, one after the other by one thread or by two, and the peer reads both. If one were left, the
    /// peer would wait for ever, which loom reports.
    fn all_frames_arrive(posters: usize) {
        let mut model = loom::model::Builder::new();
        // Orders in which loom takes a thread that could go on off the processor at most 3 times. There are too many others.
        model.preemption_bound = Some(3);
        model.check(move || {
            let outbox = loom::sync::Arc::new(Outbox::to(OneFrame {
                full: Mutex::default(),
                filled: Notify::new(),
                emptied: Notify::new(),
            }));
            let over = loom::sync::Arc::new(Notify::new());
            let post = |frames: usize| {
                let outbox = outbox.clone();
                move || {
                    for _ in 0..frames {
                        outbox.post(Frame::bare(&Control::End));
                        outbox.flush();
                    }
                }
            };
            let other = (posters == 2).then(|| thread::spawn(post(1)));
            let io_thread = {
                let (outbox, over) = (outbox.clone(), over.clone());
                thread::spawn(move || {
                    let mut over = pin!(over.notified());
                    let mut draining = pin!(outbox.drain_when_writable());
                    block_on(std::future::poll_fn(|cx| match over.as_mut().poll(cx) {
                        Poll::Pending => draining.as_mut().poll(cx).map(drop),
                        over => over,
                    }));
                })
            };
            post(3 - posters)();
            outbox.sink.read(2);
            assert!(outbox.queue.lock().is_empty());
            over.notify_one();
            io_thread.join().unwrap();
            if let Some(other) = other {
                other.join().unwrap();
            }
        });
    }

    #[test]
    fn no_frame_stays_when_one_thread_posts() {
        all_frames_arrive(1);
    }

    #[test]
    fn no_frame_stays_when_two_threads_post() {
        all_frames_arrive(2);
    }
}
