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
//! list of [`Hole`]s, one for each. On a link that passes descriptors, those come with the first byte of the frame, and
//! the body is without the segments. Across the network their bytes stand in their places, and count in the length of the
//! body: see [`Flat`]. There the list only tells the reader which bytes are worth memory of their own, and has also the
//! [`Mark`]s of a body.
//!
//! [`FrameReader`] does no I/O of its own, so the blocking daemon and the
//! asynchronous host share it. It trusts no length: sizes are checked against
//! [`Limits`] before anything is allocated, and the memory for a body grows
//! with the bytes that have arrived, never with the bytes that were announced.

mod flat;
mod reader;

pub use flat::Flat;
pub use reader::FrameReader;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::memory::{Body, Inset, Large, MOST_DESCRIPTORS};

use self::flat::flat_head;

/// Bytes before the meta part.
pub const HEAD: usize = 16;
const MAGIC: [u8; 4] = *b"mira";
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
    large: Option<Arc<Large>>,
    /// Bytes of the head without the list of holes.
    message: u32,
}

impl Frame {
    /// A frame with a body.
    pub fn new<M: Serialize>(meta: &M, body: impl Into<Body>) -> Frame {
        let (body, large) = body.into().into_parts();
        let mut head = encode_head(meta, body.len());
        let message = head.len() as u32;
        if let insets @ [_, ..] = Large::insets_of(large.as_ref()) {
            debug_assert!(
                insets.iter().map(|i| i.segment.weight()).sum::<usize>() <= MOST_DESCRIPTORS
            );
            append_holes(&mut head, insets.iter().map(hole));
        }
        Frame {
            head,
            body,
            large,
            message,
        }
    }

    /// A frame that is all meta.
    pub fn bare<M: Serialize>(meta: &M) -> Frame {
        Frame::new(meta, Bytes::new())
    }

    /// Segments, whose descriptors go with the first byte.
    pub fn insets(&self) -> &[Inset] {
        Large::insets_of(self.large.as_ref())
    }

    /// Bytes in all, those of segments included.
    pub fn size(&self) -> usize {
        let segments: usize = self.insets().iter().map(|i| i.segment.len()).sum();
        self.head.len() + self.body.len() + segments
    }

    /// The same with the bytes of its segments in their places, in one piece of memory: for a link that passes no
    /// descriptors.
    #[must_use]
    pub fn plain(self) -> Frame {
        if self.insets().is_empty() {
            return self;
        }
        let body = Body::from_parts(self.body, self.large).plain();
        let head = flat_head(
            &self.head[..self.message as usize],
            body.len(),
            std::iter::empty(),
        );
        Frame {
            head,
            body,
            large: None,
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
    append_holes(&mut head, insets.iter().map(hole));
    head
}

fn hole(inset: &Inset) -> Hole {
    Hole {
        at: inset.at as u64,
        len: inset.segment.len() as u64,
        changed: inset.segment.weight() > 1,
    }
}

/// Has a head end with this list, and say how long it is.
fn append_holes(head: &mut Head, holes: impl Iterator<Item = Hole>) {
    let holes: Vec<Hole> = holes.collect();
    if !holes.is_empty() {
        head.extend_from_slice(&postcard::to_allocvec(&holes).expect("numbers encode"));
    }
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
    /// What has come cannot be kept.
    #[error("no memory for a message: {0}")]
    Memory(io::Error),
}

impl From<FrameError> for io::Error {
    fn from(e: FrameError) -> io::Error {
        match e {
            FrameError::Memory(e) => e,
            e => io::Error::new(io::ErrorKind::InvalidData, e),
        }
    }
}
