//! The process's one I/O thread: a single-threaded tokio runtime that lives as
//! long as the process does.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle};

#[cfg(target_os = "linux")]
pub(crate) use super::platform::register_for;
#[cfg(unix)]
pub(crate) use super::platform::{register, register_readable};
use crate::sys::Bell;

/// Handle of the runtime; starts its thread at the first call.
pub(crate) fn handle() -> &'static Handle {
    static HANDLE: OnceLock<Handle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        // Now, because later there may be nobody to tell that it cannot be had.
        Bell::get();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("the I/O runtime starts");
        let handle = runtime.handle().clone();
        // Signals are for the main thread.
        crate::sys::signals::with_all_blocked(|| {
            std::thread::Builder::new()
                .name("mirai-io".into())
                .spawn(move || runtime.block_on(std::future::pending::<()>()))
                .expect("the I/O thread starts")
        });
        handle
    })
}
