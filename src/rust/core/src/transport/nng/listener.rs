//! Listening at a port: each connection that comes is handed on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::super::address::NetworkUrl;
use super::Connection;
use super::aio::{Connecting, RawListener};
use crate::sys::io_thread;
use crate::tls::Identity;

/// Time until the next attempt to accept after one that failed.
const RETRY: Duration = Duration::from_millis(100);

/// A port of TCP, or of TLS over it, that is listened at. Ends listening when it is dropped; connections stay.
pub struct Listener {
    raw: Arc<RawListener>,
    accepting: Option<Connecting>,
    port: u16,
}

impl Listener {
    /// Listens at a URL of TCP, or of TLS over it, and accepts connections, each of which is handed to `accepted`
    /// to be [started](Connection::start). With port 0, the system chooses one.
    ///
    /// # Errors
    /// The port is taken, or the host is none of this machine's.
    pub(in crate::transport) fn bind(
        url: &NetworkUrl,
        identity: Option<&Identity>,
        accepted: impl Fn(Arc<Connection>) + Send + Sync + 'static,
    ) -> io::Result<Listener> {
        let raw = Arc::new(RawListener::bind(url, identity)?);
        let port = match url.port {
            0 => raw.bound_port()?,
            port => port,
        };
        let weak = Arc::downgrade(&raw);
        let accepting = Connecting::connecting(move |accepting, result| {
            let Some(listener) = weak.upgrade() else {
                return;
            };
            match result {
                Ok(stream) => {
                    if let Some(Ok(connection)) = stream.map(|s| Connection::new(s, None)) {
                        accepted(connection);
                    }
                    listener.accept(&accepting);
                }
                Err(nng::Error::Closed) => {}
                Err(_) => {
                    // Out of descriptors, most likely: better to be slow than to spin.
                    io_thread::handle().spawn(async move {
                        tokio::time::sleep(RETRY).await;
                        listener.accept(&accepting);
                        // Not the last handle: see `Operation`.
                        drop(accepting);
                    });
                }
            }
        })?;
        raw.accept(&accepting);
        Ok(Listener {
            raw,
            accepting: Some(accepting),
            port,
        })
    }

    /// The port, which the URL may have left open.
    pub(in crate::transport) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.raw.close();
        if let Some(accepting) = self.accepting.take() {
            accepting.stop();
        }
    }
}
