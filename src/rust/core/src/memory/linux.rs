//! Segments by sealed memfds.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};

/// What a segment must have: nobody can change or cut it.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);
/// `TMPFS_MAGIC` of linux/magic.h: the file system in which memfds are, but for huge pages.
const TMPFS: libc::c_long = 0x0102_1994;
/// Mappings held at a time. The system allows a process 65,530 unless told otherwise.
const MOST_MAPPINGS: usize = 16_384;
/// Of the descriptors that a process may have, one in so many may be a segment's.
const SHARE: u64 = 4;
/// A system may say that there is no limit.
const MOST_SEGMENTS: usize = 16_384;

/// Things of which there may be only so many.
struct Count(AtomicUsize);

static SEGMENTS: Count = Count(AtomicUsize::new(0));
static MAPPINGS: Count = Count(AtomicUsize::new(0));

/// One of them.
struct Place(&'static Count);

impl Count {
    fn take(&'static self) -> (Place, usize) {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        (Place(self), before)
    }

    fn take_within(&'static self, most: usize) -> Option<Place> {
        let (place, before) = self.take();
        (before < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Segments that this process may make; 0 if it may not write so much to a file.
fn most_segments() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        // Beyond such a limit a write would end the process by a signal.
        if getrlimit(Resource::Fsize).current.is_some() {
            return 0;
        }
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        usize::try_from(files / SHARE).map_or(MOST_SEGMENTS, |n| n.min(MOST_SEGMENTS))
    })
}

/// A segment in the making.
pub struct Draft {
    fd: OwnedFd,
    len: usize,
    place: Place,
}

impl Draft {
    /// `None`: this system has none, or there are too many.
    pub fn new() -> Option<Draft> {
        let place = SEGMENTS.take_within(most_segments())?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Some systems demand the first flag, and older ones do not know it.
        let fd = rustix::fs::memfd_create(c"mirai", flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| rustix::fs::memfd_create(c"mirai", flags))
            .ok()?;
        Some(Draft { fd, len: 0, place })
    }

    /// Appends bytes. After an error there is no use for it.
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

    pub fn seal(self) -> Option<Segment> {
        rustix::fs::fcntl_add_seals(&self.fd, SEALS).ok()?;
        Some(Segment(Arc::new(Held {
            fd: self.fd,
            len: self.len,
            _place: self.place,
        })))
    }
}

/// Memory that does not change any more. Clones are the same memory.
#[derive(Clone)]
pub struct Segment(Arc<Held>);

struct Held {
    fd: OwnedFd,
    len: usize,
    _place: Place,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Segment({} bytes)", self.len())
    }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Segment {
    /// Copies bytes. `None`: they had better be sent otherwise.
    pub fn copy_of(bytes: &[u8]) -> Option<Segment> {
        let mut draft = Draft::new()?;
        draft.write(bytes).ok()?;
        draft.seal()
    }

    /// What a peer has passed and says to be of this length.
    ///
    /// # Errors
    /// It is something else, or it could change.
    pub(crate) fn receive(fd: OwnedFd, len: usize) -> io::Result<Segment> {
        let refused = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if !rustix::fs::fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SEALS)) {
            return refused("a passed descriptor is not sealed memory");
        }
        if libc::c_long::from(rustix::fs::fstatfs(&fd)?.f_type) != TMPFS {
            return refused("a passed descriptor is not ordinary memory");
        }
        let size = rustix::fs::fstat(&fd)?.st_size;
        if len == 0 || !usize::try_from(size).is_ok_and(|size| size >= len) {
            return refused("a passed segment is shorter than announced");
        }
        let (place, _) = SEGMENTS.take();
        Ok(Segment(Arc::new(Held {
            fd,
            len,
            _place: place,
        })))
    }

    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Maps it: readable, and writable for whoever holds the mapping alone.
    pub(crate) fn map(&self) -> io::Result<Mapping> {
        let place = MAPPINGS
            .take_within(MOST_MAPPINGS)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping, at an address of the system's choice.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                self.0.len,
                ProtFlags::READ | ProtFlags::WRITE,
                // Most pages will never be written to.
                MapFlags::PRIVATE | MapFlags::NORESERVE,
                &self.0.fd,
                0,
            )
        }?;
        Ok(Mapping {
            start: NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            len: self.0.len,
            _place: place,
        })
    }

    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        let until = out.len() + self.0.len;
        out.reserve(self.0.len);
        let mut at = 0;
        while out.len() < until {
            let spare = &mut out.spare_capacity_mut()[..self.0.len - at];
            match rustix::io::pread(&self.0.fd, spare, at as u64) {
                Ok((read, _)) if !read.is_empty() => {
                    let n = read.len();
                    at += n;
                    let len = out.len() + n;
                    // SAFETY: the call has initialised so many of the spare bytes.
                    unsafe { out.set_len(len) };
                }
                Err(Errno::INTR) => {}
                // Sealed memory of this length can be read.
                other => panic!("a segment cannot be read: {:?}", other.map(|_| ())),
            }
        }
    }
}

/// A segment in this process's memory, of which it has its own copy as soon as it writes.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    _place: Place,
}

// SAFETY: it owns the memory, and does not itself read or write it but when asked.
unsafe impl Send for Mapping {}
// SAFETY: as above; whoever writes through the pointer has to see to it that nobody else reads.
unsafe impl Sync for Mapping {}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapping({} bytes)", self.len)
    }
}

impl Mapping {
    /// The beginning of [`len`](Self::len) bytes, aligned to a page. They may be written to by
    /// whoever was [given](super::Piece::give) it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.len
    }

    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        // SAFETY: the memory is mapped for as long as this lives.
        out.extend_from_slice(unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) });
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, and with this its last user is gone.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(fd: OwnedFd, len: usize) -> String {
        Segment::receive(fd, len).unwrap_err().to_string()
    }

    #[test]
    fn only_sealed_memory_of_the_announced_length_is_accepted() {
        let made = Segment::copy_of(b"12345").unwrap();
        let copy = |segment: &Segment| segment.0.fd.try_clone().unwrap();
        assert_eq!(Segment::receive(copy(&made), 5).unwrap().len(), 5);
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
        assert!(rustix::io::pwrite(&segment, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&segment, 1).is_err());
        let mapping = segment.map().unwrap();
        // SAFETY: five bytes, and nobody else has the mapping.
        unsafe { mapping.as_ptr().write(b'x') };
        let mut read = Vec::new();
        segment.append_to(&mut read);
        assert_eq!(read, b"12345");
    }
}
