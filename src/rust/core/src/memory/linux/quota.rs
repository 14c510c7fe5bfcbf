//! How many descriptors and mappings this process spends on segments.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit};

use crate::descriptors;

/// Mappings held at a time. The system allows a process 65,530 unless told otherwise.
pub(super) const MOST_MAPPINGS: usize = 16_384;
/// Of the descriptors that are not held for long, one in so many may be a segment's.
const SHARE: usize = 4;
/// A system may say that there is no limit.
const MOST_SEGMENTS: usize = 16_384;

/// Counts what this process holds of a limited resource.
pub(super) struct Quota(AtomicUsize);

pub(super) static SEGMENTS: Quota = Quota(AtomicUsize::new(0));
pub(super) static MAPPINGS: Quota = Quota(AtomicUsize::new(0));

/// One unit of a [`Quota`], given back when dropped.
pub(super) struct QuotaSlot(&'static Quota);

impl Quota {
    pub(super) fn take(&'static self) -> (QuotaSlot, usize) {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        (QuotaSlot(self), before)
    }

    pub(super) fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn take_within(&'static self, most: usize) -> Option<QuotaSlot> {
        let (slot, before) = self.take();
        (before < most).then_some(slot)
    }
}

impl Drop for QuotaSlot {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Segments that this process may make; 0 if it may not write so much to a file.
pub(super) fn most_segments() -> usize {
    static MAY_WRITE: OnceLock<bool> = OnceLock::new();
    // Beyond such a limit a write would end the process by a signal.
    if !*MAY_WRITE.get_or_init(|| getrlimit(Resource::Fsize).current.is_none()) {
        return 0;
    }
    (descriptors::spare() / SHARE).min(MOST_SEGMENTS)
}
