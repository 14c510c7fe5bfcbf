//! What every room stands on: the process's I/O thread, its signals, the bell that wakes its
//! main thread, and random numbers. Nothing here knows of tasks, hosts or links.

mod bell;
pub(crate) mod io_thread;
mod random;
pub(crate) mod signals;

pub use bell::{Bell, Waited};
pub use random::{random, token};
pub use signals::Attention;
