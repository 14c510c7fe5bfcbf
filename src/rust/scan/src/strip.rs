//! Takes byte code out of a stream.
//!
//! R writes a compiled function with its byte code, and runs byte code that it has read without
//! any check: an instruction may read and write anywhere. So the [scan](crate::Scanner) refuses byte code,
//! and who sends a stream that R wrote takes it out first. Byte code holds, as the first of
//! its constants, the expression that it was made from; that takes its place, and the receiver
//! compiles again what is worth it.
//!
//! The rest of a stream is copied as it is, but for references: what was first there among the
//! other constants has to be written where it is referred to.

use crate::format::*;
use crate::{Error, Piece};

/// A stream without byte code.
#[derive(Debug, Default)]
pub struct Stripped {
    pub bytes: Vec<u8>,
    /// For each piece that is still part of it, its number and how many bytes come before it.
    pub pieces: Vec<(usize, usize)>,
}

/// The same object without byte code; `None` if there was none. The stream is one that R has
/// written; of any other the result is an error or a stream that the scan has to judge.
pub fn strip(bytes: &[u8], pieces: &[Piece<'_>]) -> Result<Option<Stripped>, Error> {
    let mut from = Cursor::new(bytes, pieces);
    from.header()?;
    let mut strip = Strip {
        from,
        out: Stripped::default(),
        copied: 0,
        emit: true,
        found: false,
        seen: Vec::new(),
        emitted: 0,
        shared: Vec::new(),
        to_do: vec![Do::Item],
        steps: bytes.len().saturating_mul(16).saturating_add(1 << 16),
    };
    while let Some(next) = strip.to_do.pop() {
        strip.step(next)?;
    }
    strip.flush();
    Ok(strip.found.then_some(strip.out))
}

/// What remains to be done, the last first.
enum Do {
    Item,
    Items(usize),
    /// Something within byte code: a call or a list in its own format, or an object.
    Constant,
    Constants(usize),
    /// How many constants there are, and they.
    CountConstants {
        emit: bool,
    },
    /// The tag of a cell whose flags are at this place of the output.
    Tag(Option<usize>),
    Emit(bool),
    /// Back to this place of the input.
    Back(usize),
    /// A byte code object is complete.
    EndShared,
}

struct Seen {
    at: usize,
    /// Its number in the output.
    number: Option<i32>,
}

struct Strip<'a> {
    from: Cursor<'a>,
    out: Stripped,
    /// What is before this place of the input has been copied, or is left out.
    copied: usize,
    emit: bool,
    found: bool,
    /// By their numbers in the input, hence in the order of their places.
    seen: Vec<Seen>,
    emitted: i32,
    /// Where the cells are that several calls share, for each byte code object that is open.
    shared: Vec<Vec<Option<usize>>>,
    to_do: Vec<Do>,
    /// How many more, so that it ends whatever the input is.
    steps: usize,
}

