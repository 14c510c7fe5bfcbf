//! Attributes from R 4.6 on: `Rf_setAttrib()` is all that R's API has to set them.
//!
//! It checks those that mean something to R. If they do not fit, it raises an error or stores
//! something else. R's own reader takes them as they come, so whatever would not be stored as
//! it is here is left to that one.

use std::ffi::CStr;

use extendr_ffi::{
    R_ClassSymbol, R_DimNamesSymbol, R_DimSymbol, R_NamesSymbol, R_NilValue, R_RowNamesSymbol,
    R_TspSymbol, Rf_getAttrib, Rf_xlength, INTEGER, REAL, R_CHAR, SEXP, SEXPTYPE, STRING_ELT,
    TYPEOF, VECTOR_ELT,
};

use super::{has_attributes, symbols};

symbols! {
    COMMENT = c"comment";
}

/// Whether `Rf_setAttrib()` would store the value of an attribute as it is.
///
/// # Safety
/// On R's main thread; `name` is a symbol, `object` is neither a symbol nor a single string.
pub(super) unsafe fn fits(object: SEXP, name: SEXP, value: SEXP) -> bool {
    // SAFETY: as this function demands; R keeps its symbols.
    unsafe {
        match name {
            _ if value == R_NilValue => false,
            _ if name == R_ClassSymbol => is_class(value, object),
            _ if name == R_NamesSymbol => are_names(value, object),
            _ if name == R_DimSymbol => is_dim(value, object),
            _ if name == R_DimNamesSymbol => are_dimnames(value, object),
            _ if name == R_RowNamesSymbol => are_row_names(value),
            _ if name == R_TspSymbol => is_tsp(value, object),
            _ if name == COMMENT.get() => is_strings(value) && Rf_xlength(value) > 0,
            _ => true,
        }
    }
}

unsafe fn is_strings(x: SEXP) -> bool {
    // SAFETY: on R's main thread; `x` is protected.
    unsafe { TYPEOF(x) == SEXPTYPE::STRSXP }
}

unsafe fn is_vector(x: SEXP) -> bool {
    // SAFETY: on R's main thread; `x` is protected.
    unsafe {
        use SEXPTYPE::{CPLXSXP, EXPRSXP, INTSXP, LGLSXP, RAWSXP, REALSXP, STRSXP, VECSXP};
        matches!(
            TYPEOF(x),
            LGLSXP | INTSXP | REALSXP | CPLXSXP | STRSXP | RAWSXP | VECSXP | EXPRSXP
        )
    }
}

/// Those of a vector. In that of an array of one dimension R would make dimnames of them.
unsafe fn are_names(names: SEXP, object: SEXP) -> bool {
    // SAFETY: on R's main thread; both are protected.
    unsafe {
        is_strings(names)
            && !has_attributes(names)
            && is_vector(object)
            && Rf_xlength(names) == Rf_xlength(object)
            && (!has_attributes(object) || Rf_getAttrib(object, R_DimSymbol) == R_NilValue)
    }
}

unsafe fn is_class(class: SEXP, object: SEXP) -> bool {
    // SAFETY: on R's main thread; both are protected, and indices are below the length of `class`, which holds strings.
    unsafe {
        is_strings(class)
            && Rf_xlength(class) > 0
            && (TYPEOF(object) == SEXPTYPE::INTSXP
                || (0..Rf_xlength(class))
                    .all(|i| CStr::from_ptr(R_CHAR(STRING_ELT(class, i))) != c"factor"))
    }
}

/// The elements of an integer vector.
unsafe fn integers<'a>(x: SEXP) -> Option<&'a [i32]> {
    // SAFETY: on R's main thread; `x` is protected by the caller while the slice is used, and has as many integers.
    unsafe {
        if TYPEOF(x) != SEXPTYPE::INTSXP {
            return None;
        }
        match Rf_xlength(x) as usize {
            // R's pointer is not one to be used then.
            0 => Some(&[]),
            n => Some(std::slice::from_raw_parts(INTEGER(x), n)),
        }
    }
}

unsafe fn is_dim(dim: SEXP, object: SEXP) -> bool {
    // SAFETY: on R's main thread; both are protected.
    unsafe {
        let Some(dim) = integers(dim) else {
            return false;
        };
        let mut product = 1usize;
        for n in dim {
            let n = usize::try_from(*n).ok();
            let Some(next) = n.and_then(|n| product.checked_mul(n)) else {
                return false;
            };
            product = next;
        }
        !dim.is_empty() && is_vector(object) && product == Rf_xlength(object) as usize
    }
}

/// R drops what is empty, and what the names have of attributes.
unsafe fn are_dimnames(dimnames: SEXP, object: SEXP) -> bool {
    // SAFETY: on R's main thread; both are protected, and indices are below the length of `dimnames`, which is checked.
    unsafe {
        let Some(dim) = integers(Rf_getAttrib(object, R_DimSymbol)) else {
            return false;
        };
        TYPEOF(dimnames) == SEXPTYPE::VECSXP
            && Rf_xlength(dimnames) as usize == dim.len()
            && dim.iter().zip(0..).all(|(n, i)| {
                let names = VECTOR_ELT(dimnames, i);
                names == R_NilValue
                    || (is_strings(names)
                        && !has_attributes(names)
                        && *n > 0
                        && Rf_xlength(names) == *n as isize)
            })
    }
}

unsafe fn are_row_names(names: SEXP) -> bool {
    // SAFETY: on R's main thread; `names` is protected.
    unsafe {
        is_strings(names)
            || (TYPEOF(names) == SEXPTYPE::INTSXP && i32::try_from(Rf_xlength(names)).is_ok())
    }
}

/// Start, end and frequency of a time series.
unsafe fn is_tsp(tsp: SEXP, object: SEXP) -> bool {
    // SAFETY: on R's main thread; both are protected, and `tsp` has three numbers. `dim` of an object is not empty.
    unsafe {
        if TYPEOF(tsp) != SEXPTYPE::REALSXP || Rf_xlength(tsp) != 3 || !is_vector(object) {
            return false;
        }
        let [start, end, frequency] = *REAL(tsp).cast::<[f64; 3]>();
        let rows = match integers(Rf_getAttrib(object, R_DimSymbol)) {
            Some(dim) => f64::from(dim[0]),
            None => Rf_xlength(object) as f64,
        };
        let beyond = end - start - (rows - 1.0) / frequency;
        // R allows for 1e-5.
        !has_attributes(tsp) && frequency > 0.0 && rows > 0.0 && beyond.abs() < 0.9e-5
    }
}
