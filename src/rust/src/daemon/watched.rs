//! What the watcher, the thread that notices cancellation and hang-up while R is busy, may do to this process.

use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use extendr_ffi::{R_BaseEnv, Rf_install, Rf_protect, Rf_unprotect};
use mirai_core::worker::Runtime;

use super::evaluate::within_r;
use crate::r::{self, Rf_eval, Rf_lang2};

/// Whether the watcher has sent a SIGINT: see [`obey_the_watcher`].
static ASKED_TO_INTERRUPT: AtomicBool = AtomicBool::new(false);

/// Makes the watcher's SIGINT interrupt R in a daemon that was started with SIGINT ignored. A shell starts background jobs
/// of a script so (`Rscript -e 'mirai::daemon(...)' &`), and R 4.6 keeps ignoring SIGINT except in `Sys.sleep()`. The daemon
/// still ignores Ctrl-C: the handler acts only if the watcher has set `ASKED_TO_INTERRUPT`.
pub(super) fn obey_the_watcher() {
    extern "C" fn handle(_: c_int) {
        if ASKED_TO_INTERRUPT.swap(false, Ordering::SeqCst) {
            r::set_interrupt();
        }
    }
    // SAFETY: the structures are C's, for which all zeros are valid; the handler only stores two numbers.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGINT, std::ptr::null(), &raw mut now);
        if now.sa_sigaction == libc::SIG_IGN {
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = handle as extern "C" fn(c_int) as libc::sighandler_t;
            // Without SA_RESTART: what the task waits for in the system ends.
            libc::sigaction(libc::SIGINT, &raw const new, std::ptr::null_mut());
        }
    }
}

/// Has R sleep once. Only then it knows which handler of SIGINT is to be put back after a sleep (`oldSigintHandler`
/// in R's `sys-std.c`): a SIGINT that came just as R had set its own for its very first sleep would have put back the
/// system's, by which the next SIGINT ends the process. To be called when nobody sends one yet.
pub(super) fn sleep_once() {
    // SAFETY: on the main thread, where R's long jumps end.
    within_r(|| unsafe {
        // One microsecond: R does not set its handler for less.
        let seconds = Rf_protect(r::Rf_ScalarReal(1e-6));
        let call = Rf_protect(Rf_lang2(Rf_install(c"Sys.sleep".as_ptr()), seconds));
        Rf_eval(call, R_BaseEnv);
        Rf_unprotect(2);
    });
}

/// What the watcher may do to this R session.
pub(super) struct RSession {
    main: libc::pthread_t,
    tempdir: PathBuf,
}

impl RSession {
    /// This process; R runs on the calling thread. `tempdir` is its session directory.
    pub(super) fn new(tempdir: PathBuf) -> RSession {
        // SAFETY: it has no conditions and always succeeds.
        let main = unsafe { libc::pthread_self() };
        RSession { main, tempdir }
    }
}

// SAFETY: a thread's name is only used to send it signals; the main thread lives
// as long as the process.
unsafe impl Send for RSession {}
// SAFETY: as above.
unsafe impl Sync for RSession {}

impl Runtime for RSession {
    fn interrupt(&self) {
        ASKED_TO_INTERRUPT.store(true, Ordering::SeqCst);
        // SAFETY: the main thread lives.
        unsafe { libc::pthread_kill(self.main, libc::SIGINT) };
    }

    /// R can miss a SIGINT as it goes to sleep (`R_SelectEx()`, for `Sys.sleep()` and others): it looks whether one is
    /// pending, and only then sets the handler that ends the sleep. One that comes in between is pending until R wakes.
    fn interrupt_is_pending(&self) -> bool {
        r::interrupt_is_pending()
    }

    fn forget_interrupt(&self) {
        r::clear_interrupt();
    }

    fn exit(&self) {
        // R cannot do it: it is busy.
        let _ = std::fs::remove_dir_all(&self.tempdir);
        // SAFETY: ends the process without running anything of R's.
        unsafe { libc::_exit(1) };
    }

    fn raise(&self, signal: i32) {
        // SAFETY: our own process.
        unsafe { libc::kill(libc::getpid(), signal) };
    }
}
