//! Numbers of R's serialization format, and a cursor over its bytes.

use crate::{Error, Piece};

pub(crate) const SYMBOL: i32 = 1;
pub(crate) const PAIRLIST: i32 = 2;
pub(crate) const CLOSURE: i32 = 3;
pub(crate) const ENVIRONMENT: i32 = 4;
pub(crate) const PROMISE: i32 = 5;
pub(crate) const CALL: i32 = 6;
pub(crate) const SPECIAL: i32 = 7;
pub(crate) const BUILTIN: i32 = 8;
pub(crate) const STRING: i32 = 9;
pub(crate) const LOGICAL: i32 = 10;
pub(crate) const INTEGER: i32 = 13;
pub(crate) const REAL: i32 = 14;
pub(crate) const COMPLEX: i32 = 15;
pub(crate) const CHARACTER: i32 = 16;
pub(crate) const DOTS: i32 = 17;
pub(crate) const LIST: i32 = 19;
pub(crate) const EXPRESSION: i32 = 20;
pub(crate) const BYTE_CODE: i32 = 21;
pub(crate) const POINTER: i32 = 22;
pub(crate) const WEAK_REFERENCE: i32 = 23;
pub(crate) const RAW: i32 = 24;
pub(crate) const S4_OBJECT: i32 = 25;
pub(crate) const ALTREP: i32 = 238;
pub(crate) const BASE_ENV: i32 = 241;
pub(crate) const EMPTY_ENV: i32 = 242;
pub(crate) const PERSISTENT: i32 = 247;
pub(crate) const PACKAGE: i32 = 248;
pub(crate) const NAMESPACE: i32 = 249;
pub(crate) const BASE_NAMESPACE: i32 = 250;
pub(crate) const MISSING_ARG: i32 = 251;
pub(crate) const UNBOUND_VALUE: i32 = 252;
pub(crate) const GLOBAL_ENV: i32 = 253;
pub(crate) const NIL: i32 = 254;
pub(crate) const REFERENCE: i32 = 255;

// Only within byte code.
pub(crate) const SHARED_CELL: i32 = 244;
pub(crate) const SHARED_AGAIN: i32 = 243;
pub(crate) const CALL_WITH_ATTRIBUTES: i32 = 240;
pub(crate) const PAIRLIST_WITH_ATTRIBUTES: i32 = 239;

pub(crate) const IS_OBJECT: i32 = 1 << 8;
pub(crate) const HAS_ATTRIBUTES: i32 = 1 << 9;
pub(crate) const HAS_TAG: i32 = 1 << 10;
/// The type of an object.
pub(crate) const TYPE: i32 = 0xff;
/// From here on the bits of R's `gp` field follow, which are 16.
pub(crate) const LEVELS_SHIFT: i32 = 12;
/// Beyond `gp`.
pub(crate) const BEYOND: i32 = !((1 << 28) - 1);

/// The level bit of an active binding.
pub(crate) const ACTIVE: i32 = 1 << 15;

/// The level bits that a string may have: whether it is bytes, Latin-1, UTF-8 or ASCII; and two
/// that R's cache of strings uses, which R itself does not write.
const STRING_LEVELS: i32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 5 | 1;
/// Of these at most one.
const ENCODINGS: i32 = 1 << 1 | 1 << 2 | 1 << 3;

/// R's longest name of an encoding.
const ENCODING_NAME: usize = 63;
/// R's longest vector.
const LONGEST: u64 = 1 << 52;

