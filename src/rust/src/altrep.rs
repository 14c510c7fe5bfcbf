//! Vectors in shared memory: what a large vector that has been sent arrives as.
//!
//! An ALTREP vector of an ordinary type whose data are a private mapping of the sender's segment (copy-on-write), or, of
//! what came across the network, memory that its bytes were read into. Whatever asks for the data gets a pointer into the
//! mapping, to read and to write: the system copies a page when it is written, so no other process sees the change. While
//! few pages are copied, a duplicate of the vector is another mapping, and to send it on sends the same segment. Otherwise
//! both are copies. In all else it behaves as R's ordinary vector, and `saveRDS()` writes one.
//!
//! Strings are R's own objects, so they cannot be mapped: see [`strings`].
//!
//! R's collector sees only a few bytes of such a vector: [`gc`] tells it when the mappings have become many.

pub(crate) mod strings;

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::ffi::{c_char, c_int, c_void, CStr};
use std::sync::Arc;

use extendr_ffi::{
    DllInfo, R_ClearExternalPtr, R_ExternalPtrAddr, R_MakeExternalPtr, R_NilValue,
    R_RegisterCFinalizerEx, R_SetExternalPtrAddr, R_altrep_class_t, R_altrep_data1,
    R_make_altcomplex_class, R_make_altinteger_class, R_make_altlogical_class, R_make_altraw_class,
    R_make_altreal_class, R_new_altrep, R_set_altcomplex_Elt_method, R_set_altinteger_Elt_method,
    R_set_altlogical_Elt_method, R_set_altraw_Elt_method, R_set_altreal_Elt_method,
    R_set_altrep_Duplicate_method, R_set_altrep_Inspect_method, R_set_altrep_Length_method,
    R_set_altvec_Dataptr_method, R_set_altvec_Dataptr_or_null_method, R_xlen_t, Rboolean, Rbyte,
    Rcomplex, Rf_protect, Rf_unprotect, SEXP, SEXPTYPE, TYPEOF,
};
use mirai_core::memory::{Mapping, Piece, Segment};
use rustc_hash::FxHashMap;

use crate::gc;

struct Classes {
    real: R_altrep_class_t,
    integer: R_altrep_class_t,
    logical: R_altrep_class_t,
    complex: R_altrep_class_t,
    raw: R_altrep_class_t,
    strings: R_altrep_class_t,
}

/// Made when the package is loaded.
static mut CLASSES: Option<Classes> = None;

/// Makes the classes.
///
/// # Safety
/// On R's main thread, while the library is being loaded.
pub(crate) unsafe fn register(info: *mut DllInfo) {
    // SAFETY: on R's main thread; `info` is R's, and the methods have the types that R expects of them.
    unsafe {
        let package = c"mirai".as_ptr();
        macro_rules! class {
            ($make:ident, $name:literal, $set_elt:ident, $type:ty) => {{
                let class = $make(($name as &CStr).as_ptr(), package, info);
                R_set_altrep_Length_method(class, Some(length::<$type>));
                R_set_altrep_Inspect_method(class, Some(inspect));
                R_set_altrep_Duplicate_method(class, Some(duplicate));
                R_set_altvec_Dataptr_method(class, Some(data));
                R_set_altvec_Dataptr_or_null_method(class, Some(data_or_null));
                $set_elt(class, Some(element::<$type>));
                class
            }};
        }
        *std::ptr::addr_of_mut!(CLASSES) = Some(Classes {
            real: class!(
                R_make_altreal_class,
                c"shared_real",
                R_set_altreal_Elt_method,
                f64
            ),
            integer: class!(
                R_make_altinteger_class,
                c"shared_integer",
                R_set_altinteger_Elt_method,
                c_int
            ),
            logical: class!(
                R_make_altlogical_class,
                c"shared_logical",
                R_set_altlogical_Elt_method,
                c_int
            ),
            complex: class!(
                R_make_altcomplex_class,
                c"shared_complex",
                R_set_altcomplex_Elt_method,
                Rcomplex
            ),
            raw: class!(
                R_make_altraw_class,
                c"shared_raw",
                R_set_altraw_Elt_method,
                Rbyte
            ),
            strings: strings::class(info),
        });
    }
}

