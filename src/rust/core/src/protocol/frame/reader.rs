//! Taking frames out of a byte stream.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;

use serde::de::DeserializeOwned;

use super::{FrameError, HEAD, Hole, Limits, MAGIC, descriptors, lengths};
use crate::memory::{
    Arrival, FIRST_STEP, Filling, GROWTH_FACTOR, MOST_DESCRIPTORS, Mapping, prefer_huge_pages,
};

/// One read takes at most this much when no body is under way.
const READ_SIZE: usize = 64 * 1024;
/// What is announced among the bytes of a body gets memory of its own from this size on (less in tests). For blocks of less
/// than this, glibc's malloc comes to use memory again that was freed (`DEFAULT_MMAP_THRESHOLD_MAX`); to copy once more is
/// faster then than to have the system give new memory.
const APART: usize = if cfg!(test) { 128 << 10 } else { 32 << 20 };

/// Takes frames with meta type `M` out of a byte stream.
///
/// Call [`fill`](Self::fill) or [`feed`](Self::feed) whenever bytes can be read, then
/// [`next`](Self::next) until it returns `None`.
pub struct FrameReader<M> {
    limits: Limits,
    /// Bytes not yet taken, from `start` on.
    buf: Vec<u8>,
    start: usize,
    /// A frame whose body is still arriving.
    partial: Option<Partial<M>>,
}

struct Partial<M> {
    message: M,
    /// Of a link that passes descriptors.
    holes: Vec<Hole>,
    body: Vec<u8>,
    /// Its full length.
    want: usize,
    apart: Apart,
}

/// Where the segments are that a frame has.
#[derive(Clone, Copy)]
enum Segments {
    /// Descriptors are passed beside the stream, or there are no segments.
    Beside,
    /// Their bytes are in the stream.
    Among,
}

/// Large parts that come among the bytes of a body, and get memory of their own.
#[derive(Default)]
struct Apart {
    coming: VecDeque<Hole>,
    /// The one that arrives now.
    filling: Option<Filling>,
    /// With the number of bytes of the body that come before.
    arrived: Vec<(usize, Mapping)>,
    /// Bytes of holes that have become a part of the body.
    put_back: usize,
}

impl<M> Partial<M> {
    fn is_whole(&self) -> bool {
        self.body.len() == self.want && self.apart.coming.is_empty() && self.apart.filling.is_none()
    }

    /// Bytes of the body that come next, before there is a large part.
    fn run(&self) -> usize {
        let next = self.apart.coming.front();
        let until = next.map_or(self.want, |hole| hole.at as usize + self.apart.put_back);
        until - self.body.len()
    }

    /// Takes bytes of a large part, if it is the turn of one. How many, perhaps none.
    fn take_apart(&mut self, bytes: &[u8]) -> usize {
        let apart = &mut self.apart;
        while apart.filling.is_none() {
            let place = |hole: &Hole| hole.at as usize + apart.put_back;
            let next = apart.coming.front();
            let Some(hole) = next.filter(|hole| place(hole) == self.body.len()) else {
                return 0;
            };
            let len = hole.len as usize;
            apart.coming.pop_front();
            apart.filling = match len >= APART {
                true => Filling::new(len),
                false => None,
            };
            if apart.filling.is_none() {
                self.want += len;
                apart.put_back += len;
            }
        }
        let Some(filling) = &mut apart.filling else {
            return 0;
        };
        let Ok(taken) = filling.take(bytes) else {
            // What has come becomes a part of the body, and the rest comes after it.
            self.body.extend_from_slice(filling.filled());
            self.want += filling.len();
            apart.put_back += filling.len();
            apart.filling = None;
            return 0;
        };
        if filling.is_full() {
            let place = self.body.len();
            let memory = apart.filling.take().map(Filling::into_memory);
            apart.arrived.extend(memory.map(|memory| (place, memory)));
        }
        taken
    }
}

