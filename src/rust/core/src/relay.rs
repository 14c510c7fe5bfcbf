//! A relay: a daemon to one host and the host of others, to which it passes tasks on.
//!
//! For a machine that stands between, such as a cluster's head node: the host need not be
//! reachable from the daemons. Payloads go through as they are; nothing is evaluated.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::dispatcher::Target;
use crate::host::{Host, MOST_SLOTS};
use crate::memory::{self, Content, Parts};
use crate::protocol::{Done, Kind, Seq, ToHost};
use crate::sys::signals;
use crate::task::{Constants, Outcome, Payload, Task, next_task_id};
use crate::worker::{self, Assignment, Common, Next, Runtime, Worker};

/// The number of tasks that a relay may hold: they wait in its own queue.
pub const SLOTS: u32 = MOST_SLOTS;

/// Tasks that are passed on, by their numbers on the link to the host above. It is what
/// [`Worker::dial`] needs of a runtime.
pub struct Relay {
    below: Host,
    tasks: Mutex<Passed>,
}

#[derive(Default)]
struct Passed {
    tasks: FxHashMap<Seq, Vec<Arc<Task>>>,
    last: Seq,
    /// Cancelled between being read and being passed on.
    early: FxHashSet<Seq>,
}

/// Why a relay has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The host above is gone; with `end`, all daemons shall leave.
    Lost {
        /// The host has told the relay to leave for good.
        end: bool,
    },
    /// By a Ctrl-C.
    Interrupted,
}

impl Runtime for Relay {
    fn interrupt(&self) {}
    fn forget_interrupt(&self) {}
    fn exit(&self) {}
    fn raise(&self, _: i32) {}

    fn cancelled(&self, seq: Seq) {
        let tasks = {
            let mut passed = self.tasks.lock();
            if seq > passed.last {
                passed.early.insert(seq);
            }
            passed.tasks.get(&seq).cloned().unwrap_or_default()
        };
        for task in tasks {
            self.below.cancel(&task);
        }
    }
}

impl Relay {
    /// A relay to the daemons of `below`.
    pub fn new(below: Host) -> Arc<Relay> {
        Arc::new(Relay {
            below,
            tasks: Mutex::default(),
        })
    }

    /// Passes tasks on and values back until the host above is gone. `worker` is a link to it,
    /// dialled with this as its runtime.
    pub fn run(self: &Arc<Self>, worker: &mut Worker, interrupted: impl Fn() -> bool) -> Ended {
        // Values are sent by a thread of their own: it may have to wait until the host above
        // takes them, which neither those who bring them nor the reader may.
        let (up, news) = mpsc::channel::<News>();
        let above = worker.sender();
        let sending = signals::with_all_blocked(|| {
            std::thread::Builder::new()
                .name("mirai-relay".into())
                .spawn(move || send_up(&*above, &news))
                .expect("a thread starts")
        });
        let mut constants = Known::default();
        let ended = loop {
            match worker.next(None, &interrupted) {
                Next::Task(task) => self.pass(task, &mut constants, &up),
                Next::Configuration(body) => self.below.configure(Some(body.into())),
                Next::Lost { end } => break Ended::Lost { end },
                Next::Interrupted => break Ended::Interrupted,
                Next::TimedOut => {}
            }
        };
        // Whatever is still under way below sends to nobody.
        drop(up);
        self.below.close(matches!(ended, Ended::Lost { end: true }));
        let _ = sending.join();
        ended
    }

    fn pass(self: &Arc<Self>, task: Assignment, known: &mut Known, up: &Sender<News>) {
        let seq = task.seq;
        let constants = task.constants.as_ref().map(|c| known.get(c, &self.below));
        let local = self.below.passes_memory();
        let body = memory::onward(task.body.into(), &task.pieces, local);
        let body = body.forwarded(task.layout.attached() as u32);
        let make = |n: usize| -> Vec<Arc<Task>> {
            let payload = || Payload {
                kind: task.kind,
                stream: task.stream,
                constants: constants.clone(),
                body: body.clone(),
            };
            (0..n)
                .map(|_| {
                    let one = Task::new(next_task_id(), payload());
                    // As the session above numbers it, so that its output has the same name everywhere.
                    Arc::new(one.labelled(task.number, None))
                })
                .collect()
        };
        let unwanted = match task.kind {
            Kind::Task | Kind::Map => {
                let tasks = make(1);
                let unwanted = self.note(seq, &tasks, up);
                for task in tasks {
                    self.below.submit(task, None, Target::Any);
                }
                unwanted
            }
            // For every daemon; without any, for the first to come.
            Kind::Setup => {
                let mut unwanted = false;
                let submitted = self.below.submit_to_each(1, |n| {
                    let tasks = make(n);
                    unwanted = self.note(seq, &tasks, up);
                    Some(tasks)
                });
                submitted.expect("tasks are always made");
                unwanted
            }
        };
        if unwanted {
            self.cancelled(seq);
        }
    }

