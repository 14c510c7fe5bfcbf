//! The rows of the log: what the dispatcher knows of tasks and daemons, those of now and those of late.

use super::{Dispatcher, Entry, PeerRow, TASKS_KEPT, Tally, TaskId, TaskRow, TaskState, Time};

impl<J: Clone> Dispatcher<J> {
    /// Since when a task may be running; `None` if it has not begun, as far as the host knows.
    pub(super) fn running_since(&self, entry: &Entry<J>) -> Option<Time> {
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
                attempts: entry.attempts(started.is_some()),
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