impl<M: DeserializeOwned> FrameReader<M> {
    /// A reader that has read nothing yet.
    pub fn new(limits: Limits) -> FrameReader<M> {
        FrameReader {
            limits,
            buf: Vec::new(),
            start: 0,
            partial: None,
        }
    }

    /// Continues with the bytes already read, under other limits and with
    /// another message type: for the step from handshake to link.
    pub fn into_stage<N>(self, limits: Limits) -> FrameReader<N> {
        FrameReader {
            limits,
            buf: self.buf,
            start: self.start,
            partial: None,
        }
    }

    /// Reads once through `read`, which is given the memory to fill and returns
    /// how much of it, from its beginning, it has filled.
    ///
    /// Returns the bytes read (0 at the end of the stream) and whether the
    /// source had no more to give just now.
    pub fn fill(
        &mut self,
        read: impl FnOnce(&mut [MaybeUninit<u8>]) -> io::Result<usize>,
    ) -> io::Result<(usize, bool)> {
        let (target, most) = match &mut self.partial {
            Some(partial) => {
                let (left, run) = (partial.want - partial.body.len(), partial.run());
                let body = &mut partial.body;
                if body.capacity() == body.len() {
                    body.try_reserve_exact(left.min((GROWTH_FACTOR * body.len()).max(FIRST_STEP)))
                        .map_err(|_| io::ErrorKind::OutOfMemory)?;
                    prefer_huge_pages(body.spare_capacity_mut());
                }
                (body, run)
            }
            None => {
                self.buf.drain(..self.start);
                self.start = 0;
                self.buf.reserve(READ_SIZE);
                (&mut self.buf, READ_SIZE)
            }
        };
        let len = target.len();
        let spare = target.spare_capacity_mut();
        let room = spare.len().min(most);
        let got = read(&mut spare[..room])?;
        assert!(
            got <= room,
            "read() reports more than it was given room for"
        );
        // SAFETY: `read` has initialised the first `got` bytes of the spare capacity.
        unsafe { target.set_len(len + got) };
        Ok((got, got < room))
    }

    /// Takes of bytes that are here as many as there is room for, and returns how many. Take out what they make after each.
    ///
    /// # Errors
    /// There is no memory for what has been announced.
    pub fn feed(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(partial) = &mut self.partial {
            let taken = partial.take_apart(bytes);
            if taken > 0 {
                return Ok(taken);
            }
        }
        let (taken, _) = self.fill(|room| {
            let now = room.len().min(bytes.len());
            for (slot, byte) in room.iter_mut().zip(&bytes[..now]) {
                slot.write(*byte);
            }
            Ok(now)
        })?;
        Ok(taken)
    }

    /// Whether it is in the middle of a frame.
    pub fn is_within_frame(&self) -> bool {
        self.partial.is_some() || self.start < self.buf.len()
    }

    /// Whether a complete frame has been read that was not taken yet. One that is in error may count.
    pub fn holds_frame(&self) -> bool {
        if let Some(partial) = &self.partial {
            return partial.is_whole();
        }
        let bytes = &self.buf[self.start..];
        bytes.first_chunk::<HEAD>().is_some_and(|head| {
            let (meta, body) = lengths(head);
            let len = (HEAD as u64)
                .saturating_add(meta.into())
                .saturating_add(body);
            bytes.len() as u64 >= len
        })
    }

    /// The next complete frame, if there is one. One with holes is an error.
    #[allow(clippy::should_implement_trait)] // it also returns None between frames
    pub fn next(&mut self) -> Result<Option<(M, Vec<u8>)>, FrameError> {
        match self.next_with_holes()? {
            Some((message, body, holes)) if holes.is_empty() => Ok(Some((message, body))),
            Some(_) => Err(FrameError::Holes),
            None => Ok(None),
        }
    }

    /// The next complete frame, if there is one, for a link that passes descriptors.
    #[allow(clippy::type_complexity)]
    pub fn next_with_holes(&mut self) -> Result<Option<(M, Vec<u8>, Vec<Hole>)>, FrameError> {
        let next = self.take_next(Segments::Beside)?;
        Ok(next.map(|frame| (frame.message, frame.body, frame.holes)))
    }

