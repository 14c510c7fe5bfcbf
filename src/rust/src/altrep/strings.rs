//! Character vectors in shared memory.
//!
//! The segment holds the strings one after the other in R's serialization format, so a receiver that
//! cannot take segments gets an ordinary stream. R makes strings slowly: half a microsecond for each that it does not
//! have yet, against some ten nanoseconds to write it. So a string is made when R asks for it. All of them are made
//! once R has asked for more than [`ONE_BY_ONE`], or wants a pointer to them, or changes one. From then on the
//! strings are those of an ordinary vector (the ALTREP vector's second field), and the memory is given back.
//!
//! To make a string allocates. An R that is built with immediate finalizers runs these then, and they may
//! read or change the same vector. Therefore no reference to [`Strings`] is held while a string is made, and the memory
//! stays until its last [user](Strings::users) is done.

use std::ffi::{c_int, c_void};

use extendr_ffi::{
    DllInfo, R_BlankString, R_ExternalPtrAddr, R_NilValue, R_altrep_class_t, R_altrep_data1,
    R_altrep_data2, R_altrep_inherits, R_make_altstring_class, R_set_altrep_Inspect_method,
    R_set_altrep_Length_method, R_set_altrep_data2, R_set_altstring_Elt_method,
    R_set_altstring_Set_elt_method, R_set_altvec_Dataptr_method,
    R_set_altvec_Dataptr_or_null_method, R_xlen_t, Rboolean, Rf_allocVector, Rf_protect,
    Rf_unprotect, Rf_xlength, SET_STRING_ELT, SEXP, SEXPTYPE, STRING_ELT, STRING_PTR_RO,
};
use mirai_core::memory::Piece;

use super::{let_go, made, say, weight, Held, CLASSES};
use crate::serialize::text::Text;

/// [`Strings::places`] has the place of every `STEP`th string.
const STEP: usize = 64;
/// Strings that are made one by one; at the next one, all are made.
const ONE_BY_ONE: usize = 1000;

pub(crate) unsafe fn class(info: *mut DllInfo) -> R_altrep_class_t {
    // SAFETY: on R's main thread; `info` is R's, and the methods have the types that R expects of them.
    unsafe {
        let class = R_make_altstring_class(c"shared_strings".as_ptr(), c"mirai".as_ptr(), info);
        R_set_altrep_Length_method(class, Some(length));
        R_set_altrep_Inspect_method(class, Some(inspect));
        R_set_altvec_Dataptr_method(class, Some(data));
        R_set_altvec_Dataptr_or_null_method(class, Some(data_or_null));
        R_set_altstring_Elt_method(class, Some(element));
        R_set_altstring_Set_elt_method(class, Some(set_element));
        class
    }
}

/// What the external pointer of a vector points to until all strings are made. Until then, the vector's second field
/// has those that are made, and the empty string in place of the others. (An empty string is made again each time.)
struct Strings {
    held: Held,
    n: usize,
    /// Offsets in the memory of the strings whose number is a multiple of [`STEP`].
    places: Vec<usize>,
    /// The number and the offset of the string after the one made last.
    next: (usize, usize),
    /// How many more are made one by one: at first [`ONE_BY_ONE`].
    left: usize,
    /// Calls that are making strings of the memory. A call that a long jump leaves is counted for ever; then the
    /// memory is given back with the vector.
    users: usize,
    /// All strings are in the vector's second field; the last user gives the memory back.
    done: bool,
}

/// The vector of `n` strings that are in a piece; `None` if they are not. For `common` see
/// [`vector`](super::vector).
///
/// # Safety
/// On R's main thread. May leave by a long jump if R runs out of memory.
pub(crate) unsafe fn vector(piece: &Piece, n: usize, common: bool) -> Option<SEXP> {
    // SAFETY: as this function demands; `CLASSES` does not change any more.
    unsafe {
        let class = (*std::ptr::addr_of!(CLASSES)).as_ref()?.strings;
        let weight = weight(piece, common);
        made(class, weight, || {
            // Nobody writes to it, so other vectors may have it, too.
            Strings::new(Held::new(piece.memory().clone(), weight), n)
        })
    }
}

