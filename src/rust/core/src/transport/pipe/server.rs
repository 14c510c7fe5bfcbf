//! The host's end, from a bare connection to a link.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::windows::named_pipe::{NamedPipeServer, ServerOptions};
use tokio::sync::Notify;

use super::outbox::Outbox;
use super::{BUFFER, name};
use crate::memory::Arrival;
use crate::protocol::{Control, Frame, FrameReader, Limits, ToDaemon, ToHost};
use crate::sys::security::OnlyUs;
use crate::transport::{Address, Channel, Link};

/// Time for what was posted before the end of a link to be sent.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Listens at a URL of this machine: always one instance of the pipe waits for the next peer.
pub struct Listener {
    name: String,
    only_us: OnlyUs,
    waiting: NamedPipeServer,
}

fn instance(name: &str, only_us: &OnlyUs, first: bool) -> io::Result<NamedPipeServer> {
    let mut options = ServerOptions::new();
    options
        .first_pipe_instance(first)
        .reject_remote_clients(true)
        .in_buffer_size(BUFFER)
        .out_buffer_size(BUFFER);
    let mut attributes = only_us.attributes();
    // SAFETY: the attributes and what they point to are valid for the call.
    unsafe { options.create_with_security_attributes_raw(name, (&raw mut attributes).cast()) }
}

impl Listener {
    /// Must be called within the I/O runtime.
    ///
    /// # Errors
    /// The name is taken.
    pub fn bind(address: &Address) -> io::Result<Listener> {
        let name = name(address)?;
        let only_us = OnlyUs::new()?;
        // The system says that access is denied.
        let taken = |e: io::Error| match e.kind() {
            io::ErrorKind::PermissionDenied => io::ErrorKind::AddrInUse.into(),
            _ => e,
        };
        let waiting = instance(&name, &only_us, true).map_err(taken)?;
        Ok(Listener {
            name,
            only_us,
            waiting,
        })
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> &NamedPipeServer {
        &self.waiting
    }

    /// The next connection.
    ///
    /// # Errors
    /// There can be no further instance of the pipe. The peer that has connected is kept for the next call.
    pub async fn accept(&mut self) -> io::Result<Stranger> {
        self.waiting.connect().await?;
        let next = instance(&self.name, &self.only_us, false)?;
        Ok(Stranger {
            pipe: std::mem::replace(&mut self.waiting, next),
            reader: FrameReader::new(Limits::HANDSHAKE),
        })
    }
}

/// A peer that has connected, and may send one small hello. It is of this user: nobody else may connect.
pub struct Stranger {
    pipe: NamedPipeServer,
    reader: FrameReader<ToHost>,
}

impl Stranger {
    /// What it says first.
    ///
    /// # Errors
    /// It is none of ours.
    pub async fn hear(&mut self) -> io::Result<ToHost> {
        loop {
            if let Some((message, _)) = self.reader.next()? {
                return Ok(message);
            }
            if !fill(&self.pipe, &mut self.reader).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Sends a small frame, as the last word. Nothing was sent before, so it always fits.
    pub fn refuse(&self, frame: &Frame) {
        let _ = self.pipe.try_write(&frame.head);
    }

    /// Its link, and what has been read beyond the hello.
    ///
    /// # Errors
    /// None here.
    pub fn into_link(self) -> io::Result<(Arc<LocalLink>, FrameReader<ToHost>)> {
        let link = LocalLink {
            pipe: Mutex::new(Some(Arc::new(self.pipe))),
            outbox: Mutex::default(),
            blocked: Notify::new(),
            closing: Notify::new(),
        };
        Ok((Arc::new(link), self.reader))
    }
}

/// Reads once, when there is something. False at the end.
async fn fill<M: serde::de::DeserializeOwned>(
    pipe: &NamedPipeServer,
    reader: &mut FrameReader<M>,
) -> io::Result<bool> {
    loop {
        pipe.readable().await?;
        match reader.fill(|room| try_read(pipe, room)) {
            Ok((0, _)) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

/// Reads once, without waiting: as much as mio reads ahead, at most, which is what the pipe holds.
fn try_read(pipe: &NamedPipeServer, room: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    let most = room.len().min(BUFFER as usize);
    let room = &mut room[..most];
    room.fill(MaybeUninit::new(0));
    // SAFETY: all of it has just been set.
    let room = unsafe { &mut *(std::ptr::from_mut(room) as *mut [u8]) };
    pipe.try_read(room)
}

/// The host's end of an established link.
pub struct LocalLink {
    /// `None` once the link is over: the peer sees its end when the last handle is closed.
    pipe: Mutex<Option<Arc<NamedPipeServer>>>,
    outbox: Mutex<Outbox>,
    /// Told when the pipe was full.
    blocked: Notify,
    closing: Notify,
}

impl LocalLink {
    /// Reads frames and hands them to `on_frame` until the peer is gone or says
    /// something that is not in the protocol. Runs on the I/O thread, together
    /// with what else the link needs there.
    ///
    /// # Errors
    /// Why the link is over, unless the peer, or this end, has ended it.
    pub async fn serve<M: serde::de::DeserializeOwned>(
        &self,
        mut reader: FrameReader<M>,
        mut on_frame: impl FnMut(M, Arrival),
    ) -> io::Result<()> {
        let Some(pipe) = self.pipe.lock().clone() else {
            return Ok(());
        };
        let reading = async {
            loop {
                // First: bytes may have come along with the handshake.
                while let Some((message, body)) = reader.next()? {
                    on_frame(message, body.into());
                }
                if !fill(&pipe, &mut reader).await? {
                    return Ok(());
                }
            }
        };
        let served = tokio::select! {
            biased;
            end = reading => end,
            () = self.drain_when_writable(&pipe) => Ok(()),
            () = self.closing.notified() => {
                let _ = tokio::time::timeout(LAST_WORDS, self.drain(&pipe)).await;
                Ok(())
            }
        };
        *self.pipe.lock() = None;
        served
    }

    async fn drain_when_writable(&self, pipe: &NamedPipeServer) {
        loop {
            self.blocked.notified().await;
            self.drain(pipe).await;
        }
    }

    /// Sends what has been posted.
    async fn drain(&self, pipe: &NamedPipeServer) {
        while !self.write(pipe) {
            if pipe.writable().await.is_err() {
                return;
            }
        }
    }

    /// Writes until nothing is left, or the pipe is full: then false. When the peer is gone, the outbox is emptied; the reader
    /// will notice.
    fn write(&self, pipe: &NamedPipeServer) -> bool {
        let mut outbox = self.outbox.lock();
        loop {
            let next = outbox.next();
            if next.is_empty() {
                return true;
            }
            match pipe.try_write(next) {
                Ok(written) => outbox.has_sent(written),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => outbox.clear(),
            }
        }
    }
}

impl Link for LocalLink {
    fn post(&self, frame: Frame) {
        self.outbox.lock().post(Channel::Data, frame);
    }

    fn control(&self, message: Control) {
        let frame = Frame::bare(&ToDaemon::Control(message));
        self.outbox.lock().post(Channel::Control, frame);
    }

    fn flush(&self) {
        // Without the lock of the pipe: `serve` may end meanwhile.
        let pipe = self.pipe.lock().clone();
        if pipe.is_some_and(|pipe| !self.write(&pipe)) {
            self.blocked.notify_one();
        }
    }

    fn close(&self) {
        self.closing.notify_one();
    }
}
