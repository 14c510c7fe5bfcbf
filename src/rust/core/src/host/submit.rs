//! Handing over tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{FOREVER, Host};
use crate::dispatcher::{Event, Rules, Target, Time};
use crate::memory::Body;
use crate::task::{Constants, Task};

impl Host {
    /// Makes constants for tasks of this host.
    pub fn constants(&self, body: Body) -> Arc<Constants> {
        self.constants_needing(body, Vec::new())
    }

    /// The same, where the values of `needs` are attached to the body, in this order. The tasks wait for them.
    pub fn constants_needing(&self, body: Body, needs: Vec<Arc<Task>>) -> Arc<Constants> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let shared = Arc::downgrade(&self.0);
        let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        // This may be anywhere, under any lock: the I/O thread does the rest.
        let on_drop = Box::new(move |id| {
            if let Some(shared) = shared.upgrade() {
                shared.dropped.lock().push(id);
                shared.timer.notify_one();
            }
        });
        Arc::new(Constants::new(id, body, needs, on_drop))
    }

    /// Hands over a task. It is resolved sooner or later, whatever happens. If it needs others, it waits for them first;
    /// should one of them fail, it resolves to [`Outcome::Argument`](crate::task::Outcome::Argument) at once.
    pub fn submit(&self, task: Arc<Task>, timeout: Option<Duration>, target: Target) {
        self.submit_with(task, timeout, target, None);
    }

    /// As [`submit`](Self::submit), for a task that has rules of its own.
    pub fn submit_with(
        &self,
        task: Arc<Task>,
        timeout: Option<Duration>,
        target: Target,
        rules: Option<Arc<Rules>>,
    ) {
        let timeout = timeout.filter(|t| *t < FOREVER);
        let deadline = timeout.map(|t| self.0.origin.elapsed() + t);
        let event = submission(task, target, deadline, rules);
        let waiting = match &event {
            Event::Submit { waits, job, .. } => waits.then(|| job.clone()),
            _ => None,
        };
        self.0.handle(event, None);
        if let Some(task) = waiting {
            self.0.await_needs(&task);
        }
        if self.0.is_closed() {
            self.0.handle(Event::Reset, None);
        }
    }

    /// Hands over a task for each connected daemon that takes tasks, and at least `least` tasks: those left over
    /// are for the daemons that connect next. This is one decision: a daemon that connects or leaves meanwhile does so
    /// before it, or after it. `make` is given the number of tasks, under the dispatcher's lock: it must not
    /// block. If it gives none, nothing is handed over.
    ///
    /// # Errors
    /// That number.
    pub fn submit_to_each(
        &self,
        least: usize,
        make: impl FnOnce(usize) -> Option<Vec<Arc<Task>>>,
    ) -> Result<(), usize> {
        let mut submitted = Ok(());
        self.0.act(None, None, |dispatcher, now, out| {
            let peers = dispatcher.peers();
            let n = peers.len().max(least);
            let Some(tasks) = make(n) else {
                submitted = Err(n);
                return;
            };
            let up_to =
                dispatcher.counts().cumulative + tasks.len().saturating_sub(peers.len()) as u64;
            self.0.keep_setup(&tasks, up_to);
            let targets = peers
                .into_iter()
                .map(Target::Peer)
                .chain((0..).map(Target::Join));
            for (task, target) in tasks.into_iter().zip(targets) {
                dispatcher.handle(now, submission(task, target, None, None), out);
            }
        });
        if self.0.is_closed() {
            self.0.handle(Event::Reset, None);
        }
        submitted
    }
}

/// What the dispatcher is told of a new task.
pub(super) fn submission(
    task: Arc<Task>,
    target: Target,
    deadline: Option<Time>,
    rules: Option<Arc<Rules>>,
) -> Event<Arc<Task>> {
    Event::Submit {
        id: task.id(),
        bytes: task.size(),
        deadline,
        target,
        label: task.label(),
        rules,
        waits: task.has_needs(),
        job: task,
    }
}
