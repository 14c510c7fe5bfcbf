//! The host: listeners and links feed events to the [`Dispatcher`], and its actions
//! are carried out on the links.
//!
//! - `endpoints`: the URLs at which it listens; `local` and `network` accept daemons there.
//! - `actions`: carries out what the dispatcher decides.
//! - `submit`: takes tasks; `needs` has them wait for those that they need; `setups` keeps those of set-up for daemons that
//!   come later.
//! - `this_machine`: processes that the host has started; `respawn` starts them again.
//! - `fleet`: launches daemons elsewhere as the queue asks.
//! - `monitor`: tells other processes of this user what the hosts do.
//!
//! One lock guards the dispatcher and the table of links. A thread that has an event (the
//! main thread submits, the I/O thread reads a reply) takes the lock, lets the dispatcher
//! decide, sets outcomes, queues frames, and releases the lock; then it writes
//! and wakes. So the thread that submits a task to a free daemon writes it to the socket
//! itself, and the thread that reads a reply writes the daemon's next task before it wakes
//! the waiting thread.

mod actions;
mod endpoints;
mod fleet;
mod local;
mod log;
pub mod monitor;
mod needs;
mod network;
mod respawn;
mod setups;
mod submit;
mod this_machine;

pub use endpoints::EndpointStatus;
pub use fleet::{MOST_FAILURES, MakeJob};
pub use log::{DaemonRow, Log};
pub use needs::cancel_unwanted;
pub use respawn::{MOST_CRASHES, Respawn};

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::Notify;

use self::endpoints::Listening;
use crate::descriptors;
use crate::dispatcher::{
    Action, Config, Counts, Dispatcher, Endpoint, Event, PeerId, Policy, Replies, Reply,
};
use crate::loss::Loss;
use crate::memory::Content;
use crate::process::{self, Child, Surroundings};
use crate::protocol::{Control, Done, Frame, MOST_OF_AN_ERROR, Seq, ToDaemon, ToHost, VERSION};
use crate::sys::io_thread;
use crate::sys::{Bell, spinning_is_allowed};
use crate::task::{Outcome, Task};
use crate::transport::Link;

/// Default time without a sign of life after which a peer across the network is given up.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Limit of the tasks that a relay may hold at once, whatever number it claims. It is enough for any number of daemons,
/// and bounds what a lying relay can take off the queue. With [`Policy::Queue`] the limit is 1: relays are for hosts
/// without a queue.
pub const MOST_SLOTS: u32 = 4096;

/// A timeout of this length or more counts as none: clocks cannot hold its deadline.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Daemons, the queue of tasks for them, and the URLs at which they connect.
///
/// Not closed by being dropped: see [`close`](Host::close). Clones are the same host.
#[derive(Clone)]
pub struct Host(Arc<Shared>);

/// See [`Host::status`].
#[derive(Clone, Debug)]
pub struct Status {
    /// Of tasks, daemons and bytes.
    pub counts: Counts,
    /// Bytes that the queue may hold.
    pub capacity: Option<u64>,
    /// One for each URL, in the order in which they were given.
    pub endpoints: Vec<EndpointStatus>,
}

struct Shared {
    /// Origin of the dispatcher's time.
    origin: Instant,
    state: Mutex<State>,
    /// An earlier deadline has come up, or the host is closed.
    timer: Notify,
    closed: AtomicBool,
    listening: Mutex<Vec<Listening>>,
    network: network::Network,
    /// See [`KEEP_ALIVE`].
    patience: Duration,
    keeping_alive: AtomicBool,
    /// Constants that no task needs any more; daemons will be told to forget them.
    dropped: Mutex<Vec<u64>>,
    /// The connection of each process on this machine, for as long as both last.
    processes: Mutex<FxHashMap<u32, PeerId>>,
    /// Processes that were started here, and some that have ended.
    children: Mutex<Vec<Started>>,
    keeping: Mutex<respawn::Keeping>,
    /// Whether there are daemons in reserve, or a fleet.
    scales: AtomicBool,
    fleet: Mutex<Option<fleet::Fleet>>,
    setups: Mutex<setups::Setups>,
    /// Held while a daemon is started again, and by `close`.
    starting: Mutex<()>,
    /// Of the daemons started last.
    surroundings: Mutex<Option<Arc<Surroundings>>>,
    /// What is known of daemons, for the log.
    known: Mutex<log::Known>,
}

