//! Hooks: what users register for objects that do not survive serialization, such as
//! those behind an external pointer.
//!
//! While an object is written, whatever has a registered class is set aside, and only its
//! place is written: the number of the registration, and which of its objects it is.
//! Afterwards R makes raw vectors of those objects (`write_hooked()` in R/serial.R), which go
//! in front. Reading goes the other way round (`read_hooked()`). So no code of the user's
//! runs in the middle of writing or reading.
//!
//! Layout: [`MAGIC`], length of the front part (`u64`, little endian), front part, object.
//! Both are in R's format.

use std::cell::Cell;

use extendr_ffi::{
    R_NilValue, R_PreserveObject, R_ReleaseObject, R_tryEvalSilent, Rboolean, Rf_allocVector,
    Rf_getAttrib, Rf_install, Rf_protect, Rf_unprotect, Rf_xlength, LOGICAL, R_CHAR,
    SET_VECTOR_ELT, SEXP, SEXPTYPE, STRING_ELT, TYPEOF, VECTOR_ELT,
};

use super::buffer::Large;
use super::{Buffer, Source};
use crate::r;

pub(crate) const MAGIC: &[u8; 8] = b"miraihk\n";

struct Registry(Cell<SEXP>);

// SAFETY: only used on R's main thread, as everything in this crate.
unsafe impl Sync for Registry {}

/// The registrations: a list, or null. The first two elements of each are its class, and whether
/// it is for reference objects only.
static REGISTRY: Registry = Registry(Cell::new(std::ptr::null_mut()));

/// Makes these the registrations of this process, unless they are not as R/serial.R makes them.
///
/// # Safety
/// On R's main thread.
pub(crate) unsafe fn set(registry: SEXP) -> bool {
    // SAFETY: as this function demands; indices are below the lengths that are checked.
    unsafe {
        let is_list = |x: SEXP| TYPEOF(x) == SEXPTYPE::VECSXP;
        let is_sound = |i| {
            let registration = VECTOR_ELT(registry, i);
            is_list(registration) && Rf_xlength(registration) > 1 && {
                let holds = |i, kind| {
                    let x = VECTOR_ELT(registration, i);
                    TYPEOF(x) == kind && Rf_xlength(x) > 0
                };
                holds(0, SEXPTYPE::STRSXP) && holds(1, SEXPTYPE::LGLSXP)
            }
        };
        let n = Rf_xlength(registry);
        if n > 0 && !(is_list(registry) && (0..n).all(is_sound)) {
            return false;
        }
        let before = REGISTRY.0.replace(std::ptr::null_mut());
        if !before.is_null() {
            R_ReleaseObject(before);
        }
        if Rf_xlength(registry) > 0 {
            R_PreserveObject(registry);
            REGISTRY.0.set(registry);
        }
        true
    }
}

pub(crate) fn any() -> bool {
    !REGISTRY.0.get().is_null()
}

/// Whether an object is what R calls a reference object: copies of it are one and the same. Those
/// of reference classes are S4 objects around an environment.
unsafe fn is_reference(object: SEXP) -> bool {
    // SAFETY: on R's main thread; `object` is protected.
    unsafe {
        match TYPEOF(object) {
            SEXPTYPE::ENVSXP | SEXPTYPE::EXTPTRSXP | SEXPTYPE::WEAKREFSXP => true,
            _ => TYPEOF(Rf_getAttrib(object, Rf_install(c".xData".as_ptr()))) == SEXPTYPE::ENVSXP,
        }
    }
}

/// Objects that have been set aside, by registration.
#[derive(Default)]
pub(crate) struct Collected(Vec<Vec<SEXP>>);

/// For `R_Serialize()`, whose hook can only be given R objects.
static mut COLLECTED: Collected = Collected(Vec::new());

impl Collected {
    pub(super) const fn new() -> Collected {
        Collected(Vec::new())
    }

    /// Sets an object aside if its class is registered, and returns its place.
    pub(crate) unsafe fn collect(&mut self, object: SEXP) -> Option<[usize; 2]> {
        // SAFETY: on R's main thread; `set` has checked that each registration has a class and a flag, and the
        // registry is preserved.
        unsafe {
            let registry = REGISTRY.0.get();
            let n = Rf_xlength(registry);
            let i = (0..n).find(|i| {
                let registration = VECTOR_ELT(registry, *i);
                let class = STRING_ELT(VECTOR_ELT(registration, 0), 0);
                let references_only = || *LOGICAL(VECTOR_ELT(registration, 1)) != 0;
                r::Rf_inherits(object, R_CHAR(class)) == Rboolean::TRUE
                    && (!references_only() || is_reference(object))
            })? as usize;
            if self.0.len() <= i {
                self.0.resize_with(i + 1, Vec::new);
            }
            // The same object may come twice from R, which asks before it looks for references.
            let objects = &mut self.0[i];
            let j = objects.iter().position(|x| *x == object);
            let j = j.unwrap_or_else(|| {
                objects.push(object);
                objects.len() - 1
            });
            Some([i, j])
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }

    /// As a list of lists.
    pub(super) unsafe fn as_list(&self) -> SEXP {
        // SAFETY: on R's main thread; `out` is protected and has each list at once. The object that is written
        // keeps those collected.
        unsafe {
            let out = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, self.0.len() as isize));
            for (i, objects) in self.0.iter().enumerate() {
                let list = Rf_allocVector(SEXPTYPE::VECSXP, objects.len() as isize);
                SET_VECTOR_ELT(out, i as isize, list);
                for (j, object) in objects.iter().enumerate() {
                    SET_VECTOR_ELT(list, j as isize, *object);
                }
            }
            Rf_unprotect(1);
            out
        }
    }
}

