//! Dialling a host.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::address::NetworkUrl;
use super::Connection;
use super::aio::{Connecting, RawDialer};
use super::error::io_error;
use crate::sys::{Bell, Waited};
use crate::tls::{Failure, Trust};

/// Time for a connection to come about.
const CONNECT: Duration = Duration::from_secs(20);

/// Why there is no connection.
#[derive(Debug)]
pub enum DialError {
    /// The network, or the system, has refused.
    Failed(io::Error),
    /// TLS has refused, for this reason.
    Untrusted(String),
    /// The caller was interrupted.
    Interrupted,
    /// The time that the caller gave is over.
    TimedOut,
}

/// Connects to a listener; call [`Connection::start`] next. `until` is the latest time, and
/// `interrupted` is asked whether to stop.
///
/// # Errors
/// See [`DialError`]. With TLS over TCP, the handshake follows with the first bytes.
pub fn dial(
    url: &NetworkUrl,
    trust: Option<&Trust>,
    until: Option<Instant>,
    interrupted: impl Fn() -> bool,
) -> Result<Arc<Connection>, DialError> {
    let failed = DialError::Failed;
    let (dialer, failure) = RawDialer::new(url, trust).map_err(failed)?;
    let bell = Arc::new(Bell::new());
    let connected = Arc::new(Mutex::new(None));
    let operation = {
        let (bell, connected) = (bell.clone(), connected.clone());
        Connecting::connecting(move |_, result| {
            *connected.lock() = Some(result);
            bell.ring();
        })
        .map_err(failed)?
    };
    let dialling = dialer.dial(operation);
    let left = until.map(|t| t.saturating_duration_since(Instant::now()));
    let most = left.map_or(CONNECT, |left| left.min(CONNECT));
    let waited = bell.wait(Some(most), interrupted, || connected.lock().is_some());
    drop(dialling);
    let result = connected.lock().take();
    match (waited, result) {
        (Waited::Interrupted, _) => Err(DialError::Interrupted),
        (_, Some(Ok(Some(stream)))) => Connection::new(stream, failure).map_err(failed),
        (Waited::TimedOut, _) if most < CONNECT => Err(DialError::TimedOut),
        (Waited::TimedOut, _) => Err(failed(io_error(nng::Error::TimedOut))),
        (_, Some(Err(e))) => Err(match failure.as_ref().and_then(Failure::get) {
            Some(reason) => DialError::Untrusted(reason),
            None => failed(io_error(e)),
        }),
        (_, _) => Err(failed(io::ErrorKind::Other.into())),
    }
}
