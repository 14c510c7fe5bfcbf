//! The log: what became of the tasks of late, and of the daemons.
//!
//! The dispatcher writes it from its own events, so it is true also while the language runtime is busy. A
//! task has its row here once it is over; before that, its row is made from what the dispatcher knows
//! of it. The memory is bounded: [`TASKS_KEPT`] tasks and [`PEERS_KEPT`] daemons that are gone.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use super::{Endpoint, PeerId, TaskId, Time};

/// Tasks that are over of which the log keeps a row. A row takes 112 bytes, without name and error.
pub const TASKS_KEPT: usize = 100_000;

/// The log notes the rows of this number of tasks, the last that failed, timed out or were lost, so that a monitor finds
/// them at once.
const FAILURES_KEPT: usize = 100;

/// Daemons that are gone of which the log keeps a row.
pub const PEERS_KEPT: usize = 10_000;

/// By what the user knows a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// The number of its handle; 0 if it has none.
    pub number: u32,
    /// Its name, if it has one.
    pub name: Option<Box<str>>,
}

/// How far a task has come, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Not started, as far as the host knows: it may be with a daemon.
    Queued,
    /// A daemon has it.
    Running,
    /// With a value.
    Done,
    /// With an error of its own.
    Failed,
    /// It was cancelled.
    Canceled,
    /// Its time was over.
    TimedOut,
    /// Its daemon was lost, or all daemons were reset.
    Lost,
}

/// A task in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRow {
    /// Number of the task.
    pub id: TaskId,
    /// What people call it.
    pub label: Label,
    /// How far it has come.
    pub state: TaskState,
    /// The daemon that has started it last.
    pub peer: Option<PeerId>,
    /// When it was submitted.
    pub submitted: Time,
    /// When that daemon started it, by the host's clock: the time of the reply less `spent`.
    pub started: Option<Time>,
    /// When it resolved; `None` if it has not.
    pub ended: Option<Time>,
    /// What the daemon says that it has taken.
    pub spent: Option<Duration>,
    /// How often it has been started, as far as the host knows.
    pub attempts: u32,
    /// Size of the payload and of the value.
    pub bytes_in: u64,
    /// Size of its value, in bytes; `None` if there is none.
    pub bytes_out: Option<u64>,
    /// Message of the error that it ended in, shortened.
    pub error: Option<Box<str>>,
}

/// What a daemon does, or how it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// It has nothing to do.
    Idle,
    /// It has a task.
    Busy,
    /// It starts no further task.
    Leaving,
    /// It has said goodbye.
    Left,
    /// The connection ended without a goodbye.
    Lost,
}

/// A daemon in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRow {
    /// Number of the connection.
    pub peer: PeerId,
    /// The endpoint at which it has connected.
    pub endpoint: Endpoint,
    /// How far it has come.
    pub state: PeerState,
    /// When it connected.
    pub joined: Time,
    /// When the connection ended.
    pub ended: Option<Time>,
    /// Tasks that it has replied to.
    pub tasks: u64,
    /// What they have taken in all.
    pub busy: Duration,
}

/// A time or a duration in microseconds, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Micros(u64);

impl Micros {
    pub(super) const NONE: Micros = Micros(u64::MAX);

    pub(super) fn get(self) -> Option<Duration> {
        (self != Micros::NONE).then(|| Duration::from_micros(self.0))
    }
}

impl From<Duration> for Micros {
    fn from(time: Duration) -> Micros {
        Micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX - 1))
    }
}

/// A task that is over, as it is kept.
pub(super) struct Over {
    pub(super) id: TaskId,
    pub(super) submitted: Micros,
    pub(super) started: Micros,
    pub(super) ended: Micros,
    pub(super) spent: Micros,
    pub(super) bytes_in: u64,
    /// `u64::MAX`: there is no value.
    pub(super) bytes_out: u64,
    pub(super) peer: Option<PeerId>,
    pub(super) attempts: u32,
    pub(super) state: TaskState,
    pub(super) label: Label,
    pub(super) error: Option<Box<str>>,
}

