//! The queue: which task goes to which daemon, and what becomes of it.
//!
//! A deterministic state machine without I/O, clocks or threads, called by
//! [`host`](crate::host) under its one lock. Events go in, together with the
//! time at which they happened; [`Action`]s come out, in the order in which they
//! have to be carried out. It is generic over the job `J`, of which it only
//! keeps clones (the host's is an `Arc`).
//!
//! The rules, which `tests/dispatcher_model.rs` checks against random histories:
//!
//! - A task submitted is resolved exactly once.
//! - [`Policy::Queue`]: first in, first out; a task is sent only to a daemon that
//!   can start it at once, that is, within [`AHEAD`] by the time that its tasks have taken
//!   of late. If it turns out otherwise, or another daemon falls idle, what it has not
//!   started is recalled to where it stood in the queue.
//!
//!   So no daemon starts a task after a later one, unless that task was taken back from another daemon, which was
//!   lost, has left or was asked to give it back. What is taken back is sent before anything later, but other
//!   daemons may have started later tasks in the meantime, and hold some. That is bounded: when a task
//!   is sent, each daemon that holds earlier ones unstarted has replied within the last [`OVERDUE`] or has
//!   been asked for them, and it holds at most [`MOST_AHEAD`] - 1 of them.
//! - [`Policy::RoundRobin`]: tasks are assigned in turn to the daemons connected at submission, each of
//!   which works in order.
//! - Without [`Config::retry`], no task is begun twice. What a daemon that is lost may have begun is
//!   over ([`Verdict::Reset`]); what it held beyond that goes back to where it came from. What it may
//!   have begun depends on its link ([`Replies`]):
//!   - [`Replies::Sure`]: the host has heard every reply, and a daemon replies before it begins the next
//!     task. So it is the oldest task without a reply (a relay, which stands for many daemons, may have
//!     begun as many as it has slots).
//!   - [`Replies::MayBeLost`]: a daemon may have replied, and have begun the next task, and the
//!     reply is lost with it. So it begins only what has been *granted*, and every task is counted as begun
//!     that is granted and not replied to. Of the tasks without a reply the oldest are granted: one, or
//!     as many tiny ones as fit into [`AHEAD`] by the time that its tasks have taken of late, at most
//!     [`MOST_AHEAD`] (a relay: all that it holds). A grant is raised by replies that have arrived, and by
//!     nothing else, and is never taken back.
//! - What is pinned to a daemon (everywhere) runs before anything submitted
//!   later starts there, and nowhere else.

mod ledger;
mod log;
mod peer;
mod view;

pub use log::{Label, PEERS_KEPT, PeerRow, PeerState, TASKS_KEPT, Tally, TaskRow, TaskState};
pub use peer::{AHEAD, MOST_AHEAD};
pub use view::{Running, SHOWN, SHOWN_LATELY, View};

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rustc_hash::FxHashMap;

use self::ledger::Ledger;
use self::log::{Log, Micros, Over};
use self::peer::{Flight, Peer};
use crate::protocol::{Done, Seq};

/// Names a task; unique in the process. Those submitted later have larger ones, but for threads that
/// overtake each other.
pub type TaskId = u64;
/// Names a connection of a daemon; unique in a dispatcher and increasing.
pub type PeerId = u32;
/// Index of a URL that is listened at, from 0.
pub type Endpoint = usize;
/// Time since an origin that the caller chooses and keeps.
pub type Time = Duration;

/// How tasks find their daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// One queue; each daemon holds one task at a time, or a few that are tiny.
    Queue,
    /// A queue per daemon, filled in turn.
    RoundRobin,
}

/// An empty queue keeps the memory of this many tasks; that of more is freed.
const FEW_PLACES: usize = 4096;

/// A daemon that has not replied for so long is not about to start what else it holds.
pub const OVERDUE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub policy: Policy,
    /// Run a task again whose daemon was lost in the middle of it.
    pub retry: bool,
    /// Bytes that may wait in the queue; the caller asks [`Dispatcher::has_room`].
    pub capacity: Option<u64>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            policy: Policy::Queue,
            retry: false,
            capacity: None,
        }
    }
}

/// Where a task may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Wherever the policy says.
    Any,
    /// On this connection, ahead of what is not pinned there.
    Peer(PeerId),
    /// On the first connection at this endpoint, which may be there already.
    Endpoint(Endpoint),
    /// On the daemon that connects after so many others from now on, from 0.
    Join(u32),
}

/// Whether what a daemon has replied reaches the host even if the daemon dies right after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replies {
    /// On one machine: what has been written to a socket can be read to its end. Grants are of no use.
    Sure,
    /// Across the network.
    MayBeLost,
}

