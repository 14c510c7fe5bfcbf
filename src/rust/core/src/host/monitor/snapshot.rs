//! What monitors are told: the session at one moment, as a line of JSON.
//!
//! Times are seconds since 1970, durations are seconds, sizes are bytes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::log::resident;
use super::super::{DaemonRow, Shared};
use crate::dispatcher::{Label, PeerState, SHOWN, TaskRow, TaskState, Time};
use crate::sys;

/// Version of the snapshots. It is raised when a field is removed or changes its meaning.
pub const FORMAT: u32 = 1;

/// Limit of the profiles in a snapshot, and of the URLs of each.
const MOST_PROFILES: usize = 50;
const MOST_URLS: usize = SHOWN;

/// Limit of the reason for which a daemon was lost, in bytes. It may end with the last lines that the daemon wrote.
const MOST_OF_A_REASON: usize = 500;

/// A session at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`FORMAT`].
    pub version: u32,
    /// The session's process, and the machine on which it is.
    pub pid: u32,
    /// Name of the machine.
    pub host: String,
    /// When it was made.
    pub time: f64,
    /// Memory of the session's process that is resident.
    pub memory: Option<u64>,
    /// In the order of their names; `profiles_more` are not listed.
    pub profiles: Vec<Profile>,
    /// How many profiles are not listed.
    pub profiles_more: usize,
}

/// A compute profile.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// Where it listens; `urls_more` are not listed.
    pub urls: Vec<String>,
    /// How many URLs are not listed.
    pub urls_more: usize,
    /// Its tasks by state.
    pub tasks: Tasks,
    /// How fast tasks end.
    pub throughput: Throughput,
    /// What waits in its queue.
    pub queue: Memory,
    /// Tasks that run, the oldest first; `running_more` are not listed.
    pub running: Vec<Running>,
    /// How many running tasks are not listed.
    pub running_more: usize,
    /// Daemons that are connected; `daemons_more` are not listed.
    pub daemons: Vec<Daemon>,
    /// How many connected daemons are not listed.
    pub daemons_more: usize,
    /// Daemons that are gone, the last first.
    pub gone: Vec<Daemon>,
    /// Tasks that failed, timed out or were lost, the last first.
    pub failures: Vec<Failure>,
    /// Tasks that have ended, the last first.
    pub recent: Vec<Past>,
}

/// Numbers of tasks by their states: those of now, then those that have ended so far.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Tasks {
    /// Not sent to a daemon yet.
    pub queued: u64,
    /// Sent to a daemon, and not over.
    pub running: u64,
    /// Ended with a value.
    pub done: u64,
    /// Ended with an error of the evaluation.
    pub failed: u64,
    /// Ended by `stop_mirai()`.
    pub cancelled: u64,
    /// Ended by their time limit.
    pub timed_out: u64,
    /// Ended with their daemon.
    pub lost: u64,
}

/// Numbers of tasks that have ended of late.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Throughput {
    /// In the last second.
    pub last_1s: f64,
    /// In the last ten seconds.
    pub last_10s: f64,
}

/// Bytes that wait in the queue.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// Now.
    pub bytes: u64,
    /// The most so far.
    pub peak: u64,
    /// The limit, if one is set.
    pub capacity: Option<u64>,
}

/// A task that runs. `id` is the number of its mirai.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Running {
    /// Number of its mirai; `None` if it has none.
    pub id: Option<u32>,
    /// Name of its element in a map.
    pub name: Option<String>,
    /// Number of the daemon.
    pub daemon: u32,
    /// When it was sent to the daemon.
    pub started: f64,
    /// When the snapshot was made.
    pub age: f64,
}

/// A daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Daemon {
    /// Number of the daemon.
    pub daemon: u32,
    /// Name of its machine, if it is known.
    pub host: Option<String>,
    /// Process id, if it is known.
    pub pid: Option<u32>,
    /// `idle`, `busy`, `leaving`, `left` or `lost`.
    pub state: String,
    /// When it connected, or was gone.
    pub since: f64,
    /// Tasks that it has finished.
    pub tasks: u64,
    /// Seconds that these have taken.
    pub busy: f64,
    /// Resident, if it is on the session's machine.
    pub memory: Option<u64>,
    /// Why it was lost, if that is known.
    pub reason: Option<String>,
}

/// A task that did not end well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// Number of its mirai; `None` if it has none.
    pub id: Option<u32>,
    /// Name of its element in a map.
    pub name: Option<String>,
    /// `failed`, `timed_out` or `lost`.
    pub state: String,
    /// Number of its daemon, if it was sent to one.
    pub daemon: Option<u32>,
    /// When it ended.
    pub ended: f64,
    /// The error's message.
    pub error: Option<String>,
}

/// A task that has ended, for the timeline: on which daemon, from when to when, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Past {
    /// Number of its mirai; `None` if it has none.
    pub id: Option<u32>,
    /// Number of its daemon, if it was sent to one.
    pub daemon: Option<u32>,
    /// When it was sent to the daemon.
    pub started: Option<f64>,
    /// When it ended.
    pub ended: f64,
    /// `done`, `failed`, `cancelled`, `timed_out` or `lost`.
    pub state: String,
}

/// The line that tells a process that it may not attach.
pub(super) fn refusal(reason: &str) -> Vec<u8> {
    let value = serde_json::json!({"version": FORMAT, "error": reason});
    format!("{value}\n").into_bytes()
}

/// Seconds since 1970, to the microsecond.
fn seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    rounded(since.unwrap_or_default())
}

/// Seconds, to the microsecond.
fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e6
}

