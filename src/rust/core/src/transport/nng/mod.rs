//! Byte streams across the network, by NNG: TCP, WebSocket, and both within TLS.
//!
//! A host listens at each of its URLs and a daemon dials one; what either gets is a
//! [`Connection`], which carries the same frames as a Unix socket does, only that control
//! messages go along with the rest, ahead of what has not begun to be sent.
//!
//! These are NNG's *streams*, and not its Pair sockets: a polyamorous one, which could
//! hold many daemons, drops what is sent to a pipe whose queue of two is full, and says
//! nothing; has a message received whole, however long, before anybody can look at who sends it;
//! costs two more changes of thread each way; is discouraged by NNG itself; and the `nng` crate
//! (1.0) cannot open one. A stream tells how much it has taken, so nothing is lost and nothing
//! has to be counted, and it is read in pieces, so a stranger can make us hold no more
//! than a small handshake.
//!
//! NNG calls back on its own threads. What they do here is short: they take frames apart and hand
//! them on, and send what is next. None of it blocks.

mod aio;
mod connection;
mod dial;
mod error;
mod keep_alive;
mod listener;
mod sending;

pub(super) use connection::{Accepted, Upgrades};
pub use connection::{Connection, Receiver};
pub use dial::{DialError, dial};
pub use listener::Listener;

use std::sync::Arc;

use super::{Channel, Link};
use crate::protocol::{Control, Frame, ToDaemon};

/// The host's end of a link to a daemon.
pub struct NngLink(Arc<Connection>);

impl NngLink {
    /// The link of a daemon that has introduced itself.
    pub fn new(connection: Arc<Connection>) -> Arc<NngLink> {
        Arc::new(NngLink(connection))
    }
}

impl Link for NngLink {
    fn post(&self, frame: Frame) {
        self.0.post(Channel::Data, frame);
    }

    fn control(&self, message: Control) {
        let frame = Frame::bare(&ToDaemon::Control(message));
        self.0.post(Channel::Control, frame);
    }

    fn flush(&self) {
        self.0.flush();
    }

    fn close(&self) {
        self.0.close();
    }
}
