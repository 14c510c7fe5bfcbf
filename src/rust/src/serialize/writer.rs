//! Writes R objects in R's own serialization format.
//!
//! R's `R_Serialize()` allocates a 1,099-slot hash table for every call, which for
//! a task of a few dozen bytes costs several times what writing it does, and feeds the
//! garbage collector. This writes the objects that tasks are usually made of itself,
//! and says so if there is something else among them (byte code, active
//! bindings; external pointers unless there are hooks): then `R_Serialize()` does
//! it all.
//!
//! Facts about the format: "R Internals", section 1.8; `src/main/serialize.c` of R.

mod vectors;

use std::sync::atomic::{AtomicBool, Ordering};

use extendr_ffi::{
    cetype_t, R_BaseEnv, R_BaseNamespace, R_EmptyEnv, R_GlobalEnv, R_IsNamespaceEnv, R_MissingArg,
    R_NaString, R_NamespaceEnvSpec, R_NilValue, Rboolean, Rf_protect, Rf_unprotect, Rf_xlength,
    CAR, CDR, PRINTNAME, R_CHAR, SEXP, SEXPTYPE, STRING_ELT, TAG, TYPEOF,
};

use rustc_hash::FxHashMap;

use super::format::*;
use super::hooks::Collected;
use super::Buffer;
use crate::r::{self, Variable};
use crate::stack;

/// Stack that a level of nesting takes at most. If there is no room for another one, it is left to R,
/// which says so if it has none, either.
const LEVEL: usize = 512;

/// Whether the last object was too deep.
pub(crate) static TOO_DEEP: AtomicBool = AtomicBool::new(false);

/// Up to here a linear search finds a reference as fast as a table would.
const FEW: usize = 24;

/// Symbols and other reference objects written so far: later ones are references to
/// them, by number.
#[derive(Default)]
pub(super) struct References {
    seen: Vec<SEXP>,
    /// Made when there are many.
    table: Option<FxHashMap<SEXP, i32>>,
}

impl References {
    pub(super) const fn new() -> References {
        References {
            seen: Vec::new(),
            table: None,
        }
    }

    pub(super) fn clear(&mut self) {
        self.seen.clear();
        self.table = None;
    }

    /// The number under which an object was written, from 1.
    pub(super) fn find(&self, object: SEXP) -> Option<i32> {
        match &self.table {
            Some(table) => table.get(&object).copied(),
            None => Some(self.seen.iter().position(|x| *x == object)? as i32 + 1),
        }
    }

    pub(super) fn add(&mut self, object: SEXP) {
        self.seen.push(object);
        let number = self.seen.len() as i32;
        if let Some(table) = &mut self.table {
            table.insert(object, number);
        } else if self.seen.len() > FEW {
            self.table = Some(self.seen.iter().copied().zip(1..).collect());
        }
    }
}

/// Appends `object` to `out`. False: it holds something that only R can write, and
/// `out` holds a part of it.
///
/// # Safety
/// On R's main thread, the pointers valid. May leave by a long jump if R runs out of
/// memory, so they must be to what outlives that.
pub(super) unsafe fn write(
    out: *mut Buffer,
    references: *mut References,
    hooks: Option<*mut Collected>,
    object: SEXP,
) -> bool {
    // SAFETY: as this function demands; no reference is held while R is called.
    unsafe {
        TOO_DEEP.store(false, Ordering::Relaxed);
        (*references).clear();
        (*out).bytes.extend_from_slice(header());
        Writer {
            out,
            references,
            hooks,
            deepest: stack::levels(LEVEL) as u32,
        }
        .item(object, 0)
    }
}

/// Holds pointers, not references, because whatever allocates in R may run a finalizer,
/// and that may serialize something itself (see [`write_once`](super::write_once)).
///
/// Its unsafe functions demand R's main thread, and objects that are reachable from the one that is written, which the
/// caller of [`write`] protects.
struct Writer {
    out: *mut Buffer,
    references: *mut References,
    hooks: Option<*mut Collected>,
    deepest: u32,
}

impl Writer {
    fn out(&mut self) -> &mut Vec<u8> {
        // SAFETY: valid, as `write` demands; the reference does not outlive the caller's
        // statement, in which R is not called.
        unsafe { &mut (*self.out).bytes }
    }

