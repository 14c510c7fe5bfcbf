//! A task as the host holds it: its payload on the way out, its outcome on the
//! way back. One allocation each, shared by the dispatcher and the user's handle,
//! because a hundred thousand of them may be waiting.

mod kept;
mod needs;
mod wait;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::checkpoint::Stored;
use crate::dispatcher::{Label, TaskId};
use crate::loss::Loss;
use crate::memory::{Body, Content};
use crate::protocol::{Kind, Stream};

use needs::Flow;
pub(crate) use needs::take_unwanted;
pub use needs::{Cause, Constants, bytes_passed_on, let_down};
use wait::Countdown;
pub use wait::{Group, Patience, wait_for};

/// What a task ended as. A value is the body of the daemon's reply; an error of
/// evaluation is a value too.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The value that the daemon has sent.
    Value(Content),
    /// The same, where that is an error of the evaluation.
    Error(Content),
    /// A value that an earlier task has left in a checkpoint.
    Stored(Box<Stored>),
    /// Its time was over.
    TimedOut,
    /// The daemon was lost, or the host reset its daemons.
    Reset,
    /// The URL at which its daemon was connected was closed.
    Closed,
    /// It was cancelled.
    Canceled,
    /// What it needs could not be computed.
    Argument(Cause),
}

impl Outcome {
    /// Whether it is something else than a value.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Outcome::Value(_) | Outcome::Stored(_))
    }
}

/// What is sent to the daemon.
#[derive(Clone, Debug)]
pub struct Payload {
    /// How the daemon treats it.
    pub kind: Kind,
    /// Its random number stream, if it has one.
    pub stream: Option<Stream>,
    /// What the task has in common with others, and which a daemon is sent once.
    pub constants: Option<Arc<Constants>>,
    /// The bytes for the daemon.
    pub body: Body,
}

/// Called once with what the task ended as, on whichever thread resolves it. Must not block.
pub type Callback = Box<dyn FnOnce(&Outcome) + Send>;

/// Called for each value that a task sends ahead, on whichever thread has received it. Must not block.
pub type OnReport = dyn Fn() + Send + Sync;

#[derive(Default)]
struct Watchers {
    waiting: Option<Arc<Countdown>>,
    callbacks: Vec<Callback>,
    on_report: Option<Arc<OnReport>>,
    reports: Reports,
    /// The daemon that was lost with it.
    loss: Option<Arc<Loss>>,
}

/// Reports of a task that are kept. Of more, and of more than [`MOST_REPORTED`] bytes, the oldest are dropped.
pub const MOST_REPORTS: usize = 1000;
/// See [`MOST_REPORTS`]. The newest report is kept whatever its size.
pub const MOST_REPORTED: u64 = 16 << 20;

/// What a task has sent ahead of its value, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    /// Those that are kept.
    pub kept: VecDeque<Arc<Content>>,
    /// How many came before these and were dropped.
    pub dropped: u64,
    bytes: u64,
}

impl Reports {
    /// Only those after the first `n` that the task has sent.
    #[must_use]
    pub fn after(mut self, n: u64) -> Reports {
        let skipped = n.saturating_sub(self.dropped).min(self.kept.len() as u64);
        self.kept.drain(..skipped as usize);
        self.dropped += skipped;
        self
    }

    fn add(&mut self, report: Content) {
        self.bytes += report.size();
        self.kept.push_back(Arc::new(report));
        while self.kept.len() > 1 && (self.kept.len() > MOST_REPORTS || self.bytes > MOST_REPORTED)
        {
            if let Some(oldest) = self.kept.pop_front() {
                self.bytes -= oldest.size();
                self.dropped += 1;
            }
        }
    }
}

