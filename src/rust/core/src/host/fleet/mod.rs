//! A fleet: daemons elsewhere, which the host launches by commands such as `sbatch` as its queue asks.
//!
//! The [`Rules`] decide when to launch. This module tells them what happens: tasks wait, a daemon connects or is gone,
//! a command ends, a time is over. It runs the commands on the I/O thread, from what the main thread has prepared: the
//! language runtime may be busy. One lock guards the fleet. It may be held when the dispatcher's is taken, never the
//! other way round.

mod rules;

pub use rules::MOST_FAILURES;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustc_hash::FxHashMap;

use self::rules::{Departure, FAILURES, Launch, LaunchId, Rules, SlotId};
use super::{Endpoint, Host, PeerId, Shared};
use crate::dispatcher::Time;
use crate::loss::Loss;
use crate::process::{Child, Job, Surroundings, command};
use crate::sys::io_thread;

/// Failures that are kept until they are asked for: the last ones.
const MOST_REPORTS: usize = 20;

/// Makes the command that launches a daemon; its argument is the number of launches before at this place.
pub type MakeJob = Box<dyn Fn(u32) -> Job + Send + Sync>;

/// The daemons that a host launches elsewhere.
pub(super) struct Fleet {
    rules: Rules,
    /// One for each slot.
    jobs: Vec<Arc<MakeJob>>,
    surroundings: Option<Arc<Surroundings>>,
    /// Commands that run and whose daemons have not connected.
    running: FxHashMap<LaunchId, Arc<Child>>,
    /// The names of commands whose launches are in flight.
    names: FxHashMap<LaunchId, String>,
    reports: VecDeque<String>,
    /// Why nothing is launched any more.
    given_up: Option<Arc<Loss>>,
    patience: Duration,
}

impl Fleet {
    fn report(&mut self, text: String) {
        if self.reports.len() == MOST_REPORTS {
            self.reports.pop_front();
        }
        self.reports.push_back(text);
    }

    /// A launch has failed.
    fn failed(&mut self, stops: bool, text: &str) {
        self.report(format!("a launch of daemons has failed: {text}"));
        if stops {
            let loss = Loss::of_launch();
            loss.tell(format!(
                "has failed, and no other follows after {FAILURES}: {text}"
            ));
            self.give_up(loss);
        }
    }

    fn give_up(&mut self, loss: Loss) {
        self.report(format!("no more daemons are launched: {loss}"));
        self.given_up = Some(Arc::new(loss));
    }

    /// The launch is over. Its command is ended if it still runs.
    fn forget(&mut self, launch: LaunchId) -> Option<String> {
        if let Some(child) = self.running.remove(&launch) {
            child.is_not_wanted();
        }
        self.names.remove(&launch)
    }
}

impl Host {
    /// Has the host launch daemons elsewhere, at most one for each of `jobs`: one for each task that no daemon can
    /// take. The daemon of the first job connects at the first URL, and so on. A launch whose daemon does not connect
    /// within `patience` is given up. `jobs` are called on the I/O thread, too. To be called once, on the main thread,
    /// before any daemon connects.
    pub fn launch_as_asked(&self, jobs: Vec<MakeJob>, patience: Duration) {
        let surroundings = self.0.surroundings();
        *self.0.fleet.lock() = Some(Fleet {
            rules: Rules::new(jobs.len(), patience),
            jobs: jobs.into_iter().map(Arc::new).collect(),
            surroundings,
            running: FxHashMap::default(),
            names: FxHashMap::default(),
            reports: VecDeque::new(),
            given_up: None,
            patience,
        });
        self.0.scales.store(true, Ordering::Relaxed);
    }

    /// Launches a daemon by `job` at a URL, whether or not the queue asks for one. `None`: there is one, or a launch is
    /// in flight.
    ///
    /// # Errors
    /// The command cannot be started.
    pub fn launch_at(&self, url: usize, job: Job) -> io::Result<Option<Arc<Child>>> {
        let now = self.0.origin.elapsed();
        let begun = {
            let mut fleet = self.0.fleet.lock();
            fleet.as_mut().and_then(|f| f.rules.begin(now, url))
        };
        let Some(launch) = begun else { return Ok(None) };
        let started = self.0.run_job(launch, job);
        if let Err(e) = &started {
            self.0.launch_failed(launch.id, e.to_string());
        }
        self.0.timer.notify_one();
        started.map(Some)
    }

