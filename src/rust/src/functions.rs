//! From `.Call()` to Rust functions with ordinary arguments and results. For set-up and inspection: where speed counts,
//! routines take `SEXP`.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};

use extendr_api::{GetSexp, Robj};
use extendr_ffi::SEXP;

use crate::error::{Error, Result};

/// Makes a function `functions()` that returns the routines of these functions, for R's table. An argument is of any
/// type that extendr converts an R object to; a result is a [`Result`] of a type that it converts to one. Errors and
/// panics become R errors.
macro_rules! functions {
    ($(fn $name:ident($($arg:ident),*);)*) => {
        pub(crate) fn functions() -> Vec<extendr_ffi::R_CallMethodDef> {
            vec![$({
                unsafe extern "C-unwind" fn routine($($arg: extendr_ffi::SEXP),*) -> extendr_ffi::SEXP {
                    // SAFETY: R calls it on its main thread and protects the arguments; nothing else is alive here.
                    unsafe {
                        $crate::functions::call(stringify!($name), || {
                            $(let $arg = extendr_api::Robj::from_sexp($arg);)*
                            Ok($name($($crate::functions::argument(&$arg)?),*)?.into())
                        })
                    }
                }
                const NAME: &std::ffi::CStr =
                    match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => panic!("identifiers hold no zero"),
                    };
                let arguments: &[&str] = &[$(stringify!($arg)),*];
                $crate::r::routine(NAME, routine as *const (), arguments.len() as i32)
            }),*]
        }
    };
}
pub(crate) use functions;

/// Converts an argument.
///
/// # Errors
/// The R object is not of that type.
pub(crate) fn argument<'a, T: TryFrom<&'a Robj>>(x: &'a Robj) -> Result<T>
where
    T::Error: Into<Error>,
{
    T::try_from(x).map_err(Into::into)
}

/// Calls `f`, and raises its error, or its panic as an error.
///
/// # Safety
/// On R's main thread. No Rust value that owns anything may be alive in the callers' frames.
pub(crate) unsafe fn call(name: &str, f: impl FnOnce() -> Result<Robj>) -> SEXP {
    let outcome = catch_unwind(AssertUnwindSafe(f));
    let outcome = outcome.unwrap_or_else(|panic| Err(Error::other(panic_text(name, panic))));
    // SAFETY: as this function demands: `f` is over, and the error is dropped before it is raised.
    unsafe {
        match outcome {
            Ok(value) => value.get(),
            Err(error) => error.raise(),
        }
    }
}

/// The message of a panic in the function of this name.
fn panic_text(name: &str, panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => match panic.downcast::<&str>() {
            Ok(text) => (*text).into(),
            Err(_) => format!("User function panicked: {name}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(f: impl FnOnce()) -> String {
        panic_text("f", catch_unwind(AssertUnwindSafe(f)).unwrap_err())
    }

    #[test]
    fn a_panic_has_its_text_as_it_is() {
        assert_eq!(text_of(|| panic!("100 % of {}", "%s%n")), "100 % of %s%n");
        assert_eq!(text_of(|| panic!("%d")), "%d");
        assert_eq!(
            text_of(|| std::panic::panic_any(1)),
            "User function panicked: f"
        );
    }
}