struct State {
    dispatcher: Dispatcher<Arc<Task>>,
    links: FxHashMap<PeerId, Connected>,
    last_peer: PeerId,
    /// What daemons are told upon connecting.
    configuration: Option<Bytes>,
    /// Kept for its capacity.
    actions: Vec<Action<Arc<Task>>>,
}

struct Connected {
    link: Arc<dyn Link>,
    endpoint: Endpoint,
    /// Constants that the daemon has been sent.
    holds: FxHashSet<u64>,
}

/// A process that was started here.
struct Started {
    child: Weak<Child>,
    /// If it is a daemon, rather than for a single task.
    life: Option<Arc<respawn::Life>>,
}

/// What a daemon has said of itself.
struct Hello {
    /// Process id, if it is on this machine.
    local: Option<u32>,
    slots: u32,
}

/// What a daemon of another version is told.
fn wrong_version(version: u16) -> String {
    format!(
        "the host speaks version {VERSION} of the protocol and this daemon version {version}: \
         install the same version of mirai on both"
    )
}

impl Host {
    /// A host that has no daemons yet. It gives up a peer across the network after [`KEEP_ALIVE`].
    pub fn new(config: Config) -> Host {
        Host::with_patience(config, KEEP_ALIVE)
    }

    /// A host that gives up a peer across the network after `patience` without a sign of life. The peer
    /// is told to do the same.
    pub fn with_patience(config: Config, patience: Duration) -> Host {
        let mut jitter = [0; 8];
        crate::sys::random(&mut jitter);
        let config = Config {
            jitter: u64::from_ne_bytes(jitter),
            ..config
        };
        descriptors::raise_limit();
        let shared = Arc::new(Shared {
            origin: Instant::now(),
            state: Mutex::new(State {
                dispatcher: Dispatcher::new(config),
                links: FxHashMap::default(),
                last_peer: 0,
                configuration: None,
                actions: Vec::new(),
            }),
            timer: Notify::new(),
            closed: AtomicBool::new(false),
            listening: Mutex::default(),
            network: network::Network::default(),
            patience,
            keeping_alive: AtomicBool::new(false),
            dropped: Mutex::default(),
            processes: Mutex::default(),
            children: Mutex::default(),
            keeping: Mutex::default(),
            scales: AtomicBool::new(false),
            fleet: Mutex::default(),
            setups: Mutex::default(),
            starting: Mutex::default(),
            surroundings: Mutex::default(),
            known: Mutex::default(),
        });
        needs::register(&shared);
        io_thread::handle().spawn(keep_time(shared.clone()));
        Host(shared)
    }

    /// Tells daemons, those connected and those to come, what they should know, before
    /// any task submitted from now on.
    pub fn configure(&self, configuration: Option<Bytes>) {
        let mut flush = Vec::new();
        {
            let mut state = self.0.state.lock();
            if let Some(body) = &configuration {
                let frame = Frame::new(&ToDaemon::Configuration, body.clone());
                for Connected { link, .. } in state.links.values() {
                    link.post(frame.clone());
                    flush.push(link.clone());
                }
            }
            state.configuration = configuration;
        }
        for link in flush {
            link.flush();
        }
    }

    /// Cancels a task. False if it had already resolved.
    pub fn cancel(&self, task: &Task) -> bool {
        if task.is_resolved() {
            return false;
        }
        self.0.handle(Event::Cancel { id: task.id() }, None);
        task.outcome() == Some(&Outcome::Canceled)
    }

