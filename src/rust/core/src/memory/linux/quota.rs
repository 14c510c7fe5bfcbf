//! How many descriptors and mappings this process spends on segments.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit};

use crate::descriptors;

/// Limit of mappings held at a time. By default Linux allows a process 65,530.
pub(super) const MOST_MAPPINGS: usize = 16_384;
/// Segments may use one in `SHARE` of the spare descriptors.
const SHARE: usize = 4;
/// Limit of segments where the system sets none for descriptors.
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

/// Segments that this process may make; 0 if it has a limit of file size (`RLIMIT_FSIZE`).
pub(super) fn most_segments() -> usize {
    static MAY_WRITE: OnceLock<bool> = OnceLock::new();
    // A write beyond that limit ends the process by SIGXFSZ.
    if !*MAY_WRITE.get_or_init(|| getrlimit(Resource::Fsize).current.is_none()) {
        return 0;
    }
    (descriptors::spare() / SHARE).min(MOST_SEGMENTS)
}
