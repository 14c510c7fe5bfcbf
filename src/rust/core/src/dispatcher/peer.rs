//! A daemon as the dispatcher sees it: what it holds, and how much more it may be sent.

use std::collections::VecDeque;
use std::time::Duration;

use super::lists::Place;
use super::{Endpoint, PeerId, PeerRow, PeerState, Policy, Replies, TaskId, Time};
use crate::protocol::Seq;

/// With [`Policy::RoundRobin`], how many of its tasks a daemon holds at most;
/// the rest of its queue waits on the host, where it can still be moved.
const ROUND_ROBIN_WINDOW: usize = 16;

/// With [`Policy::Queue`], how much work a daemon holds at most beyond what it has started, so
/// that it need not wait for the host after each task: in time, and in tasks.
pub const AHEAD: Duration = Duration::from_millis(1);
/// Tasks that a daemon may hold besides the one that it evaluates.
pub const MOST_AHEAD: usize = 64;

/// A task on a daemon. `id` is `None` when nobody waits for it any more.
pub(super) struct Flight {
    pub(super) seq: Seq,
    pub(super) id: Option<TaskId>,
}

pub(super) struct Peer {
    pub(super) endpoint: Endpoint,
    /// Tasks that it may run at once.
    pub(super) slots: usize,
    pub(super) replies: Replies,
    /// Tasks sent and not replied to, in order of `seq`, in which the daemon begins them.
    pub(super) flights: VecDeque<Flight>,
    /// Those with larger numbers have not been allowed to begin.
    pub(super) granted: Seq,
    /// Those up to this one have begun, as it said when it was last asked to give some back. Their replies
    /// may take longer to arrive than that answer.
    pub(super) begun: Seq,
    /// Tasks that only this daemon shall run.
    pub(super) pinned: VecDeque<TaskId>,
    /// Tasks assigned in turn, not yet sent.
    pub(super) assigned: VecDeque<TaskId>,
    pub(super) last_seq: Seq,
    pub(super) leaving: bool,
    /// It takes part in no choice any more.
    pub(super) retired: bool,
    /// Where it stands in `idle`, and in which list of `holders` and where.
    pub(super) idle: Option<Place>,
    pub(super) holds: Option<(usize, Place)>,
    /// The `since` of its last entry in the dispatcher's list of these.
    pub(super) watched: Option<Time>,
    /// Time that its tasks take: see `keep_pace`.
    pub(super) pace: Option<Duration>,
    /// Since when it may have been at work on its first task.
    pub(super) since: Time,
    /// First and last of what is being recalled.
    pub(super) recalled: Option<(Seq, Seq)>,
    /// When it connected, the tasks that it has replied to since, and what they have taken.
    pub(super) joined: Time,
    pub(super) tasks: u64,
    pub(super) busy: Duration,
    /// Of these, how many were for any daemon, and have been evaluated.
    pub(super) finished: u64,
}

impl Peer {
    /// Number of tasks that it may hold, assuming that tasks take as long as before.
    pub(super) fn window(&self, policy: Policy) -> usize {
        match policy {
            Policy::RoundRobin => ROUND_ROBIN_WINDOW.max(self.slots),
            Policy::Queue if self.slots == 1 && self.recalled.is_none() => self.tiny(),
            Policy::Queue => self.slots,
        }
    }

    /// How many of its tasks fit into [`AHEAD`], at least one.
    fn tiny(&self) -> usize {
        let Some(pace) = self.pace else { return 1 };
        let tasks = AHEAD.as_nanos() / pace.as_nanos().max(1);
        tasks.clamp(1, MOST_AHEAD as u128) as usize
    }

    /// Grants what may be granted now; returns the last granted task.
    pub(super) fn grant(&mut self) -> Seq {
        let unheard = match self.replies {
            Replies::Sure => usize::MAX,
            Replies::MayBeLost if self.slots > 1 => self.slots,
            Replies::MayBeLost => self.tiny(),
        };
        let to = match self.flights.len().min(unheard) {
            0 => self.last_seq,
            n => self.flights[n - 1].seq,
        };
        self.granted = self.granted.max(to);
        self.granted
    }

    /// How many of its tasks, from the oldest, it may have begun by the time that it is lost.
    pub(super) fn begun_at_most(&self, heard_out: bool) -> usize {
        if self.replies == Replies::Sure && heard_out {
            self.flights.len().min(self.slots)
        } else {
            self.flights.partition_point(|f| f.seq <= self.granted)
        }
    }

    /// Since when a task on it may be running, that was sent at `sent`; `None` if it has not begun, as far
    /// as the host knows.
    pub(super) fn running_since(&self, seq: Seq, sent: Option<Time>) -> Option<Time> {
        let ahead = self.flights.partition_point(|f| f.seq < seq);
        (ahead < self.slots).then(|| sent.unwrap_or_default().max(self.since))
    }

    pub(super) fn row(&self, id: PeerId) -> PeerRow {
        PeerRow {
            peer: id,
            endpoint: self.endpoint,
            state: match (self.leaving, self.flights.is_empty()) {
                (true, _) => PeerState::Leaving,
                (false, true) => PeerState::Idle,
                (false, false) => PeerState::Busy,
            },
            joined: self.joined,
            ended: None,
            tasks: self.tasks,
            busy: self.busy,
        }
    }

    /// Notes how long a task has taken. A longer time raises the pace at once; a shorter one lowers it by a quarter of
    /// the difference.
    pub(super) fn keep_pace(&mut self, spent: Duration) {
        let before = self.pace.unwrap_or(spent);
        self.pace = Some(spent.max((before * 3 + spent) / 4));
    }
}
