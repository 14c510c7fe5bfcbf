//! Segments in this process's memory.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::mm::{MapFlags, ProtFlags};

use super::changes::{Changes, FEW, MOST_RUNS};
use super::pages::{self, prefer_huge_pages};
use super::quota::{MAPPINGS, MOST_MAPPINGS, QuotaSlot};
use super::segment::{Held, Segment};
use crate::sys::page_size;

/// From this size on a mapping keeps the descriptor of its memfd, to send that again.
pub(super) const WORTH_KEEPING: usize = 1 << 20;

/// A segment in this process's memory. A page that is written to becomes the process's own (copy-on-write).
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// See [`file`](Self::file).
    file: u64,
    /// The memfd that is mapped, if its descriptor has been kept.
    pub(super) source: Option<Arc<Held>>,
    /// What the segment has changed of it; kept with it.
    pub(super) received: Option<Arc<Changes>>,
    _slot: QuotaSlot,
}

impl Held {
    pub(super) fn map(&self) -> io::Result<Mapping> {
        let slot = MAPPINGS
            .take_within(MOST_MAPPINGS)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping, at an address of the system's choice.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                self.len,
                ProtFlags::READ | ProtFlags::WRITE,
                // Most pages will never be written to.
                MapFlags::PRIVATE | MapFlags::NORESERVE,
                &self.fd,
                0,
            )
        }?;
        Ok(Mapping {
            start: NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            len: self.len,
            file: self.file(),
            source: None,
            received: None,
            _slot: slot,
        })
    }
}

// SAFETY: it owns the memory, and no thread is bound to it.
unsafe impl Send for Mapping {}
// SAFETY: as above; who writes through the pointer must make sure that nobody else reads.
unsafe impl Sync for Mapping {}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapping({} bytes)", self.len)
    }
}

/// The numbers of memory that has no file. Those of memfds count from 1.
static LAST_OWN: AtomicU64 = AtomicU64::new(u64::MAX);