impl Over {
    fn row(&self) -> TaskRow {
        TaskRow {
            id: self.id,
            label: self.label.clone(),
            state: self.state,
            peer: self.peer,
            submitted: self.submitted.get().unwrap_or_default(),
            started: self.started.get(),
            ended: self.ended.get(),
            spent: self.spent.get(),
            attempts: self.attempts,
            bytes_in: self.bytes_in,
            bytes_out: (self.bytes_out != u64::MAX).then_some(self.bytes_out),
            error: self.error.clone(),
        }
    }
}

/// Tasks that are over, counted by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// With a value.
    pub done: u64,
    /// With an error of the evaluation.
    pub failed: u64,
    /// By cancellation.
    pub canceled: u64,
    /// By their time limit.
    pub timed_out: u64,
    /// With their daemon.
    pub lost: u64,
}

impl Tally {
    fn total(&self) -> u64 {
        self.done + self.failed + self.canceled + self.timed_out + self.lost
    }
}

#[derive(Default)]
pub(super) struct Log {
    /// In the order in which they ended.
    tasks: VecDeque<Over>,
    /// Of those that ended badly the last [`FAILURES_KEPT`]: how many tasks had ended up to them.
    failures: VecDeque<u64>,
    peers: VecDeque<PeerRow>,
    pub(super) tally: Tally,
}

impl Log {
    pub(super) fn add(&mut self, task: Over) {
        let count = match task.state {
            TaskState::Done => &mut self.tally.done,
            TaskState::Failed => &mut self.tally.failed,
            TaskState::Canceled => &mut self.tally.canceled,
            TaskState::TimedOut => &mut self.tally.timed_out,
            TaskState::Lost | TaskState::Queued | TaskState::Running => &mut self.tally.lost,
        };
        *count += 1;
        if !matches!(task.state, TaskState::Done | TaskState::Canceled) {
            if self.failures.len() == FAILURES_KEPT {
                self.failures.pop_front();
            }
            self.failures.push_back(self.tally.total());
        }
        if self.tasks.len() == TASKS_KEPT {
            self.tasks.pop_front();
        }
        self.tasks.push_back(task);
    }

    pub(super) fn add_peer(&mut self, peer: PeerRow) {
        if self.peers.len() == PEERS_KEPT {
            self.peers.pop_front();
        }
        self.peers.push_back(peer);
    }