/// What happened.
#[derive(Debug)]
pub enum Event<J> {
    /// Unique, and best larger than all that were submitted before.
    Submit {
        id: TaskId,
        job: J,
        /// Size of the payload, for the accounts.
        bytes: u64,
        deadline: Option<Time>,
        target: Target,
        /// For the log.
        label: Label,
    },
    /// A daemon connected and proved itself.
    Joined {
        peer: PeerId,
        endpoint: Endpoint,
        /// Tasks that it may run at once, at least 1.
        slots: u32,
        replies: Replies,
    },
    /// A daemon has finished with a task, or skipped it, on which it has spent this time.
    Replied {
        peer: PeerId,
        seq: Seq,
        spent: Duration,
        /// What came of it, for the log.
        reply: Reply,
    },
    /// The answer to [`Action::Recall`]: these have not been started and never will be there.
    Returned { peer: PeerId, from: Seq, to: Seq },
    /// A daemon will begin nothing more, and nothing beyond this task has begun.
    Leaving { peer: PeerId, begun: Seq },
    /// The connection is gone.
    Lost {
        peer: PeerId,
        /// Everything that the peer had sent has been read.
        heard_out: bool,
    },
    /// The endpoint has moved to another URL, and the connections there are closed: what
    /// they have started is not run again.
    Moved { endpoint: Endpoint },
    /// The user does not want this task any more.
    Cancel { id: TaskId },
    /// Time has passed: see [`Dispatcher::next_deadline`].
    Tick,
    /// Nobody will connect at this endpoint.
    Abandoned { endpoint: Endpoint },
    /// Every task ends. The links do, too: a daemon decides by itself whether to
    /// finish what it runs.
    Reset,
}

/// What a reply says, as far as the log needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub outcome: Done,
    /// Size of the value.
    pub bytes: u64,
    /// Message of the error, shortened.
    pub error: Option<Box<str>>,
}

impl Default for Reply {
    /// A value of no bytes.
    fn default() -> Reply {
        Reply {
            outcome: Done::Value,
            bytes: 0,
            error: None,
        }
    }
}

/// What to do about it.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<J> {
    Send {
        peer: PeerId,
        seq: Seq,
        job: J,
        /// Up to this one the daemon may begin what it has been sent: see [`Replies`].
        granted: Seq,
    },
    /// Tell the daemon that it may begin what it has been sent up to this one.
    Grant { peer: PeerId, to: Seq },
    /// Tell the daemon that nobody waits for this task.
    Cancel { peer: PeerId, seq: Seq },
    /// Ask the daemon to give back those of these tasks that it has not started. It must be
    /// answered.
    Recall { peer: PeerId, from: Seq, to: Seq },
    /// The task is over. It is not mentioned again.
    Resolve { job: J, verdict: Verdict },
    /// The queue has shrunk: see [`Dispatcher::has_room`].
    Room,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With the reply that the event was about.
    Replied,
    TimedOut,
    /// Its daemon was lost, or everything was reset.
    Reset,
    /// The URL at which its daemon was connected has been closed.
    Closed,
    Canceled,
}

/// Numbers for `status()` and `info()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tasks not yet sent, and sent.
    pub awaiting: usize,
    pub executing: usize,
    /// Tasks resolved so far, however they ended.
    pub completed: u64,
    /// Daemons connected now, and so far.
    pub connections: usize,
    pub cumulative: u64,
    /// Bytes waiting, now and at most so far.
    pub queued: u64,
    pub peak: u64,
}

/// Numbers of one endpoint; all but `online` accumulate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounts {
    pub online: u32,
    /// Connections so far; negative since the endpoint has moved, until the next one.
    pub instance: i32,
    pub assigned: u64,
    pub complete: u64,
}

struct Entry<J> {
    job: J,
    bytes: u64,
    deadline: Option<Time>,
    target: Target,
    /// Where it has been sent, if it has.
    sent: Option<(PeerId, Seq)>,
    submitted: Micros,
    /// When it was sent last.
    sent_at: Micros,
    /// Daemons that were lost and may have started it.
    failed_attempts: u32,
    label: Label,
}

#[derive(Default)]
struct EndpointState {
    counts: EndpointCounts,
    /// Tasks for the first connection here.
    waiting: VecDeque<TaskId>,
    first: Option<PeerId>,
    abandoned: bool,
    released: bool,
}

