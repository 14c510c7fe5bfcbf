//! The digest of an R object: equal for objects that mean the same, in this session and the next.
//!
//! It is not made of serialized bytes, because these tell more: the order of an environment's variables, source
//! references, whether a promise has been evaluated, how R holds a sequence such as `1:10`. What counts here:
//!
//! - vectors by their data, pairlists and calls by their cells, all by their attributes;
//! - functions by environment, formals and body as an expression; without source references and byte code;
//! - environments by their variables, sorted by name, and their parents; one that comes again, by the order in which it
//!   came first. The global environment, packages and namespaces by name, namespaces also by version;
//! - evaluated promises by their value, others by expression and environment;
//! - objects whose class has a [hook](super::hooks), by what that makes of them;
//! - a mirai by its value, once that has been read.
//!
//! An external pointer or a weak reference says nothing about what it stands for, so there is no digest.

use extendr_ffi::{
    R_IsNamespaceEnv, R_IsPackageEnv, R_NaString, R_NamespaceEnvSpec, R_NilValue, Rboolean,
    Rf_getAttrib, Rf_install, Rf_protect, Rf_unprotect, Rf_xlength, CAR, CDR, INTEGER_GET_REGION,
    PRINTNAME, REAL_GET_REGION, R_CHAR, SEXP, SEXPTYPE, STRING_ELT, TAG, TYPEOF, VECTOR_ELT,
};
use mirai_core::checkpoint::{Hasher, Key};

use super::hooks::{self, Collected};
use super::writer::{special, References};
use super::{by_r, Buffer};
use crate::checkpoint;
use crate::r::{self, Constant, Variable};
use crate::stack;
use crate::tasks::{is_mirai, DATA};

/// Stack that a level of nesting takes at most.
const LEVEL: usize = 512;

/// Why there is no digest. Owns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undigested {
    Pointer,
    TooDeep,
    Hook,
}

impl std::fmt::Display for Undigested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Undigested::Pointer => {
                "there is an external pointer, as of a connection, which no later session can recognise"
            }
            Undigested::TooDeep => "it is nested too deeply",
            Undigested::Hook => "a serialization hook has failed",
        })
    }
}

/// For the main thread; statics, so that a long jump does not lose what they own.
static mut REFERENCES: References = References::new();
static mut COLLECTED: Collected = Collected::new();
static mut BUFFER: Buffer = Buffer::new();
/// R has met an external pointer.
static mut POINTER: bool = false;

/// The digest of an object.
///
/// # Safety
/// On R's main thread, `object` protected. May leave by a long jump if R runs out of memory.
pub(crate) unsafe fn digest(object: SEXP) -> Result<Key, Undigested> {
    // SAFETY: as this function demands. The statics are used by R's main thread only, and no reference to them is held
    // while R is called. A `Hasher` owns nothing.
    unsafe {
        (*std::ptr::addr_of_mut!(REFERENCES)).clear();
        (*std::ptr::addr_of_mut!(COLLECTED)).clear();
        let mut walk = Walk {
            hasher: Hasher::default(),
            deepest: stack::levels(LEVEL) as u32,
            hooks: hooks::any(),
        };
        walk.item(object, 0)?;
        let collected = std::ptr::addr_of_mut!(COLLECTED);
        if !(*collected).is_empty() {
            let objects = Rf_protect((*collected).as_list());
            (*collected).clear();
            let made = hooks::make(objects);
            Rf_unprotect(1);
            let made = Rf_protect(made.ok_or(Undigested::Hook)?);
            walk.hooks = false;
            let done = walk.item(made, 0);
            Rf_unprotect(1);
            done?;
        }
        Ok(walk.hasher.finish())
    }
}

type Done = Result<(), Undigested>;

/// Its unsafe functions demand R's main thread, and objects that are reachable from the one that is digested, which the
/// caller of [`digest`] protects.
struct Walk {
    hasher: Hasher,
    deepest: u32,
    hooks: bool,
}

