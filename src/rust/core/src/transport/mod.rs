//! Links between a host and its daemons.
//!
//! [`Link`] is what the host needs of a connection, whatever carries it;
//! [`unix`] carries it on the same machine. A link only exists once its peer
//! has introduced itself: before that there is a bare connection, on which no
//! task can be sent because it has no `Link`.

mod address;
#[cfg(unix)]
pub mod unix;

pub use address::{Address, AddressError, local_url};

use crate::protocol::Frame;

/// The host's end of an established connection to a daemon.
///
/// None of the methods blocks. [`post`](Link::post) only puts a frame in line,
/// so it may be called under the dispatcher's lock, which thereby decides the
/// order; [`flush`](Link::flush) writes as much as the peer takes just now and
/// leaves the rest to the I/O thread.
pub trait Link: Send + Sync {
    fn post(&self, channel: Channel, frame: Frame);
    fn flush(&self);
    /// Ends the connection in both directions. What has been posted but not
    /// yet flushed may be lost.
    fn close(&self);
}

/// Which way a frame takes to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Read by the daemon between tasks.
    Data,
    /// Read by the daemon's watcher at any time.
    Control,
}
