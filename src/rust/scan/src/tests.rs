//! Tests of the scan by streams that are written here, with a small writer.
//!
//! Over 500 lines: all of them use that writer.

use proptest::prelude::*;

use crate::format::*;
use crate::{Depth, Error, Hooked, Piece, Scanner, strip};

/// Writes streams.
#[derive(Clone, Default)]
struct Out(Vec<u8>);

impl Out {
    /// One that begins as every stream does.
    fn new() -> Out {
        Out(b"B\n".to_vec())
            .int(3)
            .int(0x0004_0202)
            .int(0x0003_0500)
            .int(5)
            .raw(b"UTF-8")
    }

    fn raw(mut self, bytes: &[u8]) -> Out {
        self.0.extend_from_slice(bytes);
        self
    }

    fn int(self, n: i32) -> Out {
        self.raw(&n.to_ne_bytes())
    }

    fn ints(self, numbers: &[i32]) -> Out {
        let out = self.int(INTEGER).int(numbers.len() as i32);
        numbers.iter().fold(out, |out, n| out.int(*n))
    }

    fn reals(self, numbers: &[f64]) -> Out {
        let out = self.int(REAL).int(numbers.len() as i32);
        numbers.iter().fold(out, |out, n| out.raw(&n.to_ne_bytes()))
    }

    fn string(self, text: &str) -> Out {
        self.int(STRING | 1 << 18)
            .int(text.len() as i32)
            .raw(text.as_bytes())
    }

    fn strings(self, texts: &[&str]) -> Out {
        let out = self.int(CHARACTER).int(texts.len() as i32);
        texts.iter().fold(out, |out, text| out.string(text))
    }

    fn symbol(self, name: &str) -> Out {
        self.int(SYMBOL).string(name)
    }

    fn reference(self, number: i32) -> Out {
        self.int(number << 8 | REFERENCE)
    }

    fn tagged(self, name: &str) -> Out {
        self.int(PAIRLIST | HAS_TAG).symbol(name)
    }

    fn nil(self) -> Out {
        self.int(NIL)
    }

    /// A vector of integers with attributes, which follow.
    fn ints_with(self, numbers: &[i32]) -> Out {
        let out = self.int(INTEGER | HAS_ATTRIBUTES).int(numbers.len() as i32);
        numbers.iter().fold(out, |out, n| out.int(*n))
    }

    fn scan(&self) -> Result<Depth, Error> {
        scan(&self.0, &[])
    }

    fn passes(&self) {
        self.scan().unwrap();
    }

    fn fails(&self, what: &str) {
        let error = self.scan().unwrap_err();
        assert!(error.what.contains(what), "{error}");
    }
}

