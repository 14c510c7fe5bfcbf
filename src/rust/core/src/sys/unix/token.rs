//! What the bell puts into a descriptor.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::readers::Lead;
use super::signals::poll_in_either;
use crate::sys::attention::{Attention, Polled};

/// What lies in a descriptor while a ring has not been heard.
pub(in crate::sys) struct Token {
    /// Read end and write end (the same, for an eventfd).
    read: OwnedFd,
    write: OwnedFd,
}

impl Token {
    pub(in crate::sys) fn new() -> Token {
        let (read, write) = wake_pair();
        Token { read, write }
    }

    pub(in crate::sys) fn put(&self) {
        // One byte or eight: an eventfd wants eight, a pipe takes them.
        let _ = rustix::io::write(&self.write, &1u64.to_ne_bytes());
    }

    /// Takes away what is there.
    pub(in crate::sys) fn take(&self) {
        let mut drain = [0u8; 64];
        let _ = rustix::io::read(&self.read, &mut drain);
    }

    /// Waits until there is one, and takes it, or has read something as the leader. A signal, too, counts as that.
    pub(in crate::sys) fn wait(
        &self,
        timeout: Option<Duration>,
        attention: &impl Attention,
        lead: Option<&Lead>,
    ) -> Polled {
        let set = lead.and_then(Lead::set);
        let polled = poll_in_either(self.read.as_fd(), set, timeout, attention);
        if let Some(lead) = lead {
            lead.looks();
        }
        match (polled, lead) {
            (None, Some(lead)) => lead.read(),
            (Some(Polled::Readable), _) => self.take(),
            _ => {}
        }
        polled.unwrap_or(Polled::Readable)
    }
}

#[cfg(target_os = "linux")]
fn wake_pair() -> (OwnedFd, OwnedFd) {
    use rustix::event::{EventfdFlags, eventfd};
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd");
    let twin = rustix::io::fcntl_dupfd_cloexec(&fd, 0).expect("dup of eventfd");
    (fd, twin)
}

#[cfg(not(target_os = "linux"))]
fn wake_pair() -> (OwnedFd, OwnedFd) {
    let (read, write) = super::pipe().expect("pipe");
    for fd in [&read, &write] {
        rustix::io::ioctl_fionbio(fd, true).expect("non-blocking pipe");
    }
    (read, write)
}