/// A place among the bytes, and what may be read from there.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    pub(crate) bytes: &'a [u8],
    /// From this place up to the next piece, or to the end.
    rest: &'a [u8],
    /// Where that ends.
    until: usize,
    pieces: &'a [Piece<'a>],
    /// Number of the next piece.
    next: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8], pieces: &'a [Piece<'a>]) -> Cursor<'a> {
        let mut cursor = Cursor {
            bytes,
            rest: &[],
            until: 0,
            pieces,
            next: 0,
        };
        cursor.look_ahead(0);
        cursor
    }

    /// Makes the bytes from a place to the next piece those to be read.
    fn look_ahead(&mut self, at: usize) {
        self.until = match self.pieces.get(self.next) {
            // One that belongs before this place cannot be reached: nothing more is read.
            Some(piece) => piece.at.clamp(at.min(self.bytes.len()), self.bytes.len()),
            None => self.bytes.len(),
        };
        self.rest = self.bytes.get(at..self.until).unwrap_or_default();
    }

    /// How many bytes come before, apart from pieces.
    #[inline]
    pub(crate) fn at(&self) -> usize {
        self.until - self.rest.len()
    }

    /// Goes to a place where an object or a string begins: a piece that belongs there is part of
    /// what comes before.
    pub(crate) fn go(&mut self, at: usize) {
        self.next = self.pieces.partition_point(|piece| piece.at <= at);
        self.look_ahead(at);
    }

    #[cold]
    pub(crate) fn error(&self, what: &'static str) -> Error {
        Error {
            at: self.at(),
            what,
        }
    }

    /// Bytes apart from pieces.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at()
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.left() == 0 && self.next == self.pieces.len()
    }

    #[inline]
    pub(crate) fn integer(&mut self) -> Result<i32, Error> {
        match self.rest.split_first_chunk() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(i32::from_ne_bytes(*bytes))
            }
            None => Err(self.error("it ends too early")),
        }
    }

    #[inline]
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Error> {
        match self.rest.split_at_checked(n) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(self.error("it ends too early")),
        }
    }

    #[inline]
    pub(crate) fn skip(&mut self, n: usize) -> Result<(), Error> {
        self.take(n).map(drop)
    }

    /// Passes up to `n` strings, one after the other, and stops at one that is not of the usual kind. Returns how
    /// many are left.
    pub(crate) fn pass_strings(&mut self, n: usize) -> usize {
        let mut left = n;
        while left > 0 {
            let Some(rest) = usual_string(self.rest) else {
                break;
            };
            self.rest = rest;
            left -= 1;
        }
        left
    }

    /// The same for character vectors of one string and without attributes.
    pub(crate) fn pass_single_strings(&mut self, n: usize) -> usize {
        let mut left = n;
        while left > 0 {
            let Some((head, rest)) = self.rest.split_first_chunk::<8>() else {
                break;
            };
            if u64::from_ne_bytes(*head) != SINGLE_STRING {
                break;
            }
            let Some(rest) = usual_string(rest) else {
                break;
            };
            self.rest = rest;
            left -= 1;
        }
        left
    }

    pub(crate) fn real(&mut self) -> Result<f64, Error> {
        let bytes = self.take(8)?;
        let bytes = bytes.try_into().map_err(|_| self.error("no number"))?;
        Ok(f64::from_ne_bytes(bytes))
    }

    /// The number of the piece that comes next, if one does.
    #[inline]
    pub(crate) fn piece(&self) -> Option<usize> {
        (self.rest.is_empty() && self.next < self.pieces.len()).then_some(self.next)
    }

    pub(crate) fn piece_data(&self, number: usize) -> &'a [u8] {
        self.pieces.get(number).map_or(&[], |piece| piece.data)
    }

    pub(crate) fn pass_piece(&mut self) {
        let at = self.at();
        self.next += 1;
        self.look_ahead(at);
    }

    /// The length of a vector.
    #[inline]
    pub(crate) fn length(&mut self) -> Result<usize, Error> {
        let n = self.integer()?;
        if let Ok(n) = usize::try_from(n) {
            return Ok(n);
        }
        if n != -1 {
            return Err(self.error("the length of a vector is negative"));
        }
        let (high, low) = (self.integer()?, self.integer()?);
        let n = u64::from(high as u32) << 32 | u64::from(low as u32);
        if n > LONGEST {
            return Err(self.error("a vector is longer than R allows"));
        }
        usize::try_from(n).map_err(|_| self.error("a vector is longer than R allows"))
    }

    /// Passes a string: flags, length and bytes. `None` if it is missing (`NA`).
    #[inline]
    pub(crate) fn string(&mut self) -> Result<Option<&'a [u8]>, Error> {
        let flags = self.integer()?;
        let levels = flags >> LEVELS_SHIFT;
        if flags & ((1 << LEVELS_SHIFT) - 1) != STRING || levels & !STRING_LEVELS != 0 {
            return Err(self.error("a string was expected"));
        }
        let encodings = levels & ENCODINGS;
        if encodings & (encodings - 1) != 0 && encodings != 0 {
            return Err(self.error("a string has two encodings"));
        }
        match self.integer()? {
            -1 => Ok(None),
            n => {
                let n = usize::try_from(n)
                    .map_err(|_| self.error("the length of a string is negative"))?;
                // A large one may be a piece.
                if let Some(number) = self.piece().filter(|_| n > 0) {
                    let data = self.piece_data(number);
                    if data.len() != n {
                        return Err(self.error("shared memory is of another length"));
                    }
                    self.pass_piece();
                    return self.without_zero(data);
                }
                let text = self.take(n)?;
                self.without_zero(text)
            }
        }
    }

    /// R's strings end with a zero, so there can be none before.
    #[inline]
    fn without_zero<'b>(&self, text: &'b [u8]) -> Result<Option<&'b [u8]>, Error> {
        if has_zero(text) {
            return Err(self.error("a string holds a zero"));
        }
        Ok(Some(text))
    }

    /// Passes what every stream begins with.
    pub(crate) fn header(&mut self) -> Result<(), Error> {
        // The others are not written here, and R reads them with less care.
        if self.take(2)? != b"B\n" {
            return Err(self.error("it is not in R's native binary format"));
        }
        let version = self.integer()?;
        let (_writer, _reader) = (self.integer()?, self.integer()?);
        match version {
            2 => Ok(()),
            3 => {
                // R does not check for a negative length, and writes it on its stack.
                let n = usize::try_from(self.integer()?).unwrap_or(usize::MAX);
                if n > ENCODING_NAME {
                    return Err(self.error("the name of the encoding is too long"));
                }
                // R passes it on to iconv, which may load a file of that name.
                let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:".contains(b);
                if !self.take(n)?.iter().all(plain) {
                    return Err(self.error("the name of the encoding is none"));
                }
                Ok(())
            }
            _ => Err(self.error("its version is neither 2 nor 3")),
        }
    }
}

