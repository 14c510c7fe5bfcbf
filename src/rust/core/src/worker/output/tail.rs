//! What a process has written last, for others to read should it be killed.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{Errno, read, write};

use crate::sys::pipe;

/// A pipe with the last that was written. Neither end ever waits.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) reader: OwnedFd,
    pub(super) writer: OwnedFd,
}

/// Bytes of the tail, more or less.
pub(super) const TAIL: usize = 4096;
/// Bytes that are dropped from a full pipe at once: as few as make room.
const DROP: usize = 512;

impl Tail {
    pub(super) fn new() -> io::Result<Tail> {
        let (reader, writer) = pipe()?;
        fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        fcntl_setfl(&writer, OFlags::NONBLOCK)?;
        shorten(&writer);
        Ok(Tail { reader, writer })
    }

    pub(super) fn add(&self, bytes: &[u8]) {
        let mut left = &bytes[bytes.len().saturating_sub(TAIL)..];
        while !left.is_empty() {
            match write(&self.writer, left) {
                Ok(n) => left = &left[n..],
                Err(Errno::INTR) => {}
                // It is full.
                Err(Errno::AGAIN) if self.drop_some() => {}
                Err(_) => return,
            }
        }
    }

    pub(super) fn clear(&self) {
        while self.drop_some() {}
    }

    /// False if there is nothing more.
    fn drop_some(&self) -> bool {
        read(&self.reader, &mut [0; DROP]).is_ok_and(|n| n > 0)
    }
}

/// Gives the tail's pipe the size of a tail, if the system can. If not, the tail is longer.
fn shorten(_pipe: &OwnedFd) {
    // A pipe is made of pages, some of which have few bytes in them, and there is room again once a whole page was
    // read. The kernel gives four pages to a user without privileges, too: its limit for one pipe is
    // `fs.pipe-max-size`, 1 MiB.
    #[cfg(target_os = "linux")]
    let _ = rustix::pipe::fcntl_setpipe_size(_pipe, 4 * crate::sys::page_size().max(TAIL));
}
