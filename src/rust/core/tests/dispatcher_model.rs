//! The dispatcher against random histories, and a few stories told step by step.
//!
//! The test plays the world: it keeps what every daemon holds, lets daemons
//! begin, reply, leave and crash, and predicts from the rules in the
//! dispatcher's documentation who is sent what and how each task ends. Replies take time
//! to arrive, and across the network those on their way are lost with their daemon.
//!
//! Over 500 lines: the world that predicts is one state machine, as the dispatcher is, and the stories use its parts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mirai_core::dispatcher::{
    AHEAD, Action, Backoff, Config, Counts, Dispatcher, EndpointCounts, Event, Label, MOST_AHEAD,
    OVERDUE, PeerId, PeerState, Policy, Priority, Replies, Reply, Retry, Rules, Target, TaskId,
    TaskState, Verdict, jitter,
};
use mirai_core::protocol::Done;
use proptest::prelude::*;

/// As in the dispatcher: tasks that a daemon holds at most with round robin.
const WINDOW: usize = 16;
const ENDPOINTS: usize = 3;

type Job = TaskId;

fn replied(peer: PeerId, seq: u64, spent: Duration) -> Event<Job> {
    replied_with(peer, seq, spent, Done::Value)
}

fn replied_with(peer: PeerId, seq: u64, spent: Duration, outcome: Done) -> Event<Job> {
    Event::Replied {
        peer,
        seq,
        spent,
        reply: Reply {
            outcome,
            ..Reply::default()
        },
    }
}

/// Where a task is, as far as the world knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Somewhere in the dispatcher.
    Waiting,
    On(PeerId),
    Over(Verdict),
}

#[derive(Debug)]
struct Task {
    bytes: u64,
    deadline: Option<Duration>,
    target: Target,
    place: Place,
    /// How often a daemon has begun with it.
    starts: u32,
    /// It has been with a daemon that gave it back, left or was lost.
    came_back: bool,
    /// The default, where tasks do not wait in one queue.
    priority: Priority,
    retry: Retry,
    /// Attempts that have failed.
    crashes: u32,
    errors: u32,
    /// It waits for its next attempt until then.
    resumes: Option<Duration>,
    /// It waits for others.
    waits: bool,
    /// The last reply.
    outcome: Done,
}

/// How far a daemon has come with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unbegun,
    Running,
    /// The reply is on its way.
    Done,
}

/// A task on a daemon to which no reply has been heard. `wanted` is false once it has resolved without.
#[derive(Debug)]
struct Held {
    seq: u64,
    id: TaskId,
    wanted: bool,
    stage: Stage,
}

#[derive(Debug)]
struct Daemon {
    endpoint: usize,
    slots: usize,
    replies: Replies,
    held: VecDeque<Held>,
    /// The latest submitted of the tasks for any daemon that it has begun, by priority.
    latest: BTreeMap<Priority, TaskId>,
    /// The last task that it has begun, and the last one that it may.
    begun: u64,
    granted: u64,
    /// Replies on their way, and what their tasks have taken.
    on_their_way: VecDeque<(u64, Duration, Done)>,
    pinned: VecDeque<TaskId>,
    assigned: VecDeque<TaskId>,
    last_seq: u64,
    leaving: bool,
    /// What its tasks take, and since when it may have been at work on the first.
    pace: Option<Duration>,
    since: Duration,
    /// What it has been asked to give back, and the last task that it has said to have begun.
    recalled: Option<(u64, u64)>,
    said_begun: u64,
}

impl Daemon {
    /// As many tasks as it can work off in the time for which it may hold some.
    fn promised(&self) -> usize {
        if self.slots > 1 {
            return self.slots;
        }
        let Some(pace) = self.pace else { return 1 };
        let fit = (1..=MOST_AHEAD).take_while(|n| pace * *n as u32 <= AHEAD);
        fit.last().unwrap_or(1)
    }

    /// Whether it holds what it could give back and has not been asked to.
    fn holds(&self) -> bool {
        let unbegun = self.held.back().is_some_and(|h| h.seq > self.said_begun);
        self.held.len() > self.slots && unbegun && self.recalled.is_none()
    }

    /// Up to where it may begin what it holds: as far as replies have been heard, and some tasks more.
    fn grantable(&self) -> u64 {
        let n = match self.replies {
            Replies::Sure => self.held.len(),
            Replies::MayBeLost => self.held.len().min(self.promised()),
        };
        let to = n.checked_sub(1).map_or(self.last_seq, |i| self.held[i].seq);
        to.max(self.granted)
    }

    /// Of what it holds, the oldest that the host takes for begun when it is lost.
    fn begun_at_most(&self, heard_out: bool) -> usize {
        if heard_out && self.replies == Replies::Sure {
            return self.held.len().min(self.slots);
        }
        let granted = |h: &&Held| h.seq <= self.granted;
        self.held.iter().take_while(granted).count()
    }
}

struct World {
    config: Config,
    dispatcher: Dispatcher<Job>,
    now: Duration,
    tasks: BTreeMap<TaskId, Task>,
    daemons: BTreeMap<PeerId, Daemon>,
    last_peer: PeerId,
    /// Live tasks for any daemon that are assigned to none.
    queue: VecDeque<TaskId>,
    turn: VecDeque<PeerId>,
    joins: BTreeMap<u64, Vec<TaskId>>,
    /// By endpoint: tasks for its first connection, which that was, and whether
    /// it is abandoned.
    waiting: [VecDeque<TaskId>; ENDPOINTS],
    first: [Option<PeerId>; ENDPOINTS],
    abandoned: [bool; ENDPOINTS],
    endpoints: [EndpointCounts; ENDPOINTS],
    completed: u64,
    cumulative: u64,
    peak: u64,
    /// Tasks of which the dispatcher is to say that there will be another attempt.
    again: BTreeSet<TaskId>,
}

impl World {
    fn new(config: Config) -> World {
        let mut dispatcher = Dispatcher::new(config);
        for endpoint in 0..ENDPOINTS {
            assert_eq!(dispatcher.add_endpoint(), endpoint);
        }
        World {
            config,
            dispatcher,
            now: Duration::ZERO,
            tasks: BTreeMap::new(),
            daemons: BTreeMap::new(),
            last_peer: 0,
            queue: VecDeque::new(),
            turn: VecDeque::new(),
            joins: BTreeMap::new(),
            waiting: Default::default(),
            first: Default::default(),
            abandoned: Default::default(),
            endpoints: Default::default(),
            completed: 0,
            cumulative: 0,
            peak: 0,
            again: BTreeSet::new(),
        }
    }

    /// How many tasks a daemon may be sent at most, and how many it must be given.
    fn windows(&self, daemon: &Daemon) -> (usize, usize) {
        let prompt = self.now - daemon.since <= AHEAD && daemon.recalled.is_none();
        let slots = daemon.slots;
        match self.config.policy {
            Policy::Queue if prompt || daemon.held.is_empty() => (daemon.promised(), slots),
            Policy::Queue => (slots, slots),
            Policy::RoundRobin => (WINDOW.max(slots), WINDOW.max(slots)),
        }
    }

    fn is_live(&self, id: TaskId) -> bool {
        !matches!(self.tasks[&id].place, Place::Over(_))
    }

    fn live(&self) -> impl Iterator<Item = (TaskId, &Task)> {
        let live = |(_, t): &(&TaskId, &Task)| !matches!(t.place, Place::Over(_));
        self.tasks.iter().filter(live).map(|(id, t)| (*id, t))
    }

    fn queued(&self) -> u64 {
        let waiting = self.live().filter(|(_, t)| t.place == Place::Waiting);
        waiting.map(|(_, t)| t.bytes).sum()
    }

    // What may happen.

    fn submit(&mut self, target: Target, bytes: u64, timeout: Option<Duration>) -> TaskId {
        self.submit_with(target, bytes, timeout, Rules::default())
    }

    fn submit_with(
        &mut self,
        target: Target,
        bytes: u64,
        timeout: Option<Duration>,
        rules: Rules,
    ) -> TaskId {
        self.submit_as(target, bytes, timeout, rules, false)
    }

    /// A task that waits for others.
    fn submit_waiting(&mut self, bytes: u64, timeout: Option<Duration>) -> TaskId {
        self.submit_as(Target::Any, bytes, timeout, Rules::default(), true)
    }

    fn submit_as(
        &mut self,
        target: Target,
        bytes: u64,
        timeout: Option<Duration>,
        rules: Rules,
        waits: bool,
    ) -> TaskId {
        let id = self.tasks.len() as TaskId + 1;
        let deadline = timeout.map(|t| self.now + t);
        let task = Task {
            bytes,
            deadline,
            target,
            place: Place::Waiting,
            starts: 0,
            came_back: false,
            priority: match self.config.policy {
                Policy::Queue => rules.priority,
                Policy::RoundRobin => Priority::default(),
            },
            retry: rules.retry.unwrap_or(self.config.retry),
            crashes: 0,
            errors: 0,
            resumes: None,
            waits,
            outcome: Done::Value,
        };
        self.tasks.insert(id, task);
        let over = match waits {
            true => Vec::new(),
            false => self.place(id, target),
        };
        let event = Event::Submit {
            id,
            job: id,
            bytes,
            deadline,
            target,
            label: Label::default(),
            rules: (rules != Rules::default()).then(|| Arc::new(rules)),
            waits,
        };
        self.happen(event, &over);
        id
    }

