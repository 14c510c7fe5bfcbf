//! Between a process that was started and the one that has started it: here, the job ends one whose host is gone, and
//! nothing is said.

use std::path::Path;

/// Does nothing here.
///
/// # Safety
/// None is needed.
pub unsafe fn find() {}

/// Does nothing here: the session directory of a process that was terminated stays.
pub fn tell_directory(_: &Path) {}

/// Does nothing here: the host sees it by the link.
pub fn tell_connected() {}

/// False: the job has ended it before.
pub fn is_abandoned() -> bool {
    false
}
