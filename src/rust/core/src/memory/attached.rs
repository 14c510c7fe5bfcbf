//! Messages with values attached: what a task needs goes along with it, as it came.
//!
//! | part of the body | what it is |
//! | --- | --- |
//! | message | what the body would be without them |
//! | values | one after the other |
//! | table | the size of each value in bytes, those of its segments included, as `u64` little endian |
//!
//! How many there are, the frame says. The sizes hold whether or not a link has put segments back among the bytes.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{Body, Content, Inset, MOST_DESCRIPTORS, Mark, Parts, Piece, Segment, size_of};

/// Bytes of a size in the table.
const SIZE: usize = 8;

/// A value to attach, borrowed: its bytes without its large parts, and these. They are segments, or pieces that nobody is
/// given.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    parts: Parts<'a>,
    pieces: &'a [Piece],
}

impl<'a> From<Parts<'a>> for Value<'a> {
    fn from(parts: Parts<'a>) -> Value<'a> {
        Value { parts, pieces: &[] }
    }
}

impl Value<'_> {
    /// Bytes in all.
    fn size(&self) -> u64 {
        self.parts.size() + size_of(self.pieces) as u64
    }
}

/// A message that values are attached to.
#[derive(Default)]
struct Whole {
    bytes: Vec<u8>,
    insets: Vec<Inset>,
    descriptors: usize,
    marks: Vec<Mark>,
}

impl Whole {
    fn add(&mut self, value: &Value<'_>) {
        let Value { parts, pieces } = value;
        let before = self.bytes.len();
        let mut taken = 0;
        for Inset { at, segment } in parts.insets {
            self.bytes.extend_from_slice(&parts.bytes[taken..*at]);
            taken = *at;
            if self.descriptors + segment.weight() <= MOST_DESCRIPTORS {
                self.descriptors += segment.weight();
                let at = self.bytes.len();
                // An iterator, because on systems without segments the compiler warns of code after `segment.clone()`, which
                // cannot be reached there.
                let segment = std::iter::once(segment).cloned();
                self.insets
                    .extend(segment.map(|segment| Inset { at, segment }));
            } else {
                segment.append_to(&mut self.bytes);
            }
        }
        for piece in *pieces {
            self.bytes
                .extend_from_slice(&parts.bytes[taken..piece.at()]);
            taken = piece.at();
            self.marks.push(Mark {
                at: self.bytes.len(),
                len: piece.memory().len(),
            });
            piece.memory().append_to(&mut self.bytes);
        }
        self.bytes.extend_from_slice(&parts.bytes[taken..]);
        let moved = parts.marks.iter().map(|mark| Mark {
            at: before + mark.at,
            ..*mark
        });
        self.marks.extend(moved);
    }
}

impl Body {
    /// The message with these values attached. Segments are shared; other bytes are copied, and so are those of segments
    /// beyond [`MOST_DESCRIPTORS`].
    #[must_use]
    pub fn attach<'a, V: Into<Value<'a>>>(
        &self,
        values: impl ExactSizeIterator<Item = V> + Clone,
    ) -> Body {
        debug_assert_eq!(self.attached, 0);
        let attached = values.len();
        let values = values.map(Into::into);
        let plain: usize = values
            .clone()
            .map(|value| value.parts.bytes.len() + size_of(value.pieces))
            .sum();
        let mut whole = Whole {
            bytes: Vec::with_capacity(self.bytes.len() + plain + attached * SIZE),
            ..Whole::default()
        };
        whole.add(&self.parts().into());
        values.clone().for_each(|value| whole.add(&value));
        for value in values {
            whole.bytes.extend_from_slice(&value.size().to_le_bytes());
        }
        let bytes = whole.bytes.into();
        // Where there are segments, what is marked is only not read into memory of its own.
        let body = match whole.insets.is_empty() {
            true => {
                whole.marks.truncate(MOST_DESCRIPTORS);
                Body::marked(bytes, whole.marks)
            }
            false => Body::new(bytes, whole.insets),
        };
        Body {
            attached: attached as u32,
            ..body
        }
    }