impl Strip<'_> {
    /// Copies up to here, or leaves out.
    fn flush(&mut self) {
        let at = self.from.at();
        self.flush_to(at);
    }

    fn flush_to(&mut self, at: usize) {
        // As long as no byte code has been found, there is nothing to copy.
        if self.emit && self.found {
            let bytes = self.from.bytes.get(self.copied..at).unwrap_or_default();
            self.out.bytes.extend_from_slice(bytes);
        }
        if self.found {
            self.copied = at;
        }
    }

    fn write(&mut self, number: i32) {
        if self.emit {
            self.out.bytes.extend_from_slice(&number.to_ne_bytes());
        }
    }

    fn error<T>(&self, what: &'static str) -> Result<T, Error> {
        Err(self.from.error(what))
    }

    /// Goes on at another place of the input, and then comes back.
    fn detour(&mut self, to: usize, what: Do) {
        self.to_do.push(Do::Back(self.from.at()));
        self.from.go(to);
        self.copied = to;
        self.to_do.push(what);
    }

    fn step(&mut self, next: Do) -> Result<(), Error> {
        self.steps = match self.steps.checked_sub(1) {
            Some(steps) => steps,
            None => return self.error("byte code cannot be taken out"),
        };
        match next {
            Do::Item => self.item(),
            Do::Items(0) | Do::Constants(0) => Ok(()),
            // The last one leaves nothing behind, so that a long pairlist needs no memory.
            Do::Items(n) => {
                if n > 1 {
                    self.to_do.push(Do::Items(n - 1));
                }
                self.item()
            }
            Do::Constants(n) => {
                if n > 1 {
                    self.to_do.push(Do::Constants(n - 1));
                }
                self.constant()
            }
            Do::Constant => self.constant(),
            Do::CountConstants { emit } => {
                let n = usize::try_from(self.from.integer()?).unwrap_or(0);
                if n == 0 || n > self.from.left() / 4 {
                    return self.error("byte code has no expression");
                }
                self.to_do.push(Do::Constants(n - 1));
                self.to_do.push(Do::Emit(false));
                self.to_do.push(Do::Constant);
                self.set_emit(emit);
                Ok(())
            }
            Do::Tag(flags_at) => {
                let at = self.from.at();
                if self.from.integer()? == NIL {
                    self.flush_to(at);
                    self.copied = self.from.at();
                    return Ok(());
                }
                self.from.go(at);
                if let Some(flags) = flags_at.and_then(|at| self.out.bytes.get_mut(at..at + 4)) {
                    let with_tag =
                        i32::from_ne_bytes([flags[0], flags[1], flags[2], flags[3]]) | HAS_TAG;
                    flags.copy_from_slice(&with_tag.to_ne_bytes());
                }
                self.item()
            }
            Do::Emit(emit) => {
                self.set_emit(emit);
                Ok(())
            }
            Do::Back(at) => {
                self.flush();
                self.from.go(at);
                self.copied = at;
                Ok(())
            }
            Do::EndShared => {
                self.shared.pop();
                Ok(())
            }
        }
    }

    fn set_emit(&mut self, emit: bool) {
        self.flush();
        self.emit = emit;
    }

    /// The data of a vector, or of a string.
    fn data(&mut self, size: usize) -> Result<(), Error> {
        let Some(number) = self.from.piece().filter(|_| size > 0) else {
            return self.from.skip(size);
        };
        if self.found {
            self.flush();
        }
        if self.emit {
            let before = match self.found {
                true => self.out.bytes.len(),
                false => self.from.at(),
            };
            self.out.pieces.push((number, before));
        }
        self.from.pass_piece();
        Ok(())
    }

    fn string(&mut self) -> Result<(), Error> {
        let (_flags, n) = (self.from.integer()?, self.from.integer()?);
        self.data(usize::try_from(n).unwrap_or(0))
    }

    /// Strings that name an object.
    fn names(&mut self) -> Result<(), Error> {
        let (_zero, n) = (self.from.integer()?, self.from.integer()?);
        (0..n).try_for_each(|_| self.string())
    }

    fn item(&mut self) -> Result<(), Error> {
        let at = self.from.at();
        let flags = self.from.integer()?;
        let kind = flags & TYPE;
        if kind == REFERENCE {
            return self.reference(at, flags);
        }
        let is_referable = matches!(
            kind,
            SYMBOL | ENVIRONMENT | POINTER | WEAK_REFERENCE | NAMESPACE | PACKAGE | PERSISTENT
        );
        if is_referable {
            self.definition(at);
        }
        if flags & HAS_ATTRIBUTES != 0
            && !matches!(kind, PAIRLIST | CALL | CLOSURE | PROMISE | DOTS)
        {
            self.to_do.push(Do::Item);
        }
        match kind {
            NIL | GLOBAL_ENV | UNBOUND_VALUE | MISSING_ARG | BASE_NAMESPACE | EMPTY_ENV
            | BASE_ENV | WEAK_REFERENCE | S4_OBJECT => {}
            SYMBOL => self.string()?,
            NAMESPACE | PACKAGE | PERSISTENT => self.names()?,
            ENVIRONMENT => {
                self.from.integer()?;
                self.to_do.push(Do::Items(4));
            }
            POINTER => self.to_do.push(Do::Items(2)),
            ALTREP => self.to_do.push(Do::Items(3)),
            PAIRLIST | CALL | CLOSURE | PROMISE | DOTS => {
                let parts = [HAS_ATTRIBUTES, HAS_TAG].map(|bit| usize::from(flags & bit != 0));
                self.to_do.push(Do::Items(2 + parts[0] + parts[1]));
            }
            SPECIAL | BUILTIN | STRING => {
                let n = self.from.integer()?;
                self.data(usize::try_from(n).unwrap_or(0))?;
            }
            LOGICAL | INTEGER => self.vector(4)?,
            REAL => self.vector(8)?,
            COMPLEX => self.vector(16)?,
            RAW => self.vector(1)?,
            CHARACTER => {
                let n = self.from.length()?;
                match self.from.piece() {
                    Some(_) if n > 0 => self.data(n)?,
                    _ if n > self.from.left() / 8 => return self.error("it ends too early"),
                    _ => (0..n).try_for_each(|_| self.string())?,
                }
            }
            LIST | EXPRESSION => {
                let n = self.from.length()?;
                if n > self.from.left() / 4 {
                    return self.error("it ends too early");
                }
                self.to_do.push(Do::Items(n));
            }
            BYTE_CODE => return self.byte_code(at, flags),
            _ => return self.error("there is no such type of object"),
        }
        Ok(())
    }

    fn vector(&mut self, width: usize) -> Result<(), Error> {
        let n = self.from.length()?;
        match n.checked_mul(width) {
            Some(size) => self.data(size),
            None => self.error("it ends too early"),
        }
    }

    /// An object that can be referred to later begins at this place.
    fn definition(&mut self, at: usize) {
        let number = match self.seen.binary_search_by_key(&at, |seen| seen.at) {
            Ok(number) => number,
            Err(_) => {
                self.seen.push(Seen { at, number: None });
                self.seen.len() - 1
            }
        };
        if !self.emit {
            return;
        }
        match self.seen[number].number {
            None => {
                self.emitted += 1;
                self.seen[number].number = Some(self.emitted);
            }
            // It is there already, and comes again on a detour.
            Some(number) => {
                self.flush_to(at);
                self.write(number << 8 | REFERENCE);
                self.emit = false;
                self.to_do.push(Do::Emit(true));
            }
        }
    }

    fn reference(&mut self, at: usize, flags: i32) -> Result<(), Error> {
        let old = match flags >> 8 {
            0 => self.from.integer()?,
            number => number,
        };
        let index = usize::try_from(old).unwrap_or(0).wrapping_sub(1);
        let Some(seen) = self.seen.get(index) else {
            return self.error("there is no such reference");
        };
        if !self.emit {
            return Ok(());
        }
        match seen.number {
            Some(new) if new == old => {}
            Some(new) => {
                self.flush_to(at);
                self.write(new << 8 | REFERENCE);
                self.copied = self.from.at();
            }
            None => {
                let to = seen.at;
                self.flush_to(at);
                self.detour(to, Do::Item);
            }
        }
        Ok(())
    }

    /// A byte code object, whose flags are at this place.
    fn byte_code(&mut self, at: usize, flags: i32) -> Result<(), Error> {
        if !self.found {
            // All that has been passed belongs to the output.
            self.found = true;
            self.copied = 0;
        }
        self.flush_to(at);
        let n = usize::try_from(self.from.integer()?).unwrap_or(usize::MAX);
        if n > self.from.left() {
            return self.error("it ends too early");
        }
        self.shared.push(vec![None; n]);
        let emit = self.emit;
        // The attributes are not the expression's.
        if flags & HAS_ATTRIBUTES != 0 {
            if let Some(attributes) = self.to_do.pop() {
                self.to_do.push(Do::Emit(emit));
                self.to_do.push(attributes);
                self.to_do.push(Do::Emit(false));
            }
        }
        self.to_do.push(Do::EndShared);
        self.code(emit);
        Ok(())
    }

    /// Instructions and constants.
    fn code(&mut self, emit: bool) {
        self.to_do.push(Do::Emit(emit));
        self.to_do.push(Do::CountConstants { emit });
        self.to_do.push(Do::Item);
        self.copied = self.from.at();
        self.emit = false;
    }

    fn constant(&mut self) -> Result<(), Error> {
        self.flush();
        let mut kind = self.from.integer()?;
        if kind == SHARED_AGAIN {
            let i = usize::try_from(self.from.integer()?).unwrap_or(usize::MAX);
            let shared = self.shared.last().and_then(|shared| *shared.get(i)?);
            return match shared {
                Some(to) if self.emit => {
                    self.detour(to, Do::Constant);
                    Ok(())
                }
                Some(_) => Ok(()),
                None => self.error("there is no such reference"),
            };
        }
        if kind == SHARED_CELL {
            let i = usize::try_from(self.from.integer()?).unwrap_or(usize::MAX);
            let at = self.from.at();
            match self.shared.last_mut().and_then(|shared| shared.get_mut(i)) {
                Some(cell) => *cell = Some(at),
                None => return self.error("there is no such reference"),
            }
            kind = self.from.integer()?;
        }
        let (flags, has_attributes) = match kind {
            CALL => (CALL, false),
            PAIRLIST => (PAIRLIST, false),
            CALL_WITH_ATTRIBUTES => (CALL | HAS_ATTRIBUTES, true),
            PAIRLIST_WITH_ATTRIBUTES => (PAIRLIST | HAS_ATTRIBUTES, true),
            BYTE_CODE => {
                self.code(self.emit);
                return Ok(());
            }
            _ => {
                self.copied = self.from.at();
                self.to_do.push(Do::Item);
                return Ok(());
            }
        };
        let at = self.emit.then_some(self.out.bytes.len());
        self.write(flags);
        self.copied = self.from.at();
        self.to_do.push(Do::Constant);
        self.to_do.push(Do::Constant);
        self.to_do.push(Do::Tag(at));
        if has_attributes {
            self.to_do.push(Do::Item);
        }
        Ok(())
    }
}
