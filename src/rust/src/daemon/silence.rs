//! `daemon(output = FALSE)`.

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Discards what is written to stdout and stderr for as long as it lives.
pub(super) struct Silence {
    saved: [Option<OwnedFd>; 2],
}

impl Silence {
    /// From now on.
    pub(super) fn begin() -> Silence {
        let saved = [1, 2].map(duplicate);
        if let Ok(null) = File::options().write(true).open("/dev/null") {
            for fd in [1, 2] {
                // SAFETY: replaces a standard stream by an open descriptor.
                unsafe { libc::dup2(null.as_raw_fd(), fd) };
            }
        }
        Silence { saved }
    }
}

fn duplicate(fd: c_int) -> Option<OwnedFd> {
    // SAFETY: a fresh descriptor, if it is one, is ours.
    unsafe {
        let copy = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10);
        (copy >= 0).then(|| OwnedFd::from_raw_fd(copy))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        for (saved, fd) in self.saved.iter().zip([1, 2]) {
            if let Some(saved) = saved {
                // SAFETY: puts the stream back.
                unsafe { libc::dup2(saved.as_raw_fd(), fd) };
            }
        }
    }
}
