//! The buffer that objects are serialized into.

use bytes::Bytes;
use mirai_core::memory::{
    prefer_huge_pages, Body, Draft, Inset, Mark, Parts, Segment, MOST_DESCRIPTORS,
};

use crate::altrep;

/// A buffer larger than this is handed over rather than copied out of.
const SMALL: usize = 32 * 1024;

/// Data from this size on are put into a segment, or marked for the receiver to read into memory of its own. Below, making,
/// passing and mapping a segment costs more than copying.
const LARGE: usize = 256 * 1024;
/// R's `R_Serialize()` passes vectors on in parts of this many elements.
const PART: usize = 8096;

/// What becomes of the data of a large vector.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Large {
    /// They stay among the bytes.
    Plain,
    /// They stay among the bytes, and are marked for a receiver across the network.
    #[default]
    Marked,
    /// They are left out, and put into a segment.
    LeftOut,
}

/// Memory to serialize into, used again for each small object.
#[derive(Default)]
pub(crate) struct Buffer {
    pub(super) bytes: Vec<u8>,
    /// Segments with the data that have been left out of `bytes`.
    pub(super) insets: Vec<Inset>,
    /// Where large data are among `bytes`, if they are marked.
    pub(super) marks: Vec<Mark>,
    /// What becomes of large data.
    pub(super) large: Large,
    run: Run,
}

/// Parts of one vector that are written one after the other: those that R's `R_Serialize()` passes on, or strings.
struct Run {
    /// Where in R's memory the next part begins, if it belongs to the same vector.
    next: *const u8,
    /// Offset of the first part in the buffer.
    from: usize,
    /// The segment that they go into, once they are large enough together.
    draft: Option<Draft>,
}

impl Default for Run {
    fn default() -> Run {
        Run::NONE
    }
}

impl Run {
    const NONE: Run = Run {
        next: std::ptr::null(),
        from: 0,
        draft: None,
    };
}

impl Buffer {
    pub(crate) const fn new() -> Buffer {
        Buffer {
            bytes: Vec::new(),
            insets: Vec::new(),
            marks: Vec::new(),
            large: Large::Marked,
            run: Run::NONE,
        }
    }

    /// Sets whether the data of large vectors are left out and put into segments. If not, they are marked.
    pub(crate) fn share(&mut self, sharing: bool) {
        self.large = match sharing {
            true => Large::LeftOut,
            false => Large::Marked,
        };
    }

    /// Bytes in all, including segments.
    pub(crate) fn len(&self) -> usize {
        let shared: usize = self.insets.iter().map(|i| i.segment.len()).sum();
        self.bytes.len() + shared
    }

