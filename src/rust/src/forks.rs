//! Which process this is: the R session, or one that was forked from it (by `parallel::mclapply()`,
//! for example). A forked process shares the session's sockets but has none of its threads, so it gets
//! the error [`FORKED`] instead of using them.

use std::sync::OnceLock;

use mirai_core::process::Owner;

use crate::error::Error;

/// The message of the error that a forked process gets.
static FORKED: &str = "mirai cannot be used in a process that was forked from an R session: \
                           use it in the session itself";

/// The process that has loaded the package.
static LOADED: OnceLock<Owner> = OnceLock::new();

/// The process that owns the profiles, the bell and the tasks: the first one that has used any of them.
static SESSION: OnceLock<Owner> = OnceLock::new();

/// To be called when the package is loaded.
pub(crate) fn loaded() {
    LOADED.get_or_init(Owner::this);
}

/// Makes this process the session, unless another one is already.
pub(crate) fn claim_session() {
    SESSION.get_or_init(Owner::this);
}

/// Whether this process was forked from one that had loaded the package. Processes that the fork server
/// has made count as not forked.
pub(crate) fn is_forked_from_session() -> bool {
    LOADED.get().is_some_and(|owner| owner.has_forked())
}

/// Whether this process was forked from the session.
pub(crate) fn is_forked() -> bool {
    SESSION.get_or_init(Owner::this).has_forked()
}

/// The error [`FORKED`].
pub(crate) fn error() -> Error {
    Error::other(FORKED)
}
