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
//! - [`Policy::Queue`]: higher [`Priority`] first, and first in, first out within one; a task is sent only to a daemon that
//!   can start it at once, that is, within [`AHEAD`] by the time that its tasks have taken
//!   of late. If it turns out otherwise, or another daemon falls idle, what it has not
//!   started is recalled to where it stood in the queue.
//!
//!   So daemons start tasks in the order of the queue. There is one exception: a task that the dispatcher has taken back
//!   from a daemon which was lost, has left or was asked to give it back. The dispatcher sends it before all that stand
//!   behind it in the queue. But other daemons may have started some of those in the meantime, or hold some. That is bounded:
//!   when a task is sent, each daemon that holds earlier ones unstarted has replied within the last [`OVERDUE`] or has
//!   been asked for them, and it holds at most [`MOST_AHEAD`] - 1 of them.
//! - [`Policy::RoundRobin`]: tasks are assigned in turn to the daemons connected at submission, each of
//!   which works in order.
//! - Without a [`Retry`], no task is begun twice, and with one as `retry.rs` says. What a daemon that is lost may have
//!   begun is over ([`Verdict::Reset`]); what it held beyond that goes back to where it came from. What it may
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
//! - A task that waits for others ([`Event::Ready`]) is in no queue, but counts as waiting. Once it is ready, it stands in
//!   the queue where it would have stood, by its priority and its id. If it is broken, it is over ([`Verdict::Broken`]).
//! - What is pinned to a daemon (everywhere) runs before anything submitted
//!   later starts there, and nowhere else.

mod arrivals;
mod departures;
mod events;
mod feed;
mod ledger;
mod lists;
mod log;
mod peer;
mod queue;
mod recall;
mod retry;
mod rows;
mod view;
mod waits;

pub use events::{
    Action, Config, Counts, Endpoint, EndpointCounts, Event, Farewell, PeerId, Policy, Replies,
    Reply, Target, TaskId, Time, Verdict,
};
pub use log::{Label, PEERS_KEPT, PeerRow, PeerState, TASKS_KEPT, Tally, TaskRow, TaskState};
pub use peer::{AHEAD, MOST_AHEAD};
pub use queue::Priority;
pub use retry::{Backoff, Retry, Rules, jitter};
pub use rows::Parts;
pub use view::{Running, SHOWN, SHOWN_LATELY, View};

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rustc_hash::FxHashMap;

use self::ledger::Ledger;
use self::lists::{Holders, Idle, Since};
use self::log::{Log, Micros, Over};
use self::peer::Peer;
use self::queue::Queue;
use self::retry::{Failures, OwnRules, Pauses};
use crate::protocol::Seq;

/// A daemon that has not replied for so long is not about to start what else it holds.
pub const OVERDUE: Duration = Duration::from_millis(5);

/// Peers that have left may stand in `turn` until there are so many, and more than others.
const STALE_TURNS: usize = 64;

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
    failures: Failures,
    rules: OwnRules,
    label: Label,
    /// It is in no queue yet.
    waits: bool,
}

impl<J> Entry<J> {
    /// How often it has been started, as far as the host knows; `running`: and is now.
    fn attempts(&self, running: bool) -> u32 {
        self.failures.count().saturating_add(u32::from(running))
    }
}

#[derive(Default)]
struct EndpointState {
    counts: EndpointCounts,
    /// Tasks for the first connection here.
    waiting: VecDeque<TaskId>,
    /// Tasks for this endpoint that wait for others.
    needing: BTreeSet<TaskId>,
    /// The connections here.
    peers: BTreeSet<PeerId>,
    first: Option<PeerId>,
    abandoned: bool,
    released: bool,
}

/// See the [module documentation](self).
pub struct Dispatcher<J> {
    config: Config,
    tasks: Ledger<Entry<J>>,
    /// Common queue.
    queue: Queue,
    peers: FxHashMap<PeerId, Peer>,
    /// Peers with a free slot, which may be given something. The last one was
    /// busy most recently, so its caches are warm; it is the next to be used.
    idle: Idle,
    /// Number of peers that are not about to leave.
    staying: usize,
    /// Round robin: whose turn it is. Some may have left, or be about to.
    turn: VecDeque<PeerId>,
    /// Tasks for connections to come, by the number of the connection.
    joins: FxHashMap<u64, VecDeque<TaskId>>,
    endpoints: Vec<EndpointState>,
    /// Of these, those that were released.
    unused: Vec<Endpoint>,
    deadlines: BTreeSet<(Time, TaskId)>,
    /// Tasks that wait for their next attempt.
    pauses: Pauses,
    in_flight: usize,
    counts: Counts,
    /// Of the event being handled.
    now: Time,
    /// Tasks in the common queue that are live.
    queued: usize,
    /// Peers that hold tasks which they have not started and have not been asked for, since when they may have
    /// been at work, and when to see whether one of them is [`OVERDUE`].
    holders: Holders,
    since: Since,
    look_at: Option<Time>,
    log: Log,
}

impl<J: Clone> Dispatcher<J> {
    /// One without connections and tasks.
    pub fn new(config: Config) -> Dispatcher<J> {
        Dispatcher {
            config,
            tasks: Ledger::new(),
            queue: Queue::default(),
            peers: FxHashMap::default(),
            idle: Idle::default(),
            staying: 0,
            turn: VecDeque::new(),
            joins: FxHashMap::default(),
            endpoints: Vec::new(),
            unused: Vec::new(),
            deadlines: BTreeSet::new(),
            pauses: Pauses::default(),
            in_flight: 0,
            counts: Counts::default(),
            now: Time::ZERO,
            queued: 0,
            holders: Holders::default(),
            since: Since::default(),
            look_at: None,
            log: Log::default(),
        }
    }

