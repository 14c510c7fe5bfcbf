//! What R wants to do while its main thread waits in one of our routines.
//!
//! R has no event loop of its own there. So a wait ends, as if interrupted, when
//!
//! - the user presses Ctrl-C,
//! - a task has sent a value ahead, for a function given as `.on_report`,
//! - from R 4.5 on, a descriptor of R's input handlers is readable (those of packages later and httpgd,
//!   X11 windows and the like: see `R_ext/eventloop.h`),
//! - [`PERIOD`] is over: for `setTimeLimit()`, for input handlers before R 4.5, and for handlers that R polls (`R_PolledEvents`, such
//!   as Tcl/Tk's), which give no sign and tell nobody when they are due.
//!
//! Its caller then calls [`serve`] and waits again. That may run any R code, which may use the
//! mirai that are waited for, change daemons, or leave by a long jump. So the caller must own
//! nothing then, and must look at everything anew.

use std::cell::Cell;
#[cfg(all(unix, r_4_5))]
use std::ffi::c_int;
use std::ffi::c_void;
use std::time::{Duration, Instant};

use extendr_ffi::{R_CallMethodDef, R_NilValue, SEXP};
use mirai_core::sys::{Attention, Waitable};

use crate::{promises, r};

pub(crate) fn routines() -> Vec<R_CallMethodDef> {
    vec![r::routine(c"serve_events", serve_events as *const (), 0)]
}

/// How long a wait lasts at most before [`serve`] is called. It takes some microseconds.
const PERIOD: Duration = Duration::from_millis(100);

/// How long the input handlers rest, from R 4.5 on, of which one has left something to read, so that one which
/// never reads does not take the whole processor.
#[cfg(all(unix, r_4_5))]
const REST: Duration = Duration::from_millis(10);

/// `InputHandler` of R_ext/eventloop.h, whose list is part of R's API from R 4.5 on.
#[cfg(all(unix, r_4_5))]
#[repr(C)]
struct InputHandler {
    activity: c_int,
    descriptor: c_int,
    handler: Option<unsafe extern "C-unwind" fn(*mut c_void)>,
    next: *mut InputHandler,
    active: c_int,
    data: *mut c_void,
}

#[cfg(all(unix, r_4_5))]
extern "C" {
    static mut R_InputHandlers: *mut InputHandler;
}

/// Of a handler for the terminal: while R waits, nobody reads what is typed.
#[cfg(all(unix, r_4_5))]
const STDIN: c_int = 2;

struct State {
    /// Until when input handlers are left alone.
    rest: Cell<Option<Instant>>,
    /// Whether a handler that was called from here is running.
    busy: Cell<bool>,
}

// SAFETY: only used on R's main thread, as everything in this crate.
unsafe impl Sync for State {}

static STATE: State = State {
    rest: Cell::new(None),
    busy: Cell::new(false),
};

/// Ends a wait when R has something to do. Made anew for each wait.
#[derive(Clone, Copy)]
pub(crate) struct Events {
    until: Instant,
    input: bool,
}

impl Events {
    pub(crate) fn new() -> Events {
        let now = Instant::now();
        let rest = STATE.rest.get().filter(|rest| *rest > now);
        Events {
            until: rest.unwrap_or(now + PERIOD),
            input: rest.is_none() && !STATE.busy.get(),
        }
    }
}

impl Attention for Events {
    fn is_interrupted(&self) -> bool {
        r::interrupted() || promises::has_reports()
    }

    fn descriptors(&self, add: &mut dyn FnMut(Waitable)) {
        if self.input {
            each_input(|_, fd| add(fd));
        }
    }

    fn until(&self) -> Option<Instant> {
        Some(self.until)
    }
}

/// Lets R act on Ctrl-C, its time limits, polled events, input handlers and reports. Often does not return.
///
/// # Safety
/// On R's main thread. No Rust value that owns anything may be alive in the callers' frames.
pub(crate) unsafe fn serve() {
    // SAFETY: as this function demands.
    unsafe {
        r::obey_interrupt();
        run_input_handlers();
        promises::tell_reports();
    }
}

/// `.Call(serve_events)`: after a routine has said that R has something to do.
unsafe extern "C-unwind" fn serve_events() -> SEXP {
    // SAFETY: R calls it on its main thread, and this owns nothing.
    unsafe {
        serve();
        R_NilValue
    }
}

