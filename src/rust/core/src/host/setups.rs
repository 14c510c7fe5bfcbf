//! Set-up that daemons have been given, for those that take the place of a daemon that is gone.
//!
//! It is kept from its submission on, and forgotten if it does not succeed on each daemon: one that ends daemons must not
//! be given to the next. The memory is bounded.

use std::sync::Arc;

use super::Shared;
use super::submit::submission;
use crate::dispatcher::{Action, Dispatcher, Target, Time};
use crate::task::{Outcome, Payload, Task, next_task_id};

/// Set-ups that are kept: the last that differ.
const MOST_SETUPS: usize = 100;
/// One that has more bytes is not kept.
const MOST_BYTES: u64 = 16 << 20;

#[derive(Default)]
pub(super) struct Setups {
    /// Whether there are daemons that will be started again.
    wanted: bool,
    last: u64,
    /// The oldest first.
    kept: Vec<Setup>,
}

struct Setup {
    number: u64,
    payload: Payload,
    /// Connections up to this number have a task of their own for it.
    up_to: u64,
}

impl Setups {
    /// Returns its number, if it is kept.
    fn keep(&mut self, payload: Payload, up_to: u64) -> Option<u64> {
        if !self.wanted || payload.body.size() > MOST_BYTES {
            return None;
        }
        let same = |body: &crate::memory::Body| {
            body.insets().is_empty()
                && payload.body.insets().is_empty()
                && body.bytes == payload.body.bytes
        };
        self.kept.retain(|other| !same(&other.payload.body));
        if self.kept.len() == MOST_SETUPS {
            self.kept.remove(0);
        }
        self.last += 1;
        self.kept.push(Setup {
            number: self.last,
            payload,
            up_to,
        });
        Some(self.last)
    }
}

impl Shared {
    /// Daemons will be started again.
    pub(super) fn want_setups(&self) {
        self.setups.lock().wanted = true;
    }

    /// Keeps what these tasks do, one for each daemon, unless one of them fails. Connections up to the number `up_to` have
    /// one of these tasks.
    pub(super) fn keep_setup(self: &Arc<Self>, tasks: &[Arc<Task>], up_to: u64) {
        let Some(payload) = tasks.first().and_then(|task| task.payload()) else {
            return;
        };
        let Some(number) = self.setups.lock().keep(payload, up_to) else {
            return;
        };
        for task in tasks {
            let shared = Arc::downgrade(self);
            task.on_resolved(Box::new(move |outcome| {
                if matches!(outcome, Outcome::Value(_)) {
                    return;
                }
                if let Some(shared) = shared.upgrade() {
                    let kept = &mut shared.setups.lock().kept;
                    kept.retain(|other| other.number != number);
                }
            }));
        }
    }

    /// Hands the set-ups over for the daemon that joins next.
    pub(super) fn set_up_next(
        &self,
        dispatcher: &mut Dispatcher<Arc<Task>>,
        now: Time,
        out: &mut Vec<Action<Arc<Task>>>,
    ) {
        let next = dispatcher.counts().cumulative + 1;
        let setups = self.setups.lock();
        for setup in setups.kept.iter().filter(|setup| setup.up_to < next) {
            let task = Arc::new(Task::new(next_task_id(), setup.payload.clone()));
            dispatcher.handle(now, submission(task, Target::Join(0), None, None), out);
        }
    }
}
