//! Reading a link on the main thread while that waits, and else on the I/O thread: see `sys/unix/readers.rs`.

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::descriptors::{SCARCE, is_crowded};
use super::{CROWDED_TRIES, Incoming, UnixLink};
use crate::memory::Arrival;
use crate::protocol::FrameReader;
use crate::sys::readers::{self, Progress, Reader};

/// Limit of reads in a row, after which other links have their turn.
const MOST_READS: u32 = 16;

/// A link that is read by either thread, one at a time.
struct Reading<M, F> {
    link: Arc<UnixLink>,
    state: Mutex<State<M, F>>,
    /// The stage is no longer `Open`.
    paused: Notify,
}

struct State<M, F> {
    incoming: Incoming<M>,
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
pub(super) async fn read<M, F>(
    link: Arc<UnixLink>,
    reader: FrameReader<M>,
    on_frame: F,
) -> io::Result<()>
where
    M: serde::de::DeserializeOwned + Send + 'static,
    F: FnMut(M, Arrival) + Send + 'static,
{
    let mut incoming = Incoming::new(reader);
    incoming.one_of_many = true;
    let mut state = State {
        incoming,
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
struct End<'a, M, F>(&'a Reading<M, F>);

impl<M, F> Drop for End<'_, M, F> {
    fn drop(&mut self) {
        self.0.state.lock().stage = Stage::Over(Ok(()));
    }
}

impl<M, F> Reader for Reading<M, F>
where
    M: serde::de::DeserializeOwned + Send,
    F: FnMut(M, Arrival) + Send,
{
    fn read(&self) -> Progress {
        let mut state = self.state.lock();
        if !matches!(state.stage, Stage::Open) {
            // The other thread has paused it.
            return Progress::Drained;
        }
        for _ in 0..MOST_READS {
            // A fault of ours ends this link, not those of all others.
            let step = catch_unwind(AssertUnwindSafe(|| state.step(&self.link)));
            match step.unwrap_or_else(|_| Err(io::Error::other("a fault in what was read"))) {
                Ok(Some(Progress::More)) => {}
                Ok(Some(progress)) => return progress,
                Ok(None) => return state.pause(Stage::Over(Ok(()))),
                Err(e) if is_crowded(&e) && state.tries < CROWDED_TRIES => {
                    state.tries += 1;
                    return state.pause(Stage::Crowded);
                }
                Err(e) => return state.pause(Stage::Over(Err(e))),
            }
        }
        Progress::More
    }

    fn paused(&self) {
        self.paused.notify_one();
    }
}

impl<M: serde::de::DeserializeOwned, F: FnMut(M, Arrival)> State<M, F> {
    /// Reads once. `None`: the peer is gone.
    fn step(&mut self, link: &UnixLink) -> io::Result<Option<Progress>> {
        let progress = match self.incoming.fill(link.data.sink.as_fd()) {
            Ok((0, _)) => return Ok(None),
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

    fn take_frames(&mut self) -> io::Result<()> {
        while let Some((message, body)) = self.incoming.next_frame()? {
            (self.on_frame)(message, body);
        }
        Ok(())
    }

    fn pause(&mut self, stage: Stage) -> Progress {
        self.stage = stage;
        Progress::Paused
    }
}