    /// Number of values that are attached.
    pub fn attached(&self) -> u32 {
        self.attached
    }

    /// For a relay: the bytes of a message that has arrived with `attached` values, to be sent on as they are.
    pub(crate) fn forwarded(self, attached: u32) -> Body {
        Body { attached, ..self }
    }
}

impl Parts<'_> {
    /// Bytes in all, segments included.
    fn size(&self) -> u64 {
        let segments: usize = self.insets.iter().map(|i| i.segment.len()).sum();
        (self.bytes.len() + segments) as u64
    }
}

/// Segments of pieces that nobody has been given; without a copy, where descriptors have been kept. `None`: there can be no
/// segments.
fn insets(pieces: &[Piece]) -> Option<Vec<Inset>> {
    let inset = |piece: &Piece| {
        let segment = piece.memory.original();
        // Small ones have no descriptor any more.
        // SAFETY: nobody has been given the memory to write to it.
        let segment = segment.or_else(|| Segment::copy_of(unsafe { piece.memory.bytes() }));
        Some(Inset {
            at: piece.at,
            segment: segment?,
        })
    };
    pieces.iter().map(inset).collect()
}

fn are_of_segments(pieces: &[Piece]) -> bool {
    pieces.iter().all(|piece| piece.memory.is_of_segment())
}

/// What has arrived, to go on from here; nobody is given the pieces. Segments go on as they are. Pieces of own memory become
/// segments if some link passes descriptors (`passes_memory`), and are put back among the bytes otherwise.
pub(crate) fn onward(bytes: Bytes, pieces: &[Piece], passes_memory: bool) -> Body {
    if passes_memory || are_of_segments(pieces) {
        if let Some(insets) = insets(pieces) {
            return Body::new(bytes, insets);
        }
    }
    let mut whole = Whole::default();
    let parts = Parts::from(&bytes);
    whole.add(&Value { parts, pieces });
    Body::marked(whole.bytes.into(), whole.marks)
}

/// A value that goes on to others: what is needed beside its [`Content`], which a reader may change what it is given of.
pub(crate) struct Passed {
    /// `None`: the pieces themselves, which nobody is given any more. A reader copies.
    insets: Option<Vec<Inset>>,
}

impl Passed {
    /// To be called before anybody may write to the pieces.
    pub(crate) fn new(content: &Content) -> Passed {
        // What came across the network most likely goes on there.
        let segments = are_of_segments(&content.pieces);
        let insets = segments.then(|| insets(&content.pieces)).flatten();
        if insets.is_none() {
            for piece in content.pieces.iter() {
                piece.kept.store(true, Ordering::SeqCst);
            }
        }
        Passed { insets }
    }

    pub(crate) fn value<'a>(&'a self, content: &'a Content) -> Value<'a> {
        let (insets, pieces) = match &self.insets {
            Some(insets) => (&insets[..], &[][..]),
            None => (&[][..], &content.pieces[..]),
        };
        Value {
            parts: Parts {
                bytes: &content.bytes,
                insets,
                marks: &[],
            },
            pieces,
        }
    }
}

/// Where a message that has arrived ends, and each value that is attached to it. `None` for most messages, to which
/// nothing is attached.
#[derive(Clone, Debug, Default)]
pub struct Layout(Option<Box<[End]>>);

/// Of a part: how many of the bytes, and of the pieces, come before it.
#[derive(Clone, Copy, Debug)]
struct End {
    bytes: usize,
    pieces: usize,
}

impl Layout {
    /// Checks a message that has arrived with `attached` values. `places` has an element for each piece, in order: where it
    /// belongs among the bytes, and its length in bytes.
    ///
    /// # Errors
    /// The peer has sent something else.
    pub fn new(
        bytes: &[u8],
        places: impl Iterator<Item = (usize, usize)> + Clone,
        attached: u32,
    ) -> io::Result<Layout> {
        if attached == 0 {
            return Ok(Layout(None));
        }
        Self::ends(bytes, places, attached as usize)
            .map(|ends| Layout(Some(ends)))
            .ok_or_else(|| {
                let text = "the values attached to a task do not fit";
                io::Error::new(io::ErrorKind::InvalidData, text)
            })
    }

