//! Task dispatch between a host process and its daemons.
//!
//! This crate moves opaque payloads; what they mean, and how they are evaluated,
//! is the business of the language binding that uses it (crate `mirai` for R).
//! The rooms of the house, each importing only those above it:
//!
//! - [`sys`]: the I/O thread, signals, the bell that wakes the main thread, random numbers.
//! - `descriptors`: how many there may be.
//! - [`memory`]: large parts of messages in shared memory.
//! - [`checkpoint`]: results of tasks in a file.
//! - [`protocol`]: messages and framing, without I/O.
//! - [`dispatcher`]: the queue, a state machine without I/O, clocks or threads.
//! - [`tls`]: identities, and rustls as NNG's TLS.
//! - [`transport`]: links that carry frames between host and daemon.
//! - [`loss`]: why a daemon was lost.
//! - [`task`]: what the host's main thread holds and waits for.
//! - [`process`]: starting daemons and learning why they died.
//! - [`host`]: all of it put together on the host's side.
//! - [`worker`]: the daemon's side.
//! - [`relay`]: a daemon that is a host to others.
//! - [`heap`]: freed memory back to the system.

#![warn(missing_docs)]

pub mod checkpoint;
mod descriptors;
pub mod dispatcher;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod heap;
pub mod host;
pub mod loss;
pub mod memory;
pub mod process;
pub mod protocol;
pub mod relay;
pub mod sys;
pub mod task;
pub mod tls;
pub mod transport;
pub mod worker;
