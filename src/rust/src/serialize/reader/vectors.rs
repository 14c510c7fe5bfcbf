//! Reads vectors.

use extendr_ffi::{
    Rf_allocVector, COMPLEX, INTEGER, LOGICAL, RAW, REAL, SET_STRING_ELT, SET_VECTOR_ELT, SEXP,
    SEXPTYPE,
};

use mirai_core::memory::Mapping;

use super::super::format::S4;
use super::super::text::Text;
use super::Reader;
use crate::{altrep, r};

/// A vector of `n` elements with a copy of the memory, which another has been given or which readers share.
unsafe fn copied(kind: SEXPTYPE, n: usize, memory: &Mapping) -> Option<SEXP> {
    // SAFETY: on R's main thread, as this function demands; the caller has compared the sizes. Who was given the memory
    // does not write to it now: R has one thread.
    unsafe {
        let vector = Rf_allocVector(kind, n as isize);
        let to = match kind {
            SEXPTYPE::LGLSXP => LOGICAL(vector).cast::<u8>(),
            SEXPTYPE::INTSXP => INTEGER(vector).cast(),
            SEXPTYPE::REALSXP => REAL(vector).cast(),
            SEXPTYPE::CPLXSXP => COMPLEX(vector).cast(),
            SEXPTYPE::RAWSXP => RAW(vector).cast(),
            _ => return None,
        };
        std::ptr::copy_nonoverlapping(memory.as_ptr(), to, memory.len());
        Some(vector)
    }
}

impl Reader<'_> {
    /// Vectors and S4 objects.
    pub(super) unsafe fn plain(&mut self, kind: i32, flags: i32, depth: u32) -> Option<SEXP> {
        // SAFETY: as [`Reader`] demands. `object` is protected, and has `n` elements of the type that is filled
        // in.
        unsafe {
            let (sexptype, width) = match kind {
                10 => (SEXPTYPE::LGLSXP, 4),
                13 => (SEXPTYPE::INTSXP, 4),
                14 => (SEXPTYPE::REALSXP, 8),
                15 => (SEXPTYPE::CPLXSXP, 16),
                16 => (SEXPTYPE::STRSXP, 8),
                19 => (SEXPTYPE::VECSXP, 4),
                20 => (SEXPTYPE::EXPRSXP, 4),
                24 => (SEXPTYPE::RAWSXP, 1),
                // S4 objects and whatever else there may be.
                _ => return None,
            };
            let n = self.length()?;
            let size = n.checked_mul(width)?;
            let shared = if self.source.piece().is_some() {
                Some(self.shared(sexptype, n, size)?)
            } else {
                None
            };
            // No allocation for what is not there. The elements of a list may lie beyond the next piece.
            let there = match sexptype {
                SEXPTYPE::VECSXP | SEXPTYPE::EXPRSXP => self.source.left(),
                _ => self.source.rest.len(),
            };
            if shared.is_none() && there < size {
                return None;
            }
            let object = shared.unwrap_or_else(|| Rf_allocVector(sexptype, n as isize));
            let object = self.protect(object);
            match sexptype {
                _ if shared.is_some() => {}
                SEXPTYPE::LGLSXP => self.data(LOGICAL(object), n)?,
                SEXPTYPE::INTSXP => self.data(INTEGER(object), n)?,
                SEXPTYPE::REALSXP => self.data(REAL(object), n)?,
                SEXPTYPE::CPLXSXP => self.data(COMPLEX(object), n)?,
                SEXPTYPE::RAWSXP => self.data(RAW(object), n)?,
                SEXPTYPE::STRSXP => self.strings(object, n)?,
                _ => {
                    for i in 0..n {
                        let element = self.item(depth + 1)?;
                        SET_VECTOR_ELT(object, i as isize, element);
                    }
                }
            }
            self.attributes(object, flags, depth)?;
            if flags >> 12 & S4 != 0 {
                r::set_s4(object);
            }
            self.unprotect(1);
            Some(object)
        }
    }

    /// The vector whose data are in the piece that comes next. `None` if that does not fit.
    unsafe fn shared(&mut self, kind: SEXPTYPE, n: usize, size: usize) -> Option<SEXP> {
        // SAFETY: as [`Reader`] demands.
        unsafe {
            let piece = self.source.piece()?;
            let vector = if kind == SEXPTYPE::STRSXP {
                altrep::strings::vector(piece, n, self.source.common)?
            } else if piece.memory().len() == size {
                match altrep::vector(kind, piece, self.source.common) {
                    Some(vector) => vector,
                    None => copied(kind, n, piece.memory())?,
                }
            } else {
                return None;
            };
            self.source.pass_piece();
            Some(vector)
        }
    }

    /// The elements of a character vector.
    unsafe fn strings(&mut self, vector: SEXP, n: usize) -> Option<()> {
        // SAFETY: as [`Reader`] demands; `vector` is protected and has `n` elements.
        unsafe {
            for i in 0..n as isize {
                SET_STRING_ELT(vector, i, Text::take(&mut self.source.rest)?.make());
            }
            Some(())
        }
    }

    unsafe fn data<T>(&mut self, to: *mut T, n: usize) -> Option<()> {
        // SAFETY: `to` is the data of a new vector of `n` elements, and `take` has found as many bytes.
        unsafe {
            let size = n.checked_mul(std::mem::size_of::<T>())?;
            let bytes = self.take(size)?;
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast::<u8>(), size);
            Some(())
        }
    }
}
