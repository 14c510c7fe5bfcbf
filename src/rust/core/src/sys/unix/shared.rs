//! Memory that two processes read and write at once: a memfd that neither can cut or grow.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Nobody can take memory away from under a mapping.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// A new memfd, which can be sealed. It has no bytes. Its name is for those who look for it in /proc.
pub(crate) fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Some systems demand the first flag, and older ones do not know it.
    let fd = rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| rustix::fs::memfd_create(name, flags))?;
    Ok(fd)
}

/// Memory that is mapped, and that another process may write to at any time. So it is used through raw pointers and
/// atomics only, and what is read is checked after it has been copied.
pub(super) struct SharedMemory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns the mapping, and no thread is bound to it.
unsafe impl Send for SharedMemory {}
// SAFETY: what is in it is shared by processes anyway; its users order their accesses by atomics.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// `len` bytes of zeros, and the descriptor to pass. The memory is there: to write to it cannot fail later.
    pub(super) fn new(name: &CStr, len: usize) -> io::Result<(SharedMemory, OwnedFd)> {
        let fd = memfd(name)?;
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SEALS)?;
        let memory = SharedMemory::map(fd.as_fd(), len)?;
        Ok((memory, fd))
    }

    /// What [`new`](Self::new) has made in another process.
    ///
    /// # Errors
    /// It is not sealed, or does not have that length.
    pub(super) fn receive(fd: BorrowedFd<'_>, len: usize) -> io::Result<SharedMemory> {
        let seals = rustix::fs::fcntl_get_seals(fd)?;
        let size = rustix::fs::fstat(fd)?.st_size;
        if !seals.contains(SEALS) || usize::try_from(size) != Ok(len) {
            let text = "passed memory is not what was announced";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        SharedMemory::map(fd, len)
    }

    fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<SharedMemory> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        let start = NonNull::new(start.cast()).expect("a mapping is not at address zero");
        Ok(SharedMemory { start, len })
    }

    /// The start of the memory, at the beginning of a page.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nobody borrows from it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
