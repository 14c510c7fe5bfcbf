//! The host's side, put together: listeners and links feed events to the
//! [`Dispatcher`], and its actions are carried out on them.
//!
//! There is one lock, around the dispatcher and the table of links. Whoever has
//! an event (the main thread that submits, the I/O thread that reads a reply)
//! takes it, lets the dispatcher decide, notes outcomes, puts frames in line, and
//! lets go; writing and waking happen after that. So the thread that submits a task to a
//! free daemon writes it to the socket itself, and the thread that reads a reply
//! has written the daemon's next task before it wakes anybody.

mod listener;
mod network;

pub use network::node_name;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::descriptors;
use crate::dispatcher::{
    Action, Config, Counts, Dispatcher, Endpoint, EndpointCounts, Event, PeerId, Policy, Replies,
    Target, Time, Verdict,
};
use crate::memory::{Body, Content};
use crate::process::{self, Child, Program};
use crate::protocol::{Control, Done, Frame, Seq, ToDaemon, ToHost, VERSION};
use crate::sys::Bell;
use crate::sys::io_thread;
use crate::task::{Constants, Outcome, Payload, Task};
use crate::tls::{Identity, TlsError};
use crate::transport::{Address, Link, NetworkUrl, nng};

/// Time without a sign of life after which a peer across the network is given up, unless
/// told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Tasks that a relay may hold at once, whatever it claims: enough for any number of daemons behind it, and no more of
/// the queue is gone should it lie. Relays are for hosts without a queue: with [`Policy::Queue`] whoever connects is one
/// daemon, with one task at a time.
pub const MOST_SLOTS: u32 = 4096;

/// A timeout from here on is none: no clock could hold its deadline.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Daemons, the queue of tasks for them, and the URLs at which they connect.
///
/// Not closed by being dropped: see [`close`](Host::close). Clones are the same host.
#[derive(Clone)]
pub struct Host(Arc<Shared>);

/// A URL that is listened at, and what happened there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointStatus {
    pub url: String,
    pub counts: EndpointCounts,
}

/// See [`Host::status`].
#[derive(Clone, Debug)]
pub struct Status {
    pub counts: Counts,
    /// Bytes that the queue may hold.
    pub capacity: Option<u64>,
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
    /// See [`PATIENCE`].
    patience: Duration,
    keeping_alive: AtomicBool,
    /// Constants that no task needs any more, to be forgotten by daemons.
    dropped: Mutex<Vec<u64>>,
    /// The connection of each process on this machine, for as long as both last.
    processes: Mutex<FxHashMap<u32, PeerId>>,
    /// Processes that were started here, and some that have ended.
    children: Mutex<Vec<Weak<Child>>>,
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

struct Listening {
    /// With the real port.
    address: Address,
    /// As it was given.
    given: Address,
    identity: Option<Identity>,
    /// Of a URL on this machine, and across the network; neither once it is closed.
    accepting: Option<JoinHandle<()>>,
    listener: Option<nng::Listening>,
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
    pub fn new(config: Config) -> Host {
        Host::with_patience(config, PATIENCE)
    }