impl Strings {
    /// `None` if the memory does not hold just `n` strings. Checked here, so that nothing can fail later.
    fn new(held: Held, n: usize) -> Option<Strings> {
        let mut places = Vec::new();
        let len = held.memory.len();
        let mut rest = bytes(&held);
        for i in 0..n {
            if i % STEP == 0 {
                places.push(len - rest.len());
            }
            Text::take(&mut rest)?;
        }
        rest.is_empty().then_some(Strings {
            held,
            n,
            places,
            next: (0, 0),
            left: ONE_BY_ONE,
            users: 0,
            done: false,
        })
    }

    /// The `i`th string, and the offset of the next.
    fn get(&self, i: usize) -> Option<(Text<'_>, usize)> {
        let mark = i / STEP;
        let (number, place) = match self.next {
            next if next.0 / STEP == mark && next.0 <= i => next,
            _ => (mark * STEP, *self.places.get(mark)?),
        };
        let bytes = bytes(&self.held);
        let mut rest = bytes.get(place..)?;
        for _ in number..i {
            Text::take(&mut rest)?;
        }
        let text = Text::take(&mut rest)?;
        Some((text, bytes.len() - rest.len()))
    }
}

fn bytes(held: &Held) -> &[u8] {
    // SAFETY: mapped for as long as `held` lives, and written to by nobody.
    unsafe { std::slice::from_raw_parts(held.memory.as_ptr(), held.memory.len()) }
}

/// Whether an R vector is of this class.
pub(crate) unsafe fn is_one(vector: SEXP) -> bool {
    // SAFETY: on R's main thread; `vector` is an ALTREP vector or any other object.
    unsafe {
        (*std::ptr::addr_of!(CLASSES))
            .as_ref()
            .is_some_and(|classes| R_altrep_inherits(vector, classes.strings) == Rboolean::TRUE)
    }
}

/// The strings of a vector in R's serialization format, if it is of this class and not all of them are made.
/// Borrowed until R is called.
pub(crate) unsafe fn unasked<'a>(vector: SEXP) -> Option<&'a [u8]> {
    // SAFETY: `vector` is of this class, so `pending` may look at it. The caller does not call R while it has the
    // bytes.
    unsafe {
        let strings = is_one(vector).then(|| pending(vector))??;
        Some(bytes(&(*strings).held))
    }
}

/// The strings of a vector, unless all are made. The pointer is good until R is called.
unsafe fn pending(vector: SEXP) -> Option<*mut Strings> {
    // SAFETY: `vector` is of this class, so its pointer's address is null or that of its `Strings`.
    unsafe {
        let strings = R_ExternalPtrAddr(R_altrep_data1(vector)).cast::<Strings>();
        (!strings.is_null() && !(*strings).done).then_some(strings)
    }
}

/// A vector's second field, made if need be.
unsafe fn begun(vector: SEXP, n: usize) -> SEXP {
    // SAFETY: `vector` is of this class and protected; `made` is protected until the vector has it.
    unsafe {
        if R_altrep_data2(vector) == R_NilValue {
            let made = Rf_protect(Rf_allocVector(SEXPTYPE::STRSXP, n as isize));
            // A finalizer may have begun meanwhile.
            if R_altrep_data2(vector) == R_NilValue {
                R_set_altrep_data2(vector, made);
            }
            Rf_unprotect(1);
        }
        R_altrep_data2(vector)
    }
}

/// Calls `f`, which may call R, with the memory kept meanwhile. `strings` are those of `vector`, which is
/// protected.
unsafe fn using<T>(vector: SEXP, strings: *mut Strings, f: impl FnOnce() -> T) -> T {
    // SAFETY: `strings` stays while `users` is not zero, as only the last user lets it go, here.
    unsafe {
        (*strings).users += 1;
        let value = f();
        (*strings).users -= 1;
        if (*strings).users == 0 && (*strings).done {
            let_go::<Strings>(R_altrep_data1(vector));
        }
        value
    }
}