    /// Whether a payload of `bytes` may be queued now. The bell rings whenever
    /// that may have become true.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.0.state.lock().dispatcher.has_room(bytes)
    }

    /// Whether this is a task of this host's that cannot begin for want of daemons.
    pub fn is_deserted(&self, task: &Task) -> bool {
        let holds = self.0.state.lock().dispatcher.holds(task.id());
        holds && self.lacks_daemons()
    }

    /// Whether no daemon is connected, no process that this host has started is on its way to be one, and none is
    /// launched as the queue asks.
    pub fn lacks_daemons(&self) -> bool {
        let connections = self.0.state.lock().dispatcher.counts().connections;
        connections == 0 && !self.0.is_expecting() && !self.0.fleet_is_expecting()
    }

    /// Why the last daemon was given up, as a sentence, if none has come or been launched since.
    pub fn why_none_is_left(&self) -> Option<String> {
        self.0.given_up().map(|loss| loss.to_string())
    }

    /// A task has failed before it could be submitted.
    pub fn count_unsubmitted(&self) {
        self.0.state.lock().dispatcher.count_unsubmitted();
    }

    /// The connections that take tasks, oldest first.
    pub fn peers(&self) -> Vec<PeerId> {
        self.0.state.lock().dispatcher.peers()
    }

    /// How the queue was set up.
    pub fn config(&self) -> Config {
        self.0.state.lock().dispatcher.config()
    }

    /// The numbers of tasks, daemons and bytes.
    pub fn counts(&self) -> Counts {
        self.0.state.lock().dispatcher.counts()
    }

    /// [`counts`](Self::counts) with the numbers of each URL, all of the same moment.
    pub fn status(&self) -> Status {
        let listening = self.0.listening.lock();
        let state = self.0.state.lock();
        let endpoints = listening.iter().zip(state.dispatcher.endpoint_counts());
        Status {
            counts: state.dispatcher.counts(),
            capacity: state.dispatcher.config().capacity,
            endpoints: endpoints
                .map(|(l, counts)| EndpointStatus {
                    url: l.address.to_string(),
                    counts,
                })
                .collect(),
        }
    }

    /// Ends everything: pending tasks resolve to [`Outcome::Reset`], daemons see
    /// the host go. With `end`, daemons that would outlive that leave, too. Processes that were
    /// launched and have not connected end, also those that are about to be started. Waits
    /// for them and for the I/O thread, so it must not be called there.
    pub fn close(&self, end: bool) {
        let shared = &self.0;
        if shared.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let accepting: Vec<_> = {
            let mut listening = shared.listening.lock();
            listening.iter_mut().filter_map(Listening::close).collect()
        };
        // From here on the names are free for others to listen at.
        for ending in accepting {
            let _ = io_thread::handle().block_on(ending);
        }
        shared.handle(Event::Reset, None);
        let links = std::mem::take(&mut shared.state.lock().links);
        if end {
            for Connected { link, .. } in links.values() {
                link.control(Control::End);
                link.flush();
            }
        }
        shared.close_network(end);
        for Connected { link, .. } in links.values() {
            link.close();
        }
        shared.timer.notify_one();
        // A daemon that is being started again is among the children then.
        drop(shared.starting.lock());
        let children = std::mem::take(&mut *shared.children.lock());
        let mut children: Vec<_> = children.iter().filter_map(|c| c.child.upgrade()).collect();
        children.extend(shared.fleet_commands());
        process::end_unconnected(&children);
    }
}