r::symbols! {
    SRCREF = c"srcref";
    SRCFILE = c"srcfile";
    WHOLE_SRCREF = c"wholeSrcref";
    // By which package data.table knows its own copies.
    SELFREF = c".internal.selfref";
}

impl Walk {
    fn number(&mut self, x: i32) {
        self.hasher.update(&x.to_le_bytes());
    }

    fn length(&mut self, n: isize) {
        self.hasher.update(&(n as i64).to_le_bytes());
    }

    unsafe fn item(&mut self, object: SEXP, depth: u32) -> Done {
        // SAFETY: as [`Walk`] demands; each accessor is used on an object of its type.
        unsafe {
            if depth > self.deepest {
                return Err(Undigested::TooDeep);
            }
            let mut object = object;
            // Pairlists cell by cell, without recursion along them.
            loop {
                if let Some(code) = special(object) {
                    self.number(code);
                    return Ok(());
                }
                let is_object = r::Rf_isObject(object) == Rboolean::TRUE;
                if is_object && r::Rf_inherits(object, c"srcref".as_ptr()) == Rboolean::TRUE {
                    // As without `options(keep.source = TRUE)`.
                    object = R_NilValue;
                    continue;
                }
                if is_object && self.hooks {
                    let collected = std::ptr::addr_of_mut!(COLLECTED);
                    if let Some([i, j]) = (*collected).collect(object) {
                        self.number(-1);
                        self.length(i as isize);
                        self.length(j as isize);
                        return Ok(());
                    }
                }
                let kind = TYPEOF(object);
                self.number(kind as i32);
                match kind {
                    SEXPTYPE::SYMSXP => {
                        self.string(PRINTNAME(object));
                        return Ok(());
                    }
                    SEXPTYPE::ENVSXP => return self.environment(object, depth),
                    SEXPTYPE::EXTPTRSXP if checkpoint::is_pointer(object) => return Ok(()),
                    SEXPTYPE::EXTPTRSXP | SEXPTYPE::WEAKREFSXP => return Err(Undigested::Pointer),
                    #[cfg(not(r_4_5))]
                    SEXPTYPE::DOTSXP => {
                        self.item(TAG(object), depth + 1)?;
                        self.item(CAR(object), depth + 1)?;
                        object = CDR(object);
                    }
                    #[cfg(not(r_4_5))]
                    SEXPTYPE::PROMSXP => {
                        return self.binding(Variable::of_promise(object), depth);
                    }
                    SEXPTYPE::LISTSXP | SEXPTYPE::LANGSXP => {
                        self.attributes(object, depth)?;
                        self.item(TAG(object), depth + 1)?;
                        self.item(CAR(object), depth + 1)?;
                        object = CDR(object);
                    }
                    SEXPTYPE::CLOSXP => {
                        self.attributes(object, depth)?;
                        self.item(extendr_ffi::backports::get_closure_env(object), depth + 1)?;
                        let formals = extendr_ffi::backports::get_closure_formals(object);
                        self.item(formals, depth + 1)?;
                        object = r::R_ClosureExpr(object);
                    }
                    _ => return self.plain(object, kind, depth),
                }
            }
        }
    }

    /// The attributes but for source references, and an end.
    unsafe fn attributes(&mut self, object: SEXP, depth: u32) -> Done {
        // SAFETY: as [`Walk`] demands; names of attributes are symbols.
        unsafe {
            let mut done = Ok(());
            self.number(i32::from(r::Rf_isS4(object) == Rboolean::TRUE));
            // Nothing more of an object that has source references only.
            let ignored = [&SRCREF, &SRCFILE, &WHOLE_SRCREF, &SELFREF].map(Constant::get);
            if r::has_attributes(object) {
                r::all_attributes(object, |name, value| {
                    if !ignored.contains(&name) {
                        self.string(PRINTNAME(name));
                        done = self.item(value, depth + 1);
                    }
                    done.is_ok()
                });
            }
            self.number(-2);
            done
        }
    }

