//! The common queue: tasks of higher priority first, and first in, first out within one.
//!
//! A task waits for as long as tasks of higher priority come: it does not rise by waiting. The default priority has a
//! deque of its own, so that it costs nothing that there are others; each other priority has one while it has tasks.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, VecDeque};

use super::{Dispatcher, Policy, Target, TaskId};

/// An empty queue keeps the memory of this many tasks; that of more is freed.
const FEW_PLACES: usize = 4096;

/// Of a task in the queue: higher goes first. The default is 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Priority(f64);

impl Priority {
    /// `NaN` becomes the default.
    pub fn new(number: f64) -> Priority {
        // The sum makes no difference but of -0.
        Priority(if number.is_nan() { 0.0 } else { number + 0.0 })
    }
}

impl Ord for Priority {
    fn cmp(&self, other: &Priority) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Priority {
    fn partial_cmp(&self, other: &Priority) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Priority {
    fn eq(&self, other: &Priority) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Priority {}

/// Ids of tasks by priority. Some may be stale: of tasks that are over, which are passed over, and swept when they prevail.
#[derive(Default)]
pub(super) struct Queue {
    default: VecDeque<TaskId>,
    /// None of them is empty.
    others: BTreeMap<Reverse<Priority>, VecDeque<TaskId>>,
    stale: usize,
}

/// Which of the deques has the task that is next.
enum Head {
    Default,
    Other(Reverse<Priority>),
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.default.is_empty() && self.others.is_empty()
    }

    pub(super) fn push_back(&mut self, priority: Priority, task: TaskId) {
        if priority == Priority::default() {
            self.default.push_back(task);
        } else {
            self.others
                .entry(Reverse(priority))
                .or_default()
                .push_back(task);
        }
    }

    /// For round robin, where there is one priority.
    pub(super) fn push_front(&mut self, task: TaskId) {
        self.default.push_front(task);
    }

    fn head(&self) -> Option<Head> {
        let Some((first, _)) = self.others.first_key_value() else {
            return (!self.default.is_empty()).then_some(Head::Default);
        };
        if self.default.is_empty() || first.0 > Priority::default() {
            Some(Head::Other(*first))
        } else {
            Some(Head::Default)
        }
    }

    pub(super) fn front(&self) -> Option<TaskId> {
        match self.head()? {
            Head::Default => self.default.front().copied(),
            Head::Other(priority) => self.others.get(&priority)?.front().copied(),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<TaskId> {
        match self.head()? {
            Head::Default => {
                let task = self.default.pop_front();
                if self.default.is_empty() && self.default.capacity() > FEW_PLACES {
                    self.default = VecDeque::new();
                }
                task
            }
            Head::Other(priority) => {
                let queue = self.others.get_mut(&priority)?;
                let task = queue.pop_front();
                if queue.is_empty() {
                    self.others.remove(&priority);
                }
                task
            }
        }
    }

    /// Puts tasks back where they stood, which is by their ids.
    fn put_back(&mut self, priority: Priority, mut tasks: Vec<TaskId>) {
        let queue = if priority == Priority::default() {
            &mut self.default
        } else {
            self.others.entry(Reverse(priority)).or_default()
        };
        if let ([task], Some(last)) = (&tasks[..], queue.back()) {
            // Without moving the others, which may be many.
            if last < task {
                queue.push_back(*task);
            } else {
                let older = queue.partition_point(|other| other < task);
                queue.insert(older, *task);
            }
            return;
        }
        tasks.sort_unstable();
        let Some(last) = tasks.last() else { return };
        let older = queue.partition_point(|task| task < last);
        tasks.extend(queue.drain(..older));
        tasks.sort_unstable();
        for task in tasks.into_iter().rev() {
            queue.push_front(task);
        }
    }

    /// A task at the head has been found stale and taken off.
    pub(super) fn one_stale_less(&mut self) {
        self.stale = self.stale.saturating_sub(1);
    }

    /// A task in the queue is over. Drops all of these once they are the larger part.
    pub(super) fn one_stale_more(&mut self, is_live: impl Fn(TaskId) -> bool) {
        self.stale += 1;
        if self.stale <= 1024 {
            return;
        }
        let others: usize = self.others.values().map(VecDeque::len).sum();
        if self.stale > (self.default.len() + others) / 2 {
            self.default.retain(|task| is_live(*task));
            self.others.retain(|_, queue| {
                queue.retain(|task| is_live(*task));
                !queue.is_empty()
            });
            self.stale = 0;
        }
    }
}

impl<J: Clone> Dispatcher<J> {
    /// Of a task for any daemon.
    pub(super) fn priority(&self, task: TaskId) -> Priority {
        let entry = self.tasks.get(task);
        let rules = entry.and_then(|entry| entry.rules.as_ref());
        match self.config.policy {
            Policy::Queue => rules.map_or_else(Priority::default, |rules| rules.priority),
            // Tasks do not wait in one queue.
            Policy::RoundRobin => Priority::default(),
        }
    }

    /// Puts a new task at the end of the queue.
    pub(super) fn enqueue(&mut self, task: TaskId) {
        let priority = self.priority(task);
        self.queue.push_back(priority, task);
    }

    /// Puts tasks back into the queue, where they stood in it.
    pub(super) fn requeue(&mut self, tasks: Vec<TaskId>) {
        self.queued += tasks.len();
        let mut by_priority = BTreeMap::<Priority, Vec<TaskId>>::new();
        for task in tasks {
            by_priority
                .entry(self.priority(task))
                .or_default()
                .push(task);
        }
        for (priority, tasks) in by_priority {
            self.queue.put_back(priority, tasks);
        }
    }

    /// The live task at the head of the queue.
    pub(super) fn next_queued(&mut self) -> Option<TaskId> {
        while let Some(task) = self.queue.front() {
            if self.tasks.contains(task) {
                return Some(task);
            }
            self.queue.pop_front();
            self.queue.one_stale_less();
        }
        None
    }

    /// A live task that has not been sent is over.
    pub(super) fn leave_queue(&mut self, target: Target) {
        if self.is_queued(target) {
            self.queued -= 1;
        }
        let tasks = &self.tasks;
        self.queue.one_stale_more(|task| tasks.contains(task));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_goes_first_and_first_in_first_out_within_one() {
        let mut queue = Queue::default();
        let tasks = [
            (0.0, 1),
            (2.5, 2),
            (-1.0, 3),
            (0.0, 4),
            (f64::INFINITY, 5),
            (2.5, 6),
        ];
        for (priority, task) in tasks {
            queue.push_back(Priority::new(priority), task);
        }
        let mut order = Vec::new();
        while let Some(task) = queue.front() {
            assert_eq!(queue.pop_front(), Some(task));
            order.push(task);
        }
        assert_eq!(order, [5, 2, 6, 1, 4, 3]);
        assert!(queue.is_empty() && queue.pop_front().is_none());
        assert!(
            queue.others.is_empty(),
            "a priority without tasks costs nothing"
        );
    }

    #[test]
    fn a_number_is_a_priority_whatever_it_is() {
        for same in [0.0, -0.0, f64::NAN, -f64::NAN] {
            assert_eq!(Priority::new(same), Priority::default());
        }
        assert!(Priority::new(f64::NEG_INFINITY) < Priority::new(-1e300));
    }

    #[test]
    fn what_is_over_is_swept_from_all_priorities() {
        let mut queue = Queue::default();
        for task in 0..4000u64 {
            queue.push_back(Priority::new((task % 3) as f64), task);
        }
        for _ in 0..4000 {
            queue.one_stale_more(|task| task < 30);
        }
        let left = queue.default.len() + queue.others.values().map(VecDeque::len).sum::<usize>();
        assert_eq!(left, 30);
        for task in 30..4000u64 {
            queue.push_back(Priority::new(1e9 + task as f64), task);
        }
        for _ in 0..4000 {
            queue.one_stale_more(|_| false);
        }
        assert!(queue.others.len() < 1025);
    }
}