    /// What a task has waited for is there.
    fn ready(&mut self, id: TaskId, bytes: u64) {
        let waits = |task: &&mut Task| task.waits && task.place == Place::Waiting;
        let mut over = Vec::new();
        if let Some(task) = self.tasks.get_mut(&id).filter(waits) {
            // Others have overtaken it.
            (task.waits, task.bytes, task.came_back) = (false, bytes, true);
            let target = task.target;
            over = self.place(id, target);
        }
        self.happen(Event::Ready { id, bytes }, &over);
    }

    /// It will not be there.
    fn broken(&mut self, id: TaskId) {
        let live = self.tasks.contains_key(&id) && self.is_live(id);
        let over = live.then_some((id, Verdict::Broken));
        self.happen(Event::Broken { id }, over.as_slice());
    }

    /// A task by its number among those that wait for others, or any number if none does.
    fn waiting_task(&self, n: u64) -> TaskId {
        let waiting = self.live().filter(|(_, task)| task.waits);
        let waiting: Vec<_> = waiting.map(|(id, _)| id).collect();
        let at = (n as usize).checked_rem(waiting.len());
        at.map_or(n % (self.tasks.len() as u64 + 2), |at| waiting[at])
    }

    /// Puts a new task where it belongs. Returns it if it is over.
    fn place(&mut self, id: TaskId, target: Target) -> Vec<(TaskId, Verdict)> {
        let mut over = Vec::new();
        let bound_for = match target {
            Target::Endpoint(e) => self.first[e].map_or(target, Target::Peer),
            _ => target,
        };
        match bound_for {
            Target::Any => self.enqueue(&[id]),
            Target::Peer(peer) => match self.daemons.get_mut(&peer) {
                Some(d) if !d.leaving => d.pinned.push_back(id),
                _ => over.push((id, Verdict::Reset)),
            },
            Target::Endpoint(e) if self.abandoned[e] => over.push((id, Verdict::Reset)),
            Target::Endpoint(e) => self.waiting[e].push_back(id),
            Target::Join(others) => {
                let number = self.cumulative + 1 + u64::from(others);
                self.joins.entry(number).or_default().push(id);
            }
        }
        over
    }

    /// A daemon on this machine.
    fn join(&mut self, endpoint: usize) -> PeerId {
        self.join_as(endpoint, 1, Replies::Sure)
    }

    fn join_as(&mut self, endpoint: usize, slots: usize, replies: Replies) -> PeerId {
        self.last_peer += 1;
        let peer = self.last_peer;
        let mut pinned = std::mem::take(&mut self.waiting[endpoint]);
        pinned.extend(
            self.joins
                .remove(&(self.cumulative + 1))
                .unwrap_or_default(),
        );
        pinned.make_contiguous().sort_unstable();
        let daemon = Daemon {
            endpoint,
            slots,
            replies,
            held: VecDeque::new(),
            latest: BTreeMap::new(),
            begun: 0,
            granted: 0,
            on_their_way: VecDeque::new(),
            pinned,
            assigned: VecDeque::new(),
            last_seq: 0,
            leaving: false,
            pace: None,
            since: self.now,
            recalled: None,
            said_begun: 0,
        };
        self.daemons.insert(peer, daemon);
        self.first[endpoint].get_or_insert(peer);
        self.turn.push_back(peer);
        self.cumulative += 1;
        self.endpoints[endpoint].online += 1;
        let instance = &mut self.endpoints[endpoint].instance;
        *instance = instance.abs() + 1;
        self.happen(
            Event::Joined {
                peer,
                endpoint,
                slots: slots as u32,
                replies,
            },
            &[],
        );
        peer
    }

    /// The daemon begins with the next task that it holds and may begin.
    fn begin(&mut self, peer: PeerId) {
        let daemon = self.daemons.get_mut(&peer).unwrap();
        let running = daemon.held.iter().filter(|h| h.stage == Stage::Running);
        if daemon.leaving || running.count() == daemon.slots {
            return;
        }
        let may = match daemon.replies {
            Replies::Sure => u64::MAX,
            Replies::MayBeLost => daemon.granted,
        };
        let unbegun = |h: &Held| h.stage == Stage::Unbegun && h.seq <= may;
        let Some(at) = daemon.held.iter().position(unbegun) else {
            return;
        };
        let Held { seq, id, .. } = daemon.held[at];
        assert!(seq > daemon.begun, "out of order");
        daemon.held[at].stage = Stage::Running;
        daemon.begun = seq;
        let older = |other: &&TaskId| **other < id && !self.tasks[*other].came_back;
        let passed_over = daemon.pinned.iter().find(older);
        assert_eq!(
            passed_over, None,
            "task {id} began before one pinned earlier"
        );
        for behind in daemon.held.iter().skip(at + 1).filter(|h| h.wanted) {
            let task = &self.tasks[&behind.id];
            let in_turn = task.target == Target::Any || task.came_back || behind.id > id;
            assert!(in_turn, "{} is behind {id}", behind.id);
        }
        let task = self.tasks.get_mut(&id).unwrap();
        if task.target == Target::Any {
            let latest = daemon.latest.entry(task.priority).or_default();
            let in_turn = id > *latest || task.came_back;
            assert!(in_turn, "task {id} began after {latest}");
            *latest = id.max(*latest);
        }
        task.starts += 1;
        let most = 1 + task.crashes + task.errors;
        assert!(task.starts <= most, "task {id} was started too often");
    }

    fn reply(&mut self, peer: PeerId) {
        self.reply_after(peer, Duration::from_millis(2));
    }

    /// A reply, which arrives at once.
    fn reply_after(&mut self, peer: PeerId, spent: Duration) {
        self.reply_with(peer, spent, Done::Value);
    }

    fn reply_with(&mut self, peer: PeerId, spent: Duration, outcome: Done) {
        self.say(peer, 0, spent, outcome);
        self.hear(peer, usize::MAX);
    }

    /// The daemon is through with a task, one of those that run, and replies.
    fn say(&mut self, peer: PeerId, nth: usize, spent: Duration, outcome: Done) {
        self.begin(peer);
        let daemon = self.daemons.get_mut(&peer).unwrap();
        if daemon.leaving {
            return;
        }
        let running = daemon.held.iter_mut().filter(|h| h.stage == Stage::Running);
        let mut running: Vec<_> = running.collect();
        if let Some(at) = nth.checked_rem(running.len()) {
            running[at].stage = Stage::Done;
            let seq = running[at].seq;
            daemon.on_their_way.push_back((seq, spent, outcome));
        }
    }

    /// Some of the replies that are on their way arrive.
    fn hear(&mut self, peer: PeerId, most: usize) {
        for _ in 0..most {
            let now = self.now;
            let daemon = self.daemons.get_mut(&peer).unwrap();
            let Some((seq, spent, outcome)) = daemon.on_their_way.pop_front() else {
                return;
            };
            let at = daemon.held.iter().position(|h| h.seq == seq).unwrap();
            let done = daemon.held.remove(at).unwrap();
            let before = daemon.pace.unwrap_or(spent);
            daemon.pace = Some(spent.max((before * 3 + spent) / 4));
            daemon.since = now;
            self.endpoints[daemon.endpoint].complete += 1;
            let mut over = Vec::new();
            if done.wanted {
                match self.attempt_again(done.id, outcome) {
                    None => over.push((done.id, Verdict::Replied)),
                    Some(Duration::ZERO) => self.put_back(vec![done.id]),
                    Some(_) => {}
                }
                self.tasks.get_mut(&done.id).unwrap().outcome = outcome;
            }
            self.happen(replied_with(peer, seq, spent, outcome), &over);
        }
    }

    /// The daemon's watcher hears that it is to give something back, and does so.
    fn give_back(&mut self, peer: PeerId) {
        let daemon = self.daemons.get_mut(&peer).unwrap();
        let Some((from, to)) = daemon.recalled.take() else {
            return;
        };
        let first = from.max(daemon.begun + 1);
        daemon.said_begun = first.min(to + 1) - 1;
        let given = |h: &Held| (first..=to).contains(&h.seq);
        let held = std::mem::take(&mut daemon.held);
        let (back, kept): (VecDeque<_>, _) = held.into_iter().partition(given);
        daemon.held = kept;
        self.endpoints[daemon.endpoint].assigned -= back.len() as u64;
        let back: Vec<_> = back
            .into_iter()
            .filter(|h| h.wanted)
            .map(|h| h.id)
            .collect();
        let free = |id: &TaskId| self.tasks[id].target == Target::Any;
        let (free, pinned): (Vec<_>, Vec<_>) = back.iter().partition(|id| free(id));
        for id in back {
            let task = self.tasks.get_mut(&id).unwrap();
            (task.place, task.came_back) = (Place::Waiting, true);
        }
        let daemon = self.daemons.get_mut(&peer).unwrap();
        for id in pinned.into_iter().rev() {
            daemon.pinned.push_front(id);
        }
        self.queue.extend(free);
        self.sort_queue();
        // It may claim to give more than it was asked for.
        let (from, to) = if first == from {
            (0, u64::MAX)
        } else {
            (first, to)
        };
        self.happen(Event::Returned { peer, from, to }, &[]);
    }