    unsafe fn environment(&mut self, env: SEXP, depth: u32) -> Done {
        // SAFETY: as [`Walk`] demands; `env` is an environment, and what was allocated is protected.
        unsafe {
            let references = std::ptr::addr_of_mut!(REFERENCES);
            if let Some(i) = (*references).find(env) {
                self.number(i);
                return Ok(());
            }
            (*references).add(env);
            if R_IsNamespaceEnv(env) == Rboolean::TRUE {
                self.number(-3);
                let spec = Rf_protect(R_NamespaceEnvSpec(env));
                self.strings(spec);
                Rf_unprotect(1);
                return Ok(());
            }
            if R_IsPackageEnv(env) == Rboolean::TRUE {
                self.number(-4);
                let name = Rf_getAttrib(env, Rf_install(c"name".as_ptr()));
                return self.item(name, depth + 1);
            }
            if is_mirai(env) {
                // Its number, and which task it has, say nothing about it.
                self.number(-8);
                return match Variable::of(DATA.get(), env) {
                    value @ Variable::Value(_) => self.binding(value, depth),
                    _ => Ok(()),
                };
            }
            self.number(-5);
            self.item(extendr_ffi::backports::get_parent_env(env), depth + 1)?;
            let names = Rf_protect(r::R_lsInternal3(env, Rboolean::TRUE, Rboolean::FALSE));
            let n = Rf_xlength(names);
            self.length(n);
            // Not by R, which sorts as the locale has it. Lost if R runs out of memory.
            let mut order: Vec<isize> = (0..n).collect();
            order.sort_unstable_by_key(|i| bytes_of(STRING_ELT(names, *i)));
            let done = order
                .iter()
                .try_for_each(|i| self.variable(STRING_ELT(names, *i), env, depth));
            Rf_unprotect(1);
            done?;
            self.attributes(env, depth)
        }
    }

    unsafe fn variable(&mut self, name: SEXP, env: SEXP, depth: u32) -> Done {
        // SAFETY: as [`Walk`] demands; `env` has a variable of this name.
        unsafe {
            self.string(name);
            let symbol = r::Rf_installChar(name);
            match Variable::of_existing(symbol, env) {
                Variable::Active => {
                    self.number(-7);
                    self.item(r::R_ActiveBindingFunction(symbol, env), depth + 1)
                }
                other => self.binding(other, depth),
            }
        }
    }

    unsafe fn binding(&mut self, variable: Variable, depth: u32) -> Done {
        // SAFETY: as [`Walk`] demands.
        unsafe {
            match variable {
                Variable::Value(value) | Variable::Forced { value, .. } => {
                    self.item(value, depth + 1)
                }
                Variable::Delayed { expr, env } => {
                    self.number(-6);
                    self.item(expr, depth + 1)?;
                    self.item(env, depth + 1)
                }
                Variable::Active | Variable::Absent => Ok(()),
                #[cfg(all(r_4_5, not(r_4_6)))]
                Variable::Promise(promise) => self.by_r(promise),
            }
        }
    }

    /// Vectors and S4 objects.
    unsafe fn plain(&mut self, object: SEXP, kind: SEXPTYPE, depth: u32) -> Done {
        // SAFETY: as [`Walk`] demands; each accessor is used on a vector of its type, up to its length.
        unsafe {
            match kind {
                r::S4SXP => {}
                SEXPTYPE::LGLSXP | SEXPTYPE::INTSXP => self.data::<i32>(object, kind),
                SEXPTYPE::REALSXP => self.data::<f64>(object, kind),
                SEXPTYPE::CPLXSXP => self.data::<[f64; 2]>(object, kind),
                SEXPTYPE::RAWSXP => self.data::<u8>(object, kind),
                SEXPTYPE::STRSXP => self.strings(object),
                SEXPTYPE::VECSXP | SEXPTYPE::EXPRSXP => {
                    let n = Rf_xlength(object);
                    self.length(n);
                    (0..n).try_for_each(|i| self.item(VECTOR_ELT(object, i), depth + 1))?;
                }
                _ => return self.by_r(object),
            }
            self.attributes(object, depth)
        }
    }

