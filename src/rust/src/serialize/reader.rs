//! Reads R objects from R's serialization format: those that [`writer`](super::writer)
//! writes. For anything else `R_Unserialize()` reads it all from the beginning.

mod vectors;

use std::mem::MaybeUninit;

use extendr_ffi::{
    R_BaseEnv, R_BaseNamespace, R_EmptyEnv, R_GlobalEnv, R_MissingArg, R_NewEnv, R_NilValue,
    Rboolean, Rf_cons, Rf_defineVar, Rf_lcons, Rf_protect, Rf_unprotect, CAR, CDR, SETCDR, SET_TAG,
    SEXP, SEXPTYPE, TAG, TYPEOF,
};

use super::format::*;
use super::text::Text;
use super::Source;
use crate::r::{self, Attributes};
use crate::stack;

/// Stack that a level of nesting takes at most.
pub(super) const LEVEL: usize = 512;

/// Where the header tells the writer's version of R.
const WRITER: std::ops::Range<usize> = 6..10;

/// The object in `bytes`, or `None` if R has to read it. `restored` is what hooks have made:
/// see [`hooks`](super::hooks).
///
/// # Safety
/// On R's main thread. May leave by a long jump if R runs out of memory.
pub(super) unsafe fn read(source: Source<'_>, restored: SEXP) -> Option<SEXP> {
    // SAFETY: as this function demands. All that is protected by the end is unprotected.
    unsafe {
        let (start, rest) = source.rest.split_at_checked(header().len())?;
        // Which version of R wrote it does not matter, as long as format and encoding are the same.
        let same = |range: std::ops::Range<usize>| start[range.clone()] == header()[range];
        if !same(0..WRITER.start) || !same(WRITER.end..start.len()) {
            return None;
        }
        let mut reader = Reader {
            source: source.with_rest(rest),
            references: [const { MaybeUninit::uninit() }; 256],
            count: 0,
            protected: 0,
            environments: R_NilValue,
            restored,
            deepest: stack::levels(LEVEL) as u32,
        };
        reader.environments = reader.protect(Rf_cons(R_NilValue, R_NilValue));
        let object = reader.item(0);
        // And what is left over where reading was given up.
        Rf_unprotect(reader.protected);
        object
    }
}

/// Its unsafe functions demand R's main thread, and what they keep: each object made so far is on R's protection
/// stack ([`protect`](Reader::protect)), reachable from one that is, or in [`environments`](Reader::environments). Where
/// reading is given up (`None`), [`read`] unprotects the rest.
struct Reader<'a> {
    source: Source<'a>,
    /// Symbols and namespaces, which R keeps alive itself, and environments. The first
    /// `count` are there.
    references: [MaybeUninit<SEXP>; 256],
    count: usize,
    /// A list that keeps the environments alive.
    environments: SEXP,
    /// Objects on R's protection stack.
    protected: i32,
    restored: SEXP,
    /// Levels for which there is room on the stack.
    deepest: u32,
}

