//! Daemons across the network: from an accepted connection, through the hello and the
//! proof where one is wanted, to a link.
//!
//! Anybody may connect. Whoever has not introduced themselves may send at most a small
//! hello ([`Limits::HANDSHAKE`]), and is one of the [`Strangers`] meanwhile.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashMap;

use super::endpoints::Listening;
use super::{Endpoint, Hello, Shared};
use crate::dispatcher::PeerId;
use crate::protocol::{Frame, FrameReader, Limits, Nonce, ToDaemon, ToHost, VERSION};
use crate::tls::Identity;
use crate::transport::nng::{Connection, NngLink, Receiver};
use crate::transport::strangers::Strangers;
use crate::transport::{self, Address, Channel, NetworkUrl};

/// Time for daemons to hear that they shall end.
const FAREWELL: Duration = Duration::from_secs(1);

/// The connections of one host.
#[derive(Default)]
pub(super) struct Network {
    visitors: Mutex<Visitors>,
    /// Those who have not introduced themselves yet.
    strangers: Arc<Strangers>,
    /// One has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Visitors {
    all: FxHashMap<u64, Arc<Visitor>>,
    last: u64,
}

/// Somebody connected.
struct Visitor {
    id: u64,
    host: Weak<Shared>,
    endpoint: Endpoint,
    identity: Option<Identity>,
    connection: Arc<Connection>,
    stage: Mutex<Stage>,
}

enum Stage {
    /// Has said nothing, or only a part of it.
    Stranger(FrameReader<ToHost>),
    /// Has said hello, and shall prove that it knows the secret.
    Challenged(FrameReader<ToHost>, Hello, Nonce),
    /// A daemon.
    Peer(FrameReader<ToHost>, PeerId),
    /// Was sent away, or is gone.
    Over,
}

impl Shared {
    /// Listens at a URL of the network. Returns what to list.
    pub(super) fn listen_network(
        self: &Arc<Self>,
        url: &NetworkUrl,
        identity: Option<&Identity>,
        endpoint: Endpoint,
    ) -> io::Result<Listening> {
        let identity = identity.filter(|_| url.scheme.is_secure());
        if url.scheme.is_secure() && identity.is_none() {
            return Err(io::Error::other("there is no certificate for it"));
        }
        let accepted = {
            let (host, identity) = (Arc::downgrade(self), identity.cloned());
            move |connection| {
                if let Some(host) = host.upgrade() {
                    host.welcome(connection, endpoint, identity.clone());
                }
            }
        };
        let bound = NetworkUrl {
            host: bind_host(&url.host),
            ..url.clone()
        };
        let listener = transport::listen(&bound, identity, accepted)?;
        let port = listener.port();
        Ok(Listening {
            address: Address::Network(NetworkUrl {
                port,
                ..url.clone()
            }),
            given: Address::Network(url.clone()),
            identity: identity.cloned(),
            accepting: None,
            listener: Some(listener),
        })
    }

    fn welcome(
        self: Arc<Self>,
        connection: Arc<Connection>,
        endpoint: Endpoint,
        identity: Option<Identity>,
    ) {
        let visitor = {
            let mut visitors = self.network.visitors.lock();
            visitors.last += 1;
            let visitor = Arc::new(Visitor {
                id: visitors.last,
                host: Arc::downgrade(&self),
                endpoint,
                identity,
                connection,
                stage: Mutex::new(Stage::Stranger(FrameReader::new(Limits::HANDSHAKE))),
            });
            visitors.all.insert(visitor.id, visitor.clone());
            visitor
        };
        self.network.strangers.admit(&visitor.connection);
        let weak: Weak<Visitor> = Arc::downgrade(&visitor);
        visitor.connection.start(weak);
        if self.is_closed() {
            visitor.connection.close();
        }
    }

    /// Closes connections at an endpoint that have not introduced themselves yet.
    pub(super) fn turn_away_strangers(&self, endpoint: Endpoint) {
        let visitors: Vec<_> = self.network.visitors.lock().all.values().cloned().collect();
        for visitor in visitors.iter().filter(|v| v.endpoint == endpoint) {
            let mut stage = visitor.stage.lock();
            if !matches!(*stage, Stage::Peer(..)) {
                *stage = Stage::Over;
                visitor.connection.close();
            }
        }
    }

    /// Tells peers that the host is there, and gives up those that have been silent for all
    /// of `patience`. For as long as the host lives.
    pub(super) async fn keep_alive(host: Weak<Shared>, patience: Duration) {
        loop {
            tokio::time::sleep(patience / 4).await;
            let Some(host) = host.upgrade().filter(|host| !host.is_closed()) else {
                return;
            };
            let visitors: Vec<_> = host.network.visitors.lock().all.values().cloned().collect();
            for visitor in visitors {
                // Whose stage is locked is being heard.
                if !visitor.is_known_peer() {
                    continue;
                }
                let sign = || Frame::bare(&ToDaemon::Ping);
                if !visitor.connection.keep_alive(patience, sign) {
                    visitor.given_up(&host, patience);
                    visitor.connection.close();
                }
            }
        }
    }

