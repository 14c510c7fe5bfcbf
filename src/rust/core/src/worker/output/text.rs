//! What a task has written, as its host gets it.

use std::collections::VecDeque;

/// Of what one task writes, this many bytes of its beginning are kept, and as many of its end.
pub const HALF: usize = 512 * 1024;

/// What a task has written: its beginning, its end, and the number of bytes between them.
#[derive(Debug, Default)]
pub(super) struct Text {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
}

impl Text {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let (to_head, rest) = bytes.split_at(bytes.len().min(HALF - self.head.len()));
        self.head.extend_from_slice(to_head);
        self.tail.extend(rest);
        let excess = self.tail.len().saturating_sub(HALF);
        self.tail.drain(..excess);
        self.dropped += excess as u64;
    }

    pub(super) fn into_string(self) -> String {
        let mut bytes = self.head;
        if self.dropped > 0 {
            let gap = format!("\n[... {} bytes are left out here ...]\n", self.dropped);
            bytes.extend_from_slice(gap.as_bytes());
        }
        bytes.extend(self.tail);
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
        }
    }
}