    /// The daemon says goodbye, between two tasks; or it gives the host up, and perhaps says goodbye in the
    /// middle of one, to which there will be no reply.
    fn leave(&mut self, peer: PeerId) {
        self.hear(peer, usize::MAX);
        let daemon = self.daemons.get_mut(&peer).unwrap();
        if daemon.leaving {
            return;
        }
        daemon.leaving = true;
        let begun = daemon.begun;
        let held = std::mem::take(&mut daemon.held);
        let (running, held): (VecDeque<_>, _) = held.into_iter().partition(|h| h.seq <= begun);
        daemon.held = running;
        let over = self.take_back(peer, held);
        self.happen(Event::Leaving { peer, begun }, &over);
    }

    fn lose(&mut self, peer: PeerId) {
        self.lose_after(peer, usize::MAX, true);
    }

    /// The daemon is gone, and some of its replies are with it: on one machine only if the host itself has
    /// ended the link before it has `heard_out` the daemon.
    fn lose_after(&mut self, peer: PeerId, heard: usize, heard_out: bool) {
        let sure = self.daemons[&peer].replies == Replies::Sure;
        self.hear(peer, if sure && heard_out { usize::MAX } else { heard });
        let over = self.without(peer, heard_out, None);
        self.happen(Event::Lost { peer, heard_out }, &over);
    }

    /// An attempt has failed, if that is what `outcome` says: how long the task waits for the next, if there is one.
    fn attempt_again(&mut self, id: TaskId, outcome: Done) -> Option<Duration> {
        let seed = self.config.jitter;
        let now = self.now;
        let task = self.tasks.get_mut(&id).unwrap();
        let (count, most) = match outcome {
            Done::Error => (&mut task.errors, task.retry.error),
            Done::Lost => (&mut task.crashes, task.retry.crash),
            Done::Value | Done::Skipped | Done::Final => return None,
        };
        if task.target != Target::Any || *count == most {
            return None;
        }
        *count += 1;
        let failures = task.crashes + task.errors;
        let backoff = task.retry.backoff;
        let pause = backoff.pause(failures, jitter(seed, id, failures));
        let whole = backoff.first.as_secs_f64() * backoff.factor.powi(failures as i32 - 1);
        let whole = whole.min(backoff.most.as_secs_f64());
        let part = pause.as_secs_f64() / whole;
        assert!(whole == 0.0 || (0.499..1.001).contains(&part));
        (task.place, task.came_back) = (Place::Waiting, true);
        task.resumes = (!pause.is_zero()).then(|| now + pause);
        self.again.insert(id);
        Some(pause)
    }

    /// What becomes of a daemon's tasks when it is gone. Those that it may have begun are over
    /// with this verdict; without one, they are attempted again, or over.
    fn without(
        &mut self,
        peer: PeerId,
        heard_out: bool,
        verdict: Option<Verdict>,
    ) -> Vec<(TaskId, Verdict)> {
        let daemon = self.daemons.get_mut(&peer).unwrap();
        let endpoint = daemon.endpoint;
        let most = daemon.begun_at_most(heard_out);
        let mut held = std::mem::take(&mut daemon.held);
        let begun: Vec<_> = held.drain(..most).collect();
        for back in &held {
            assert_eq!(back.stage, Stage::Unbegun, "it would run again");
        }
        let mut over = Vec::new();
        for begun in begun.into_iter().rev().filter(|h| h.wanted) {
            let again = match verdict {
                None => self.attempt_again(begun.id, Done::Lost),
                Some(_) => None,
            };
            match again {
                None => over.push((begun.id, verdict.unwrap_or(Verdict::Reset))),
                Some(Duration::ZERO) => {
                    self.endpoints[endpoint].assigned += 1;
                    held.push_front(begun);
                }
                Some(_) => {}
            }
        }
        over.extend(self.take_back(peer, held));
        self.daemons.remove(&peer);
        self.endpoints[endpoint].online -= 1;
        over
    }

    /// The URL is another one, and whoever was connected has to go.
    fn relocate(&mut self, endpoint: usize) {
        let mut there = Vec::new();
        for (peer, daemon) in &mut self.daemons {
            if daemon.endpoint == endpoint {
                daemon.leaving = true;
                there.push(*peer);
            }
        }
        there.sort_unstable();
        self.turn.retain(|peer| !there.contains(peer));
        let mut over = Vec::new();
        for peer in there {
            over.extend(self.without(peer, false, Some(Verdict::Closed)));
        }
        let instance = &mut self.endpoints[endpoint].instance;
        *instance = -instance.abs();
        self.happen(Event::Moved { endpoint }, &over);
    }

    fn cancel(&mut self, id: TaskId) {
        let mut over = Vec::new();
        if self.tasks.contains_key(&id) && self.is_live(id) {
            over.push((id, Verdict::Canceled));
        }
        self.happen(Event::Cancel { id }, &over);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let late = self
            .live()
            .filter(|(_, t)| t.deadline.is_some_and(|at| at <= self.now));
        let over: Vec<_> = late.map(|(id, _)| (id, Verdict::TimedOut)).collect();
        let resumed = |(id, task): (TaskId, &Task)| {
            let at = task.resumes.filter(|at| *at <= self.now)?;
            let over = over.iter().any(|(other, _)| *other == id);
            (!over).then_some((at, id))
        };
        let mut resumed: Vec<_> = self.live().filter_map(resumed).collect();
        resumed.sort_unstable();
        let resumed: Vec<_> = resumed.into_iter().map(|(_, id)| id).collect();
        for id in &resumed {
            self.tasks.get_mut(id).unwrap().resumes = None;
        }
        if !resumed.is_empty() {
            self.put_back(resumed);
        }
        self.happen(Event::Tick, &over);
    }

    fn abandon(&mut self, endpoint: usize) {
        self.abandoned[endpoint] = true;
        let there = Target::Endpoint(endpoint);
        let waiting = self
            .live()
            .filter(|(_, task)| task.waits && task.target == there);
        let waiting = waiting
            .map(|(id, _)| id)
            .chain(self.waiting[endpoint].iter().copied());
        let over: Vec<_> = waiting.map(|id| (id, Verdict::Reset)).collect();
        self.happen(Event::Abandoned { endpoint }, &over);
    }

    fn none_left(&mut self) {
        let none = self.daemons.is_empty();
        let live = self.live().filter(|_| none);
        let over: Vec<_> = live.map(|(id, _)| (id, Verdict::Reset)).collect();
        self.happen(Event::NoneLeft, &over);
    }

    fn reset(&mut self) {
        let over: Vec<_> = self.live().map(|(id, _)| (id, Verdict::Reset)).collect();
        self.happen(Event::Reset, &over);
    }

    // What the rules say about it.

    /// Puts tasks for any daemon into the queue, at its head if they are older
    /// than what is there, or deals them out.
    fn enqueue(&mut self, ids: &[TaskId]) {
        let in_turn = self.config.policy == Policy::RoundRobin && self.queue.is_empty();
        if in_turn && !self.turn.is_empty() {
            for id in ids {
                self.turn.rotate_left(1);
                let peer = self.turn.back().unwrap();
                self.daemons.get_mut(peer).unwrap().assigned.push_back(*id);
            }
        } else {
            self.queue.extend(ids);
            if self.config.policy == Policy::Queue {
                self.sort_queue();
            }
        }
    }

    /// Higher first, and first in, first out within one.
    fn sort_queue(&mut self) {
        let place = |id: &TaskId| (Reverse(self.tasks[id].priority), *id);
        self.queue.make_contiguous().sort_unstable_by_key(place);
    }

    /// What a daemon held unstarted returns to where it came from. Returns what
    /// has nowhere to go.
    fn take_back(&mut self, peer: PeerId, held: VecDeque<Held>) -> Vec<(TaskId, Verdict)> {
        self.turn.retain(|p| *p != peer);
        let daemon = self.daemons.get_mut(&peer).unwrap();
        let pinned = std::mem::take(&mut daemon.pinned);
        let assigned = std::mem::take(&mut daemon.assigned);
        self.endpoints[daemon.endpoint].assigned -= held.len() as u64;
        let held: Vec<_> = held
            .into_iter()
            .filter(|h| h.wanted)
            .map(|h| h.id)
            .collect();
        for id in held.iter().chain(&assigned) {
            let task = self.tasks.get_mut(id).unwrap();
            (task.place, task.came_back) = (Place::Waiting, true);
        }
        let free = |id: &TaskId| self.tasks[id].target == Target::Any;
        let (mut back, bound): (Vec<_>, Vec<_>) = held.into_iter().partition(free);
        back.extend(assigned);
        self.put_back(back);
        let bound = bound.into_iter().chain(pinned);
        bound.map(|id| (id, Verdict::Reset)).collect()
    }

