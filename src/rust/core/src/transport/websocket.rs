//! WebSocket at the host's end, over NNG's streams of TCP and TLS: ports, their paths, and
//! who has not asked for one yet. The codec is [`protocol::websocket`](crate::protocol::websocket).
//!
//! NNG has it too, and daemons dial with that. But its HTTP server keeps connections to itself
//! until they have asked for an upgrade, for as long as that takes and with as many header
//! lines as anybody likes to send; when descriptors run out it asks for the next
//! connection without a pause; it puts answers to pings in line without end; and it can deadlock
//! when it is closed while a request comes in. Here, who has not made their request may send
//! at most a small one, and is one of the [`Strangers`] meanwhile.
//!
//! URLs that differ only in their path share a port: see [`listen`].

use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::address::{NetworkUrl, Scheme};
use super::nng::{Accepted, Connection, Listener, Upgrades};
use super::strangers::Strangers;
use crate::tls::Identity;

/// A port with whatever is listened at there.
struct Port {
    listener: Listener,
    identity: Option<Identity>,
    routes: Arc<Routes>,
}

/// What paths there are at a port, and who has not named one yet.
#[derive(Default)]
struct Routes {
    paths: Mutex<FxHashMap<String, Accepted>>,
    strangers: Arc<Strangers>,
}

/// Whether TLS is spoken, the host, and the port.
type Place = (bool, String, u16);

/// The ports of this process.
static PORTS: Mutex<Vec<(Place, Weak<Port>)>> = Mutex::new(Vec::new());

/// A URL that is listened at.
pub struct Route {
    port: Arc<Port>,
    path: String,
}

/// Listens at a URL, at a port that may already be listened at for others.
///
/// # Errors
/// The port is taken by others or for another identity, or the path is.
pub(super) fn listen(
    url: &NetworkUrl,
    identity: Option<&Identity>,
    accepted: impl Fn(Arc<Connection>) + Send + Sync + 'static,
) -> io::Result<Route> {
    let path = url.path.trim_end_matches('/').to_owned();
    // Nobody else may come to the same port meanwhile.
    let mut ports = PORTS.lock();
    ports.retain(|(_, port)| port.strong_count() > 0);
    let place = (url.scheme.is_secure(), url.host.clone(), url.port);
    let there = ports
        .iter()
        .find(|(p, _)| *p == place)
        .and_then(|(_, port)| port.upgrade());
    let port = match there {
        Some(port) if same(port.identity.as_ref(), identity) => port,
        Some(_) => return Err(io::ErrorKind::AddrInUse.into()),
        None => {
            let port = Arc::new(Port::open(url, identity)?);
            let place = (place.0, place.1, port.listener.port());
            ports.push((place, Arc::downgrade(&port)));
            port
        }
    };
    let mut paths = port.routes.paths.lock();
    if paths.contains_key(&path) {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    paths.insert(path.clone(), Arc::new(accepted));
    drop(paths);
    Ok(Route { port, path })
}

fn same(one: Option<&Identity>, other: Option<&Identity>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one.config(), other.config()),
        (one, other) => one.is_none() && other.is_none(),
    }
}

impl Port {
    fn open(url: &NetworkUrl, identity: Option<&Identity>) -> io::Result<Port> {
        let routes = Arc::new(Routes::default());
        let below = NetworkUrl {
            scheme: if url.scheme.is_secure() {
                Scheme::TlsTcp
            } else {
                Scheme::Tcp
            },
            path: String::new(),
            ..url.clone()
        };
        let listener = {
            let routes = routes.clone();
            Listener::bind(&below, identity, move |connection| {
                routes.welcome(&connection);
            })?
        };
        Ok(Port {
            listener,
            identity: identity.cloned(),
            routes,
        })
    }
}

impl Route {
    pub(super) fn port(&self) -> u16 {
        self.port.listener.port()
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        self.port.routes.paths.lock().remove(&self.path);
    }
}

impl Drop for Port {
    /// Ends listening, and whoever has not named a path.
    fn drop(&mut self) {
        self.routes.strangers.close();
    }
}

impl Routes {
    fn welcome(self: &Arc<Self>, connection: &Arc<Connection>) {
        self.strangers.admit(connection);
        connection.start_with_request(self.clone());
    }
}

impl Upgrades for Routes {
    fn at(&self, path: &str) -> Option<Accepted> {
        let paths = self.paths.lock();
        paths.get(path.trim_end_matches('/')).cloned()
    }

    fn forget(&self, connection: &Arc<Connection>) {
        self.strangers.forget(connection);
    }
}
