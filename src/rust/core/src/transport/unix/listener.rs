//! The host's end, from a bare connection to a link.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

use super::{UnixLink, check_peer, listen, recv_with_fd, send_all};
use crate::descriptors::out_of_the_way;
use crate::protocol::{Frame, FrameReader, Limits, ToHost};
use crate::sys::io_thread;
use crate::transport::Address;

/// Listens at a URL of this machine. What it leaves in the file system is removed by [`unlink`](super::unlink).
pub struct Listener(tokio::net::UnixListener);

impl Listener {
    /// Must be called within the I/O runtime.
    ///
    /// # Errors
    /// The name is taken, or this system has no such transport.
    pub fn bind(address: &Address) -> io::Result<Listener> {
        let listener: OwnedFd = listen(address)?.into();
        let listener = std::os::unix::net::UnixListener::from(out_of_the_way(listener));
        listener.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(listener).map(Listener)
    }

    /// The next connection.
    ///
    /// # Errors
    /// There is no descriptor for it.
    pub async fn accept(&mut self) -> io::Result<Stranger> {
        let (stream, _) = self.0.accept().await?;
        let source = io_thread::register(stream.into_std()?)?;
        Ok(Stranger {
            source,
            reader: FrameReader::new(Limits::HANDSHAKE),
            control: None,
        })
    }
}

/// A peer that has connected, and may send one small hello.
pub struct Stranger {
    source: AsyncFd<UnixStream>,
    reader: FrameReader<ToHost>,
    /// Its control channel, which comes with the hello.
    control: Option<OwnedFd>,
}

impl Stranger {
    /// What it says first.
    ///
    /// # Errors
    /// It belongs to another user, has passed no control channel, or is none of ours.
    pub async fn hear(&mut self) -> io::Result<ToHost> {
        check_peer(self.source.get_ref())?;
        let message = loop {
            if let Some((message, _)) = self.reader.next()? {
                break message;
            }
            let mut ready = self.source.readable().await?;
            let (reader, control) = (&mut self.reader, &mut self.control);
            let read = ready.try_io(|s| reader.fill(|room| recv_with_fd(s.as_fd(), room, control)));
            match read {
                Ok(Ok((0, _))) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(e)) => return Err(e),
            }
        };
        match self.control {
            Some(_) => Ok(message),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Sends a small frame, as the last word. The socket's buffer is empty, so it always fits.
    pub fn refuse(&self, frame: &Frame) {
        let _ = send_all(self.source.get_ref(), &frame.head, &[], None);
    }

    /// Its link, and what has been read beyond the hello. Must be called within the I/O runtime.
    ///
    /// # Errors
    /// There is no descriptor for it.
    pub fn into_link(self) -> io::Result<(Arc<UnixLink>, FrameReader<ToHost>)> {
        let control = self.control.ok_or(io::ErrorKind::InvalidData)?;
        let link = UnixLink::new(self.source.into_inner().into(), control)?;
        #[cfg(target_os = "linux")]
        link.offer_ring();
        Ok((link, self.reader))
    }
}
