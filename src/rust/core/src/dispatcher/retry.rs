//! Attempts: whether a task that has failed runs again, and how long it waits before.
//!
//! The rules, which `tests/dispatcher_model.rs` checks:
//!
//! - A task is attempted again after a lost daemon at most [`Retry::crash`] times, and after an error of its evaluation at
//!   most [`Retry::error`] times. What is pinned to a daemon is attempted once.
//! - Before each further attempt it waits for its [`Backoff`]. It is in no queue meanwhile, but it counts as waiting: it
//!   can be cancelled, it times out, and its payload takes up room.
//! - After that it stands in the queue where it stood before, by its priority and its id.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::{Action, Dispatcher, Priority, Target, TaskId, Time};

/// How often a task is attempted again. The default is never.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Retry {
    /// Further attempts after a lost daemon; `u32::MAX`: without limit.
    pub crash: u32,
    /// Further attempts after an error of the evaluation; `u32::MAX`: without limit.
    pub error: u32,
    /// Pauses between attempts.
    pub backoff: Backoff,
}

impl Retry {
    /// After each lost daemon, at once and without limit.
    pub const AFTER_CRASH: Retry = Retry {
        crash: u32::MAX,
        error: 0,
        backoff: Backoff::NONE,
    };

    /// The wait before the next attempt, `None` if there is none. `crashes` and `errors` count the attempts that have
    /// failed so far, by the last of which this is asked.
    fn next(&self, failure: Failure, crashes: u32, errors: u32, jitter: u64) -> Option<Duration> {
        let (most, so_far) = match failure {
            Failure::Crash => (self.crash, crashes),
            Failure::Error => (self.error, errors),
        };
        let again = most == u32::MAX || so_far <= most;
        again.then(|| self.backoff.pause(crashes.saturating_add(errors), jitter))
    }
}

/// How long a task waits before it is attempted again: `first`, after the next failed attempt `factor` times that, and so
/// on, but not longer than `most`. A random part of up to a half is taken off, so that tasks which have failed
/// together are not attempted together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The pause before the second attempt.
    pub first: Duration,
    /// At least 1.
    pub factor: f64,
    /// The longest pause.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::NONE
    }
}

/// No wait is longer: clocks have to hold its end.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Backoff {
    /// Tasks do not wait.
    pub const NONE: Backoff = Backoff {
        first: Duration::ZERO,
        factor: 1.0,
        most: Duration::ZERO,
    };

    /// The wait after `failures` failed attempts. `jitter` is a random number: 0 takes nothing off the wait, `u64::MAX` takes
    /// off a half.
    pub fn pause(&self, failures: u32, jitter: u64) -> Duration {
        let most = self.most.min(LONGEST).as_secs_f64();
        let exponent = f64::from(failures.saturating_sub(1));
        let grown = self.first.as_secs_f64() * self.factor.powf(exponent);
        // `min` returns the other number if one is none.
        let whole = grown.min(most);
        let part = jitter as f64 / u64::MAX as f64;
        Duration::try_from_secs_f64(whole * (1.0 - part / 2.0)).unwrap_or_default()
    }
}

/// The random number for [`Backoff::pause`] after `failures` failed attempts of a task. `seed` is
/// [`Config::jitter`](super::Config::jitter).
pub fn jitter(seed: u64, task: TaskId, failures: u32) -> u64 {
    mix(mix(seed ^ task) ^ u64::from(failures))
}

/// Mixes the bits of a number thoroughly, as SplitMix64 does.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What several tasks have in common that is not the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// In place of [`Config::retry`](super::Config::retry).
    pub retry: Option<Retry>,
    /// Higher goes first.
    pub priority: Priority,
}

/// How an attempt has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Its daemon was lost.
    Crash,
    /// Its evaluation has ended in an error.
    Error,
}

/// Attempts of a task that have failed so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Failures {
    crashes: u32,
    errors: u32,
}

impl Failures {
    pub(super) fn count(self) -> u32 {
        self.crashes.saturating_add(self.errors)
    }
}

/// Tasks that wait for their next attempt.
#[derive(Default)]
pub(super) struct Pauses {
    ends: BTreeSet<(Time, TaskId)>,
    by_task: FxHashMap<TaskId, Time>,
}

impl Pauses {
    /// When the first of them is over.
    pub(super) fn first(&self) -> Option<Time> {
        self.ends.first().map(|(at, _)| *at)
    }

    fn insert(&mut self, task: TaskId, end: Time) {
        self.ends.insert((end, task));
        self.by_task.insert(task, end);
    }

    /// Whether the task has waited.
    pub(super) fn remove(&mut self, task: TaskId) -> bool {
        match self.by_task.remove(&task) {
            Some(end) => self.ends.remove(&(end, task)),
            None => false,
        }
    }