    fn ends(
        bytes: &[u8],
        places: impl Iterator<Item = (usize, usize)> + Clone,
        attached: usize,
    ) -> Option<Box<[End]>> {
        let without_table = bytes.len().checked_sub(attached.checked_mul(SIZE)?)?;
        let sizes = bytes[without_table..].chunks_exact(SIZE).map(|size| {
            let size = size.try_into().expect("a chunk has its size");
            usize::try_from(u64::from_le_bytes(size)).ok()
        });
        let segments = places
            .clone()
            .try_fold(0usize, |sum, (_, len)| sum.checked_add(len))?;
        let whole = without_table.checked_add(segments)?;
        let values = sizes
            .clone()
            .try_fold(0usize, |sum, size| sum.checked_add(size?))?;
        let mut places = places.peekable();
        let (mut passed, mut pieces) = (0, 0);
        let mut ends = Vec::with_capacity(attached + 1);
        let mut end = whole.checked_sub(values)?;
        let mut sizes = sizes.flatten();
        loop {
            while let Some((at, len)) = places.next_if(|(at, _)| at.saturating_add(passed) < end) {
                passed += len;
                pieces += 1;
                // It may not reach into the next part.
                if at.saturating_add(passed) > end {
                    return None;
                }
            }
            ends.push(End {
                bytes: end - passed,
                pieces,
            });
            let Some(size) = sizes.next() else { break };
            end += size;
        }
        // None is behind the values.
        places.next().is_none().then(|| ends.into())
    }

    /// That of a message with these pieces.
    pub(crate) fn of(bytes: &[u8], pieces: &[Piece], attached: u32) -> io::Result<Layout> {
        let places = pieces.iter().map(|piece| (piece.at, piece.memory.len()));
        Layout::new(bytes, places, attached)
    }

    /// Number of values that are attached.
    pub fn attached(&self) -> usize {
        self.0.as_ref().map_or(0, |ends| ends.len() - 1)
    }