/// Memory that a vector keeps mapped.
struct Held {
    memory: Arc<Mapping>,
    /// What the collector counts for it, in bytes: see [`gc`].
    weight: usize,
}

thread_local! {
    /// Mappings of the vectors that the collector has not taken, by their addresses.
    static MAPPED: RefCell<FxHashMap<*const u8, Arc<Mapping>>> = RefCell::default();
    /// How many of these there are of each file.
    static FILES: RefCell<FxHashMap<u64, usize>> = RefCell::default();
}

impl Held {
    fn new(memory: Arc<Mapping>, weight: usize) -> Held {
        gc::add(weight);
        MAPPED.with_borrow_mut(|mapped| mapped.insert(memory.as_ptr(), memory.clone()));
        FILES.with_borrow_mut(|files| *files.entry(memory.file()).or_default() += 1);
        Held { memory, weight }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        MAPPED.with_borrow_mut(|mapped| mapped.remove(&self.memory.as_ptr().cast_const()));
        FILES.with_borrow_mut(|files| {
            if let Entry::Occupied(mut count) = files.entry(self.memory.file()) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        });
        gc::remove(self.weight);
    }
}

/// The vector of a type whose data are a piece; `None` if the piece has been given away. `common` says that
/// other processes have mapped the piece, too, so that it takes hardly any memory until it is written.
///
/// # Safety
/// On R's main thread. May leave by a long jump if R runs out of memory.
pub(crate) unsafe fn vector(kind: SEXPTYPE, piece: &Piece, common: bool) -> Option<SEXP> {
    // SAFETY: as this function demands.
    unsafe {
        let class = class(kind)?;
        let weight = weight(piece, common);
        made(class, weight, || Some(Held::new(piece.give()?, weight)))
    }
}

/// What the collector counts for a piece, in bytes.
unsafe fn weight(piece: &Piece, common: bool) -> usize {
    // SAFETY: on R's main thread, as this function demands.
    unsafe {
        let size = piece.memory().len();
        let file = piece.memory().file();
        // Also if it goes from task to task, and comes here again.
        if common || FILES.with_borrow(|files| files.contains_key(&file)) {
            gc::common_weight(size)
        } else {
            size
        }
    }
}

unsafe fn class(kind: SEXPTYPE) -> Option<R_altrep_class_t> {
    // SAFETY: on R's main thread, which alone changes `CLASSES`, once, when the library is loaded.
    unsafe {
        let classes = (*std::ptr::addr_of!(CLASSES)).as_ref()?;
        match kind {
            SEXPTYPE::REALSXP => Some(classes.real),
            SEXPTYPE::INTSXP => Some(classes.integer),
            SEXPTYPE::LGLSXP => Some(classes.logical),
            SEXPTYPE::CPLXSXP => Some(classes.complex),
            SEXPTYPE::RAWSXP => Some(classes.raw),
            _ => None,
        }
    }
}

/// A vector of a class, whose external pointer points to what `hold` returns; `None` if that is `None`.
unsafe fn made<T>(
    class: R_altrep_class_t,
    weight: usize,
    hold: impl FnOnce() -> Option<T>,
) -> Option<SEXP> {
    // SAFETY: on R's main thread; the pointer is protected until the vector is made. `let_go::<T>` gets what
    // `hold` has made.
    unsafe {
        gc::collect_for(weight);
        let pointer = R_MakeExternalPtr(std::ptr::null_mut(), R_NilValue, R_NilValue);
        let pointer = Rf_protect(pointer);
        R_RegisterCFinalizerEx(pointer, Some(let_go::<T>), Rboolean::FALSE);
        let vector = R_new_altrep(class, pointer, R_NilValue);
        // Last, because R's allocations above may leave by a long jump.
        let made = hold().map(|held| {
            R_SetExternalPtrAddr(pointer, Box::into_raw(Box::new(held)).cast());
            vector
        });
        Rf_unprotect(1);
        made
    }
}

