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

/// Things of which there may be only so many.
pub(super) struct Count(AtomicUsize);

pub(super) static SEGMENTS: Count = Count(AtomicUsize::new(0));
pub(super) static MAPPINGS: Count = Count(AtomicUsize::new(0));

/// One of them.
pub(super) struct Place(&'static Count);

impl Count {
    pub(super) fn take(&'static self) -> (Place, usize) {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        (Place(self), before)
    }

    pub(super) fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn take_within(&'static self, most: usize) -> Option<Place> {
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
pub(super) fn most_segments() -> usize {
    static MAY_WRITE: OnceLock<bool> = OnceLock::new();
    // Beyond such a limit a write would end the process by a signal.
    if !*MAY_WRITE.get_or_init(|| getrlimit(Resource::Fsize).current.is_none()) {
        return 0;
    }
    (descriptors::spare() / SHARE).min(MOST_SEGMENTS)
}
