//! The ring of a link: the host offers it, and the daemon may take it.
//!
//! It carries the same frames as the socket, from daemon to host. They are in one order, although two ways lead there:
//! [`ToHost::BySocket`] in the ring and [`ToHost::ByRing`] in the socket say where the next frame is found.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::{recv_with_fds, send_some};
use crate::memory::Arrival;
use crate::protocol::{Control, Frame, FrameReader, Limits, ToHost};
use crate::sys::board::{Board, Notice};
use crate::sys::readers::{self, Seat};
use crate::sys::ring;

/// The host's end of a ring.
pub(super) struct Offered {
    pub(super) seat: Seat,
    pub(super) frames: RingFrames,
}

/// Offers a ring, through a control channel through which nothing was sent before.
///
/// # Errors
/// This system has none, or no memory for it. The link does without.
pub(super) fn offer(control: &OwnedFd) -> io::Result<Offered> {
    let none = || io::Error::from(io::ErrorKind::Unsupported);
    let board = Board::get().ok_or_else(none)?;
    let seat = readers::seat().ok_or_else(none)?;
    let (reader, fd) = ring::ring()?;
    let frame = Frame::bare(&Control::Ring { mark: seat.mark() });
    // The first bytes in an empty socket: they fit.
    let pass = [fd.as_fd(), board.fd().as_fd()];
    send_some(control, &frame.head, &[], 0, &pass)?;
    let frames = RingFrames::new(reader);
    Ok(Offered { seat, frames })
}

/// Frames that come by the ring.
pub(super) struct RingFrames {
    ring: ring::Reader,
    reader: FrameReader<ToHost>,
    /// Whether the next frame is to come by the ring.
    pub(super) current: bool,
}

impl RingFrames {
    fn new(ring: ring::Reader) -> RingFrames {
        RingFrames {
            ring,
            reader: FrameReader::new(Limits::LINK),
            current: false,
        }
    }

    /// Takes what has been written so far, up to the frame that says that the next one comes by the socket. For what is
    /// written later, the daemon wakes this process again.
    ///
    /// # Errors
    /// It is not in the protocol.
    pub(super) fn take(&mut self, on_frame: &mut impl FnMut(ToHost, Arrival)) -> io::Result<()> {
        self.ring.answer();
        let mut left = self.ring.unread()?;
        loop {
            while self.current {
                match self.reader.next()? {
                    Some((ToHost::BySocket, _)) => self.current = false,
                    Some((ToHost::ByRing | ToHost::Look, _)) => return Err(misplaced()),
                    Some((message, body)) => on_frame(message, body.into()),
                    None => break,
                }
            }
            if !self.current || left == 0 {
                return Ok(());
            }
            let ring = &mut self.ring;
            let (read, _) = self.reader.fill(|room| ring.read(left, room))?;
            left = left.saturating_sub(read.max(1));
        }
    }

    /// Nothing is taken any more but what has been written before this.
    pub(super) fn close(&self) {
        self.ring.close();
    }
}

/// A frame has come where another way was announced.
pub(super) fn misplaced() -> io::Error {
    let text = "a message has come by a way that it should not have";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The daemon's end of a ring.
pub(crate) struct Taken {
    /// To which messages are written.
    pub(crate) ring: ring::Writer,
    /// With the mark.
    pub(crate) notice: Notice,
}

/// Takes the ring that the host has offered, if it has: to be called after it has said welcome. Also returns another
/// message that has come in its place.
///
/// # Errors
/// Of the control channel.
pub(crate) fn take_ring(
    control: &UnixStream,
    reader: &mut FrameReader<Control>,
) -> io::Result<(Option<Taken>, Option<Control>)> {
    let mut passed = std::collections::VecDeque::new();
    // The offer is there already, or there is none.
    control.set_nonblocking(true)?;
    let filled = reader.fill(|room| recv_with_fds(control.as_fd(), room, &mut passed));
    control.set_nonblocking(false)?;
    match filled {
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
        _ => {}
    }
    let Some((message, _)) = reader.next()? else {
        return Ok((None, None));
    };
    let Control::Ring { mark } = message else {
        return Ok((None, Some(message)));
    };
    let fds: Vec<OwnedFd> = passed.into_iter().flatten().collect();
    let [ring, board] = fds.as_slice() else {
        return Ok((None, None));
    };
    // Without a ring, everything goes by the socket.
    let ring = ring::Writer::receive(ring.as_fd());
    let notice = Notice::receive(board.as_fd(), mark);
    let taken = ring
        .and_then(|ring| {
            Ok(Taken {
                ring,
                notice: notice?,
            })
        })
        .ok();
    Ok((taken, None))
}
