//! Daemons on the same machine: from a bare connection, through the hello, to a link.
//!
//! A connection that has not introduced itself may send only a small hello, within
//! `INTRODUCTION_TIMEOUT`. At most `LOCAL_STRANGERS` of them may be open at a time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::endpoints::Listening;
use super::{Endpoint, Hello, PeerId, Shared};
use crate::memory::Arrival;
use crate::protocol::{Frame, FrameReader, Limits, ToDaemon, ToHost, VERSION};
use crate::sys::io_thread;
use crate::transport::local::{Listener, LocalLink, Stranger};
use crate::transport::strangers::INTRODUCTION_TIMEOUT;
use crate::transport::{Address, Link};

/// Limit of connections of one listener that have not yet sent their hello.
const LOCAL_STRANGERS: usize = 64;

/// What a peer has said of itself.
struct Introduced {
    stranger: Stranger,
    hello: Hello,
}

/// A peer that has joined.
struct Served {
    id: PeerId,
    link: Arc<LocalLink>,
    reader: FrameReader<ToHost>,
}

impl Shared {
    /// Listens at a URL of this machine; with `once`, for a single daemon. Returns what to list.
    pub(super) fn listen_local(
        self: &Arc<Self>,
        address: &Address,
        endpoint: Endpoint,
        once: bool,
    ) -> io::Result<Listening> {
        let _inside = io_thread::handle().enter();
        let listener = Listener::bind(address)?;
        let shared = self.clone();
        let accepting = io_thread::handle().spawn(async move {
            if once {
                shared.accept_one(listener, endpoint).await;
            } else {
                shared.accept_all(listener, endpoint).await;
            }
        });
        Ok(Listening {
            address: address.clone(),
            given: address.clone(),
            identity: None,
            accepting: Some(accepting),
            listener: None,
        })
    }

    async fn accept_all(self: Arc<Self>, mut listener: Listener, endpoint: Endpoint) {
        let strangers = Arc::new(Semaphore::new(LOCAL_STRANGERS));
        // They are turned away when this task ends with the URL.
        let mut hearing = JoinSet::new();
        loop {
            let permit = strangers.clone().acquire_owned().await;
            let stranger = next_connection(&mut listener).await;
            while hearing.try_join_next().is_some() {}
            let shared = self.clone();
            hearing.spawn(async move {
                let peer = introduced(stranger).await;
                drop(permit);
                if let Some(served) = peer.and_then(|peer| shared.take_in(peer, endpoint)) {
                    tokio::spawn(async move { shared.serve(served).await });
                }
            });
        }
    }

    async fn accept_one(self: Arc<Self>, mut listener: Listener, endpoint: Endpoint) {
        loop {
            let stranger = next_connection(&mut listener).await;
            let Some(peer) = introduced(stranger).await else {
                continue;
            };
            // It joins without a pause, in which this task could be ended and the endpoint become another's.
            if let Some(served) = self.take_in(peer, endpoint) {
                drop(listener);
                let unwanted = {
                    let dispatcher = &self.state.lock().dispatcher;
                    dispatcher.is_idle(served.id) && !dispatcher.is_awaited(endpoint)
                };
                if unwanted {
                    // Its task has been cancelled, or has timed out.
                    served.link.close();
                }
                // Not in this task, which ends with the listener.
                tokio::spawn(async move { self.serve(served).await });
                return;
            }
        }
    }

    /// Makes a link of a peer. `None`: there is no descriptor for it, or it is not wanted.
    fn take_in(self: &Arc<Self>, peer: Introduced, endpoint: Endpoint) -> Option<Served> {
        if let Some(reason) = self.refusal(endpoint) {
            let refused = Frame::bare(&ToDaemon::Refused { reason });
            peer.stranger.refuse(&refused);
            return None;
        }
        let (link, reader) = peer.stranger.into_link().ok()?;
        let id = self.join(link.clone(), endpoint, peer.hello);
        Some(Served { id, link, reader })
    }

    /// Serves a link to its end.
    async fn serve(self: &Arc<Self>, Served { id, link, reader }: Served) {
        let shared = self.clone();
        let receive = move |message, body: Arrival| shared.receive(id, message, body.into());
        let served = link.serve(reader.into_stage(Limits::LINK), receive).await;
        // However it ends, the daemon is lost to us. By its own end, all that it had written has been read; by
        // a fault that we found, or had, there may be replies which have not.
        let fault = served.err().filter(|e| {
            !matches!(
                e.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            )
        });
        if let Some(e) = &fault {
            if let Some(loss) = self.known.lock().loss(id) {
                loss.tell(format!("was sent away: {e}"));
            }
        }
        let heard_out = fault.is_none();
        self.lost(id, heard_out);
    }
}

async fn next_connection(listener: &mut Listener) -> Stranger {
    loop {
        match listener.accept().await {
            Ok(stranger) => return stranger,
            // Out of descriptors, most likely: better to be slow than to spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Hears the peer's hello. `None`: it is not one of ours, or took too long.
async fn introduced(stranger: Stranger) -> Option<Introduced> {
    let heard = tokio::time::timeout(INTRODUCTION_TIMEOUT, hear(stranger));
    heard.await.ok()?.ok()
}

async fn hear(mut stranger: Stranger) -> io::Result<Introduced> {
    let ToHost::Hello {
        version,
        pid,
        tempdir: _,
        slots,
    } = stranger.hear().await?
    else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if version != VERSION {
        let reason = super::wrong_version(version);
        stranger.refuse(&Frame::bare(&ToDaemon::Refused { reason }));
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Introduced {
        stranger,
        hello: Hello {
            local: Some(pid),
            slots,
        },
    })
}