/// Drops what an external pointer points to, once.
unsafe extern "C" fn let_go<T>(pointer: SEXP) {
    // SAFETY: R calls it with the pointer, whose address is null or that of a `Box<T>`. It is cleared first, so
    // nobody takes it twice.
    unsafe {
        let held = R_ExternalPtrAddr(pointer).cast::<T>();
        R_ClearExternalPtr(pointer);
        if !held.is_null() {
            drop(Box::from_raw(held));
        }
    }
}

/// The data of a vector as a segment, if they are a mapping that has hardly been changed.
///
/// # Safety
/// On R's main thread.
pub(crate) unsafe fn segment(data: &[u8]) -> Option<Segment> {
    // SAFETY: `data` outlives this call, and only its address is used.
    unsafe {
        let mapping = MAPPED.with_borrow(|mapped| mapped.get(&data.as_ptr()).cloned())?;
        if mapping.len() == data.len() {
            mapping.segment()
        } else {
            None
        }
    }
}

/// R looks after the attributes.
unsafe extern "C" fn duplicate(vector: SEXP, _deep: Rboolean) -> SEXP {
    // SAFETY: R protects `vector`, whose mapping lives as long as it.
    unsafe {
        // Asked beforehand, so that nothing is made in vain.
        let unchanged = mapping(vector).filter(|mapping| mapping.has_hardly_changed());
        let made = unchanged.and_then(|mapping| {
            let weight = gc::common_weight(mapping.len());
            let copy = || Some(Held::new(Arc::new(mapping.duplicate()?), weight));
            made(class(TYPEOF(vector))?, weight, copy)
        });
        // Then R makes an ordinary one.
        made.unwrap_or(std::ptr::null_mut())
    }
}

/// The mapping of a vector of ours.
unsafe fn mapping<'a>(vector: SEXP) -> Option<&'a Mapping> {
    // SAFETY: `vector` is of a class of ours, so its pointer's address is null or that of a `Held`.
    unsafe {
        let held = R_ExternalPtrAddr(R_altrep_data1(vector)).cast::<Held>();
        Some(&held.as_ref()?.memory)
    }
}

unsafe extern "C" fn length<T>(vector: SEXP) -> R_xlen_t {
    // SAFETY: R calls it with a vector of ours.
    unsafe { mapping(vector).map_or(0, |m| (m.len() / std::mem::size_of::<T>()) as R_xlen_t) }
}

unsafe extern "C" fn data(vector: SEXP, _writable: Rboolean) -> *mut c_void {
    // SAFETY: R calls it with a vector of ours.
    unsafe { mapping(vector).map_or(std::ptr::null_mut(), |m| m.as_ptr().cast()) }
}

unsafe extern "C" fn data_or_null(vector: SEXP) -> *const c_void {
    // SAFETY: R calls it with a vector of ours.
    unsafe { data(vector, Rboolean::FALSE) }
}

/// R has checked the index.
unsafe extern "C" fn element<T: Copy>(vector: SEXP, i: R_xlen_t) -> T {
    // SAFETY: R calls it with a vector of ours, whose data are of type `T`, and an index below its length.
    unsafe { *data(vector, Rboolean::FALSE).cast::<T>().offset(i) }
}

extern "C" {
    fn Rprintf(format: *const c_char, ...);
}

unsafe extern "C" fn inspect(
    vector: SEXP,
    _: c_int,
    _: c_int,
    _: c_int,
    _: Option<unsafe extern "C" fn(SEXP, c_int, c_int, c_int)>,
) -> Rboolean {
    // SAFETY: R calls it with a vector of ours.
    unsafe {
        say(mapping(vector).map_or(0, Mapping::len));
        Rboolean::TRUE
    }
}

unsafe fn say(bytes: usize) {
    // SAFETY: the format fits its one argument.
    unsafe {
        Rprintf(
            c" mirai: %.0f bytes in shared memory\n".as_ptr(),
            bytes as f64,
        );
    }
}