    /// The next complete frame, if there is one, for the network: large parts of it have memory of their own.
    pub fn next_arrival(&mut self) -> Result<Option<(M, Arrival)>, FrameError> {
        let next = self.take_next(Segments::Among)?;
        Ok(next.map(|frame| {
            let arrival = Arrival {
                bytes: frame.body,
                insets: Vec::new(),
                apart: frame.apart.arrived,
            };
            (frame.message, arrival)
        }))
    }

    fn take_next(&mut self, segments: Segments) -> Result<Option<Partial<M>>, FrameError> {
        if let Some(partial) = &self.partial {
            return Ok(match partial.is_whole() {
                true => self.partial.take(),
                false => None,
            });
        }
        let bytes = &self.buf[self.start..];
        let Some(head) = bytes.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        if head[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        let (meta_len, body_len) = lengths(head);
        if meta_len > self.limits.meta {
            return Err(FrameError::TooLarge(meta_len.into()));
        }
        if body_len > self.limits.body || usize::try_from(body_len).is_err() {
            return Err(FrameError::TooLarge(body_len));
        }
        let rest = &bytes[HEAD..];
        let (meta_len, body_len) = (meta_len as usize, body_len as usize);
        if rest.len() < meta_len {
            return Ok(None);
        }
        let (message, unread) =
            postcard::take_from_bytes::<M>(&rest[..meta_len]).map_err(|_| FrameError::Meta)?;
        let holes = match unread {
            [] => Vec::new(),
            list => self.holes(list, body_len as u64, segments)?,
        };
        let rest = &rest[meta_len..];
        let mut frame = Partial {
            message,
            holes,
            body: Vec::new(),
            want: body_len,
            apart: Apart::default(),
        };
        if rest.len() >= body_len {
            frame.body = rest[..body_len].to_vec();
            self.start += HEAD + meta_len + body_len;
            return Ok(Some(frame));
        }
        let rest = rest.to_vec();
        self.buf.clear();
        self.start = 0;
        match segments {
            Segments::Beside => {
                frame.body = rest;
                self.partial = Some(frame);
            }
            Segments::Among => {
                for hole in std::mem::take(&mut frame.holes) {
                    frame.want -= hole.len as usize;
                    frame.apart.coming.push_back(hole);
                }
                self.partial = Some(frame);
                let mut rest = &rest[..];
                while !rest.is_empty() {
                    let taken = self.feed(rest).map_err(FrameError::Memory)?;
                    rest = &rest[taken..];
                }
            }
        }
        Ok(None)
    }

    fn holes(
        &self,
        list: &[u8],
        body_len: u64,
        segments: Segments,
    ) -> Result<Vec<Hole>, FrameError> {
        // Memory for the list grows with the holes that are read, whatever number of them the peer has announced.
        let (holes, unread) =
            postcard::take_from_bytes::<Vec<Hole>>(list).map_err(|_| FrameError::Meta)?;
        let size = holes
            .iter()
            .fold(0, |size: u64, hole| size.saturating_add(hole.len));
        let bytes = match segments {
            Segments::Beside => {
                let whole = body_len.saturating_add(size);
                if whole > self.limits.body || usize::try_from(whole).is_err() {
                    return Err(FrameError::TooLarge(whole));
                }
                body_len
            }
            Segments::Among => {
                let plain = |hole: &Hole| hole.len > 0 && !hole.changed;
                let bytes = body_len.checked_sub(size).ok_or(FrameError::Holes)?;
                if !holes.iter().all(plain) {
                    return Err(FrameError::Holes);
                }
                bytes
            }
        };
        let in_order = holes.is_sorted_by_key(|hole| hole.at);
        let inside = holes.last().is_some_and(|hole| hole.at <= bytes);
        let too_many = descriptors(&holes) > MOST_DESCRIPTORS;
        if !unread.is_empty() || too_many || !in_order || !inside {
            return Err(FrameError::Holes);
        }
        Ok(holes)
    }
}

#[cfg(test)]
mod tests;
