//! Keeping signals on the thread that they are meant for.
//!
//! The language runtime expects its signals (Ctrl-C above all) on its main
//! thread. So our threads block every signal, and the main thread waits in a
//! call that lets SIGINT in at the very moment at which it begins to wait.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::sys::attention::{Attention, Polled};

/// Runs `f` with every signal blocked; threads started in it inherit that.
pub(crate) fn with_all_blocked<T>(f: impl FnOnce() -> T) -> T {
    let mut all = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the set it is given.
    let all = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        all.assume_init()
    };
    with_blocked(&all, |_| f())
}

fn with_blocked<T>(set: &libc::sigset_t, f: impl FnOnce(&libc::sigset_t) -> T) -> T {
    /// Restores the mask also when `f` panics.
    struct Restore(libc::sigset_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: the mask was filled in by pthread_sigmask below.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
        }
    }
    let mut old = MaybeUninit::uninit();
    // SAFETY: both pointers are valid; SIG_BLOCK with a valid set cannot fail.
    let old = unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, set, old.as_mut_ptr());
        Restore(old.assume_init())
    };
    f(&old.0)
}

/// Blocks no signal. For a process just forked, also between fork and exec: it inherits the mask of the thread that forks
/// it. The I/O thread blocks every signal, and what it starts could neither be interrupted nor be asked to end.
pub(crate) fn unblock_all() {
    let mut none = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Waits until `fd` is readable, the time is over, or `attention` ends it.
///
/// [`Attention::is_interrupted`] is asked with SIGINT blocked, and the wait lets it in again
/// atomically: a SIGINT never falls into the gap between asking and waiting.
pub(crate) fn poll_in(
    fd: BorrowedFd<'_>,
    timeout: Option<Duration>,
    attention: &impl Attention,
) -> Polled {
    poll_in_either(fd, None, timeout, attention).unwrap_or(Polled::Readable)
}

/// As [`poll_in`]. `None`: nothing else has happened, but `beside` is readable.
pub(crate) fn poll_in_either(
    fd: BorrowedFd<'_>,
    beside: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
    attention: &impl Attention,
) -> Option<Polled> {
    let mut sigint = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    let sigint = unsafe {
        libc::sigemptyset(sigint.as_mut_ptr());
        libc::sigaddset(sigint.as_mut_ptr(), libc::SIGINT);
        sigint.assume_init()
    };
    with_blocked(&sigint, |outer| {
        if attention.is_interrupted() {
            return Some(Polled::Interrupted);
        }
        let mut fds = Descriptors::from_slice(&[fd.as_raw_fd()]);
        attention.descriptors(&mut |fd| fds.push(fd));
        // Last, and not if the time is over: what never ends must not keep the wait from ending.
        let beside = beside.map(|fd| {
            fds.push(fd.as_raw_fd());
            fds.len() - 1
        });
        let due = attention
            .until()
            .map(|until| until.saturating_duration_since(Instant::now()))
            .filter(|due| timeout.is_none_or(|timeout| *due < timeout));
        let timeout = due.or(timeout);
        let over = timeout.is_some_and(|timeout| timeout.is_zero());
        let timeout = timeout.map(|t| libc::timespec {
            tv_sec: t.as_secs().min(i32::MAX as u64) as libc::time_t,
            tv_nsec: t.subsec_nanos() as _,
        });
        Some(match wait_readable(&fds, timeout.as_ref(), outer) {
            Woken::By(0) => Polled::Readable,
            Woken::By(at) if Some(at) == beside && over => match due {
                Some(_) => Polled::Interrupted,
                None => Polled::TimedOut,
            },
            Woken::By(at) if Some(at) == beside => return None,
            Woken::By(_) => Polled::Interrupted,
            Woken::Timeout if due.is_some() => Polled::Interrupted,
            Woken::Timeout => Polled::TimedOut,
            Woken::Signal if attention.is_interrupted() => Polled::Interrupted,
            // The caller looks again at what it waits for.
            Woken::Signal => Polled::Readable,
        })
    })
}

/// The descriptor that is waited for, then those of the [`Attention`], then the one beside.
type Descriptors = SmallVec<[RawFd; 8]>;

/// How a wait for several descriptors has ended.
enum Woken {
    /// The first one that is readable.
    By(usize),
    Timeout,
    Signal,
}

#[cfg(not(target_vendor = "apple"))]
fn wait_readable(fds: &[RawFd], timeout: Option<&libc::timespec>, mask: &libc::sigset_t) -> Woken {
    let mut fds: SmallVec<[libc::pollfd; 8]> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: *fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let timeout = timeout.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: all pointers are valid for the call or null where that is allowed.
    let n = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as _, timeout, mask) };
    match n {
        0 => Woken::Timeout,
        1.. => Woken::By(
            fds.iter()
                .position(|fd| fd.revents != 0)
                .unwrap_or_default(),
        ),
        _ => Woken::Signal,
    }
}

/// macOS has no ppoll. This variant of its pselect takes descriptors beyond `FD_SETSIZE`, and changes the mask in the
/// same system call as it waits.
#[cfg(target_vendor = "apple")]
fn wait_readable(fds: &[RawFd], timeout: Option<&libc::timespec>, mask: &libc::sigset_t) -> Woken {
    unsafe extern "C" {
        #[link_name = "pselect$DARWIN_EXTSN"]
        fn pselect(
            nfds: libc::c_int,
            readable: *mut u32,
            writable: *mut u32,
            failed: *mut u32,
            timeout: *const libc::timespec,
            mask: *const libc::sigset_t,
        ) -> libc::c_int;
    }
    // A set of descriptors has a bit for each, in words of 32.
    let place = |fd: RawFd| (fd as usize / 32, 1 << (fd as usize % 32));
    let valid = || fds.iter().copied().filter(|fd| *fd >= 0);
    let most = valid().max().unwrap_or_default();
    let mut set = vec![0u32; most as usize / 32 + 1];
    for (word, bit) in valid().map(place) {
        set[word] |= bit;
    }
    let none = std::ptr::null_mut();
    let timeout = timeout.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the set has bits for all descriptors up to `most`. The other pointers are valid, or null where that is
    // allowed.
    match unsafe { pselect(most + 1, set.as_mut_ptr(), none, none, timeout, mask) } {
        0 => Woken::Timeout,
        1.. => {
            let is_set = |fd: &RawFd| {
                let (word, bit) = place(*fd);
                *fd >= 0 && set[word] & bit != 0
            };
            Woken::By(fds.iter().position(is_set).unwrap_or_default())
        }
        _ => Woken::Signal,
    }
}
