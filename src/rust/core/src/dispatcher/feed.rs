//! Which task goes to which daemon, and when.

use super::lists::Holders;
use super::peer::{AHEAD, Flight};
use super::{Action, Dispatcher, OVERDUE, PeerId, Policy, Replies, TaskId};

impl<J: Clone> Dispatcher<J> {
    /// Assigns the queue to the peers in turn, if there are any.
    pub(super) fn deal(&mut self, out: &mut Vec<Action<J>>) {
        let mut dealt = 0;
        while let Some(peer) = self.turn.front().copied() {
            if self.peers.get(&peer).is_none_or(|p| p.leaving) {
                self.turn.pop_front();
                continue;
            }
            let Some(task) = self.next_queued() else {
                break;
            };
            self.queue.pop_front();
            self.turn.rotate_left(1);
            self.peer(peer).assigned.push_back(task);
            dealt += 1;
        }
        // Only now: a peer that is fed before would help itself from the queue.
        for at in self.turn.len().saturating_sub(dealt)..self.turn.len() {
            let peer = self.turn[at];
            self.feed(peer, out);
        }
    }

    pub(super) fn feed_idle(&mut self, out: &mut Vec<Action<J>>) {
        while !self.queue.is_empty() {
            let Some(id) = self.idle.last() else {
                break;
            };
            self.feed(id, out);
        }
    }

    /// Sends a peer what it may have, and keeps `idle` and `holders` true about it.
    pub(super) fn feed(&mut self, id: PeerId, out: &mut Vec<Action<J>>) {
        let share = self.queued / self.staying.max(1);
        let policy = self.config.policy;
        let now = self.now;
        let peer = self.peer(id);
        if peer.leaving {
            return;
        }
        let (held, mut most) = (peer.flights.len(), peer.window(policy));
        if held == 0 {
            peer.since = now;
        }
        if policy == Policy::Queue && most > peer.slots {
            // Ahead of time only from a queue that is deep, to a peer that has just finished
            // a task, and several at once, in one write.
            let prompt = now.saturating_sub(peer.since) <= AHEAD;
            most = if prompt && 2 * held <= most {
                most.min(held + share).max(peer.slots)
            } else {
                peer.slots
            };
        }
        for _ in held..most {
            let Some(task) = self.next_for(id) else { break };
            self.send(id, task, out);
        }
        self.list(id);
        let peer = self.peer(id);
        let before = peer.granted;
        if peer.replies == Replies::MayBeLost && peer.grant() > before {
            let to = peer.granted;
            out.push(Action::Grant { peer: id, to });
        }
    }

    /// Has a peer stand in `idle`, `holders` and `since` as what it holds now says.
    fn list(&mut self, id: PeerId) {
        let policy = self.config.policy;
        let peer = self.peers.get_mut(&id).expect("peer is connected");
        let held = peer.flights.len();
        match (held < peer.slots, peer.idle) {
            (true, None) => {
                let peers = &mut self.peers;
                let place = self.idle.push(id, |other, place| {
                    if let Some(other) = peers.get_mut(&other) {
                        other.idle = Some(place);
                    }
                });
                self.peer(id).idle = Some(place);
            }
            (false, Some(place)) => {
                peer.idle = None;
                self.idle.remove(place);
            }
            _ => {}
        }
        let peer = self.peer(id);
        let unbegun = peer.flights.back().is_some_and(|f| f.seq > peer.begun);
        let holds = policy == Policy::Queue && held > peer.slots && unbegun;
        let list = (holds && peer.recalled.is_none()).then(|| Holders::list(held));
        let before = peer.holds.map(|(list, _)| list);
        if before != list {
            self.hold_no_more(id);
            if let Some(list) = list {
                let place = self.holders.add(id, list);
                self.peer(id).holds = Some((list, place));
            }
        }
        let peer = self.peer(id);
        if list.is_some() && peer.watched != Some(peer.since) {
            peer.watched = Some(peer.since);
            let since = peer.since;
            self.since.add(since, id);
            // One that has given back only a part has been watched before, and may be due earlier.
            let due = since + OVERDUE;
            self.look_at = Some(self.look_at.map_or(due, |at| at.min(due)));
        }
    }

    /// Takes a peer off `holders`.
    pub(super) fn hold_no_more(&mut self, id: PeerId) {
        let Some((list, place)) = self.peer(id).holds.take() else {
            return;
        };
        if let Some(moved) = self.holders.remove(list, place) {
            self.peer(moved).holds = Some((list, place));
        }
    }

    pub(super) fn send(&mut self, id: PeerId, task: TaskId, out: &mut Vec<Action<J>>) {
        let entry = self
            .tasks
            .get_mut(task)
            .expect("next_for returns live tasks");
        let peer = self.peers.get_mut(&id).expect("peer is connected");
        peer.last_seq += 1;
        let seq = peer.last_seq;
        peer.flights.push_back(Flight {
            seq,
            id: Some(task),
        });
        let granted = peer.grant();
        self.endpoints[peer.endpoint].counts.assigned += 1;
        entry.sent = Some((id, seq));
        entry.sent_at = self.now.into();
        self.in_flight += 1;
        self.counts.queued -= entry.bytes;
        out.push(Action::Send {
            peer: id,
            seq,
            job: entry.job.clone(),
            granted,
        });
        if self.config.capacity.is_some() {
            out.push(Action::Room);
        }
    }

    /// The next live task for a peer: its own first, then the common queue.
    pub(super) fn next_for(&mut self, id: PeerId) -> Option<TaskId> {
        let peer = self.peers.get_mut(&id)?;
        for own in [&mut peer.pinned, &mut peer.assigned] {
            while let Some(task) = own.pop_front() {
                if self.tasks.contains(task) {
                    return Some(task);
                }
            }
        }
        let task = self.next_queued()?;
        self.queue.pop_front();
        if self.config.policy == Policy::Queue {
            self.queued -= 1;
        }
        Some(task)
    }
}
