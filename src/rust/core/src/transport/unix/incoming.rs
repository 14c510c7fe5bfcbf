//! Frames that arrive, matched with the descriptors that came along.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::descriptors::recv_passing;
use crate::descriptors::are_scarce;
#[cfg(target_os = "linux")]
use crate::memory::Segment;
use crate::memory::{Arrival, Inset, MOST_DESCRIPTORS};
use crate::protocol::{FrameReader, Hole};

/// Takes frames, and the segments that belong to them, out of a stream.
pub struct Incoming<M> {
    reader: FrameReader<M>,
    /// Descriptors not yet matched to a frame. The frame of the first ones has begun to arrive.
    passed: VecDeque<OwnedFd>,
    /// Other links of this process may receive descriptors at the same time.
    pub(super) one_of_many: bool,
}

impl<M: serde::de::DeserializeOwned> Incoming<M> {
    /// A reader of frames with their descriptors. `reader` may have read before.
    pub fn new(reader: FrameReader<M>) -> Incoming<M> {
        Incoming {
            reader,
            passed: VecDeque::new(),
            one_of_many: false,
        }
    }

    /// Reads once. Returns what [`FrameReader::fill`] does.
    pub fn fill(&mut self, fd: BorrowedFd<'_>) -> io::Result<(usize, bool)> {
        let before = self.passed.len();
        let passed = &mut self.passed;
        let first_look = self.one_of_many && are_scarce();
        let recv = |room: &mut [_]| recv_passing(fd, room, passed, first_look);
        let (got, drained) = self.reader.fill(recv)?;
        if self.passed.len() > 2 * MOST_DESCRIPTORS {
            return Err(unannounced());
        }
        // A read ends after bytes with which descriptors came, whatever else there is.
        Ok((got, drained && self.passed.len() == before))
    }

    /// Whether [`next_frame`](Self::next_frame) would return one.
    pub fn holds_frame(&self) -> bool {
        self.reader.holds_frame()
    }

    /// The next complete frame, if there is one.
    pub fn next_frame(&mut self) -> io::Result<Option<(M, Arrival)>> {
        let Some((message, bytes, holes)) = self.reader.next_with_holes()? else {
            if !self.passed.is_empty() && !self.reader.is_within_frame() {
                return Err(unannounced());
            }
            return Ok(None);
        };
        let mut arrival = Arrival::from(bytes);
        for hole in holes {
            arrival.insets.push(inset(&mut self.passed, hole)?);
        }
        Ok(Some((message, arrival)))
    }
}

#[cfg(target_os = "linux")]
fn inset(passed: &mut VecDeque<OwnedFd>, hole: Hole) -> io::Result<Inset> {
    let mut next = || passed.pop_front().ok_or_else(unannounced);
    let fd = next()?;
    let changes = hole.changed.then(next).transpose()?;
    // `FrameReader` has checked the lengths.
    Ok(Inset {
        at: hole.at as usize,
        segment: Segment::receive(fd, hole.len as usize, changes)?,
    })
}

#[cfg(not(target_os = "linux"))]
fn inset(_: &mut VecDeque<OwnedFd>, _: Hole) -> io::Result<Inset> {
    Err(unannounced())
}

fn unannounced() -> io::Error {
    let text = "descriptors passed and frames do not fit together";
    io::Error::new(io::ErrorKind::InvalidData, text)
}