    /// Notes the tasks that one from above has become, the first of which answers for them all. Whether nobody wants it
    /// any more.
    fn note(self: &Arc<Self>, seq: Seq, tasks: &[Arc<Task>], up: &Sender<News>) -> bool {
        if let Some(first) = tasks.first() {
            let (task, up) = (Arc::downgrade(first), up.clone());
            first.on_report(Arc::new(move || {
                if let Some(task) = task.upgrade() {
                    let _ = up.send(News::Report(seq, task));
                }
            }));
        }
        let left = Arc::new(AtomicUsize::new(tasks.len()));
        for task in tasks {
            let (relay, left) = (Arc::downgrade(self), left.clone());
            let (first, up) = (tasks[0].clone(), up.clone());
            task.on_resolved(Box::new(move |_| {
                if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                    let relay = relay.upgrade();
                    if let Some(relay) = &relay {
                        relay.tasks.lock().tasks.remove(&seq);
                    }
                    // Now, while the log has it for sure.
                    let failed = matches!(first.outcome(), Some(Outcome::Error(_)));
                    let error = relay
                        .filter(|_| failed)
                        .and_then(|relay| relay.below.error_of(first.id()));
                    // Nobody listens any more: there is no host to tell.
                    let _ = up.send(News::Done(seq, first, error));
                }
            }));
        }
        let mut passed = self.tasks.lock();
        passed.last = seq;
        passed.tasks.insert(seq, tasks.to_vec());
        passed.early.remove(&seq)
    }
}

/// What the host above is to be told of one of its tasks.
enum News {
    /// It has sent something ahead.
    Report(Seq, Arc<Task>),
    /// It has resolved, to an error with this message for the log.
    Done(Seq, Arc<Task>, Option<Box<str>>),
}

/// Sends what comes to the host above, until there is nobody who could send more, or the host is gone.
fn send_up(above: &dyn worker::Sender, news: &Receiver<News>) {
    // Reports that the host has been sent, of tasks that have not resolved.
    let mut reported: FxHashMap<Seq, u64> = FxHashMap::default();
    for news in news {
        let (News::Report(seq, task) | News::Done(seq, task, _)) = &news;
        let sent = reported.entry(*seq).or_default();
        let reports = task.reports().after(*sent);
        *sent = reports.dropped + reports.kept.len() as u64;
        for report in reports.kept {
            if !send_content(above, &ToHost::Report { seq: *seq }, &report, &[]) {
                return;
            }
        }
        if let News::Done(seq, task, error) = news {
            reported.remove(&seq);
            if !send_value(above, seq, &task, error) {
                return;
            }
        }
    }
}

/// Sends the value of a task to the host above, with the message of an error. False if that is gone.
fn send_value(above: &dyn worker::Sender, seq: Seq, task: &Task, error: Option<Box<str>>) -> bool {
    let (outcome, content) = match task.outcome() {
        Some(Outcome::Value(content)) => (Done::Value, Some(content)),
        Some(Outcome::Error(content)) => (Done::Error, Some(content)),
        Some(Outcome::Canceled) => (Done::Skipped, None),
        _ => (Done::Lost, None),
    };
    let notes = content.and_then(Content::notes).unwrap_or_default();
    let message = ToHost::Done {
        seq,
        outcome,
        // Of no use: a relay holds whatever it is sent.
        spent: 0,
        notes: notes.len() as u64,
        error,
    };
    let Some(content) = content else {
        // May wait for the status of a process, so not asked of tasks that have a value.
        let reason = task.reset_reason().unwrap_or_default();
        return above.send(&message, Parts::from(&reason)).is_ok();
    };
    send_content(above, &message, content, notes)
}

/// Sends what has come from below, and then `notes`, to the host above. False if that is gone.
fn send_content(
    above: &dyn worker::Sender,
    message: &ToHost,
    content: &Content,
    notes: &[u8],
) -> bool {
    if content.pieces.is_empty() && notes.is_empty() {
        return above.send(message, Parts::from(&content.bytes)).is_ok();
    }
    // Nobody here reads a value, and so nobody is given its pieces. What was made of segments is not copied.
    let bytes = Bytes::from([&content.bytes, notes].concat());
    let body = memory::onward(bytes, &content.pieces, false);
    above.send(message, body.parts()).is_ok()
}

/// Constants by the bytes that have come from above: those that are still in use below.
#[derive(Default)]
struct Known(Vec<(Arc<Vec<u8>>, Weak<Constants>)>);

impl Known {
    fn get(&mut self, common: &Common, below: &Host) -> Arc<Constants> {
        let bytes = &common.bytes;
        // Those that the link above has forgotten.
        self.0.retain(|(known, _)| Arc::strong_count(known) > 1);
        let at = self
            .0
            .iter()
            .position(|(known, _)| Arc::ptr_eq(known, bytes));
        if let Some(constants) = at.and_then(|i| self.0[i].1.upgrade()) {
            return constants;
        }
        let whole = Bytes::from_owner(Shared(bytes.clone()));
        let body = memory::onward(whole, &common.pieces, below.passes_memory());
        let attached = common.layout.attached() as u32;
        let constants = below.constants(body.forwarded(attached));
        if let Some(at) = at {
            self.0.swap_remove(at);
        }
        self.0.push((bytes.clone(), Arc::downgrade(&constants)));
        constants
    }
}

struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
