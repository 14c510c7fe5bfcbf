//! Segments by sealed memfds.
//!
//! What has been mapped and sent on with few changes, or none, need not be copied: the same memfd
//! goes out again, together with a small one that holds the [`Changes`]. Which pages of a mapping
//! have changed the kernel knows (`/proc/self/pagemap`, see its documentation, `pagemap.rst`).

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};

use crate::descriptors;

/// What a segment must have: nobody can change or cut it.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);
/// `TMPFS_MAGIC` of linux/magic.h: the file system in which memfds are, but for huge pages.
const TMPFS: libc::c_long = 0x0102_1994;
/// Mappings held at a time. The system allows a process 65,530 unless told otherwise.
const MOST_MAPPINGS: usize = 16_384;
/// Of the descriptors that are not held for long, one in so many may be a segment's.
const SHARE: usize = 4;
/// A system may say that there is no limit.
const MOST_SEGMENTS: usize = 16_384;
/// From this size on a mapping keeps the descriptor of its memfd, to send that again.
const WORTH_KEEPING: usize = 1 << 20;
/// Beyond one byte in so many, changes are not worth their administration, nor beyond so many runs.
const FEW: usize = 8;
const MOST_RUNS: usize = 4096;

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

    fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
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
    static MAY_WRITE: OnceLock<bool> = OnceLock::new();
    // Beyond such a limit a write would end the process by a signal.
    if !*MAY_WRITE.get_or_init(|| getrlimit(Resource::Fsize).current.is_none()) {
        return 0;
    }
    (descriptors::spare() / SHARE).min(MOST_SEGMENTS)
}

/// Memory from this size on is worth asking for huge pages.
const WORTH_HUGE: usize = 4 << 20;
/// The size of one, on most machines. Where it is another, nothing is lost but the effect.
const HUGE: usize = 2 << 20;

/// Has new memory that is about to be filled made of huge pages, if it is large and the system agrees:
/// to fill pages of the ordinary size takes three times as long, most of it in page faults.
pub fn prefer_huge_pages(memory: &mut [MaybeUninit<u8>]) {
    if memory.len() < WORTH_HUGE {
        return;
    }
    let skip = memory.as_ptr().align_offset(HUGE).min(memory.len());
    let whole = (memory.len() - skip) / HUGE * HUGE;
    let start = memory[skip..].as_mut_ptr().cast();
    // SAFETY: it is within memory of ours, and it remains as it is.
    let _ = unsafe { rustix::mm::madvise(start, whole, rustix::mm::Advice::LinuxHugepage) };
}

/// Bytes of memory that this process shares with nobody, changed pages of mappings among them, as
/// far as the kernel has counted them (it lags behind by some pages for each thread).
pub fn own() -> Option<usize> {
    // proc(5): size, resident and shared are the first fields, in pages.
    let fields = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut fields = fields.split(' ').skip(1).map(str::parse::<usize>);
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(resident.saturating_sub(shared) * pages::size())
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
        Some(Segment {
            base: Arc::new(self.sealed()?),
            changes: None,
        })
    }

    fn sealed(self) -> Option<Held> {
        rustix::fs::fcntl_add_seals(&self.fd, SEALS).ok()?;
        Some(Held {
            fd: self.fd,
            len: self.len,
            _place: self.place,
        })
    }
}

/// Memory that does not change any more. Clones are the same memory.
#[derive(Clone)]
pub struct Segment {
    base: Arc<Held>,
    changes: Option<Arc<Changes>>,
}

/// A sealed memfd.
struct Held {
    fd: OwnedFd,
    len: usize,
    _place: Place,
}

/// In which a segment differs from its memfd. Another memfd holds the runs, their beginnings and ends
/// as `u64`, and then the bytes of all of them.
struct Changes {
    held: Held,
    /// In order, and apart from each other.
    runs: Vec<Range<usize>>,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Segment({} bytes)", self.len())
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