/// Watches the deadlines.
async fn keep_time(shared: Arc<Shared>) {
    while !shared.is_closed() {
        shared.forget_dropped();
        let of_tasks = shared.state.lock().dispatcher.next_deadline();
        let next = [of_tasks, shared.fleet_deadline()].into_iter().flatten();
        let Some(at) = next.min() else {
            shared.timer.notified().await;
            continue;
        };
        let at = shared.origin + at;
        tokio::select! {
            () = tokio::time::sleep_until(at.into()) => {
                shared.handle(Event::Tick, None);
                shared.fleet_tick();
            }
            () = shared.timer.notified() => {}
        }
    }
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Has daemons forget constants that no task needs any more.
    fn forget_dropped(&self) {
        let dropped = std::mem::take(&mut *self.dropped.lock());
        if dropped.is_empty() {
            return;
        }
        let mut flush = Vec::new();
        for Connected { link, holds, .. } in self.state.lock().links.values_mut() {
            for id in dropped.iter().filter(|id| holds.remove(id)) {
                let forget = Frame::bare(&ToDaemon::Forget { id: *id });
                link.post(forget);
                flush.push(link.clone());
            }
        }
        for link in flush {
            link.flush();
        }
    }

    /// Registers a link whose peer has introduced itself.
    fn join(self: &Arc<Self>, link: Arc<dyn Link>, endpoint: Endpoint, hello: Hello) -> PeerId {
        let (patience, replies) = match hello.local {
            Some(_) => (0, Replies::Sure),
            None => {
                let patience = self.patience.as_millis().min(u32::MAX.into()) as u32;
                (patience, Replies::MayBeLost)
            }
        };
        let spins = spinning_is_allowed();
        link.post(Frame::bare(&ToDaemon::Welcome { patience, spins }));
        let slots;
        let peer = {
            let mut state = self.state.lock();
            slots = match state.dispatcher.config().policy {
                Policy::Queue => 1,
                Policy::RoundRobin => hello.slots.clamp(1, MOST_SLOTS),
            };
            state.last_peer += 1;
            let peer = state.last_peer;
            if let Some(body) = &state.configuration {
                let frame = Frame::new(&ToDaemon::Configuration, body.clone());
                link.post(frame);
            }
            let connected = Connected {
                link: link.clone(),
                endpoint,
                holds: FxHashSet::default(),
            };
            state.links.insert(peer, connected);
            peer
        };
        let loss = self.known.lock().add(peer, endpoint, hello.local);
        let mut life = None;
        if let Some(pid) = hello.local {
            self.processes.lock().insert(pid, peer);
            if let Some((child, its)) = self.started(pid) {
                child.has_connected();
                child.tells(loss);
                life = its;
            }
        }
        let late = life.as_ref().is_some_and(|life| life.is_late()) || self.has_fleet();
        self.life_connected(life, peer);
        let joined = Event::Joined {
            peer,
            endpoint,
            slots,
            replies,
        };
        self.fleet_joins(endpoint, peer);
        self.act(None, None, |dispatcher, now, out| {
            if late {
                self.set_up_next(dispatcher, now, out);
            }
            dispatcher.handle(now, joined, out);
        });
        self.fleet_joined(endpoint, peer);
        link.flush();
        if self.is_closed() {
            link.close();
        }
        Bell::get().ring();
        peer
    }

    /// A daemon has said something.
    fn receive(self: &Arc<Self>, peer: PeerId, message: ToHost, mut body: Content) {
        match message {
            ToHost::Done {
                seq,
                outcome,
                spent,
                notes,
                error,
            } => {
                body.split_notes(notes);
                let reply = Reply {
                    outcome,
                    bytes: body.size(),
                    error: error.filter(|text| text.len() <= MOST_OF_AN_ERROR),
                };
                let value = match outcome {
                    Done::Value => Some(Outcome::Value(body)),
                    Done::Error | Done::Final => Some(Outcome::Error(body)),
                    Done::Skipped => None,
                    Done::Lost => {
                        self.lost_behind(peer, seq, &body);
                        Some(Outcome::Reset)
                    }
                };
                let event = Event::Replied {
                    peer,
                    seq,
                    spent: Duration::from_micros(spent.into()),
                    reply,
                };
                self.handle(event, value);
            }
            ToHost::Report { seq } => {
                let task = self.state.lock().dispatcher.task_at(peer, seq);
                if let Some(task) = task {
                    task.add_report(body);
                }
            }
            ToHost::About { host, pid } => {
                self.heard_about(peer, &host, pid);
                monitor::changed();
            }
            ToHost::Words { pipes } => self.heard_of_words(peer, pipes),
            ToHost::Returned { from, to } => {
                self.handle(Event::Returned { peer, from, to }, None);
            }
            ToHost::Leaving { begun } => {
                self.handle(Event::Leaving { peer, begun }, None);
                // The daemon waits for this before it goes.
                let state = self.state.lock();
                if let Some(Connected { link, .. }) = state.links.get(&peer) {
                    link.close();
                }
            }
            // That it was said is all; or it is said once, at the beginning; or the link has dealt with it.
            ToHost::Pong
            | ToHost::Hello { .. }
            | ToHost::Proof { .. }
            | ToHost::ByRing
            | ToHost::BySocket
            | ToHost::Look => {}
        }
    }

    /// A relay has lost a task, and says how.
    fn lost_behind(&self, peer: PeerId, seq: Seq, said: &Content) {
        let loss = Loss::behind_relay(&said.bytes);
        let task = self.state.lock().dispatcher.task_at(peer, seq);
        if let Some((task, loss)) = task.zip(loss) {
            task.lost_with(Arc::new(loss));
        }
    }

    /// A link has ended; `heard_out`: after all that the peer had sent was read.
    fn lost(self: &Arc<Self>, peer: PeerId, heard_out: bool) {
        let loss = self.known.lock().loss(peer);
        if let Some(loss) = &loss {
            loss.hear_last_words();
        }
        self.fleet_lost(peer);
        // Before the link is removed: a task that is sent to a peer without a link would count as begun.
        let mut farewell = None;
        self.act(None, loss, |dispatcher, now, out| {
            farewell = dispatcher.farewell(peer);
            dispatcher.handle(now, Event::Lost { peer, heard_out }, out);
        });
        let connected = self.state.lock().links.remove(&peer);
        if let Some(Connected { link, .. }) = connected {
            link.close();
        }
        self.forget_process(peer);
        self.life_lost(peer, farewell);
        self.fleet_has_changed();
        Bell::get().ring();
    }
}
