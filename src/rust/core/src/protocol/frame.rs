//! Framing: how messages are laid into a byte stream and taken out again.
//!
//! A frame is a 16-byte head, a meta part (a serde message in postcard's
//! format) and a body of opaque bytes:
//!
//! | bytes | content |
//! | --- | --- |
//! | 0..4 | magic, `"mira"` |
//! | 4..8 | length of meta, `u32` little endian |
//! | 8..16 | length of body, `u64` little endian |
//!
//! Where segments of [`memory`](crate::memory) belong into the body, the meta part goes on with a
//! list of [`Hole`]s, one for each; their descriptors come with the first byte of the frame.
//!
//! [`FrameReader`] does no I/O of its own, so the blocking daemon and the
//! asynchronous host share it. It trusts no length: sizes are checked against
//! [`Limits`] before anything is allocated, and the memory for a body grows
//! with the bytes that have arrived, never with the bytes that were announced.

use std::io;
use std::mem::MaybeUninit;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::memory::{Body, Inset, Insets, MOST_DESCRIPTORS, prefer_huge_pages};

/// Bytes before the meta part.
pub const HEAD: usize = 16;
const MAGIC: [u8; 4] = *b"mira";
/// One read takes at most this much when no body is under way.
const READ_SIZE: usize = 64 * 1024;
/// The first step in which memory for a body grows.
const BODY_STEP: usize = 1024 * 1024;
/// Later steps reserve `GROWTH_FACTOR` times what has arrived. Reserved memory costs nothing before it is
/// filled, and with few steps little is copied.
const GROWTH_FACTOR: usize = 16;

/// Head and meta of a frame, ready to be sent before its body.
pub type Head = SmallVec<[u8; 64]>;

/// Where a segment belongs into a body, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hole {
    /// Bytes of the body before it.
    pub at: u64,
    /// Bytes of the segment.
    pub len: u64,
    /// Whether the descriptor of its changes follows its own.
    pub changed: bool,
}

/// A frame on its way out.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Sent first.
    pub head: Head,
    /// Sent after the head, without its segments.
    pub body: Bytes,
    insets: Option<Insets>,
    /// Bytes of the head without the list of holes.
    message: u32,
}

impl Frame {
    /// A frame with a body.
    pub fn new<M: Serialize>(meta: &M, body: impl Into<Body>) -> Frame {
        let (body, insets) = body.into().into_parts();
        let mut head = encode_head(meta, body.len());
        let message = head.len() as u32;
        if let Some(insets) = &insets {
            append_holes(&mut head, insets);
        }
        Frame {
            head,
            body,
            insets,
            message,
        }
    }

    /// A frame that is all meta.
    pub fn bare<M: Serialize>(meta: &M) -> Frame {
        Frame::new(meta, Bytes::new())
    }

    /// Segments, whose descriptors go with the first byte.
    pub fn insets(&self) -> &[Inset] {
        self.insets.as_deref().map_or(&[], Vec::as_slice)
    }

    /// The same for a link that passes no descriptors.
    #[must_use]
    pub fn plain(self) -> Frame {
        if self.insets().is_empty() {
            return self;
        }
        let body = Body::from_parts(self.body, self.insets).plain();
        let mut head = Head::from_slice(&self.head[..self.message as usize]);
        let meta_len = self.message - HEAD as u32;
        head[4..8].copy_from_slice(&meta_len.to_le_bytes());
        head[8..HEAD].copy_from_slice(&(body.len() as u64).to_le_bytes());
        Frame {
            head,
            body,
            insets: None,
            message: self.message,
        }
    }
}

/// Lays out head and meta for a body of `body_len` bytes that follows.
pub fn encode_head<M: Serialize>(meta: &M, body_len: usize) -> Head {
    struct Into(Head);
    impl postcard::ser_flavors::Flavor for Into {
        type Output = Head;
        fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
            self.0.push(byte);
            Ok(())
        }
        fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
            self.0.extend_from_slice(data);
            Ok(())
        }
        fn finalize(self) -> postcard::Result<Head> {
            Ok(self.0)
        }
    }
    let mut head = Head::from_slice(&[0; HEAD]);
    head[..4].copy_from_slice(&MAGIC);
    head[8..].copy_from_slice(&(body_len as u64).to_le_bytes());
    // Our messages hold numbers and strings, which postcard always encodes.
    let mut head = postcard::serialize_with_flavor(meta, Into(head)).expect("message encodes");
    let meta_len = (head.len() - HEAD) as u32;
    head[4..8].copy_from_slice(&meta_len.to_le_bytes());
    head
}

/// As [`encode_head`], for a body in which there are to be segments.
pub fn encode_head_with<M: Serialize>(meta: &M, body_len: usize, insets: &[Inset]) -> Head {
    let mut head = encode_head(meta, body_len);
    append_holes(&mut head, insets);
    head
}

