//! Large parts of messages in shared memory, between processes of one machine.
//!
//! Larger parts of a message may travel apart from its bytes. Each is an [`Inset`]: a [`Segment`] of memory and the
//! place at which its bytes belong. A segment is a sealed memfd: the sender has copied the bytes there once, and
//! nobody, the sender included, can change or cut them any more. It has no name. The kernel frees the memory with the
//! last descriptor and the last mapping.
//!
//! A link that can pass descriptors sends segments as they are, and the receiver maps them,
//! each for itself (copy on write), as [`Piece`]s of a [`Content`]. For any other link the bytes are put back in. Across the
//! network the receiver hears where they are, as it does of large parts that never were a segment ([`Mark`]s), and
//! reads them into memory of their own: also a [`Mapping`], though of nothing that others have (`protocol::frame`).
//! Which bytes are worth a segment, and what a reader makes of a mapping, is decided by the language binding, which need
//! not know the kind of link.
//!
//! Which type holds a message depends on its direction and on who owns the bytes:
//!
//! | direction | borrowed | owned by one | shared by clones |
//! | --- | --- | --- | --- |
//! | to be sent | [`Parts`] | [`Draft`], a segment being written | [`Body`] |
//! | arrived | | [`Arrival`]: segments, not yet mapped, or memory of its own | `Kept`, mapped anew for each reader |
//! | ready to read | | [`Content`]: mapped | [`Mapping`] of a [`Piece`], in an `Arc` |
//!
//! Values of other tasks may be attached to a message: see [`Layout`].
//!
//! A [`Segment`] is shared by its clones; an [`Inset`] is a segment with its place in a message, and a
//! [`Piece`] is a mapping with its place.
//!
//! Descriptors and mappings are limited resources of a process. Beyond [`MOST_DESCRIPTORS`] in a
//! message, and a share of what the system allows in all, no more are made: bytes are copied
//! instead.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

mod attached;
mod filling;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod none;

pub use attached::{Layout, Value};
pub(crate) use attached::{Passed, onward};
pub(crate) use filling::{FIRST_STEP, Filling, GROWTH_FACTOR};
#[cfg(target_os = "linux")]
pub use linux::{Draft, Mapping, Segment, prefer_huge_pages, private_bytes};
#[cfg(not(target_os = "linux"))]
pub use none::{Draft, Mapping, Segment, prefer_huge_pages, private_bytes};

/// Descriptors of one message at most; the kernel passes no more than 253 at a time.
pub const MOST_DESCRIPTORS: usize = 250;

/// A segment in its place.
#[derive(Clone, Debug)]
pub struct Inset {
    /// Number of bytes of the message, without its insets, that come before it.
    pub at: usize,
    /// What belongs there.
    pub segment: Segment,
}

/// A large part of a message that stands among its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Number of bytes of the message that come before it.
    pub at: usize,
    /// Bytes of it.
    pub len: usize,
}

/// A message to send, owned. Clones share the memory.
#[derive(Clone, Debug, Default)]
pub struct Body {
    /// The message without its insets.
    pub bytes: Bytes,
    /// `None` for most bodies.
    large: Option<Arc<Large>>,
    /// See [`attached`](Self::attached).
    attached: u32,
}

/// The large parts of a message, in order of their places.
#[derive(Debug)]
pub(crate) enum Large {
    Insets(Vec<Inset>),
    Marks(Vec<Mark>),
}

impl Large {
    pub(crate) fn insets_of(large: Option<&Arc<Large>>) -> &[Inset] {
        match large.map(|large| &**large) {
            Some(Large::Insets(insets)) => insets,
            _ => &[],
        }
    }
}

impl Body {
    /// A message of `bytes` with `insets`, which are in order of their places.
    pub fn new(bytes: Bytes, insets: Vec<Inset>) -> Body {
        Body {
            bytes,
            large: (!insets.is_empty()).then(|| Arc::new(Large::Insets(insets))),
            attached: 0,
        }
    }