fn scan(bytes: &[u8], pieces: &[Piece<'_>]) -> Result<Depth, Error> {
    Scanner::new().scan(bytes, pieces, 10_000, &|_, _| None)
}

#[test]
fn values_pass() {
    Out::new().nil().passes();
    Out::new().ints(&[1, 2, 3]).passes();
    Out::new().strings(&["a", "", "ü"]).passes();
    Out::new().int(LIST).int(2).reals(&[1.5]).nil().passes();
    Out::new()
        .int(CALL)
        .symbol("f")
        .int(PAIRLIST | HAS_TAG)
        .symbol("x")
        .reference(1)
        .nil()
        .passes();
    Out::new()
        .int(CLOSURE | HAS_TAG)
        .int(GLOBAL_ENV)
        .tagged("x")
        .int(MISSING_ARG)
        .nil()
        .reference(1)
        .passes();
    // An environment within itself.
    Out::new()
        .int(ENVIRONMENT)
        .int(0)
        .int(EMPTY_ENV)
        .tagged("self")
        .reference(1)
        .nil()
        .nil()
        .nil()
        .passes();
}

#[test]
fn whatever_is_cut_off_is_refused() {
    let whole = Out::new()
        .int(LIST | HAS_ATTRIBUTES)
        .int(2)
        .strings(&["a", "bc"])
        .ints(&[1, 2])
        .tagged("names")
        .strings(&["x", "y"])
        .nil();
    whole.passes();
    for n in 0..whole.0.len() {
        assert!(scan(&whole.0[..n], &[]).is_err(), "{n} bytes");
    }
    whole.nil().fails("something follows");
}

#[test]
fn the_header_is_checked() {
    let header = |n: i32, name: &[u8]| {
        let out = Out(b"B\n".to_vec()).int(3).int(0).int(0);
        out.int(n).raw(name).nil()
    };
    header(5, b"UTF-8").passes();
    // R takes the length for unsigned, and writes all bytes that are left on its stack.
    header(-1, b"").fails("encoding is too long");
    header(i32::MIN, &[0x41; 500]).fails("encoding is too long");
    header(64, &[b'a'; 64]).fails("encoding is too long");
    header(10, b"../../evil").fails("encoding is none");
    Out(b"X\n".to_vec()).int(0).fails("native binary format");
    Out(b"A\n".to_vec()).int(0).fails("native binary format");
    Out(b"B\n".to_vec())
        .int(4)
        .int(0)
        .int(0)
        .nil()
        .fails("version");
}

#[test]
fn lengths_are_those_of_the_bytes() {
    for kind in [
        LOGICAL, INTEGER, REAL, COMPLEX, RAW, CHARACTER, LIST, EXPRESSION,
    ] {
        for n in [i32::MAX, 1000, -2, i32::MIN] {
            assert!(Out::new().int(kind).int(n).nil().scan().is_err());
        }
        for (high, low) in [(1, 0), (-1, -1), (1 << 20, 0), (0, 1000)] {
            let out = Out::new().int(kind).int(-1).int(high).int(low);
            assert!(out.nil().scan().is_err());
        }
    }
    let builtin = |n: i32, name: &str| Out::new().int(BUILTIN).int(n).raw(name.as_bytes());
    builtin(3, "sum").passes();
    builtin(-1, "sum").fails("too long");
    builtin(1 << 30, "sum").fails("too long");
    builtin(0, "").fails("too long");
}

#[test]
fn what_r_shares_is_not_changed() {
    let builtin = Out::new().int(BUILTIN | HAS_ATTRIBUTES).int(3).raw(b"sum");
    builtin
        .tagged("class")
        .strings(&["a"])
        .nil()
        .fails("no such type");
    Out::new()
        .int(BUILTIN | IS_OBJECT)
        .int(3)
        .raw(b"sum")
        .fails("no such type");
}

#[test]
fn references_are_there() {
    Out::new().reference(1).fails("no such reference");
    Out::new().int(REFERENCE).int(0).fails("no such reference");
    Out::new().int(REFERENCE).int(-5).fails("no such reference");
    let two = Out::new().int(LIST).int(2).symbol("a");
    two.clone().reference(1).passes();
    two.clone().int(REFERENCE).int(1).passes();
    two.reference(2).fails("no such reference");
}

#[test]
fn fields_hold_what_r_expects_there() {
    // The parent of an environment, the environment of a closure, the tag of a variable …
    Out::new()
        .int(ENVIRONMENT)
        .int(0)
        .ints(&[1])
        .nil()
        .nil()
        .nil()
        .fails("an environment");
    Out::new()
        .int(CLOSURE | HAS_TAG)
        .ints(&[1])
        .nil()
        .nil()
        .fails("an environment");
    let closure = Out::new().int(CLOSURE | HAS_TAG).int(GLOBAL_ENV);
    closure.clone().ints(&[1]).nil().fails("no list");
    closure
        .clone()
        .int(PAIRLIST)
        .nil()
        .nil()
        .nil()
        .fails("no name");
    closure
        .int(PAIRLIST | HAS_TAG)
        .nil()
        .nil()
        .nil()
        .nil()
        .fails("no symbol");
    let env = Out::new().int(ENVIRONMENT).int(0).int(EMPTY_ENV);
    env.clone()
        .int(PAIRLIST)
        .nil()
        .nil()
        .nil()
        .nil()
        .fails("no name");
    env.clone()
        .nil()
        .int(LIST)
        .int(0)
        .nil()
        .fails("wrong length");
    env.clone()
        .nil()
        .int(LIST)
        .int(1)
        .ints(&[1])
        .nil()
        .fails("no list");
    env.clone().nil().int(INTEGER).fails("hash table is none");
    let active = PAIRLIST | HAS_TAG | ACTIVE << LEVELS_SHIFT;
    env.int(active)
        .symbol("a")
        .nil()
        .nil()
        .nil()
        .nil()
        .fails("no function");
    Out::new()
        .int(PROMISE | HAS_TAG)
        .ints(&[1])
        .nil()
        .nil()
        .fails("an environment");
    // A pairlist that ends otherwise than with NULL
    Out::new()
        .int(CALL)
        .symbol("f")
        .ints(&[1])
        .fails("does not end");
    Out::new()
        .int(PAIRLIST)
        .nil()
        .reference(1)
        .fails("does not end");
    Out::new()
        .int(PAIRLIST | HAS_TAG)
        .ints(&[1])
        .nil()
        .nil()
        .fails("no symbol");
    // What is no value by itself
    Out::new().int(UNBOUND_VALUE).fails("no value");
    Out::new()
        .int(LIST)
        .int(1)
        .int(UNBOUND_VALUE)
        .fails("no value");
    Out::new()
        .int(CHARACTER)
        .int(1)
        .int(i32::MIN | STRING)
        .int(0)
        .fails("a string was expected");
    Out::new().string("a").fails("no such type");
    Out::new().int(DOTS).nil().nil().fails("no value");
    Out::new().int(0).fails("no such type");
    Out::new()
        .int(LOGICAL | 1 << 28)
        .int(0)
        .fails("no such type");
    Out::new()
        .int(SYMBOL)
        .int(STRING)
        .int(-1)
        .fails("symbol's name");
    Out::new().symbol("").fails("symbol's name");
    Out::new().symbol("a\0b").fails("holds a zero");
    Out::new()
        .symbol(&"a".repeat(10_001))
        .fails("symbol's name");
}

#[test]
fn no_environment_is_its_own_ancestor() {
    let env = |out: Out| out.int(ENVIRONMENT).int(0);
    let end = |out: Out| out.nil().nil().nil();
    end(env(Out::new()).reference(1)).fails("own ancestor");
    // The parent's parent is the first.
    end(end(env(env(Out::new())).reference(1))).fails("own ancestor");
    // A variable of the parent may have a parent that is still being read.
    let first = env(env(Out::new()).int(EMPTY_ENV).nil()).int(EMPTY_ENV);
    end(first).int(0).scan().unwrap_err();
    let parent = env(env(Out::new())).int(EMPTY_ENV).tagged("child");
    let parent = end(env(parent).reference(1)).nil();
    end(parent.nil().nil()).passes();
}

#[test]
fn long_chains_of_environments_take_no_time() {
    let n = 100_000;
    let mut out = Out::new().int(LIST).int(n + 1);
    for i in 0..=n {
        out = out.int(ENVIRONMENT).int(0);
        out = if i == 0 {
            out.int(EMPTY_ENV)
        } else {
            out.reference(i)
        };
        out = out.nil().nil().nil();
    }
    out.passes();
}

#[test]
fn attributes_agree_with_their_object() {
    let with = |name: &str| Out::new().ints_with(&[1, 2, 3, 4]).tagged(name);
    with("names").strings(&["a", "b", "c", "d"]).nil().passes();
    with("names").strings(&["a"]).nil().fails("as many names");
    with("names")
        .ints(&[1, 2, 3, 4])
        .nil()
        .fails("as many names");
    with("dim").ints(&[2, 2]).nil().passes();
    with("dim").ints(&[2, 3]).nil().fails("do not agree");
    with("dim").ints(&[-2, -2]).nil().fails("negative");
    with("dim").ints(&[]).nil().fails("no integers");
    with("dim").ints(&[i32::MAX; 9]).nil().fails("too large");
    with("class").ints(&[1]).nil().fails("no string");
    with("row.names").reals(&[1.0]).nil().fails("row names");
    with("row.names").ints(&[i32::MIN, -4]).nil().passes();
    with("tsp").reals(&[1.0, 4.0, 1.0]).nil().passes();
    with("tsp").reals(&[1.0, 400.0, 1.0]).nil().fails("times");
    with("tsp").reals(&[1.0]).nil().fails("times");
    with("comment").nil().nil().fails("comment");
    let dimnames = |names: &dyn Fn(Out) -> Out| {
        let out = with("dimnames").int(LIST).int(2);
        names(out).tagged("dim").ints(&[2, 2]).nil()
    };
    dimnames(&|out| out.nil().strings(&["a", "b"])).passes();
    dimnames(&|out| out.nil().strings(&["a"])).fails("as a dimension has");
    dimnames(&|out| out.nil().ints(&[1, 2])).fails("no strings");
    with("dimnames")
        .int(LIST)
        .int(1)
        .nil()
        .nil()
        .fails("as dimensions");
    with("dimnames").nil().nil().fails("no list");
    let factor = |codes: &[i32]| {
        let out = Out::new()
            .ints_with(codes)
            .tagged("levels")
            .strings(&["a", "b"]);
        out.tagged("class").strings(&["factor"]).nil()
    };
    factor(&[1, 2, i32::MIN]).passes();
    factor(&[0]).fails("without a level");
    factor(&[3]).fails("without a level");
    factor(&[-1]).fails("without a level");
    factor(&[1; 5000]).passes();
    let mut many = vec![1; 5000];
    many[4999] = 7;
    factor(&many).fails("without a level");
    // Attributes are named values.
    let bare = Out::new().ints_with(&[1]);
    bare.clone()
        .int(PAIRLIST)
        .nil()
        .nil()
        .fails("no list of named");
    bare.clone().ints(&[1]).fails("no list of named");
    bare.tagged("a").nil().ints(&[1]).fails("no list of named");
}

#[test]
fn altrep_is_r_s_own_and_sound() {
    let of_type = |name: &str, package: &str, kind: i32| {
        Out::new()
            .int(ALTREP)
            .int(PAIRLIST)
            .symbol(name)
            .int(PAIRLIST)
            .symbol(package)
            .int(PAIRLIST)
            .ints(&[kind])
            .nil()
    };
    let class = |name: &str, package: &str| {
        let kind = match name {
            "compact_realseq" => REAL,
            "deferred_string" => CHARACTER,
            _ => INTEGER,
        };
        of_type(name, package, kind)
    };
    // R takes it for an index.
    for kind in [0, REAL, -1, 1 << 20] {
        let out = of_type("compact_intseq", "base", kind).reals(&[1.0, 1.0, 1.0]);
        out.nil().fails("another type");
    }
    let sequence = |state: &[f64]| class("compact_intseq", "base").reals(state).nil();
    sequence(&[10.0, 1.0, 1.0]).passes();
    sequence(&[10.0, 1.0, -1.0]).passes();
    for bad in [
        [0.0, 1.0, 1.0],
        [-1.0, 1.0, 1.0],
        [1.5, 1.0, 1.0],
        [1e10, 1.0, 1.0],
        [2e9, 2e9, 1.0],
        [3.0, 1.0, 2.0],
        [f64::NAN, 1.0, 1.0],
        [3.0, f64::INFINITY, 1.0],
    ] {
        sequence(&bad).fails("sequence");
    }
    class("compact_intseq", "base")
        .reals(&[1.0])
        .nil()
        .fails("sequence");
    let reals = |state: &[f64]| class("compact_realseq", "base").reals(state).nil();
    reals(&[1e12, 1.0, 1.0]).passes();
    reals(&[f64::INFINITY, 1.0, 1.0]).fails("sequence");
    let deferred = class("deferred_string", "base").int(PAIRLIST);
    deferred.clone().ints(&[1, 2]).ints(&[0]).nil().passes();
    deferred
        .clone()
        .strings(&["a"])
        .ints(&[0])
        .nil()
        .fails("state");
    deferred.ints(&[1, 2]).nil().nil().fails("integers");
    let wrap = class("wrap_integer", "base").int(PAIRLIST);
    wrap.clone()
        .ints(&[1, 2])
        .ints(&[i32::MIN, 0])
        .nil()
        .passes();
    wrap.clone()
        .reals(&[1.0])
        .ints(&[1, 0])
        .nil()
        .fails("state");
    wrap.ints(&[1, 2]).ints(&[99, 0]).nil().fails("state");
    class("mmap_integer", "base")
        .strings(&["/etc/passwd"])
        .nil()
        .fails("not read");
    class("compact_intseq", "evil")
        .reals(&[1.0, 1.0, 1.0])
        .nil()
        .fails("not R's own");
}

#[test]
fn packages_have_names() {
    let named = |code: i32, names: &[&str]| {
        let out = Out::new().int(code).int(0).int(names.len() as i32);
        names.iter().fold(out, |out, name| out.string(name))
    };
    named(NAMESPACE, &["stats", "4.2.2"]).passes();
    named(NAMESPACE, &["../../tmp/evil", "1.0"]).fails("none");
    named(NAMESPACE, &[]).fails("no name");
    named(PACKAGE, &["package:stats"]).passes();
    named(PACKAGE, &["stats"]).fails("none");
    Out::new()
        .int(NAMESPACE)
        .int(0)
        .int(i32::MAX)
        .fails("too many");
}

#[test]
fn hooked_objects_are_where_they_may_be() {
    let hooked = |i: &str, j: &str| Out::new().int(PERSISTENT).int(0).int(2).string(i).string(j);
    let scan = |out: Out| {
        Scanner::new().scan(&out.0, &[], 100, &|i, j| match (i, j) {
            (0, 0) => Some(Hooked::Environment),
            (0, 1) => Some(Hooked::Other),
            _ => None,
        })
    };
    scan(hooked("0", "0")).unwrap();
    scan(hooked("1", "0")).unwrap_err();
    scan(hooked("-1", "0")).unwrap_err();
    scan(hooked("", "0")).unwrap_err();
    let parent = |j: &str| {
        let out = Out::new()
            .int(ENVIRONMENT)
            .int(0)
            .int(PERSISTENT)
            .int(0)
            .int(2);
        out.string("0").string(j).nil().nil().nil()
    };
    scan(parent("0")).unwrap();
    assert!(
        scan(parent("1"))
            .unwrap_err()
            .what
            .contains("an environment")
    );
}

#[test]
fn depth_is_known_and_bounded() {
    let nested = |n: usize| (0..n).fold(Out::new(), |out, _| out.int(LIST).int(1)).nil();
    assert_eq!(nested(100).scan().unwrap().levels, 100);
    assert!(nested(10_001).scan().unwrap_err().is_too_deep());
    // Without recursion, and without much memory.
    assert!(nested(5_000_000).scan().unwrap_err().is_too_deep());
    let long = (0..1000)
        .fold(Out::new(), |out, _| out.int(PAIRLIST).nil())
        .nil();
    let depth = long.scan().unwrap();
    assert_eq!(depth.levels, 1);
    assert!(depth.calls >= 1000);
}

#[test]
fn pieces_are_whole_vectors() {
    let data = [7u8; 400];
    let out = Out::new().int(LIST).int(2).int(INTEGER).int(100);
    let at = out.0.len();
    let bytes = out.nil().0;
    let piece = |at, n: usize| {
        [Piece {
            at,
            data: &data[..n],
        }]
    };
    scan(&bytes, &piece(at, 400)).unwrap();
    scan(&bytes, &piece(at, 396)).unwrap_err();
    scan(&bytes, &[]).unwrap_err();
    for other in 0..bytes.len() + 2 {
        if other != at {
            scan(&bytes, &piece(other, 400)).unwrap_err();
        }
    }
    let out = Out::new().int(CHARACTER).int(2);
    let strings = Out::default().string("a").string("bc").0;
    let piece = |data| {
        [Piece {
            at: out.0.len(),
            data,
        }]
    };
    scan(&out.0, &piece(&strings)).unwrap();
    scan(&out.0, &piece(&strings[..strings.len() - 1])).unwrap_err();
    let more = Out(strings.clone()).string("d").0;
    scan(&out.0, &piece(&more)).unwrap_err();
}

/// Byte code as R writes it, with these further constants: `x` + 1 as its expression.
fn byte_code(out: Out, rest: impl Fn(Out) -> Out, n: i32) -> Out {
    let out = out.int(BYTE_CODE).int(2).ints(&[10, 1]).int(n + 1);
    let out = out
        .int(SHARED_CELL)
        .int(1)
        .int(CALL)
        .nil()
        .int(0)
        .symbol("+");
    let out = out.int(PAIRLIST).nil().int(0).symbol("x");
    let out = out.int(PAIRLIST).nil().int(0).reals(&[1.0]).int(0).nil();
    rest(out)
}

#[test]
fn byte_code_is_refused_and_can_be_taken_out() {
    let sum = |out: Out, plus: &dyn Fn(Out) -> Out, x: &dyn Fn(Out) -> Out| {
        let out = x(plus(out.int(CALL)).int(PAIRLIST));
        out.int(PAIRLIST).reals(&[1.0]).nil()
    };
    let plain = |out: Out| sum(out, &|o| o.symbol("+"), &|o| o.symbol("x"));
    let again = |out: Out| sum(out, &|o| o.reference(1), &|o| o.reference(2));
    let constants = |out: Out| {
        let out = out.int(SYMBOL).symbol("y").int(SHARED_AGAIN).int(1);
        out.int(BYTE_CODE)
            .ints(&[10, 1])
            .int(1)
            .int(REAL)
            .reals(&[2.0])
    };
    let with = byte_code(Out::new().int(LIST).int(3), constants, 3);
    // y is among the constants only, and referred to later.
    let with = with.reference(3).reference(1);
    with.fails("byte code");
    let without = plain(Out::new().int(LIST).int(3)).symbol("y").reference(1);
    let stripped = strip(&with.0, &[]).unwrap().unwrap();
    assert_eq!(stripped.bytes, without.0);
    assert!(strip(&without.0, &[]).unwrap().is_none());
    // Twice: the second copy refers to what the first has defined.
    let two = byte_code(Out::new().int(LIST).int(2), |out| out, 0);
    let two = two.int(BYTE_CODE).int(1).ints(&[10, 1]).int(1);
    let two = two.int(CALL).nil().int(0).reference(1);
    let two = two.int(PAIRLIST).nil().int(0).reference(2);
    let two = two.int(PAIRLIST).nil().int(0).reals(&[1.0]).int(0).nil();
    let without = again(plain(Out::new().int(LIST).int(2)));
    assert_eq!(strip(&two.0, &[]).unwrap().unwrap().bytes, without.0);
}

#[test]
fn pieces_stay_with_their_vectors() {
    let data = [0u8; 400];
    let before = Out::new().int(LIST).int(3).int(INTEGER).int(100);
    let first = before.0.len();
    let with = byte_code(before, |out| out.int(INTEGER).int(INTEGER).int(100), 1);
    let second = with.0.len();
    let with = with.int(INTEGER).int(100);
    let third = with.0.len();
    let pieces = [first, second, third].map(|at| Piece { at, data: &data });
    let stripped = strip(&with.0, &pieces).unwrap().unwrap();
    let numbers: Vec<usize> = stripped.pieces.iter().map(|(number, _)| *number).collect();
    // That of the constant is gone.
    assert_eq!(numbers, [0, 2]);
    let pieces: Vec<_> = stripped
        .pieces
        .iter()
        .map(|(_, at)| Piece {
            at: *at,
            data: &data,
        })
        .collect();
    scan(&stripped.bytes, &pieces).unwrap();
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let out = Out::new().raw(&bytes);
        let _ = out.scan();
        let _ = strip(&out.0, &[]);
    }

    #[test]
    fn nor_do_numbers_that_mean_something(
        words in proptest::collection::vec(
            prop_oneof![0..26i32, 238..256i32, -3..9i32, Just(HAS_TAG | PAIRLIST), Just(HAS_ATTRIBUTES | LIST),
                Just(CLOSURE | HAS_TAG), Just(STRING | 1 << 18), Just(1 << 8 | REFERENCE), any::<i32>()],
            0..60,
        ),
        at in 0..300usize,
    ) {
        let out = words.iter().fold(Out::new(), |out, word| out.int(*word));
        let _ = out.scan();
        let pieces = [Piece { at, data: &[1, 2, 3, 4] }];
        let _ = scan(&out.0, &pieces);
        if let Ok(Some(stripped)) = strip(&out.0, &pieces) {
            let again = strip(&stripped.bytes, &[]);
            prop_assert!(!matches!(again, Ok(Some(_))));
        }
    }
}

#[test]
fn a_zero_is_found_wherever_it_is() {
    for n in 0..40 {
        let text = "x".repeat(n);
        Out::new().strings(&[&text, "a"]).passes();
        Out::new()
            .int(LIST)
            .int(3)
            .nil()
            .strings(&[&text])
            .strings(&["a"])
            .passes();
        for i in 0..n {
            let with = format!("{}\0{}", &text[..i], &text[i + 1..]);
            Out::new().strings(&[&with, "a"]).fails("holds a zero");
            let list = Out::new().int(LIST).int(3).nil().strings(&[&with]);
            list.strings(&["a"]).fails("holds a zero");
        }
    }
}
