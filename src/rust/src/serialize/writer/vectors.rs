//! Writes vectors, and S4 objects.

use extendr_ffi::{
    R_BlankString, R_NaString, R_NilValue, Rf_xlength, COMPLEX, INTEGER, LOGICAL, RAW, REAL, SEXP,
    SEXPTYPE, STRING_ELT, TYPEOF, VECTOR_ELT,
};

use super::Writer;
use crate::{altrep, r};

/// A compact vector (such as `1:10`) up to this many elements is written out.
const SMALL_COMPACT: isize = 256;

impl Writer {
    /// Vectors and S4 objects.
    pub(super) unsafe fn plain(&mut self, object: SEXP, depth: u32) -> bool {
        // SAFETY: as [`Writer`] demands; each accessor is used on a vector of its type, up to its length.
        unsafe {
            let kind = TYPEOF(object);
            let n = match kind {
                r::S4SXP => 0,
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
            // A large one may be a few bytes in R's hands, or memory that is not there yet; but
            // R would not see hooks of classes that are lists.
            if r::ALTREP(object) != 0
                && n > SMALL_COMPACT
                && self.hooks.is_none()
                && !has_data(object, kind)
            {
                return false;
            }
            let attributes = r::has_attributes(object);
            self.flags(object, attributes, false);
            if kind != r::S4SXP {
                self.length(n);
            }
            let done = match kind {
                SEXPTYPE::LGLSXP => self.bytes(LOGICAL(object), n),
                SEXPTYPE::INTSXP => self.bytes(INTEGER(object), n),
                SEXPTYPE::REALSXP => self.bytes(REAL(object), n),
                SEXPTYPE::CPLXSXP => self.bytes(COMPLEX(object), n),
                SEXPTYPE::RAWSXP => self.bytes(RAW(object), n),
                SEXPTYPE::STRSXP => self.strings(object, n),
                r::S4SXP => true,
                _ => (0..n).all(|i| self.item(VECTOR_ELT(object, i), depth + 1)),
            };
            done && (!attributes || self.attributes(object, depth))
        }
    }

    /// False if there is no memory for them: R will say so.
    unsafe fn bytes<T>(&mut self, data: *const T, n: isize) -> bool {
        // SAFETY: `data` are those of a vector of `n` elements, which is protected. No reference to the buffer is
        // held while R is called.
        unsafe {
            let size = n as usize * std::mem::size_of::<T>();
            let bytes = std::slice::from_raw_parts(data.cast::<u8>(), size);
            // SAFETY: as in `out`.
            (*self.out).append(bytes)
        }
    }

    /// The elements of a character vector.
    unsafe fn strings(&mut self, vector: SEXP, n: isize) -> bool {
        // SAFETY: as [`Writer`] demands; `vector` has `n` elements. No reference to the buffer is held while R is
        // called.
        unsafe {
            // Received, and hardly asked for since.
            if let Some(bytes) = altrep::strings::unasked(vector) {
                return (*self.out).append(bytes);
            }
            // SAFETY: as in `out`, here and below.
            (*self.out).begin_strings();
            (0..n).all(|i| {
                self.string(STRING_ELT(vector, i)) && (*self.out).spill(|| differ(vector, n))
            }) && (*self.out).end_strings()
        }
    }
}

/// Whether the data of an ALTREP vector are in memory, as are those of vectors that were sent.
unsafe fn has_data(object: SEXP, kind: SEXPTYPE) -> bool {
    // SAFETY: as [`Writer`] demands; `object` is an ALTREP vector.
    unsafe {
        if kind == SEXPTYPE::STRSXP {
            return altrep::strings::is_one(object);
        }
        !extendr_ffi::DATAPTR_OR_NULL(object).is_null()
    }
}

/// Whether the strings of a vector are mostly different ones, as a sample has it. Those that
/// repeat R finds at once among all it has, and then to make them later gains less than it may
/// cost.
unsafe fn differ(vector: SEXP, n: isize) -> bool {
    // SAFETY: as [`Writer`] demands; indices are below `n`, the vector's length.
    unsafe {
        const SAMPLE: isize = 1024;
        let mut sample = [R_NilValue; SAMPLE as usize];
        let size = n.min(SAMPLE);
        let mut count = 0;
        for i in 0..size {
            let string = STRING_ELT(vector, i * (n / size));
            if string != R_NaString && string != R_BlankString {
                sample[count] = string;
                count += 1;
            }
        }
        let strings = &mut sample[..count];
        strings.sort_unstable();
        let repeated = strings.windows(2).filter(|pair| pair[0] == pair[1]).count();
        4 * count >= size as usize && 4 * repeated <= count
    }
}
