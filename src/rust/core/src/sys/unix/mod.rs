//! Linux, macOS and their like.

pub(crate) mod files;
#[cfg(target_os = "linux")]
pub(crate) mod readers;
#[cfg(not(target_os = "linux"))]
#[path = "no_readers.rs"]
mod readers;
pub(crate) mod signals;
#[cfg(not(all(test, mirai_loom)))]
mod token;

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

#[cfg(target_os = "linux")]
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[cfg(not(all(test, mirai_loom)))]
pub(super) use {
    readers::{lead, leads},
    token::Token,
};

/// What a wait can look at: a descriptor.
pub type Waitable = RawFd;

/// The name that this machine has given itself.
pub fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into()
}

/// Has the I/O thread watch a descriptor. Must be called within the runtime.
pub(crate) fn register<T: AsRawFd + Into<OwnedFd>>(fd: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `T` owns its descriptor (it can be turned into an `OwnedFd`), so it
    // stays open and the same until the `AsyncFd` is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

/// As [`register`], of a descriptor that may be borrowed, and for one kind of readiness.
#[cfg(target_os = "linux")]
pub(crate) fn register_for<T: AsRawFd + AsFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: what a `T` lends stays open and the same as long as it is borrowed or owned, so until
    // the `AsyncFd` is dropped.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}
