//! Reading a link on the main thread while that waits, and else on the I/O thread: see `sys/unix/readers.rs`.

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::descriptors::{SCARCE, is_crowded};
use super::offer::{Offered, RingFrames, misplaced};
use super::{CROWDED_TRIES, Incoming, UnixLink};
use crate::memory::Arrival;
use crate::protocol::{FrameReader, ToHost};
use crate::sys::readers::{self, Progress, Reader};

/// Limit of reads in a row, after which other links have their turn.
const MOST_READS: u32 = 16;

/// A link that is read by either thread, one at a time.
struct Reading<F> {
    link: Arc<UnixLink>,
    state: Mutex<State<F>>,
    /// The stage is no longer `Open`.
    paused: Notify,
}

struct State<F> {
    incoming: Incoming<ToHost>,
    /// What comes by the ring, if there is one.
    ring: Option<RingFrames>,
    on_frame: F,
    stage: Stage,
    /// How often in a row this process had no room for a descriptor that was passed to it.
    tries: u32,
}

enum Stage {
    Open,
    Crowded,
    Over(io::Result<()>),
}

/// Reads frames and hands them to `on_frame`, on this thread or the main thread, until the link is over.
pub(super) async fn read<F>(
    link: Arc<UnixLink>,
    reader: FrameReader<ToHost>,
    on_frame: F,
) -> io::Result<()>
where
    F: FnMut(ToHost, Arrival) + Send + 'static,
{
    let mut incoming = Incoming::new(reader);
    incoming.one_of_many = true;
    let offered = link.offered.lock().take();
    let (seat, ring) = match offered {
        Some(Offered { seat, frames }) => (Some(seat), Some(frames)),
        None => (None, None),
    };
    let mut state = State {
        incoming,
        ring,
        on_frame,
        stage: Stage::Open,
        tries: 0,
    };
    // Bytes may have come along with the handshake.
    state.take_frames()?;
    let reading = Arc::new(Reading {
        link: link.clone(),
        state: Mutex::new(state),
        paused: Notify::new(),
    });
    let registration = readers::add(link.data.sink.as_fd(), reading.clone())?;
    if let Some(seat) = &seat {
        seat.take(link.data.sink.as_fd(), reading.clone());
        // The mark may have been set before.
        if reading.look() == Progress::Paused {
            reading.paused();
        }
    }
    let _end = End(&reading);
    loop {
        reading.paused.notified().await;
        let stage = std::mem::replace(&mut reading.state.lock().stage, Stage::Crowded);
        if let Stage::Over(end) = stage {
            return end;
        }
        // What other links have passed makes room once it is mapped; nobody tells.
        tokio::time::sleep(SCARCE).await;
        reading.state.lock().stage = Stage::Open;
        registration.resume()?;
    }
}

/// Nothing is read any more: the main thread may be about to, and may be in the midst of it now.
struct End<'a, F>(&'a Reading<F>);

impl<F> Drop for End<'_, F> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.stage = Stage::Over(Ok(()));
        if let Some(ring) = &state.ring {
            ring.close();
        }
    }
}

impl<F: FnMut(ToHost, Arrival) + Send> Reader for Reading<F> {
    fn read(&self) -> Progress {
        let mut state = self.state.lock();
        for _ in 0..MOST_READS {
            match state.guarded(|state| state.step(&self.link)) {
                Progress::More => {}
                progress => return progress,
            }
        }
        Progress::More
    }

    fn look(&self) -> Progress {
        let look = |state: &mut State<F>| state.take_ring().map(|()| Some(Progress::Drained));
        self.state.lock().guarded(look)
    }

    fn paused(&self) {
        self.paused.notify_one();
    }
}

impl<F: FnMut(ToHost, Arrival)> State<F> {
    /// Reads, unless nothing is to be read now. `None`: the peer is gone.
    fn guarded(
        &mut self,
        read: impl FnOnce(&mut Self) -> io::Result<Option<Progress>>,
    ) -> Progress {
        if !matches!(self.stage, Stage::Open) {
            // The other thread has paused it.
            return Progress::Drained;
        }
        // A fault of ours ends this link, not those of all others.
        let step = catch_unwind(AssertUnwindSafe(|| read(self)));
        match step.unwrap_or_else(|_| Err(io::Error::other("a fault in what was read"))) {
            Ok(Some(progress)) => progress,
            Ok(None) => self.pause(Stage::Over(Ok(()))),
            Err(e) if is_crowded(&e) && self.tries < CROWDED_TRIES => {
                self.tries += 1;
                self.pause(Stage::Crowded)
            }
            Err(e) => self.pause(Stage::Over(Err(e))),
        }
    }

    /// Reads the socket once. `None`: the peer is gone.
    fn step(&mut self, link: &UnixLink) -> io::Result<Option<Progress>> {
        let progress = match self.incoming.fill(link.data.sink.as_fd()) {
            Ok((0, _)) => {
                self.hear_out()?;
                return Ok(None);
            }
            // The peer has ended with something unread.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                self.hear_out()?;
                return Ok(None);
            }
            // A short read has emptied the socket; asking again would only cost a system call to hear so.
            Ok((_, true)) => Progress::Drained,
            Ok((_, false)) => Progress::More,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Progress::Drained,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Progress::More,
            Err(e) => return Err(e),
        };
        self.tries = 0;
        self.take_frames()?;
        Ok(Some(progress))
    }

    /// Takes the frames that have come by the socket, each after those that were written to the ring before it.
    fn take_frames(&mut self) -> io::Result<()> {
        while let Some((message, body)) = self.incoming.next_frame()? {
            let expected = match (&mut self.ring, &message) {
                (Some(ring), ToHost::ByRing) if !ring.current => {
                    ring.current = true;
                    true
                }
                (Some(_), ToHost::Look) => true,
                (_, ToHost::ByRing | ToHost::BySocket | ToHost::Look) => false,
                _ => {
                    self.take_ring()?;
                    let by_socket = self.ring.as_ref().is_none_or(|ring| !ring.current);
                    if by_socket {
                        (self.on_frame)(message, body);
                        continue;
                    }
                    false
                }
            };
            if !expected {
                return Err(misplaced());
            }
            self.take_ring()?;
        }
        Ok(())
    }

    /// Takes what the peer has written last, after its end. Should it still run, it learns that nothing else is taken.
    fn hear_out(&mut self) -> io::Result<()> {
        if let Some(ring) = &self.ring {
            ring.close();
        }
        self.take_ring()
    }

    /// Takes the frames that are in the ring.
    fn take_ring(&mut self) -> io::Result<()> {
        match &mut self.ring {
            Some(ring) => ring.take(&mut self.on_frame),
            None => Ok(()),
        }
    }

    fn pause(&mut self, stage: Stage) -> Progress {
        self.stage = stage;
        Progress::Paused
    }
}
