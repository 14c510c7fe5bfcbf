//! The log as the host tells it: what the dispatcher has written, with what the host knows of the daemons.

use std::sync::Arc;
use std::time::SystemTime;

use rustc_hash::FxHashMap;

use super::{Endpoint, Host, PeerId, Shared};
use crate::dispatcher::{PEERS_KEPT, Parts, PeerRow, Tally, TaskId, TaskRow, Time};
use crate::loss::{LastWords, Loss};
use crate::sys;

/// Rows of the log that are made under the dispatcher's lock at once: some ten microseconds.
const ROWS_AT_ONCE: usize = 256;

/// The log at one moment. The times in it count from `origin`.
#[derive(Clone, Debug)]
pub struct Log<R> {
    /// The time at which the times of the rows begin.
    pub origin: SystemTime,
    /// When the rows were made.
    pub now: Time,
    /// The rows.
    pub rows: Vec<R>,
}

/// A daemon in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonRow {
    /// What the dispatcher knows.
    pub row: PeerRow,
    /// Where it connected.
    pub url: String,
    /// Its machine, by the name that it gives itself; empty if it has not said so yet.
    pub host: String,
    /// Its process there; 0 if it has not said so yet.
    pub pid: u32,
    /// Bytes of memory that it has resident, if it is on this machine and alive.
    pub memory: Option<u64>,
    /// Why it is gone, if that is known.
    pub reason: Option<String>,
}

/// What is known of daemons, also of those that are gone.
#[derive(Default)]
pub(super) struct Known {
    daemons: FxHashMap<PeerId, Daemon>,
    /// Of these, those without a URL of their own.
    at: FxHashMap<Endpoint, Vec<PeerId>>,
}

struct Daemon {
    endpoint: Endpoint,
    /// Where it connected. `None`: where the host listens at this endpoint now.
    url: Option<String>,
    /// Its process, if it is on this machine.
    local: Option<u32>,
    loss: Arc<Loss>,
}

impl Known {
    /// `local`: process id of a daemon on this machine.
    pub(super) fn add(
        &mut self,
        peer: PeerId,
        endpoint: Endpoint,
        local: Option<u32>,
    ) -> Arc<Loss> {
        // As many as the dispatcher's log can name, and as many again, so that this is seldom.
        if self.daemons.len() >= 2 * PEERS_KEPT {
            let mut peers: Vec<PeerId> = self.daemons.keys().copied().collect();
            let (_, oldest_kept, _) = peers.select_nth_unstable(PEERS_KEPT);
            let oldest_kept = *oldest_kept;
            self.daemons.retain(|peer, _| *peer >= oldest_kept);
            for peers in self.at.values_mut() {
                peers.retain(|peer| *peer >= oldest_kept);
            }
        }
        let host = local.map(|_| sys::node_name()).unwrap_or_default();
        let loss = Arc::new(Loss::new(peer, host, local.unwrap_or_default()));
        let daemon = Daemon {
            endpoint,
            url: None,
            local,
            loss: loss.clone(),
        };
        self.daemons.insert(peer, daemon);
        self.at.entry(endpoint).or_default().push(peer);
        loss
    }

    /// The endpoint is about to be at another URL, or at none. (The URL is not asked for when a daemon joins: that
    /// would be under the lock of the URLs, whose holder may wait for NNG's callbacks, of which joining is one.)
    pub(super) fn leaves_url(&mut self, endpoint: Endpoint, url: &str) {
        for peer in self.at.remove(&endpoint).unwrap_or_default() {
            if let Some(daemon) = self.daemons.get_mut(&peer) {
                daemon.url = Some(url.into());
            }
        }
    }

    /// A daemon across the network says where it is.
    pub(super) fn tells(&self, peer: PeerId, host: &str, pid: u32) {
        if let Some(daemon) = self
            .daemons
            .get(&peer)
            .filter(|daemon| daemon.local.is_none())
        {
            daemon.loss.is_at(host, pid);
        }
    }

    /// Process id of a daemon on this machine.
    pub(super) fn local_process(&self, peer: PeerId) -> Option<u32> {
        self.daemons.get(&peer)?.local
    }

    pub(super) fn loss(&self, peer: PeerId) -> Option<Arc<Loss>> {
        Some(self.daemons.get(&peer)?.loss.clone())
    }
}

impl Shared {
    /// A daemon across the network has said where it is. If it claims to be a process that was started here, how that
    /// ends will be told as the reason for its loss, and nothing else comes of the claim.
    pub(super) fn heard_about(&self, peer: PeerId, host: &str, pid: u32) {
        let known = self.known.lock();
        known.tells(peer, host, pid);
        let Some(loss) = known.loss(peer).filter(|_| host == crate::sys::node_name()) else {
            return;
        };
        drop(known);
        if let Some((child, life)) = self.started(pid) {
            child.tells(loss);
            // A lie could prevent no more than that a daemon is started again.
            self.life_connected(life, peer);
        }
    }