impl Reader<'_> {
    fn integer(&mut self) -> Option<i32> {
        let (bytes, rest) = self.source.rest.split_first_chunk()?;
        self.source.rest = rest;
        Some(i32::from_ne_bytes(*bytes))
    }

    fn take(&mut self, n: usize) -> Option<&[u8]> {
        let (bytes, rest) = self.source.rest.split_at_checked(n)?;
        self.source.rest = rest;
        Some(bytes)
    }

    fn remember(&mut self, object: SEXP) -> Option<SEXP> {
        self.references.get_mut(self.count)?.write(object);
        self.count += 1;
        Some(object)
    }

    unsafe fn protect(&mut self, object: SEXP) -> SEXP {
        // SAFETY: on R's main thread; `object` has just been made, or is reachable.
        unsafe {
            self.protected += 1;
            Rf_protect(object)
        }
    }

    unsafe fn unprotect(&mut self, n: i32) {
        // SAFETY: on R's main thread; `protected` counts what is on R's stack.
        unsafe {
            self.protected -= n;
            Rf_unprotect(n);
        }
    }

    unsafe fn item(&mut self, depth: u32) -> Option<SEXP> {
        // SAFETY: as [`Reader`] demands.
        unsafe {
            let flags = self.integer()?;
            self.item_of(flags, depth)
        }
    }

    unsafe fn item_of(&mut self, flags: i32, depth: u32) -> Option<SEXP> {
        // SAFETY: as [`Reader`] demands. The first `count` references have been written.
        unsafe {
            if depth > self.deepest {
                return None;
            }
            Some(match flags & 0xff {
                NIL => R_NilValue,
                GLOBAL_ENV => R_GlobalEnv,
                EMPTY_ENV => R_EmptyEnv,
                BASE_ENV => R_BaseEnv,
                BASE_NAMESPACE => R_BaseNamespace,
                MISSING_ARG => R_MissingArg,
                REFERENCE => {
                    let i = usize::try_from(flags >> 8).ok()?.checked_sub(1)?;
                    return self.references[..self.count]
                        .get(i)
                        .map(|object| object.assume_init());
                }
                NAMESPACE => return self.namespace(),
                PERSISTENT => return self.persistent(),
                kind => return self.typed(kind, flags, depth),
            })
        }
    }

    unsafe fn typed(&mut self, kind: i32, flags: i32, depth: u32) -> Option<SEXP> {
        // SAFETY: as [`Reader`] demands; `name` is a string.
        unsafe {
            const SYMBOL: i32 = SEXPTYPE::SYMSXP as i32;
            const LIST: i32 = SEXPTYPE::LISTSXP as i32;
            const CALL: i32 = SEXPTYPE::LANGSXP as i32;
            const CLOSURE: i32 = SEXPTYPE::CLOSXP as i32;
            const STRING: i32 = SEXPTYPE::CHARSXP as i32;
            const ENVIRONMENT: i32 = SEXPTYPE::ENVSXP as i32;
            match kind {
                ENVIRONMENT => self.environment(depth),
                SYMBOL => {
                    let flags = self.integer()?;
                    if flags & 0xff != STRING {
                        return None;
                    }
                    let name = self.string(flags)?;
                    let name = self.protect(name);
                    let symbol = r::Rf_installChar(name);
                    self.unprotect(1);
                    self.remember(symbol)
                }
                LIST | CALL => self.pairlist(flags, depth),
                CLOSURE => self.closure(flags, depth),
                STRING => self.string(flags),
                _ => self.plain(kind, flags, depth),
            }
        }
    }

    /// Cells up to the end of the list, without recursion along it.
    unsafe fn pairlist(&mut self, flags: i32, depth: u32) -> Option<SEXP> {
        // SAFETY: as [`Reader`] demands. `head` is protected and reaches all cells up to `last`, which is one
        // unless `head` is `NULL`.
        unsafe {
            let mut flags = flags;
            let mut head = R_NilValue;
            let mut last = R_NilValue;
            loop {
                let kind = flags & 0xff;
                if kind != SEXPTYPE::LISTSXP as i32 && kind != SEXPTYPE::LANGSXP as i32 {
                    let tail = self.item_of(flags, depth + 1)?;
                    SETCDR(last, tail);
                    break;
                }
                let cell = if kind == SEXPTYPE::LANGSXP as i32 {
                    Rf_lcons(R_NilValue, R_NilValue)
                } else {
                    Rf_cons(R_NilValue, R_NilValue)
                };
                if head == R_NilValue {
                    head = self.protect(cell);
                } else {
                    SETCDR(last, cell);
                }
                last = cell;
                self.attributes(cell, flags, depth)?;
                if flags & HAS_TAG != 0 {
                    let tag = self.item(depth + 1)?;
                    SET_TAG(cell, tag);
                }
                let value = self.item(depth + 1)?;
                r::SETCAR(cell, value);
                flags = self.integer()?;
            }
            self.unprotect(1);
            Some(head)
        }
    }

    /// Gives an object the attributes that follow, if its flags say that there are any.
    unsafe fn attributes(&mut self, object: SEXP, flags: i32, depth: u32) -> Option<()> {
        // SAFETY: as [`Reader`] demands; `object` is reachable from what is protected, and new.
        unsafe {
            let mut attributes = Attributes::of(object);
            if flags & HAS_ATTRIBUTES != 0 {
                self.attributes_of(&mut attributes, depth)?;
            }
            attributes.finish(flags & IS_OBJECT != 0).then_some(())
        }
    }

    unsafe fn attributes_of(&mut self, attributes: &mut Attributes, depth: u32) -> Option<()> {
        // SAFETY: as [`Reader`] demands; `name` is a symbol, as `add` wants it.
        unsafe {
            const CELL: i32 = SEXPTYPE::LISTSXP as i32 | HAS_TAG;
            loop {
                match self.integer()? {
                    NIL => return Some(()),
                    CELL => {}
                    _ => return None,
                }
                let name = self.item(depth + 1)?;
                if TYPEOF(name) != SEXPTYPE::SYMSXP {
                    return None;
                }
                let value = self.item(depth + 2)?;
                if !attributes.add(name, value) {
                    return None;
                }
            }
        }
    }

    unsafe fn closure(&mut self, flags: i32, depth: u32) -> Option<SEXP> {
        // SAFETY: as [`Reader`] demands. Attributes and parts are protected until the closure has them.
        unsafe {
            let attributes = match flags & HAS_ATTRIBUTES {
                0 => R_NilValue,
                _ => self.item(depth + 1)?,
            };
            self.protect(attributes);
            let [mut env, mut formals, mut body] = [R_NilValue; 3];
            for part in [&mut env, &mut formals, &mut body] {
                let item = self.item(depth + 1)?;
                *part = self.protect(item);
            }
            let closure = r::make_closure(formals, body, env)?;
            let closure = self.protect(closure);
            let mut given = Attributes::of(closure);
            let mut cell = attributes;
            while cell != R_NilValue {
                let fits = TYPEOF(cell) == SEXPTYPE::LISTSXP
                    && TYPEOF(TAG(cell)) == SEXPTYPE::SYMSXP
                    && given.add(TAG(cell), CAR(cell));
                if !fits {
                    return None;
                }
                cell = CDR(cell);
            }
            if !given.finish(flags & IS_OBJECT != 0) {
                return None;
            }
            if flags >> 12 & S4 != 0 {
                r::set_s4(closure);
            }
            self.unprotect(5);
            Some(closure)
        }
    }

    unsafe fn environment(&mut self, depth: u32) -> Option<SEXP> {
        // SAFETY: as [`Reader`] demands. `env` is protected until `environments` has it.
        unsafe {
            let locked = self.integer()? != 0;
            let env = self.protect(R_NewEnv(R_EmptyEnv, 1, 29));
            let cell = Rf_cons(env, CDR(self.environments));
            SETCDR(self.environments, cell);
            self.unprotect(1);
            self.remember(env)?;
            let parent = self.item(depth + 1)?;
            if TYPEOF(parent) != SEXPTYPE::ENVSXP {
                return None;
            }
            r::set_parent(env, parent);
            let frame = self.integer()?;
            self.bindings(frame, env, depth)?;
            let table = self.integer()?;
            if table != NIL {
                if table != SEXPTYPE::VECSXP as i32 {
                    return None;
                }
                for _ in 0..self.length()? {
                    let bucket = self.integer()?;
                    self.bindings(bucket, env, depth)?;
                }
            }
            let mut attributes = Attributes::of(env);
            self.attributes_of(&mut attributes, depth)?;
            let class = extendr_ffi::Rf_getAttrib(env, extendr_ffi::R_ClassSymbol);
            if !attributes.finish(class != R_NilValue) {
                return None;
            }
            if locked {
                r::R_LockEnvironment(env, Rboolean::FALSE);
            }
            Some(env)
        }
    }

    /// A list of variables, which begins with these flags.
    unsafe fn bindings(&mut self, flags: i32, env: SEXP, depth: u32) -> Option<()> {
        // SAFETY: as [`Reader`] demands. `symbol` is a symbol; the value is protected until the variable has it.
        unsafe {
            let mut flags = flags;
            while flags != NIL {
                let levels = flags >> 12;
                let kind = flags & 0xff;
                let plain = flags & (HAS_ATTRIBUTES | HAS_TAG) == HAS_TAG && levels & ACTIVE == 0;
                if kind != SEXPTYPE::LISTSXP as i32 || !plain {
                    return None;
                }
                let symbol = self.item(depth + 1)?;
                if TYPEOF(symbol) != SEXPTYPE::SYMSXP {
                    return None;
                }
                let value = self.integer()?;
                if value & 0xff == SEXPTYPE::PROMSXP as i32 {
                    self.promise(value, symbol, env, depth)?;
                } else {
                    let value = self.item_of(value, depth + 1)?;
                    let value = self.protect(value);
                    Rf_defineVar(symbol, value, env);
                    self.unprotect(1);
                }
                if levels & LOCKED != 0 {
                    r::R_LockBinding(symbol, env);
                }
                flags = self.integer()?;
            }
            Some(())
        }
    }

    /// A variable that is a promise not evaluated yet.
    unsafe fn promise(&mut self, flags: i32, symbol: SEXP, env: SEXP, depth: u32) -> Option<()> {
        // SAFETY: as [`Reader`] demands. The parts have the types checked; `environments` keeps `eval_env`, and
        // `expr` is protected.
        unsafe {
            if flags & (HAS_ATTRIBUTES | HAS_TAG) != HAS_TAG {
                return None;
            }
            let eval_env = self.item(depth + 1)?;
            if TYPEOF(eval_env) != SEXPTYPE::ENVSXP || self.integer()? != UNBOUND_VALUE {
                return None;
            }
            let expr = self.item(depth + 1)?;
            let expr = self.protect(expr);
            r::delayed_assign(symbol, expr, eval_env, env);
            self.unprotect(1);
            Some(())
        }
    }

    unsafe fn string(&mut self, flags: i32) -> Option<SEXP> {
        // SAFETY: as [`Reader`] demands.
        unsafe { Some(Text::after(flags, &mut self.source.rest)?.make()) }
    }

    unsafe fn namespace(&mut self) -> Option<SEXP> {
        // SAFETY: as [`Reader`] demands; `string` is protected, and R keeps loaded namespaces.
        unsafe {
            let (zero, n) = (self.integer()?, self.integer()?);
            if zero != 0 || n < 1 {
                return None;
            }
            let mut namespace = None;
            for i in 0..n {
                let flags = self.integer()?;
                if flags & 0xff != SEXPTYPE::CHARSXP as i32 {
                    return None;
                }
                let string = self.string(flags)?;
                if i == 0 {
                    self.protect(string);
                    namespace = r::loaded_namespace(r::Rf_installChar(string));
                    self.unprotect(1);
                }
            }
            // One that is not loaded yet is R's business.
            self.remember(namespace?)
        }
    }

    /// An object that a hook has made, by its place.
    unsafe fn persistent(&mut self) -> Option<SEXP> {
        // SAFETY: as [`Reader`] demands; `restored` keeps the object.
        unsafe {
            let (zero, n) = (self.integer()?, self.integer()?);
            if zero != 0 || n != 2 {
                return None;
            }
            let mut place = [0; 2];
            for number in &mut place {
                let (_flags, length) = (self.integer()?, self.integer()?);
                let text = self.take(usize::try_from(length).ok()?)?;
                *number = std::str::from_utf8(text).ok()?.parse().ok()?;
            }
            let object = super::hooks::restored(self.restored, place)?;
            self.remember(object)
        }
    }

    /// A vector's length.
    fn length(&mut self) -> Option<usize> {
        match self.integer()? {
            -1 => {
                let (high, low) = (self.integer()?, self.integer()?);
                usize::try_from(i64::from(high) << 32 | i64::from(low as u32)).ok()
            }
            n => usize::try_from(n).ok(),
        }
    }
}
