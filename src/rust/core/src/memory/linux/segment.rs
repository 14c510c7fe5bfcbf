//! Making, receiving and reading segments.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::fs::SealFlags;
use rustix::io::Errno;

use super::changes::Changes;
use super::mapping::{Mapping, WORTH_KEEPING};
use super::quota::{QuotaSlot, SEGMENTS, most_segments};
use crate::sys::memfd;

/// Seals that every segment must have: nobody can change or cut it.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);
/// `TMPFS_MAGIC` of linux/magic.h: the file system of memfds, except those of huge pages.
const TMPFS: libc::c_long = 0x0102_1994;

/// A segment that is still being written.
pub struct Draft {
    fd: OwnedFd,
    len: usize,
    slot: QuotaSlot,
}

impl Draft {
    /// `None`: this system has no memfds, or the quota of segments is used up.
    pub fn new() -> Option<Draft> {
        let slot = SEGMENTS.take_within(most_segments())?;
        let fd = memfd(c"mirai").ok()?;
        Some(Draft { fd, len: 0, slot })
    }

    /// Appends bytes. After an error the draft is useless.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.fd, bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    self.len += n;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Makes a segment of what has been written, which nobody can change from then on. `None`: the system refuses.
    pub fn seal(self) -> Option<Segment> {
        Some(Segment {
            base: Arc::new(self.sealed()?),
            changes: None,
        })
    }

    pub(super) fn sealed(self) -> Option<Held> {
        rustix::fs::fcntl_add_seals(&self.fd, SEALS).ok()?;
        Some(Held {
            fd: self.fd,
            len: self.len,
            file: OnceLock::new(),
            _slot: self.slot,
        })
    }
}

/// Sealed memory, with changes to it if there are any. Clones share the memory.
#[derive(Clone)]
pub struct Segment {
    pub(super) base: Arc<Held>,
    pub(super) changes: Option<Arc<Changes>>,
}

/// A sealed memfd.
pub(super) struct Held {
    pub(super) fd: OwnedFd,
    pub(super) len: usize,
    /// See [`file`](Self::file).
    file: OnceLock<u64>,
    _slot: QuotaSlot,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Segment({} bytes)", self.len())
    }
}

impl Segment {
    /// Copies bytes. `None`: no segment can be made, so send them in the message.
    pub fn copy_of(bytes: &[u8]) -> Option<Segment> {
        let mut draft = Draft::new()?;
        draft.write(bytes).ok()?;
        draft.seal()
    }

    /// Checks what a peer has passed as a segment of this length.
    ///
    /// # Errors
    /// It is not sealed memory of that length, or the changes do not fit it.
    pub(crate) fn receive(
        fd: OwnedFd,
        len: usize,
        changes: Option<OwnedFd>,
    ) -> io::Result<Segment> {
        let base = Held::receive(fd, len)?;
        if base.len != len {
            return refused("a passed segment is shorter than announced");
        }
        let changes = match changes {
            Some(fd) => Some(Arc::new(Changes::receive(fd, len)?)),
            None => None,
        };
        let base = Arc::new(base);
        Ok(Segment { base, changes })
    }

    /// The descriptors to pass: its memfd, then that of its changes.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let changes = self.changes.iter().map(|changes| changes.held.fd.as_fd());
        std::iter::once(self.base.fd.as_fd()).chain(changes)
    }

    /// Number of [`descriptors`](Self::descriptors).
    pub fn weight(&self) -> usize {
        1 + usize::from(self.changes.is_some())
    }

    /// Bytes of data.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.base.len
    }

    /// Maps it, copy-on-write.
    pub(crate) fn map(&self) -> io::Result<Mapping> {
        let mut mapping = self.base.map()?;
        if let Some(changes) = &self.changes {
            // SAFETY: a new mapping, which nobody else has.
            changes.apply(unsafe { mapping.bytes_mut() })?;
        }
        if self.len() >= WORTH_KEEPING && SEGMENTS.now() <= most_segments() / 2 {
            mapping.source = Some(self.base.clone());
            mapping.received = self.changes.clone();
        }
        Ok(mapping)
    }

    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        let from = out.len();
        let until = from + self.len();
        out.reserve(self.len());
        let mut at = 0;
        while out.len() < until {
            let spare = &mut out.spare_capacity_mut()[..self.len() - at];
            match rustix::io::pread(&self.base.fd, spare, at as u64) {
                Ok((read, _)) if !read.is_empty() => {
                    let n = read.len();
                    at += n;
                    let len = out.len() + n;
                    // SAFETY: the call has initialised the first `n` of the spare bytes.
                    unsafe { out.set_len(len) };
                }
                Err(Errno::INTR) => {}
                // Sealed memory of this length can be read.
                other => panic!("a segment cannot be read: {:?}", other.map(|_| ())),
            }
        }
        if let Some(changes) = &self.changes {
            let applied = changes.apply(&mut out[from..]);
            applied.expect("sealed memory can be read");
        }
    }
}

