//! Daemons on the same machine: from a bare connection, through the hello, to a link.
//!
//! A connection that has not introduced itself may send at most a small hello,
//! within a few seconds, and there may only be so many of them at a time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use super::{Endpoint, Hello, Listening, Shared};
use crate::memory::Arrival;
use crate::protocol::{Frame, FrameReader, Limits, ToDaemon, ToHost, VERSION};
use crate::runtime;
use crate::transport::{Address, Link, unix};

/// Time for a hello to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections of one listener that may be in that state.
const STRANGERS: usize = 64;

/// What a peer has said of itself.
struct Introduced {
    stream: UnixStream,
    control: OwnedFd,
    reader: FrameReader<ToHost>,
    hello: Hello,
}

impl Shared {
    /// Listens at a URL of this machine; with `once`, for a single daemon. Returns what to list.
    pub(super) fn listen_local(
        self: &Arc<Self>,
        address: &Address,
        endpoint: Endpoint,
        once: bool,
    ) -> io::Result<Listening> {
        let listener = unix::listen(address)?;
        listener.set_nonblocking(true)?;
        let _inside = runtime::handle().enter();
        let listener = UnixListener::from_std(listener)?;
        let shared = self.clone();
        let accepting = runtime::handle().spawn(async move {
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
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        loop {
            let permit = strangers.clone().acquire_owned().await;
            let stream = next_connection(&listener).await;
            let shared = self.clone();
            tokio::spawn(async move {
                let peer = introduced(stream).await;
                drop(permit);
                if let Some(peer) = peer {
                    shared.serve(peer, endpoint, false).await;
                }
            });
        }
    }

    async fn accept_one(self: Arc<Self>, listener: UnixListener, endpoint: Endpoint) {
        loop {
            let stream = next_connection(&listener).await;
            if let Some(peer) = introduced(stream).await {
                drop(listener);
                // Not in this task, which ends with the listener.
                tokio::spawn(async move { self.serve(peer, endpoint, true).await });
                return;
            }
        }
    }

    /// Makes a link of a peer and serves it to its end. With `once`, one whose
    /// task is no longer wanted is sent away.
    async fn serve(&self, peer: Introduced, endpoint: Endpoint, once: bool) {
        let Ok(link) = unix::UnixLink::new(peer.stream.into(), peer.control) else {
            return;
        };
        let id = self.join(link.clone(), endpoint, peer.hello);
        if once && self.state.lock().dispatcher.is_idle(id) {
            link.close();
        }
        let receive = |message, body: Arrival| self.receive(id, message, body.into());
        let served = link
            .serve(peer.reader.into_stage(Limits::LINK), receive)
            .await;
        // However it ends, the daemon is lost to us. By its own end, all that it had written has been read; by
        // a fault that we found, or had, there may be replies which have not.
        let heard_out = match served {
            Ok(()) => true,
            Err(e) => matches!(
                e.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ),
        };
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
    tokio::time::timeout(PATIENCE, heard).await.ok()?.ok()
}

async fn hear(stream: UnixStream) -> io::Result<Introduced> {
    let mut reader = FrameReader::<ToHost>::new(Limits::HANDSHAKE);
    let mut control = None;
    let source = runtime::register(stream)?;
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
            tempdir,
            slots,
        },
        Some(control),
    ) = (message, control)
    else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if version != VERSION {
        let reason = super::wrong_version(version);
        let refused = Frame::bare(&ToDaemon::Refused { reason });
        // The socket's buffer is empty, so this small frame always fits.
        let _ = unix::send_all(&stream, &refused.head, &[], None);
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Introduced {
        stream,
        control,
        reader,
        hello: Hello {
            local: Some((pid, tempdir.into())),
            slots,
        },
    })
}