    /// What was written.
    pub(crate) fn as_slice(&self) -> Parts<'_> {
        Parts {
            bytes: &self.bytes,
            insets: &self.insets,
            marks: &self.marks,
        }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.insets.clear();
        self.marks.clear();
        self.run = Run::NONE;
    }

    pub(super) fn may_share_more(&self) -> bool {
        let descriptors: usize = self.insets.iter().map(|i| i.segment.weight()).sum();
        // The next one may need two.
        self.large == Large::LeftOut && descriptors + 2 <= MOST_DESCRIPTORS
    }

    /// Appends the data of a vector. False if there is no memory for them.
    pub(super) fn append(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() >= LARGE && self.may_share_more() {
            // The segment of a vector that was received, and hardly changed, is sent again without a copy.
            // SAFETY: on R's main thread, as all that writes.
            let received = unsafe { altrep::segment(bytes) };
            if let Some(segment) = received.or_else(|| Segment::copy_of(bytes)) {
                self.put_in(segment);
                return true;
            }
        }
        let marked = self.large == Large::Marked && self.marks.len() < MOST_DESCRIPTORS;
        if marked && bytes.len() >= LARGE {
            self.marks.push(Mark {
                at: self.bytes.len(),
                len: bytes.len(),
            });
        }
        self.append_plain(bytes)
    }

    pub(super) fn put_in(&mut self, segment: Segment) {
        let at = self.bytes.len();
        self.insets.push(Inset { at, segment });
    }

    pub(super) fn append_plain(&mut self, bytes: &[u8]) -> bool {
        let before = self.bytes.capacity();
        let reserved = self.bytes.try_reserve(bytes.len() + 64).is_ok();
        if reserved {
            if self.bytes.capacity() > before {
                prefer_huge_pages(self.bytes.spare_capacity_mut());
            }
            self.bytes.extend_from_slice(bytes);
        }
        reserved
    }

    /// Appends bytes that are not of the value. False if there is no memory for them.
    pub(crate) fn append_notes(&mut self, bytes: &[u8]) -> bool {
        self.append_plain(bytes)
    }

    /// Begins the strings of a vector; [`end_strings`](Self::end_strings) ends them.
    pub(super) fn begin_strings(&mut self) {
        self.run = Run::NONE;
        self.run.from = self.bytes.len();
    }

    /// Moves the strings so far into a segment once they are large enough together, if `worth` says that it is worth it.
    /// False if they are lost.
    pub(super) fn spill(&mut self, worth: impl FnOnce() -> bool) -> bool {
        if self.bytes.len() < LARGE.saturating_add(self.run.from) {
            return true;
        }
        if self.run.draft.is_none() {
            let worth = self.may_share_more() && worth();
            self.run.draft = worth.then(Draft::new).flatten();
        }
        let Some(draft) = &mut self.run.draft else {
            // They stay here.
            self.run.from = usize::MAX;
            return true;
        };
        let done = draft.write(&self.bytes[self.run.from..]).is_ok();
        self.bytes.truncate(self.run.from);
        done
    }

    /// False if strings are lost.
    pub(super) fn end_strings(&mut self) -> bool {
        if let Some(draft) = &mut self.run.draft {
            if draft.write(&self.bytes[self.run.from..]).is_err() {
                return false;
            }
            self.bytes.truncate(self.run.from);
            // A single large string may have made it grow.
            self.bytes.shrink_to(2 * LARGE);
        }
        self.end_run()
    }

    /// Appends what R's `R_Serialize()` writes, which may be a part of a vector's data. False if there is no memory for
    /// it.
    pub(super) fn append_part(&mut self, bytes: &[u8]) -> bool {
        if bytes.as_ptr() != self.run.next {
            if !self.end_run() {
                return false;
            }
            if bytes.len() < PART || !self.may_share_more() {
                return self.append_plain(bytes);
            }
            self.run.from = self.bytes.len();
        }
        self.run.next = bytes.as_ptr_range().end;
        let draft = match &mut self.run.draft {
            Some(draft) => draft,
            None => {
                if !self.append_plain(bytes) {
                    return false;
                }
                if self.bytes.len() - self.run.from < LARGE {
                    return true;
                }
                let Some(mut draft) = Draft::new() else {
                    self.run.next = std::ptr::null();
                    return true;
                };
                let done = draft.write(&self.bytes[self.run.from..]).is_ok();
                if !done {
                    // `bytes` still has the parts, so nothing is lost.
                    self.run.next = std::ptr::null();
                    return true;
                }
                self.bytes.truncate(self.run.from);
                self.run.draft = Some(draft);
                return true;
            }
        };
        draft.write(bytes).is_ok()
    }

    /// Ends the parts of a vector. False if they are lost.
    pub(super) fn end_run(&mut self) -> bool {
        let run = std::mem::take(&mut self.run);
        let Some(draft) = run.draft else { return true };
        let Some(segment) = draft.seal() else {
            return false;
        };
        self.put_in(segment);
        true
    }

    /// Removes the byte code that R has written: receivers compile again what is worth it.
    pub(super) fn strip(&mut self) {
        let place = |inset: &Inset| mirai_scan::Piece {
            at: inset.at,
            data: &[],
        };
        let places: Vec<_> = self.insets.iter().map(place).collect();
        // If it fails, the receiver will say why.
        if let Ok(Some(stripped)) = mirai_scan::strip(&self.bytes, &places) {
            self.bytes = stripped.bytes;
            // They are elsewhere now.
            self.marks.clear();
            let inset = |(number, at): &(usize, usize)| Inset {
                at: *at,
                segment: self.insets[*number].segment.clone(),
            };
            self.insets = stripped.pieces.iter().map(inset).collect();
        }
    }

    /// Forgets what was written and gives back the memory, unless that is little.
    pub(crate) fn let_go(&mut self) {
        self.clear();
        if self.bytes.capacity() > 4 * SMALL {
            self.bytes = Vec::new();
        }
    }

    /// What was written, to be sent and kept.
    pub(crate) fn take(&mut self) -> Body {
        let bytes = if self.bytes.len() <= SMALL {
            Bytes::from(self.bytes.as_slice().to_vec())
        } else {
            Bytes::from(std::mem::take(&mut self.bytes))
        };
        match self.insets.is_empty() {
            true => Body::marked(bytes, std::mem::take(&mut self.marks)),
            false => Body::new(bytes, std::mem::take(&mut self.insets)),
        }
    }
}

/// The one buffer of the main thread. A static rather than a local, so that an R
/// error in the middle of serialization does not lose it.
static mut BUFFER: Buffer = Buffer::new();

/// The buffer of the main thread.
pub(crate) fn buffer() -> *mut Buffer {
    std::ptr::addr_of_mut!(BUFFER)
}