    /// Tasks wait in the queue again: where they stood, or at its head.
    fn put_back(&mut self, back: Vec<TaskId>) {
        let newer = std::mem::take(&mut self.queue);
        if self.config.policy == Policy::Queue {
            self.queue.extend(back);
            self.queue.extend(newer);
            self.sort_queue();
        } else if newer.is_empty() {
            self.enqueue(&back);
        } else {
            self.queue.extend(back);
            self.queue.extend(newer);
        }
    }

    /// Has the dispatcher handle an event after which exactly the tasks `over`
    /// shall be, and checks everything else against the rules.
    fn happen(&mut self, event: Event<Job>, over: &[(TaskId, Verdict)]) {
        let interrupts = match event {
            Event::Cancel { .. } => true,
            Event::Tick => self.config.policy == Policy::Queue,
            _ => false,
        };
        let room_before = self.dispatcher.counts().queued;
        let mut actions = Vec::new();
        self.dispatcher.handle(self.now, event, &mut actions);

        let mut due: BTreeMap<TaskId, Verdict> = over.iter().copied().collect();
        // Those are no longer anybody's to send.
        for id in due.keys() {
            let gone = |other: &TaskId| other != id;
            self.queue.retain(gone);
            self.joins.values_mut().for_each(|w| w.retain(gone));
            self.waiting.iter_mut().for_each(|w| w.retain(gone));
            for daemon in self.daemons.values_mut() {
                daemon.pinned.retain(gone);
                daemon.assigned.retain(gone);
            }
        }
        // Processes that were started for tasks which wait for others, and are over.
        let mut dismissed = BTreeSet::new();
        for task in due.keys().map(|id| &self.tasks[id]).filter(|t| t.waits) {
            let Target::Endpoint(endpoint) = task.target else {
                continue;
            };
            let idle = |peer: &PeerId| {
                let daemon = self.daemons.get(peer);
                daemon.is_some_and(|d| !d.leaving && d.held.is_empty())
            };
            dismissed.extend(self.first[endpoint].filter(idle));
        }
        let mut cancels = BTreeMap::new();
        for (peer, daemon) in &mut self.daemons {
            for held in daemon.held.iter_mut().filter(|h| h.wanted) {
                if due.contains_key(&held.id) {
                    held.wanted = false;
                    if interrupts {
                        cancels.insert((*peer, held.seq), held.id);
                    }
                }
            }
        }
        let mut room = false;
        let mut hung_up = BTreeSet::new();
        for action in actions {
            match action {
                Action::Recall { peer, from, to } => self.recall(peer, from, to),
                Action::Send {
                    peer,
                    seq,
                    job,
                    granted,
                } => self.sent(peer, seq, job, granted),
                Action::Grant { peer, to } => {
                    let daemon = &self.daemons[&peer];
                    assert_eq!(daemon.replies, Replies::MayBeLost);
                    assert!(to > daemon.granted, "granted twice");
                    self.granted(peer, to);
                }
                Action::Cancel { peer, seq } => {
                    let named = cancels.remove(&(peer, seq));
                    assert!(named.is_some(), "cancels {seq} on {peer} for no reason");
                }
                Action::Resolve { job, verdict } => {
                    assert_eq!(due.remove(&job), Some(verdict), "task {job}");
                    assert!(self.is_live(job), "task {job} resolved twice");
                    let task = self.tasks.get_mut(&job).unwrap();
                    task.place = Place::Over(verdict);
                    task.resumes = None;
                    task.waits = false;
                    self.completed += 1;
                }
                Action::Dismiss { peer } => {
                    assert!(dismissed.contains(&peer), "{peer} is dismissed");
                    hung_up.insert(peer);
                }
                Action::Again { job } => {
                    assert!(self.again.remove(&job), "task {job} is not attempted again");
                }
                Action::Room => room = true,
            }
        }
        assert_eq!(hung_up, dismissed);
        assert!(self.again.is_empty(), "not said: {:?}", self.again);
        assert!(due.is_empty(), "did not resolve: {due:?}");
        assert!(cancels.is_empty(), "did not cancel: {cancels:?}");
        self.peak = self.peak.max(self.queued());
        if self.config.capacity.is_some() && self.queued() < room_before {
            assert!(room, "the queue shrank and nobody was told");
        }
        self.check();
    }

    /// A daemon is to give back what stands behind its first task: because that takes long, or
    /// because another one has nothing to do.
    fn recall(&mut self, peer: PeerId, from: u64, to: u64) {
        let idle = self
            .daemons
            .values()
            .any(|d| !d.leaving && d.held.len() < d.slots);
        let daemon = self.daemons.get_mut(&peer).unwrap();
        assert!(daemon.holds(), "recalled too much from {peer}");
        let first = daemon.held[1].seq.max(daemon.said_begun + 1);
        assert_eq!((from, to), (first, daemon.last_seq));
        let overdue = daemon.since + OVERDUE <= self.now;
        assert!(
            overdue || idle && self.queue.is_empty(),
            "recalled for no reason"
        );
        daemon.recalled = Some((from, to));
    }

    /// A task is on its way: was it this one's turn?
    fn sent(&mut self, peer: PeerId, seq: u64, id: TaskId, granted: u64) {
        if self.tasks[&id].target == Target::Any {
            self.in_turn(id);
        }
        let (window, _) = self.windows(&self.daemons[&peer]);
        let now = self.now;
        let daemon = self
            .daemons
            .get_mut(&peer)
            .expect("sent to one that is gone");
        assert!(!daemon.leaving, "sent to one that leaves");
        assert!(daemon.held.len() < window, "sent more than promised");
        assert_eq!(seq, daemon.last_seq + 1);
        let next = [&mut daemon.pinned, &mut daemon.assigned, &mut self.queue]
            .into_iter()
            .find_map(VecDeque::pop_front);
        assert_eq!(next, Some(id), "sent to {peer} out of order");
        daemon.last_seq = seq;
        if daemon.held.is_empty() {
            daemon.since = now;
        }
        daemon.held.push_back(Held {
            seq,
            id,
            wanted: true,
            stage: Stage::Unbegun,
        });
        self.endpoints[daemon.endpoint].assigned += 1;
        let task = self.tasks.get_mut(&id).unwrap();
        assert_eq!(task.place, Place::Waiting);
        assert!(
            !task.waits,
            "task {id} is sent before what it needs is there"
        );
        assert_eq!(
            task.resumes, None,
            "task {id} is sent before its wait is over"
        );
        task.place = Place::On(peer);
        self.granted(peer, granted);
    }

    /// A daemon may begin what it holds up to this one.
    fn granted(&mut self, peer: PeerId, to: u64) {
        let daemon = self.daemons.get_mut(&peer).unwrap();
        assert_eq!(to, daemon.grantable());
        if daemon.replies == Replies::MayBeLost && to > daemon.granted {
            // So many are over if it is lost now.
            let at_risk = daemon.held.iter().filter(|h| h.seq <= to).count();
            assert!(at_risk <= daemon.promised(), "granted too much");
        }
        daemon.granted = to;
    }

    /// A task for any daemon is sent. With a queue, those that stand before it and have not begun are with
    /// daemons, each of which has replied of late or has been asked to give them back.
    fn in_turn(&self, id: TaskId) {
        if self.config.policy != Policy::Queue {
            return;
        }
        for daemon in self.daemons.values().filter(|d| !d.leaving) {
            let place = |id: TaskId| (Reverse(self.tasks[&id].priority), id);
            let older =
                |h: &&Held| h.wanted && place(h.id) < place(id) && h.stage == Stage::Unbegun;
            if daemon.held.iter().skip(daemon.slots).any(|h| older(&h)) {
                let late = daemon.since + OVERDUE <= self.now;
                assert!(!late || daemon.recalled.is_some(), "{id} overtakes others");
            }
        }
    }

    /// The log says of every task and daemon what the host can know.
    fn check_log(&self) {
        let rows = self.dispatcher.task_rows(usize::MAX);
        assert!(rows.iter().map(|row| row.id).eq(self.tasks.keys().copied()));
        for row in rows {
            let task = &self.tasks[&row.id];
            let state = match task.place {
                Place::Waiting => TaskState::Queued,
                Place::On(peer) => {
                    let daemon = &self.daemons[&peer];
                    let at = daemon.held.iter().position(|h| h.id == row.id);
                    if at.is_some_and(|at| at < daemon.slots) {
                        TaskState::Running
                    } else {
                        TaskState::Queued
                    }
                }
                Place::Over(Verdict::Replied) => match task.outcome {
                    Done::Value => TaskState::Done,
                    Done::Error | Done::Final => TaskState::Failed,
                    Done::Skipped => TaskState::Canceled,
                    Done::Lost => TaskState::Lost,
                },
                Place::Over(Verdict::Broken) => TaskState::Failed,
                Place::Over(Verdict::TimedOut) => TaskState::TimedOut,
                Place::Over(Verdict::Canceled) => TaskState::Canceled,
                Place::Over(Verdict::Reset | Verdict::Closed) => TaskState::Lost,
            };
            assert_eq!(row.state, state, "task {}", row.id);
            let failures = task.crashes + task.errors;
            let begun = u32::from(matches!(state, TaskState::Done | TaskState::Running));
            assert!(row.attempts >= failures + begun && row.attempts <= failures + 1);
            let over = matches!(task.place, Place::Over(_));
            assert_eq!(row.ended.is_some(), over);
            let order = [Some(row.submitted), row.started, row.ended, Some(self.now)];
            assert!(order.into_iter().flatten().is_sorted(), "times of {row:?}");
        }
        let tally = self.dispatcher.tally();
        let over = tally.done + tally.failed + tally.canceled + tally.timed_out + tally.lost;
        assert_eq!(over, self.completed);
        let peers = self.dispatcher.peer_rows();
        assert!(peers.iter().map(|row| row.peer).eq(1..=self.last_peer));
        for row in peers {
            let state = match self.daemons.get(&row.peer) {
                None => {
                    assert!(row.ended.is_some());
                    continue;
                }
                Some(daemon) if daemon.leaving => PeerState::Leaving,
                Some(daemon) if daemon.held.is_empty() => PeerState::Idle,
                Some(_) => PeerState::Busy,
            };
            assert_eq!((row.state, row.ended), (state, None));
        }
    }