    /// A message of `bytes` with large parts among them, which are in order of their places, and no more than
    /// [`MOST_DESCRIPTORS`].
    pub fn marked(bytes: Bytes, marks: Vec<Mark>) -> Body {
        debug_assert!(marks.len() <= MOST_DESCRIPTORS);
        debug_assert!(marks.is_sorted_by(|a, b| a.at + a.len <= b.at));
        debug_assert!(
            marks
                .last()
                .is_none_or(|mark| mark.at + mark.len <= bytes.len())
        );
        Body {
            bytes,
            large: (!marks.is_empty()).then(|| Arc::new(Large::Marks(marks))),
            attached: 0,
        }
    }

    /// The segments, in order of their places.
    pub fn insets(&self) -> &[Inset] {
        Large::insets_of(self.large.as_ref())
    }

    /// The same, borrowed.
    pub(crate) fn parts(&self) -> Parts<'_> {
        Parts {
            bytes: &self.bytes,
            insets: self.insets(),
            marks: match self.large.as_deref() {
                Some(Large::Marks(marks)) => marks,
                _ => &[],
            },
        }
    }

    pub(crate) fn into_parts(self) -> (Bytes, Option<Arc<Large>>) {
        (self.bytes, self.large)
    }

    pub(crate) fn from_parts(bytes: Bytes, large: Option<Arc<Large>>) -> Body {
        Body {
            bytes,
            large,
            attached: 0,
        }
    }

    /// Bytes in all, segments included.
    pub fn size(&self) -> u64 {
        let segments: usize = self.insets().iter().map(|i| i.segment.len()).sum();
        (self.bytes.len() + segments) as u64
    }

    /// All bytes in one, those of segments put back in.
    pub fn plain(&self) -> Bytes {
        if self.insets().is_empty() {
            return self.bytes.clone();
        }
        splice(&self.bytes, self.insets(), self.size() as usize).into()
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Body {
        Body::new(bytes.into(), Vec::new())
    }
}

/// A message to send, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The message without its insets.
    pub bytes: &'a [u8],
    /// The segments, in order of their places.
    pub insets: &'a [Inset],
    /// Where there are no segments: the large parts among the bytes, in order of their places.
    pub marks: &'a [Mark],
}

