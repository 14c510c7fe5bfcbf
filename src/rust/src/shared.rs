//! Vectors in shared memory: what a large vector that has been sent arrives as.
//!
//! An ALTREP vector of an ordinary type whose data are a private mapping of the sender's
//! segment. Whatever asks for the data gets a pointer into the mapping, to read and to write:
//! pages that are written to become this process's own, and nobody else sees it. While these are
//! few, a duplicate is another mapping, and what is sent on is the same segment; else both are
//! copies. In all else it is R's ordinary vector, and so is what `saveRDS()` writes.
//!
//! Strings are R's own objects, so they cannot be mapped: see [`strings`].
//!
//! R's collector sees only a few bytes of such a vector, so it is told here when the mappings
//! have become many; when there is time to lose, a bit earlier.

pub mod strings;

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void, CStr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

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
use mirai_core::memory::{self, Mapping, Piece, Segment};
use rustc_hash::FxHashMap;

use crate::r;

/// Garbage that may be mapped before the collector is told.
const SLACK: usize = 256 << 20;
/// How long nothing must have happened for there to be time for the collector, which takes tens of
/// milliseconds at least.
pub const PAUSE: Duration = Duration::from_millis(5);
/// What others have mapped, too, costs little more than page tables, and a place among the
/// mappings that there can be: one byte in so many, and so many bytes at least.
const COMMON: usize = 256;
const LEAST: usize = 32 << 10;

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
pub unsafe fn register(info: *mut DllInfo) {
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

/// Memory that a vector keeps mapped.
struct Held {
    memory: Arc<Mapping>,
    /// Its part in [`LIVE`].
    weight: usize,
}

thread_local! {
    /// Mappings of the vectors that the collector has not taken, by their addresses.
    static MAPPED: RefCell<FxHashMap<*const u8, Arc<Mapping>>> = RefCell::default();
}

impl Held {
    fn new(memory: Arc<Mapping>, weight: usize) -> Held {
        LIVE.fetch_add(weight, Ordering::Relaxed);
        MAPPED.with_borrow_mut(|mapped| mapped.insert(memory.as_ptr(), memory.clone()));
        Held { memory, weight }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        MAPPED.with_borrow_mut(|mapped| mapped.remove(&self.memory.as_ptr().cast_const()));
        let live = LIVE.fetch_sub(self.weight, Ordering::Relaxed) - self.weight;
        // R may have collected by itself.
        LEFT.fetch_min(live, Ordering::Relaxed);
    }
}

/// Bytes mapped by vectors that the collector has not taken, and how many it left the last
/// time that it was told.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static LEFT: AtomicUsize = AtomicUsize::new(0);
/// The process's own memory at that time, and how many bytes of common memory have been mapped
/// since somebody looked how it has grown.
static OWN: AtomicUsize = AtomicUsize::new(0);
static UNSEEN: AtomicUsize = AtomicUsize::new(0);
/// Milliseconds of processor time that the collector took the last time that it was told, and how
/// many are few.
static COST: AtomicUsize = AtomicUsize::new(0);
const CHEAP: usize = 100;

/// The vector of a type whose data are a piece, if it has not been given away. `common` is a
/// piece that others have mapped, too, so it takes hardly any memory until it is written to.
///
/// # Safety
/// On R's main thread. May leave by a long jump if R runs out of memory.
pub unsafe fn vector(kind: SEXPTYPE, piece: &Piece, common: bool) -> Option<SEXP> {
    let class = class(kind)?;
    let weight = weight(piece, common);
    made(class, weight, || Some(Held::new(piece.give()?, weight)))
}

/// What a piece's memory counts.
unsafe fn weight(piece: &Piece, common: bool) -> usize {
    let size = piece.memory().len();
    if common {
        common_weight(size)
    } else {
        size
    }
}

/// The same of memory that others have mapped, too.
unsafe fn common_weight(size: usize) -> usize {
    collect_for_common(size);
    (size / COMMON).max(LEAST)
}

unsafe fn class(kind: SEXPTYPE) -> Option<R_altrep_class_t> {
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

/// The vector of a class whose external pointer points to what is to be held, if that can be
/// had.
unsafe fn made<T>(
    class: R_altrep_class_t,
    weight: usize,
    hold: impl FnOnce() -> Option<T>,
) -> Option<SEXP> {
    collect_for(weight);
    let pointer = R_MakeExternalPtr(std::ptr::null_mut(), R_NilValue, R_NilValue);
    let pointer = Rf_protect(pointer);
    R_RegisterCFinalizerEx(pointer, Some(let_go::<T>), Rboolean::FALSE);
    let vector = R_new_altrep(class, pointer, R_NilValue);
    // Only now, when nothing can fail any more.
    let made = hold().map(|held| {
        R_SetExternalPtrAddr(pointer, Box::into_raw(Box::new(held)).cast());
        vector
    });
    Rf_unprotect(1);
    made
}

/// Has garbage collected if there may be much of it, before so many bytes are added.
unsafe fn collect_for(weight: usize) {
    let live = LIVE.load(Ordering::Relaxed);
    if live > 0 && live + weight > most() {
        collect();
    }
}

/// Bytes that may be mapped before the collector is told.
fn most() -> usize {
    2 * LEFT.load(Ordering::Relaxed) + SLACK
}

/// The same before so many bytes of common memory are mapped, which may have been written to and
/// left by others like them.
unsafe fn collect_for_common(size: usize) {
    if UNSEEN.fetch_add(size, Ordering::Relaxed) + size <= SLACK {
        return;
    }
    UNSEEN.store(0, Ordering::Relaxed);
    let most = 2 * OWN.load(Ordering::Relaxed) + SLACK;
    if memory::private_bytes().is_none_or(|bytes| bytes > most) {
        collect();
    }
}

/// Has garbage collected.
///
/// # Safety
/// On R's main thread. Finalizers may run, and with them any code.
pub unsafe fn collect() {
    let start = processor_time();
    r::R_gc();
    let cost = processor_time().saturating_sub(start);
    COST.store(cost.as_millis() as usize, Ordering::Relaxed);
    LEFT.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
    OWN.store(memory::private_bytes().unwrap_or(0), Ordering::Relaxed);
}

/// Of this thread: how busy others are says nothing of how much there is to do.
fn processor_time() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Whether enough common memory has piled up for a collection while idle. The threshold is three times as high where a
/// collection is slow (`CHEAP`).
pub fn worth_collecting_when_idle() -> bool {
    let share = if COST.load(Ordering::Relaxed) < CHEAP {
        1
    } else {
        3
    };
    LIVE.load(Ordering::Relaxed) > most() / 4 * share
}

/// Drops what an external pointer points to, once.
unsafe extern "C" fn let_go<T>(pointer: SEXP) {
    let held = R_ExternalPtrAddr(pointer).cast::<T>();
    R_ClearExternalPtr(pointer);
    if !held.is_null() {
        drop(Box::from_raw(held));
    }
}

/// The data of a vector as a segment, if they are a mapping that has hardly been changed.
///
/// # Safety
/// On R's main thread.
pub unsafe fn segment(data: &[u8]) -> Option<Segment> {
    let mapping = MAPPED.with_borrow(|mapped| mapped.get(&data.as_ptr()).cloned())?;
    if mapping.len() == data.len() {
        mapping.segment()
    } else {
        None
    }
}

/// R looks after the attributes.
unsafe extern "C" fn duplicate(vector: SEXP, _deep: Rboolean) -> SEXP {
    // Asked beforehand, so that nothing is made in vain.
    let unchanged = mapping(vector).filter(|mapping| mapping.has_hardly_changed());
    let made = unchanged.and_then(|mapping| {
        let weight = common_weight(mapping.len());
        let copy = || Some(Held::new(Arc::new(mapping.duplicate()?), weight));
        made(class(TYPEOF(vector))?, weight, copy)
    });
    // Then R makes an ordinary one.
    made.unwrap_or(std::ptr::null_mut())
}

/// The mapping of a vector of ours.
unsafe fn mapping<'a>(vector: SEXP) -> Option<&'a Mapping> {
    let held = R_ExternalPtrAddr(R_altrep_data1(vector)).cast::<Held>();
    Some(&held.as_ref()?.memory)
}

unsafe extern "C" fn length<T>(vector: SEXP) -> R_xlen_t {
    mapping(vector).map_or(0, |m| (m.len() / std::mem::size_of::<T>()) as R_xlen_t)
}

unsafe extern "C" fn data(vector: SEXP, _writable: Rboolean) -> *mut c_void {
    mapping(vector).map_or(std::ptr::null_mut(), |m| m.as_ptr().cast())
}

unsafe extern "C" fn data_or_null(vector: SEXP) -> *const c_void {
    data(vector, Rboolean::FALSE)
}

/// R has checked the index.
unsafe extern "C" fn element<T: Copy>(vector: SEXP, i: R_xlen_t) -> T {
    *data(vector, Rboolean::FALSE).cast::<T>().offset(i)
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
    say(mapping(vector).map_or(0, Mapping::len));
    Rboolean::TRUE
}

unsafe fn say(bytes: usize) {
    Rprintf(
        c" mirai: %.0f bytes in shared memory\n".as_ptr(),
        bytes as f64,
    );
}