    /// What must hold between any two events.
    fn check(&self) {
        self.check_log();
        for (id, daemon) in &self.daemons {
            if daemon.leaving {
                let begun = |h: &Held| h.stage != Stage::Unbegun;
                assert!(daemon.held.iter().all(begun));
                continue;
            }
            assert_eq!(daemon.granted, daemon.grantable(), "{id} is not told");
            let could_take =
                !daemon.pinned.is_empty() || !daemon.assigned.is_empty() || !self.queue.is_empty();
            let has_room = daemon.held.len() < self.windows(daemon).1;
            assert!(!(has_room && could_take), "{id} is kept waiting");
        }
        let staying = || self.daemons.values().filter(|d| !d.leaving);
        if self.config.policy == Policy::Queue && staying().any(|d| d.held.len() < d.slots) {
            let asked = staying().any(|d| d.recalled.is_some());
            let could = staying().any(Daemon::holds);
            assert!(
                asked || !could,
                "one idles while another holds unstarted work"
            );
        }
        let live = || self.live().map(|(_, t)| t);
        let waiting = live().filter(|t| t.place == Place::Waiting).count();
        let expected = Counts {
            awaiting: waiting,
            executing: live().count() - waiting,
            completed: self.completed,
            connections: self.daemons.len(),
            cumulative: self.cumulative,
            queued: self.queued(),
            peak: self.peak,
        };
        assert_eq!(self.dispatcher.counts(), expected);
        let of_all = expected.awaiting + expected.executing + expected.completed as usize;
        assert_eq!(of_all, self.tasks.len(), "a task is not counted");
        if self.config.policy == Policy::Queue {
            assert_eq!(self.dispatcher.unserved(), self.queue.len());
        }
        let endpoints: Vec<_> = self.dispatcher.endpoint_counts().collect();
        assert_eq!(endpoints, self.endpoints);
        let staying = self.daemons.iter().filter(|(_, d)| !d.leaving);
        let staying: Vec<_> = staying.map(|(id, _)| *id).collect();
        assert_eq!(self.dispatcher.peers(), staying);
        let next = live().filter_map(|t| t.deadline).min();
        let holders = self.daemons.values().filter(|d| !d.leaving && d.holds());
        let holders = holders.filter(|_| self.config.policy == Policy::Queue);
        let look = holders.map(|d| d.since + OVERDUE).min();
        let resumes = live().filter_map(|t| t.resumes).min();
        if let Some(next) = [next, look, resumes].into_iter().flatten().min() {
            // Perhaps earlier, to look whether there is something to do.
            assert!(self.dispatcher.next_deadline().is_some_and(|at| at <= next));
        }
        for bytes in [0, 10, 1000] {
            let fits = self
                .config
                .capacity
                .is_none_or(|most| self.queued() + bytes <= most);
            let room = fits || self.queued() == 0;
            assert_eq!(self.dispatcher.has_room(bytes), room);
        }
        for peer in 0..self.last_peer + 2 {
            let idle = self.daemons.get(&peer).is_none_or(|d| d.held.is_empty());
            assert_eq!(self.dispatcher.is_idle(peer), idle);
        }
    }

    /// Every daemon works off what it has; what then still waits can only be
    /// ended by a reset.
    fn end(&mut self) {
        let leaving = self.daemons.iter().filter(|(_, d)| d.leaving);
        for peer in leaving.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.lose(peer);
        }
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 20_000, "nothing comes of it: {:?}", self.daemons);
            let asked = self.daemons.iter().find(|(_, d)| d.recalled.is_some());
            if let Some(peer) = asked.map(|(id, _)| *id) {
                self.give_back(peer);
            } else if let Some(peer) = self.holding() {
                let before = self.endpoints[self.daemons[&peer].endpoint].complete;
                self.reply(peer);
                let after = self.endpoints[self.daemons[&peer].endpoint].complete;
                assert!(after > before, "{peer} may not begin what it holds");
            } else {
                break;
            }
        }
        self.reset();
        assert!(self.live().next().is_none());
        assert_eq!(self.dispatcher.counts().queued, 0);
    }

    fn holding(&self) -> Option<PeerId> {
        let mut daemons = self.daemons.iter();
        daemons.find(|(_, d)| !d.held.is_empty()).map(|(id, _)| *id)
    }

    /// One of the daemons, if there are any.
    fn pick(&self, n: usize) -> Option<PeerId> {
        let at = n.checked_rem(self.daemons.len())?;
        self.daemons.keys().nth(at).copied()
    }

    fn verdict(&self, id: TaskId) -> Option<Verdict> {
        match self.tasks[&id].place {
            Place::Over(verdict) => Some(verdict),
            _ => None,
        }
    }

    /// The tasks on a daemon, in its order.
    fn held(&self, peer: PeerId) -> Vec<TaskId> {
        self.daemons[&peer].held.iter().map(|h| h.id).collect()
    }
}

/// A step of a random history. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        target: RandomTarget,
        times: usize,
        bytes: u64,
        timeout: Option<u64>,
        rules: Rules,
        waits: bool,
    },
    /// What a task waits for is there, and its payload has this size; or it is broken.
    Ready(u64, u64),
    Broken(u64),
    /// At this endpoint, with so many slots, across the network or not.
    Join(usize, usize, bool),
    Begin(usize),
    /// One of those that run, after so many microseconds.
    Reply(usize, usize, u64, Done),
    /// So many replies arrive.
    Hear(usize, usize),
    GiveBack(usize),
    Leave(usize),
    /// After so many more replies have arrived; the last is whether that were all.
    Lose(usize, usize, bool),
    Cancel(u64),
    Pass(u64),
    Abandon(usize),
    Relocate(usize),
    Reset,
    NoneLeft,
    /// Messages about what is gone, or never was.
    Crossed(u32, u64),
}

#[derive(Clone, Copy, Debug)]
enum RandomTarget {
    Any,
    /// Among all that ever were, and one that was not.
    Peer(u32),
    Endpoint(usize),
    Join(u32),
}

fn any_target() -> impl Strategy<Value = RandomTarget> {
    prop_oneof![
        8 => Just(RandomTarget::Any),
        2 => any::<u32>().prop_map(RandomTarget::Peer),
        1 => (0..ENDPOINTS + 1).prop_map(RandomTarget::Endpoint),
        1 => (0u32..3).prop_map(RandomTarget::Join),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let submit = (
        any_target(),
        1usize..12,
        0u64..50,
        prop::option::weighted(0.3, 0u64..40),
        any_rules(),
        prop::bool::weighted(0.3),
    );
    prop_oneof![
        10 => submit.prop_map(|(target, times, bytes, timeout, rules, waits)| {
            Step::Submit { target, times, bytes, timeout, rules, waits }
        }),
        8 => any::<(u64, u16)>().prop_map(|(n, bytes)| Step::Ready(n, bytes.into())),
        2 => any::<u64>().prop_map(Step::Broken),
        4 => any_daemon().prop_map(|(endpoint, slots, far)| Step::Join(endpoint, slots, far)),
        8 => any::<usize>().prop_map(Step::Begin),
        20 => (any::<usize>(), any::<usize>(), any_time(), any_outcome())
            .prop_map(|(n, nth, time, outcome)| Step::Reply(n, nth, time, outcome)),
        20 => (any::<usize>(), 1usize..4).prop_map(|(n, most)| Step::Hear(n, most)),
        6 => any::<usize>().prop_map(Step::GiveBack),
        1 => any::<usize>().prop_map(Step::Leave),
        3 => (any::<usize>(), 0usize..3, prop::bool::weighted(0.8)).prop_map(|(n, heard, all)| Step::Lose(n, heard, all)),
        6 => any::<u64>().prop_map(Step::Cancel),
        4 => (0u64..20).prop_map(Step::Pass),
        1 => (0..ENDPOINTS).prop_map(Step::Abandon),
        1 => (0..ENDPOINTS).prop_map(Step::Relocate),
        1 => prop::bool::weighted(0.2).prop_map(|really| if really { Step::Reset } else { Step::Pass(1) }),
        1 => Just(Step::NoneLeft),
        1 => any::<(u32, u64)>().prop_map(|(peer, seq)| Step::Crossed(peer, seq)),
    ]
}

/// Endpoint and slots of a daemon, or a relay, and whether it is across the network.
fn any_daemon() -> impl Strategy<Value = (usize, usize, bool)> {
    let slots = prop_oneof![6 => Just(1usize), 1 => Just(3)];
    (0..ENDPOINTS, slots, any::<bool>())
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let priority = prop_oneof![
        4 => Just(0.0),
        1 => Just(-0.5),
        2 => (0u8..3).prop_map(f64::from),
    ];
    let retry = prop::option::weighted(0.3, any_retry());
    (retry, priority).prop_map(|(retry, priority)| Rules {
        retry,
        priority: Priority::new(priority),
    })
}

fn retrying(retry: Retry) -> Rules {
    Rules {
        retry: Some(retry),
        ..Rules::default()
    }
}

fn any_outcome() -> impl Strategy<Value = Done> {
    prop_oneof![
        12 => Just(Done::Value),
        3 => Just(Done::Error),
        1 => Just(Done::Final),
        1 => Just(Done::Lost),
    ]
}

fn any_retry() -> impl Strategy<Value = Retry> {
    let backoff = prop_oneof![
        Just(Backoff::NONE),
        (0u64..20, 1.0..3.0, 0u64..40).prop_map(|(first, factor, most)| Backoff {
            first: ms(first),
            factor,
            most: ms(most),
        }),
    ];
    let limited = (0u32..3, 0u32..3, backoff).prop_map(|(crash, error, backoff)| Retry {
        crash,
        error,
        backoff,
    });
    prop_oneof![Just(Retry::default()), Just(Retry::AFTER_CRASH), limited]
}

/// Microseconds that a task has taken: mostly few.
fn any_time() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0u64..100,
        1 => 100u64..1500,
        1 => Just(1_000_000),
    ]
}

