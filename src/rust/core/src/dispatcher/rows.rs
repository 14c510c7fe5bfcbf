//! The rows of the log: what the dispatcher knows of tasks and daemons, those of now and those of late.

use super::{Dispatcher, Entry, PeerRow, TASKS_KEPT, Tally, TaskId, TaskRow, TaskState, Time};

/// A log of tasks that is made part by part, so that nobody waits for all of it: events may come in between. It has every
/// task that was submitted before the first part. A task that ends meanwhile has a row of before or after that.
#[derive(Default)]
pub struct Parts {
    /// Tasks that are not over, in order of ids, and the last of them.
    live: Vec<TaskRow>,
    last: Option<TaskId>,
    /// Tasks that are.
    over: Vec<TaskRow>,
    /// Of these, which is next and which is beyond the last, by how many had ended before.
    over_from: Option<(u64, u64)>,
}

impl Parts {
    /// Whether the part is begun that has the tasks which are over: none of those ends later than now.
    pub fn is_at_end(&self) -> bool {
        self.over_from.is_some()
    }

    /// The last `n` submitted, in the order of submission.
    pub fn rows(self, n: usize) -> Vec<TaskRow> {
        let mut rows = self.over;
        rows.extend(self.live);
        // The first of two stays, which says how the task ended.
        rows.sort_by_key(|row| row.id);
        rows.dedup_by_key(|row| row.id);
        rows.drain(..rows.len().saturating_sub(n));
        rows
    }
}

impl<J: Clone> Dispatcher<J> {
    /// Since when a task may be running; `None` if it has not begun, as far as the host knows.
    pub(super) fn running_since(&self, entry: &Entry<J>) -> Option<Time> {
        let (peer, seq) = entry.sent?;
        self.peers
            .get(&peer)?
            .running_since(seq, entry.sent_at.get())
    }

    /// The log of tasks, the last `n` submitted, in the order of submission. Those that are not over have a row (of the
    /// queue the oldest [`TASKS_KEPT`]), and the last [`TASKS_KEPT`] that are. See [`Parts`] for a log that is long.
    pub fn task_rows(&self, n: usize) -> Vec<TaskRow> {
        let mut parts = Parts::default();
        while self.next_part(&mut parts, usize::MAX) {}
        parts.rows(n)
    }

    /// Adds at most `most` rows to a log. False if it is complete.
    pub fn next_part(&self, parts: &mut Parts, most: usize) -> bool {
        let Some((next, end)) = parts.over_from else {
            let room = TASKS_KEPT - parts.live.len();
            let rows = self.tasks.iter_after(parts.last);
            let before = parts.live.len();
            let rows = rows.map(|(id, entry)| self.live_row(id, entry));
            parts.live.extend(rows.take(room.min(most)));
            parts.last = parts.live.last().map(|row| row.id);
            if parts.live.len() - before < most {
                // None of them is missing: those that have ended meanwhile are in the rest.
                let ended = self.log.ended();
                parts.over_from = Some((ended.start, ended.end));
            }
            return true;
        };
        // Some may have been dropped since.
        let next = next.max(self.log.ended().start);
        let to = next.saturating_add(most as u64).min(end);
        parts.over.extend(self.log.rows(next..to));
        parts.over_from = Some((to, end));
        to < end
    }

    fn live_row(&self, id: TaskId, entry: &Entry<J>) -> TaskRow {
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
            attempts: entry.attempts(started.is_some()),
            bytes_in: entry.bytes,
            bytes_out: None,
            error: None,
        }
    }

    /// The log of daemons, in the order in which they connected: those connected, and the last
    /// [`PEERS_KEPT`](super::PEERS_KEPT) that are gone.
    pub fn peer_rows(&self) -> Vec<PeerRow> {
        let connected = self.peers.iter().map(|(id, peer)| peer.row(*id));
        let mut rows: Vec<PeerRow> = self.log.peers().cloned().chain(connected).collect();
        rows.sort_unstable_by_key(|row| row.peer);
        rows
    }

    /// The message of the error in which a task has ended, if it is one of the last that ended
    /// badly.
    pub fn error_of(&self, id: TaskId) -> Option<Box<str>> {
        self.log.error_of(id)
    }

    /// Tasks that are over, counted by how they ended.
    pub fn tally(&self) -> Tally {
        self.log.tally
    }
}
