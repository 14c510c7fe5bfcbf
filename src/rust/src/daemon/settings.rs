//! The arguments of `daemon()`.

use std::ffi::c_int;
use std::time::Duration;

use extendr_ffi::{SEXP, SEXPTYPE, TYPEOF};
use mirai_core::worker::{AutoExit, Options};

use crate::r;

/// Argument `output`: what becomes of what tasks write to stdout and stderr.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Streams {
    /// `FALSE`
    Discarded,
    /// `TRUE`: it goes where the daemon's streams go, and so do warnings.
    Shown,
    /// `"task"`: it goes to the host with the task's value.
    Kept,
}

/// Arguments of `daemon()`, which R has checked.
pub(super) struct Settings {
    pub url: String,
    /// For the link.
    pub dial: Options,
    /// Certificates by which to recognise the host, or the name of a file with them.
    pub tls: Option<String>,
    /// A sum of the constants of [`cleanup`](crate::cleanup).
    pub cleanup: c_int,
    pub streams: Streams,
    pub idletime: Option<Duration>,
    pub walltime: Option<Duration>,
    pub maxtasks: Option<u64>,
    /// Number of tasks after which `idletime` and `walltime` begin to count.
    pub timerstart: u64,
}

impl Settings {
    /// Reads the list `settings` of `daemon()` in R/daemon.R, by names.
    ///
    /// # Safety
    /// On R's main thread. `url` is a character vector, `settings` a named list; both are protected.
    pub(super) unsafe fn read(url: SEXP, settings: SEXP) -> Settings {
        // SAFETY: as this function demands.
        unsafe {
            let element = |name| r::element(settings, name);
            let text = |name| r::as_str(element(name)).map(String::from);
            let flag = |name| r::as_flag(element(name)) == Some(true);
            let number = |name| r::as_number(element(name)).unwrap_or(f64::INFINITY);
            let milliseconds = |name| Duration::try_from_secs_f64(number(name) / 1000.0).ok();
            let autoexit = autoexit(element("autoexit"));
            let maxtasks = number("maxtasks");
            Settings {
                url: r::as_str(url).unwrap_or_default().into(),
                dial: Options {
                    autoexit,
                    asyncdial: flag("asyncdial") || autoexit == AutoExit::Never,
                    insist: false,
                    tempdir: text("tempdir").unwrap_or_default(),
                    interruptible: flag("interruptible"),
                    slots: 1,
                    trust: None,
                },
                tls: text("tls"),
                cleanup: number("cleanup") as c_int,
                streams: match element("output") {
                    output if TYPEOF(output) == SEXPTYPE::STRSXP => Streams::Kept,
                    output if r::as_flag(output) == Some(true) => Streams::Shown,
                    _ => Streams::Discarded,
                },
                idletime: milliseconds("idletime"),
                walltime: milliseconds("walltime"),
                maxtasks: maxtasks.is_finite().then_some(maxtasks as u64),
                timerstart: number("timerstart") as u64,
            }
        }
    }
}

/// `TRUE`, `FALSE`, `NA`, or the number of a signal.
unsafe fn autoexit(x: SEXP) -> AutoExit {
    // SAFETY: `x` is an element of a list that is protected.
    unsafe {
        if TYPEOF(x) == SEXPTYPE::LGLSXP {
            match r::as_flag(x) {
                Some(true) => AutoExit::Now,
                Some(false) => AutoExit::Never,
                None => AutoExit::AfterTask,
            }
        } else {
            AutoExit::Signal(r::as_number(x).unwrap_or_default() as c_int)
        }
    }
}