impl Parts<'_> {
    /// The same with the bytes in `bytes`, which are these.
    pub(crate) fn with(self, bytes: Bytes) -> Body {
        match self.insets {
            [] => Body::marked(bytes, self.marks.to_vec()),
            insets => Body::new(bytes, insets.to_vec()),
        }
    }

    /// Whether there are no segments.
    pub fn is_plain(&self) -> bool {
        self.insets.is_empty()
    }

    /// All bytes in one, those of segments put back in.
    pub fn plain(&self) -> Cow<'_, [u8]> {
        if self.is_plain() {
            return Cow::Borrowed(self.bytes);
        }
        Cow::Owned(splice(self.bytes, self.insets, self.bytes.len()))
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> From<&'a T> for Parts<'a> {
    fn from(bytes: &'a T) -> Parts<'a> {
        Parts {
            bytes: bytes.as_ref(),
            insets: &[],
            marks: &[],
        }
    }
}

fn splice(bytes: &[u8], insets: &[Inset], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(size);
    let mut taken = 0;
    for inset in insets {
        out.extend_from_slice(&bytes[taken..inset.at]);
        taken = inset.at;
        inset.segment.append_to(&mut out);
    }
    out.extend_from_slice(&bytes[taken..]);
    out
}

/// A message as it has arrived: its segments are not mapped yet.
#[derive(Debug, Default)]
pub struct Arrival {
    /// The message without its large parts.
    pub bytes: Vec<u8>,
    /// The segments, in order of their places.
    pub insets: Vec<Inset>,
    /// If there are no segments: what was read into memory of its own, and the number of bytes that come before.
    pub apart: Vec<(usize, Mapping)>,
}

impl From<Vec<u8>> for Arrival {
    fn from(bytes: Vec<u8>) -> Arrival {
        Arrival {
            bytes,
            ..Arrival::default()
        }
    }
}

/// A mapping in its place.
#[derive(Debug)]
pub struct Piece {
    at: usize,
    memory: Arc<Mapping>,
    /// Its holder may write to it, so it is given away only once.
    given: AtomicBool,
    /// It goes on to others as it is, so it is given to nobody.
    kept: AtomicBool,
}

impl Piece {
    fn new(at: usize, memory: Arc<Mapping>) -> Piece {
        Piece {
            at,
            memory,
            given: AtomicBool::new(false),
            kept: AtomicBool::new(false),
        }
    }

    /// Number of bytes of the message, without its pieces, that come before it.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The memory to read. To write to it, see [`give`](Self::give).
    pub fn memory(&self) -> &Arc<Mapping> {
        &self.memory
    }

    /// The memory to keep and to write to. Only the first call returns it; later callers must copy.
    pub fn give(&self) -> Option<Arc<Mapping>> {
        if self.kept.load(Ordering::SeqCst) {
            return None;
        }
        (!self.given.swap(true, Ordering::Acquire)).then(|| self.memory.clone())
    }
}

/// The mappings of a message, in order of their places.
#[derive(Debug, Default)]
// Most messages have none.
#[allow(clippy::box_collection)]
pub struct Pieces(Option<Box<Vec<Piece>>>);

impl FromIterator<Piece> for Pieces {
    fn from_iter<I: IntoIterator<Item = Piece>>(pieces: I) -> Pieces {
        let pieces: Vec<Piece> = pieces.into_iter().collect();
        Pieces((!pieces.is_empty()).then(|| Box::new(pieces)))
    }
}

impl Pieces {
    /// Bytes of all of them.
    pub(crate) fn size(&self) -> usize {
        size_of(self)
    }
}

/// Bytes of all pieces.
fn size_of(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.memory.len()).sum()
}

impl std::ops::Deref for Pieces {
    type Target = [Piece];
    fn deref(&self) -> &[Piece] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

/// Maps segments afresh. An error: there are too many mappings, or no memory.
pub fn map(insets: &[Inset]) -> io::Result<Pieces> {
    let piece = |inset: &Inset| Ok(Piece::new(inset.at, Arc::new(inset.segment.map()?)));
    insets.iter().map(piece).collect()
}

/// A message that has arrived, ready to be read.
#[derive(Debug, Default)]
pub struct Content {
    /// The message without its pieces.
    pub bytes: Vec<u8>,
    /// What belongs into the message.
    pub pieces: Pieces,
    notes: Notes,
}

/// Bytes that came with a value. Most values have none, so they take one word.
// The second box makes that word of two.
#[allow(clippy::box_collection)]
type Notes = Option<Box<Vec<u8>>>;

impl Content {
    /// Splits off the last `n` bytes, which are notes beside the value. They stay where they are if
    /// the message has fewer than `n`, or if a piece belongs among them: then a peer has lied, and the reader of the
    /// value will find that out.
    pub(crate) fn split_notes(&mut self, n: u64) {
        let Some(at) = usize::try_from(n)
            .ok()
            .filter(|n| *n > 0)
            .and_then(|n| self.bytes.len().checked_sub(n))
        else {
            return;
        };
        if self.pieces.iter().all(|piece| piece.at <= at) {
            self.notes = Some(Box::new(self.bytes.split_off(at)));
        }
    }

    /// What the language runtime of the daemon has noted beside the value.
    pub fn notes(&self) -> Option<&[u8]> {
        self.notes.as_deref().map(Vec::as_slice)
    }

    /// Bytes of the value, its pieces included.
    pub fn size(&self) -> u64 {
        (self.bytes.len() + self.pieces.size()) as u64
    }

    /// All of it in one.
    pub fn plain(&self) -> Cow<'_, [u8]> {
        plain(&self.bytes, &self.pieces)
    }

    /// The same, owned.
    pub(crate) fn into_plain(self) -> Vec<u8> {
        match self.pieces.is_empty() {
            true => self.bytes,
            false => self.plain().into_owned(),
        }
    }

