//! Task dispatch between a host process and its daemons.
//!
//! This crate moves opaque payloads; what they mean, and how they are evaluated,
//! is the business of the language binding that uses it (crate `mirai` for R).
//! The rooms of the house, each importing only those above it:
//!
//! - `descriptors`: how many there may be.
//! - [`memory`]: large parts of messages in shared memory.
//! - [`protocol`]: messages and framing, without I/O.
//! - [`dispatcher`]: the queue, a state machine without I/O, clocks or threads.
//! - [`tls`]: identities, and rustls as NNG's TLS.
//! - [`transport`]: links that carry frames between host and daemon.
//! - [`wait`], [`task`]: what the host's main thread holds and waits on.
//! - [`process`]: starting daemons and learning why they died.
//! - [`host`]: all of it put together on the host's side.
//! - [`worker`]: the daemon's side.
//! - [`relay`]: a daemon that is a host to others.
//! - [`heap`]: freed memory back to the system.
//! - [`stream`]: L'Ecuyer-CMRG random number streams.

mod descriptors;
pub mod dispatcher;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod heap;
pub mod host;
pub mod memory;
pub mod process;
pub mod protocol;
pub mod relay;
mod runtime;
mod signals;
pub mod stream;
pub mod task;
pub mod tls;
pub mod transport;
pub mod wait;
pub mod worker;

/// 24 random hexadecimal characters from the operating system, for names that
/// nobody shall guess.
pub fn token() -> String {
    let mut bytes = [0u8; 12];
    random(&mut bytes);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Fills `bytes` with random ones from the operating system.
pub fn random(bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[at..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => at += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("the operating system has no random numbers: {e}"),
        }
    }
}
