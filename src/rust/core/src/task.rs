//! A task as the host holds it: its payload on the way out, its outcome on the
//! way back. One allocation each, shared by the dispatcher and the user's handle,
//! because a hundred thousand of them may be waiting.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::dispatcher::TaskId;
use crate::memory::{Body, Content};
use crate::protocol::{Kind, Stream};
use crate::sys::Countdown;

/// What a task ended as. A value is the body of the daemon's reply; an error of
/// evaluation is a value too.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Value(Content),
    /// The same, where that is an error of the evaluation.
    Error(Content),
    TimedOut,
    /// The daemon was lost, or the host reset its daemons.
    Reset,
    /// The URL at which its daemon was connected was closed.
    Closed,
    Canceled,
}

impl Outcome {
    /// Whether it is something else than a value.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Outcome::Value(_))
    }
}

/// What is sent to the daemon.
#[derive(Clone, Debug)]
pub struct Payload {
    pub kind: Kind,
    pub stream: Option<Stream>,
    /// What the task has in common with others, and which a daemon is sent once.
    pub constants: Option<Arc<Constants>>,
    pub body: Body,
}

/// What several tasks have in common: made by
/// [`Host::constants`](crate::host::Host::constants). Daemons forget it when the last
/// task that needs it has resolved.
pub struct Constants {
    pub(crate) id: u64,
    pub(crate) body: Body,
    pub(crate) on_drop: Box<dyn Fn(u64) + Send + Sync>,
}

impl Drop for Constants {
    fn drop(&mut self) {
        (self.on_drop)(self.id);
    }
}

impl std::fmt::Debug for Constants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Constants({}, {} bytes)", self.id, self.body.size())
    }
}

/// Called once with what the task ended as, on whichever thread resolves it. Must not block.
pub type Callback = Box<dyn FnOnce(&Outcome) + Send>;

#[derive(Default)]
struct Watchers {
    waiting: Option<Arc<Countdown>>,
    callbacks: Vec<Callback>,
}

/// See the [module documentation](self).
pub struct Task {
    id: TaskId,
    payload: Mutex<Option<Payload>>,
    outcome: OnceLock<Outcome>,
    /// Boxed, because most tasks are never watched one by one.
    watchers: Mutex<Option<Box<Watchers>>>,
}

impl Task {
    pub fn new(id: TaskId, payload: Payload) -> Task {
        Task {
            id,
            payload: Mutex::new(Some(payload)),
            outcome: OnceLock::new(),
            watchers: Mutex::new(None),
        }
    }

    #[cfg(test)]
    pub(crate) fn empty(id: TaskId) -> Task {
        let body = Body::default();
        Task::new(
            id,
            Payload {
                kind: Kind::Task,
                stream: None,
                constants: None,
                body,
            },
        )
    }

    pub fn id(&self) -> TaskId {
        self.id
    }

    /// What to send; `None` once the task has resolved.
    pub(crate) fn payload(&self) -> Option<Payload> {
        self.payload.lock().clone()
    }

    /// Bytes of the body to send.
    pub(crate) fn size(&self) -> u64 {
        self.payload.lock().as_ref().map_or(0, |p| p.body.size())
    }

    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    pub fn is_resolved(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Whether it has resolved to something else than a value.
    pub fn has_failed(&self) -> bool {
        self.outcome().is_some_and(Outcome::is_failure)
    }

    /// Ends the task and tells whoever waits. Only the first call counts.
    pub fn resolve(&self, outcome: Outcome) {
        if self.settle(outcome) {
            self.announce();
        }
    }

    /// The first half of [`resolve`](Self::resolve), which takes no time: the
    /// outcome can be seen. True if the second shall follow.
    pub(crate) fn settle(&self, outcome: Outcome) -> bool {
        self.outcome.set(outcome).is_ok()
    }

    /// The second half: frees what was sent and tells whoever waits.
    pub(crate) fn announce(&self) {
        *self.payload.lock() = None;
        // After the outcome is set: see `watch` and `on_resolved`.
        if let Some(watchers) = self.watchers.lock().take() {
            if let Some(countdown) = watchers.waiting {
                countdown.tick(self.has_failed());
            }
            if let Some(outcome) = self.outcome() {
                for callback in watchers.callbacks {
                    callback(outcome);
                }
            }
        }
    }

    /// Ticks the countdown upon resolution. False if that has happened already,
    /// in which case it will not tick.
    pub(crate) fn watch(&self, countdown: &Arc<Countdown>) -> bool {
        let mut watchers = self.watchers.lock();
        if self.is_resolved() {
            return false;
        }
        watchers.get_or_insert_default().waiting = Some(countdown.clone());
        true
    }

    /// Takes back [`watch`](Self::watch).
    pub(crate) fn unwatch(&self, countdown: &Arc<Countdown>) {
        if let Some(watchers) = self.watchers.lock().as_mut() {
            watchers
                .waiting
                .take_if(|ours| Arc::ptr_eq(ours, countdown));
        }
    }

    /// Calls `callback` upon resolution; at once if that has happened already.
    pub fn on_resolved(&self, callback: Callback) {
        let mut watchers = self.watchers.lock();
        match self.outcome() {
            Some(outcome) => {
                drop(watchers);
                callback(outcome);
            }
            None => watchers.get_or_insert_default().callbacks.push(callback),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn callbacks_run_once_whether_registered_before_or_after_the_end() {
        let task = Task::empty(1);
        let (values, failures) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let count = || -> Callback {
            let (values, failures) = (values.clone(), failures.clone());
            Box::new(move |outcome| {
                let counter = if outcome.is_failure() {
                    failures
                } else {
                    values
                };
                counter.fetch_add(1, Ordering::SeqCst);
            })
        };
        task.on_resolved(count());
        task.on_resolved(count());
        assert_eq!(values.load(Ordering::SeqCst), 0);
        task.resolve(Outcome::Value(vec![].into()));
        task.resolve(Outcome::Canceled);
        assert_eq!(values.load(Ordering::SeqCst), 2);
        task.on_resolved(count());
        assert_eq!(values.load(Ordering::SeqCst), 3);
        assert_eq!(failures.load(Ordering::SeqCst), 0);

        let lost = Task::empty(2);
        lost.on_resolved(count());
        lost.resolve(Outcome::Reset);
        assert_eq!(failures.load(Ordering::SeqCst), 1);
    }
}