fn number(label: &Label) -> Option<u32> {
    Some(label.number).filter(|number| *number > 0)
}

fn name(label: &Label) -> Option<String> {
    label.name.as_deref().map(Into::into)
}

impl TaskState {
    /// Its name for users.
    pub fn name(self) -> &'static str {
        match self {
            TaskState::Queued => "queued",
            TaskState::Running => "running",
            TaskState::Done => "done",
            TaskState::Failed => "failed",
            TaskState::Canceled => "cancelled",
            TaskState::TimedOut => "timed_out",
            TaskState::Lost => "lost",
        }
    }
}

impl PeerState {
    /// Its name for users.
    pub fn name(self) -> &'static str {
        match self {
            PeerState::Idle => "idle",
            PeerState::Busy => "busy",
            PeerState::Leaving => "leaving",
            PeerState::Left => "left",
            PeerState::Lost => "lost",
        }
    }
}

impl Snapshot {
    pub(super) fn take(hosts: &[(String, Arc<Shared>)]) -> Snapshot {
        let pid = std::process::id();
        let listed = &hosts[..hosts.len().min(MOST_PROFILES)];
        let profiles = listed.iter().map(|(name, host)| Profile::of(name, host));
        Snapshot {
            version: FORMAT,
            pid,
            host: sys::node_name(),
            profiles: profiles.collect(),
            profiles_more: hosts.len() - listed.len(),
            memory: resident(pid),
            time: seconds(SystemTime::now()),
        }
    }

    /// Whether a later snapshot will differ even if nothing happens, because the throughput falls.
    pub(super) fn is_fading(&self) -> bool {
        self.profiles.iter().any(|p| p.throughput.last_10s > 0.0)
    }

    /// As a line of JSON.
    pub(super) fn to_line(&self) -> Bytes {
        let mut line =
            serde_json::to_vec(self).expect("a snapshot has no maps and no failing parts");
        line.push(b'\n');
        line.into()
    }

    /// Reads a line that [`Monitor::next`](super::Monitor::next) has returned.
    ///
    /// # Errors
    /// It is not a snapshot.
    pub fn parse(line: &str) -> Result<Snapshot, String> {
        serde_json::from_str(line).map_err(|e| e.to_string())
    }
}

impl Profile {
    fn of(name: &str, host: &Shared) -> Profile {
        let (now, view, capacity) = {
            let state = host.state.lock();
            let now = host.origin.elapsed();
            let capacity = state.dispatcher.config().capacity;
            (now, state.dispatcher.view(now), capacity)
        };
        let origin = SystemTime::now() - host.origin.elapsed();
        let at = |time: Time| seconds(origin + time);
        let urls = host.urls();
        let daemons = |rows| {
            let rows: Vec<DaemonRow> = host.daemon_rows(rows, &urls);
            rows.into_iter().map(|row| Daemon::of(row, at)).collect()
        };
        let (counts, tally) = (view.counts, view.tally);
        let unsent = counts.awaiting + counts.executing.saturating_sub(view.running);
        Profile {
            name: name.into(),
            tasks: Tasks {
                queued: unsent as u64,
                running: view.running as u64,
                done: tally.done,
                failed: tally.failed,
                cancelled: tally.canceled,
                timed_out: tally.timed_out,
                lost: tally.lost,
            },
            throughput: Throughput {
                last_1s: view.ended_within[0].round(),
                last_10s: view.ended_within[1].round(),
            },
            queue: Memory {
                bytes: counts.queued,
                peak: counts.peak,
                capacity,
            },
            running_more: view.running - view.tasks.len(),
            running: view
                .tasks
                .into_iter()
                .map(|task| Running {
                    id: number(&task.label),
                    name: self::name(&task.label),
                    daemon: task.peer,
                    started: at(task.started),
                    age: rounded(now.saturating_sub(task.started)),
                })
                .collect(),
            daemons_more: counts.connections - view.peers.len(),
            daemons: daemons(view.peers),
            gone: daemons(view.gone),
            failures: view
                .failures
                .into_iter()
                .map(|t| Failure::of(t, at))
                .collect(),
            recent: view.ended.iter().map(|task| Past::of(task, at)).collect(),
            urls_more: urls.len().saturating_sub(MOST_URLS),
            urls: urls.into_iter().take(MOST_URLS).collect(),
        }
    }
}

fn cut(mut text: String) -> String {
    let mut end = text.len().min(MOST_OF_A_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

impl Daemon {
    fn of(row: DaemonRow, at: impl Fn(Time) -> f64) -> Daemon {
        Daemon {
            daemon: row.row.peer,
            host: Some(row.host).filter(|host| !host.is_empty()),
            pid: Some(row.pid).filter(|pid| *pid > 0),
            state: row.row.state.name().into(),
            since: at(row.row.ended.unwrap_or(row.row.joined)),
            tasks: row.row.tasks,
            busy: rounded(row.row.busy),
            memory: row.memory,
            reason: row.reason.map(cut),
        }
    }
}

impl Failure {
    fn of(task: TaskRow, at: impl Fn(Time) -> f64) -> Failure {
        Failure {
            id: number(&task.label),
            name: name(&task.label),
            state: task.state.name().into(),
            daemon: task.peer,
            ended: at(task.ended.unwrap_or_default()),
            error: task.error.map(Into::into),
        }
    }
}

impl Past {
    fn of(task: &TaskRow, at: impl Fn(Time) -> f64) -> Past {
        Past {
            id: number(&task.label),
            daemon: task.peer,
            started: task.started.map(&at),
            ended: at(task.ended.unwrap_or_default()),
            state: task.state.name().into(),
        }
    }
}
