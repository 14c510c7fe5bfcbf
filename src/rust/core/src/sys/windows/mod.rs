//! Windows.

pub(crate) mod files;
pub(crate) mod handles;
pub(crate) mod security;
pub(crate) mod signals;
mod token;

use std::os::windows::io::RawHandle;

pub(super) use token::Token;

/// What a wait can look at: the handle of something that can be signalled.
pub type Waitable = RawHandle;

/// The name that this machine has given itself.
pub fn node_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "localhost".into())
}