    /// How it was set up.
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
        let all = [first, self.look_at, self.pauses.first()];
        all.into_iter().flatten().min()
    }

    /// Whether a payload of this size may join the queue. One that exceeds the
    /// whole capacity may do so when the queue is empty, or it never could.
    pub fn has_room(&self, bytes: u64) -> bool {
        match self.config.capacity {
            Some(most) => self.counts.queued == 0 || self.counts.queued + bytes <= most,
            None => true,
        }
    }

    /// Numbers of tasks and connections now.
    pub fn counts(&self) -> Counts {
        Counts {
            awaiting: self.tasks.len() - self.in_flight,
            executing: self.in_flight,
            connections: self.peers.len(),
            ..self.counts
        }
    }

    /// Whether a task is here and has not resolved.
    pub fn holds(&self, id: TaskId) -> bool {
        self.tasks.contains(id)
    }

    /// Counts a task that resolved before it could be submitted: its payload could not be made.
    pub fn count_unsubmitted(&mut self) {
        self.counts.completed += 1;
    }

    /// Numbers for each endpoint, in the order in which they were added.
    pub fn endpoint_counts(&self) -> impl Iterator<Item = EndpointCounts> + '_ {
        self.endpoints.iter().map(|e| e.counts)
    }

    /// Whether a peer has nothing to do.
    pub fn is_idle(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_none_or(|p| p.flights.is_empty())
    }

    /// Tasks that wait in the common queue, because no daemon can take them now.
    pub fn unserved(&self) -> usize {
        self.queued
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
    /// Events about tasks and peers that are gone have no effect. They are normal: an event may be on its way when another
    /// one ends its task.
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
                rules,
                waits,
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
                    failures: Failures::default(),
                    rules,
                    label,
                    waits,
                };
                self.tasks.insert(id, entry);
                self.counts.queued += bytes;
                if waits {
                    self.waits(id, target);
                } else {
                    self.place(id, target, out);
                }
            }
            Event::Ready { id, bytes } => self.ready(id, bytes, out),
            Event::Broken { id } => self.finish(id, Verdict::Broken, false, out),
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
            Event::Lost { peer, heard_out } => self.lost(peer, heard_out, None, out),
            Event::Moved { endpoint } => self.moved(endpoint, out),
            Event::Cancel { id } => self.finish(id, Verdict::Canceled, true, out),
            Event::Tick => {
                // Without a queue the daemon is left to run on, as the contract says.
                let interrupt = self.config.policy == Policy::Queue;
                while self.deadlines.first().is_some_and(|(at, _)| *at <= now) {
                    let (_, id) = self.deadlines.pop_first().expect("there is a first one");
                    self.finish(id, Verdict::TimedOut, interrupt, out);
                }
                self.end_pauses(out);
                self.recall_overdue(out);
            }
            Event::Abandoned { endpoint } => {
                if let Some(e) = self.endpoints.get_mut(endpoint) {
                    e.abandoned = true;
                    for id in std::mem::take(&mut e.waiting) {
                        self.finish(id, Verdict::Reset, false, out);
                    }
                    self.abandon_waiting(endpoint, out);
                }
            }
            Event::NoneLeft if !self.peers.is_empty() => {}
            Event::Reset | Event::NoneLeft => {
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
                    self.enqueue(id);
                    self.queued += 1;
                    self.feed_idle(out);
                }
                Policy::RoundRobin => {
                    // What was queued while nobody was connected comes first.
                    let in_turn = self.next_queued().is_none();
                    self.enqueue(id);
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

    /// The connections at an endpoint, oldest first.
    pub fn peers_at(&self, endpoint: Endpoint) -> Vec<PeerId> {
        let state = self.endpoints.get(endpoint);
        state.map_or_else(Vec::new, |state| state.peers.iter().copied().collect())
    }

    /// A peer that is about to leave, or has left, takes part in no choice any more.
    fn retire(&mut self, id: PeerId) {
        let peer = self.peer(id);
        if let Some(place) = peer.idle.take() {
            self.idle.remove(place);
        }
        self.hold_no_more(id);
        let peer = self.peer(id);
        if std::mem::replace(&mut peer.retired, true) {
            return;
        }
        self.staying -= 1;
        // `deal` passes it over.
        if self.turn.len() > 2 * self.staying + STALE_TURNS {
            let peers = &self.peers;
            let stays = |id: &PeerId| peers.get(id).is_some_and(|p| !p.leaving);
            self.turn.retain(stays);
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
            attempts: entry.attempts(started.is_some()),
            state: match verdict {
                Verdict::Canceled => TaskState::Canceled,
                Verdict::TimedOut => TaskState::TimedOut,
                Verdict::Broken => TaskState::Failed,
                Verdict::Replied | Verdict::Reset | Verdict::Closed => TaskState::Lost,
            },
            label: entry.label,
            error: (verdict == Verdict::Broken).then(|| waits::BROKEN.into()),
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
                if entry.waits {
                    self.no_longer_waits(id, entry.target);
                    self.dismiss(entry.target, out);
                } else if !self.pauses.remove(id) {
                    self.leave_queue(entry.target);
                }
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

    fn peer(&mut self, id: PeerId) -> &mut Peer {
        self.peers.get_mut(&id).expect("peer is connected")
    }
}
