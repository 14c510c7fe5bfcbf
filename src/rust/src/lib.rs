//! The R side of mirai: the only crate that knows R.
//!
//! Everything here runs on R's main thread. There are two kinds of entry points. Those of set-up and inspection are
//! ordinary Rust functions, whose arguments and results [`functions`] converts. Those on the path of every task
//! ([`submit`], [`tasks`], [`waiting`], [`daemon`]) are plain `.Call` routines on `SEXP`, because there each conversion
//! counts.
//!
//! # Safety
//!
//! R's C interface is unsafe to use. An `unsafe fn` of this crate that has no section *Safety* of its own demands of its
//! caller just these rules:
//!
//! 1. It is called on R's main thread.
//! 2. Each `SEXP` is an R object of the type that the documentation names, and is protected from R's collector until the
//!    function returns. R protects the arguments of `.Call` routines and of ALTREP methods, and keeps symbols, loaded
//!    namespaces and its constants.
//! 3. If the function may call back into R, no Rust value that owns anything is alive in the callers' frames: an R error
//!    is a long jump, which leaves Rust frames without running destructors. Exceptions are said where they are: code that
//!    is called within `R_ToplevelExec()` or the like, where long jumps end, and allocations, which fail only if R is out
//!    of memory: then Rust values are lost.
//!
//! A function that makes an R object returns it unprotected.

// Each unsafe block says which of these rules or what else makes it sound.
#![warn(clippy::undocumented_unsafe_blocks)]

mod altrep;
mod checkpoint;
mod cleanup;
mod daemon;
mod daemons;
mod error;
mod events;
mod failures;
mod forks;
mod functions;
mod gc;
mod launch;
mod log;
mod monitor;
mod mrg32k3a;
mod notes;
mod promises;
mod r;
mod relay;
mod rules;
mod serialize;
mod session;
mod stack;
mod streams;
mod submit;
mod tasks;
mod tls;
mod urls;
mod waiting;

use extendr_ffi::{
    DllInfo, R_CallMethodDef, R_forceSymbols, R_registerRoutines, R_useDynamicSymbols, Rboolean,
};

/// Called by `R_init_mirai()` when R loads the shared library: registers the
/// routines.
///
/// # Safety
/// `info` is the pointer that R passes to the initialisation routine.
#[no_mangle]
pub unsafe extern "C" fn mirai_register(info: *mut DllInfo) {
    // SAFETY: R calls it once on its main thread, and `info` is its own. R copies the table, whose names outlive
    // the call.
    unsafe {
        quiet_panics();
        forks::loaded();
        // Now, because it calls R, which could come back to ask for it.
        serialize::header();
        altrep::register(info);
        let routines = [
            daemons::functions(),
            launch::functions(),
            log::functions(),
            monitor::functions(),
            relay::functions(),
            session::functions(),
            streams::functions(),
            urls::functions(),
            checkpoint::routines(),
            tasks::routines(),
            submit::routines(),
            waiting::routines(),
            events::routines(),
            promises::routines(),
            serialize::routines(),
            daemon::routines(),
            launch::routines(),
            notes::routines(),
            monitor::routines(),
        ]
        .into_iter()
        .flatten();
        let end = R_CallMethodDef {
            name: std::ptr::null(),
            fun: None,
            numArgs: 0,
        };
        let table: Vec<R_CallMethodDef> = routines.chain([end]).collect();
        let none = std::ptr::null();
        // R copies the table.
        R_registerRoutines(info, none, table.as_ptr(), none.cast(), none.cast());
        R_useDynamicSymbols(info, Rboolean::FALSE);
        R_forceSymbols(info, Rboolean::TRUE);
    }
}

/// On R's main thread a panic becomes an R error that has its message (see [`functions`]). On any other thread it is a
/// bug, and printed.
fn quiet_panics() {
    let main = std::thread::current().id();
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() != main {
            default(panic);
        }
    }));
}
