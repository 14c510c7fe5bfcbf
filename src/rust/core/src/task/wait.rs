//! Waiting for tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::Task;
use crate::sys::{Attention, Bell, Waited};

/// While a wait needs more results than these, daemons may gather some of them before they wake the waiting thread.
const FEW: usize = 16;

/// Counts tasks down: rings the bell when few enough are left, or one that ends the
/// wait has failed.
pub(crate) struct Countdown {
    left: AtomicUsize,
    /// The number left at which the wait ends. Only the waiting thread changes it.
    goal: AtomicUsize,
    until_failure: bool,
    failed: AtomicBool,
}

impl Countdown {
    pub(crate) fn tick(&self, failed: bool) {
        let failed = failed && self.until_failure;
        if failed {
            self.failed.store(true, Ordering::SeqCst);
        }
        let left = self.left.fetch_sub(1, Ordering::SeqCst) - 1;
        // If the waiting thread sets another goal meanwhile, it looks at `left` after that.
        if failed || left == self.goal.load(Ordering::SeqCst) {
            Bell::get().ring();
        }
    }

    fn is_over(&self) -> bool {
        self.left.load(Ordering::SeqCst) <= self.goal.load(Ordering::SeqCst)
            || self.failed.load(Ordering::SeqCst)
    }
}

/// Tasks that are waited for together, without a look at each of them in every wait. The main
/// thread is woken once for a wait, not for each task.
///
/// A task ticks for one group at a time: a group is of no use after another with some of the same
/// tasks has been made.
pub struct Group {
    countdown: Arc<Countdown>,
    size: usize,
}

impl Group {
    /// Of tasks of which none comes twice. With `until_failure`, one that fails ends every wait.
    pub fn new<'a>(tasks: impl Iterator<Item = &'a Task> + Clone, until_failure: bool) -> Group {
        let size = tasks.clone().count();
        let countdown = Arc::new(Countdown {
            left: AtomicUsize::new(size),
            goal: AtomicUsize::new(0),
            until_failure,
            failed: AtomicBool::new(false),
        });
        for task in tasks {
            if !task.watch(&countdown) {
                countdown.tick(task.has_failed());
            }
        }
        Group { countdown, size }
    }

    /// The number of its tasks.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.size
    }

    /// Whether one has failed that ends every wait.
    pub fn has_failed(&self) -> bool {
        self.countdown.failed.load(Ordering::SeqCst)
    }

    /// How many of them have resolved.
    pub fn resolved(&self) -> usize {
        self.size - self.countdown.left.load(Ordering::SeqCst)
    }

    /// Waits until `enough` of them have resolved.
    pub fn wait(
        &self,
        enough: usize,
        timeout: Option<Duration>,
        attention: impl Attention,
    ) -> Waited {
        let goal = self.size.saturating_sub(enough);
        self.countdown.goal.store(goal, Ordering::SeqCst);
        let over = || self.countdown.is_over();
        let is_near = || self.countdown.left.load(Ordering::SeqCst) <= goal + FEW;
        Bell::get().wait_for_many(timeout, attention, over, is_near)
    }

    /// Nobody will wait for these tasks again. Without this, those that resolve later may wake
    /// another wait for nothing.
    pub fn give_up<'a>(self, tasks: impl Iterator<Item = &'a Task>) {
        for task in tasks {
            task.unwatch(&self.countdown);
        }
    }
}

/// How many tasks to wait for, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How many of them have to resolve, counting those that already have.
    pub enough: usize,
    /// Whether one that fails ends the wait, too.
    pub until_failure: bool,
    /// Its time limit, if it has one.
    pub timeout: Option<Duration>,
}

impl Patience {
    /// Waits until `enough` tasks have resolved, however they ended, and without a limit of time.
    pub fn for_all(enough: usize) -> Patience {
        Patience {
            enough,
            until_failure: false,
            timeout: None,
        }
    }
}

/// Waits once for tasks of which none comes twice.
pub fn wait_for<'a>(
    tasks: impl Iterator<Item = &'a Task> + Clone,
    patience: Patience,
    attention: impl Attention,
) -> Waited {
    let resolved = tasks.clone().filter(|t| t.is_resolved()).count();
    if resolved >= patience.enough {
        return Waited::Ready;
    }
    let group = Group::new(tasks.clone(), patience.until_failure);
    let waited = group.wait(patience.enough, patience.timeout, attention);
    group.give_up(tasks);
    waited
}
