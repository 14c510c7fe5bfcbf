//! What objects are read from.

use std::ops::Range;

use mirai_core::memory::{Content, Piece};

/// Bytes to read, and where among them there are pieces of shared memory. Copying it copies the position only.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// All bytes, without those of pieces.
    pub(super) bytes: &'a [u8],
    /// The bytes up to the next piece.
    pub(super) rest: &'a [u8],
    /// The bytes after the next piece, without those of further pieces.
    tail: &'a [u8],
    /// Offset of `tail` in `bytes`.
    tail_at: usize,
    /// Pieces that have not been passed.
    pub(super) pieces: &'a [Piece],
    /// Other processes have mapped the same pieces.
    pub(super) common: bool,
    /// The unread rest of a piece of which `R_Unserialize()` has read a part.
    begun: &'a [u8],
}

impl<'a> Source<'a> {
    /// `bytes`, with `pieces` at the offsets that they tell.
    pub(crate) fn new(bytes: &'a [u8], pieces: &'a [Piece]) -> Source<'a> {
        Source::part(bytes, 0..bytes.len(), pieces)
    }

    /// A range of `bytes`, with the `pieces` in it, at the offsets in `bytes` that they tell.
    pub(crate) fn part(bytes: &'a [u8], range: Range<usize>, pieces: &'a [Piece]) -> Source<'a> {
        let bytes = &bytes[..range.end];
        let mut source = Source {
            bytes,
            rest: &[],
            tail: &bytes[range.start..],
            tail_at: range.start,
            pieces,
            common: false,
            begun: &[],
        };
        source.advance();
        source
    }

    /// The same, where other processes have mapped the pieces, too.
    pub(crate) fn common(self) -> Source<'a> {
        Source {
            common: true,
            ..self
        }
    }

    /// The same, with `rest`, an end of the bytes up to the next piece, in their place.
    pub(super) fn with_rest(self, rest: &'a [u8]) -> Source<'a> {
        Source { rest, ..self }
    }

    /// Takes the bytes up to the next piece off `tail`.
    fn advance(&mut self) {
        let until = match self.pieces.first() {
            Some(piece) => piece.at().saturating_sub(self.tail_at).min(self.tail.len()),
            None => self.tail.len(),
        };
        (self.rest, self.tail) = self.tail.split_at(until);
        self.tail_at += until;
    }

    /// The piece at the present position, if there is one. [`pass_piece`](Self::pass_piece) goes on behind it.
    pub(super) fn piece(&self) -> Option<&'a Piece> {
        if self.rest.is_empty() {
            self.pieces.first()
        } else {
            None
        }
    }

    /// Goes on behind the present piece.
    pub(super) fn pass_piece(&mut self) {
        self.pieces = &self.pieces[1..];
        self.advance();
    }

    /// Offset of the present position in `bytes`.
    pub(super) fn position(&self) -> usize {
        self.bytes.len() - self.left()
    }

    /// Bytes that are left, without those of pieces.
    pub(super) fn left(&self) -> usize {
        self.rest.len() + self.tail.len()
    }

    /// The data of a piece, to be copied.
    pub(super) unsafe fn bytes_of(piece: &'a Piece) -> &'a [u8] {
        // SAFETY: the piece is borrowed, so its memory stays mapped; what other processes write to it stays unseen
        // (see [`mirai_core::memory`]).
        unsafe {
            let memory = piece.memory();
            std::slice::from_raw_parts(memory.as_ptr(), memory.len())
        }
    }

    /// Copies the next `n` bytes, from pieces and between them. False if there are fewer.
    pub(super) unsafe fn copy(&mut self, to: *mut u8, n: usize) -> bool {
        // SAFETY: `to` has room for `n` bytes, by the caller's word, and `now` is not more than are left.
        unsafe {
            let mut done = 0;
            while done < n {
                let from = if self.begun.is_empty() {
                    &mut self.rest
                } else {
                    &mut self.begun
                };
                let now = from.len().min(n - done);
                std::ptr::copy_nonoverlapping(from.as_ptr(), to.add(done), now);
                *from = &from[now..];
                done += now;
                if done < n {
                    let Some(piece) = self.piece() else {
                        return false;
                    };
                    self.begun = Self::bytes_of(piece);
                    self.pass_piece();
                }
            }
            true
        }
    }
}

impl<'a> From<&'a [u8]> for Source<'a> {
    fn from(bytes: &'a [u8]) -> Source<'a> {
        Source::new(bytes, &[])
    }
}

impl<'a> From<&'a Content> for Source<'a> {
    fn from(content: &'a Content) -> Source<'a> {
        Source::new(&content.bytes, &content.pieces)
    }
}
