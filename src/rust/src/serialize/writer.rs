//! Writes R objects in R's own serialization format.
//!
//! R's `R_Serialize()` allocates a 1,099-slot hash table for every call, which for
//! a task of a few dozen bytes costs several times what writing it does, and feeds the
//! garbage collector. This writes the objects that tasks are usually made of itself,
//! and says so if there is something else among them (environments, byte code, external
//! pointers, long or large compact vectors): then `R_Serialize()` does it all.
//!
//! Facts about the format: "R Internals", section 1.8; `src/main/serialize.c` of R.

use extendr_ffi::{
    R_BaseEnv, R_BaseNamespace, R_EmptyEnv, R_GlobalEnv, R_IsNamespaceEnv, R_MissingArg,
    R_NaString, R_NamespaceEnvSpec, R_NilValue, Rboolean, Rf_protect, Rf_unprotect, Rf_xlength,
    CAR, CDR, COMPLEX, INTEGER, LOGICAL, PRINTNAME, RAW, REAL, R_CHAR, SEXP, SEXPTYPE, STRING_ELT,
    TAG, TYPEOF, VECTOR_ELT,
};

use super::format::*;
use crate::r;

/// Beyond this R looks after its stack better than we do.
const DEEPEST: u32 = 400;
/// A compact vector (such as `1:10`) up to this many elements is written out.
const SMALL_COMPACT: isize = 256;

/// Symbols and namespaces written so far: later ones are references to them.
#[derive(Default)]
pub struct References {
    seen: Vec<SEXP>,
}

impl References {
    pub const fn new() -> References {
        References { seen: Vec::new() }
    }

    /// The number under which an object was written, from 1.
    fn find(&self, object: SEXP) -> Option<i32> {
        // Few, as a rule; `add` refuses more than a linear search is good for.
        let at = self.seen.iter().position(|x| *x == object)?;
        Some(at as i32 + 1)
    }

    fn add(&mut self, object: SEXP) -> bool {
        self.seen.push(object);
        self.seen.len() <= 64
    }
}

/// Appends `object` to `out`. False: it holds something that only R can write, and
/// `out` holds a part of it.
///
/// # Safety
/// On R's main thread. May leave by a long jump if R runs out of memory, so both
/// references must be to what outlives that.
pub unsafe fn write(out: &mut Vec<u8>, references: &mut References, object: SEXP) -> bool {
    references.seen.clear();
    out.extend_from_slice(header());
    Writer { out, references }.item(object, 0)
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    references: &'a mut References,
}

