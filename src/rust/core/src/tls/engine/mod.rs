//! rustls as NNG's TLS engine: what carries `tls+tcp` and `wss`.
//!
//! NNG knows TLS libraries only through tables of functions
//! (`nng/supplemental/tls/engine.h`) and configures them by text in PEM. Ours
//! takes ready configurations of rustls instead: [`secure_listener`] and
//! [`secure_dialer`] leave one in a thread-local, and the engine's function for a
//! new configuration, which NNG calls from there, picks it up. What NNG makes
//! without them, by itself, has none, and all of its connections fail.
//!
//! NNG's side of the interface is `nng/src/supplemental/tls/tls_common.c`, and
//! three things about it are not in the header. It may call `send` and `recv`
//! before the handshake is done. It calls again after the socket has taken or
//! given bytes, but only for what somebody above waits for: bytes left with us
//! after a successful `send` could stay for ever, so `send` is successful only
//! once all have gone. And of several pieces it passes on one a call, each
//! costing a switch of threads: see [`cork`](super::cork).

mod conn;
mod ffi;

use std::ffi::c_int;
use std::sync::Arc;

use nng_sys::{nng_stream_dialer, nng_stream_listener};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

#[cfg(fuzzing)]
pub(crate) use conn::fuzz;
pub use ffi::install;

use self::ffi::Handle;
use super::{Identity, Trust};

/// Has `listener` be `identity`. Before it is started.
///
/// # Safety
/// The listener lives.
pub unsafe fn secure_listener(
    listener: *mut nng_stream_listener,
    identity: &Identity,
) -> Result<(), nng::Error> {
    // SAFETY: promised by the caller.
    let secure = |config: &Handle| unsafe { config.secure_listener(listener) };
    identity.shared().with_handle(secure)
}

/// Has `dialer` connect only to whom `trust` believes to be `name`: the host
/// name or IP address, brackets or not, of its URL. Before it is started.
///
/// Returns the place where the reason for a failed handshake is found.
///
/// # Safety
/// The dialer lives.
pub unsafe fn secure_dialer(
    dialer: *mut nng_stream_dialer,
    trust: &Trust,
    name: &str,
) -> Result<Failure, nng::Error> {
    let name = super::server_name(name).ok_or(nng::Error::AddressInvalid)?;
    let failure = Failure::default();
    let role = Role::Client {
        config: trust.config().clone(),
        name,
        failure: failure.clone(),
    };
    // SAFETY: promised by the caller.
    let secure = |config: &Handle| unsafe { config.secure_dialer(dialer) };
    Shared::new(role).with_handle(secure)?;
    Ok(failure)
}

/// Why a dialer's last TLS handshake failed, in words for the user. Shared by all clones.
#[derive(Debug, Clone, Default)]
pub struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    /// None while nothing has failed, and after a handshake that succeeded.
    pub fn get(&self) -> Option<String> {
        self.0.lock().clone()
    }

    fn set(&self, why: Option<String>) {
        *self.0.lock() = why;
    }
}

pub(super) fn check(rv: c_int) -> Result<(), nng::Error> {
    std::num::NonZeroU32::new(rv as u32).map_or(Ok(()), |code| Err(nng::Error::from(code)))
}

/// Which end of a connection we are, and how.
#[derive(Clone)]
enum Role {
    Server(Arc<ServerConfig>),
    Client {
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        failure: Failure,
    },
}

/// A configuration object of NNG's, made when it is first needed.
///
/// An identity keeps its only one: listeners of `wss` with the same address share a
/// server inside NNG, and giving it another configuration while it is accepting
/// could free the one in use.
pub(super) struct Shared {
    role: Role,
    made: Mutex<Option<Handle>>,
}

impl Shared {
    pub(super) fn server(config: Arc<ServerConfig>) -> Self {
        Self::new(Role::Server(config))
    }

    fn new(role: Role) -> Self {
        Shared {
            role,
            made: Mutex::new(None),
        }
    }

    fn with_handle<T>(
        &self,
        use_it: impl FnOnce(&Handle) -> Result<T, nng::Error>,
    ) -> Result<T, nng::Error> {
        install();
        let mut made = self.made.lock();
        let handle = match &*made {
            Some(handle) => handle,
            None => made.insert(Handle::new(&self.role)?),
        };
        use_it(handle)
    }
}
