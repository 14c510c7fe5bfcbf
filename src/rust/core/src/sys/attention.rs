//! What a wait of the main thread looks at besides the event that it waits for, and how it ends.

use std::time::Instant;

use super::Waitable;

/// What ends a wait of the main thread besides the event that it waits for. A closure that tells
/// whether the user has pressed Ctrl-C is one.
pub trait Attention {
    /// Whether the caller wants to stop waiting. Asked with SIGINT blocked, where there are signals.
    fn is_interrupted(&self) -> bool;

    /// Calls `add` with each [`Waitable`] that ends the wait when it becomes readable, or signalled.
    fn descriptors(&self, _add: &mut dyn FnMut(Waitable)) {}

    /// When the wait ends at the latest, as if interrupted.
    fn until(&self) -> Option<Instant> {
        None
    }
}

impl<F: Fn() -> bool> Attention for F {
    fn is_interrupted(&self) -> bool {
        self()
    }
}

/// How `poll_in` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Polled {
    Readable,
    TimedOut,
    /// The [`Attention`] said so, one of its descriptors is readable, or its time has come.
    Interrupted,
}
