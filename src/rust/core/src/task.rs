//! A task as the host holds it: its payload on the way out, its outcome on the
//! way back. One allocation each, shared by the dispatcher and the user's handle,
//! because a hundred thousand of them may be waiting.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::dispatcher::TaskId;
use crate::protocol::{Kind, Stream};
use crate::wait::Countdown;

/// What a task ended as. A value is the body of the daemon's reply; an error of
/// evaluation is a value too.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Value(Vec<u8>),
    TimedOut,
    /// The daemon was lost, or the host reset its daemons.
    Reset,
    Canceled,
}

/// What is sent to the daemon.
#[derive(Clone, Debug)]
pub struct Payload {
    pub kind: Kind,
    pub stream: Option<Stream>,
    pub body: Bytes,
}

/// Called once, on whichever thread resolves the task. Must not block.
pub type Callback = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Watchers {
    waiting: Option<Arc<Countdown>>,
    callback: Option<Callback>,
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
        let body = Bytes::new();
        let (kind, stream) = (Kind::Task, None);
        Task::new(id, Payload { kind, stream, body })
    }

    pub fn id(&self) -> TaskId {
        self.id
    }

    /// What to send; `None` once the task has resolved.
    pub(crate) fn payload(&self) -> Option<Payload> {
        self.payload.lock().clone()
    }

    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    pub fn is_resolved(&self) -> bool {
        self.outcome.get().is_some()
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
                countdown.tick();
            }
            if let Some(callback) = watchers.callback {
                callback();
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
        if self.is_resolved() {
            drop(watchers);
            return callback();
        }
        watchers.get_or_insert_default().callback = Some(callback);
    }
}
