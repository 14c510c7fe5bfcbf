//! What a daemon sends to a host on its own machine, where there is only the socket.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::memory::Parts;
use crate::protocol::ToHost;
use crate::transport::unix;

/// As on Linux (`outbound.rs`), without a ring.
pub(super) struct Outbound {
    data: UnixStream,
}

impl Outbound {
    pub(super) fn new(data: UnixStream) -> Outbound {
        Outbound { data }
    }

    pub(super) fn send(&mut self, message: &ToHost, body: Parts<'_>, _: bool) -> io::Result<()> {
        unix::send_message(&self.data, message, body)
    }

    pub(super) fn hand_over(&mut self) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn timer(&self) -> Option<Arc<OwnedFd>> {
        None
    }

    pub(super) fn tick(&mut self) -> io::Result<()> {
        Ok(())
    }
}
