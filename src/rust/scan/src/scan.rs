//! The scan: a machine with a stack of its own, which has a frame for each object that is open.
//!
//! Over 500 lines: it is one machine, and what it checks of one kind of object depends on what it knows of the others.

use crate::format::*;
use crate::{Depth, Error, Piece};

/// R's longest name of a variable.
const LONGEST_NAME: usize = 10_000;
/// Longer than the name of any built-in function.
const LONGEST_BUILTIN: usize = 64;
const TOO_DEEP: &str = "it is nested too deeply";
/// The most entries of the stack, of references and of lengths whose memory is kept from one scan to the next.
const KEPT: usize = 4096;

/// What a hook has made of a place in the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooked {
    Environment,
    Other,
}

/// Names that mean something to the scan.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Class,
    Names,
    Dim,
    Dimnames,
    Levels,
    RowNames,
    Tsp,
    Comment,
    IntegerSequence,
    RealSequence,
    DeferredString,
    Wrap(Class),
    Base,
    Other,
}

impl Name {
    fn of(name: &[u8]) -> Name {
        match name {
            b"class" => Name::Class,
            b"names" => Name::Names,
            b"dim" => Name::Dim,
            b"dimnames" => Name::Dimnames,
            b"levels" => Name::Levels,
            b"row.names" => Name::RowNames,
            b"tsp" => Name::Tsp,
            b"comment" => Name::Comment,
            b"compact_intseq" => Name::IntegerSequence,
            b"compact_realseq" => Name::RealSequence,
            b"deferred_string" => Name::DeferredString,
            b"wrap_integer" => Name::Wrap(Class::Integer),
            b"wrap_logical" => Name::Wrap(Class::Logical),
            b"wrap_real" => Name::Wrap(Class::Real),
            b"wrap_complex" => Name::Wrap(Class::Complex),
            b"wrap_raw" => Name::Wrap(Class::Raw),
            b"wrap_string" => Name::Wrap(Class::Character),
            b"wrap_list" => Name::Wrap(Class::List),
            b"base" => Name::Base,
            _ => Name::Other,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Logical,
    Integer,
    Real,
    Complex,
    Character,
    List,
    Raw,
}

/// Where the elements of a vector are, for attributes that have to agree with others.
#[derive(Clone, Copy)]
enum Data {
    Unknown,
    /// In the bytes, from here on.
    At(usize),
    /// In the piece of this number.
    Piece(usize),
    /// From the first on, up or down by one.
    Sequence(i32, i8),
    /// A list: the lengths of its elements are known, from here on in [`Scanner::lengths`].
    Lengths(usize),
}

#[derive(Clone, Copy)]
struct Vector {
    class: Class,
    n: usize,
    data: Data,
}

/// What an object is, as far as that matters to what it is part of.
#[derive(Clone, Copy)]
enum Kind {
    Nil,
    Symbol,
    /// With its number among the references, if it came with the bytes.
    Environment(Option<usize>),
    Pairlist,
    Call,
    Dots,
    Function,
    Vector(Vector),
    Unbound,
    Other,
}

#[derive(Clone, Copy)]
enum Reference {
    Symbol(Name),
    /// With the number of its parent, if that came with the bytes and is known already.
    Environment(Option<usize>),
    Other,
}

#[derive(Clone, Copy)]
struct Frame {
    depth: Depth,
    open: Open,
}

/// An object whose parts are being read.
#[derive(Clone, Copy)]
enum Open {
    Elements {
        n: usize,
        left: usize,
        flags: i32,
        /// The lengths of its elements are kept, from here on in [`Scanner::lengths`].
        lengths: Option<usize>,
    },
    Cells {
        list: Kind,
        role: Role,
        part: Part,
        flags: i32,
    },
    /// More is in [`Scanner::attributes`].
    Attributes,
    Closure(Part),
    Promise(Part),
    Environment {
        number: usize,
        part: Part,
        /// Lists of variables that follow in the hash table.
        buckets: usize,
    },
    Pointer {
        first: bool,
        flags: i32,
    },
    /// A vector of one of R's ALTREP classes whose state is another vector and a few integers.
    Alternative(Name),
}

/// Which part of an object comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Attributes,
    Environment,
    Variables,
    Formals,
    Value,
    Code,
}

/// What a pairlist is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Any,
    Formals,
    Variables,
}

/// The attributes that have been seen of an object.
#[derive(Clone, Copy)]
struct Attributes {
    owner: Kind,
    /// The one that is being read.
    name: Name,
    dim: Option<Vector>,
    dimnames: Option<Vector>,
    levels: Option<usize>,
    tsp: Option<Vector>,
    is_factor: bool,
    /// How many lengths there were before.
    lengths: usize,
}

/// What comes next: the object is complete, or another one begins that is part of an open one.
enum Next {
    Done(Kind),
    Item,
}

/// Checks streams. Keeps its memory, so that the usual stream needs no allocation.
#[derive(Default)]
pub struct Scanner {
    frames: Vec<Frame>,
    /// One for each frame of attributes.
    attributes: Vec<Attributes>,
    references: Vec<Reference>,
    lengths: Vec<Option<usize>>,
}

impl Error {
    /// Whether the bytes may be sound, but are nested more deeply than was allowed.
    pub fn is_too_deep(&self) -> bool {
        self.what == TOO_DEEP
    }
}

