//! What a daemon of this machine has written last.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::last_lines;
use crate::descriptors::{Held, out_of_the_way};

/// What a daemon on this machine has written last: two pipes, which the host reads once the daemon is lost. Until then
/// the daemon itself keeps them from being full: see [`Output`](crate::worker::output::Output).
#[derive(Debug)]
pub(crate) struct LastWords {
    pipes: [OwnedFd; 2],
    _held: Held,
}

impl LastWords {
    /// Opens the pipes that a process of this user has by these numbers. `None` if that cannot be done, or another process
    /// has taken its place.
    pub(crate) fn of(pid: u32, pipes: [u32; 2]) -> Option<LastWords> {
        let held = Held::if_spare(2)?;
        let open = |fd: u32| {
            let path = format!("/proc/{pid}/fd/{fd}");
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
            let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
            let kind = rustix::fs::fstat(&file).ok()?.st_mode;
            let is_pipe = rustix::fs::FileType::from_raw_mode(kind) == rustix::fs::FileType::Fifo;
            is_pipe.then(|| out_of_the_way(file))
        };
        let pipes = [open(pipes[0])?, open(pipes[1])?];
        Some(LastWords { pipes, _held: held })
    }

    /// The last lines.
    pub(super) fn read(self) -> String {
        let mut bytes = Vec::new();
        for pipe in &self.pipes {
            let mut buffer = [0; 4096];
            // A process that the daemon has left may go on writing: no more than the pipe holds is read.
            let mut left = rustix::pipe::fcntl_getpipe_size(pipe).unwrap_or(64 * 1024);
            while left > 0 {
                match rustix::io::read(pipe, &mut buffer) {
                    Ok(n) if n > 0 => {
                        bytes.extend_from_slice(&buffer[..n]);
                        left = left.saturating_sub(n);
                    }
                    _ => break,
                }
            }
        }
        last_lines(&bytes)
    }
}

/// Nothing: the daemon keeps what it writes, from the time on at which it has connected.
pub(super) fn of_stderr(_: &str) -> String {
    String::new()
}