/// Type and length of a character vector of one string.
const SINGLE_STRING: u64 = {
    let ([a, b, c, d], [e, f, g, h]) = (CHARACTER.to_ne_bytes(), 1i32.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
};

/// What follows a string without peculiarities: with at most one encoding, not missing, complete.
#[inline]
fn usual_string(bytes: &[u8]) -> Option<&[u8]> {
    let (flags, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let flags = i32::from_ne_bytes(*flags);
    let levels = flags & !((1 << LEVELS_SHIFT) - 1);
    let is_usual = flags & ((1 << LEVELS_SHIFT) - 1) == STRING
        && levels.count_ones() <= 1
        && levels & !(STRING_LEVELS << LEVELS_SHIFT) == 0;
    let length = usize::try_from(i32::from_ne_bytes(*length)).ok()?;
    let (text, rest) = rest.split_at_checked(length)?;
    (is_usual && !has_zero(text)).then_some(rest)
}

/// Whether there is a zero among the bytes, of which there are mostly few.
#[inline]
fn has_zero(bytes: &[u8]) -> bool {
    // The high bit of each byte that is zero, and perhaps of others if one is.
    let zeros =
        |eight: u64| eight.wrapping_sub(0x0101_0101_0101_0101) & !eight & 0x8080_8080_8080_8080;
    let eights = bytes.chunks_exact(8);
    let rest = eights.remainder();
    let found = eights.fold(0, |found, eight| {
        found | zeros(eight.first_chunk().map_or(0, |e| u64::from_ne_bytes(*e)))
    });
    if let (Some(last), true) = (bytes.last_chunk::<8>(), !rest.is_empty()) {
        return found | zeros(u64::from_ne_bytes(*last)) != 0;
    }
    found != 0 || rest.contains(&0)
}