    fn take_due(&mut self, now: Time) -> Vec<TaskId> {
        let mut due = Vec::new();
        while self.first().is_some_and(|at| at <= now) {
            if let Some((_, task)) = self.ends.pop_first() {
                self.by_task.remove(&task);
                due.push(task);
            }
        }
        due
    }
}

impl<J: Clone> Dispatcher<J> {
    /// An attempt has failed: counts it, and returns how long the task waits for the next. `None`: it was the last.
    pub(super) fn next_attempt(&mut self, id: TaskId, failure: Failure) -> Option<Duration> {
        let entry = self.tasks.get_mut(id)?;
        if entry.target != Target::Any {
            return None;
        }
        let own = entry.rules.as_ref().and_then(|rules| rules.retry);
        let retry = own.unwrap_or(self.config.retry);
        let mut failures = entry.failures;
        match failure {
            Failure::Crash => failures.crashes = failures.crashes.saturating_add(1),
            Failure::Error => failures.errors = failures.errors.saturating_add(1),
        }
        let jitter = jitter(self.config.jitter, id, failures.count());
        let pause = retry.next(failure, failures.crashes, failures.errors, jitter)?;
        entry.failures = failures;
        Some(pause)
    }

    /// A task that has been sent, and is with nobody any more, waits for its next attempt.
    pub(super) fn pause(&mut self, id: TaskId, pause: Duration) {
        if let Some(entry) = self.tasks.get_mut(id) {
            entry.sent = None;
            self.in_flight -= 1;
            self.counts.queued += entry.bytes;
            self.pauses.insert(id, self.now.saturating_add(pause));
        }
    }

    /// The evaluation of a task has ended in an error, or a relay has lost its daemon. Whether it will be attempted again.
    pub(super) fn try_again(
        &mut self,
        id: TaskId,
        failure: Failure,
        out: &mut Vec<Action<J>>,
    ) -> bool {
        let Some(pause) = self.next_attempt(id, failure) else {
            return false;
        };
        self.announce_again(id, out);
        self.pause(id, pause);
        if pause.is_zero() {
            self.pauses.remove(id);
            self.put_back(vec![id], out);
        }
        true
    }

    pub(super) fn announce_again(&self, id: TaskId, out: &mut Vec<Action<J>>) {
        if let Some(entry) = self.tasks.get(id) {
            let job = entry.job.clone();
            out.push(Action::Again { job });
        }
    }

    /// Tasks whose wait is over stand in the queue again.
    pub(super) fn end_pauses(&mut self, out: &mut Vec<Action<J>>) {
        let due = self.pauses.take_due(self.now);
        if !due.is_empty() {
            self.put_back(due, out);
        }
    }
}

/// The rules that a task has of its own.
pub(super) type OwnRules = Option<Arc<Rules>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_longest_and_jitter_takes_off_a_half_at_most() {
        let seconds = Duration::from_secs_f64;
        let backoff = Backoff {
            first: seconds(0.1),
            factor: 2.0,
            most: seconds(30.0),
        };
        for (failures, whole) in [
            (1, 0.1),
            (2, 0.2),
            (5, 1.6),
            (9, 25.6),
            (10, 30.0),
            (u32::MAX, 30.0),
        ] {
            let near = |jitter, expected: f64| {
                let pause = backoff.pause(failures, jitter).as_secs_f64();
                assert!((pause - expected).abs() < 1e-6, "{pause} {expected}");
            };
            near(0, whole);
            near(u64::MAX, whole / 2.0);
            near(u64::MAX / 2, whole * 0.75);
        }
        assert_eq!(Backoff::NONE.pause(7, 3), Duration::ZERO);
        let endless = Backoff {
            first: Duration::MAX,
            factor: f64::INFINITY,
            most: Duration::MAX,
        };
        assert_eq!(endless.pause(3, 0), LONGEST);
    }

    #[test]
    fn tasks_that_fail_together_wait_for_different_times() {
        let parts: BTreeSet<u64> = (0..1000).map(|id| jitter(7, id, 1) >> 54).collect();
        assert!(parts.len() > 500, "{}", parts.len());
    }

    #[test]
    fn each_kind_of_failure_has_a_limit_of_its_own() {
        let retry = Retry {
            crash: 2,
            error: 1,
            backoff: Backoff::NONE,
        };
        let may = |failure, crashes, errors| retry.next(failure, crashes, errors, 0).is_some();
        assert!(may(Failure::Crash, 2, 1) && !may(Failure::Crash, 3, 1));
        assert!(may(Failure::Error, 5, 1) && !may(Failure::Error, 0, 2));
        let for_ever = Retry::AFTER_CRASH.next(Failure::Crash, u32::MAX, 0, 0);
        assert_eq!(for_ever, Some(Duration::ZERO));
        assert_eq!(Retry::default().next(Failure::Crash, 1, 0, 0), None);
    }
}