/// See the [module documentation](self).
pub struct Dispatcher<J> {
    config: Config,
    tasks: Ledger<Entry<J>>,
    /// Common queue. May hold ids that are no longer in `tasks`: cancelled
    /// ones, which are passed over (and swept when they prevail).
    queue: VecDeque<TaskId>,
    stale: usize,
    peers: FxHashMap<PeerId, Peer>,
    /// Peers with a free slot, which may be given something. The last one was
    /// busy most recently, so its caches are warm; it is the next to be used.
    idle: Vec<PeerId>,
    /// Round robin: whose turn it is.
    turn: VecDeque<PeerId>,
    /// Tasks for connections to come, by the number of the connection.
    joins: FxHashMap<u64, VecDeque<TaskId>>,
    endpoints: Vec<EndpointState>,
    /// Of these, those that were released.
    unused: Vec<Endpoint>,
    deadlines: BTreeSet<(Time, TaskId)>,
    in_flight: usize,
    counts: Counts,
    /// Of the event being handled.
    now: Time,
    /// Tasks in the common queue that are live.
    queued: usize,
    /// Peers that hold tasks which they have not started, and when to see whether one of them
    /// is [`OVERDUE`].
    holders: Vec<PeerId>,
    look_at: Option<Time>,
    log: Log,
}

impl<J: Clone> Dispatcher<J> {
    pub fn new(config: Config) -> Dispatcher<J> {
        Dispatcher {
            config,
            tasks: Ledger::new(),
            queue: VecDeque::new(),
            stale: 0,
            peers: FxHashMap::default(),
            idle: Vec::new(),
            turn: VecDeque::new(),
            joins: FxHashMap::default(),
            endpoints: Vec::new(),
            unused: Vec::new(),
            deadlines: BTreeSet::new(),
            in_flight: 0,
            counts: Counts::default(),
            now: Time::ZERO,
            queued: 0,
            holders: Vec::new(),
            look_at: None,
            log: Log::default(),
        }
    }

    pub fn config(&self) -> Config {
        self.config
    }

    /// Adds an endpoint and returns its index, which may be that of one that was released.
    pub fn add_endpoint(&mut self) -> Endpoint {
        if let Some(endpoint) = self.unused.pop() {
            self.endpoints[endpoint] = EndpointState::default();
            return endpoint;
        }
        self.endpoints.push(EndpointState::default());
        self.endpoints.len() - 1
    }

    /// Nobody will connect at this endpoint or submit for it: once the last connection there is gone,
    /// its index may be used again.
    pub fn release_endpoint(&mut self, endpoint: Endpoint) {
        self.endpoints[endpoint].released = true;
        self.reuse(endpoint);
    }

    fn reuse(&mut self, endpoint: Endpoint) {
        let state = &mut self.endpoints[endpoint];
        if state.released && state.counts.online == 0 {
            state.released = false;
            self.unused.push(endpoint);
        }
    }

