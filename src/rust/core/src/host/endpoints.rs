//! The URLs at which a host listens.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::JoinHandle;

use super::{Host, Shared, network};
use crate::dispatcher::{Endpoint, EndpointCounts, Event};
use crate::sys::io_thread;
use crate::tls::{Identity, TlsError};
use crate::transport::{self, Address, NetworkUrl};

/// A URL at which the host listens, and the counts of what happened there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointStatus {
    /// With the real port.
    pub url: String,
    /// What happened there.
    pub counts: EndpointCounts,
}

pub(super) struct Listening {
    /// With the real port.
    pub(super) address: Address,
    /// As it was given, before [`Host::renew`] or the system changed it.
    pub(super) given: Address,
    pub(super) identity: Option<Identity>,
    /// The first for a URL on this machine, the second across the network; `None` once closed.
    pub(super) accepting: Option<JoinHandle<()>>,
    pub(super) listener: Option<transport::Listening>,
}

impl Host {
    /// Listens at a URL that needs no certificate.
    ///
    /// # Errors
    /// The name is taken, or this system has no such transport.
    pub fn listen(&self, address: &Address) -> io::Result<Endpoint> {
        self.0.listen(address, None, false)
    }

    /// Listens at URLs, of which secure ones present the identity. WebSocket URLs that leave the
    /// port open share one.
    ///
    /// # Errors
    /// As of [`listen`](Self::listen), with the URL that failed. The host may listen at earlier ones already.
    pub fn listen_all(
        &self,
        addresses: &[Address],
        identity: Option<&Identity>,
    ) -> Result<(), (Address, io::Error)> {
        let first = || addresses.first().expect("there are URLs").clone();
        let ported = network::choose_ports(addresses).map_err(|e| (first(), e))?;
        for address in &ported {
            self.0
                .listen(address, identity, false)
                .map_err(|e| (address.clone(), e))?;
        }
        Ok(())
    }

    /// An identity to present at these URLs, for this one purpose.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn single_use_identity(addresses: &[Address]) -> Result<Identity, TlsError> {
        let urls = addresses.iter().filter_map(|a| match a {
            Address::Network(url) => Some(url),
            _ => None,
        });
        Identity::single_use(&network::names(urls))
    }

    /// Closes a URL, listens at a new one that nobody can guess, and returns it. `None`: there is no
    /// URL with this index, or it has no path to change, or a daemon is connected there and `force` is
    /// false. With `force`, the tasks of connected daemons end as
    /// [`Outcome::Closed`](crate::task::Outcome::Closed).
    ///
    /// # Errors
    /// The new URL cannot be listened at; the old one is closed then.
    pub fn renew(&self, endpoint: Endpoint, force: bool) -> io::Result<Option<String>> {
        let shared = &self.0;
        let there = shared.state.lock().dispatcher.peers_at(endpoint);
        let (base, given, identity, ending) = {
            let mut listening = shared.listening.lock();
            let Some(old) = listening.get_mut(endpoint) else {
                return Ok(None);
            };
            if !old.given.has_path() || !(there.is_empty() || force) {
                return Ok(None);
            }
            let url = old.address.to_string();
            shared.known.lock().leaves_url(endpoint, &url);
            let (given, identity) = (old.given.clone(), old.identity.clone());
            (old.base(), given, identity, old.close())
        };
        // Not under the lock, which the I/O thread may want first.
        if let Some(ending) = ending {
            let _ = io_thread::handle().block_on(ending);
        }
        shared.turn_away_strangers(endpoint);
        shared.handle(Event::Moved { endpoint }, None);
        // Also of those who have joined since we looked, who would never be given a task.
        let links: Vec<_> = {
            let state = shared.state.lock();
            let links = state.links.values().filter(|c| c.endpoint == endpoint);
            links.map(|connected| connected.link.clone()).collect()
        };
        for link in links {
            link.close();
        }
        shared.fleet_moved(endpoint);
        let address = match &base {
            Address::Abstract(_) => Address::Abstract(crate::sys::token()),
            _ => base.with_path(&crate::sys::token()),
        };
        let mut fresh = shared.open(&address, identity.as_ref(), endpoint, false)?;
        fresh.given = given;
        let url = fresh.address.to_string();
        shared.listening.lock()[endpoint] = fresh;
        Ok(Some(url))
    }

    /// Whether a daemon may connect that can receive segments: one on this machine.
    pub fn passes_memory(&self) -> bool {
        let listening = self.0.listening.lock();
        listening
            .iter()
            .any(|l| !matches!(l.address, Address::Network(_)))
    }

    /// URLs in the order in which they were given.
    pub fn urls(&self) -> Vec<String> {
        self.0.urls()
    }
}

impl Listening {
    /// The URL as it was given, with the port that it has by now.
    fn base(&self) -> Address {
        match (&self.given, &self.address) {
            (Address::Network(given), Address::Network(now)) => Address::Network(NetworkUrl {
                port: now.port,
                ..given.clone()
            }),
            (given, _) => given.clone(),
        }
    }

    /// Stops listening. What is returned ends when the name is free again.
    pub(super) fn close(&mut self) -> Option<JoinHandle<()>> {
        self.listener = None;
        let accepting = self.accepting.take();
        if let Some(accepting) = &accepting {
            accepting.abort();
            crate::transport::local::unlink(&self.address);
        }
        accepting
    }
}

impl Shared {
    pub(super) fn urls(&self) -> Vec<String> {
        let listening = self.listening.lock();
        listening.iter().map(|l| l.address.to_string()).collect()
    }

    /// Listens at a URL; with `once`, for a single daemon.
    pub(super) fn listen(
        self: &Arc<Self>,
        address: &Address,
        identity: Option<&Identity>,
        once: bool,
    ) -> io::Result<Endpoint> {
        let mut listening = self.listening.lock();
        // First: a daemon may be fast.
        let endpoint = self.state.lock().dispatcher.add_endpoint();
        match self.open(address, identity, endpoint, once) {
            Ok(open) if endpoint < listening.len() => listening[endpoint] = open,
            Ok(open) => listening.push(open),
            Err(e) => {
                self.state.lock().dispatcher.release_endpoint(endpoint);
                return Err(e);
            }
        }
        Ok(endpoint)
    }

    fn open(
        self: &Arc<Self>,
        address: &Address,
        identity: Option<&Identity>,
        endpoint: Endpoint,
        once: bool,
    ) -> io::Result<Listening> {
        match address {
            Address::Network(url) => {
                if !self.keeping_alive.swap(true, Ordering::SeqCst) {
                    let host = Arc::downgrade(self);
                    io_thread::handle().spawn(Shared::keep_alive(host, self.patience));
                }
                self.listen_network(url, identity, endpoint)
            }
            _ => self.listen_local(address, endpoint, once),
        }
    }

    pub(super) fn stop_listening(&self, endpoint: Endpoint) {
        let mut listening = self.listening.lock();
        let url = listening[endpoint].address.to_string();
        self.known.lock().leaves_url(endpoint, &url);
        let _ = listening[endpoint].close();
    }
}
