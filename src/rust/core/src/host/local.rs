//! Daemons on the same machine: from a bare connection, through the hello, to a link.
//!
//! A connection that has not introduced itself may send only a small hello, within
//! `INTRODUCTION_TIMEOUT`. At most `LOCAL_STRANGERS` of them may be open at a time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::endpoints::Listening;
use super::{Endpoint, Hello, PeerId, Shared};
use crate::descriptors::out_of_the_way;
use crate::memory::Arrival;
use crate::protocol::{Frame, FrameReader, Limits, ToDaemon, ToHost, VERSION};
use crate::sys::io_thread;
use crate::transport::strangers::INTRODUCTION_TIMEOUT;
use crate::transport::{Address, Link, unix};

/// Limit of connections of one listener that have not yet sent their hello.
const LOCAL_STRANGERS: usize = 64;

/// What a peer has said of itself.
struct Introduced {
    stream: UnixStream,
    control: OwnedFd,
    reader: FrameReader<ToHost>,
    hello: Hello,
}

/// A peer that has joined.
struct Served {
    id: PeerId,
    link: Arc<unix::UnixLink>,
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
        let listener: OwnedFd = unix::listen(address)?.into();
        let listener = std::os::unix::net::UnixListener::from(out_of_the_way(listener));
        listener.set_nonblocking(true)?;
        let _inside = io_thread::handle().enter();
        let listener = UnixListener::from_std(listener)?;
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

    async fn accept_all(self: Arc<Self>, listener: UnixListener, endpoint: Endpoint) {
        let strangers = Arc::new(Semaphore::new(LOCAL_STRANGERS));
        // They are turned away when this task ends with the URL.
        let mut hearing = JoinSet::new();
        loop {
            let permit = strangers.clone().acquire_owned().await;
            let stream = next_connection(&listener).await;
            while hearing.try_join_next().is_some() {}
            let shared = self.clone();
            hearing.spawn(async move {
                let peer = introduced(stream).await;
                drop(permit);
                if let Some(served) = peer.and_then(|peer| shared.take_in(peer, endpoint)) {
                    tokio::spawn(async move { shared.serve(served).await });
                }
            });
        }
    }

    async fn accept_one(self: Arc<Self>, listener: UnixListener, endpoint: Endpoint) {
        loop {
            let stream = next_connection(&listener).await;
            let Some(peer) = introduced(stream).await else {
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
            refuse(&peer.stream, reason);
            return None;
        }
        let link = unix::UnixLink::new(peer.stream.into(), peer.control).ok()?;
        let id = self.join(link.clone(), endpoint, peer.hello);
        Some(Served {
            id,
            link,
            reader: peer.reader,
        })
    }

    /// Serves a link to its end.
    async fn serve(self: &Arc<Self>, Served { id, link, reader }: Served) {
        let receive = |message, body: Arrival| self.receive(id, message, body.into());
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

async fn next_connection(listener: &UnixListener) -> tokio::net::UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Out of descriptors, most likely: better to be slow than to spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Hears the peer's hello. `None`: it is not one of ours, or took too long.
async fn introduced(stream: tokio::net::UnixStream) -> Option<Introduced> {
    let heard = async {
        let stream = stream.into_std()?;
        unix::check_peer(&stream)?;
        hear(stream).await
    };
    tokio::time::timeout(INTRODUCTION_TIMEOUT, heard)
        .await
        .ok()?
        .ok()
}

async fn hear(stream: UnixStream) -> io::Result<Introduced> {
    let mut reader = FrameReader::<ToHost>::new(Limits::HANDSHAKE);
    let mut control = None;
    let source = io_thread::register(stream)?;
    let message = loop {
        if let Some((message, _)) = reader.next()? {
            break message;
        }
        let mut ready = source.readable().await?;
        let read =
            ready.try_io(|s| reader.fill(|room| unix::recv_with_fd(s.as_fd(), room, &mut control)));
        match read {
            Ok(Ok((0, _))) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(e)) => return Err(e),
        }
    };
    let stream = source.into_inner();
    let (
        ToHost::Hello {
            version,
            pid,
            tempdir: _,
            slots,
        },
        Some(control),
    ) = (message, control)
    else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if version != VERSION {
        refuse(&stream, super::wrong_version(version));
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Introduced {
        stream,
        control,
        reader,
        hello: Hello {
            local: Some(pid),
            slots,
        },
    })
}

/// Tells a peer that has introduced itself why it is sent away.
fn refuse(stream: &UnixStream, reason: String) {
    let refused = Frame::bare(&ToDaemon::Refused { reason });
    // The socket's buffer is empty, so this small frame always fits.
    let _ = unix::send_all(stream, &refused.head, &[], None);
}
