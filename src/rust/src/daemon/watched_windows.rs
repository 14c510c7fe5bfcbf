//! What the watcher, the thread that notices cancellation and hang-up while R is busy, may do to this process on
//! Windows.

use std::ffi::{c_int, c_uint, c_void};
use std::path::PathBuf;

use mirai_core::worker::Runtime;

use crate::r;

const SIGINT: c_int = 2;

/// There is no SIGINT that could be ignored.
pub(super) fn obey_the_watcher() {}

/// No signal handler has to be known to R.
pub(super) fn sleep_once() {}

/// What the watcher may do to this R session.
pub(super) struct RSession {
    tempdir: PathBuf,
}

impl RSession {
    /// This process. `tempdir` is its session directory.
    pub(super) fn new(tempdir: PathBuf) -> RSession {
        RSession { tempdir }
    }
}

#[link(name = "kernel32")]
extern "system" {
    fn GetCurrentProcess() -> *mut c_void;
    fn TerminateProcess(process: *mut c_void, code: c_uint) -> c_int;
}

impl Runtime for RSession {
    /// As R's handler of a Ctrl-C. R looks whether there is one between evaluations, and at the latest after 500 ms in
    /// `Sys.sleep()`.
    fn interrupt(&self) {
        r::set_interrupt();
        mirai_core::sys::nudge();
    }

    fn interrupt_is_pending(&self) -> bool {
        r::interrupt_is_pending()
    }

    fn forget_interrupt(&self) {
        r::clear_interrupt();
    }

    fn exit(&self) {
        // R cannot do it: it is busy.
        let _ = std::fs::remove_dir_all(&self.tempdir);
        // SAFETY: ends the process without running anything of R's or of a DLL's.
        unsafe { TerminateProcess(GetCurrentProcess(), 1) };
    }

    /// Other signals than SIGINT end a process on Windows, as by `tools::pskill()`.
    fn raise(&self, signal: i32) {
        if signal == SIGINT {
            self.interrupt();
        } else {
            self.exit();
        }
    }
}
