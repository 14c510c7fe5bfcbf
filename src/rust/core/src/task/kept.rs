//! Tasks and checkpoints: a task whose value is to be stored, and one whose value is there already.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Outcome, Task};
use crate::checkpoint::{Checkpoint, Key, Stored};
use crate::dispatcher::TaskId;
use crate::memory::Content;

/// The value of a task that has resolved to one.
struct ValueOf(Arc<Task>);

impl AsRef<Content> for ValueOf {
    fn as_ref(&self) -> &Content {
        match self.0.outcome() {
            Some(Outcome::Value(content)) => content,
            _ => unreachable!("it is made of a task with a value"),
        }
    }
}

impl Task {
    /// A task that has resolved to a value of a checkpoint.
    pub fn stored(id: TaskId, stored: Stored) -> Task {
        let task = Task::new(id, None);
        task.settle(Outcome::Stored(Box::new(stored)));
        task
    }

    /// Has the task's value stored when it resolves to one: errors are not. To be called before it is submitted. The
    /// checkpoint stays open until the task has resolved.
    pub fn keep_in(self: &Arc<Self>, checkpoint: Checkpoint, key: Key) {
        let _ = self.reserved.set(checkpoint.expected());
        // Weak, because the task has the callback.
        let task = Arc::downgrade(self);
        self.on_resolved(Box::new(move |outcome| {
            if let Outcome::Value(content) = outcome {
                match task.upgrade() {
                    Some(task) => checkpoint.store_expected(key, Box::new(ValueOf(task))),
                    // Whoever announces a task holds it.
                    None => content.release(),
                }
            }
        }));
    }

    /// Before others see an outcome: what is written to the checkpoint must not change meanwhile, and is waited for.
    /// Returns where it has been counted.
    pub(super) fn reserve(&self, outcome: &Outcome) -> Option<&AtomicUsize> {
        let Outcome::Value(content) = outcome else {
            return None;
        };
        let expected = self.reserved.get()?;
        content.reserve();
        expected.fetch_add(1, Ordering::SeqCst);
        Some(expected)
    }
}
