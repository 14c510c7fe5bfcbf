//! Linux, macOS and their like.

pub(crate) mod files;
pub(crate) mod signals;
#[cfg(not(all(test, mirai_loom)))]
mod token;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use tokio::io::unix::AsyncFd;

#[cfg(not(all(test, mirai_loom)))]
pub(super) use token::Token;

/// What a wait can look at: a descriptor.
pub type Waitable = RawFd;

/// The name that this machine has given itself.
pub fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into()
}

/// Rows and columns of the terminal to which this process writes. `None` if there is none.
pub fn terminal_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// Has the I/O thread watch a descriptor. Must be called within the runtime.
pub(crate) fn register<T: AsRawFd + Into<OwnedFd>>(fd: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `T` owns its descriptor (it can be turned into an `OwnedFd`), so it
    // stays open and the same until the `AsyncFd` is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}