    /// A host that gives up a peer across the network after so much time without a sign of
    /// life, as does the peer.
    pub fn with_patience(config: Config, patience: Duration) -> Host {
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
        });
        io_thread::handle().spawn(keep_time(shared.clone()));
        Host(shared)
    }

    /// Listens at a URL that needs no certificate.
    ///
    /// # Errors
    /// The name is taken, or this system has no such transport.
    pub fn listen(&self, address: &Address) -> io::Result<Endpoint> {
        self.0.listen(address, None, false)
    }

    /// Listens at URLs, of which secure ones present the identity. WebSocket URLs that leave the
    /// port open share one.
    ///
    /// # Errors
    /// As of [`listen`](Self::listen), with the URL. Some may be listened at then.
    pub fn listen_all(
        &self,
        addresses: &[Address],
        identity: Option<&Identity>,
    ) -> Result<(), (Address, io::Error)> {
        let first = || addresses.first().expect("there are URLs").clone();
        let ported = network::choose_ports(addresses).map_err(|e| (first(), e))?;
        for address in &ported {
            self.0
                .listen(address, identity, false)
                .map_err(|e| (address.clone(), e))?;
        }
        Ok(())
    }

    /// An identity to present at these URLs, for this one purpose.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn single_use_identity(addresses: &[Address]) -> Result<Identity, TlsError> {
        let urls = addresses.iter().filter_map(|a| match a {
            Address::Network(url) => Some(url),
            _ => None,
        });
        Identity::single_use(&network::names(urls))
    }

    /// Closes a URL and listens at a fresh one that nobody can guess, which is returned. `None`:
    /// there is no such URL, or it has no path to be changed, or a daemon is connected there
    /// and it shall not be done by force. With it, what such daemons run is
    /// [`Outcome::Closed`].
    ///
    /// # Errors
    /// The new URL cannot be listened at; the old one is closed then.
    pub fn renew(&self, endpoint: Endpoint, force: bool) -> io::Result<Option<String>> {
        let shared = &self.0;
        let there = shared.state.lock().dispatcher.peers_at(endpoint);
        let (base, given, identity, ending) = {
            let mut listening = shared.listening.lock();
            let Some(old) = listening.get_mut(endpoint) else {
                return Ok(None);
            };
            if !old.given.has_path() || !(there.is_empty() || force) {
                return Ok(None);
            }
            let (given, identity) = (old.given.clone(), old.identity.clone());
            (old.base(), given, identity, old.close())
        };
        // Not under the lock, which the I/O thread may want first.
        if let Some(ending) = ending {
            let _ = io_thread::handle().block_on(ending);
        }
        shared.turn_away_strangers(endpoint);
        shared.handle(Event::Moved { endpoint }, None);
        // Also of those who have joined since we looked, who would never be given a task.
        let links: Vec<_> = {
            let state = shared.state.lock();
            let links = state.links.values().filter(|c| c.endpoint == endpoint);
            links.map(|connected| connected.link.clone()).collect()
        };
        for link in links {
            link.close();
        }
        let address = match &base {
            Address::Abstract(_) => Address::Abstract(crate::sys::token()),
            _ => base.with_path(&crate::sys::token()),
        };
        let mut fresh = shared.open(&address, identity.as_ref(), endpoint, false)?;
        fresh.given = given;
        let url = fresh.address.to_string();
        shared.listening.lock()[endpoint] = fresh;
        Ok(Some(url))
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

    /// Makes constants for tasks of this host.
    pub fn constants(&self, body: Body) -> Arc<Constants> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let shared = Arc::downgrade(&self.0);
        Arc::new(Constants {
            id: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            body,
            // This may be anywhere, under any lock: the I/O thread does the rest.
            on_drop: Box::new(move |id| {
                if let Some(shared) = shared.upgrade() {
                    shared.dropped.lock().push(id);
                    shared.timer.notify_one();
                }
            }),
        })
    }

    /// Hands over a task. It is resolved sooner or later, whatever happens.
    pub fn submit(&self, task: Arc<Task>, timeout: Option<Duration>, target: Target) {
        let bytes = task.size();
        let timeout = timeout.filter(|t| *t < FOREVER);
        let deadline = timeout.map(|t| self.0.origin.elapsed() + t);
        self.0.handle(
            Event::Submit {
                id: task.id(),
                job: task,
                bytes,
                deadline,
                target,
            },
            None,
        );
        if self.0.is_closed() {
            self.0.handle(Event::Reset, None);
        }
    }

    /// Hands over a task for each connected daemon that takes tasks, and at least `least`: those that are left over are for
    /// the daemons that connect next. This is one decision: a daemon that connects or leaves meanwhile does so
    /// before it, or after it. `make` is given the number of tasks, under the dispatcher's lock: it must not
    /// block. If it gives none, nothing is handed over.
    ///
    /// # Errors
    /// That number.
    pub fn submit_to_each(
        &self,
        least: usize,
        make: impl FnOnce(usize) -> Option<Vec<Arc<Task>>>,
    ) -> Result<(), usize> {
        let mut submitted = Ok(());
        self.0.act(None, |dispatcher, now, out| {
            let peers = dispatcher.peers();
            let n = peers.len().max(least);
            let Some(tasks) = make(n) else {
                submitted = Err(n);
                return;
            };
            let targets = peers
                .into_iter()
                .map(Target::Peer)
                .chain((0..).map(Target::Join));
            for (task, target) in tasks.into_iter().zip(targets) {
                let event = Event::Submit {
                    id: task.id(),
                    bytes: task.size(),
                    job: task,
                    deadline: None,
                    target,
                };
                dispatcher.handle(now, event, out);
            }
        });
        if self.0.is_closed() {
            self.0.handle(Event::Reset, None);
        }
        submitted
    }

    /// Hands over a task to a process started for it alone, which will dial
    /// `address` and should leave after one task.
    ///
    /// # Errors
    /// The process cannot be started or the address not be listened at. Nothing
    /// will come of the task then.
    pub fn submit_to_new(
        &self,
        task: Arc<Task>,
        timeout: Option<Duration>,
        address: &Address,
        program: &Program,
    ) -> io::Result<()> {
        let endpoint = self.0.listen(address, None, true)?;
        // First: the process may be fast.
        self.submit(task, timeout, Target::Endpoint(endpoint));
        let shared = self.0.clone();
        let started = process::start(program, move |child| {
            shared.stop_listening(endpoint);
            // If it has connected, the link has something to say about that, too.
            shared.handle(Event::Abandoned { endpoint }, None);
            shared.process_gone(child);
            shared.state.lock().dispatcher.release_endpoint(endpoint);
        });
        match started {
            Ok(child) => {
                self.0.adopt(&child);
                Ok(())
            }
            Err(e) => {
                self.0.stop_listening(endpoint);
                self.0.handle(Event::Abandoned { endpoint }, None);
                self.0.state.lock().dispatcher.release_endpoint(endpoint);
                Err(e)
            }
        }
    }

    /// Starts a process that will dial one of the URLs.
    pub fn launch(&self, program: &Program) -> io::Result<Arc<Child>> {
        let shared = self.0.clone();
        let child = process::start(program, move |child| shared.process_gone(child))?;
        self.0.adopt(&child);
        Ok(child)
    }

    /// Nobody wants the result of the task any more. False if it had already
    /// resolved.
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

    /// A task has failed before it could be submitted.
    pub fn count_unsubmitted(&self) {
        self.0.state.lock().dispatcher.count_unsubmitted();
    }

    /// The connections that take tasks, oldest first.
    pub fn peers(&self) -> Vec<PeerId> {
        self.0.state.lock().dispatcher.peers()
    }

    pub fn config(&self) -> Config {
        self.0.state.lock().dispatcher.config()
    }

    pub fn counts(&self) -> Counts {
        self.0.state.lock().dispatcher.counts()
    }

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

    /// Whether daemons may be there that can be sent segments as they are.
    pub fn passes_memory(&self) -> bool {
        let listening = self.0.listening.lock();
        listening
            .iter()
            .any(|l| !matches!(l.address, Address::Network(_)))
    }

    /// URLs in the order in which they were given.
    pub fn urls(&self) -> Vec<String> {
        let listening = self.0.listening.lock();
        listening.iter().map(|l| l.address.to_string()).collect()
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
        let children = std::mem::take(&mut *shared.children.lock());
        let children: Vec<_> = children.iter().filter_map(Weak::upgrade).collect();
        process::end_unconnected(&children);
    }
}