    /// The earliest time at which [`Event::Tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        let first = self.deadlines.first().map(|(at, _)| *at);
        [first, self.look_at].into_iter().flatten().min()
    }

    /// Whether a payload of this size may join the queue. One that exceeds the
    /// whole capacity may do so when the queue is empty, or it never could.
    pub fn has_room(&self, bytes: u64) -> bool {
        match self.config.capacity {
            Some(most) => self.counts.queued == 0 || self.counts.queued + bytes <= most,
            None => true,
        }
    }

    pub fn counts(&self) -> Counts {
        Counts {
            awaiting: self.tasks.len() - self.in_flight,
            executing: self.in_flight,
            connections: self.peers.len(),
            ..self.counts
        }
    }

    /// Counts a task that resolved before it could be submitted: its payload could not be made.
    pub fn count_unsubmitted(&mut self) {
        self.counts.completed += 1;
    }

    pub fn endpoint_counts(&self) -> impl Iterator<Item = EndpointCounts> + '_ {
        self.endpoints.iter().map(|e| e.counts)
    }

    /// Whether a peer has nothing to do.
    pub fn is_idle(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_none_or(|p| p.flights.is_empty())
    }

    /// Connections in the order in which they were made, without those that leave.
    pub fn peers(&self) -> Vec<PeerId> {
        let staying = self.peers.iter().filter(|(_, p)| !p.leaving);
        let mut ids: Vec<PeerId> = staying.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// The task that a peer has been sent under this number, unless nobody waits for it any more.
    pub fn task_at(&self, peer: PeerId, seq: Seq) -> Option<J> {
        let flights = &self.peers.get(&peer)?.flights;
        let at = flights.binary_search_by_key(&seq, |f| f.seq).ok()?;
        Some(self.tasks.get(flights[at].id?)?.job.clone())
    }

    /// Takes an event and appends what has to be done about it to `out`.
    ///
    /// Events about tasks and peers that are gone are normal (they crossed
    /// with the one that ended them) and have no effect.
    pub fn handle(&mut self, now: Time, event: Event<J>, out: &mut Vec<Action<J>>) {
        self.now = now;
        match event {
            Event::Submit {
                id,
                job,
                bytes,
                deadline,
                target,
                label,
            } => {
                if let Some(at) = deadline {
                    self.deadlines.insert((at, id));
                }
                let entry = Entry {
                    job,
                    bytes,
                    deadline,
                    target,
                    sent: None,
                    submitted: now.into(),
                    sent_at: Micros::NONE,
                    failed_attempts: 0,
                    label,
                };
                self.tasks.insert(id, entry);
                self.counts.queued += bytes;
                self.place(id, target, out);
            }
            Event::Joined {
                peer,
                endpoint,
                slots,
                replies,
            } => self.joined(peer, endpoint, slots, replies, out),
            Event::Replied {
                peer,
                seq,
                spent,
                reply,
            } => self.replied(peer, seq, spent, reply, out),
            Event::Returned { peer, from, to } => self.returned(peer, from, to, out),
            Event::Leaving { peer, begun } => self.leaving(peer, begun, out),
            Event::Lost { peer, heard_out } => {
                let verdict = (!self.config.retry).then_some(Verdict::Reset);
                self.lost(peer, heard_out, verdict, out);
            }
            Event::Moved { endpoint } => self.moved(endpoint, out),
            Event::Cancel { id } => self.finish(id, Verdict::Canceled, true, out),
            Event::Tick => {
                // Without a queue the daemon is left to run on, as the contract says.
                let interrupt = self.config.policy == Policy::Queue;
                while self.deadlines.first().is_some_and(|(at, _)| *at <= now) {
                    let (_, id) = self.deadlines.pop_first().expect("there is a first one");
                    self.finish(id, Verdict::TimedOut, interrupt, out);
                }
                self.recall_overdue(out);
            }
            Event::Abandoned { endpoint } => {
                if let Some(e) = self.endpoints.get_mut(endpoint) {
                    e.abandoned = true;
                    for id in std::mem::take(&mut e.waiting) {
                        self.finish(id, Verdict::Reset, false, out);
                    }
                }
            }
            Event::Reset => {
                for id in self.tasks.ids().collect::<Vec<_>>() {
                    self.finish(id, Verdict::Reset, false, out);
                }
            }
        }
        if !self.holders.is_empty() && !self.idle.is_empty() && self.queued == 0 {
            self.recall_for_idle(out);
        }
        self.counts.peak = self.counts.peak.max(self.counts.queued);
    }

    /// Puts a new task where it waits, and sends it if it need not.
    fn place(&mut self, id: TaskId, target: Target, out: &mut Vec<Action<J>>) {
        match target {
            Target::Any => match self.config.policy {
                Policy::Queue => {
                    self.queue.push_back(id);
                    self.queued += 1;
                    self.feed_idle(out);
                }
                Policy::RoundRobin => {
                    // What was queued while nobody was connected comes first.
                    let in_turn = self.oldest_queued().is_none();
                    self.queue.push_back(id);
                    if in_turn {
                        self.deal(out);
                    }
                }
            },
            Target::Peer(peer) => match self.peers.get_mut(&peer) {
                Some(p) if !p.leaving => {
                    p.pinned.push_back(id);
                    self.feed(peer, out);
                }
                _ => self.finish(id, Verdict::Reset, false, out),
            },
            Target::Endpoint(endpoint) => match self.endpoints.get_mut(endpoint) {
                // A process can be faster than the task that it was started for.
                Some(EndpointState {
                    first: Some(peer), ..
                }) => {
                    let peer = *peer;
                    self.place(id, Target::Peer(peer), out);
                }
                Some(e) if !e.abandoned => e.waiting.push_back(id),
                _ => self.finish(id, Verdict::Reset, false, out),
            },
            Target::Join(others) => {
                let number = self.counts.cumulative + 1 + u64::from(others);
                self.joins.entry(number).or_default().push_back(id);
            }
        }
    }

    fn joined(
        &mut self,
        id: PeerId,
        endpoint: Endpoint,
        slots: u32,
        replies: Replies,
        out: &mut Vec<Action<J>>,
    ) {
        let state = &mut self.endpoints[endpoint];
        state.counts.online += 1;
        state.counts.instance = state.counts.instance.abs() + 1;
        self.counts.cumulative += 1;
        state.first.get_or_insert(id);
        let mut pinned = std::mem::take(&mut state.waiting);
        if let Some(mut tasks) = self.joins.remove(&self.counts.cumulative) {
            pinned.append(&mut tasks);
        }
        // In the order of submission, which is that of ids.
        pinned.make_contiguous().sort_unstable();
        let peer = Peer {
            endpoint,
            slots: slots.max(1) as usize,
            replies,
            flights: VecDeque::new(),
            granted: 0,
            begun: 0,
            pinned,
            assigned: VecDeque::new(),
            last_seq: 0,
            leaving: false,
            idle: false,
            holds: false,
            pace: None,
            since: self.now,
            recalled: None,
            joined: self.now,
            tasks: 0,
            busy: Duration::ZERO,
        };
        self.peers.insert(id, peer);
        self.turn.push_back(id);
        self.feed(id, out);
    }

    fn replied(
        &mut self,
        id: PeerId,
        seq: Seq,
        spent: Duration,
        reply: Reply,
        out: &mut Vec<Action<J>>,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Ok(at) = peer.flights.binary_search_by_key(&seq, |f| f.seq) else {
            return;
        };
        let flight = peer.flights.remove(at).expect("position is in range");
        peer.keep_pace(spent);
        peer.since = self.now;
        peer.tasks += 1;
        peer.busy += spent;
        self.endpoints[peer.endpoint].counts.complete += 1;
        // The daemon comes first: it shall not wait for the host's own business.
        let done = flight.id.and_then(|task| self.take(task));
        self.feed(id, out);
        if let Some((task, entry)) = flight.id.zip(done) {
            // By the host's clock: a peer may say anything.
            let sent = entry.sent_at.get().unwrap_or_default();
            let started = self.now.saturating_sub(spent).max(sent);
            self.log.add(Over {
                id: task,
                submitted: entry.submitted,
                started: started.into(),
                ended: self.now.into(),
                spent: spent.into(),
                bytes_in: entry.bytes,
                bytes_out: reply.bytes,
                peer: Some(id),
                attempts: entry.failed_attempts + 1,
                state: match reply.outcome {
                    Done::Value => TaskState::Done,
                    Done::Error => TaskState::Failed,
                    Done::Skipped => TaskState::Canceled,
                    Done::Lost => TaskState::Lost,
                },
                label: entry.label,
                error: reply.error,
            });
            out.push(Action::Resolve {
                job: entry.job,
                verdict: Verdict::Replied,
            });
        }
    }

    /// A peer has given back what it had not started.
    fn returned(&mut self, id: PeerId, from: Seq, to: Seq, out: &mut Vec<Action<J>>) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some((first, last)) = peer.recalled.take() else {
            return;
        };
        // No more than it has been asked for.
        let given = from.max(first)..=to.min(last);
        peer.begun = from.clamp(first, last + 1) - 1;
        let held = std::mem::take(&mut peer.flights);
        let (back, held): (VecDeque<_>, _) = held.into_iter().partition(|f| given.contains(&f.seq));
        peer.flights = held;
        self.endpoints[peer.endpoint].counts.assigned -= back.len() as u64;
        let mut free = Vec::new();
        for task in self.unsend(&back).into_iter().rev() {
            if self.is_free(task) {
                free.push(task);
            } else {
                self.peer(id).pinned.push_front(task);
            }
        }
        free.reverse();
        self.requeue(free);
        self.feed_idle(out);
        self.feed(id, out);
    }

    /// Has peers give back what stands behind a task that turns out long.
    fn recall_overdue(&mut self, out: &mut Vec<Action<J>>) {
        if self.look_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.look_at = None;
        for id in self.holders.clone() {
            let peer = &self.peers[&id];
            let due = peer.since + OVERDUE;
            if peer.recalled.is_some() {
                continue;
            }
            if due <= self.now {
                self.recall(id, out);
            } else {
                self.look_at = Some(self.look_at.map_or(due, |at| at.min(due)));
            }
        }
    }

    /// There is a peer with nothing to do: has the one that holds most give it back.
    fn recall_for_idle(&mut self, out: &mut Vec<Action<J>>) {
        let held = |id: &PeerId| {
            let peer = &self.peers[id];
            let unasked = peer.recalled.is_none();
            unasked.then_some((peer.flights.len(), *id))
        };
        if let Some((_, most)) = self.holders.iter().filter_map(held).max() {
            self.recall(most, out);
        }
    }

    fn recall(&mut self, id: PeerId, out: &mut Vec<Action<J>>) {
        let peer = self.peer(id);
        // The first one is under way.
        let (from, to) = (peer.flights[1].seq.max(peer.begun + 1), peer.last_seq);
        peer.recalled = Some((from, to));
        out.push(Action::Recall { peer: id, from, to });
    }

    fn leaving(&mut self, id: PeerId, begun: Seq, out: &mut Vec<Action<J>>) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.leaving = true;
        let running = peer.flights.partition_point(|f| f.seq <= begun);
        let flights = peer.flights.split_off(running);
        self.endpoints[peer.endpoint].counts.assigned -= flights.len() as u64;
        self.retire(id);
        self.take_back(id, flights, out);
    }

    /// `verdict` is what becomes of tasks that may have been begun, unless they go back, too.
    fn lost(
        &mut self,
        id: PeerId,
        heard_out: bool,
        verdict: Option<Verdict>,
        out: &mut Vec<Action<J>>,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let said_goodbye = std::mem::replace(&mut peer.leaving, true);
        let started = peer.begun_at_most(heard_out);
        let mut flights = std::mem::take(&mut peer.flights);
        let unstarted = flights.len() - started;
        self.endpoints[peer.endpoint].counts.assigned -= unstarted as u64;
        self.retire(id);
        if let Some(verdict) = verdict {
            for task in flights.drain(..started).filter_map(|f| f.id) {
                self.finish(task, verdict, false, out);
            }
        } else {
            for task in flights.iter().take(started).filter_map(|f| f.id) {
                if let Some(entry) = self.tasks.get_mut(task) {
                    entry.failed_attempts += 1;
                }
            }
        }
        self.take_back(id, flights, out);
        let peer = self.peers.remove(&id).expect("peer is present");
        self.log.add_peer(PeerRow {
            state: if said_goodbye {
                PeerState::Left
            } else {
                PeerState::Lost
            },
            ended: Some(self.now),
            ..peer.row(id)
        });
        self.endpoints[peer.endpoint].counts.online -= 1;
        self.reuse(peer.endpoint);
    }

    fn moved(&mut self, endpoint: Endpoint, out: &mut Vec<Action<J>>) {
        let there = self.peers.iter().filter(|(_, p)| p.endpoint == endpoint);
        let mut there: Vec<PeerId> = there.map(|(id, _)| *id).collect();
        there.sort_unstable();
        // None of them shall be given what another one leaves behind.
        for peer in &there {
            self.peer(*peer).leaving = true;
            self.retire(*peer);
        }
        for peer in there {
            // It may be in the middle of anything.
            self.lost(peer, false, Some(Verdict::Closed), out);
        }
        if let Some(state) = self.endpoints.get_mut(endpoint) {
            state.counts.instance = -state.counts.instance.abs();
        }
    }

    /// The connections at an endpoint.
    pub fn peers_at(&self, endpoint: Endpoint) -> Vec<PeerId> {
        let there = self.peers.iter().filter(|(_, p)| p.endpoint == endpoint);
        there.map(|(id, _)| *id).collect()
    }

    /// The peer takes part in no choice any more.
    fn retire(&mut self, id: PeerId) {
        self.idle.retain(|p| *p != id);
        self.turn.retain(|p| *p != id);
        self.holders.retain(|p| *p != id);
    }

    /// Notes that these are with no peer any more. Those that are still wanted.
    fn unsend(&mut self, flights: &VecDeque<Flight>) -> Vec<TaskId> {
        let back: Vec<TaskId> = flights.iter().filter_map(|f| f.id).collect();
        for task in &back {
            let entry = self.tasks.get_mut(*task).expect("a flight's task is known");
            entry.sent = None;
            self.in_flight -= 1;
            self.counts.queued += entry.bytes;
        }
        back
    }

    /// Puts tasks back into the common queue, where they stood in it.
    fn requeue(&mut self, mut tasks: Vec<TaskId>) {
        self.queued += tasks.len();
        tasks.sort_unstable();
        let Some(last) = tasks.last() else { return };
        let older = self.queue.partition_point(|task| task < last);
        tasks.extend(self.queue.drain(..older));
        tasks.sort_unstable();
        for task in tasks.into_iter().rev() {
            self.queue.push_front(task);
        }
    }

    /// Returns to the queue, at its head and in order, what a peer held
    /// unstarted; what was pinned to it has nowhere to go.
    fn take_back(&mut self, id: PeerId, flights: VecDeque<Flight>, out: &mut Vec<Action<J>>) {
        let pinned = std::mem::take(&mut self.peer(id).pinned);
        let mut back = self.unsend(&flights);
        back.extend(std::mem::take(&mut self.peer(id).assigned));
        back.retain(|task| self.tasks.contains(*task));
        let (free, bound): (Vec<_>, Vec<_>) = back.into_iter().partition(|t| self.is_free(*t));
        for task in bound.into_iter().chain(pinned) {
            self.finish(task, Verdict::Reset, false, out);
        }
        match self.config.policy {
            Policy::Queue => {
                self.requeue(free);
                self.feed_idle(out);
            }
            Policy::RoundRobin => {
                let in_turn = self.oldest_queued().is_none();
                for task in free.into_iter().rev() {
                    self.queue.push_front(task);
                }
                if in_turn {
                    self.deal(out);
                } else {
                    self.feed_idle(out);
                }
            }
        }
    }

    /// Ends a task without a reply.
    fn finish(&mut self, id: TaskId, verdict: Verdict, tell: bool, out: &mut Vec<Action<J>>) {
        let Some(entry) = self.take(id) else { return };
        let started = self.running_since(&entry);
        let now = Micros::from(self.now);
        self.log.add(Over {
            id,
            submitted: entry.submitted,
            started: started.map_or(Micros::NONE, Micros::from),
            ended: now,
            spent: Micros::NONE,
            bytes_in: entry.bytes,
            bytes_out: u64::MAX,
            peer: started.and(entry.sent).map(|(peer, _)| peer),
            attempts: entry.failed_attempts + u32::from(started.is_some()),
            state: match verdict {
                Verdict::Canceled => TaskState::Canceled,
                Verdict::TimedOut => TaskState::TimedOut,
                Verdict::Replied | Verdict::Reset | Verdict::Closed => TaskState::Lost,
            },
            label: entry.label,
            error: None,
        });
        match entry.sent {
            Some((peer, seq)) => {
                // The daemon stays occupied until it says that it is done.
                let flights = &mut self.peer(peer).flights;
                if let Ok(at) = flights.binary_search_by_key(&seq, |f| f.seq) {
                    flights[at].id = None;
                    if tell {
                        out.push(Action::Cancel { peer, seq });
                    }
                }
            }
            None => {
                if self.is_queued(entry.target) {
                    self.queued -= 1;
                }
                self.stale += 1;
                self.sweep();
            }
        }
        out.push(Action::Resolve {
            job: entry.job,
            verdict,
        });
        if entry.sent.is_none() && self.config.capacity.is_some() {
            out.push(Action::Room);
        }
    }

    /// Forgets a task, which resolves now, and puts the accounts right.
    fn take(&mut self, id: TaskId) -> Option<Entry<J>> {
        let entry = self.tasks.remove(id)?;
        self.counts.completed += 1;
        if let Some(at) = entry.deadline {
            self.deadlines.remove(&(at, id));
        }
        match entry.sent {
            Some(_) => self.in_flight -= 1,
            None => self.counts.queued -= entry.bytes,
        }
        Some(entry)
    }

    /// Whether a task may run anywhere.
    fn is_free(&self, task: TaskId) -> bool {
        let entry = self.tasks.get(task);
        entry.is_some_and(|entry| entry.target == Target::Any)
    }

    /// Whether a live task that has not been sent stands in the common queue.
    fn is_queued(&self, target: Target) -> bool {
        self.config.policy == Policy::Queue && target == Target::Any
    }

    /// Since when a task may be running; `None` if it has not begun, as far as the host knows.
    fn running_since(&self, entry: &Entry<J>) -> Option<Time> {
        let (peer, seq) = entry.sent?;
        self.peers
            .get(&peer)?
            .running_since(seq, entry.sent_at.get())
    }

    /// The log of tasks, the last `n` submitted, in the order of submission. Those that are not over have a row (of the
    /// queue the oldest [`TASKS_KEPT`]), and the last [`TASKS_KEPT`] that are.
    pub fn task_rows(&self, n: usize) -> Vec<TaskRow> {
        let live = self.tasks.iter().map(|(id, entry)| {
            let started = self.running_since(entry);
            TaskRow {
                id,
                label: entry.label.clone(),
                state: if started.is_some() {
                    TaskState::Running
                } else {
                    TaskState::Queued
                },
                peer: started.and(entry.sent).map(|(peer, _)| peer),
                submitted: entry.submitted.get().unwrap_or_default(),
                started,
                ended: None,
                spent: None,
                attempts: entry.failed_attempts + u32::from(started.is_some()),
                bytes_in: entry.bytes,
                bytes_out: None,
                error: None,
            }
        });
        let mut rows: Vec<TaskRow> = live.take(TASKS_KEPT).chain(self.log.tasks()).collect();
        rows.sort_unstable_by_key(|row| row.id);
        rows.drain(..rows.len().saturating_sub(n));
        rows
    }

    /// The log of daemons, in the order in which they connected: those connected, and the last
    /// [`PEERS_KEPT`] that are gone.
    pub fn peer_rows(&self) -> Vec<PeerRow> {
        let connected = self.peers.iter().map(|(id, peer)| peer.row(*id));
        let mut rows: Vec<PeerRow> = self.log.peers().cloned().chain(connected).collect();
        rows.sort_unstable_by_key(|row| row.peer);
        rows
    }

    /// Tasks that are over, counted by how they ended.
    pub fn tally(&self) -> Tally {
        self.log.tally
    }

    /// Drops ids of cancelled tasks once they are the larger part of the queue.
    fn sweep(&mut self) {
        if self.stale > 1024 && self.stale > self.queue.len() / 2 {
            self.queue.retain(|id| self.tasks.contains(*id));
            self.stale = 0;
        }
    }

    fn peer(&mut self, id: PeerId) -> &mut Peer {
        self.peers.get_mut(&id).expect("peer is connected")
    }

    /// Assigns the queue to the peers in turn, if there are any.
    fn deal(&mut self, out: &mut Vec<Action<J>>) {
        let mut dealt = 0;
        while !self.turn.is_empty() {
            let Some(task) = self.oldest_queued() else {
                break;
            };
            self.queue.pop_front();
            self.turn.rotate_left(1);
            let peer = *self.turn.back().expect("turn is not empty");
            self.peer(peer).assigned.push_back(task);
            dealt += 1;
        }
        // Only now: a peer that is fed before would help itself from the queue.
        for at in self.turn.len().saturating_sub(dealt)..self.turn.len() {
            let peer = self.turn[at];
            self.feed(peer, out);
        }
    }

    /// The live task at the head of the common queue.
    fn oldest_queued(&mut self) -> Option<TaskId> {
        while let Some(task) = self.queue.front().copied() {
            if self.tasks.contains(task) {
                return Some(task);
            }
            self.queue.pop_front();
            self.stale = self.stale.saturating_sub(1);
        }
        None
    }

    fn feed_idle(&mut self, out: &mut Vec<Action<J>>) {
        while !self.queue.is_empty() {
            let Some(id) = self.idle.last().copied() else {
                break;
            };
            self.feed(id, out);
        }
    }

    /// Sends a peer what it may have, and keeps `idle` and `holders` true about it.
    fn feed(&mut self, id: PeerId, out: &mut Vec<Action<J>>) {
        let share = self.queued / self.turn.len().max(1);
        let policy = self.config.policy;
        let now = self.now;
        let peer = self.peer(id);
        if peer.leaving {
            return;
        }
        let (held, mut most) = (peer.flights.len(), peer.window(policy));
        if held == 0 {
            peer.since = now;
        }
        if policy == Policy::Queue && most > peer.slots {
            // Ahead of time only from a queue that is deep, to a peer that has just finished
            // a task, and several at once, in one write.
            let prompt = now.saturating_sub(peer.since) <= AHEAD;
            most = if prompt && 2 * held <= most {
                most.min(held + share).max(peer.slots)
            } else {
                peer.slots
            };
        }
        for _ in held..most {
            let Some(task) = self.next_for(id) else { break };
            self.send(id, task, out);
        }
        let peer = self.peers.get_mut(&id).expect("peer is connected");
        let idle = peer.flights.len() < peer.slots;
        if idle && !peer.idle {
            self.idle.push(id);
        } else if !idle && peer.idle {
            self.idle.retain(|p| *p != id);
        }
        peer.idle = idle;
        let unbegun = peer.flights.back().is_some_and(|f| f.seq > peer.begun);
        let holds = policy == Policy::Queue && peer.flights.len() > peer.slots && unbegun;
        if holds && !peer.holds {
            self.holders.push(id);
        } else if !holds && peer.holds {
            self.holders.retain(|p| *p != id);
        }
        peer.holds = holds;
        let before = peer.granted;
        if peer.replies == Replies::MayBeLost && peer.grant() > before {
            let to = peer.granted;
            out.push(Action::Grant { peer: id, to });
        }
        if holds && peer.recalled.is_none() {
            let due = peer.since + OVERDUE;
            self.look_at = Some(self.look_at.map_or(due, |at| at.min(due)));
        }
    }

    fn send(&mut self, id: PeerId, task: TaskId, out: &mut Vec<Action<J>>) {
        let entry = self
            .tasks
            .get_mut(task)
            .expect("next_for returns live tasks");
        let peer = self.peers.get_mut(&id).expect("peer is connected");
        peer.last_seq += 1;
        let seq = peer.last_seq;
        peer.flights.push_back(Flight {
            seq,
            id: Some(task),
        });
        let granted = peer.grant();
        self.endpoints[peer.endpoint].counts.assigned += 1;
        entry.sent = Some((id, seq));
        entry.sent_at = self.now.into();
        self.in_flight += 1;
        self.counts.queued -= entry.bytes;
        out.push(Action::Send {
            peer: id,
            seq,
            job: entry.job.clone(),
            granted,
        });
        if self.config.capacity.is_some() {
            out.push(Action::Room);
        }
    }

    /// The next live task for a peer: its own first, then the common queue.
    fn next_for(&mut self, id: PeerId) -> Option<TaskId> {
        let peer = self.peers.get_mut(&id)?;
        for own in [&mut peer.pinned, &mut peer.assigned] {
            while let Some(task) = own.pop_front() {
                if self.tasks.contains(task) {
                    return Some(task);
                }
            }
        }
        let task = self.oldest_queued()?;
        self.queue.pop_front();
        if self.queue.is_empty() && self.queue.capacity() > FEW_PLACES {
            self.queue = VecDeque::new();
        }
        if self.config.policy == Policy::Queue {
            self.queued -= 1;
        }
        Some(task)
    }
}