    /// Replaces the job of a URL, which has [changed](Self::renew). Until then nothing is launched there.
    pub fn change_job(&self, url: usize, job: MakeJob) {
        if let Some(fleet) = &mut *self.0.fleet.lock() {
            if let Some(place) = fleet.jobs.get_mut(url) {
                *place = Arc::new(job);
                fleet.rules.reopened(url);
            }
        }
        self.0.fleet_has_changed();
    }

    /// Launches that have failed since the last call, as far as they are kept: what a user is to be told of each.
    pub fn launch_reports(&self) -> Vec<String> {
        let mut fleet = self.0.fleet.lock();
        let reports = fleet.as_mut().map(|f| std::mem::take(&mut f.reports));
        reports.unwrap_or_default().into()
    }
}

impl Shared {
    /// Launches as the queue asks.
    pub(super) fn scale_fleet(self: &Arc<Self>) {
        let launches: Vec<_> = {
            let mut guard = self.fleet.lock();
            let Some(fleet) = &mut *guard else { return };
            // Under the fleet's lock: a daemon that connects takes its task first, and is no launch any more only then.
            let unserved = self.state.lock().dispatcher.unserved();
            let launches = fleet.rules.ask(self.origin.elapsed(), unserved);
            let job = |launch: &Launch| (*launch, fleet.jobs[launch.slot].clone());
            launches.iter().map(job).collect()
        };
        for (launch, make) in launches {
            let shared = self.clone();
            io_thread::handle().spawn(async move { shared.launch(launch, &make) });
        }
        self.timer.notify_one();
    }

    fn launch(self: &Arc<Self>, launch: Launch, make: &MakeJob) {
        // Held, so that `close` ends the command, or none is started.
        let starting = self.starting.lock();
        if self.is_closed() {
            return;
        }
        let started = self.run_job(launch, make(launch.before));
        drop(starting);
        if let Err(e) = started {
            self.launch_failed(launch.id, e.to_string());
        }
    }

    fn run_job(self: &Arc<Self>, launch: Launch, mut job: Job) -> io::Result<Arc<Child>> {
        {
            let mut fleet = self.fleet.lock();
            let Some(fleet) = &mut *fleet else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            job.surroundings = fleet.surroundings.clone();
            fleet.names.insert(launch.id, job.name.clone());
        }
        let shared = self.clone();
        let child = command::run(&job, {
            let job = job.clone();
            move |child| shared.command_ended(launch.id, job.failure(child))
        })?;
        if let Some(fleet) = &mut *self.fleet.lock() {
            // It may have ended by now, and its daemon may have connected.
            if child.exit().is_none() && fleet.names.contains_key(&launch.id) {
                fleet.running.insert(launch.id, child.clone());
            }
        }
        Ok(child)
    }

    /// A command has ended. If it has succeeded, its daemon will connect.
    fn command_ended(self: &Arc<Self>, launch: LaunchId, failure: Option<String>) {
        if let Some(fleet) = &mut *self.fleet.lock() {
            fleet.running.remove(&launch);
        }
        if let Some(failure) = failure {
            self.launch_failed(launch, failure);
        }
    }

    fn launch_failed(self: &Arc<Self>, launch: LaunchId, text: String) {
        let now = self.origin.elapsed();
        if let Some(fleet) = &mut *self.fleet.lock() {
            // Otherwise its daemon has connected, or it was given up.
            if let Some(stops) = fleet.rules.failed(now, launch) {
                fleet.forget(launch);
                fleet.failed(stops, &text);
            }
        }
        self.fleet_has_changed();
    }

    /// Launches as the queue asks now. If there is no hope of a daemon any more, the tasks that wait are resolved.
    pub(super) fn fleet_has_changed(self: &Arc<Self>) {
        if !self.scales.load(Ordering::Relaxed) || self.is_closed() {
            return;
        }
        self.scale_fleet();
        self.look_whether_none_is_left();
    }

    /// Why a daemon that is about to join must not, if so.
    pub(super) fn refusal(&self, endpoint: Endpoint) -> Option<String> {
        let mut fleet = self.fleet.lock();
        let fleet = fleet.as_mut()?;
        let too_late = fleet.rules.is_too_late(endpoint);
        too_late.then(|| {
            let seconds = fleet.patience.as_secs_f64();
            format!(
                "it comes more than {seconds} s after its launch, and others have taken its place"
            )
        })
    }

    /// Whether daemons that connect here are of the fleet.
    pub(super) fn has_fleet(&self) -> bool {
        self.fleet.lock().is_some()
    }

