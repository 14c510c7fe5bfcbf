//! What every room stands on: the process's I/O thread, its signals, the bell that wakes its
//! main thread, and random numbers. Nothing here knows of tasks, hosts or links.

mod bell;
pub(crate) mod io_thread;
pub(crate) mod locks;
mod random;
pub(crate) mod signals;

pub use bell::{Bell, Waited};
pub use random::{random, token};
pub use signals::Attention;

/// The name that this machine has given itself.
pub fn node_name() -> String {
    #[cfg(unix)]
    return rustix::system::uname().nodename().to_string_lossy().into();
    #[cfg(not(unix))]
    return std::env::var("COMPUTERNAME").unwrap_or_else(|_| "localhost".into());
}
