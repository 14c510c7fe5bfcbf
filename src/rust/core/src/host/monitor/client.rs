//! The other end: attaching to a session, and reading its snapshots.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::snapshot::FORMAT;
use super::{Heard, place};
use crate::sys::io_thread;
use crate::sys::signals::poll_in;
use crate::sys::{Attention, Polled};
use crate::transport::unix;

/// Limit of a line in bytes. The longest snapshots are a hundredth of it.
const MOST_OF_A_LINE: usize = 16 << 20;

/// A session that is watched. Dropping it detaches.
pub struct Monitor {
    stream: UnixStream,
    /// Readable once the session's process is gone: its end does not end the stream while a process that was forked from it
    /// holds the socket open.
    process: Option<OwnedFd>,
    /// What has arrived and not been returned.
    buffer: Vec<u8>,
}

/// What each line has, whatever else is in it.
#[derive(Deserialize)]
struct Header {
    version: u32,
    error: Option<String>,
}

impl Monitor {
    /// Attaches to the session of this process id.
    ///
    /// # Errors
    /// There is no such session ([`NotFound`](io::ErrorKind::NotFound)), it has ended, or it belongs to another user.
    pub fn attach(pid: u32) -> io::Result<Monitor> {
        let stream = place::connect(pid)?;
        stream.set_nonblocking(true)?;
        let process = unix::peer_process(&stream);
        Ok(Monitor {
            stream,
            process,
            buffer: Vec::new(),
        })
    }

    /// Waits for a snapshot. With `newest`, those that a later one has overtaken are passed over.
    ///
    /// # Errors
    /// What the other end sends is no snapshot of this version's, or cannot be read.
    pub fn next(
        &mut self,
        newest: bool,
        timeout: Option<Duration>,
        attention: impl Attention,
    ) -> io::Result<Heard> {
        let end = timeout.and_then(|t| Instant::now().checked_add(t));
        loop {
            // Also if a line is there: a later one may be, too.
            let open = (self.has_line() && !newest) || self.read()?;
            if let Some(line) = self.take_line(newest) {
                return understood(line);
            }
            if !open || self.is_orphaned()? {
                return Ok(Heard::Ended);
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let attention = WithProcess(&attention, self.process.as_ref());
            match poll_in(self.stream.as_fd(), left, &attention) {
                Polled::Readable => {}
                Polled::TimedOut => return Ok(Heard::TimedOut),
                // Not if it is the process's end, which the next turn sees.
                Polled::Interrupted if !self.is_gone() => return Ok(Heard::Interrupted),
                Polled::Interrupted => {}
            }
        }
    }

    /// Has `call` called once, on the I/O thread, when [`next`](Self::next) has something to return. It must not block.
    ///
    /// # Errors
    /// There is no descriptor for it.
    pub fn when_ready(&self, call: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let stream = self.stream.try_clone()?;
        let process = self.process.as_ref().map(OwnedFd::try_clone).transpose()?;
        let _inside = io_thread::handle().enter();
        let stream = io_thread::register(stream)?;
        let process = process.map(io_thread::register_readable).transpose()?;
        io_thread::handle().spawn(async move {
            let gone = async {
                match &process {
                    Some(process) => drop(process.readable().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = stream.readable() => {}
                () = gone => {}
            }
            call();
        });
        Ok(())
    }

    fn has_line(&self) -> bool {
        self.buffer.contains(&b'\n')
    }

    /// Reads what has arrived. False: nothing more will.
    fn read(&mut self) -> io::Result<bool> {
        let mut room = [0; 64 * 1024];
        loop {
            match (&self.stream).read(&mut room) {
                Ok(0) => return Ok(false),
                Ok(n) => self.buffer.extend_from_slice(&room[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(e) => return Err(e),
            }
            if self.buffer.len() > MOST_OF_A_LINE {
                // Lines that have arrived come first, so that a slow reader of many is no error.
                return if self.has_line() {
                    Ok(true)
                } else {
                    Err(nonsense())
                };
            }
        }
    }

    /// The first complete line, or the last with `newest`.
    fn take_line(&mut self, newest: bool) -> Option<Vec<u8>> {
        let is_end = |b: &u8| *b == b'\n';
        let last = if newest {
            self.buffer.iter().rposition(is_end)?
        } else {
            self.buffer.iter().position(is_end)?
        };
        let mut lines: Vec<u8> = self.buffer.drain(..=last).collect();
        lines.pop();
        let start = lines
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        lines.drain(..start);
        Some(lines)
    }

    /// Whether the process is gone.
    fn is_gone(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        self.process.as_ref().is_some_and(|process| {
            let mut fds = [PollFd::new(process, PollFlags::IN)];
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
        })
    }

    /// Whether the process is gone, and all its lines have been returned.
    fn is_orphaned(&mut self) -> io::Result<bool> {
        if !self.is_gone() {
            return Ok(false);
        }
        // It may have sent a last line before its end.
        self.read()?;
        Ok(!self.has_line())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // So that it ends although [`when_ready`](Self::when_ready) has a copy of the descriptor.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn understood(line: Vec<u8>) -> io::Result<Heard> {
    let line = String::from_utf8(line).map_err(|_| nonsense())?;
    let header: Header = serde_json::from_str(&line).map_err(|_| nonsense())?;
    if header.version != FORMAT {
        let text = format!(
            "the session's monitor has format {}, and this one {FORMAT}: \
             install the same version of mirai for both",
            header.version
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(match header.error {
        Some(reason) => Heard::Refused(reason),
        None => Heard::Snapshot(line),
    })
}

fn nonsense() -> io::Error {
    let text = "the session has sent what is not a snapshot";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Also ends a wait when the session's process is gone.
struct WithProcess<'a, A>(&'a A, Option<&'a OwnedFd>);

impl<A: Attention> Attention for WithProcess<'_, A> {
    fn is_interrupted(&self) -> bool {
        self.0.is_interrupted()
    }

    fn descriptors(&self, add: &mut dyn FnMut(RawFd)) {
        if let Some(process) = self.1 {
            add(process.as_raw_fd());
        }
        self.0.descriptors(add);
    }

    fn until(&self) -> Option<Instant> {
        self.0.until()
    }
}