    /// The same in parts, without a copy. Its pieces must be [reserved](Self::reserve).
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        parts(&self.bytes, &self.pieces)
    }

    /// Until [`release`](Self::release), nobody is given the memory of a piece, so that nobody writes to it. To be called
    /// before others can read it.
    pub(crate) fn reserve(&self) {
        for piece in self.pieces.iter() {
            piece.given.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn release(&self) {
        for piece in self.pieces.iter() {
            piece.given.store(false, Ordering::Release);
        }
    }
}

/// Bytes and the pieces that belong among them, in order, without a copy. Nobody must have been [given](Piece::give) a
/// piece.
pub(crate) fn parts<'a>(bytes: &'a [u8], pieces: &'a [Piece]) -> impl Iterator<Item = &'a [u8]> {
    let mut taken = 0;
    let before_last = pieces.iter().flat_map(move |piece| {
        let before = std::mem::replace(&mut taken, piece.at)..piece.at;
        // SAFETY: nobody has been given the memory to write to it.
        [&bytes[before], unsafe { piece.memory.bytes() }]
    });
    let last = pieces.last().map_or(0, |piece| piece.at);
    before_last.chain([&bytes[last..]])
}

/// Bytes with the pieces that belong among them, in one.
pub fn plain<'a>(bytes: &'a [u8], pieces: &[Piece]) -> Cow<'a, [u8]> {
    if pieces.is_empty() {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::new();
    let mut taken = 0;
    for piece in pieces {
        out.extend_from_slice(&bytes[taken..piece.at]);
        taken = piece.at;
        piece.memory.append_to(&mut out);
    }
    out.extend_from_slice(&bytes[taken..]);
    Cow::Owned(out)
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Content {
        Content {
            bytes,
            pieces: Pieces(None),
            notes: None,
        }
    }
}

impl From<Arrival> for Content {
    /// The descriptors are closed: a mapping needs none.
    fn from(arrival: Arrival) -> Content {
        if !arrival.apart.is_empty() {
            let piece = |(at, memory)| Piece::new(at, Arc::new(memory));
            return Content {
                bytes: arrival.bytes,
                pieces: arrival.apart.into_iter().map(piece).collect(),
                notes: None,
            };
        }
        match map(&arrival.insets) {
            Ok(pieces) => Content {
                bytes: arrival.bytes,
                pieces,
                notes: None,
            },
            Err(_) => splice(&arrival.bytes, &arrival.insets, arrival.bytes.len()).into(),
        }
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Content) -> bool {
        self.plain() == other.plain()
    }
}

impl Eq for Content {}

/// Bytes that several tasks have in common, kept as they arrived and mapped anew for each task.
#[derive(Debug)]
pub(crate) struct Kept {
    bytes: Arc<Vec<u8>>,
    insets: Vec<Inset>,
    /// Memory of its own, of which each reader makes a copy.
    apart: Vec<(usize, Arc<Mapping>)>,
    /// Number of values that are attached.
    pub(crate) attached: u32,
}

impl Kept {
    pub(crate) fn new(arrival: Arrival, attached: u32) -> Kept {
        Kept {
            bytes: Arc::new(arrival.bytes),
            insets: arrival.insets,
            apart: arrival
                .apart
                .into_iter()
                .map(|(at, memory)| (at, Arc::new(memory)))
                .collect(),
            attached,
        }
    }