impl Writer<'_> {
    fn integer(&mut self, x: i32) {
        self.out.extend_from_slice(&x.to_ne_bytes());
    }

    /// A length, which R writes in another way from 2^31 on.
    fn length(&mut self, n: isize) -> bool {
        match i32::try_from(n) {
            Ok(n) => self.integer(n),
            Err(_) => return false,
        }
        true
    }

    unsafe fn bytes<T>(&mut self, data: *const T, n: isize) {
        let size = n as usize * std::mem::size_of::<T>();
        self.out.reserve(size + 64);
        self.out
            .extend_from_slice(std::slice::from_raw_parts(data.cast::<u8>(), size));
    }

    unsafe fn item(&mut self, object: SEXP, depth: u32) -> bool {
        if depth > DEEPEST {
            return false;
        }
        let mut object = object;
        // Pairlists are written cell by cell, without recursion along them.
        loop {
            if let Some(code) = special(object) {
                self.integer(code);
                return true;
            }
            match TYPEOF(object) {
                SEXPTYPE::SYMSXP => return self.symbol(object),
                SEXPTYPE::ENVSXP => return self.namespace(object),
                SEXPTYPE::LISTSXP | SEXPTYPE::LANGSXP => {
                    let attributes = r::ATTRIB(object);
                    let tag = TAG(object);
                    self.flags(object, attributes != R_NilValue, tag != R_NilValue);
                    if attributes != R_NilValue && !self.item(attributes, depth + 1) {
                        return false;
                    }
                    if tag != R_NilValue && !self.item(tag, depth + 1) {
                        return false;
                    }
                    if !self.item(CAR(object), depth + 1) {
                        return false;
                    }
                    object = CDR(object);
                }
                SEXPTYPE::CLOSXP => return self.closure(object, depth),
                _ => return self.plain(object, depth),
            }
        }
    }

    unsafe fn flags(&mut self, object: SEXP, attributes: bool, tag: bool) {
        let mut levels = r::LEVELS(object);
        let kind = TYPEOF(object);
        if kind == SEXPTYPE::CHARSXP {
            levels &= !(CACHED | HASHED);
        }
        let mut flags = kind as i32 | levels << 12;
        if r::OBJECT(object) != 0 {
            flags |= IS_OBJECT;
        }
        if attributes {
            flags |= HAS_ATTRIBUTES;
        }
        if tag {
            flags |= HAS_TAG;
        }
        self.integer(flags);
    }

    /// A reference, if the object has been written before.
    fn reference(&mut self, object: SEXP) -> bool {
        let Some(i) = self.references.find(object) else {
            return false;
        };
        self.integer(i << 8 | REFERENCE);
        true
    }

    unsafe fn symbol(&mut self, symbol: SEXP) -> bool {
        if self.reference(symbol) {
            return true;
        }
        self.integer(SEXPTYPE::SYMSXP as i32);
        self.string(PRINTNAME(symbol)) && self.references.add(symbol)
    }

    /// Only namespaces, which are written as their names.
    unsafe fn namespace(&mut self, env: SEXP) -> bool {
        if R_IsNamespaceEnv(env) == Rboolean::FALSE {
            return false;
        }
        if self.reference(env) {
            return true;
        }
        let spec = Rf_protect(R_NamespaceEnvSpec(env));
        self.integer(NAMESPACE);
        self.integer(0);
        self.integer(Rf_xlength(spec) as i32);
        let done = (0..Rf_xlength(spec)).all(|i| self.string(STRING_ELT(spec, i)));
        Rf_unprotect(1);
        done && self.references.add(env)
    }

    unsafe fn closure(&mut self, closure: SEXP, depth: u32) -> bool {
        let attributes = r::ATTRIB(closure);
        self.flags(closure, attributes != R_NilValue, true);
        if attributes != R_NilValue && !self.item(attributes, depth + 1) {
            return false;
        }
        // The body as an expression, also if it has been compiled: the receiver compiles
        // again what is worth it, and byte code is large.
        self.item(extendr_ffi::backports::get_closure_env(closure), depth + 1)
            && self.item(
                extendr_ffi::backports::get_closure_formals(closure),
                depth + 1,
            )
            && self.item(r::R_ClosureExpr(closure), depth + 1)
    }

    unsafe fn string(&mut self, string: SEXP) -> bool {
        self.flags(string, false, false);
        if string == R_NaString {
            self.integer(-1);
            return true;
        }
        let n = Rf_xlength(string);
        self.length(n) && {
            self.bytes(R_CHAR(string), n);
            true
        }
    }

    /// Vectors and S4 objects.
    unsafe fn plain(&mut self, object: SEXP, depth: u32) -> bool {
        let kind = TYPEOF(object);
        let n = match kind {
            SEXPTYPE::S4SXP => 0,
            SEXPTYPE::LGLSXP
            | SEXPTYPE::INTSXP
            | SEXPTYPE::REALSXP
            | SEXPTYPE::CPLXSXP
            | SEXPTYPE::RAWSXP
            | SEXPTYPE::STRSXP
            | SEXPTYPE::VECSXP
            | SEXPTYPE::EXPRSXP => Rf_xlength(object),
            _ => return false,
        };
        if r::ALTREP(object) != 0 && n > SMALL_COMPACT {
            return false;
        }
        let attributes = r::ATTRIB(object);
        self.flags(object, attributes != R_NilValue, false);
        if kind != SEXPTYPE::S4SXP && !self.length(n) {
            return false;
        }
        let done = match kind {
            SEXPTYPE::LGLSXP => {
                self.bytes(LOGICAL(object), n);
                true
            }
            SEXPTYPE::INTSXP => {
                self.bytes(INTEGER(object), n);
                true
            }
            SEXPTYPE::REALSXP => {
                self.bytes(REAL(object), n);
                true
            }
            SEXPTYPE::CPLXSXP => {
                self.bytes(COMPLEX(object), n);
                true
            }
            SEXPTYPE::RAWSXP => {
                self.bytes(RAW(object), n);
                true
            }
            SEXPTYPE::STRSXP => (0..n).all(|i| self.string(STRING_ELT(object, i))),
            SEXPTYPE::S4SXP => true,
            _ => (0..n).all(|i| self.item(VECTOR_ELT(object, i), depth + 1)),
        };
        done && (attributes == R_NilValue || self.item(attributes, depth + 1))
    }
}

/// Objects that are written as a number.
unsafe fn special(object: SEXP) -> Option<i32> {
    Some(match () {
        _ if object == R_NilValue => NIL,
        _ if object == R_GlobalEnv => GLOBAL_ENV,
        _ if object == R_EmptyEnv => EMPTY_ENV,
        _ if object == R_BaseEnv => BASE_ENV,
        _ if object == R_BaseNamespace => BASE_NAMESPACE,
        _ if object == R_MissingArg => MISSING_ARG,
        _ if object == extendr_ffi::R_UnboundValue => UNBOUND_VALUE,
        _ => return None,
    })
}