    /// Those that are over, in the order in which they ended.
    pub(super) fn tasks(&self) -> impl DoubleEndedIterator<Item = TaskRow> + '_ {
        self.tasks.iter().map(Over::row)
    }

    /// Which of the tasks that have ended it has, by how many had ended before.
    pub(super) fn ended(&self) -> Range<u64> {
        let end = self.tally.total();
        end - self.tasks.len() as u64..end
    }

    /// The rows of some of these.
    pub(super) fn rows(&self, ended: Range<u64>) -> impl Iterator<Item = TaskRow> + '_ {
        let first = self.ended().start;
        let at = |count: u64| (count.max(first) - first) as usize;
        let to = at(ended.end).min(self.tasks.len());
        self.tasks.range(at(ended.start).min(to)..to).map(Over::row)
    }

    /// Those that failed, timed out or were lost, the last of them first.
    pub(super) fn failures(&self) -> impl Iterator<Item = TaskRow> + '_ {
        let first = self.tally.total() - self.tasks.len() as u64;
        let rows = self.failures.iter().rev().filter_map(move |ended| {
            let at = ended.checked_sub(first + 1)?;
            self.tasks.get(usize::try_from(at).ok()?)
        });
        rows.map(Over::row)
    }

    /// The message of the error in which a task has ended, if that was one of the last [`FAILURES_KEPT`].
    pub(super) fn error_of(&self, id: TaskId) -> Option<Box<str>> {
        self.failures().find(|row| row.id == id)?.error
    }

    /// Number of tasks that have ended within `window` before `now`. If more have than the log has rows, as many as
    /// there would be at the rate of these.
    pub(super) fn ended_within(&self, window: Duration, now: Time) -> f64 {
        let from = now.saturating_sub(window);
        let ended = |task: &Over| task.ended.get().unwrap_or_default();
        let before = self.tasks.partition_point(|task| ended(task) < from);
        let within = (self.tasks.len() - before) as f64;
        match self.tasks.front() {
            Some(oldest) if before == 0 && self.tasks.len() == TASKS_KEPT => {
                let covered = now
                    .saturating_sub(ended(oldest))
                    .max(Duration::from_micros(1));
                within * window.as_secs_f64() / covered.as_secs_f64()
            }
            _ => within,
        }
    }

    /// Daemons that are gone, the first of them first.
    pub(super) fn peers(&self) -> impl DoubleEndedIterator<Item = &PeerRow> + '_ {
        self.peers.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(id: TaskId, state: TaskState) -> Over {
        Over {
            id,
            submitted: Duration::ZERO.into(),
            started: Micros::NONE,
            ended: Duration::MAX.into(),
            spent: Micros::NONE,
            bytes_in: 0,
            bytes_out: u64::MAX,
            peer: None,
            attempts: 0,
            state,
            label: Label::default(),
            error: None,
        }
    }

    #[test]
    fn the_log_keeps_the_last_tasks_and_counts_all() {
        let mut log = Log::default();
        let n = TASKS_KEPT as u64 + 10;
        for id in 0..n {
            let failed = id % 2 == 0;
            log.add(over(
                id,
                if failed {
                    TaskState::Failed
                } else {
                    TaskState::Done
                },
            ));
        }
        assert!(log.tasks().map(|row| row.id).eq(10..n));
        assert_eq!((log.tally.failed, log.tally.done), (n / 2, n / 2));
        let row = log.tasks().next().unwrap();
        assert_eq!((row.started, row.spent, row.bytes_out), (None, None, None));
        assert!(row.ended > Some(Duration::from_secs(500_000 * 365 * 24 * 3600)));
    }

    #[test]
    fn failures_are_found_while_their_rows_are_kept() {
        let mut log = Log::default();
        let ids = |log: &Log| log.failures().map(|row| row.id).collect::<Vec<_>>();
        for id in 0..300 {
            log.add(over(
                id,
                match id % 3 {
                    0 => TaskState::Lost,
                    1 => TaskState::Done,
                    _ => TaskState::Canceled,
                },
            ));
        }
        assert!(ids(&log).into_iter().eq((0..100).rev().map(|i| 3 * i)));
        for id in 300..TASKS_KEPT as u64 + 100 {
            log.add(over(id, TaskState::Done));
        }
        let first = ids(&log).pop();
        assert_eq!(first, Some(102));
        log.add(over(u64::MAX, TaskState::TimedOut));
        assert_eq!(ids(&log)[0], u64::MAX);
    }

    #[test]
    fn the_rate_is_that_of_the_rows_that_are_kept() {
        let mut log = Log::default();
        let second = Duration::from_secs(1);
        let mut add = |n: u64, step: Duration| {
            for i in 0..n {
                let ended = (second * 100 + step * i as u32).into();
                log.add(Over {
                    ended,
                    ..over(i, TaskState::Done)
                });
            }
        };
        add(100, Duration::from_millis(100));
        let now = second * 110;
        assert_eq!(log.ended_within(second, now), 10.0);
        assert_eq!(log.ended_within(second * 10, now), 100.0);
        assert_eq!(log.ended_within(second, now * 2), 0.0);
        // Twice as fast as the log is long: only the last five seconds are there.
        let mut log = Log::default();
        for i in 0..2 * TASKS_KEPT as u64 {
            let ended = (Duration::from_micros(50) * i as u32).into();
            log.add(Over {
                ended,
                ..over(i, TaskState::Done)
            });
        }
        let rate = log.ended_within(second * 10, second * 10) / 10.0;
        assert!((rate - 20_000.0).abs() < 1.0, "{rate}");
    }

    #[test]
    fn a_row_is_small() {
        // As its documentation says.
        assert!(size_of::<Over>() <= 112, "{}", size_of::<Over>());
    }
}