    /// What has to be passed: its memfd, and that of its changes.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let changes = self.changes.iter().map(|changes| changes.held.fd.as_fd());
        std::iter::once(self.base.fd.as_fd()).chain(changes)
    }

    /// Descriptors that it takes.
    pub fn weight(&self) -> usize {
        1 + usize::from(self.changes.is_some())
    }

    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.base.len
    }

    /// Maps it: readable, and writable for whoever holds the mapping alone.
    pub(crate) fn map(&self) -> io::Result<Mapping> {
        let mut mapping = self.base.map()?;
        if let Some(changes) = &self.changes {
            // SAFETY: a new mapping, which nobody else has.
            changes.apply(unsafe { mapping.bytes_mut() })?;
        }
        if self.len() >= WORTH_KEEPING && SEGMENTS.now() <= most_segments() / 2 {
            mapping.source = Some(self.base.clone());
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
                    // SAFETY: the call has initialised so many of the spare bytes.
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

fn refused<T>(what: &str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

impl Held {
    /// At most `most` bytes of what a peer has passed.
    fn receive(fd: OwnedFd, most: usize) -> io::Result<Held> {
        if !rustix::fs::fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SEALS)) {
            return refused("a passed descriptor is not sealed memory");
        }
        if libc::c_long::from(rustix::fs::fstatfs(&fd)?.f_type) != TMPFS {
            return refused("a passed descriptor is not ordinary memory");
        }
        let size = usize::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
        let len = size.min(most);
        if len == 0 {
            return refused("a passed segment is shorter than announced");
        }
        let (place, _) = SEGMENTS.take();
        Ok(Held {
            fd,
            len,
            _place: place,
        })
    }

    fn map(&self) -> io::Result<Mapping> {
        let place = MAPPINGS
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
            source: None,
            _place: place,
        })
    }
}

/// Bytes of a run's beginning and end.
const RUN: usize = 16;

impl Changes {
    /// Runs of a mapping's memory.
    fn copy_of(memory: &[u8], runs: Vec<Range<usize>>) -> Option<Changes> {
        let mut draft = Draft::new()?;
        let number = |n: usize| (n as u64).to_le_bytes();
        let table = runs
            .iter()
            .flat_map(|run| [run.start, run.end])
            .chain([0, 0]);
        let table: Vec<u8> = table.flat_map(number).collect();
        draft.write(&table).ok()?;
        for run in &runs {
            draft.write(&memory[run.clone()]).ok()?;
        }
        let held = draft.sealed()?;
        Some(Changes { held, runs })
    }

    /// Changes to so many bytes, which a peer has passed.
    fn receive(fd: OwnedFd, len: usize) -> io::Result<Changes> {
        let misfit = || refused("changes that do not fit a segment");
        let held = Held::receive(fd, usize::MAX)?;
        let mut table = vec![0; held.len.min((MOST_RUNS + 1) * RUN)];
        File::from(held.fd.try_clone()?).read_exact_at(&mut table, 0)?;
        let number = |bytes: &[u8]| {
            let bytes = bytes.try_into().expect("half of a run");
            usize::try_from(u64::from_le_bytes(bytes))
        };
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut size = RUN;
        let mut table = table.chunks_exact(RUN);
        loop {
            let Some(run) = table.next() else {
                return misfit();
            };
            let (start, end) = run.split_at(RUN / 2);
            let (Ok(start), Ok(end)) = (number(start), number(end)) else {
                return misfit();
            };
            if end == 0 {
                break;
            }
            let after = runs.last().map_or(0, |run| run.end);
            if start < after || end <= start || end > len {
                return misfit();
            }
            size += RUN + (end - start);
            runs.push(start..end);
        }
        if size != held.len {
            return misfit();
        }
        Ok(Changes { held, runs })
    }

