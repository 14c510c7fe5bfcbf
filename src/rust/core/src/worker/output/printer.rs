//! Lines on their way to where the standard streams went before.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec, write};

use super::ABOVE;
use super::lines::Lines;

/// Prints to a stream as it was.
#[derive(Debug)]
pub(super) struct Printer {
    /// `None`: it was closed.
    to: Option<OwnedFd>,
    pub(super) lines: Lines,
}

impl Printer {
    pub(super) fn new(to: Option<BorrowedFd<'_>>) -> Printer {
        Printer {
            to: to.and_then(|fd| fcntl_dupfd_cloexec(fd, ABOVE).ok()),
            lines: Lines::default(),
        }
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        let to = self.to.as_ref();
        self.lines
            .add(bytes, Instant::now(), |bytes| print(to, bytes));
    }

    pub(super) fn finish(&mut self) {
        let to = self.to.as_ref();
        self.lines.finish(|bytes| print(to, bytes));
    }

    /// Shows a line that is not complete, if it is time.
    pub(super) fn be_prompt(&mut self, now: Instant) {
        let to = self.to.as_ref();
        if self.lines.due().is_some_and(|due| due <= now) {
            self.lines.show_held(|bytes| print(to, bytes));
        }
    }
}

/// Writes all, and waits if it must. What cannot be written is dropped: nobody reads it.
fn print(to: Option<&OwnedFd>, mut bytes: &[u8]) {
    let Some(to) = to else { return };
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            // Somebody who has the same stream does not want to wait.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(to, PollFlags::OUT)], None);
            }
            Err(_) => return,
        }
    }
}
