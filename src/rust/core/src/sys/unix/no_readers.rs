//! Where the main thread does not read while it waits.

use std::os::fd::BorrowedFd;

/// As `Lead` of `readers.rs`, with nothing to read.
pub(in crate::sys) struct Lead;

pub(in crate::sys) fn lead() -> Lead {
    Lead
}

pub(in crate::sys) fn leads() -> bool {
    false
}

impl Lead {
    pub(in crate::sys) fn set(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    pub(in crate::sys) fn read(&self) {}

    pub(in crate::sys) fn look(&self) {}

    pub(in crate::sys) fn looks(&self) {}

    pub(in crate::sys) fn sleeps(&self, _: bool) -> bool {
        false
    }
}