    /// A daemon is about to join: the dispatcher does not know it yet.
    pub(super) fn fleet_joins(&self, endpoint: Endpoint, peer: PeerId) {
        let mut guard = self.fleet.lock();
        let Some(fleet) = &mut *guard else { return };
        if let Some(launch) = fleet.rules.arrives(endpoint, peer) {
            // The command is the daemon's now.
            if let Some(child) = fleet.running.remove(&launch) {
                child.has_connected();
            }
            fleet.names.remove(&launch);
        }
    }

    /// A daemon has joined.
    pub(super) fn fleet_joined(self: &Arc<Self>, endpoint: Endpoint, peer: PeerId) {
        {
            let mut guard = self.fleet.lock();
            let Some(fleet) = &mut *guard else { return };
            if !fleet.rules.connected(endpoint, peer) {
                fleet.given_up = None;
            }
        }
        self.fleet_has_changed();
    }

    /// A daemon is lost, which the dispatcher does not know yet: its tasks will wait again, and must not ask for a
    /// launch as if none had failed. [`fleet_has_changed`](Self::fleet_has_changed) follows when the dispatcher knows.
    pub(super) fn fleet_lost(&self, peer: PeerId) {
        let mut guard = self.fleet.lock();
        let Some(fleet) = &mut *guard else { return };
        let (farewell, endpoint) = {
            let state = self.state.lock();
            let Some(connected) = state.links.get(&peer) else {
                return;
            };
            (state.dispatcher.farewell(peer), connected.endpoint)
        };
        let how = match farewell {
            None => Departure::SentAway,
            Some(farewell) if farewell.left || farewell.finished > 0 => Departure::Well,
            Some(_) => Departure::Failed,
        };
        let now = self.origin.elapsed();
        if fleet.rules.gone(now, endpoint, peer, how) {
            let known = self.known.lock().loss(peer).unwrap_or_default();
            let loss = Loss::new(peer, known.host(), known.pid());
            let how = known.reason_or_unknown();
            loss.tell(format!(
                "was the last daemon, and no other is launched after {FAILURES}: it {how}"
            ));
            known.add(&format!("; no other is launched: {FAILURES}"));
            fleet.give_up(loss);
        } else if !fleet.rules.has_stopped() {
            fleet.given_up = None;
        }
    }

    /// The URL changes: a launch in flight will bring no daemon, and there is none until its job is changed, too.
    pub(super) fn fleet_moved(self: &Arc<Self>, endpoint: SlotId) {
        if let Some(fleet) = &mut *self.fleet.lock() {
            if let Some(launch) = fleet.rules.moved(endpoint) {
                fleet.forget(launch);
            }
        }
        self.fleet_has_changed();
    }

    /// When [`fleet_tick`](Self::fleet_tick) has something to do.
    pub(super) fn fleet_deadline(&self) -> Option<Time> {
        self.fleet.lock().as_ref()?.rules.deadline()
    }

    pub(super) fn fleet_tick(self: &Arc<Self>) {
        {
            let mut guard = self.fleet.lock();
            let Some(fleet) = &mut *guard else { return };
            let (given_up, stops) = fleet.rules.tick(self.origin.elapsed());
            let seconds = fleet.patience.as_secs_f64();
            let last = given_up.len().saturating_sub(1);
            for (i, launch) in given_up.into_iter().enumerate() {
                let name = fleet.forget(launch).unwrap_or_default();
                let text = format!("{name}: its daemon has not connected within {seconds} s");
                fleet.failed(stops && i == last, &text);
            }
        }
        self.fleet_has_changed();
    }

    /// Whether the fleet may bring a daemon.
    pub(super) fn fleet_is_expecting(&self) -> bool {
        let fleet = self.fleet.lock();
        fleet.as_ref().is_some_and(|f| !f.rules.is_over())
    }

    /// Why the fleet brings no daemon any more, if that is so.
    pub(super) fn fleet_given_up(&self) -> Option<Arc<Loss>> {
        let fleet = self.fleet.lock();
        let fleet = fleet.as_ref().filter(|f| f.rules.is_over())?;
        fleet.given_up.clone()
    }

    /// Commands that run and whose daemons have not connected.
    pub(super) fn fleet_commands(&self) -> Vec<Arc<Child>> {
        let fleet = self.fleet.lock();
        let running = fleet
            .as_ref()
            .map(|f| f.running.values().cloned().collect());
        running.unwrap_or_default()
    }
}
