//! A task as the daemon is given it.

use std::io;
use std::sync::Arc;

use crate::memory::{Kept, Layout, Pieces};
use crate::protocol::{Kind, Seq, Stream};

/// A task to evaluate. Answer with [`Worker::reply`](super::Worker::reply).
#[derive(Debug)]
pub struct Assignment {
    /// Its number on this link.
    pub seq: Seq,
    /// The number of its handle on the host; 0 if it has none.
    pub number: u32,
    /// How to treat it.
    pub kind: Kind,
    /// State of the random number generator to start from; `None`: go on with the own one.
    pub stream: Option<Stream>,
    /// What it has in common with other tasks.
    pub constants: Option<Common>,
    /// What the host has submitted, and the values that it has attached.
    pub body: Vec<u8>,
    /// What belongs into the body.
    pub pieces: Pieces,
    /// Where the body ends, and each value.
    pub layout: Layout,
}

/// What several tasks have in common: the same bytes, but mappings of their own.
#[derive(Debug)]
pub struct Common {
    /// The message without its pieces.
    pub bytes: Arc<Vec<u8>>,
    /// What belongs into the message.
    pub pieces: Pieces,
    /// Where the message ends, and each value that is attached to it.
    pub layout: Layout,
}

impl Common {
    pub(super) fn lent(kept: &Kept) -> io::Result<Common> {
        let (bytes, pieces) = kept.lend();
        Ok(Common {
            layout: Layout::of(&bytes, &pieces, kept.attached)?,
            bytes,
            pieces,
        })
    }
}
