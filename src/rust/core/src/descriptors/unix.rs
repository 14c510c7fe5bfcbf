//! Limits of descriptors, as POSIX has them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// No more are asked for.
const MOST: u64 = 65_536;
/// `OPEN_MAX` of macOS: as many it always allows, and more on some machines.
const MOST_ANYWHERE: u64 = 10_240;
/// The first number that `select()` does not take.
const BEYOND_SELECT: i32 = 1024;
/// As many are enough for whatever comes and goes.
const PLENTY: usize = 4096;

/// The soft limit that this process had, and the one that it was raised to.
static RAISED: OnceLock<Option<(u64, u64)>> = OnceLock::new();
/// Descriptors that are held for long, without those of segments.
static OURS: AtomicUsize = AtomicUsize::new(0);

/// Raises the limit as far as that is allowed.
pub(crate) fn raise_limit() {
    RAISED.get_or_init(|| {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let given = current?;
        let raise = |most: u64| {
            let most = maximum.map_or(most, |maximum| maximum.min(most));
            let raised = Rlimit {
                current: Some(most),
                maximum,
            };
            (given < most && setrlimit(Resource::Nofile, raised).is_ok()).then_some((given, most))
        };
        raise(MOST).or_else(|| raise(MOST_ANYWHERE))
    });
    ask_limit();
}

/// The soft limit for processes that are started here, if it is not this process's own. One that
/// somebody has set since it was raised is the user's.
pub(crate) fn given_limit() -> Option<u64> {
    let now = ask_limit() as u64;
    let raised = RAISED.get().copied().flatten();
    raised.and_then(|(given, to)| (now == to).then_some(given))
}

/// Sets the soft limit of this process; may be called between fork and exec.
pub(crate) fn set_limit(current: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(current),
        maximum,
    };
    let _ = setrlimit(Resource::Nofile, limit);
}

/// As it was when last asked for; 0 if it never was.
static LIMIT: AtomicUsize = AtomicUsize::new(0);

fn limit() -> usize {
    match LIMIT.load(Ordering::Relaxed) {
        0 => ask_limit(),
        limit => limit,
    }
}

fn ask_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(MOST);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    LIMIT.store(limit, Ordering::Relaxed);
    limit
}

/// Descriptors that are not held for long: for those that come and go, and for the rest of the process.
pub(crate) fn spare() -> usize {
    limit().saturating_sub(OURS.load(Ordering::Relaxed))
}

/// Whether those that are passed to this process may find no room.
pub(crate) fn are_scarce() -> bool {
    spare() < PLENTY
}

/// So many descriptors, held for long.
#[derive(Debug)]
pub(crate) struct Held(usize);

impl Held {
    pub(crate) fn new(n: usize) -> Held {
        OURS.fetch_add(n, Ordering::Relaxed);
        Held(n)
    }

    /// `None`: what is left would be less than a quarter of all, which values on their way need.
    pub(crate) fn if_spare(n: usize) -> Option<Held> {
        let held = Held::new(n);
        (spare() >= limit() / 4).then_some(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        OURS.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Whether the system has refused a descriptor because this process has as many as it may have.
pub(crate) fn are_exhausted(e: &std::io::Error) -> bool {
    e.raw_os_error() == Some(libc::EMFILE)
}

/// Moves a descriptor to a number of which the rest of the process has no use, if there are such.
pub(crate) fn out_of_the_way(fd: OwnedFd) -> OwnedFd {
    if limit() < 2 * BEYOND_SELECT as usize {
        return fd;
    }
    rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), BEYOND_SELECT).unwrap_or(fd)
}