    /// The shared bytes, and new mappings.
    pub(crate) fn lend(&self) -> (Arc<Vec<u8>>, Pieces) {
        if !self.apart.is_empty() {
            let piece = |(at, memory): &(usize, Arc<Mapping>)| Piece {
                kept: AtomicBool::new(true),
                ..Piece::new(*at, memory.clone())
            };
            return (self.bytes.clone(), self.apart.iter().map(piece).collect());
        }
        match map(&self.insets) {
            Ok(pieces) => (self.bytes.clone(), pieces),
            Err(_) => {
                let plain = splice(&self.bytes, &self.insets, self.bytes.len());
                (Arc::new(plain), Pieces(None))
            }
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn body() -> Body {
        let inset = |at, bytes: &[u8]| Inset {
            at,
            segment: Segment::copy_of(bytes).unwrap(),
        };
        let insets = vec![inset(2, b"one"), inset(2, b"two"), inset(4, b"three")];
        Body::new(Bytes::from_static(b"abcd"), insets)
    }

    #[test]
    fn segments_are_put_back_in_their_places() {
        let body = body();
        assert_eq!(body.size(), 15);
        assert_eq!(&body.plain()[..], b"abonetwocdthree");
        let parts = Parts {
            bytes: &body.bytes,
            insets: body.insets(),
            marks: &[],
        };
        assert_eq!(&parts.plain()[..], b"abonetwocdthree");
        let arrival = Arrival {
            bytes: body.bytes.to_vec(),
            insets: body.insets().to_vec(),
            apart: Vec::new(),
        };
        let content = Content::from(arrival);
        assert_eq!(content.pieces.len(), 3);
        assert_eq!(&content.plain()[..], b"abonetwocdthree");
    }

    #[test]
    fn notes_are_split_off_a_value_unless_the_peer_has_lied() {
        let mut content = Content::from(b"valuenotes".to_vec());
        content.split_notes(5);
        assert_eq!(
            (&content.bytes[..], content.notes()),
            (&b"value"[..], Some(&b"notes"[..]))
        );
        for n in [0, 11, u64::MAX] {
            let mut content = Content::from(b"valuenotes".to_vec());
            content.split_notes(n);
            assert_eq!((content.bytes.len(), content.notes()), (10, None));
        }
        let body = body();
        for (n, bytes, notes) in [(1, 4, None), (0, 4, None)] {
            let mut content = Content::from(Arrival {
                bytes: body.bytes.to_vec(),
                insets: body.insets().to_vec(),
                apart: Vec::new(),
            });
            // The last segment belongs after all bytes.
            content.split_notes(n);
            assert_eq!((content.bytes.len(), content.notes()), (bytes, notes));
        }
    }

    #[test]
    fn memory_of_its_own_is_given_to_one_reader_and_copied_by_those_of_constants() {
        let arrival = || {
            let mut filling = Filling::new(5).unwrap();
            let taken = [&b"thr"[..], b"eefold", b"x"].map(|bytes| filling.take(bytes).unwrap());
            assert_eq!(taken, [3, 2, 0]);
            Arrival {
                bytes: b"abcd".to_vec(),
                insets: Vec::new(),
                apart: vec![(2, filling.into_memory())],
            }
        };
        let content = Content::from(arrival());
        assert_eq!(&content.plain()[..], b"abthreecd");
        let memory = content.pieces[0].give().unwrap();
        assert!(content.pieces[0].give().is_none());
        assert!(!memory.has_hardly_changed());
        let others = Content::from(arrival());
        assert_ne!(others.pieces[0].memory().file(), memory.file());

        let kept = Kept::new(arrival(), 0);
        for _ in 0..2 {
            let (bytes, pieces) = kept.lend();
            assert_eq!(&plain(&bytes, &pieces)[..], b"abthreecd");
            assert!(pieces[0].give().is_none());
        }
    }

    #[test]
    fn each_mapping_is_its_holders_own_and_given_once() {
        let kept = Kept {
            bytes: Arc::default(),
            insets: body().insets().to_vec(),
            apart: Vec::new(),
            attached: 0,
        };
        let (_, first) = kept.lend();
        let memory = first[0].give().unwrap();
        assert!(first[0].give().is_none());
        // SAFETY: three bytes, which are ours.
        unsafe { memory.as_ptr().write(b'X') };
        let (_, second) = kept.lend();
        // SAFETY: as above.
        unsafe {
            assert_eq!(first[0].memory().as_ptr().read(), b'X');
            assert_eq!(second[0].memory().as_ptr().read(), b'o');
        }
    }
}
