//! What every room stands on: the process's I/O thread, its signals, the bell that wakes its
//! main thread, files, and random numbers. Nothing here knows of tasks, hosts or links.
//!
//! What differs between systems is in `unix` and `windows`, two modules with the same functions and types.

mod attention;
mod bell;
pub(crate) mod io_thread;
pub(crate) mod locks;
#[cfg(unix)]
#[path = "unix/mod.rs"]
mod platform;
#[cfg(windows)]
#[path = "windows/mod.rs"]
mod platform;
mod random;
mod spin;

pub use attention::Attention;
pub use bell::{Bell, Waited};
#[cfg(windows)]
pub use platform::signals::nudge;
pub use platform::{Waitable, node_name, terminal_size};
pub use random::{random, token};
pub use spin::{allow_spinning, spinning_is_allowed};

pub(crate) use attention::Polled;
#[cfg(target_os = "linux")]
pub(crate) use platform::shared::memfd;
#[cfg(target_os = "linux")]
pub(crate) use platform::{board, page_size, readers, ring};
#[cfg(unix)]
pub(crate) use platform::{end_of_process, flush_c_streams, no_sigpipe, pipe};
pub(crate) use platform::{files, signals};
#[cfg(windows)]
pub(crate) use platform::{handles, security};
#[cfg(unix)]
pub(crate) use spin::spin;