    fn apply(&self, memory: &mut [u8]) -> io::Result<()> {
        let file = self.held.fd.as_fd();
        let mut from = ((self.runs.len() + 1) * RUN) as u64;
        for run in &self.runs {
            let mut rest = &mut memory[run.clone()];
            while !rest.is_empty() {
                match rustix::io::pread(file, &mut *rest, from) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => {
                        from += n as u64;
                        rest = &mut rest[n..];
                    }
                    Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }
}

/// A segment in this process's memory, of which it has its own copy as soon as it writes.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Where its pages come from, if that has been kept.
    source: Option<Arc<Held>>,
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
        // SAFETY: nobody writes to what is still to be copied.
        out.extend_from_slice(unsafe { self.bytes() });
    }

    /// # Safety
    /// Nobody writes to it meanwhile.
    unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is mapped for as long as this lives; the rest is the caller's.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }

    /// # Safety
    /// Nobody else uses it meanwhile.
    unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }

    /// What it holds now, to be sent, if that takes little copying.
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

    /// Another one with the same content, if that takes little copying.
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

    /// Whether it can be sent on, or duplicated, with little copying.
    pub fn has_hardly_changed(&self) -> bool {
        self.source.is_some() && self.changed().is_some()
    }

    /// Runs of pages that are not the source's any more. `None`: nobody knows, or they are many.
    fn changed(&self) -> Option<Vec<Range<usize>>> {
        static TELLS: OnceLock<bool> = OnceLock::new();
        if *TELLS.get_or_init(|| pages::tell().unwrap_or(false)) {
            self.changed_pages()
        } else {
            None
        }
    }

    fn changed_pages(&self) -> Option<Vec<Range<usize>>> {
        let page = pages::size();
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

/// What the kernel says of the pages of this process, in `/proc/self/pagemap`.
mod pages {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum State {
        /// Never touched, so it is as the file has it.
        Absent,
        /// The file's.
        Shared,
        /// Has been written to.
        Own,
    }

    /// Bytes of a page.
    pub(super) fn size() -> usize {
        // Not by rustix, which under valgrind looks for it in memory that is not there.
        // SAFETY: no pointers.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).unwrap_or(4096)
    }

    /// Calls `each` for so many pages, in order, as long as that returns true. `None`: it did not, or
    /// the kernel says nothing.
    pub(super) fn look(
        address: usize,
        pages: usize,
        mut each: impl FnMut(State) -> bool,
    ) -> Option<()> {
        // Bits of an entry: a page that is there, or swapped out; not this process's own.
        const THERE: u64 = 1 << 63 | 1 << 62;
        const SHARED: u64 = 1 << 61;
        // Not kept open: in a forked process it would tell of its parent's memory.
        let map = File::open("/proc/self/pagemap").ok()?;
        let mut entries = [0; 8 * 1024];
        let first = address / size();
        let mut at = 0;
        while at < pages {
            let now = &mut entries[..8 * (pages - at).min(1024)];
            map.read_exact_at(now, 8 * (first + at) as u64).ok()?;
            for entry in now.chunks_exact(8) {
                let entry = u64::from_le_bytes(entry.try_into().expect("eight bytes"));
                let state = match (entry & THERE != 0, entry & SHARED != 0) {
                    (false, _) => State::Absent,
                    (true, true) => State::Shared,
                    (true, false) => State::Own,
                };
                if !each(state) {
                    return None;
                }
                at += 1;
            }
        }
        Some(())
    }

    /// Whether it is true what is said, as far as a trial can tell: an emulator may not know better.
    pub(super) fn tell() -> Option<bool> {
        let size = size();
        let mapping = Segment::copy_of(&vec![1; 3 * size])?.map().ok()?;
        // SAFETY: within the mapping, which nobody else has.
        unsafe {
            mapping.as_ptr().read_volatile();
            mapping.as_ptr().add(size).write_volatile(2);
        }
        let mut states = Vec::new();
        look(mapping.as_ptr().addr(), 3, |state| {
            states.push(state);
            true
        })?;
        // What has not been touched may be there all the same.
        Some(states[..2] == [State::Shared, State::Own] && states[2] != State::Own)
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

    const PAGE: usize = 4096;

    fn large() -> (Vec<u8>, Segment) {
        let bytes: Vec<u8> = (0..WORTH_KEEPING / 2)
            .flat_map(|i| (i as u16).to_le_bytes())
            .collect();
        let segment = Segment::copy_of(&bytes).unwrap();
        (bytes, segment)
    }

    /// As it arrives at a peer.
    fn passed(segment: &Segment) -> io::Result<Segment> {
        let mut fds = segment
            .descriptors()
            .map(|fd| fd.try_clone_to_owned().unwrap());
        Segment::receive(fds.next().unwrap(), segment.len(), fds.next())
    }

    fn content(segment: &Segment) -> Vec<u8> {
        let mut read = b"before".to_vec();
        segment.append_to(&mut read);
        read.split_off(6)
    }

    #[test]
    fn what_is_mapped_goes_on_with_its_changes_and_nothing_else() {
        let (mut bytes, first) = large();
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
        for at in [3 * PAGE, 4 * PAGE + 1, 9 * PAGE, WORTH_KEEPING - 1] {
            write(&mut bytes, &mapping, at);
        }
        assert_eq!(mapping.changed().unwrap().len(), 3);
        let changed = unsafe { mapping.segment().unwrap() };
        assert_eq!((changed.weight(), changed.len()), (2, WORTH_KEEPING));
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
        write(&mut further, &there, 20 * PAGE);
        let copy = unsafe { there.duplicate().unwrap() };
        let back = passed(&unsafe { there.segment().unwrap() }).unwrap();
        write(&mut further.clone(), &there, 21 * PAGE);
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
        // SAFETY: it is nobody else's.
        unsafe { mapping.bytes_mut()[..WORTH_KEEPING / FEW].fill(1) };
        assert!(mapping.changed().is_some());
        // SAFETY: as above.
        unsafe { mapping.bytes_mut()[..=WORTH_KEEPING / FEW].fill(1) };
        assert!(mapping.changed().is_none());
    }

    #[test]
    fn changes_that_do_not_fit_are_refused() {
        let (_, segment) = large();
        let attempt = |runs: &[(u64, u64)], bytes: usize| {
            let mut table: Vec<u8> = runs
                .iter()
                .flat_map(|r| [r.0, r.1])
                .flat_map(u64::to_le_bytes)
                .collect();
            table.resize(table.len() + bytes, 0);
            let changes = Segment::copy_of(&table).unwrap();
            let fd = |segment: &Segment| segment.base.fd.try_clone().unwrap();
            Segment::receive(fd(&segment), segment.len(), Some(fd(&changes)))
                .map(|s| content(&s).len())
        };
        let end = WORTH_KEEPING as u64;
        assert_eq!(
            attempt(&[(0, 4), (end - 4, end), (0, 0)], 8).unwrap(),
            WORTH_KEEPING
        );
        for (runs, bytes) in [
            (&[(0, 4), (0, 0)][..], 5),
            (&[(0, 4), (0, 0)], 3),
            (&[(end - 4, end + 1), (0, 0)], 5),
            (&[(4, 8), (0, 4), (0, 0)], 8),
            (&[(0, 8), (4, 12), (0, 0)], 16),
            (&[(8, 4), (0, 0)], 4),
            (&[(u64::MAX - 3, u64::MAX), (0, 0)], 3),
            (&[(0, 4)], 0),
            (&[(0, 4)], 4),
        ] {
            assert!(attempt(runs, bytes).is_err(), "{runs:?} {bytes}");
        }
        let many: Vec<_> = (0..=MOST_RUNS as u64)
            .map(|i| (2 * i, 2 * i + 1))
            .chain([(0, 0)])
            .collect();
        assert!(attempt(&many, many.len() - 1).is_err());
    }
}
