//! What the bell sets.

use std::time::Duration;

use super::handles::Event;
use super::signals::poll_in;
use crate::sys::attention::{Attention, Polled};

/// The waiter of the bell does not read.
pub(in crate::sys) struct Lead;

impl Lead {
    pub(in crate::sys) fn look(&self) {}

    pub(in crate::sys) fn sleeps(&self, _: bool) -> bool {
        false
    }
}

pub(in crate::sys) fn lead() -> Lead {
    Lead
}

pub(in crate::sys) fn leads() -> bool {
    false
}

/// An event that is set while a ring has not been heard.
pub(in crate::sys) struct Token(Event);

impl Token {
    pub(in crate::sys) fn new() -> Token {
        Token(Event::new().expect("an event"))
    }

    pub(in crate::sys) fn put(&self) {
        self.0.set();
    }

    /// Takes away what is there.
    pub(in crate::sys) fn take(&self) {
        self.0.reset();
    }

    /// Waits until there is one, and takes it. A nudge, too, counts as that.
    pub(in crate::sys) fn wait(
        &self,
        timeout: Option<Duration>,
        attention: &impl Attention,
        _: Option<&Lead>,
    ) -> Polled {
        let polled = poll_in(self.0.borrow(), timeout, attention);
        if polled == Polled::Readable {
            self.take();
        }
        polled
    }
}
