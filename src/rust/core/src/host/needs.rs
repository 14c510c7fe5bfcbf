//! Tasks that wait for the values of others, of this host or of another one.
//!
//! When a task resolves, each that needs it is told, on the thread on which it resolves. The last of the values makes the
//! waiting task complete, without the dispatcher's lock, and sends it to the queue ([`Event::Ready`]). An error ends it
//! ([`Event::Broken`]), and with it those that need it, and so on. `in_turn` takes these steps one after the other, not one
//! within the other: a chain of 20,000 tasks would fill the stack.
//!
//! The other way round, a task that ends without the values that it needs (cancelled, timed out, failed, reset) lets down
//! the tasks that make them. Those whose values nobody else wants are cancelled ([`cancel_unwanted`]), whatever host has
//! them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Host, Shared};
use crate::dispatcher::Event;
use crate::task::{Cause, Outcome, Task, take_unwanted};

/// The hosts of this process.
static HOSTS: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// A host whose tasks may be cancelled because nobody wants their values.
pub(super) fn register(host: &Arc<Shared>) {
    let mut hosts = HOSTS.lock();
    hosts.retain(|host| host.strong_count() > 0);
    hosts.push(Arc::downgrade(host));
}

fn hosts() -> Vec<Arc<Shared>> {
    HOSTS.lock().iter().filter_map(Weak::upgrade).collect()
}

/// Cancels the tasks of which this thread has found that nobody wants their values, then those that these alone have needed,
/// and so on. To be called under no lock, after [`Task::abandon`]; the host itself calls it after each event.
pub fn cancel_unwanted() {
    // The last first: to cancel the running one first would only have its daemon begin the next, to be cancelled as well.
    for task in take_unwanted().into_iter().rev() {
        in_turn(move || {
            // Each may have been cancelled, or be needed again.
            if !task.is_wanted() {
                hosts().into_iter().any(|host| Host(host).cancel(&task));
            }
        });
    }
}

impl Shared {
    /// Has a task that has been handed over hear of what it needs.
    pub(super) fn await_needs(self: &Arc<Self>, task: &Arc<Task>) {
        let needs = task.needs();
        // One more than it needs, for this function itself: another task may have completed the constants in the meantime,
        // and then there may be nothing left to wait for.
        let left = Arc::new(AtomicUsize::new(needs.len() + 1));
        for need in needs {
            if need.is_resolved() {
                // Of a checkpoint: it is read here, and not where others wait for it.
                need.content();
            }
            // Weak: this may be kept for as long as the needed task runs, and the needed task has it.
            let (shared, waiting) = (Arc::downgrade(self), Arc::downgrade(task));
            let (needed, left) = (Arc::downgrade(&need), left.clone());
            need.on_resolved(Box::new(move |_| {
                let (Some(shared), Some(task)) = (shared.upgrade(), waiting.upgrade()) else {
                    return;
                };
                // It is there: the thread that resolves a task holds it until all callbacks have been called.
                let Some(need) = needed.upgrade().filter(|_| !task.is_resolved()) else {
                    return;
                };
                if need.content().is_none() {
                    let id = task.id();
                    let outcome = Outcome::Argument(Cause::new(&need));
                    in_turn(move || shared.handle(Event::Broken { id }, Some(outcome)));
                } else {
                    shared.count_down(&task, &left);
                }
            }));
        }
        self.count_down(task, &left);
    }

    /// One thing less that a task waits for. After the last, it is complete.
    fn count_down(self: &Arc<Self>, task: &Task, left: &AtomicUsize) {
        if left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let (shared, id, bytes) = (self.clone(), task.id(), task.complete());
            in_turn(move || shared.handle(Event::Ready { id, bytes }, None));
        }
    }
}

type Step = Box<dyn FnOnce()>;

thread_local! {
    static STEPS: RefCell<VecDeque<Step>> = RefCell::default();
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

/// Takes a step on this thread: now, or after the one that has led to it.
fn in_turn(step: impl FnOnce() + 'static) {
    /// Also after a panic.
    struct Done;
    impl Drop for Done {
        fn drop(&mut self) {
            AT_WORK.set(false);
        }
    }
    STEPS.with_borrow_mut(|steps| steps.push_back(Box::new(step)));
    if AT_WORK.replace(true) {
        return;
    }
    let _done = Done;
    while let Some(step) = STEPS.with_borrow_mut(VecDeque::pop_front) {
        step();
    }
}
