//! Frames for the network, which passes no descriptors.

use bytes::Bytes;

use super::{Frame, HEAD, Head, Hole, append_holes, hole};
use crate::memory::{self, Large, Mark, Pieces};

/// A frame for the network: the bytes of its segments are in their places, but are not copied there.
#[derive(Debug)]
pub struct Flat {
    head: Head,
    body: Bytes,
    pieces: Pieces,
}

impl From<Frame> for Flat {
    /// Segments are mapped; without the memory for that, their bytes are copied.
    fn from(frame: Frame) -> Flat {
        let Ok(pieces) = memory::map(frame.insets()) else {
            return frame.plain().into();
        };
        let message = &frame.head[..frame.message as usize];
        let size = frame.body.len() + pieces.size();
        let head = match frame.large.as_deref() {
            Some(Large::Insets(insets)) => {
                let hole = |inset| Hole {
                    changed: false,
                    ..hole(inset)
                };
                flat_head(message, size, insets.iter().map(hole))
            }
            Some(Large::Marks(marks)) => flat_head(message, size, holes_at(marks)),
            None => frame.head,
        };
        Flat {
            head,
            body: frame.body,
            pieces,
        }
    }
}

impl Flat {
    /// Bytes in all.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len() + self.pieces.size()
    }

    /// All of it, in order. They stay where they are when this is moved, except for the first, the head.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.head[..]).chain(memory::parts(&self.body, &self.pieces))
    }
}

/// A message's head for a body in which the large parts are in their places.
pub(super) fn flat_head(
    message: &[u8],
    body_len: usize,
    holes: impl Iterator<Item = Hole>,
) -> Head {
    let mut head = Head::from_slice(message);
    head[8..HEAD].copy_from_slice(&(body_len as u64).to_le_bytes());
    append_holes(&mut head, holes);
    head
}

/// As if what is marked were not among the bytes.
fn holes_at(marks: &[Mark]) -> impl Iterator<Item = Hole> {
    let mut taken = 0;
    marks.iter().map(move |mark| {
        // They are in order, as `Body::marked` demands.
        let at = mark.at.saturating_sub(taken) as u64;
        taken += mark.len;
        Hole {
            at,
            len: mark.len as u64,
            changed: false,
        }
    })
}
