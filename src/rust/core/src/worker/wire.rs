//! What carries the daemon's end of a link: its own sockets on the host's machine, or a
//! connection across the network.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::gate::Gate;
use super::{DialError, Options};
use crate::memory::{Arrival, Parts};
use crate::protocol::{Seq, ToDaemon, ToHost};
use crate::sys::{Polled, allow_spinning};
use crate::transport::Address;

#[cfg_attr(windows, path = "wire/pipe.rs")]
mod local;
mod network;

/// The daemon's end of an established link. Its main thread reads and writes; whoever reads control
/// messages tells the [`Gate`].
pub(super) trait Wire: Send {
    /// The next message, if it has come already. An error: what comes is none of ours.
    fn next(&mut self) -> io::Result<Option<(ToDaemon, Arrival)>>;

    /// Waits until there may be one. An error: the link is over.
    fn wait(
        &mut self,
        most: Option<Duration>,
        interrupted: Option<&dyn Fn() -> bool>,
    ) -> io::Result<Polled>;

    /// Sends a message, and returns when its body is the caller's again.
    fn send(&self, message: &ToHost, body: Parts<'_>) -> io::Result<()>;

    /// Whether segments are sent as they are.
    fn passes_memory(&self) -> bool {
        false
    }

    /// What sends messages from another thread.
    fn sender(&self) -> Box<dyn Sender>;

    /// Ends the link, and whoever watches it.
    fn close(&mut self);
}

/// See [`Wire::sender`].
pub(crate) trait Sender: Send {
    /// As [`Wire::send`].
    fn send(&self, message: &ToHost, body: Parts<'_>) -> io::Result<()>;
}

/// What [`dial`] is given beside the address.
pub(super) struct Dialling<'a> {
    pub options: &'a Options,
    pub gate: Arc<Gate>,
    /// When to give up.
    pub until: Option<Instant>,
    pub interrupted: &'a dyn Fn() -> bool,
}

/// Connects, introduces this daemon and hears that it is welcome.
pub(super) fn dial(address: &Address, dialling: &Dialling<'_>) -> Result<Box<dyn Wire>, DialError> {
    match address {
        Address::Network(url) => network::dial(url, dialling),
        _ => local::dial(address, dialling),
    }
}

/// The host does not want this task any more.
fn cancel(gate: &Arc<Gate>, seq: Seq) {
    if gate.cancel(seq) {
        let gate = Arc::clone(gate);
        let insisting = std::thread::Builder::new()
            .name("mirai-insists".into())
            .stack_size(128 * 1024)
            .spawn(move || gate.insist(seq));
        // Without a thread for it, the interrupt is not repeated.
        drop(insisting);
    }
}

/// What the answer to a hello comes to.
fn accepted(answer: ToDaemon, address: &dyn std::fmt::Display) -> Result<u32, DialError> {
    let url = address.to_string();
    match answer {
        ToDaemon::Welcome { patience, spins } => {
            allow_spinning(spins);
            Ok(patience)
        }
        ToDaemon::Refused { reason } => Err(DialError::Refused { url, reason }),
        _ => Err(DialError::Handshake {
            url,
            source: io::ErrorKind::InvalidData.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::spinning_is_allowed;

    #[test]
    fn a_daemon_spins_if_its_host_says_so() {
        for spins in [false, true] {
            let welcome = ToDaemon::Welcome { patience: 7, spins };
            assert_eq!(accepted(welcome, &"ipc:///tmp/x").unwrap(), 7);
            assert_eq!(spinning_is_allowed(), spins);
        }
    }
}