    /// The message itself: its bytes, and its pieces.
    pub fn message<'a>(&self, bytes: &'a [u8], pieces: &'a [Piece]) -> (&'a [u8], &'a [Piece]) {
        match self.0.as_ref().and_then(|ends| ends.first()) {
            Some(end) => (&bytes[..end.bytes], &pieces[..end.pieces]),
            None => (bytes, pieces),
        }
    }

    /// A value, by its number from 0: where its bytes are, and its pieces. `None` if there is none.
    pub fn value<'a>(&self, i: usize, pieces: &'a [Piece]) -> Option<(Range<usize>, &'a [Piece])> {
        let ends = self.0.as_ref()?;
        let (start, end) = (ends.get(i)?, ends.get(i.checked_add(1)?)?);
        Some((start.bytes..end.bytes, &pieces[start.pieces..end.pieces]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(body: &Body) -> Parts<'_> {
        Parts {
            bytes: &body.bytes,
            insets: body.insets(),
            marks: &[],
        }
    }

    /// Bytes, with segments at some places.
    fn body(bytes: &[u8], segments: &[usize]) -> Body {
        let inset = |at: &usize| Inset {
            at: *at,
            segment: Segment::copy_of(format!("segment at {at}").as_bytes()).unwrap(),
        };
        let insets = match cfg!(target_os = "linux") {
            true => segments.iter().map(inset).collect(),
            false => Vec::new(),
        };
        Body::new(bytes.to_vec().into(), insets)
    }

    /// The parts, as a reader finds them, of a message that arrives with or without its segments.
    fn arrived(body: &Body, plain: bool) -> Vec<Vec<u8>> {
        let content = if plain {
            Content::from(body.plain().to_vec())
        } else {
            Content::from(super::super::Arrival {
                bytes: body.bytes.to_vec(),
                insets: body.insets().to_vec(),
                apart: Vec::new(),
            })
        };
        let layout = Layout::of(&content.bytes, &content.pieces, body.attached()).unwrap();
        let (bytes, pieces) = layout.message(&content.bytes, &content.pieces);
        let mut out = vec![super::super::plain(bytes, pieces).into_owned()];
        for i in 0..layout.attached() {
            let (range, pieces) = layout.value(i, &content.pieces).unwrap();
            let mut value = Vec::new();
            let mut taken = range.start;
            for piece in pieces {
                value.extend_from_slice(&content.bytes[taken..piece.at]);
                taken = piece.at;
                piece.memory.append_to(&mut value);
            }
            value.extend_from_slice(&content.bytes[taken..range.end]);
            out.push(value);
        }
        assert!(layout.value(layout.attached(), &content.pieces).is_none());
        out
    }

    #[test]
    fn values_arrive_as_they_were_by_any_link() {
        let message = body(b"message", &[3, 7]);
        let values = [
            body(b"one", &[]),
            body(b"", &[]),
            body(b"two", &[1, 1, 3]),
            body(b"three", &[5]),
            body(b"x", &[0]),
        ];
        let whole = message.attach(values.iter().map(parts));
        assert_eq!(whole.attached(), 5);
        let expected: Vec<_> = std::iter::once(&message)
            .chain(&values)
            .map(|body| body.plain().to_vec())
            .collect();
        assert_eq!(arrived(&whole, false), expected);
        assert_eq!(arrived(&whole, true), expected);
        let size: u64 = expected.iter().map(|part| part.len() as u64).sum();
        assert_eq!(whole.size(), size + 5 * 8);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn no_more_segments_than_a_link_can_pass() {
        let values: Vec<_> = (0..MOST_DESCRIPTORS + 10)
            .map(|_| body(b"ab", &[1]))
            .collect();
        let whole = body(b"message", &[]).attach(values.iter().map(parts));
        assert_eq!(whole.insets().len(), MOST_DESCRIPTORS);
        assert_eq!(arrived(&whole, false), arrived(&whole, true));
    }

    #[test]
    fn a_body_with_nothing_attached_is_the_message() {
        let layout = Layout::of(b"message", &[], 0).unwrap();
        assert_eq!(layout.message(b"message", &[]).0, b"message");
        assert!(layout.value(0, &[]).is_none() && layout.attached() == 0);
    }

    proptest! {
        #[test]
        fn a_table_that_lies_is_refused(
            mut bytes in prop::collection::vec(any::<u8>(), 0..64),
            sizes in prop::collection::vec(prop_oneof![0u64..40, any::<u64>()], 0..4),
            mut places in prop::collection::vec((0usize..70, prop_oneof![1usize..30, Just(usize::MAX / 2)]), 0..4),
            attached in prop_oneof![0u32..6, any::<u32>()],
        ) {
            for size in &sizes {
                bytes.extend_from_slice(&size.to_le_bytes());
            }
            // As `FrameReader` has checked it.
            places.sort_unstable();
            places.retain(|(at, _)| *at <= bytes.len());
            let Ok(layout) = Layout::new(&bytes, places.iter().copied(), attached) else {
                return Ok(());
            };
            let Some(ends) = layout.0 else {
                prop_assert_eq!(attached, 0);
                return Ok(());
            };
            prop_assert_eq!(ends.len(), attached as usize + 1);
            prop_assert!(ends.iter().map(|end| end.bytes).is_sorted());
            prop_assert!(ends.iter().all(|end| end.bytes + 8 * attached as usize <= bytes.len()));
            prop_assert_eq!(ends.last().map(|end| end.pieces), Some(places.len()));
            let mut from = (0, 0);
            for end in &ends {
                for (at, _) in &places[from.1..end.pieces] {
                    prop_assert!((from.0..=end.bytes).contains(at));
                }
                from = (end.bytes, end.pieces);
            }
        }
    }
}