impl Listening {
    /// The URL as it was given, with the port that it has by now.
    fn base(&self) -> Address {
        match (&self.given, &self.address) {
            (Address::Network(given), Address::Network(now)) => Address::Network(NetworkUrl {
                port: now.port,
                ..given.clone()
            }),
            (given, _) => given.clone(),
        }
    }

    /// Stops listening. What is returned ends when the name is free again.
    fn close(&mut self) -> Option<JoinHandle<()>> {
        self.listener = None;
        let accepting = self.accepting.take();
        if let Some(accepting) = &accepting {
            accepting.abort();
            crate::transport::unix::unlink(&self.address);
        }
        accepting
    }
}

/// Watches the deadlines.
async fn keep_time(shared: Arc<Shared>) {
    while !shared.is_closed() {
        shared.forget_dropped();
        let next = shared.state.lock().dispatcher.next_deadline();
        let Some(at) = next else {
            shared.timer.notified().await;
            continue;
        };
        let at = shared.origin + at;
        tokio::select! {
            () = tokio::time::sleep_until(at.into()) => shared.handle(Event::Tick, None),
            () = shared.timer.notified() => {}
        }
    }
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Listens at a URL; with `once`, for a single daemon.
    fn listen(
        self: &Arc<Self>,
        address: &Address,
        identity: Option<&Identity>,
        once: bool,
    ) -> io::Result<Endpoint> {
        let mut listening = self.listening.lock();
        // First: a daemon may be fast.
        let endpoint = self.state.lock().dispatcher.add_endpoint();
        match self.open(address, identity, endpoint, once) {
            Ok(open) if endpoint < listening.len() => listening[endpoint] = open,
            Ok(open) => listening.push(open),
            Err(e) => {
                self.state.lock().dispatcher.release_endpoint(endpoint);
                return Err(e);
            }
        }
        Ok(endpoint)
    }

    fn open(
        self: &Arc<Self>,
        address: &Address,
        identity: Option<&Identity>,
        endpoint: Endpoint,
        once: bool,
    ) -> io::Result<Listening> {
        match address {
            Address::Network(url) => {
                if !self.keeping_alive.swap(true, Ordering::SeqCst) {
                    let host = Arc::downgrade(self);
                    io_thread::handle().spawn(Shared::keep_alive(host, self.patience));
                }
                self.listen_network(url, identity, endpoint)
            }
            _ => self.listen_local(address, endpoint, once),
        }
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

    fn stop_listening(&self, endpoint: Endpoint) {
        let _ = self.listening.lock()[endpoint].close();
    }

    /// Keeps a process in mind that was started here, for as long as anybody attends to it.
    fn adopt(&self, child: &Arc<Child>) {
        {
            let mut children = self.children.lock();
            children.retain(|child| child.strong_count() > 0);
            children.push(Arc::downgrade(child));
        }
        if self.is_closed() {
            process::end_unconnected(std::slice::from_ref(child));
        }
    }

    /// Registers a link whose peer has introduced itself.
    fn join(&self, link: Arc<dyn Link>, endpoint: Endpoint, hello: Hello) -> PeerId {
        let (patience, replies) = match hello.local {
            Some(_) => (0, Replies::Sure),
            None => {
                let patience = self.patience.as_millis().min(u32::MAX.into()) as u32;
                (patience, Replies::MayBeLost)
            }
        };
        link.post(Frame::bare(&ToDaemon::Welcome { patience }));
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
        if let Some(pid) = hello.local {
            self.processes.lock().insert(pid, peer);
            let children = self.children.lock();
            let mut children = children.iter().filter_map(Weak::upgrade);
            if let Some(child) = children.find(|child| child.pid() == pid) {
                child.has_connected();
            }
        }
        let joined = Event::Joined {
            peer,
            endpoint,
            slots,
            replies,
        };
        self.handle(joined, None);
        link.flush();
        if self.is_closed() {
            link.close();
        }
        Bell::get().ring();
        peer
    }

    /// A daemon has said something.
    fn receive(&self, peer: PeerId, message: ToHost, body: Content) {
        match message {
            ToHost::Done {
                seq,
                outcome,
                spent,
            } => {
                let reply = match outcome {
                    Done::Value => Some(Outcome::Value(body)),
                    Done::Error => Some(Outcome::Error(body)),
                    Done::Skipped => None,
                    Done::Lost => Some(Outcome::Reset),
                };
                let spent = Duration::from_micros(spent.into());
                self.handle(Event::Replied { peer, seq, spent }, reply);
            }
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
            // That it was said is all; or it is said once, at the beginning.
            ToHost::Pong | ToHost::Hello { .. } | ToHost::Proof { .. } => {}
        }
    }

    /// A link has ended; `heard_out`: after all that the peer had sent was read.
    fn lost(&self, peer: PeerId, heard_out: bool) {
        // First: a task that is sent to a peer without a link would count as begun.
        self.handle(Event::Lost { peer, heard_out }, None);
        let connected = self.state.lock().links.remove(&peer);
        if let Some(Connected { link, .. }) = connected {
            link.close();
        }
        self.processes.lock().retain(|_, held| *held != peer);
        Bell::get().ring();
    }

    /// A process that we started is gone; one that was killed has left its
    /// session directory behind.
    fn process_gone(&self, child: &Child) {
        let peer = self.processes.lock().remove(&child.pid());
        // What it has said is still read, but its link may not end by itself: a
        // process forked from it may hold it open.
        if let Some(peer) = peer {
            if let Some(Connected { link, .. }) = self.state.lock().links.get(&peer) {
                link.close();
            }
        }
        let Some(directory) = child.directory() else {
            return;
        };
        let ours = directory.file_name().is_some_and(|name| {
            // R names it so; nothing else may ever be removed here.
            name.to_string_lossy().starts_with("Rtmp")
        });
        if ours && directory.is_absolute() {
            let _ = std::fs::remove_dir_all(directory);
        }
    }

    /// Lets the dispatcher decide about an event and carries out what it says.
    /// `reply` is the value that came with [`Event::Replied`].
    fn handle(&self, event: Event<Arc<Task>>, reply: Option<Outcome>) {
        self.act(reply, |dispatcher, now, out| {
            dispatcher.handle(now, event, out);
        });
    }

    /// As [`handle`](Self::handle), for several events at once.
    fn act(
        &self,
        mut reply: Option<Outcome>,
        decide: impl FnOnce(&mut Dispatcher<Arc<Task>>, Time, &mut Vec<Action<Arc<Task>>>),
    ) {
        let now = self.origin.elapsed();
        let mut flush = SmallVec::<[Arc<dyn Link>; 2]>::new();
        let mut over = SmallVec::<[Arc<Task>; 2]>::new();
        let mut room = false;
        let (before, after);
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            before = state.dispatcher.next_deadline();
            decide(&mut state.dispatcher, now, &mut state.actions);
            for action in state.actions.drain(..) {
                let (peer, send): (_, Posting) = match action {
                    Action::Send {
                        peer,
                        seq,
                        job,
                        granted,
                    } => {
                        let Some(payload) = job.payload() else {
                            continue;
                        };
                        if let (Some(constants), Some(connected)) =
                            (&payload.constants, state.links.get_mut(&peer))
                        {
                            connected.send_once(constants);
                        }
                        (peer, Posting::Task(task_frame(seq, granted, payload)))
                    }
                    Action::Cancel { peer, seq } => {
                        (peer, Posting::Control(Control::Cancel { seq }))
                    }
                    Action::Grant { peer, to } => (peer, Posting::Control(Control::Grant { to })),
                    Action::Recall { peer, from, to } => {
                        (peer, Posting::Control(Control::Recall { from, to }))
                    }
                    Action::Resolve { job, verdict } => {
                        // Here, so that a task which the dispatcher no longer
                        // knows has an outcome: see `cancel`.
                        if job.settle(outcome_of(verdict, &mut reply)) {
                            over.push(job);
                        }
                        continue;
                    }
                    Action::Room => {
                        room = true;
                        continue;
                    }
                };
                // A link may be gone whose end the dispatcher has yet to hear of.
                if let Some(Connected { link, .. }) = state.links.get(&peer) {
                    match send {
                        Posting::Task(frame) => link.post(frame),
                        Posting::Control(message) => link.control(message),
                    }
                    // Several frames for one daemon are one write.
                    if !flush.last().is_some_and(|last| Arc::ptr_eq(last, link)) {
                        flush.push(link.clone());
                    }
                }
            }
            after = state.dispatcher.next_deadline();
        }
        for link in flush {
            link.flush();
        }
        for task in over {
            task.announce();
        }
        if room {
            Bell::get().ring();
        }
        if after.is_some() && after != before {
            self.timer.notify_one();
        }
    }
}

/// What an action has sent to a daemon.
enum Posting {
    Task(Frame),
    Control(Control),
}

fn outcome_of(verdict: Verdict, reply: &mut Option<Outcome>) -> Outcome {
    match verdict {
        // Without a value, the daemon has skipped it.
        Verdict::Replied => reply.take().unwrap_or(Outcome::Canceled),
        Verdict::TimedOut => Outcome::TimedOut,
        Verdict::Reset => Outcome::Reset,
        Verdict::Closed => Outcome::Closed,
        Verdict::Canceled => Outcome::Canceled,
    }
}

impl Connected {
    /// Sends constants to a daemon that does not have them yet.
    fn send_once(&mut self, constants: &Constants) {
        let id = constants.id;
        if self.holds.insert(id) {
            let message = ToDaemon::Constants { id };
            let frame = Frame::new(&message, constants.body.clone());
            self.link.post(frame);
        }
    }
}

/// The frame that carries a task.
fn task_frame(seq: Seq, granted: Seq, payload: Payload) -> Frame {
    let message = ToDaemon::Task {
        seq,
        kind: payload.kind,
        stream: payload.stream,
        constants: payload.constants.map(|c| c.id),
        granted,
    };
    Frame::new(&message, payload.body)
}