    /// Closes every connection. With `end`, the daemons have been told to leave: they are given
    /// a moment to do so by themselves, as what is on its way to them may be lost otherwise.
    pub(super) fn close_network(&self, end: bool) {
        let mut visitors = self.network.visitors.lock();
        if end {
            let until = Instant::now() + FAREWELL;
            while visitors.all.values().any(|v| v.is_peer()) {
                if self
                    .network
                    .ended
                    .wait_until(&mut visitors, until)
                    .timed_out()
                {
                    break;
                }
            }
        }
        for visitor in visitors.all.values() {
            visitor.connection.close();
        }
    }
}

impl Visitor {
    fn say(&self, message: &ToDaemon) {
        self.connection.post(Channel::Control, Frame::bare(message));
        self.connection.flush();
    }

    fn is_known_peer(&self) -> bool {
        let stage = self.stage.try_lock();
        stage.is_some_and(|s| matches!(*s, Stage::Peer(..)))
    }

    /// The daemon has given no sign of life for so long.
    fn given_up(&self, host: &Shared, patience: Duration) {
        let peer = match self.stage.try_lock().as_deref() {
            Some(Stage::Peer(_, peer)) => *peer,
            _ => return,
        };
        if let Some(loss) = host.known.lock().loss(peer) {
            let seconds = patience.as_secs_f64();
            loss.tell(format!("gave no sign of life for {seconds} s"));
        }
    }

    fn is_peer(&self) -> bool {
        // Whoever holds this is in the middle of a message, so has not left.
        self.stage
            .try_lock()
            .is_none_or(|s| matches!(*s, Stage::Peer(..)))
    }