impl Scanner {
    pub const fn new() -> Scanner {
        Scanner {
            frames: Vec::new(),
            attributes: Vec::new(),
            references: Vec::new(),
            lengths: Vec::new(),
        }
    }

    /// Checks a stream whose large vectors are in `pieces`, in order of their places. `deepest`
    /// bounds [`Depth::levels`]. `hooked` tells what a hook has made of the j-th object of the
    /// i-th registration.
    pub fn scan(
        &mut self,
        bytes: &[u8],
        pieces: &[Piece<'_>],
        deepest: usize,
        hooked: &dyn Fn(usize, usize) -> Option<Hooked>,
    ) -> Result<Depth, Error> {
        self.frames.clear();
        self.attributes.clear();
        self.references.clear();
        self.lengths.clear();
        let scan = Scan {
            from: Cursor::new(bytes, pieces),
            to: self,
            reached: Depth::default(),
            deepest,
            hooked,
        };
        let result = scan.run();
        self.frames.shrink_to(KEPT);
        self.attributes.shrink_to(KEPT);
        self.references.shrink_to(KEPT);
        self.lengths.shrink_to(KEPT);
        result
    }
}

struct Scan<'a> {
    from: Cursor<'a>,
    to: &'a mut Scanner,
    /// The deepest so far.
    reached: Depth,
    deepest: usize,
    hooked: &'a dyn Fn(usize, usize) -> Option<Hooked>,
}

