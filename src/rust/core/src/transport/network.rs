//! Listening at any URL of the network: TCP's have a port to themselves, WebSocket's share one with other paths.

use std::io;
use std::sync::Arc;

use super::address::NetworkUrl;
use super::nng::{Connection, Listener};
use super::websocket::{self, Route};
use crate::tls::Identity;

/// A URL that is listened at. Ends listening when it is dropped; connections stay.
pub enum Listening {
    /// A port of TCP, or of TLS over it.
    Socket(Listener),
    /// A path at a port of WebSocket, or of WebSocket over TLS.
    WebSocket(Route),
}

/// Listens at a URL and accepts connections, each of which is handed to `accepted` to be
/// [started](Connection::start). With port 0, one is chosen.
///
/// # Errors
/// The port is taken, or the host is none of this machine's.
pub fn listen(
    url: &NetworkUrl,
    identity: Option<&Identity>,
    accepted: impl Fn(Arc<Connection>) + Send + Sync + 'static,
) -> io::Result<Listening> {
    if url.scheme.has_path() {
        websocket::listen(url, identity, accepted).map(Listening::WebSocket)
    } else {
        Listener::bind(url, identity, accepted).map(Listening::Socket)
    }
}

impl Listening {
    /// The port, which the URL may have left open.
    pub fn port(&self) -> u16 {
        match self {
            Listening::Socket(listener) => listener.port(),
            Listening::WebSocket(route) => route.port(),
        }
    }
}
