//! Tasks that need the values of others, and are sent once these are there.
//!
//! The values go along with the task as they came: see [`Body::attach`]. A task, and what several tasks have in common, keeps
//! the tasks that it [`Needs`] until it is complete or over. The host has it told when they resolve (`host/needs.rs`).

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Outcome, Task};
use crate::memory::{Body, Content, Parts, Passed, Value};

/// The task that could not be computed, by which another one has ended: the first one of those that depend on each other.
#[derive(Clone)]
pub struct Cause(Arc<Task>);

impl Cause {
    /// Of a task that needs `task`, which has failed.
    pub(crate) fn new(task: &Arc<Task>) -> Cause {
        match task.outcome() {
            Some(Outcome::Argument(cause)) => cause.clone(),
            _ => Cause(task.clone()),
        }
    }

    /// The task that has failed by itself.
    pub fn task(&self) -> &Task {
        &self.0
    }
}

impl std::fmt::Debug for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cause({})", self.0.id())
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Cause) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Cause {}

/// What a task has if it needs others, or is needed by them.
#[derive(Default)]
pub(super) struct Flow {
    needs: Mutex<Option<Needs>>,
    /// Those that need it and are not over.
    dependents: AtomicUsize,
    /// A task that needed it has ended without its value.
    let_down: AtomicBool,
    /// Nobody but its dependents can ask for its value.
    abandoned: AtomicBool,
    /// Its value, made ready to go on.
    passed: OnceLock<Held>,
}

/// A value that has been passed on, for as long as its task is held.
struct Held {
    passed: Passed,
    size: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(self.size, Ordering::Relaxed);
    }
}

static HELD: AtomicU64 = AtomicU64::new(0);

/// Bytes of values that have gone on to other tasks and are still held. Mostly nobody will ask for them, but a collector
/// has to find that out.
pub fn bytes_passed_on() -> u64 {
    HELD.load(Ordering::Relaxed)
}

/// How often a task has been let down that somebody could still ask for its value.
static LET_DOWN: AtomicUsize = AtomicUsize::new(0);

/// How many tasks have run on although the task that needed them had ended. For a collector, which finds out whether
/// somebody can ask for their values.
pub fn let_down() -> usize {
    LET_DOWN.load(Ordering::Relaxed)
}

thread_local! {
    /// See [`take_unwanted`]. Of this thread, because tasks are let down under all kinds of locks.
    static UNWANTED: RefCell<Vec<Arc<Task>>> = const { RefCell::new(Vec::new()) };
}

/// Tasks of which this thread has found that nobody wants their values: those that needed them have ended, and nobody else
/// can ask. In the order in which they were needed.
pub(crate) fn take_unwanted() -> Vec<Arc<Task>> {
    UNWANTED.with_borrow_mut(std::mem::take)
}

/// Tasks that are needed, each counting this as one that needs it.
struct Needs(Vec<Arc<Task>>);

impl Needs {
    fn new(tasks: Vec<Arc<Task>>) -> Needs {
        for task in &tasks {
            task.flow().dependents.fetch_add(1, Ordering::SeqCst);
        }
        Needs(tasks)
    }

    /// A body with their values attached, which are there.
    fn attach_to(&self, body: &Body) -> Body {
        body.attach(
            self.0
                .iter()
                .map(|need| need.passed().unwrap_or(Parts::from(&[]).into())),
        )
    }
}

impl Drop for Needs {
    fn drop(&mut self) {
        for task in &self.0 {
            let flow = task.flow();
            if !task.is_resolved() && !flow.let_down.swap(true, Ordering::SeqCst) {
                LET_DOWN.fetch_add(1, Ordering::Relaxed);
            }
            if flow.dependents.fetch_sub(1, Ordering::SeqCst) == 1 {
                task.note_if_unwanted();
            }
        }
    }
}

impl Task {
    fn flow(&self) -> &Flow {
        self.flow.get_or_init(Box::default)
    }

    /// The same, needing the values of others, which are attached to its body in this order. Give each once.
    #[must_use]
    pub fn needing(self, tasks: Vec<Arc<Task>>) -> Task {
        if !tasks.is_empty() {
            *self.flow().needs.lock() = Some(Needs::new(tasks));
        }
        self
    }

    /// The tasks that it needs, also by its constants, until it is sent or over.
    pub fn needs(&self) -> Vec<Arc<Task>> {
        let of = |needs: &Mutex<Option<Needs>>| -> Vec<Arc<Task>> {
            needs.lock().as_ref().map_or_else(Vec::new, |n| n.0.clone())
        };
        let mut all = self
            .flow
            .get()
            .map_or_else(Vec::new, |flow| of(&flow.needs));
        let constants = self
            .payload
            .lock()
            .as_ref()
            .and_then(|p| p.constants.clone());
        if let Some(constants) = constants {
            all.extend(of(&constants.needs));
        }
        all
    }

