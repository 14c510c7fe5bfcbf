//! The arguments of `daemon()`.

use std::ffi::c_int;
use std::time::Duration;

use extendr_ffi::{INTEGER, LOGICAL, SEXP, VECTOR_ELT};
use mirai_core::worker::{AutoExit, Options};

use crate::r;

/// Arguments of `daemon()`, checked by R.
pub struct Settings {
    pub url: String,
    pub dial: Options,
    /// How to know the host: certificates, or the name of a file with them.
    pub tls: Option<String>,
    pub cleanup: c_int,
    pub output: bool,
    pub idletime: Option<Duration>,
    pub walltime: Option<Duration>,
    pub maxtasks: Option<u64>,
    pub timerstart: u64,
}

impl Settings {
    /// `settings` is what `daemon()` in R/daemon.R makes: a list in this order.
    pub unsafe fn read(url: SEXP, settings: SEXP) -> Settings {
        let number = |i| r::as_number(VECTOR_ELT(settings, i)).unwrap_or(f64::INFINITY);
        let flag = |i| *LOGICAL(VECTOR_ELT(settings, i)) == 1;
        let time = |i| Duration::try_from_secs_f64(number(i) / 1000.0).ok();
        let autoexit = match *INTEGER(VECTOR_ELT(settings, 0)) {
            0 => AutoExit::Never,
            1 => AutoExit::Now,
            i32::MIN => AutoExit::AfterTask,
            signal => AutoExit::Signal(signal - 100),
        };
        let maxtasks = number(5);
        Settings {
            url: r::as_str(url).unwrap_or_default().into(),
            dial: Options {
                autoexit,
                asyncdial: flag(7) || autoexit == AutoExit::Never,
                insist: false,
                tempdir: r::as_str(VECTOR_ELT(settings, 8))
                    .unwrap_or_default()
                    .into(),
                interruptible: flag(9),
                slots: 1,
                trust: None,
            },
            tls: r::as_str(VECTOR_ELT(settings, 10)).map(String::from),
            cleanup: number(1) as c_int,
            output: flag(2),
            idletime: time(3),
            walltime: time(4),
            maxtasks: maxtasks.is_finite().then_some(maxtasks as u64),
            timerstart: number(6) as u64,
        }
    }
}