/// Makes the strings that are not made, and gives the memory back. Returns the vector's second field.
unsafe fn all(vector: SEXP) -> SEXP {
    // SAFETY: `vector` is of this class; it is protected, and so is its second field with the strings made.
    // `strings` stays within `using`.
    unsafe {
        Rf_protect(vector);
        if let Some(strings) = pending(vector) {
            using(vector, strings, || {
                let n = (*strings).n;
                let made = begun(vector, n);
                let mut rest = bytes(&(*strings).held);
                for i in 0..n as isize {
                    let Some(text) = Text::take(&mut rest) else {
                        break;
                    };
                    let string = text.make();
                    // A finalizer may have made all, and changed some since.
                    if (*strings).done {
                        break;
                    }
                    SET_STRING_ELT(made, i, string);
                }
                (*strings).done = true;
            });
        }
        Rf_unprotect(1);
        R_altrep_data2(vector)
    }
}

unsafe extern "C" fn length(vector: SEXP) -> R_xlen_t {
    // SAFETY: R calls it with a vector of this class.
    unsafe {
        match pending(vector) {
            Some(strings) => (*strings).n as R_xlen_t,
            None => Rf_xlength(R_altrep_data2(vector)),
        }
    }
}

/// R has checked the index.
unsafe extern "C" fn element(vector: SEXP, i: R_xlen_t) -> SEXP {
    // SAFETY: R calls it with a vector of this class and an index below its length. `strings` stays within
    // `using`.
    unsafe {
        let Some(strings) = pending(vector) else {
            return STRING_ELT(R_altrep_data2(vector), i);
        };
        Rf_protect(vector);
        let all_at_once = using(vector, strings, || {
            let made = begun(vector, (*strings).n);
            if (*strings).done || STRING_ELT(made, i) != R_BlankString {
                return false;
            }
            if (*strings).left == 0 {
                return true;
            }
            (*strings).left -= 1;
            if let Some((text, next)) = (*strings).get(i as usize) {
                let string = text.make();
                if !(*strings).done {
                    SET_STRING_ELT(made, i, string);
                    (*strings).next = (i as usize + 1, next);
                }
            }
            false
        });
        if all_at_once {
            all(vector);
        }
        Rf_unprotect(1);
        STRING_ELT(R_altrep_data2(vector), i)
    }
}

unsafe extern "C" fn set_element(vector: SEXP, i: R_xlen_t, string: SEXP) {
    // SAFETY: R calls it with a vector of this class and an index below its length, and protects `string`.
    unsafe {
        SET_STRING_ELT(all(vector), i, string);
    }
}

unsafe extern "C" fn data(vector: SEXP, _writable: Rboolean) -> *mut c_void {
    // SAFETY: R calls it with a vector of this class, whose second field keeps the strings.
    unsafe { STRING_PTR_RO(all(vector)).cast_mut().cast() }
}

unsafe extern "C" fn data_or_null(vector: SEXP) -> *const c_void {
    // SAFETY: R calls it with a vector of this class.
    unsafe {
        match pending(vector) {
            Some(_) => std::ptr::null(),
            None => STRING_PTR_RO(R_altrep_data2(vector)).cast(),
        }
    }
}

unsafe extern "C" fn inspect(
    vector: SEXP,
    _: c_int,
    _: c_int,
    _: c_int,
    _: Option<unsafe extern "C" fn(SEXP, c_int, c_int, c_int)>,
) -> Rboolean {
    // SAFETY: R calls it with a vector of this class. Between `pending` and `say` R is not called.
    unsafe {
        let Some(strings) = pending(vector) else {
            return Rboolean::FALSE;
        };
        say(bytes(&(*strings).held).len());
        Rboolean::TRUE
    }
}