#[cfg(not(all(unix, r_4_5)))]
fn each_input(_f: impl FnMut(*mut c_void, Waitable)) {}

#[cfg(not(unix))]
unsafe fn run_input_handlers() {}

/// The API of older R has no other way to its input handlers than to sleep. That ends at once, and calls
/// them, if the descriptor of one is readable, and takes a millisecond if not, once in a [`PERIOD`].
#[cfg(all(unix, not(r_4_5)))]
unsafe fn run_input_handlers() {
    // SAFETY: on R's main thread; `sleep` has the type that R expects, and long jumps leave by the clean-up, which
    // clears `busy`.
    unsafe {
        if !STATE.busy.replace(true) {
            let null = std::ptr::null_mut();
            r::R_ExecWithCleanup(Some(sleep), null, Some(end_handler), null);
        }
    }
}

#[cfg(all(unix, not(r_4_5)))]
unsafe extern "C" fn sleep(_: *mut c_void) -> SEXP {
    // SAFETY: on R's main thread; the call is protected.
    unsafe {
        use extendr_ffi::{
            R_BaseEnv, Rf_allocVector, Rf_install, Rf_protect, Rf_unprotect, SEXPTYPE,
        };
        let seconds = Rf_protect(Rf_allocVector(SEXPTYPE::REALSXP, 1));
        *extendr_ffi::REAL(seconds) = 0.001;
        let call = Rf_protect(r::Rf_lang2(Rf_install(c"Sys.sleep".as_ptr()), seconds));
        let value = r::Rf_eval(call, R_BaseEnv);
        Rf_unprotect(2);
        value
    }
}

/// Calls `f`, which must not change the list, with each input handler and its descriptor.
#[cfg(all(unix, r_4_5))]
fn each_input(mut f: impl FnMut(*mut InputHandler, Waitable)) {
    // SAFETY: R's list, which only its main thread reads and changes.
    unsafe {
        let mut at = R_InputHandlers;
        while let Some(input) = at.as_ref() {
            if input.descriptor > 0 && input.activity != STDIN && input.handler.is_some() {
                f(at, input.descriptor);
            }
            at = input.next;
        }
    }
}

/// Calls the handlers of all descriptors that are readable now.
#[cfg(all(unix, r_4_5))]
unsafe fn run_input_handlers() {
    // SAFETY: on R's main thread. A handler is called only if it is still in R's list. A long jump leaves by the clean-up,
    // which clears `busy`, and nothing is owned then.
    unsafe {
        let now = Instant::now();
        if STATE.busy.get() || STATE.rest.get().is_some_and(|rest| rest > now) {
            return;
        }
        STATE.rest.set(None);
        // Few, and on the stack: a handler may leave by a long jump.
        let mut ready = [(std::ptr::null_mut(), 0); 16];
        let mut n = 0;
        each_input(|input, fd| {
            if n < ready.len() && is_readable(fd) {
                ready[n] = (input, fd);
                n += 1;
            }
        });
        for (input, fd) in &ready[..n] {
            // Another handler may have removed this one, or put another in its place.
            let mut there = false;
            each_input(|other, descriptor| there |= other == *input && descriptor == *fd);
            if there {
                STATE.busy.set(true);
                let data = input.cast();
                r::R_ExecWithCleanup(
                    Some(call_handler),
                    data,
                    Some(end_handler),
                    std::ptr::null_mut(),
                );
            }
        }
        if n > 0 {
            let mut readable = false;
            each_input(|_, fd| readable |= is_readable(fd));
            if readable {
                STATE.rest.set(Some(Instant::now() + REST));
            }
        }
    }
}

#[cfg(all(unix, r_4_5))]
unsafe extern "C" fn call_handler(input: *mut c_void) -> SEXP {
    // SAFETY: `run_input_handlers` passes a handler that is in R's list.
    unsafe {
        let input = input.cast::<InputHandler>();
        if let Some(handler) = (*input).handler {
            handler((*input).data);
        }
        R_NilValue
    }
}

#[cfg(unix)]
unsafe extern "C" fn end_handler(_: *mut c_void) {
    STATE.busy.set(false);
}

/// Also true of one that has been closed: its handler shall see to that.
#[cfg(all(unix, r_4_5))]
fn is_readable(fd: Waitable) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: a valid pointer to one descriptor.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}
