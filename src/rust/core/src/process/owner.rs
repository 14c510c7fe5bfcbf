//! Which process something belongs to.

use std::sync::atomic::{AtomicU32, Ordering};

/// Number of forks between the process that first asked and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Has a process just forked count for the one that it was forked from: it is a session of its own.
#[cfg(target_os = "linux")]
pub(super) fn is_its_own() {
    FORKS.fetch_sub(1, Ordering::Relaxed);
}

/// Tells a process from those that are forked from it, by `fork(3)` as it runs pthread_atfork(3)'s
/// handlers, which takes no system call.
#[derive(Clone, Copy, Debug)]
pub struct Owner(u32);

impl Owner {
    /// This process.
    pub fn this() -> Owner {
        static HANDLER: std::sync::Once = std::sync::Once::new();
        extern "C" fn forked() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the handler does nothing but count.
        HANDLER.call_once(|| unsafe {
            libc::pthread_atfork(None, None, Some(forked));
        });
        Owner(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this is another process, forked from the owner.
    pub fn has_forked(self) -> bool {
        self.0 != FORKS.load(Ordering::Relaxed)
    }
}