    unsafe fn data<T>(&mut self, object: SEXP, kind: SEXPTYPE) {
        // SAFETY: as [`Walk`] demands; `object` has elements of type `T`.
        unsafe {
            let n = Rf_xlength(object);
            self.length(n);
            let compact = extendr_ffi::DATAPTR_OR_NULL(object).is_null();
            if compact && matches!(kind, SEXPTYPE::INTSXP | SEXPTYPE::REALSXP) {
                return self.regions(object, kind, n);
            }
            let data = extendr_ffi::DATAPTR_RO(object).cast::<u8>();
            if n > 0 {
                let size = n as usize * std::mem::size_of::<T>();
                self.hasher.update(std::slice::from_raw_parts(data, size));
            }
        }
    }

    /// The data of a vector that R makes as they are asked for, such as `1:1e9`.
    unsafe fn regions(&mut self, object: SEXP, kind: SEXPTYPE, n: isize) {
        // SAFETY: as [`Walk`] demands; the buffer has room for what is asked for.
        unsafe {
            const PART: isize = 512;
            let mut buffer = [0f64; PART as usize];
            let mut at = 0;
            while at < n {
                let (got, width) = if kind == SEXPTYPE::INTSXP {
                    let data = buffer.as_mut_ptr().cast();
                    (INTEGER_GET_REGION(object, at, PART, data), 4)
                } else {
                    (REAL_GET_REGION(object, at, PART, buffer.as_mut_ptr()), 8)
                };
                let got = got.clamp(0, PART);
                let bytes = buffer.as_ptr().cast::<u8>();
                self.hasher
                    .update(std::slice::from_raw_parts(bytes, got as usize * width));
                if got == 0 {
                    return;
                }
                at += got;
            }
        }
    }

    unsafe fn strings(&mut self, vector: SEXP) {
        // SAFETY: as [`Walk`] demands; `vector` is a character vector.
        unsafe {
            let n = Rf_xlength(vector);
            self.length(n);
            (0..n).for_each(|i| self.string(STRING_ELT(vector, i)));
        }
    }

    unsafe fn string(&mut self, string: SEXP) {
        // SAFETY: as [`Walk`] demands.
        unsafe {
            if string == R_NaString {
                self.length(-1);
                return;
            }
            let bytes = bytes_of(string);
            self.length(bytes.len() as isize);
            if !bytes.is_ascii() {
                self.number(r::Rf_getCharCE(string) as i32);
            }
            self.hasher.update(bytes);
        }
    }

    /// What is left, such as functions that are built in: as R serializes it.
    unsafe fn by_r(&mut self, object: SEXP) -> Done {
        // SAFETY: as [`Walk`] demands; the statics are used here and by `note_pointer`.
        unsafe {
            let buffer = std::ptr::addr_of_mut!(BUFFER);
            (*buffer).let_go();
            POINTER = false;
            by_r::write(buffer, object, Some(note_pointer));
            if POINTER {
                return Err(Undigested::Pointer);
            }
            // Without the header, which names the version of R.
            let skipped = super::header().len().min((*buffer).bytes.len());
            let bytes = &(&(*buffer).bytes)[skipped..];
            self.length(bytes.len() as isize);
            self.hasher.update(bytes);
            (*buffer).let_go();
            Ok(())
        }
    }
}

/// For `R_Serialize()`, which calls it for reference objects: notes those that cannot be digested.
unsafe extern "C" fn note_pointer(object: SEXP, _: SEXP) -> SEXP {
    // SAFETY: R passes an object that it protects.
    unsafe {
        if matches!(TYPEOF(object), SEXPTYPE::EXTPTRSXP | SEXPTYPE::WEAKREFSXP) {
            POINTER = true;
        }
        R_NilValue
    }
}

unsafe fn bytes_of<'a>(string: SEXP) -> &'a [u8] {
    // SAFETY: as [`Walk`] demands; a string has as many bytes as `Rf_xlength()` says.
    unsafe { std::slice::from_raw_parts(R_CHAR(string).cast::<u8>(), Rf_xlength(string) as usize) }
}
