//! Keeping signals on the thread that they are meant for.
//!
//! The language runtime expects its signals (Ctrl-C above all) on its main
//! thread. So our threads block every signal, and the main thread waits in a
//! call that lets SIGINT in at the very moment at which it begins to wait.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

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

/// For a process just forked: no signal is blocked.
#[cfg(target_os = "linux")]
pub(crate) fn restore_defaults() {
    let mut none = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// How [`poll_in`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Polled {
    Readable,
    TimedOut,
    Interrupted,
}

/// Waits until `fd` is readable, the time is over, or `interrupted` says so.
///
/// `interrupted` is asked with SIGINT blocked, and the wait lets it in again
/// atomically: a SIGINT never falls into the gap between asking and waiting.
pub(crate) fn poll_in(
    fd: BorrowedFd<'_>,
    timeout: Option<Duration>,
    interrupted: impl Fn() -> bool,
) -> Polled {
    let mut sigint = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    let sigint = unsafe {
        libc::sigemptyset(sigint.as_mut_ptr());
        libc::sigaddset(sigint.as_mut_ptr(), libc::SIGINT);
        sigint.assume_init()
    };
    with_blocked(&sigint, |outer| {
        if interrupted() {
            return Polled::Interrupted;
        }
        let timeout = timeout.map(|t| libc::timespec {
            tv_sec: t.as_secs().min(i32::MAX as u64) as libc::time_t,
            tv_nsec: t.subsec_nanos() as _,
        });
        match wait_readable(fd, timeout.as_ref(), outer) {
            0 => Polled::TimedOut,
            n if n > 0 => Polled::Readable,
            // Some signal: the caller looks again at what it waits for.
            _ if interrupted() => Polled::Interrupted,
            _ => Polled::Readable,
        }
    })
}

#[cfg(target_os = "linux")]
fn wait_readable(
    fd: BorrowedFd<'_>,
    timeout: Option<&libc::timespec>,
    mask: &libc::sigset_t,
) -> libc::c_int {
    let mut fds = [libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    }];
    let timeout = timeout.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: all pointers are valid for the call or null where that is allowed.
    unsafe { libc::ppoll(fds.as_mut_ptr(), 1, timeout, mask) }
}

/// Where there is no ppoll. Descriptors beyond FD_SETSIZE do not fit into a
/// set; ours is opened early and is small.
#[cfg(not(target_os = "linux"))]
fn wait_readable(
    fd: BorrowedFd<'_>,
    timeout: Option<&libc::timespec>,
    mask: &libc::sigset_t,
) -> libc::c_int {
    let fd = fd.as_raw_fd();
    assert!((fd as usize) < libc::FD_SETSIZE, "descriptor too large");
    let mut set = MaybeUninit::uninit();
    let timeout = timeout.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: FD_ZERO initialises the set, `fd` is within it, and the other
    // pointers are valid or null where that is allowed.
    unsafe {
        libc::FD_ZERO(set.as_mut_ptr());
        let mut set = set.assume_init();
        libc::FD_SET(fd, &mut set);
        let none = std::ptr::null_mut();
        libc::pselect(fd + 1, &mut set, none, none, timeout, mask)
    }
}