impl Scan<'_> {
    fn run(mut self) -> Result<Depth, Error> {
        self.from.header()?;
        'items: loop {
            let Next::Done(mut kind) = self.item()? else {
                continue;
            };
            while let Some(frame) = self.to.frames.last() {
                let frame = *frame;
                match self.part(frame, kind)? {
                    Next::Done(done) => kind = done,
                    Next::Item => continue 'items,
                }
            }
            if matches!(kind, Kind::Dots | Kind::Unbound) {
                return self.refuse("it is no value");
            }
            if !self.from.is_at_end() {
                return self.refuse("something follows the object");
            }
            return Ok(self.reached);
        }
    }

    #[cold]
    fn refuse<T>(&self, what: &'static str) -> Result<T, Error> {
        Err(self.from.error(what))
    }

    /// The levels of an object that is `by` levels below the innermost open one.
    fn below(&mut self, by: usize) -> Result<Depth, Error> {
        let Depth { levels, calls } = self
            .to
            .frames
            .last()
            .map_or_else(Depth::default, |f| f.depth);
        self.reach(Depth {
            levels: levels + by,
            calls: calls + by,
        })
    }

    fn reach(&mut self, depth: Depth) -> Result<Depth, Error> {
        self.reached.levels = self.reached.levels.max(depth.levels);
        self.reached.calls = self.reached.calls.max(depth.calls);
        if depth.levels > self.deepest {
            return self.refuse(TOO_DEEP);
        }
        Ok(depth)
    }

    fn open(&mut self, open: Open) -> Result<Next, Error> {
        let depth = self.below(1)?;
        self.to.frames.push(Frame { depth, open });
        Ok(Next::Item)
    }

    /// Changes the innermost open object.
    fn set(&mut self, open: Open) {
        if let Some(frame) = self.to.frames.last_mut() {
            frame.open = open;
        }
    }

    /// An object begins.
    fn item(&mut self) -> Result<Next, Error> {
        let flags = self.from.integer()?;
        if flags & TYPE == REFERENCE {
            return self.reference(flags);
        }
        if flags & BEYOND != 0 {
            return self.refuse("there is no such type of object");
        }
        match flags & TYPE {
            LOGICAL => self.atomic(flags, Class::Logical, 4),
            INTEGER => self.atomic(flags, Class::Integer, 4),
            REAL => self.atomic(flags, Class::Real, 8),
            COMPLEX => self.atomic(flags, Class::Complex, 16),
            RAW => self.atomic(flags, Class::Raw, 1),
            CHARACTER => self.character(flags),
            LIST | EXPRESSION => self.list(flags, false),
            PAIRLIST => self.cells(flags, Kind::Pairlist, Role::Any),
            CALL => self.cells(flags, Kind::Call, Role::Any),
            DOTS => self.cells(flags, Kind::Dots, Role::Any),
            CLOSURE if flags & HAS_TAG != 0 => {
                self.open(Open::Closure(Part::Attributes))?;
                match self.attributes(flags, Kind::Function)? {
                    Next::Done(kind) => {
                        let frame = self.innermost()?;
                        self.part(frame, kind)
                    }
                    item => Ok(item),
                }
            }
            PROMISE if flags & (HAS_ATTRIBUTES | IS_OBJECT) == 0 => {
                let has_env = flags & HAS_TAG != 0;
                let part = if has_env {
                    Part::Environment
                } else {
                    Part::Value
                };
                self.open(Open::Promise(part))
            }
            POINTER => {
                self.to.references.push(Reference::Other);
                self.open(Open::Pointer { first: true, flags })
            }
            WEAK_REFERENCE => {
                self.to.references.push(Reference::Other);
                self.attributes(flags, Kind::Other)
            }
            S4_OBJECT => self.attributes(flags, Kind::Other),
            ALTREP => self.alternative(),
            BYTE_CODE => self.refuse("it holds byte code"),
            // What has neither attributes nor levels.
            _ => self.simple(flags),
        }
    }

    fn innermost(&self) -> Result<Frame, Error> {
        self.to
            .frames
            .last()
            .copied()
            .ok_or(self.from.error("nothing is open"))
    }

    fn simple(&mut self, flags: i32) -> Result<Next, Error> {
        Ok(Next::Done(match flags {
            NIL => Kind::Nil,
            GLOBAL_ENV | BASE_ENV | EMPTY_ENV | BASE_NAMESPACE => Kind::Environment(None),
            MISSING_ARG => Kind::Other,
            UNBOUND_VALUE => Kind::Unbound,
            SYMBOL => {
                self.symbol()?;
                Kind::Symbol
            }
            SPECIAL | BUILTIN => self.builtin()?,
            NAMESPACE => {
                let n = self.names()?;
                if n == 0 {
                    return self.refuse("a namespace has no name");
                }
                for i in 0..n {
                    let name = self.text(100)?;
                    if i == 0 && !is_package(name) {
                        return self.refuse("a namespace's name is none");
                    }
                }
                self.outside()
            }
            PACKAGE => {
                let n = self.names()?;
                let name = self.text(100)?;
                if n != 1 || !name.strip_prefix(b"package:").is_some_and(is_package) {
                    return self.refuse("a package's name is none");
                }
                self.outside()
            }
            PERSISTENT => {
                if self.names()? != 2 {
                    return self.refuse("a hooked object has no place");
                }
                let (i, j) = (self.number()?, self.number()?);
                match (self.hooked)(i, j) {
                    Some(Hooked::Environment) => self.outside(),
                    Some(Hooked::Other) => {
                        self.to.references.push(Reference::Other);
                        Kind::Other
                    }
                    None => return self.refuse("a hooked object is missing"),
                }
            }
            ENVIRONMENT => {
                if !matches!(self.from.integer()?, 0 | 1) {
                    return self.refuse("an environment is neither locked nor unlocked");
                }
                let number = self.to.references.len();
                self.to.references.push(Reference::Environment(None));
                return self.open(Open::Environment {
                    number,
                    part: Part::Environment,
                    buckets: 0,
                });
            }
            _ => return self.refuse("there is no such type of object"),
        }))
    }

    /// An environment that is there already.
    fn outside(&mut self) -> Kind {
        self.to.references.push(Reference::Environment(None));
        Kind::Environment(None)
    }

    /// How many strings follow that name an object.
    fn names(&mut self) -> Result<usize, Error> {
        if self.from.integer()? != 0 {
            return self.refuse("names have names");
        }
        match self.from.integer()? {
            n @ 0..=8 => Ok(n as usize),
            _ => self.refuse("an object has too many names"),
        }
    }

    fn text(&mut self, most: usize) -> Result<&[u8], Error> {
        match self.from.string()? {
            Some(text) if text.len() <= most => Ok(text),
            _ => self.refuse("a name is too long or missing"),
        }
    }

    fn number(&mut self) -> Result<usize, Error> {
        let text = self.text(9)?;
        let number = std::str::from_utf8(text).ok();
        match number
            .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
            .map(str::parse)
        {
            Some(Ok(number)) => Ok(number),
            _ => self.refuse("a hooked object has no place"),
        }
    }

    /// A symbol that has not been there before.
    fn symbol(&mut self) -> Result<Name, Error> {
        let name = match self.from.string()? {
            Some(name) if matches!(name.len(), 1..=LONGEST_NAME) => name,
            _ => return self.refuse("a symbol's name is none"),
        };
        let name = Name::of(name);
        self.to.references.push(Reference::Symbol(name));
        Ok(name)
    }

    fn builtin(&mut self) -> Result<Kind, Error> {
        let n = self.from.integer()?;
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        let name = match n {
            1..=LONGEST_BUILTIN => self.from.take(n)?,
            _ => return self.refuse("the name of a built-in function is too long"),
        };
        if !name.iter().all(u8::is_ascii_graphic) {
            return self.refuse("the name of a built-in function is none");
        }
        Ok(Kind::Function)
    }

    fn referred(&mut self, flags: i32) -> Result<(usize, Reference), Error> {
        let number = match flags >> 8 {
            0 => self.from.integer()?,
            number => number,
        };
        let number = usize::try_from(number).ok().and_then(|n| n.checked_sub(1));
        let found = number.and_then(|n| Some((n, *self.to.references.get(n)?)));
        found.ok_or(self.from.error("there is no such reference"))
    }

    fn reference(&mut self, flags: i32) -> Result<Next, Error> {
        Ok(Next::Done(match self.referred(flags)? {
            (_, Reference::Symbol(_)) => Kind::Symbol,
            (number, Reference::Environment(_)) => Kind::Environment(Some(number)),
            (_, Reference::Other) => Kind::Other,
        }))
    }

    /// The tag of a cell, which has to be a symbol.
    fn tag(&mut self) -> Result<Name, Error> {
        let flags = self.from.integer()?;
        if flags == SYMBOL {
            return self.symbol();
        }
        if flags & TYPE == REFERENCE {
            if let (_, Reference::Symbol(name)) = self.referred(flags)? {
                return Ok(name);
            }
        }
        self.refuse("a tag is no symbol")
    }

    #[inline]
    fn atomic(&mut self, flags: i32, class: Class, width: usize) -> Result<Next, Error> {
        let n = self.from.length()?;
        let Some(size) = n.checked_mul(width) else {
            return self.refuse("a vector is longer than the bytes");
        };
        let data = match self.from.piece() {
            Some(number) if size > 0 => {
                if self.from.piece_data(number).len() != size {
                    return self.refuse("shared memory is of another length");
                }
                self.from.pass_piece();
                Data::Piece(number)
            }
            _ => {
                let at = self.from.at();
                self.from.skip(size)?;
                Data::At(at)
            }
        };
        let vector = Vector { class, n, data };
        self.attributes(flags, Kind::Vector(vector))
    }

    #[inline]
    fn character(&mut self, flags: i32) -> Result<Next, Error> {
        let n = self.from.length()?;
        let mut data = Data::Unknown;
        match self.from.piece() {
            Some(number) if n > 0 => {
                let mut strings = Cursor::new(self.from.piece_data(number), &[]);
                let mut left = strings.pass_strings(n);
                while left > 0 {
                    if strings.string().is_err() {
                        return self.refuse("shared memory does not hold the strings");
                    }
                    left = strings.pass_strings(left - 1);
                }
                if !strings.is_at_end() {
                    return self.refuse("shared memory holds more than the strings");
                }
                self.from.pass_piece();
            }
            _ => {
                if n > self.from.left() / 8 {
                    return self.refuse("a vector is longer than the bytes");
                }
                data = Data::At(self.from.at());
                let mut left = n;
                loop {
                    left = self.from.pass_strings(left);
                    if left == 0 {
                        break;
                    }
                    self.from.string()?;
                    left -= 1;
                }
            }
        }
        let class = Class::Character;
        self.attributes(flags, Kind::Vector(Vector { class, n, data }))
    }

    /// A list, of whose elements the lengths are to be known if it is `watched`.
    fn list(&mut self, flags: i32, watched: bool) -> Result<Next, Error> {
        let n = self.from.length()?;
        if n > self.from.left() / 4 {
            return self.refuse("a vector is longer than the bytes");
        }
        let lengths = watched.then_some(self.to.lengths.len());
        if n == 0 {
            return self.attributes(flags, list_of(n, lengths));
        }
        self.open(Open::Elements {
            n,
            left: n,
            flags,
            lengths,
        })
    }

    /// The attributes of an object, if its flags say that it has any.
    #[inline]
    fn attributes(&mut self, flags: i32, owner: Kind) -> Result<Next, Error> {
        if flags & HAS_ATTRIBUTES == 0 {
            return Ok(Next::Done(owner));
        }
        self.attributes_or_none(owner)
    }

    fn attributes_or_none(&mut self, owner: Kind) -> Result<Next, Error> {
        let flags = self.from.integer()?;
        if flags == NIL {
            return Ok(Next::Done(owner));
        }
        let depth = self.below(2)?;
        self.to.attributes.push(Attributes {
            owner,
            name: Name::Other,
            dim: None,
            dimnames: None,
            levels: None,
            tsp: None,
            is_factor: false,
            lengths: self.to.lengths.len(),
        });
        let open = Open::Attributes;
        self.to.frames.push(Frame { depth, open });
        self.attribute(flags)
    }

    /// The next attribute of the innermost object, whose cell has these flags.
    fn attribute(&mut self, flags: i32) -> Result<Next, Error> {
        let parts = HAS_TAG | HAS_ATTRIBUTES | IS_OBJECT;
        if flags & BEYOND != 0 || flags & TYPE != PAIRLIST || flags & parts != HAS_TAG {
            return self.refuse("attributes are no list of named values");
        }
        let found = self.tag()?;
        let mut depth = Depth::default();
        if let Some(attributes) = self.to.attributes.last_mut() {
            attributes.name = found;
        }
        if let Some(frame) = self.to.frames.last_mut() {
            frame.depth.calls += 1;
            depth = frame.depth;
        }
        self.reach(depth)?;
        if found != Name::Dimnames {
            return Ok(Next::Item);
        }
        match self.from.integer()? {
            flags if flags & TYPE == LIST && flags & BEYOND == 0 => match self.list(flags, true)? {
                Next::Item => Ok(Next::Item),
                Next::Done(_) => self.refuse("names of dimensions are empty"),
            },
            _ => self.refuse("names of dimensions are no list"),
        }
    }

    /// A pairlist, or a call, whose first cell has these flags.
    fn cells(&mut self, flags: i32, list: Kind, role: Role) -> Result<Next, Error> {
        self.open(Open::Cells {
            list,
            role,
            part: Part::Value,
            flags,
        })?;
        self.cell(flags, list, role)
    }

    /// The next cell of the innermost pairlist.
    fn cell(&mut self, flags: i32, list: Kind, role: Role) -> Result<Next, Error> {
        if role != Role::Any {
            if flags & HAS_TAG == 0 {
                return self.refuse("a variable has no name");
            }
            if role == Role::Variables && flags & (HAS_ATTRIBUTES | IS_OBJECT) != 0 {
                return self.refuse("a variable has attributes");
            }
        }
        let has_attributes = flags & HAS_ATTRIBUTES != 0;
        let part = if has_attributes {
            Part::Attributes
        } else {
            Part::Value
        };
        self.set(Open::Cells {
            list,
            role,
            part,
            flags,
        });
        if let Next::Item = self.attributes(flags, list)? {
            return Ok(Next::Item);
        }
        self.cell_tag(flags, list, role)
    }

    /// What comes after the attributes of a cell.
    fn cell_tag(&mut self, flags: i32, list: Kind, role: Role) -> Result<Next, Error> {
        if flags & HAS_TAG != 0 {
            self.tag()?;
        }
        self.set(Open::Cells {
            list,
            role,
            part: Part::Value,
            flags,
        });
        Ok(Next::Item)
    }

    /// A list of variables or formals, or none.
    fn named_cells(&mut self, role: Role) -> Result<Next, Error> {
        let flags = self.from.integer()?;
        if flags == NIL {
            return Ok(Next::Done(Kind::Nil));
        }
        if flags & TYPE != PAIRLIST || flags & BEYOND != 0 {
            return self.refuse("variables are no list");
        }
        self.cells(flags, Kind::Pairlist, role)
    }

    /// A vector of an ALTREP class: what class it is, its state, its attributes.
    fn alternative(&mut self) -> Result<Next, Error> {
        let mut class = Name::Other;
        let mut kind = 0;
        for part in 0..3 {
            if self.from.integer()? != PAIRLIST {
                return self.refuse("an ALTREP class has no name");
            }
            match part {
                0 => class = self.tag()?,
                1 if self.tag()? != Name::Base => {
                    return self.refuse("it is of an ALTREP class that is not R's own");
                }
                1 => {}
                _ => [kind] = self.integers()?,
            }
        }
        if self.from.integer()? != NIL {
            return self.refuse("an ALTREP class has too many names");
        }
        // R uses it as an index, without a check.
        let of_class = match class {
            Name::IntegerSequence | Name::Wrap(Class::Integer) => INTEGER,
            Name::RealSequence | Name::Wrap(Class::Real) => REAL,
            Name::DeferredString | Name::Wrap(Class::Character) => CHARACTER,
            Name::Wrap(Class::Logical) => LOGICAL,
            Name::Wrap(Class::Complex) => COMPLEX,
            Name::Wrap(Class::Raw) => RAW,
            Name::Wrap(Class::List) => LIST,
            // Files that are mapped, for example.
            _ => return self.refuse("it is of an ALTREP class that is not read"),
        };
        if kind != of_class {
            return self.refuse("an ALTREP class is of another type");
        }
        match class {
            Name::IntegerSequence => self.sequence(Class::Integer, 1 << 31),
            Name::RealSequence => self.sequence(Class::Real, 1 << 52),
            Name::DeferredString | Name::Wrap(_) => {
                if self.from.integer()? != PAIRLIST {
                    return self.refuse("the state of an ALTREP vector is none");
                }
                self.open(Open::Alternative(class))
            }
            _ => self.refuse("it is of an ALTREP class that is not read"),
        }
    }

    /// A few integers.
    fn integers<const N: usize>(&mut self) -> Result<[i32; N], Error> {
        let mut out = [0; N];
        if self.from.integer()? != INTEGER || self.from.integer()? != N as i32 {
            return self.refuse("integers were expected");
        }
        for number in &mut out {
            *number = self.from.integer()?;
        }
        Ok(out)
    }

    fn sequence(&mut self, class: Class, most: i64) -> Result<Next, Error> {
        if self.from.integer()? != REAL || self.from.integer()? != 3 {
            return self.refuse("a sequence has no state");
        }
        let [n, first, step] = [self.from.real()?, self.from.real()?, self.from.real()?];
        let whole = |x: f64| x.fract() == 0.0 && x.abs() <= most as f64;
        let fits = match class {
            Class::Integer => {
                let last = first + step * (n - 1.0);
                let most = f64::from(i32::MAX);
                whole(first) && first.abs() <= most && last.abs() <= most
            }
            _ => first.is_finite(),
        };
        if !whole(n) || n < 1.0 || step.abs() != 1.0 || !fits {
            return self.refuse("a sequence is none");
        }
        let data = match class {
            Class::Integer => Data::Sequence(first as i32, step as i8),
            _ => Data::Unknown,
        };
        let Ok(n) = usize::try_from(n as u64) else {
            return self.refuse("a sequence is none");
        };
        self.attributes_or_none(Kind::Vector(Vector { class, n, data }))
    }

    /// A part of an open object is complete.
    fn part(&mut self, frame: Frame, kind: Kind) -> Result<Next, Error> {
        match frame.open {
            Open::Elements { .. } => self.element(frame.open, kind),
            Open::Cells {
                list,
                role,
                part,
                flags,
            } => {
                if part == Part::Attributes {
                    return self.cell_tag(flags, list, role);
                }
                self.cell_value(frame, flags, list, role, kind)
            }
            Open::Attributes => self.attribute_value(kind),
            Open::Closure(part) => self.closure(part, kind),
            Open::Promise(part) => self.promise(part, kind),
            Open::Environment {
                number,
                part,
                buckets,
            } => self.environment(number, part, buckets, kind),
            Open::Pointer { first, flags } => {
                self.value(kind)?;
                if first {
                    let first = false;
                    self.set(Open::Pointer { first, flags });
                    return Ok(Next::Item);
                }
                self.to.frames.pop();
                self.attributes(flags, Kind::Other)
            }
            Open::Alternative(class) => self.alternative_state(class, kind),
        }
    }

    /// What may be an element of a list.
    #[inline]
    fn value(&self, kind: Kind) -> Result<(), Error> {
        match kind {
            Kind::Dots | Kind::Unbound => self.refuse("it holds what is no value"),
            _ => Ok(()),
        }
    }

    #[inline]
    fn element(&mut self, open: Open, kind: Kind) -> Result<Next, Error> {
        let Open::Elements {
            n,
            mut left,
            flags,
            lengths,
        } = open
        else {
            return self.refuse("nothing is open");
        };
        let mut kind = kind;
        loop {
            self.value(kind)?;
            left -= 1;
            if lengths.is_some() {
                self.to.lengths.push(match kind {
                    Kind::Nil => None,
                    Kind::Vector(Vector {
                        class: Class::Character,
                        n,
                        ..
                    }) => Some(n),
                    _ => return self.refuse("names of dimensions are no strings"),
                });
            } else {
                left = self.from.pass_single_strings(left);
            }
            if left == 0 {
                self.to.frames.pop();
                return self.attributes(flags, list_of(n, lengths));
            }
            // Before anything is opened within it.
            if let Some(Frame {
                open: Open::Elements { left: of, .. },
                ..
            }) = self.to.frames.last_mut()
            {
                *of = left;
            }
            match self.item()? {
                Next::Done(next) => kind = next,
                Next::Item => return Ok(Next::Item),
            }
        }
    }

    fn cell_value(
        &mut self,
        frame: Frame,
        flags: i32,
        list: Kind,
        role: Role,
        kind: Kind,
    ) -> Result<Next, Error> {
        match role {
            Role::Variables if flags >> LEVELS_SHIFT & ACTIVE == 0 => {}
            Role::Variables if matches!(kind, Kind::Function) => {}
            Role::Variables => return self.refuse("an active binding has no function"),
            _ => self.value(kind)?,
        }
        let next = self.from.integer()?;
        if next == NIL {
            self.to.frames.pop();
            return Ok(Next::Done(list));
        }
        let is_cell = match next & TYPE {
            PAIRLIST => true,
            CALL | DOTS => role == Role::Any,
            _ => false,
        };
        if !is_cell || next & BEYOND != 0 {
            return self.refuse("a list does not end");
        }
        let depth = Depth {
            calls: frame.depth.calls + 1,
            ..frame.depth
        };
        if let Some(frame) = self.to.frames.last_mut() {
            frame.depth = depth;
        }
        self.reach(depth)?;
        self.cell(next, list, role)
    }

    fn closure(&mut self, part: Part, kind: Kind) -> Result<Next, Error> {
        match part {
            Part::Attributes => {
                self.set(Open::Closure(Part::Environment));
                Ok(Next::Item)
            }
            Part::Environment => {
                self.is_environment(kind)?;
                self.set(Open::Closure(Part::Formals));
                match self.named_cells(Role::Formals)? {
                    Next::Done(kind) => self.closure(Part::Formals, kind),
                    item => Ok(item),
                }
            }
            Part::Formals => {
                self.set(Open::Closure(Part::Code));
                Ok(Next::Item)
            }
            _ => {
                self.value(kind)?;
                self.to.frames.pop();
                Ok(Next::Done(Kind::Function))
            }
        }
    }

    /// R makes the base environment of `NULL`.
    fn is_environment(&self, kind: Kind) -> Result<(), Error> {
        match kind {
            Kind::Environment(_) | Kind::Nil => Ok(()),
            _ => self.refuse("an environment was expected"),
        }
    }

    fn promise(&mut self, part: Part, kind: Kind) -> Result<Next, Error> {
        let next = match part {
            Part::Environment => {
                self.is_environment(kind)?;
                Part::Value
            }
            Part::Value if matches!(kind, Kind::Unbound) => Part::Code,
            Part::Value => {
                self.value(kind)?;
                Part::Code
            }
            _ => {
                self.value(kind)?;
                self.to.frames.pop();
                return Ok(Next::Done(Kind::Other));
            }
        };
        self.set(Open::Promise(next));
        Ok(Next::Item)
    }

    fn environment(
        &mut self,
        number: usize,
        part: Part,
        buckets: usize,
        kind: Kind,
    ) -> Result<Next, Error> {
        let mut buckets = buckets;
        match part {
            Part::Environment => {
                self.is_environment(kind)?;
                if let Kind::Environment(Some(parent)) = kind {
                    self.link(number, parent)?;
                }
                self.set(Open::Environment {
                    number,
                    part: Part::Variables,
                    buckets: 0,
                });
                if let Next::Item = self.named_cells(Role::Variables)? {
                    return Ok(Next::Item);
                }
                return self.environment(number, Part::Variables, 0, Kind::Nil);
            }
            // Those outside of the table are complete.
            Part::Variables => match self.from.integer()? {
                NIL => {}
                LIST => {
                    buckets = self.from.length()?;
                    if buckets == 0 || buckets > self.from.left() / 4 {
                        return self.refuse("a hash table has a wrong length");
                    }
                }
                _ => return self.refuse("a hash table is none"),
            },
            _ => {}
        }
        while buckets > 0 {
            buckets -= 1;
            self.set(Open::Environment {
                number,
                part: Part::Value,
                buckets,
            });
            if let Next::Item = self.named_cells(Role::Variables)? {
                return Ok(Next::Item);
            }
        }
        self.to.frames.pop();
        self.attributes_or_none(Kind::Environment(Some(number)))
    }

    /// Makes one environment the parent of another. R walks along parents until it comes to the
    /// empty environment, so there must be no cycle.
    fn link(&mut self, child: usize, parent: usize) -> Result<(), Error> {
        let root = self.root(parent);
        if root == child {
            return self.refuse("an environment is its own ancestor");
        }
        // Right away to the root, which makes the next walk short.
        if let Some(Reference::Environment(of)) = self.to.references.get_mut(child) {
            *of = Some(root);
        }
        Ok(())
    }

    /// The last known ancestor of an environment.
    fn root(&mut self, number: usize) -> usize {
        let references = &mut self.to.references;
        let mut at = number;
        while let Some(Reference::Environment(Some(parent))) = references.get(at).copied() {
            // Each one on the way skips one from now on.
            if let Some(Reference::Environment(Some(next))) = references.get(parent).copied() {
                references[at] = Reference::Environment(Some(next));
            }
            at = parent;
        }
        at
    }

    fn alternative_state(&mut self, class: Name, kind: Kind) -> Result<Next, Error> {
        let Kind::Vector(state) = kind else {
            return self.refuse("the state of an ALTREP vector is none");
        };
        let owner = match class {
            Name::Wrap(class) if class == state.class => {
                let [sorted, no_na] = self.integers()?;
                let known = matches!(sorted, i32::MIN | -2..=2) && matches!(no_na, 0 | 1);
                if !known {
                    return self.refuse("the state of an ALTREP vector is none");
                }
                state
            }
            Name::DeferredString if matches!(state.class, Class::Integer | Class::Real) => {
                let [penalty] = self.integers()?;
                if !(-9999..=9999).contains(&penalty) {
                    return self.refuse("the state of an ALTREP vector is none");
                }
                Vector {
                    class: Class::Character,
                    n: state.n,
                    data: Data::Unknown,
                }
            }
            _ => return self.refuse("the state of an ALTREP vector is none"),
        };
        self.to.frames.pop();
        self.attributes_or_none(Kind::Vector(owner))
    }

    fn attribute_value(&mut self, kind: Kind) -> Result<Next, Error> {
        self.value(kind)?;
        let Some(mut attributes) = self.to.attributes.pop() else {
            return self.refuse("nothing is open");
        };
        self.note(&mut attributes, kind)?;
        let flags = self.from.integer()?;
        if flags != NIL {
            self.to.attributes.push(attributes);
            return self.attribute(flags);
        }
        if let Kind::Vector(owner) = attributes.owner {
            self.agree(owner, &attributes)?;
        }
        self.to.lengths.truncate(attributes.lengths);
        self.to.frames.pop();
        Ok(Next::Done(attributes.owner))
    }

    /// Checks an attribute by itself.
    fn note(&self, attributes: &mut Attributes, kind: Kind) -> Result<(), Error> {
        let vector = match kind {
            Kind::Vector(vector) => Some(vector),
            _ => None,
        };
        let is = |class: Class| vector.filter(|v| v.class == class);
        if attributes.name == Name::Class {
            let Some(class) = is(Class::Character).filter(|class| class.n > 0) else {
                return self.refuse("a class is no string");
            };
            attributes.is_factor = self.holds(class, b"factor");
            return Ok(());
        }
        let n = match attributes.owner {
            Kind::Vector(owner) => owner.n,
            // There they would be tags.
            Kind::Pairlist | Kind::Call => {
                return match attributes.name {
                    Name::Names | Name::Dim | Name::Dimnames | Name::Tsp => {
                        self.refuse("a pairlist has attributes of vectors")
                    }
                    _ => Ok(()),
                };
            }
            // Slots.
            _ => return Ok(()),
        };
        match attributes.name {
            Name::Names if is(Class::Character).is_none_or(|names| names.n != n) => {
                self.refuse("there are not as many names as elements")
            }
            Name::Dim => match is(Class::Integer) {
                Some(dim) if dim.n > 0 => {
                    attributes.dim = Some(dim);
                    Ok(())
                }
                _ => self.refuse("dimensions are no integers"),
            },
            Name::Dimnames => {
                attributes.dimnames = vector;
                Ok(())
            }
            Name::Levels => {
                attributes.levels = is(Class::Character).map(|levels| levels.n);
                Ok(())
            }
            Name::RowNames if is(Class::Integer).or(is(Class::Character)).is_none() => {
                self.refuse("row names are neither strings nor integers")
            }
            Name::Tsp => match is(Class::Real) {
                Some(tsp) if tsp.n == 3 => {
                    attributes.tsp = Some(tsp);
                    Ok(())
                }
                _ => self.refuse("a time series has no times"),
            },
            Name::Comment if is(Class::Character).is_none() => {
                self.refuse("a comment is no string")
            }
            _ => Ok(()),
        }
    }

    /// Whether a string is among a few.
    fn holds(&self, strings: Vector, string: &[u8]) -> bool {
        let Data::At(at) = strings.data else {
            return false;
        };
        let mut cursor = self.from.clone();
        cursor.go(at);
        (0..strings.n).any(|_| matches!(cursor.string(), Ok(Some(s)) if s == string))
    }

    /// Checks attributes against their object and one another.
    fn agree(&self, owner: Vector, attributes: &Attributes) -> Result<(), Error> {
        let mut sizes = 0;
        if let Some(dim) = attributes.dim {
            let mut product = 1usize;
            for i in 0..dim.n {
                let size = self.number_at(dim, i).and_then(|n| usize::try_from(n).ok());
                let Some(now) = size.and_then(|size| product.checked_mul(size)) else {
                    return self.refuse("a dimension is too large or negative");
                };
                product = now;
                let (Some(names), Some(size)) = (attributes.dimnames, size) else {
                    continue;
                };
                let length = match names.data {
                    Data::Lengths(at) => self.to.lengths.get(at + i).copied().flatten(),
                    _ => None,
                };
                if length.is_some_and(|length| length != size) {
                    return self.refuse("there are not as many names as a dimension has");
                }
            }
            if product != owner.n {
                return self.refuse("dimensions and length do not agree");
            }
            sizes = dim.n;
        }
        if attributes.dimnames.is_some_and(|names| names.n != sizes) {
            return self.refuse("there are not as many names as dimensions");
        }
        if let Some(tsp) = attributes.tsp {
            let rows = attributes.dim.and_then(|dim| self.number_at(dim, 0));
            self.times(tsp, rows.unwrap_or(owner.n as i64))?;
        }
        if attributes.is_factor && owner.class != Class::Integer {
            return self.refuse("a factor has no codes");
        }
        match attributes.levels {
            Some(levels) if attributes.is_factor => self.codes(owner, levels),
            _ => Ok(()),
        }
    }

    fn number_at(&self, vector: Vector, i: usize) -> Option<i64> {
        let data = match vector.data {
            Data::At(at) => self.from.bytes.get(at..)?,
            Data::Piece(number) => self.from.piece_data(number),
            Data::Sequence(first, step) => {
                return Some(i64::from(first) + i64::from(step) * i as i64);
            }
            Data::Unknown | Data::Lengths(_) => return None,
        };
        let bytes = data.get(4 * i..)?.first_chunk()?;
        Some(i32::from_ne_bytes(*bytes).into())
    }

    /// Checks start, end and frequency of a time series as R does when they are set.
    fn times(&self, tsp: Vector, rows: i64) -> Result<(), Error> {
        let data = match tsp.data {
            Data::At(at) => self.from.bytes.get(at..).unwrap_or_default(),
            _ => &[],
        };
        let mut times = data
            .chunks_exact(8)
            .filter_map(<[u8]>::first_chunk)
            .map(|time| f64::from_ne_bytes(*time));
        let times = (times.next(), times.next(), times.next());
        if let (Some(start), Some(end), Some(frequency)) = times {
            let beyond = end - start - (rows - 1) as f64 / frequency;
            if frequency > 0.0 && rows > 0 && beyond.abs() <= 1e-5 {
                return Ok(());
            }
        }
        self.refuse("the times of a time series do not agree with its length")
    }

    /// Checks that the codes of a factor are those of its levels.
    fn codes(&self, owner: Vector, levels: usize) -> Result<(), Error> {
        let size = owner.n * 4;
        let data = match owner.data {
            Data::At(at) => self.from.bytes.get(at..at + size),
            Data::Piece(number) => Some(self.from.piece_data(number)),
            _ => {
                let ends = [0, owner.n.saturating_sub(1)].map(|i| self.number_at(owner, i));
                let fit = |n: Option<i64>| n.is_some_and(|n| n >= 1 && n <= levels as i64);
                return if owner.n == 0 || ends.into_iter().all(fit) {
                    Ok(())
                } else {
                    self.refuse("a factor has a code without a level")
                };
            }
        };
        let levels = u32::try_from(levels).unwrap_or(u32::MAX);
        // In parts, so that it can be done for several at once.
        let fit = data.is_some_and(|data| {
            data.chunks(4096).all(|part| {
                let codes = part.chunks_exact(4).filter_map(<[u8]>::first_chunk);
                let wrong = codes.map(|code| {
                    let code = i32::from_ne_bytes(*code);
                    u32::from(code != i32::MIN && (code.wrapping_sub(1) as u32) >= levels)
                });
                wrong.sum::<u32>() == 0
            })
        });
        if fit {
            Ok(())
        } else {
            self.refuse("a factor has a code without a level")
        }
    }
}

fn list_of(n: usize, lengths: Option<usize>) -> Kind {
    Kind::Vector(Vector {
        class: Class::List,
        n,
        data: lengths.map_or(Data::Unknown, Data::Lengths),
    })
}

/// Whether this is the name of a package.
fn is_package(name: &[u8]) -> bool {
    name.first().is_some_and(u8::is_ascii_alphabetic)
        && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'.')
}