fn any_config() -> impl Strategy<Value = Config> {
    let policy = prop_oneof![Just(Policy::Queue), Just(Policy::RoundRobin)];
    let capacity = prop::option::of(0u64..200);
    (policy, any_retry(), capacity, any::<u64>()).prop_map(|(policy, retry, capacity, jitter)| {
        Config {
            policy,
            retry,
            capacity,
            jitter,
        }
    })
}

fn live_through(world: &mut World, step: Step) {
    match step {
        Step::Submit {
            target,
            times,
            bytes,
            timeout,
            rules,
            waits,
        } => {
            let target = match target {
                RandomTarget::Any => Target::Any,
                RandomTarget::Peer(n) => Target::Peer(n % (world.last_peer + 2)),
                RandomTarget::Endpoint(ENDPOINTS..) => Target::Any,
                RandomTarget::Endpoint(e) => Target::Endpoint(e),
                RandomTarget::Join(others) => Target::Join(others),
            };
            let timeout = timeout.map(Duration::from_millis);
            // What is pinned to a daemon waits for nothing.
            let waits = waits && matches!(target, Target::Any | Target::Endpoint(_));
            for _ in 0..times {
                world.submit_as(target, bytes, timeout, rules.clone(), waits);
            }
        }
        Step::Ready(n, bytes) => world.ready(world.waiting_task(n), bytes),
        Step::Broken(n) => world.broken(world.waiting_task(n)),
        Step::Join(endpoint, slots, far) => {
            let replies = if far {
                Replies::MayBeLost
            } else {
                Replies::Sure
            };
            world.join_as(endpoint, slots, replies);
        }
        Step::Begin(n) => world.pick(n).into_iter().for_each(|p| world.begin(p)),
        Step::Reply(n, nth, time, outcome) => {
            let time = Duration::from_micros(time);
            let peer = world.pick(n);
            peer.into_iter()
                .for_each(|p| world.say(p, nth, time, outcome));
        }
        Step::Hear(n, most) => world.pick(n).into_iter().for_each(|p| world.hear(p, most)),
        Step::GiveBack(n) => world.pick(n).into_iter().for_each(|p| world.give_back(p)),
        Step::Leave(n) => world.pick(n).into_iter().for_each(|p| world.leave(p)),
        Step::Lose(n, heard, all) => {
            let peer = world.pick(n);
            peer.into_iter()
                .for_each(|p| world.lose_after(p, heard, all));
        }
        Step::Cancel(n) => world.cancel(n % (world.tasks.len() as u64 + 2)),
        Step::Pass(ms) => world.pass(Duration::from_millis(ms)),
        Step::Abandon(endpoint) => world.abandon(endpoint),
        Step::Relocate(endpoint) => world.relocate(endpoint),
        Step::Reset => world.reset(),
        Step::NoneLeft => world.none_left(),
        Step::Crossed(peer, seq) => {
            let (gone, unknown) = (world.last_peer + 1 + peer % 3, u64::MAX - seq % 3);
            let spent = Duration::ZERO;
            world.happen(replied(gone, seq, spent), &[]);
            world.happen(
                Event::Returned {
                    peer: gone,
                    from: seq,
                    to: seq,
                },
                &[],
            );
            let begun = seq;
            world.happen(Event::Leaving { peer: gone, begun }, &[]);
            let heard_out = true;
            let lost = Event::Lost {
                peer: gone,
                heard_out,
            };
            world.happen(lost, &[]);
            let peer = peer % (world.last_peer + 1);
            world.happen(replied(peer, unknown, spent), &[]);
            // Nobody has recalled anything.
            let recalled = world
                .daemons
                .get(&peer)
                .is_some_and(|d| d.recalled.is_some());
            if !recalled {
                let (from, to) = (0, u64::MAX);
                world.happen(Event::Returned { peer, from, to }, &[]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_hold_through_any_history(
        config in any_config(),
        daemons in prop::collection::vec(any_daemon(), 0..4),
        steps in prop::collection::vec(any_step(), 1..120),
    ) {
        let mut world = World::new(config);
        for (endpoint, slots, far) in daemons {
            live_through(&mut world, Step::Join(endpoint, slots, far));
        }
        for step in steps {
            live_through(&mut world, step);
        }
        world.end();
    }
}

fn queue() -> World {
    World::new(Config::default())
}

fn round_robin() -> World {
    World::new(Config {
        policy: Policy::RoundRobin,
        ..Config::default()
    })
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn submit(world: &mut World) -> TaskId {
    world.submit(Target::Any, 1, None)
}

#[test]
fn tasks_wait_for_a_daemon_and_go_first_in_first_out() {
    let mut world = queue();
    let [a, b, c] = [(); 3].map(|()| submit(&mut world));
    let one = world.join(0);
    assert_eq!(world.held(one), [a]);
    let two = world.join(0);
    assert_eq!(world.held(two), [b]);
    world.reply(two);
    assert_eq!(world.held(two), [c]);
    assert_eq!(world.verdict(b), Some(Verdict::Replied));
    assert_eq!(world.verdict(a), None);
}

#[test]
fn threads_that_overtake_each_other_lose_nothing() {
    let mut dispatcher = Dispatcher::new(Config::default());
    let mut out = Vec::new();
    let endpoint = dispatcher.add_endpoint();
    for id in [2, 5, 3, 4, 1] {
        let submit = Event::Submit {
            id,
            job: id,
            bytes: 1,
            deadline: (id == 3).then_some(Duration::from_secs(1)),
            target: Target::Any,
            label: Label::default(),
            rules: None,
            waits: false,
        };
        dispatcher.handle(Duration::ZERO, submit, &mut out);
    }
    dispatcher.handle(Duration::from_secs(1), Event::Tick, &mut out);
    let slots = 1;
    let peer = 1;
    let joined = Event::Joined {
        peer,
        endpoint,
        slots,
        replies: Replies::Sure,
    };
    dispatcher.handle(Duration::from_secs(1), joined, &mut out);
    for seq in 1..=4 {
        let spent = Duration::from_secs(1);
        dispatcher.handle(Duration::from_secs(2), replied(peer, seq, spent), &mut out);
    }
    let resolved: Vec<_> = out
        .iter()
        .filter_map(|action| match action {
            Action::Resolve { job, verdict } => Some((*job, *verdict)),
            _ => None,
        })
        .collect();
    let mut expected = vec![(3, Verdict::TimedOut)];
    expected.extend([2, 5, 4, 1].map(|id| (id, Verdict::Replied)));
    assert_eq!(resolved, expected);
    assert_eq!(
        (dispatcher.counts().awaiting, dispatcher.next_deadline()),
        (0, None)
    );
}

#[test]
fn a_crashed_daemons_task_resolves_to_reset_and_the_others_go_on() {
    let mut world = queue();
    let one = world.join(0);
    let two = world.join(0);
    let [a, b, c] = [(); 3].map(|()| submit(&mut world));
    assert_eq!(
        world.held(two),
        [a],
        "the daemon that was busy last is warm"
    );
    world.begin(two);
    world.lose(two);
    assert_eq!(world.verdict(a), Some(Verdict::Reset));
    world.reply(one);
    assert_eq!(world.verdict(b), Some(Verdict::Replied));
    assert_eq!(world.held(one), [c]);
}

#[test]
fn with_retry_a_crashed_daemons_task_is_next_in_line() {
    let mut world = World::new(Config {
        retry: Retry::AFTER_CRASH,
        ..Config::default()
    });
    let one = world.join(0);
    let [a, b] = [(); 2].map(|()| submit(&mut world));
    world.begin(one);
    world.lose(one);
    let two = world.join(0);
    assert_eq!(world.held(two), [a]);
    world.reply(two);
    assert_eq!(world.held(two), [b]);
    assert_eq!(world.endpoints[0].assigned, 3);
}

fn limited(crash: u32, error: u32, first: u64) -> Retry {
    let backoff = Backoff {
        first: ms(first),
        factor: 2.0,
        most: ms(1000),
    };
    Retry {
        crash,
        error,
        backoff,
    }
}

#[test]
fn a_task_that_fails_waits_and_is_attempted_again_as_often_as_it_may() {
    let mut world = queue();
    let one = world.join(0);
    let a = world.submit_with(Target::Any, 1, None, retrying(limited(0, 2, 100)));
    world.reply_with(one, ms(1), Done::Error);
    assert!(world.held(one).is_empty());
    let next = submit(&mut world);
    assert_eq!(world.held(one), [next], "the daemon is free meanwhile");
    world.reply(one);
    world.pass(ms(49));
    assert!(world.held(one).is_empty());
    world.pass(ms(51));
    assert_eq!(world.held(one), [a]);
    world.reply_with(one, ms(1), Done::Error);
    world.pass(ms(200));
    world.reply_with(one, ms(1), Done::Error);
    assert_eq!(world.verdict(a), Some(Verdict::Replied));
    assert_eq!(world.dispatcher.task_rows(2)[0].attempts, 3);
    let b = world.submit_with(Target::Any, 1, None, retrying(limited(0, 2, 100)));
    world.reply_with(one, ms(1), Done::Final);
    assert_eq!(world.verdict(b), Some(Verdict::Replied));
}

#[test]
fn higher_priority_goes_first_and_first_in_first_out_within_one() {
    let mut world = queue();
    let one = world.join(0);
    let running = submit(&mut world);
    let mut with = |number| {
        let rules = Rules {
            priority: Priority::new(number),
            ..Rules::default()
        };
        world.submit_with(Target::Any, 1, None, rules)
    };
    let [normal, high, low, high_too, normal_too] = [0.0, 1.5, -1.0, 1.5, 0.0].map(&mut with);
    world.reply(one);
    assert_eq!(world.held(one), [high]);
    // It keeps its place when it comes back.
    world.leave(one);
    world.lose(one);
    let two = world.join(0);
    assert_eq!(world.held(two), [high]);
    for next in [high_too, normal, normal_too, low] {
        world.reply(two);
        assert_eq!(world.held(two), [next]);
    }
    assert_eq!(world.verdict(running), Some(Verdict::Replied));
}

#[test]
fn errors_and_crashes_are_counted_apart() {
    let mut world = queue();
    let one = world.join(0);
    let a = world.submit_with(Target::Any, 1, None, retrying(limited(1, 1, 0)));
    world.reply_with(one, ms(1), Done::Error);
    world.begin(one);
    world.lose(one);
    let two = world.join(0);
    assert_eq!(world.held(two), [a]);
    world.begin(two);
    world.lose(two);
    assert_eq!(world.verdict(a), Some(Verdict::Reset));
    assert_eq!(world.dispatcher.task_rows(1)[0].attempts, 3);
}

#[test]
fn a_task_that_waits_for_its_next_attempt_can_be_cancelled_and_times_out() {
    let mut world = World::new(Config {
        retry: limited(0, 9, 100),
        ..Config::default()
    });
    let one = world.join(0);
    let a = submit(&mut world);
    let b = world.submit(Target::Any, 1, Some(ms(40)));
    world.reply_with(one, ms(1), Done::Error);
    world.reply_with(one, ms(1), Done::Error);
    assert_eq!(world.dispatcher.counts().awaiting, 2);
    world.cancel(a);
    assert_eq!(world.verdict(a), Some(Verdict::Canceled));
    world.pass(ms(40));
    assert_eq!(world.verdict(b), Some(Verdict::TimedOut));
    world.pass(ms(100));
    assert!(world.held(one).is_empty());
    assert_eq!(world.dispatcher.next_deadline(), None);
}

#[test]
fn a_running_task_that_is_cancelled_keeps_its_daemon_until_it_has_let_go() {
    let mut world = queue();
    let one = world.join(0);
    let a = submit(&mut world);
    world.begin(one);
    world.cancel(a);
    assert_eq!(world.verdict(a), Some(Verdict::Canceled));
    let b = submit(&mut world);
    assert_eq!(world.held(one), [a]);
    world.reply(one);
    assert_eq!(world.held(one), [b]);
    assert_eq!(world.dispatcher.counts().completed, 1);
}

#[test]
fn a_queued_task_that_is_cancelled_never_reaches_a_daemon() {
    let mut world = queue();
    let [a, b] = [(); 2].map(|()| submit(&mut world));
    world.cancel(a);
    let one = world.join(0);
    assert_eq!(world.held(one), [b]);
}

#[test]
fn a_task_times_out_at_its_deadline_wherever_it_is() {
    let mut world = queue();
    let one = world.join(0);
    let running = world.submit(Target::Any, 1, Some(ms(10)));
    let queued = world.submit(Target::Any, 1, Some(ms(20)));
    world.pass(ms(9));
    assert_eq!(world.verdict(running), None);
    world.pass(ms(1));
    assert_eq!(world.verdict(running), Some(Verdict::TimedOut));
    world.pass(ms(10));
    assert_eq!(world.verdict(queued), Some(Verdict::TimedOut));
    world.reply(one);
    assert!(world.held(one).is_empty());
}

/// A daemon of proven speed, and a queue of so many tasks behind its next.
fn quick(world: &mut World, tasks: usize) -> (PeerId, Vec<TaskId>) {
    let one = world.join(0);
    submit(world);
    let ids = (0..=tasks).map(|_| submit(world)).collect();
    world.reply_after(one, Duration::from_micros(10));
    (one, ids)
}

#[test]
fn a_daemon_of_tiny_tasks_holds_some_ahead_and_one_of_long_tasks_none() {
    let mut world = queue();
    let (one, ids) = quick(&mut world, 200);
    assert_eq!(world.held(one), ids[..MOST_AHEAD]);
    for _ in 0..MOST_AHEAD / 2 - 1 {
        world.reply_after(one, Duration::from_micros(10));
    }
    assert_eq!(world.held(one).len(), MOST_AHEAD / 2 + 1);
    world.reply_after(one, Duration::from_micros(10));
    assert_eq!(
        world.held(one).len(),
        MOST_AHEAD,
        "several are sent at once"
    );
    for _ in 1..MOST_AHEAD {
        world.reply_after(one, ms(2));
    }
    assert_eq!(world.held(one).len(), 1);
    world.reply_after(one, ms(2));
    assert_eq!(world.held(one).len(), 1);
}

#[test]
fn what_stands_behind_a_task_that_turns_out_long_goes_to_another_daemon_in_its_turn() {
    let mut world = queue();
    let (one, ids) = quick(&mut world, 200);
    world.begin(one);
    let two = world.join(0);
    let later = ids[MOST_AHEAD];
    assert_eq!(world.held(two), [later], "the queue is not empty");
    world.pass(OVERDUE);
    assert!(world.daemons[&one].recalled.is_some());
    world.give_back(one);
    assert_eq!(world.held(one), ids[..1]);
    world.reply(two);
    assert_eq!(world.held(two), ids[1..2]);
}

/// Found by `the_rules_hold_through_any_history`.
#[test]
fn a_daemon_that_gave_back_only_a_part_is_looked_at_again_in_time() {
    let submit = |times| Step::Submit {
        target: RandomTarget::Any,
        times,
        bytes: 0,
        timeout: None,
        rules: Rules::default(),
        waits: false,
    };
    let join = || Step::Join(0, 1, false);
    let reply = |daemon, task, spent, done| Step::Reply(daemon, task, spent, done);
    let mut world = queue();
    let steps = [
        join(),
        join(),
        join(),
        submit(1),
        Step::Lose(0, 0, false),
        submit(1),
        submit(3),
        Step::Lose(0, 0, false),
        join(),
        Step::Lose(0, 0, false),
        reply(0, 0, 0, Done::Value),
        Step::Pass(0),
        Step::Hear(0, 1),
        submit(4),
        submit(10),
        join(),
        Step::Pass(5),
        join(),
        reply(3057474260351972727, 0, 0, Done::Value),
        join(),
        join(),
        Step::Hear(8064083895220143270, 1),
        reply(15495947677450279435, 24657227040713286, 31, Done::Value),
        reply(5944547083993567431, 4460556790299853850, 87, Done::Error),
        Step::Pass(1),
        Step::Hear(15635070144137351301, 2),
    ];
    for step in steps {
        live_through(&mut world, step);
    }
    world.end();
}

#[test]
fn a_daemon_that_falls_idle_gets_what_another_holds_unstarted() {
    let mut world = queue();
    let (one, ids) = quick(&mut world, 3);
    assert_eq!(world.held(one), ids[..]);
    let two = world.join(0);
    // The second one begins before it hears of that.
    world.reply_after(one, Duration::from_micros(10));
    world.begin(one);
    world.give_back(one);
    assert_eq!(world.held(one)[0], ids[1]);
    assert_eq!(world.held(two), ids[2..3]);
    world.end();
    assert!(ids.iter().all(|id| world.tasks[id].starts == 1));
}

#[test]
fn a_daemon_that_is_lost_gives_back_in_order_what_it_held_ahead() {
    let mut world = queue();
    let (one, ids) = quick(&mut world, 200);
    world.begin(one);
    world.lose(one);
    assert_eq!(world.verdict(ids[0]), Some(Verdict::Reset));
    let two = world.join(0);
    for id in &ids[1..] {
        assert_eq!(world.held(two)[0], *id);
        world.reply(two);
    }
}

#[test]
fn set_up_comes_before_what_was_submitted_after_it() {
    let mut world = queue();
    let one = world.join(0);
    let running = submit(&mut world);
    let waiting = submit(&mut world);
    let setup = world.submit(Target::Peer(one), 1, None);
    let next = world.submit(Target::Join(0), 1, None);
    let next_too = world.submit(Target::Join(0), 1, None);
    let later = world.submit(Target::Join(1), 1, None);
    assert_eq!(world.held(one), [running]);
    world.reply(one);
    assert_eq!(world.held(one), [setup]);
    let two = world.join(0);
    assert_eq!(world.held(two), [next]);
    world.reply(two);
    assert_eq!(world.held(two), [next_too]);
    world.reply(two);
    assert_eq!(world.held(two), [waiting]);
    let three = world.join(0);
    assert_eq!(world.held(three), [later]);
}

#[test]
fn what_is_pinned_goes_down_with_its_daemon_even_with_retry() {
    let mut world = World::new(Config {
        retry: Retry::AFTER_CRASH,
        ..Config::default()
    });
    let one = world.join(0);
    let running = world.submit(Target::Peer(one), 1, None);
    let waiting = world.submit(Target::Peer(one), 1, None);
    world.lose(one);
    let late = world.submit(Target::Peer(one), 1, None);
    for id in [running, waiting, late] {
        assert_eq!(world.verdict(id), Some(Verdict::Reset));
    }
}

#[test]
fn a_process_that_ends_before_it_connects_ends_its_task() {
    let mut world = queue();
    let early = world.submit(Target::Endpoint(1), 1, None);
    world.abandon(1);
    assert_eq!(world.verdict(early), Some(Verdict::Reset));
    // It may even be gone before its task is there.
    let late = world.submit(Target::Endpoint(1), 1, None);
    assert_eq!(world.verdict(late), Some(Verdict::Reset));
}

#[test]
fn a_process_that_connects_before_its_task_is_there_gets_it_all_the_same() {
    let mut world = queue();
    let one = world.join(1);
    let task = world.submit(Target::Endpoint(1), 1, None);
    assert_eq!(world.held(one), [task]);
}

#[test]
fn tasks_that_cross_with_a_goodbye_go_to_the_next_daemon() {
    let mut world = queue();
    let one = world.join(0);
    let [a, b] = [(); 2].map(|()| submit(&mut world));
    world.leave(one);
    world.lose(one);
    let two = world.join(0);
    assert_eq!(world.held(two), [a]);
    world.reply(two);
    assert_eq!(world.held(two), [b]);
    assert_eq!(world.endpoints[0].assigned, 2);
}

#[test]
fn round_robin_deals_evenly_and_holds_back_what_does_not_fit() {
    let mut world = round_robin();
    let [one, two] = [(); 2].map(|()| world.join(0));
    let ids: Vec<_> = (0..3 * WINDOW).map(|_| submit(&mut world)).collect();
    let odd: Vec<_> = ids.iter().copied().step_by(2).take(WINDOW).collect();
    assert_eq!(world.held(one), odd);
    assert_eq!(world.held(two).len(), WINDOW);
    assert_eq!(world.dispatcher.counts().awaiting, WINDOW);
    world.begin(one);
    world.lose(one);
    assert_eq!(world.verdict(ids[0]), Some(Verdict::Reset));
    world.end();
    let replied = ids
        .iter()
        .filter(|id| world.verdict(**id) == Some(Verdict::Replied));
    assert_eq!(replied.count(), ids.len() - 1);
}

#[test]
fn round_robin_keeps_the_order_of_what_was_queued_before_anybody_connected() {
    let mut world = round_robin();
    let early: Vec<_> = (0..2 * WINDOW).map(|_| submit(&mut world)).collect();
    let one = world.join(0);
    let late = submit(&mut world);
    assert_eq!(world.held(one), early[..WINDOW]);
    world.lose(one);
    let two = world.join(0);
    let expected: Vec<_> = early.into_iter().skip(1).chain([late]).collect();
    let mut began = Vec::new();
    while let Some(first) = world.held(two).first().copied() {
        began.push(first);
        world.reply(two);
    }
    assert_eq!(began, expected);
}

#[test]
fn every_task_that_has_resolved_is_counted_as_completed_however_it_ended() {
    let mut world = queue();
    let one = world.join(0);
    let replied = submit(&mut world);
    world.reply(one);
    let crashed = submit(&mut world);
    world.begin(one);
    let timed_out = world.submit(Target::Any, 1, Some(ms(10)));
    let canceled = submit(&mut world);
    world.cancel(canceled);
    world.pass(ms(10));
    world.lose(one);
    let reset = submit(&mut world);
    world.reset();
    let ids = [replied, crashed, timed_out, canceled, reset];
    assert!(ids.iter().all(|id| world.verdict(*id).is_some()));
    assert_eq!(world.dispatcher.counts().completed, 5);
    world.dispatcher.count_unsubmitted();
    assert_eq!(world.dispatcher.counts().completed, 6);
}

#[test]
fn the_peak_counts_what_came_back() {
    let mut world = queue();
    let one = world.join(0);
    world.submit(Target::Any, 100, None);
    assert_eq!(world.dispatcher.counts().peak, 0);
    world.leave(one);
    assert_eq!(world.dispatcher.counts().queued, 100);
    assert_eq!(world.dispatcher.counts().peak, 100);
}

#[test]
fn a_payload_larger_than_the_whole_capacity_fits_an_empty_queue() {
    let mut world = World::new(Config {
        capacity: Some(100),
        ..Config::default()
    });
    assert!(world.dispatcher.has_room(1000));
    world.submit(Target::Any, 1000, None);
    assert!(!world.dispatcher.has_room(1));
    world.join(0);
    assert!(world.dispatcher.has_room(1));
}

#[test]
fn a_task_that_waits_for_others_is_in_no_queue() {
    let mut world = World::new(Config::default());
    let peer = world.join(0);
    let early = world.submit_waiting(10, None);
    let late = world.submit_waiting(10, Some(ms(5)));
    let broken = world.submit_waiting(10, None);
    let gone = world.submit_waiting(10, None);
    assert!(world.held(peer).is_empty());
    assert_eq!(world.dispatcher.counts().awaiting, 4);
    assert_eq!(world.dispatcher.unserved(), 0);
    let running = world.submit(Target::Any, 1, None);
    let queued = world.submit(Target::Any, 1, None);
    assert_eq!(world.held(peer), [running]);
    // It stands where it would have stood, and takes up the room of what it has been given.
    world.ready(early, 1000);
    assert_eq!(world.dispatcher.counts().queued, 1031);
    world.ready(early, 7);
    world.reply(peer);
    assert_eq!(world.held(peer), [early]);
    world.reply(peer);
    assert_eq!(world.held(peer), [queued]);
    world.pass(ms(5));
    world.broken(broken);
    world.cancel(gone);
    world.ready(late, 10);
    world.ready(broken, 10);
    assert_eq!(world.verdict(late), Some(Verdict::TimedOut));
    assert_eq!(world.verdict(broken), Some(Verdict::Broken));
    assert_eq!(world.verdict(gone), Some(Verdict::Canceled));
    let rows = world.dispatcher.task_rows(usize::MAX);
    let row = rows.iter().find(|row| row.id == broken).unwrap();
    assert_eq!(
        row.error.as_deref(),
        Some("an argument could not be computed")
    );
    world.end();
}

#[test]
fn a_process_that_is_gone_ends_the_task_that_waits_with_it() {
    let mut world = World::new(Config::default());
    let waiting = world.submit_as(Target::Endpoint(1), 1, None, Rules::default(), true);
    let other = world.submit_as(Target::Endpoint(2), 1, None, Rules::default(), true);
    let peer = world.join(1);
    world.join(2);
    world.lose(peer);
    assert_eq!(world.verdict(waiting), None);
    world.abandon(1);
    assert_eq!(world.verdict(waiting), Some(Verdict::Reset));
    world.ready(other, 1);
    assert_eq!(world.verdict(other), None);
    world.end();
}
