//! Links between a host and its daemons.
//!
//! [`Link`] is what the host needs of a connection, whatever carries it: [`local`] on the
//! same machine (Unix sockets, or named pipes on Windows), [`nng`] across the network. A link only exists once its peer
//! has introduced itself: before that there is a bare connection, on which no
//! task can be sent because it has no `Link`.

pub mod address;
mod network;
pub mod nng;
#[cfg(windows)]
pub mod pipe;
pub(crate) mod strangers;
#[cfg(unix)]
pub mod unix;
mod websocket;

#[cfg(windows)]
pub use pipe as local;
#[cfg(unix)]
pub use unix as local;

pub use address::{Address, AddressError, NetworkUrl, Scheme, local_url};
pub use network::{Listening, listen};

use crate::protocol::{Control, Frame};

/// The host's end of an established connection to a daemon.
///
/// None of the methods blocks. [`post`](Link::post) and [`control`](Link::control) only
/// put something in line, so they may be called under the dispatcher's lock, which thereby
/// decides the order; [`flush`](Link::flush) writes as much as the peer takes just now and
/// leaves the rest to another thread.
pub trait Link: Send + Sync {
    /// For the daemon's main thread, between tasks. A link that cannot pass the frame's segments
    /// puts their bytes back, upon flushing.
    fn post(&self, frame: Frame);
    /// For its watcher, at any time.
    fn control(&self, message: Control);
    /// Writes what has been posted, as far as the peer takes it now; another thread writes the rest.
    fn flush(&self);
    /// Ends the connection in both directions. What has been posted but not
    /// yet flushed may be lost.
    fn close(&self);
}

/// Which line a frame stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// For the daemon's main thread.
    Data,
    /// Ahead of data.
    Control,
}
