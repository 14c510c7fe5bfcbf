//! Errors for the user, as R conditions with the classes that `?mirai-errors` describes.

use std::fmt::Display;

use extendr_ffi::{R_NilValue, Rf_install, Rf_protect};

use crate::r::{self, Rf_eval, Rf_lang3};

/// The finer class of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// An argument is not valid.
    Argument,
    /// A URL cannot be listened at, or the host cannot be reached.
    Connect,
    /// A daemon cannot be started.
    Launch,
    /// No daemons are set for a profile.
    NoDaemons,
    /// Anything else: `mirai_error` without a finer class.
    Other,
}

impl Class {
    /// The name of the R class.
    fn name(self) -> Option<&'static str> {
        match self {
            Class::Argument => Some("mirai_error_argument"),
            Class::Connect => Some("mirai_error_connect"),
            Class::Launch => Some("mirai_error_launch"),
            Class::NoDaemons => Some("mirai_error_no_daemons"),
            Class::Other => None,
        }
    }
}

/// An error, to be raised when Rust is done.
#[derive(Debug)]
pub(crate) struct Error {
    class: Class,
    text: String,
}

/// What a function for R returns.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of a class with this message.
    pub(crate) fn new(class: Class, text: impl Display) -> Error {
        let text = text.to_string();
        Error { class, text }
    }

    pub(crate) fn argument(text: impl Display) -> Error {
        Error::new(Class::Argument, text)
    }

    pub(crate) fn connect(text: impl Display) -> Error {
        Error::new(Class::Connect, text)
    }

    pub(crate) fn launch(text: impl Display) -> Error {
        Error::new(Class::Launch, text)
    }

    pub(crate) fn no_daemons(text: impl Display) -> Error {
        Error::new(Class::NoDaemons, text)
    }

    pub(crate) fn other(text: impl Display) -> Error {
        Error::new(Class::Other, text)
    }

    /// Raises it, with the call of the R function that called `.Call()`. It is dropped first.
    ///
    /// # Safety
    /// As [`raise`].
    pub(crate) unsafe fn raise(self) -> ! {
        // SAFETY: as this function demands.
        unsafe { raise(self.class, self.text) }
    }
}

impl From<extendr_api::Error> for Error {
    fn from(error: extendr_api::Error) -> Error {
        Error::other(error)
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Error {
        match never {}
    }
}

/// Raises an error of class `mirai_error`, with the call of the R function that called `.Call()`. The text may hold
/// what a peer has sent: it is never R's format, and a zero in it is replaced. `text` is dropped first.
///
/// # Safety
/// On R's main thread. No Rust value that owns anything may be alive in the callers' frames.
pub(crate) unsafe fn raise(class: Class, text: impl Display) -> ! {
    let owned = text.to_string().replace('\0', "\u{fffd}");
    drop(text);
    // SAFETY: on R's main thread; what is allocated is protected. `owned` is lost only if R has no memory for a copy.
    unsafe {
        let text = Rf_protect(r::string(&owned));
        drop(owned);
        let class = match class.name() {
            Some(name) => r::string(name),
            None => R_NilValue,
        };
        let class = Rf_protect(class);
        let call = Rf_lang3(Rf_install(c"raise".as_ptr()), text, class);
        Rf_eval(Rf_protect(call), r::NAMESPACE.get());
        // Not reached: `raise()` of R/conditions.R does not return.
        r::raise("an error that was raised has been ignored")
    }
}
