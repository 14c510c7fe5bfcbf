//! One connection: receiving, and its end. Sending is in `sending`, keep-alive in `keep_alive`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Condvar, Mutex};

use super::aio::{RawStream, Stream};
use super::keep_alive::SignsOfLife;
use super::sending::Output;
use crate::protocol::websocket::{self, Answer, Decoder, Heard, Request};
use crate::tls::Failure;

/// Bytes that are read at once: at first, which is enough for any stranger, and at most.
const READ: (usize, usize) = (8 * 1024, 256 * 1024);

/// Whoever a connection is for. Called from NNG's threads, for one connection at a
/// time in the order of things; must not block.
pub trait Receiver: Send + Sync {
    /// Bytes have come. An error ends the connection.
    ///
    /// # Errors
    /// The bytes are not what the peer may send.
    fn received(&self, bytes: &[u8]) -> io::Result<()>;
    /// The connection is over. Called once, and last.
    fn ended(&self);
}

/// Gets a connection that has come about, and [starts](Connection::start) it. Called from NNG's threads; must not
/// block.
pub(in crate::transport) type Accepted = Arc<dyn Fn(Arc<Connection>) + Send + Sync>;

/// Decides on requests to speak WebSocket. Called as a [`Receiver`] is.
pub(in crate::transport) trait Upgrades: Send + Sync {
    /// Who gets the connections that ask for this path. `None`: nobody listens there.
    fn at(&self, path: &str) -> Option<Accepted>;
    /// The connection has made a request that was granted, or it ended before.
    fn forget(&self, connection: &Arc<Connection>);
}

/// A connection across the network, at either end.
pub struct Connection {
    pub(super) stream: Stream,
    receiver: OnceLock<Weak<dyn Receiver>>,
    envelope: Mutex<Envelope>,
    /// Receiving has begun.
    started: AtomicBool,
    pub(super) output: Mutex<Output>,
    /// Something has been sent, or never will be.
    pub(super) sent: Condvar,
    pub(super) life: SignsOfLife,
    ended: AtomicBool,
    /// What TLS had to say about the end, at the end that dialled.
    failure: Option<Failure>,
}

/// What is around the bytes that come.
enum Envelope {
    /// Nothing; or NNG takes it off.
    None,
    /// WebSocket's, once what has come so far is a whole request.
    Request(Vec<u8>, Arc<dyn Upgrades>),
    WebSocket(Decoder),
    /// The request was refused. Nothing is read any more.
    Refused,
}

impl Connection {
    /// Takes over a stream; call [`start`](Self::start) next.
    pub(super) fn new(raw: RawStream, failure: Option<Failure>) -> io::Result<Arc<Connection>> {
        let connection = Arc::new(Connection {
            stream: Stream::new(raw),
            receiver: OnceLock::new(),
            envelope: Mutex::new(Envelope::None),
            started: AtomicBool::new(false),
            output: Mutex::default(),
            sent: Condvar::new(),
            life: SignsOfLife::new(),
            ended: AtomicBool::new(false),
            failure,
        });
        let (receives, sends) = (Arc::downgrade(&connection), Arc::downgrade(&connection));
        connection.stream.on_done(
            move |buffer, result| {
                if let Some(connection) = receives.upgrade() {
                    connection.received(buffer, result);
                }
            },
            move |parcel, result| {
                if let Some(connection) = sends.upgrade() {
                    connection.has_sent(parcel, result);
                }
            },
        )?;
        Ok(connection)
    }

    /// Begins to receive.
    pub fn start(self: &Arc<Self>, receiver: Weak<dyn Receiver>) {
        let _ = self.receiver.set(receiver);
        if !self.started.swap(true, Ordering::SeqCst) {
            self.receive(vec![0; READ.0]);
        }
    }

    /// Begins to receive what shall be a request to speak WebSocket.
    pub(in crate::transport) fn start_with_request(self: &Arc<Self>, upgrades: Arc<dyn Upgrades>) {
        *self.envelope.lock() = Envelope::Request(Vec::new(), upgrades);
        self.started.store(true, Ordering::SeqCst);
        self.receive(vec![0; READ.0]);
    }

    fn receive(self: &Arc<Self>, buffer: Vec<u8>) {
        if self.stream.receive(buffer).is_err() {
            self.end();
        }
    }

    fn received(self: &Arc<Self>, mut buffer: Vec<u8>, result: Result<usize, nng::Error>) {
        let more = result.is_ok_and(|n| {
            self.life.has_heard();
            let taken = self.open(&mut buffer[..n], &mut self.envelope.lock());
            if n == buffer.len() && n < READ.1 {
                buffer = vec![0; READ.1];
            }
            taken.is_ok()
        });
        if more {
            self.receive(buffer);
        } else {
            self.close();
            self.end();
        }
    }

    /// Hands bytes to the receiver, without the envelope.
    fn open(self: &Arc<Self>, bytes: &mut [u8], envelope: &mut Envelope) -> io::Result<()> {
        let deliver = |bytes: &[u8]| match self.receiver.get().and_then(Weak::upgrade) {
            Some(receiver) => receiver.received(bytes),
            None => Err(io::ErrorKind::ConnectionReset.into()),
        };
        match envelope {
            Envelope::None => deliver(bytes),
            Envelope::Refused => Ok(()),
            Envelope::WebSocket(decoder) => {
                let mut at = 0;
                while at < bytes.len() {
                    let (done, heard) = decoder.decode(&mut bytes[at..], deliver)?;
                    at += done;
                    match heard {
                        Some(Heard::Ping(payload)) => self.pong(&payload),
                        Some(Heard::Close) => return Err(io::ErrorKind::ConnectionAborted.into()),
                        None => {}
                    }
                }
                Ok(())
            }
            Envelope::Request(so_far, upgrades) => {
                so_far.extend_from_slice(bytes);
                let Request::Whole { length, answer } = websocket::request(so_far)? else {
                    return Ok(());
                };
                let mut rest = so_far.split_off(length);
                let upgrades = upgrades.clone();
                let granted = match answer {
                    Answer::Upgrade { path, key } => match upgrades.at(&path) {
                        Some(accepted) => Ok((accepted, websocket::switching(&key))),
                        None => Err(websocket::NOT_FOUND),
                    },
                    Answer::Refused(text) => Err(text),
                };
                match granted {
                    // It stays on the list of those who have to go soon.
                    Err(text) => {
                        *envelope = Envelope::Refused;
                        self.say_first(text);
                        Ok(())
                    }
                    Ok((accepted, text)) => {
                        *envelope = Envelope::WebSocket(Decoder::default());
                        self.say_first(&text);
                        upgrades.forget(self);
                        accepted(self.clone());
                        self.open(&mut rest, envelope)
                    }
                }
            }
        }
    }

    fn end(self: &Arc<Self>) {
        if self.ended.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Envelope::Request(_, upgrades) = &*self.envelope.lock() {
            upgrades.forget(self);
        }
        if let Some(receiver) = self.receiver.get().and_then(Weak::upgrade) {
            receiver.ended();
        }
    }

    /// Ends the connection. Its receiver hears of it.
    pub fn close(&self) {
        self.stream.close();
    }

    /// Whether small frames leave at once, as the system says of the connection.
    ///
    /// # Errors
    /// The connection is over.
    pub fn is_prompt(&self) -> io::Result<bool> {
        self.stream.is_prompt()
    }

    /// Why the connection did not come about, if TLS knows.
    pub fn failure(&self) -> Option<String> {
        self.failure.as_ref().and_then(Failure::get)
    }
}