pub(super) fn refused<T>(what: &str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

impl Held {
    /// The number of the file. The system is asked once, not for each mapping.
    pub(super) fn file(&self) -> u64 {
        let ask = || rustix::fs::fstat(&self.fd).map_or(0, |stat| stat.st_ino);
        *self.file.get_or_init(ask)
    }

    /// Accepts a memfd that a peer has passed; uses at most `most` bytes of it.
    pub(super) fn receive(fd: OwnedFd, most: usize) -> io::Result<Held> {
        if !rustix::fs::fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SEALS)) {
            return refused("a passed descriptor is not sealed memory");
        }
        if libc::c_long::from(rustix::fs::fstatfs(&fd)?.f_type) != TMPFS {
            return refused("a passed descriptor is not ordinary memory");
        }
        let stat = rustix::fs::fstat(&fd)?;
        let size = usize::try_from(stat.st_size).unwrap_or(0);
        let len = size.min(most);
        if len == 0 {
            return refused("a passed segment is shorter than announced");
        }
        let (slot, _) = SEGMENTS.take();
        Ok(Held {
            fd,
            len,
            file: stat.st_ino.into(),
            _slot: slot,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Of at least 256 pages, whatever their size.
    pub(in super::super) fn large() -> (Vec<u8>, Segment) {
        let len = WORTH_KEEPING.max(256 * crate::sys::page_size());
        let bytes: Vec<u8> = (0..len / 2)
            .flat_map(|i| (i as u16).to_le_bytes())
            .collect();
        let segment = Segment::copy_of(&bytes).unwrap();
        (bytes, segment)
    }

    pub(in super::super) fn content(segment: &Segment) -> Vec<u8> {
        let mut read = b"before".to_vec();
        segment.append_to(&mut read);
        read.split_off(6)
    }

    fn refusal(fd: OwnedFd, len: usize) -> String {
        Segment::receive(fd, len, None).unwrap_err().to_string()
    }

    #[test]
    fn only_sealed_memory_of_the_announced_length_is_accepted() {
        let made = Segment::copy_of(b"12345").unwrap();
        let copy = |segment: &Segment| segment.base.fd.try_clone().unwrap();
        assert_eq!(Segment::receive(copy(&made), 5, None).unwrap().len(), 5);
        assert!(refusal(copy(&made), 6).contains("shorter"));
        assert!(refusal(copy(&made), 0).contains("shorter"));
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert!(refusal(pipe, 5).contains("not sealed"));
        let file = tempfile::tempfile().unwrap();
        assert!(refusal(file.into(), 5).contains("not sealed"));
        let mut draft = Draft::new().unwrap();
        draft.write(b"12345").unwrap();
        let half = SealFlags::SHRINK | SealFlags::GROW;
        rustix::fs::fcntl_add_seals(&draft.fd, half).unwrap();
        assert!(refusal(draft.fd, 5).contains("not sealed"));
    }

    #[test]
    fn a_segment_cannot_be_changed_through_its_descriptor() {
        let segment = Segment::copy_of(b"12345").unwrap();
        assert!(rustix::io::pwrite(&segment.base.fd, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&segment.base.fd, 1).is_err());
        let mapping = segment.map().unwrap();
        // SAFETY: five bytes, and nobody else has the mapping.
        unsafe { mapping.as_ptr().write(b'x') };
        let mut read = Vec::new();
        segment.append_to(&mut read);
        assert_eq!(read, b"12345");
    }
}