    /// A daemon has said where its last words will be. Of a process, that is believed only if the system has told its id.
    pub(super) fn heard_of_words(&self, peer: PeerId, pipes: [u32; 2]) {
        let Some(pid) = self.known.lock().local_process(peer) else {
            return;
        };
        if self.processes.lock().get(&pid) != Some(&peer) {
            return;
        }
        let loss = self.known.lock().loss(peer);
        if let Some((loss, words)) = loss.zip(LastWords::of(pid, pipes)) {
            loss.will_say(words);
        }
    }
}

impl DaemonRow {
    fn unknown(row: PeerRow) -> DaemonRow {
        DaemonRow {
            row,
            url: String::new(),
            host: String::new(),
            pid: 0,
            memory: None,
            reason: None,
        }
    }
}

impl Host {
    /// Tasks, the last `n` submitted: see [`Dispatcher::task_rows`](crate::dispatcher::Dispatcher::task_rows).
    pub fn task_log(&self, n: usize) -> Log<TaskRow> {
        let mut parts = Parts::default();
        let mut now = None;
        loop {
            let state = self.0.state.lock();
            if parts.is_at_end() {
                // Under the lock, so that nothing in the log is later than `now`.
                now.get_or_insert_with(|| self.0.origin.elapsed());
            }
            if !state.dispatcher.next_part(&mut parts, ROWS_AT_ONCE) {
                break;
            }
        }
        let now = now.unwrap_or_else(|| self.0.origin.elapsed());
        self.0.log(now, parts.rows(n))
    }

    /// Daemons that are connected, and the last that were.
    pub fn daemon_log(&self) -> Log<DaemonRow> {
        let (now, rows) = {
            let state = self.0.state.lock();
            (self.0.origin.elapsed(), state.dispatcher.peer_rows())
        };
        let rows = self.0.daemon_rows(rows, &self.urls());
        self.0.log(now, rows)
    }

    /// The message of the error in which a task has just ended.
    pub fn error_of(&self, id: TaskId) -> Option<Box<str>> {
        self.0.state.lock().dispatcher.error_of(id)
    }

    /// Tasks that are over, counted by how they ended.
    pub fn tally(&self) -> Tally {
        self.0.state.lock().dispatcher.tally()
    }
}

impl Shared {
    /// Adds what is known of these daemons. `urls`: where the host listens now.
    pub(super) fn daemon_rows(&self, rows: Vec<PeerRow>, urls: &[String]) -> Vec<DaemonRow> {
        let known = self.known.lock();
        let rows = rows.into_iter().map(|row| {
            let Some(daemon) = known.daemons.get(&row.peer) else {
                return DaemonRow::unknown(row);
            };
            let (host, pid) = (daemon.loss.host(), daemon.loss.pid());
            let here = daemon.local.is_some() && row.ended.is_none();
            DaemonRow {
                url: match &daemon.url {
                    Some(url) => url.clone(),
                    None => urls.get(daemon.endpoint).cloned().unwrap_or_default(),
                },
                memory: here.then(|| resident(pid)).flatten(),
                reason: daemon.loss.reason().filter(|_| row.ended.is_some()),
                row,
                host,
                pid,
            }
        });
        rows.collect()
    }

    fn log<R>(&self, now: Time, rows: Vec<R>) -> Log<R> {
        // The system's clock may have been set since the origin: the newest times are the ones to get right.
        let origin = SystemTime::now() - self.origin.elapsed();
        Log { origin, now, rows }
    }
}

/// Bytes of memory that a process of this machine has resident.
pub(super) fn resident(pid: u32) -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        Some(pages * crate::sys::page_size() as u64)
    }
    #[cfg(target_os = "macos")]
    {
        let mut info = std::mem::MaybeUninit::<libc::proc_taskinfo>::zeroed();
        let (kind, size) = (libc::PROC_PIDTASKINFO, size_of_val(&info) as libc::c_int);
        // SAFETY: there is room for `size` bytes; all zeros are a `proc_taskinfo`, too.
        let info = unsafe {
            let got = libc::proc_pidinfo(
                pid.try_into().ok()?,
                kind,
                0,
                info.as_mut_ptr().cast(),
                size,
            );
            (got == size).then_some(info.assume_init())?
        };
        Some(info.pti_resident_size)
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        let _ = pid;
        None
    }
}
