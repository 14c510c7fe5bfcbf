//! Memory for what arrives among the bytes of a message.

use std::io;
#[cfg(test)]
use std::sync::atomic::{AtomicBool, Ordering};

use super::Mapping;

/// Memory of its own for a large part of a message. It grows as the bytes arrive: a peer may announce more than it sends.
pub(crate) struct Filling {
    /// Of which the first `filled` bytes have arrived.
    memory: Mapping,
    filled: usize,
    /// What it shall have in the end.
    len: usize,
}

#[cfg(test)]
static REFUSES_TO_GROW: AtomicBool = AtomicBool::new(false);

/// Memory for bytes that are announced is first made for this many of them.
pub(crate) const FIRST_STEP: usize = 1 << 20;
/// Then it is made for this many times the bytes that have arrived. Reserved memory costs nothing before it is filled, and
/// with few steps little is copied.
pub(crate) const GROWTH_FACTOR: usize = 16;

impl Filling {
    /// Memory that shall have `len` bytes in the end. `None`: this process may have no more mappings, or has no memory.
    pub(crate) fn new(len: usize) -> Option<Filling> {
        let memory = Mapping::anonymous(len.min(FIRST_STEP)).ok()?;
        Some(Filling {
            memory,
            filled: 0,
            len,
        })
    }

    /// Takes as many bytes as there is room for: how many.
    ///
    /// # Errors
    /// There is no memory for more. What has arrived is in [`filled`](Self::filled).
    pub(crate) fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filled == self.memory.len() && !self.is_full() {
            #[cfg(test)]
            if REFUSES_TO_GROW.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            let more = self.filled.saturating_mul(GROWTH_FACTOR);
            self.memory.grow(more.min(self.len))?;
        }
        let now = bytes.len().min(self.memory.len() - self.filled);
        // SAFETY: within the mapping, which nobody else has.
        unsafe {
            let to = self.memory.as_ptr().add(self.filled);
            to.copy_from_nonoverlapping(bytes.as_ptr(), now);
        }
        self.filled += now;
        Ok(now)
    }

    #[cfg(all(test, target_os = "linux"))]
    pub(crate) fn refuse_to_grow() {
        REFUSES_TO_GROW.store(true, Ordering::Relaxed);
    }

    /// The bytes that have arrived.
    pub(crate) fn filled(&self) -> &[u8] {
        // SAFETY: nobody else has the memory.
        unsafe { &self.memory.bytes()[..self.filled] }
    }

    /// Bytes that it shall have.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_full(&self) -> bool {
        self.filled == self.len
    }

    /// To be called once it is full.
    pub(crate) fn into_memory(self) -> Mapping {
        debug_assert!(self.is_full());
        self.memory
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_of_its_own_grows_with_what_arrives() {
        let bytes: Vec<u8> = (0..40 * FIRST_STEP).map(|i| (i / 7) as u8).collect();
        let mut filling = Filling::new(bytes.len()).unwrap();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let taken = filling.take(&rest[..rest.len().min(300_000)]).unwrap();
            rest = &rest[taken..];
            let most = GROWTH_FACTOR * filling.filled.max(FIRST_STEP);
            assert!(taken > 0 && filling.memory.len() <= most);
        }
        let memory = filling.into_memory();
        assert_eq!(memory.len(), bytes.len());
        // SAFETY: nobody else has it.
        assert!(unsafe { memory.bytes() } == bytes);
    }
}