    fn references(&mut self) -> &mut References {
        // SAFETY: as above.
        unsafe { &mut *self.references }
    }

    fn integer(&mut self, x: i32) {
        self.out().extend_from_slice(&x.to_ne_bytes());
    }

    /// A length, which R writes in another way from 2^31 on.
    fn length(&mut self, n: isize) {
        match i32::try_from(n) {
            Ok(n) => self.integer(n),
            Err(_) => {
                self.integer(-1);
                self.integer((n >> 32) as i32);
                self.integer(n as i32);
            }
        }
    }

    unsafe fn item(&mut self, object: SEXP, depth: u32) -> bool {
        // SAFETY: as [`Writer`] demands; each accessor is used on an object of its type.
        unsafe {
            if depth > self.deepest {
                TOO_DEEP.store(true, Ordering::Relaxed);
                return false;
            }
            let mut object = object;
            // Pairlists are written cell by cell, without recursion along them.
            loop {
                if let Some(code) = special(object) {
                    self.integer(code);
                    return true;
                }
                if self.hooks.is_some() && is_object(object) && self.hooked(object) {
                    return true;
                }
                match TYPEOF(object) {
                    SEXPTYPE::SYMSXP => return self.symbol(object),
                    SEXPTYPE::ENVSXP => return self.environment(object, depth),
                    SEXPTYPE::EXTPTRSXP | SEXPTYPE::WEAKREFSXP => {
                        return self.pointer(object, depth)
                    }
                    SEXPTYPE::LISTSXP | SEXPTYPE::LANGSXP => {
                        let tag = TAG(object);
                        let attributes = r::has_attributes(object);
                        self.flags(object, attributes, tag != R_NilValue);
                        if attributes && !self.attributes(object, depth) {
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
    }

    unsafe fn flags(&mut self, object: SEXP, attributes: bool, tag: bool) {
        // SAFETY: as [`Writer`] demands.
        unsafe {
            let mut flags = TYPEOF(object) as i32;
            if r::Rf_isS4(object) == Rboolean::TRUE {
                flags |= S4 << 12;
            }
            if is_object(object) {
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
    }

    unsafe fn attributes(&mut self, object: SEXP, depth: u32) -> bool {
        // SAFETY: as [`Writer`] demands; names of attributes are symbols.
        unsafe {
            let done = r::all_attributes(object, |name, value| {
                self.integer(SEXPTYPE::LISTSXP as i32 | HAS_TAG);
                self.symbol(name) && self.item(value, depth + 2)
            });
            self.integer(NIL);
            done
        }
    }

    /// A reference, if the object has been written before.
    fn reference(&mut self, object: SEXP) -> bool {
        let Some(i) = self.references().find(object) else {
            return false;
        };
        self.integer(i << 8 | REFERENCE);
        true
    }

    /// Leaves an object to the hook of its class, if there is one: what is written here
    /// is where to find it among those that the hooks make.
    unsafe fn hooked(&mut self, object: SEXP) -> bool {
        // SAFETY: as [`Writer`] demands; R is not called while what is collected is borrowed.
        unsafe {
            if self.reference(object) {
                return true;
            }
            let Some(place) = self.hooks.and_then(|hooks| (*hooks).collect(object)) else {
                return false;
            };
            self.references().add(object);
            self.integer(PERSISTENT);
            self.integer(0);
            self.integer(place.len() as i32);
            for number in place {
                let text = number.to_string();
                self.integer(SEXPTYPE::CHARSXP as i32 | ASCII << 12);
                self.integer(text.len() as i32);
                self.out().extend_from_slice(text.as_bytes());
            }
            true
        }
    }

    unsafe fn symbol(&mut self, symbol: SEXP) -> bool {
        // SAFETY: as [`Writer`] demands; `symbol` is a symbol.
        unsafe {
            if self.reference(symbol) {
                return true;
            }
            self.integer(SEXPTYPE::SYMSXP as i32);
            self.references().add(symbol);
            self.string(PRINTNAME(symbol))
        }
    }

    unsafe fn environment(&mut self, env: SEXP, depth: u32) -> bool {
        // SAFETY: as [`Writer`] demands; `env` is an environment.
        unsafe {
            if self.reference(env) {
                true
            } else if R_IsNamespaceEnv(env) == Rboolean::TRUE {
                self.namespace(env)
            } else {
                extendr_ffi::R_IsPackageEnv(env) == Rboolean::FALSE && self.variables(env, depth)
            }
        }
    }

    /// An environment by its variables, in a hash table as R would have it.
    unsafe fn variables(&mut self, env: SEXP, depth: u32) -> bool {
        // SAFETY: as [`Writer`] demands; `names` is protected and has `n` elements. The order is lost if a long
        // jump leaves this: R is out of memory then.
        unsafe {
            let names = Rf_protect(r::R_lsInternal3(env, Rboolean::TRUE, Rboolean::FALSE));
            let n = Rf_xlength(names);
            // First, because much may have been written in vain otherwise.
            let known = (0..n).all(|i| is_known(r::Rf_installChar(STRING_ELT(names, i)), env));
            if !known {
                Rf_unprotect(1);
                return false;
            }
            self.references().add(env);
            self.integer(SEXPTYPE::ENVSXP as i32);
            self.integer((r::R_EnvironmentIsLocked(env) == Rboolean::TRUE).into());
            if !self.item(extendr_ffi::backports::get_parent_env(env), depth + 1) {
                Rf_unprotect(1);
                return false;
            }
            let size = (n + n / 3).max(29);
            let mut order: Vec<(u32, isize)> = (0..n)
                .map(|i| (hash(STRING_ELT(names, i)) % size as u32, i))
                .collect();
            order.sort_unstable();
            self.integer(NIL);
            self.integer(SEXPTYPE::VECSXP as i32);
            self.integer(size as i32);
            let mut next = order.iter().peekable();
            for bucket in 0..size as u32 {
                while let Some((_, i)) = next.next_if(|(b, _)| *b == bucket) {
                    if !self.variable(r::Rf_installChar(STRING_ELT(names, *i)), env, depth) {
                        Rf_unprotect(1);
                        return false;
                    }
                }
                self.integer(NIL);
            }
            Rf_unprotect(1);
            self.attributes(env, depth)
        }
    }

    unsafe fn variable(&mut self, symbol: SEXP, env: SEXP, depth: u32) -> bool {
        // SAFETY: as [`Writer`] demands; the variable is one that `is_known` accepts.
        unsafe {
            let locked = r::R_BindingIsLocked(symbol, env) == Rboolean::TRUE;
            let levels = if locked { LOCKED } else { 0 };
            self.integer(SEXPTYPE::LISTSXP as i32 | HAS_TAG | levels << 12);
            if !self.symbol(symbol) {
                return false;
            }
            match Variable::of_known(symbol, env) {
                Variable::Value(value) | Variable::Forced { value, .. } => {
                    self.item(value, depth + 1)
                }
                // It is not for us to evaluate it.
                Variable::Delayed { expr, env } => {
                    self.integer(SEXPTYPE::PROMSXP as i32 | HAS_TAG);
                    if !self.item(env, depth + 1) {
                        return false;
                    }
                    self.integer(UNBOUND_VALUE);
                    self.item(expr, depth + 1)
                }
                _ => false,
            }
        }
    }

    /// External pointers and weak references arrive empty, as R has it.
    unsafe fn pointer(&mut self, pointer: SEXP, depth: u32) -> bool {
        // SAFETY: as [`Writer`] demands; the accessors are used on an external pointer only.
        unsafe {
            if self.hooks.is_none() {
                return false;
            }
            if self.reference(pointer) {
                return true;
            }
            let attributes = r::has_attributes(pointer);
            self.flags(pointer, attributes, false);
            self.references().add(pointer);
            if TYPEOF(pointer) == SEXPTYPE::EXTPTRSXP {
                let protected = extendr_ffi::R_ExternalPtrProtected(pointer);
                let tag = extendr_ffi::R_ExternalPtrTag(pointer);
                if !self.item(protected, depth + 1) || !self.item(tag, depth + 1) {
                    return false;
                }
            }
            !attributes || self.attributes(pointer, depth)
        }
    }

    unsafe fn namespace(&mut self, env: SEXP) -> bool {
        // SAFETY: as [`Writer`] demands; `spec` is protected.
        unsafe {
            self.references().add(env);
            let spec = Rf_protect(R_NamespaceEnvSpec(env));
            self.integer(NAMESPACE);
            self.integer(0);
            self.integer(Rf_xlength(spec) as i32);
            let done = (0..Rf_xlength(spec)).all(|i| self.string(STRING_ELT(spec, i)));
            Rf_unprotect(1);
            done
        }
    }

    unsafe fn closure(&mut self, closure: SEXP, depth: u32) -> bool {
        // SAFETY: as [`Writer`] demands; `closure` is a closure.
        unsafe {
            let attributes = r::has_attributes(closure);
            self.flags(closure, attributes, true);
            if attributes && !self.attributes(closure, depth) {
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
    }

    unsafe fn string(&mut self, string: SEXP) -> bool {
        // SAFETY: as [`Writer`] demands; the slice is all bytes of `string`. No reference to the buffer is held
        // while R is called.
        unsafe {
            if string == R_NaString {
                self.integer(SEXPTYPE::CHARSXP as i32);
                self.integer(-1);
                return true;
            }
            // Nothing of a string is left out: the reader wants it in one.
            let Ok(n) = i32::try_from(Rf_xlength(string)) else {
                return false;
            };
            let bytes = std::slice::from_raw_parts(R_CHAR(string).cast::<u8>(), n as usize);
            // R declares the encoding of those that are not ASCII only.
            let levels = match () {
                () if bytes.is_ascii() => ASCII,
                () => match r::Rf_getCharCE(string) {
                    cetype_t::CE_UTF8 => UTF8,
                    cetype_t::CE_LATIN1 => LATIN1,
                    cetype_t::CE_BYTES => BYTES,
                    _ => 0,
                },
            };
            self.integer(SEXPTYPE::CHARSXP as i32 | levels << 12);
            self.integer(n);
            // SAFETY: as in `out`.
            (*self.out).append_plain(bytes)
        }
    }
}

/// Whether a variable is of a kind that can be written here.
unsafe fn is_known(symbol: SEXP, env: SEXP) -> bool {
    // SAFETY: as [`Writer`] demands; `symbol` is bound in `env`.
    unsafe {
        match Variable::of_existing(symbol, env) {
            Variable::Value(value) => TYPEOF(value) != SEXPTYPE::DOTSXP,
            Variable::Forced { .. } | Variable::Delayed { .. } => true,
            _ => false,
        }
    }
}

unsafe fn is_object(object: SEXP) -> bool {
    // SAFETY: as [`Writer`] demands.
    unsafe { r::Rf_isObject(object) == Rboolean::TRUE }
}

/// R's hash of a variable's name.
unsafe fn hash(name: SEXP) -> u32 {
    // SAFETY: as [`Writer`] demands; a string has as many bytes as `Rf_xlength()` says.
    unsafe {
        let bytes =
            std::slice::from_raw_parts(R_CHAR(name).cast::<u8>(), Rf_xlength(name) as usize);
        bytes.iter().fold(0u32, |hash, byte| {
            // The P. J. Weinberger hash, on signed characters.
            let hash = (hash << 4).wrapping_add(*byte as i8 as u32);
            let high = hash & 0xf000_0000;
            if high == 0 {
                hash
            } else {
                hash ^ high >> 24 ^ high
            }
        })
    }
}

/// Objects that are written as a number.
pub(super) unsafe fn special(object: SEXP) -> Option<i32> {
    // SAFETY: R's own constants.
    unsafe {
        Some(match () {
            _ if object == R_NilValue => NIL,
            _ if object == R_GlobalEnv => GLOBAL_ENV,
            _ if object == R_EmptyEnv => EMPTY_ENV,
            _ if object == R_BaseEnv => BASE_ENV,
            _ if object == R_BaseNamespace => BASE_NAMESPACE,
            _ if object == R_MissingArg => MISSING_ARG,
            _ => return None,
        })
    }
}