impl Mapping {
    /// New memory of zeros, which is nobody else's. A page of it is taken when it is first written to. It can
    /// [grow](Self::grow).
    pub(in super::super) fn anonymous(len: usize) -> io::Result<Mapping> {
        let slot = MAPPINGS
            .take_within(MOST_MAPPINGS)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping, at an address of the system's choice.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let start: NonNull<u8> = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping {
            start,
            len,
            file: LAST_OWN.fetch_sub(1, Ordering::Relaxed),
            source: None,
            received: None,
            _slot: slot,
        })
    }

    /// Makes an anonymous mapping `len` bytes long, which is no less than it was. It may move; its bytes stay as they are.
    pub(in super::super) fn grow(&mut self, len: usize) -> io::Result<()> {
        let flags = rustix::mm::MremapFlags::MAYMOVE;
        // SAFETY: all of one mapping, which is this one's. Nobody else has a pointer into it.
        let start =
            unsafe { rustix::mm::mremap(self.start.as_ptr().cast(), self.len, len, flags) }?;
        self.start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        self.len = len;
        // SAFETY: `len` bytes, which are ours; bytes that may be uninitialised are never read as others.
        prefer_huge_pages(unsafe { std::slice::from_raw_parts_mut(start.cast(), len) });
        Ok(())
    }

    /// The start of [`len`](Self::len) bytes, aligned to a page. Only the holder may write to them that was
    /// [given](crate::memory::Piece::give) it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes of data. The mapping itself ends with a page.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.len
    }

    /// The number of the file behind the memory. Mappings of the same file share what nobody has changed of it.
    pub fn file(&self) -> u64 {
        self.file
    }

    pub(in super::super) fn append_to(&self, out: &mut Vec<u8>) {
        // SAFETY: nobody writes to what is still to be copied.
        out.extend_from_slice(unsafe { self.bytes() });
    }

    /// # Safety
    /// Nobody writes to it meanwhile.
    pub(in super::super) unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is mapped for as long as this lives; the rest is the caller's.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }

    /// # Safety
    /// Nobody else uses it meanwhile.
    pub(super) unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }

    /// The segment that was mapped, whatever has been written to the mapping since; `None` if its descriptor has not been
    /// kept.
    pub(crate) fn original(&self) -> Option<Segment> {
        Some(Segment {
            base: self.source.clone()?,
            changes: self.received.clone(),
        })
    }

    /// A segment of its present content, if making it takes little copying.
    ///
    /// # Safety
    /// Nobody writes to it meanwhile.
    pub unsafe fn segment(&self) -> Option<Segment> {
        let base = self.source.clone()?;
        let runs = self.changed()?;
        let changes = if runs.is_empty() {
            None
        } else {
            // SAFETY: the caller's.
            let memory = unsafe { self.bytes() };
            Some(Arc::new(Changes::copy_of(memory, runs)?))
        };
        Some(Segment { base, changes })
    }

    /// A second mapping with the same content, if making it takes little copying.
    ///
    /// # Safety
    /// Nobody writes to it meanwhile.
    pub unsafe fn duplicate(&self) -> Option<Mapping> {
        let source = self.source.clone()?;
        let runs = self.changed()?;
        let mut mapping = source.map().ok()?;
        for run in runs {
            // SAFETY: the caller's, and a new mapping.
            unsafe { mapping.bytes_mut()[run.clone()].copy_from_slice(&self.bytes()[run]) };
        }
        mapping.source = Some(source);
        Some(mapping)
    }

    /// Whether others may have the same memory: it is a segment's.
    pub fn is_of_segment(&self) -> bool {
        self.file <= LAST_OWN.load(Ordering::Relaxed)
    }

    /// Whether it can be sent on, or duplicated, with little copying.
    pub fn has_hardly_changed(&self) -> bool {
        self.source.is_some() && self.changed().is_some()
    }

    /// Runs of pages that differ from the source. `None`: the kernel does not tell, or there are too many.
    fn changed(&self) -> Option<Vec<Range<usize>>> {
        static TELLS: OnceLock<bool> = OnceLock::new();
        if *TELLS.get_or_init(|| pages::tell().unwrap_or(false)) {
            self.changed_pages()
        } else {
            None
        }
    }

    fn changed_pages(&self) -> Option<Vec<Range<usize>>> {
        let page = page_size();
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut changed = 0;
        let mut start = 0;
        pages::look(
            self.start.as_ptr().addr(),
            self.len.div_ceil(page),
            |state| {
                let end = (start + page).min(self.len);
                if state == pages::State::Own {
                    match runs.last_mut() {
                        Some(run) if run.end == start => run.end = end,
                        _ => runs.push(start..end),
                    }
                    changed += end - start;
                }
                start = end;
                changed <= self.len / FEW && runs.len() <= MOST_RUNS
            },
        )?;
        Some(runs)
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
    use super::super::segment::tests::{content, large};
    use super::*;

    /// As it arrives at a peer.
    fn passed(segment: &Segment) -> io::Result<Segment> {
        let mut fds = segment
            .descriptors()
            .map(|fd| fd.try_clone_to_owned().unwrap());
        Segment::receive(fds.next().unwrap(), segment.len(), fds.next())
    }

    #[test]
    fn what_is_mapped_goes_on_with_its_changes_and_nothing_else() {
        let (mut bytes, first) = large();
        let page = page_size();
        let mapping = first.map().unwrap();
        let write = |bytes: &mut Vec<u8>, mapping: &Mapping, at: usize| {
            bytes[at] ^= 0xff;
            // SAFETY: within the mapping, and there are no references.
            unsafe { mapping.as_ptr().add(at).write(bytes[at]) };
        };
        // SAFETY: nobody writes while these run. So it is below.
        let (unchanged, copy) =
            unsafe { (mapping.segment().unwrap(), mapping.duplicate().unwrap()) };
        assert_eq!(unchanged.weight(), 1);
        assert_eq!(unsafe { copy.bytes() }, bytes);
        // Two neighbours, one apart from them, the last one; what has only been read counts for nothing.
        for at in [3 * page, 4 * page + 1, 9 * page, first.len() - 1] {
            write(&mut bytes, &mapping, at);
        }
        assert_eq!(mapping.changed().unwrap().len(), 3);
        let changed = unsafe { mapping.segment().unwrap() };
        assert_eq!((changed.weight(), changed.len()), (2, first.len()));
        let arrived = passed(&changed).unwrap();
        assert!(content(&arrived) == bytes);
        // What is written now is nobody else's, on neither side.
        let before = bytes.clone();
        write(&mut bytes, &mapping, 0);
        let there = arrived.map().unwrap();
        assert!(unsafe { there.bytes() } == before && content(&changed) == before);
        assert!(content(&unchanged) == content(&first) && content(&first) != before);
        // It can go on from there, and be duplicated.
        let mut further = before.clone();
        write(&mut further, &there, 20 * page);
        let copy = unsafe { there.duplicate().unwrap() };
        let back = passed(&unsafe { there.segment().unwrap() }).unwrap();
        write(&mut further.clone(), &there, 21 * page);
        assert!(content(&back) == further && unsafe { copy.bytes() } == further);
    }

    #[test]
    fn what_is_small_or_changed_all_over_is_copied() {
        let small = Segment::copy_of(&vec![1; WORTH_KEEPING - 1])
            .unwrap()
            .map()
            .unwrap();
        // SAFETY: nobody writes meanwhile.
        assert!(unsafe { small.segment().is_none() && small.duplicate().is_none() });
        let mut mapping = large().1.map().unwrap();
        let most = mapping.len() / FEW;
        // SAFETY: it is nobody else's.
        unsafe { mapping.bytes_mut()[..most].fill(1) };
        assert!(mapping.changed().is_some());
        // SAFETY: as above.
        unsafe { mapping.bytes_mut()[..=most].fill(1) };
        assert!(mapping.changed().is_none());
    }
}
