//! Giving freed memory back to the system.
//!
//! glibc returns what has been freed at the end of its heap only. After a million tasks the
//! process would keep more than a gigabyte of free pieces between a few that are in use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::sys::io_thread;

/// Time in which the caller frees what belongs to the rest.
const DELAY: Duration = Duration::from_secs(1);

/// Has the heap trimmed in a second, by a thread of its own, if `still` holds then: half a second
/// for a gigabyte, during which other threads may have to wait for memory. May be called from
/// anywhere, within an allocator's callbacks, too. Does nothing where the allocator is not glibc's.
pub fn trim_soon(still: fn() -> bool) {
    static PENDING: AtomicBool = AtomicBool::new(false);
    if !cfg!(all(target_os = "linux", target_env = "gnu")) || PENDING.swap(true, Ordering::SeqCst) {
        return;
    }
    io_thread::handle().spawn(async move {
        tokio::time::sleep(DELAY).await;
        PENDING.store(false, Ordering::SeqCst);
        if still() {
            tokio::task::spawn_blocking(trim);
        }
    });
}

fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
