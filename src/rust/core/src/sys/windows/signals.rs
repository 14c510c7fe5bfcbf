//! Waiting where there are no signals. Windows runs the handler of a Ctrl-C in a thread of its own, so a wait of the main
//! thread does not end by itself: [`nudge`] has it ask its [`Attention`] again.

use std::os::windows::io::{AsRawHandle, BorrowedHandle, RawHandle};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::handles::{self, Event};
use crate::sys::attention::{Attention, Polled};

/// Runs `f`: there are no signals to block.
pub(crate) fn with_all_blocked<T>(f: impl FnOnce() -> T) -> T {
    f()
}

fn nudged() -> &'static Event {
    static NUDGED: OnceLock<Event> = OnceLock::new();
    NUDGED.get_or_init(|| Event::new().expect("an event"))
}

/// Has the main thread, if it waits, ask its [`Attention`] whether it is interrupted. For the handler of a Ctrl-C, after it
/// has noted that; from any thread.
pub fn nudge() {
    nudged().set();
}

/// Waits until `handle` is signalled, the time is over, or `attention` ends it.
pub(crate) fn poll_in(
    handle: BorrowedHandle<'_>,
    timeout: Option<Duration>,
    attention: &impl Attention,
) -> Polled {
    // First: a nudge that comes after the question ends the wait.
    nudged().reset();
    if attention.is_interrupted() {
        return Polled::Interrupted;
    }
    let mut all: SmallVec<[RawHandle; 8]> =
        SmallVec::from_slice(&[handle.as_raw_handle(), nudged().raw()]);
    // More than can be waited for are left out.
    attention.descriptors(&mut |other| {
        if all.len() < handles::MOST {
            all.push(other);
        }
    });
    let due = attention
        .until()
        .map(|until| until.saturating_duration_since(Instant::now()))
        .filter(|due| timeout.is_none_or(|timeout| *due < timeout));
    match handles::wait_any(&all, due.or(timeout)) {
        Ok(Some(0)) => Polled::Readable,
        Ok(Some(1)) if attention.is_interrupted() => Polled::Interrupted,
        // The caller looks again at what it waits for.
        Ok(Some(1)) => Polled::Readable,
        Ok(Some(_)) => Polled::Interrupted,
        Ok(None) if due.is_some() => Polled::Interrupted,
        Ok(None) => Polled::TimedOut,
        // One of the caller's handles is none.
        Err(_) => Polled::Interrupted,
    }
}
