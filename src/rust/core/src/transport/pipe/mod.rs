//! Links on the same machine, on Windows: named pipes and our own framing.
//!
//! A link has one pipe. Control messages go along with the rest, ahead of what has not begun to be sent, as they do across
//! the network. A thread of the daemon reads it, so that it hears them while R is busy.
//!
//! `abstract://NAME` and `ipc://NAME` are the pipe `\\.\pipe\NAME`. A backslash, which a name cannot have, becomes a
//! slash: that of a path, in a URL such as `ipc://C:\Temp\mirai`. Only processes of this user may connect to it, and a
//! daemon connects only to a pipe that this user owns (`sys/windows/security.rs`).
//!
//! Large vectors are copied through the pipe.

mod client;
mod outbox;
mod server;

pub use client::Client;
pub use server::{Listener, LocalLink, Stranger};

use std::io;

use super::Address;

/// Bytes of each direction that a pipe holds.
const BUFFER: u32 = 64 * 1024;

/// The name of the pipe of a URL.
fn name(address: &Address) -> io::Result<String> {
    let name = match address {
        Address::Abstract(name) => name.clone(),
        Address::Ipc(path) => path.to_string_lossy().into_owned(),
        Address::Network(_) => {
            let text = format!("{address} is not a URL of this machine");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    };
    Ok(format!(r"\\.\pipe\{}", name.replace('\\', "/")))
}

/// A pipe leaves nothing in the file system.
pub fn unlink(_: &Address) {}

#[cfg(test)]
mod tests;