    /// What comes of a message in an early stage.
    fn introduced(
        &self,
        reader: FrameReader<ToHost>,
        message: ToHost,
        challenge: Option<(Hello, Nonce)>,
    ) -> io::Result<Stage> {
        let hello = match (message, challenge) {
            (
                ToHost::Hello {
                    version,
                    pid: _,
                    tempdir: _,
                    slots,
                },
                None,
            ) => {
                if version != VERSION {
                    return Ok(self.refuse(super::wrong_version(version)));
                }
                // Process and directory are on some machine, and must not be taken for ours.
                let hello = Hello { local: None, slots };
                if self.identity.as_ref().is_some_and(|i| i.secret().is_some()) {
                    let mut nonce = Nonce::default();
                    crate::sys::random(&mut nonce);
                    self.say(&ToDaemon::Challenge { nonce });
                    return Ok(Stage::Challenged(reader, hello, nonce));
                }
                hello
            }
            (ToHost::Proof { proof }, Some((hello, nonce))) => {
                let secret = self.identity.as_ref().and_then(Identity::secret);
                if !secret.is_some_and(|secret| secret.verify(b"daemon", &[&nonce], &proof)) {
                    return Ok(self.refuse(
                        "it has not proved that it is meant to be one: start it by the command that \
                         launch_remote() shows now"
                            .into(),
                    ));
                }
                hello
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let Some(host) = self.host.upgrade() else {
            return Ok(Stage::Over);
        };
        if let Some(reason) = host.refusal(self.endpoint) {
            return Ok(self.refuse(reason));
        }
        host.network.strangers.forget(&self.connection);
        self.connection.begin_keep_alive(host.patience);
        let link = NngLink::new(self.connection.clone());
        let peer = host.join(link, self.endpoint, hello);
        Ok(Stage::Peer(reader.into_stage(Limits::LINK), peer))
    }

    /// The daemon hears why, and leaves; if it does not, time does it.
    fn refuse(&self, reason: String) -> Stage {
        self.say(&ToDaemon::Refused { reason });
        Stage::Over
    }
}

impl Receiver for Visitor {
    fn received(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut stage = self.stage.lock();
        while !bytes.is_empty() {
            let reader = match &mut *stage {
                Stage::Stranger(reader)
                | Stage::Challenged(reader, ..)
                | Stage::Peer(reader, _) => reader,
                Stage::Over => return Ok(()),
            };
            bytes = &bytes[reader.feed(bytes)?..];
            loop {
                match std::mem::replace(&mut *stage, Stage::Over) {
                    Stage::Peer(mut reader, peer) => {
                        let next = reader.next_arrival();
                        *stage = Stage::Peer(reader, peer);
                        let (Some((message, body)), Some(host)) = (next?, self.host.upgrade())
                        else {
                            break;
                        };
                        host.receive(peer, message, body.into());
                    }
                    Stage::Stranger(mut reader) => match reader.next()? {
                        Some((message, _)) => *stage = self.introduced(reader, message, None)?,
                        None => {
                            *stage = Stage::Stranger(reader);
                            break;
                        }
                    },
                    Stage::Challenged(mut reader, hello, nonce) => match reader.next()? {
                        Some((message, _)) => {
                            *stage = self.introduced(reader, message, Some((hello, nonce)))?;
                        }
                        None => {
                            *stage = Stage::Challenged(reader, hello, nonce);
                            break;
                        }
                    },
                    Stage::Over => break,
                }
            }
        }
        Ok(())
    }

    fn ended(&self) {
        let stage = std::mem::replace(&mut *self.stage.lock(), Stage::Over);
        let Some(host) = self.host.upgrade() else {
            return;
        };
        if let Stage::Peer(_, peer) = stage {
            host.lost(peer, false);
        }
        host.network.strangers.forget(&self.connection);
        let mut visitors = host.network.visitors.lock();
        // Perhaps the last but the caller's, whose connection is not freed in here.
        visitors.all.remove(&self.id);
        host.network.ended.notify_all();
    }
}

/// Where to listen for the host of a URL. This machine's own name often stands for a
/// loopback address in its own files, while others know it by another; then, every
/// interface is meant.
fn bind_host(host: &str) -> String {
    let own = host == crate::sys::node_name() && !host.is_empty();
    let reachable = || {
        let found = (host, 0).to_socket_addrs();
        found.is_ok_and(|mut all| all.any(|a| !a.ip().is_loopback()))
    };
    if own && !reachable() {
        String::new()
    } else {
        host.into()
    }
}

/// The names and addresses for which a certificate of this machine should be good: those
/// in the URLs, its own, and those of its interfaces.
pub(super) fn names<'a>(urls: impl Iterator<Item = &'a NetworkUrl>) -> Vec<String> {
    let node = crate::sys::node_name();
    let mut names = vec![
        node.clone(),
        "localhost".into(),
        "127.0.0.1".into(),
        "::1".into(),
    ];
    names.extend(
        (node.as_str(), 0)
            .to_socket_addrs()
            .into_iter()
            .flatten()
            .map(|a| a.ip().to_string()),
    );
    names.extend(interface_addresses().iter().map(ToString::to_string));
    names.extend(
        urls.map(|url| url.host.clone())
            .filter(|host| !host.is_empty()),
    );
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(unix)]
fn interface_addresses() -> Vec<IpAddr> {
    let mut out = Vec::new();
    let mut first = std::ptr::null_mut();
    // SAFETY: the list is what getifaddrs says it is, until it is freed; an address is
    // read as the type that its family names.
    unsafe {
        if libc::getifaddrs(&mut first) != 0 {
            return out;
        }
        let mut at = first;
        while let Some(entry) = at.as_ref() {
            if let Some(address) = entry.ifa_addr.as_ref() {
                match i32::from(address.sa_family) {
                    libc::AF_INET => {
                        let v4 = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                        out.push(IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes()));
                    }
                    libc::AF_INET6 => {
                        let v6 = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                        out.push(IpAddr::from(v6.sin6_addr.s6_addr));
                    }
                    _ => {}
                }
            }
            at = entry.ifa_next;
        }
        libc::freeifaddrs(first);
    }
    out
}

#[cfg(not(unix))]
fn interface_addresses() -> Vec<IpAddr> {
    // Without a crate of its own for it: the address that the machine's name has is in the list.
    Vec::new()
}

/// Chooses ports for those URLs that leave it open and share one: WebSocket's, which have
/// paths. TCP gets its own by listening.
pub(super) fn choose_ports(addresses: &[Address]) -> io::Result<Vec<Address>> {
    let mut chosen: FxHashMap<String, u16> = FxHashMap::default();
    let mut choose = |address: &Address| {
        let Address::Network(url) = address else {
            return Ok(address.clone());
        };
        if url.port != 0 || !url.scheme.has_path() {
            return Ok(address.clone());
        }
        let port = match chosen.get(&url.host) {
            Some(port) => *port,
            None => {
                let host = match bind_host(&url.host) {
                    any if any.is_empty() => "0.0.0.0".into(),
                    host => host,
                };
                let free = std::net::TcpListener::bind((host.as_str(), 0))?;
                let port = free.local_addr()?.port();
                chosen.insert(url.host.clone(), port);
                port
            }
        };
        Ok(Address::Network(NetworkUrl {
            port,
            ..url.clone()
        }))
    };
    addresses.iter().map(&mut choose).collect()
}
