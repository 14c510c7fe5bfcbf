//! What the kernel knows of this process's pages, and huge pages.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;

use super::Segment;
use crate::sys::page_size;

/// Huge pages are worth asking for from this size on.
const WORTH_HUGE: usize = 4 << 20;
/// The size of a huge page on most machines. Where it differs, the advice has no effect.
const HUGE: usize = 2 << 20;

/// Asks the kernel for huge pages for new memory that is about to be filled, if it is large. Filling ordinary pages
/// takes three times as long; most of that time goes into page faults.
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
pub fn private_bytes() -> Option<usize> {
    // proc(5): size, resident and shared are the first fields, in pages.
    let fields = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut fields = fields.split(' ').skip(1).map(str::parse::<usize>);
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(resident.saturating_sub(shared) * page_size())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Never touched, so it is as the file has it.
    Absent,
    /// The file's.
    Shared,
    /// Has been written to.
    Own,
}

/// Calls `each` for `pages` pages from `address` on, in order, while it returns true. `None`: it returned false, or
/// the kernel does not tell.
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
    let first = address / page_size();
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

/// Tests whether the kernel reports page states correctly: an emulator may not.
pub(super) fn tell() -> Option<bool> {
    let size = page_size();
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