/// A process-wide source of task ids, from 1.
pub fn next_task_id() -> TaskId {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// See the [module documentation](self).
pub struct Task {
    id: TaskId,
    payload: Mutex<Option<Payload>>,
    outcome: OnceLock<Outcome>,
    /// Boxed, because most tasks are never watched one by one.
    watchers: Mutex<Option<Box<Watchers>>>,
    /// The number of its handle, for the log; 0 if it has none.
    number: u32,
    /// It has resolved to [`Outcome::Reset`] because its host was closed.
    closed: AtomicBool,
    name: Option<Box<str>>,
    /// Of a task that needs others, or is needed by them.
    flow: OnceLock<Box<Flow>>,
    /// Of a task whose value goes to a checkpoint: what counts the values that are on their way. See [`Task::keep_in`].
    reserved: OnceLock<Arc<AtomicUsize>>,
}

impl Task {
    /// A task that nobody knows yet, with what is sent for it. One without a payload is never submitted.
    pub fn new(id: TaskId, payload: impl Into<Option<Payload>>) -> Task {
        Task {
            id,
            payload: Mutex::new(payload.into()),
            outcome: OnceLock::new(),
            watchers: Mutex::new(None),
            number: 0,
            closed: AtomicBool::new(false),
            name: None,
            flow: OnceLock::new(),
            reserved: OnceLock::new(),
        }
    }

    /// The same with what the log calls it: the number of its handle, and a name.
    #[must_use]
    pub fn labelled(mut self, number: u32, name: Option<Box<str>>) -> Task {
        (self.number, self.name) = (number, name);
        self
    }

    /// The number of its handle; 0 if it has none.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn label(&self) -> Label {
        Label {
            number: self.number,
            name: self.name.clone(),
        }
    }

    /// Keeps a value that the task has sent ahead, unless it is over.
    pub(crate) fn add_report(&self, report: Content) {
        let mut watchers = self.watchers.lock();
        if self.is_resolved() {
            return;
        }
        let held = watchers.get_or_insert_default();
        held.reports.add(report);
        let on_report = held.on_report.clone();
        drop(watchers);
        if let Some(on_report) = on_report {
            on_report();
        }
    }

    /// Has `f` called for each value that the task sends ahead from now on; at once if there are some already.
    pub fn on_report(&self, f: Arc<OnReport>) {
        let mut watchers = self.watchers.lock();
        let held = watchers.get_or_insert_default();
        let some = !held.reports.kept.is_empty();
        if !self.is_resolved() {
            held.on_report = Some(f.clone());
        }
        drop(watchers);
        if some {
            f();
        }
    }

    /// The attempt that has sent these ahead has failed, and the next one makes its own.
    pub(crate) fn forget_reports(&self) {
        if let Some(watchers) = self.watchers.lock().as_mut() {
            watchers.reports = Reports::default();
        }
    }

    /// What the task has sent ahead so far.
    pub fn reports(&self) -> Reports {
        let watchers = self.watchers.lock();
        watchers
            .as_ref()
            .map(|w| w.reports.clone())
            .unwrap_or_default()
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

    /// Its number in this process.
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

    /// What it has resolved to; `None` if it has not.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// Whether it has resolved.
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
        let expected = self.reserve(&outcome);
        let settled = self.outcome.set(outcome).is_ok();
        if let Some(expected) = expected.filter(|_| !settled) {
            expected.fetch_sub(1, Ordering::SeqCst);
        }
        settled
    }

    /// Notes which daemon was lost with it, before it is settled.
    pub(crate) fn lost_with(&self, loss: Arc<Loss>) {
        self.watchers.lock().get_or_insert_default().loss = Some(loss);
    }

    /// The daemon that was lost with it, if it has resolved to [`Outcome::Reset`] for that.
    pub fn loss(&self) -> Option<Arc<Loss>> {
        self.watchers.lock().as_ref()?.loss.clone()
    }

    /// Notes that its host is closed, before it is settled. Many tasks may wait then: no memory is needed.
    pub(crate) fn closed_with_host(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Why it has resolved to [`Outcome::Reset`], as a sentence, if that is known. May wait for half a second: see
    /// [`Loss`].
    pub fn reset_reason(&self) -> Option<String> {
        match self.loss() {
            Some(loss) => Some(loss.to_string()),
            None if self.closed.load(Ordering::Relaxed) => Some("the daemons were reset".into()),
            None => None,
        }
    }

    /// The second half: frees what was sent and tells whoever waits.
    pub(crate) fn announce(&self) {
        let payload = self.payload.lock().take();
        // Not under the lock: other tasks may go with it.
        drop(payload);
        self.forget_needs();
        // After the outcome is set: see `watch` and `on_resolved`.
        let (waiting, callbacks) = {
            let mut watchers = self.watchers.lock();
            let Some(held) = watchers.as_mut() else {
                return;
            };
            held.on_report = None;
            let taken = (held.waiting.take(), std::mem::take(&mut held.callbacks));
            if held.reports.kept.is_empty() && held.loss.is_none() {
                *watchers = None;
            }
            taken
        };
        if let Some(countdown) = waiting {
            countdown.tick(self.has_failed());
        }
        if let Some(outcome) = self.outcome() {
            for callback in callbacks {
                callback(outcome);
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

#[cfg(all(test, not(mirai_loom)))]
mod tests {
    use super::*;
    use crate::sys::Waited;
    use std::time::Duration;

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

    fn tasks(n: u64) -> Vec<Arc<Task>> {
        (0..n).map(|id| Arc::new(Task::empty(id))).collect()
    }

    // One test, because the bell is the process's and waits on one thread.
    #[test]
    fn the_main_thread_waits_for_what_happens_elsewhere() {
        let never = || false;
        let all = tasks(100);
        let theirs = all.clone();
        let other = std::thread::spawn(move || {
            for task in &theirs {
                task.resolve(Outcome::Value(vec![1].into()));
            }
        });
        let end = wait_for(all.iter().map(Arc::as_ref), Patience::for_all(100), never);
        assert_eq!(end, Waited::Ready);
        assert!(all.iter().all(|t| t.is_resolved()));
        other.join().unwrap();

        let some = tasks(3);
        some[1].resolve(Outcome::Canceled);
        let any = wait_for(some.iter().map(Arc::as_ref), Patience::for_all(1), never);
        assert_eq!(any, Waited::Ready);

        let hasty = Patience {
            timeout: Some(Duration::from_millis(5)),
            ..Patience::for_all(3)
        };
        let late = wait_for(some.iter().map(Arc::as_ref), hasty, never);
        assert_eq!(late, Waited::TimedOut);
        let stopped = wait_for(some.iter().map(Arc::as_ref), Patience::for_all(3), || true);
        assert_eq!(stopped, Waited::Interrupted);

        let failure = Patience {
            until_failure: true,
            ..Patience::for_all(3)
        };
        let failed = wait_for(some.iter().map(Arc::as_ref), failure, never);
        assert_eq!(failed, Waited::Ready);

        // A wait given up leaves nothing behind that could wake or confuse the next.
        let two = [some[0].clone(), some[2].clone()];
        let other = std::thread::spawn(move || two.map(|t| t.resolve(Outcome::TimedOut)));
        let end = wait_for(some.iter().map(Arc::as_ref), Patience::for_all(3), never);
        assert_eq!(end, Waited::Ready);
        other.join().unwrap();
    }

    #[test]
    fn a_group_is_waited_for_in_steps() {
        let all = tasks(10);
        let group = Group::new(all.iter().map(Arc::as_ref), true);
        let never = || false;
        assert_eq!(group.resolved(), 0);
        for step in 1..=4 {
            let theirs = all.clone();
            let other = std::thread::spawn(move || {
                for task in &theirs[2 * step - 2..2 * step] {
                    task.resolve(Outcome::Value(vec![].into()));
                }
            });
            assert_eq!(group.wait(2 * step, None, never), Waited::Ready);
            assert_eq!(group.resolved(), 2 * step);
            other.join().unwrap();
        }
        let short = Some(Duration::from_millis(5));
        assert_eq!(group.wait(9, short, never), Waited::TimedOut);
        assert_eq!(group.wait(8, None, never), Waited::Ready);
        all[9].resolve(Outcome::Canceled);
        assert_eq!(group.wait(10, None, never), Waited::Ready);
        assert_eq!(group.resolved(), 9);
        // Those that have resolved before are counted, and more may resolve than are waited for.
        let group = Group::new(all.iter().map(Arc::as_ref), false);
        all[8].resolve(Outcome::Value(vec![].into()));
        assert_eq!(group.wait(3, None, never), Waited::Ready);
        assert_eq!(group.resolved(), 10);
    }
}