/// [`write`](super::write) where there are registrations.
pub(crate) unsafe fn write(buffer: *mut Buffer, object: SEXP) -> bool {
    // SAFETY: on R's main thread; `buffer` and `COLLECTED` are statics of this thread or outlive the call, and no
    // reference to them is held while R is called.
    unsafe {
        let collected = std::ptr::addr_of_mut!(COLLECTED);
        super::write_once(buffer, object, Some(collected));
        if (*collected).is_empty() {
            return true;
        }
        // From here on R code runs that may serialize something itself.
        let main = std::mem::take(&mut (*buffer).bytes);
        let mut insets = std::mem::take(&mut (*buffer).insets);
        let mut marks = std::mem::take(&mut (*buffer).marks);
        let objects = Rf_protect(std::mem::take(&mut *collected).as_list());
        let Some(made) = make(objects) else {
            Rf_unprotect(1);
            return false;
        };
        Rf_protect(made);
        // All of what is in front stays there, as its length is given.
        let large = std::mem::replace(&mut (*buffer).large, Large::Plain);
        super::write_once(buffer, made, None);
        (*buffer).large = large;
        let out = &mut (*buffer).bytes;
        let length = (out.len() as u64).to_le_bytes();
        out.splice(..0, MAGIC.iter().copied().chain(length));
        for inset in &mut insets {
            inset.at += out.len();
        }
        for mark in &mut marks {
            mark.at += out.len();
        }
        out.extend_from_slice(&main);
        (*buffer).insets = insets;
        (*buffer).marks = marks;
        Rf_unprotect(2);
        true
    }
}

/// For `R_Serialize()`, which calls it for reference objects.
pub(crate) unsafe extern "C" fn collect_one(object: SEXP, _: SEXP) -> SEXP {
    // SAFETY: R passes an object that it protects. R is not called while `COLLECTED` is borrowed.
    unsafe {
        if r::Rf_isObject(object) == Rboolean::FALSE {
            return R_NilValue;
        }
        let Some([i, j]) = (*std::ptr::addr_of_mut!(COLLECTED)).collect(object) else {
            return R_NilValue;
        };
        let (i, j) = (i.to_string(), j.to_string());
        // No long jump but out of memory, and then two strings are lost.
        r::strings(&[&i, &j])
    }
}

/// The call of a function of R/serial.R.
unsafe fn call(function: &std::ffi::CStr, x: SEXP) -> SEXP {
    // SAFETY: on R's main thread; the caller protects `x`, and the registry is preserved.
    unsafe {
        let registry = match REGISTRY.0.get() {
            none if none.is_null() => R_NilValue,
            registry => registry,
        };
        r::Rf_lang3(Rf_install(function.as_ptr()), x, registry)
    }
}

/// Has the hooks make raw vectors of objects; `None` if that ends in an error.
pub(super) unsafe fn make(objects: SEXP) -> Option<SEXP> {
    // SAFETY: on R's main thread; `call` is protected. `R_tryEvalSilent()` ends long jumps.
    unsafe {
        let call = Rf_protect(call(c"write_hooked", objects));
        let mut failed = 0;
        let value = R_tryEvalSilent(call, r::NAMESPACE.get(), &mut failed);
        Rf_unprotect(1);
        (failed == 0).then_some(value)
    }
}

/// The front part and the object of a stream written with hooks; `None` if it was not.
pub(crate) fn split(source: Source<'_>) -> Option<(Source<'_>, Source<'_>)> {
    let rest = source.rest.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (made, rest) = rest.split_at_checked(length)?;
    Some((made.into(), source.with_rest(rest)))
}

/// Has the hooks make objects of what they made of them. Leaves by a long jump if they fail.
pub(crate) unsafe fn restore(made: SEXP) -> SEXP {
    // SAFETY: on R's main thread; what was allocated is protected.
    unsafe {
        Rf_protect(made);
        let call = Rf_protect(call(c"read_hooked", made));
        let restored = r::Rf_eval(call, r::NAMESPACE.get());
        Rf_unprotect(2);
        restored
    }
}

/// The object of a place.
pub(crate) unsafe fn restored(restored: SEXP, [i, j]: [usize; 2]) -> Option<SEXP> {
    // SAFETY: on R's main thread; the index is below the length checked.
    unsafe {
        let element = |list: SEXP, i: usize| {
            (extendr_ffi::TYPEOF(list) == SEXPTYPE::VECSXP && (i as isize) < Rf_xlength(list))
                .then(|| VECTOR_ELT(list, i as isize))
        };
        element(element(restored, i)?, j)
    }
}

/// For `R_Unserialize()`.
pub(crate) unsafe extern "C" fn restore_one(place: SEXP, data: SEXP) -> SEXP {
    // SAFETY: R passes a character vector; its elements exist, as its length is checked before they are read.
    unsafe {
        let number = |i| {
            let text = std::ffi::CStr::from_ptr(R_CHAR(STRING_ELT(place, i)));
            text.to_str().ok()?.parse().ok()
        };
        let object = match Rf_xlength(place) {
            2 => number(0)
                .zip(number(1))
                .and_then(|(i, j)| restored(data, [i, j])),
            _ => None,
        };
        match object {
            Some(object) => object,
            None => r::raise("a hooked object is missing"),
        }
    }
}