fn append_holes(head: &mut Head, insets: &[Inset]) {
    if insets.is_empty() {
        return;
    }
    let holes: Vec<Hole> = insets
        .iter()
        .map(|inset| Hole {
            at: inset.at as u64,
            len: inset.segment.len() as u64,
            changed: inset.segment.weight() > 1,
        })
        .collect();
    debug_assert!(descriptors(&holes) <= MOST_DESCRIPTORS);
    head.extend_from_slice(&postcard::to_allocvec(&holes).expect("numbers encode"));
    let meta_len = (head.len() - HEAD) as u32;
    head[4..8].copy_from_slice(&meta_len.to_le_bytes());
}

/// Of meta and body, as a head says.
fn lengths(head: &[u8; HEAD]) -> (u32, u64) {
    let [_, _, _, _, a, b, c, d, body @ ..] = *head;
    (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(body))
}

/// That come with a frame.
fn descriptors(holes: &[Hole]) -> usize {
    let changed = holes.iter().filter(|hole| hole.changed);
    holes.len() + changed.count()
}

/// The largest sizes that a peer may announce.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of meta.
    pub meta: u32,
    /// Bytes of body.
    pub body: u64,
}

impl Limits {
    /// Before a peer has introduced itself: a hello and nothing else.
    pub const HANDSHAKE: Limits = Limits {
        meta: 8 * 1024,
        body: 0,
    };
    /// On an established link. R's vectors end at 2^52 elements; this is what
    /// a machine could conceivably hold.
    pub const LINK: Limits = Limits {
        meta: 64 * 1024,
        body: 1 << 46,
    };
}

/// Why a byte stream is not one of ours.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It does not begin as a frame does.
    #[error("not a mirai peer (bad magic)")]
    Magic,
    /// The announced length, in bytes, is beyond the [`Limits`].
    #[error("frame announces {0} bytes, more than is allowed here")]
    TooLarge(u64),
    /// The meta part is no message.
    #[error("frame holds a message that cannot be decoded")]
    Meta,
    /// Segments are announced where the link cannot pass them, or where they cannot be.
    #[error("frame has segments where there can be none")]
    Holes,
}

impl From<FrameError> for io::Error {
    fn from(e: FrameError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, e)
    }
}

/// Takes frames with meta type `M` out of a byte stream.
///
/// Call [`fill`](Self::fill) whenever bytes can be read, then
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
    holes: Vec<Hole>,
    body: Vec<u8>,
    /// Its full length.
    want: usize,
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
            Some(Partial { body, want, .. }) => {
                let left = *want - body.len();
                if body.capacity() == body.len() {
                    body.try_reserve_exact(left.min((GROWTH_FACTOR * body.len()).max(BODY_STEP)))
                        .map_err(|_| io::ErrorKind::OutOfMemory)?;
                    prefer_huge_pages(body.spare_capacity_mut());
                }
                (body, left)
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

    /// Whether it is in the middle of a frame.
    pub fn is_within_frame(&self) -> bool {
        self.partial.is_some() || self.start < self.buf.len()
    }

    /// Whether a complete frame has been read that was not taken yet. One that is in error may count.
    pub fn holds_frame(&self) -> bool {
        if let Some(Partial { body, want, .. }) = &self.partial {
            return body.len() == *want;
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
        if let Some(Partial { body, want, .. }) = &self.partial {
            if body.len() < *want {
                return Ok(None);
            }
            return Ok(self.partial.take().map(|p| (p.message, p.body, p.holes)));
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
            list => self.holes(list, body_len as u64)?,
        };
        let rest = &rest[meta_len..];
        if rest.len() >= body_len {
            let body = rest[..body_len].to_vec();
            self.start += HEAD + meta_len + body_len;
            Ok(Some((message, body, holes)))
        } else {
            let body = rest.to_vec();
            self.buf.clear();
            self.start = 0;
            self.partial = Some(Partial {
                message,
                holes,
                body,
                want: body_len,
            });
            Ok(None)
        }
    }

    fn holes(&self, list: &[u8], body_len: u64) -> Result<Vec<Hole>, FrameError> {
        // What a list says of its length is not believed: so much must be there for each.
        let (holes, unread) =
            postcard::take_from_bytes::<Vec<Hole>>(list).map_err(|_| FrameError::Meta)?;
        let mut size = body_len;
        for hole in &holes {
            size = size.saturating_add(hole.len);
        }
        if size > self.limits.body || usize::try_from(size).is_err() {
            return Err(FrameError::TooLarge(size));
        }
        let in_order = holes.is_sorted_by_key(|hole| hole.at);
        let inside = holes.last().is_some_and(|hole| hole.at <= body_len);
        let too_many = descriptors(&holes) > MOST_DESCRIPTORS;
        if !unread.is_empty() || too_many || !in_order || !inside {
            return Err(FrameError::Holes);
        }
        Ok(holes)
    }
}

#[cfg(test)]
mod tests;