    /// Whether it needs others.
    pub(crate) fn has_needs(&self) -> bool {
        let own = || {
            self.flow
                .get()
                .is_some_and(|flow| flow.needs.lock().is_some())
        };
        let payload = self.payload.lock();
        let common = payload.as_ref().and_then(|p| p.constants.as_ref());
        common.is_some_and(|c| c.needs.lock().is_some()) || own()
    }

    /// What it needs is there: completes its body. Returns the size of it.
    pub(crate) fn complete(&self) -> u64 {
        let needs = self.flow.get().and_then(|flow| flow.needs.lock().take());
        // Not under the lock of the payload: copying may take a while.
        if let Some(payload) = self.payload() {
            if let Some(constants) = &payload.constants {
                constants.body();
            }
            if let Some(needs) = needs {
                let body = needs.attach_to(&payload.body);
                if let Some(payload) = self.payload.lock().as_mut() {
                    payload.body = body;
                }
            }
        }
        self.size()
    }

    pub(super) fn forget_needs(&self) {
        if let Some(flow) = self.flow.get() {
            let needs = flow.needs.lock().take();
            drop(needs);
        }
    }

    /// Nobody but the tasks that need it can ask for its value any more. If these have ended without it, it is cancelled by
    /// [`cancel_unwanted`](crate::host::cancel_unwanted).
    pub fn abandon(self: &Arc<Self>) {
        if let Some(flow) = self.flow.get() {
            flow.abandoned.store(true, Ordering::SeqCst);
            self.note_if_unwanted();
        }
    }

    /// Whether its value is of use: to who can ask for it, to a task that needs it and is not over, or for a checkpoint. Also
    /// true of tasks that have let down no other.
    pub fn is_wanted(&self) -> bool {
        let in_use = |flow: &Flow| {
            !flow.abandoned.load(Ordering::SeqCst)
                || flow.dependents.load(Ordering::SeqCst) > 0
                || !flow.let_down.load(Ordering::SeqCst)
        };
        self.reserved.get().is_some() || self.flow.get().is_none_or(|flow| in_use(flow))
    }

    fn note_if_unwanted(self: &Arc<Self>) {
        if !self.is_resolved() && !self.is_wanted() {
            // Not at the end of a thread, when there is no such list any more.
            let _ = UNWANTED.try_with(|unwanted| unwanted.borrow_mut().push(self.clone()));
        }
    }

    /// Whether its value is there, and can be read.
    pub(crate) fn content(&self) -> Option<&Content> {
        match self.outcome()? {
            Outcome::Value(content) => Some(content),
            Outcome::Stored(stored) => stored.content().ok(),
            _ => None,
        }
    }

    /// Its value, to be sent on.
    fn passed(&self) -> Option<Value<'_>> {
        let content = self.content()?;
        let passed = self.flow().passed.get_or_init(|| {
            let size = content.size();
            HELD.fetch_add(size, Ordering::Relaxed);
            Held {
                passed: Passed::new(content),
                size,
            }
        });
        Some(passed.passed.value(content))
    }

    /// Makes its value ready for the tasks that need it. To be called before it is read by who may then change the memory,
    /// on the thread that hands over the tasks that need it.
    pub fn make_ready_to_pass(&self) {
        let dependents = self.flow.get().map(|flow| &flow.dependents);
        if dependents.is_some_and(|n| n.load(Ordering::SeqCst) > 0) {
            self.passed();
        }
    }
}

/// What several tasks have in common: made by
/// [`Host::constants`](crate::host::Host::constants). Daemons forget it when the last
/// task that needs it has resolved.
pub struct Constants {
    pub(crate) id: u64,
    bare: Body,
    needs: Mutex<Option<Needs>>,
    /// With the values of those attached.
    whole: OnceLock<Body>,
    on_drop: Box<dyn Fn(u64) + Send + Sync>,
}

impl Constants {
    pub(crate) fn new(
        id: u64,
        body: Body,
        needs: Vec<Arc<Task>>,
        on_drop: Box<dyn Fn(u64) + Send + Sync>,
    ) -> Constants {
        Constants {
            id,
            bare: body,
            needs: Mutex::new((!needs.is_empty()).then(|| Needs::new(needs))),
            whole: OnceLock::new(),
            on_drop,
        }
    }

    /// To be sent. What it needs is there.
    pub(crate) fn body(&self) -> &Body {
        let whole = self.whole.get_or_init(|| match &*self.needs.lock() {
            Some(needs) => needs.attach_to(&self.bare),
            None => self.bare.clone(),
        });
        // Only now: a task that is handed over while the values are copied has to wait for that, and does so if there are
        // needs. Otherwise the dispatcher would send it, and this would be waited for under its lock.
        let needs = self.needs.lock().take();
        drop(needs);
        whole
    }
}

impl Drop for Constants {
    fn drop(&mut self) {
        (self.on_drop)(self.id);
    }
}

impl std::fmt::Debug for Constants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Constants({}, {} bytes)", self.id, self.bare.size())
    }
}
