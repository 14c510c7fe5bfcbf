//! Taking tasks back from a daemon that holds them unstarted, while it goes on.

use std::collections::VecDeque;

use super::{Action, Dispatcher, OVERDUE, PeerId};
use crate::protocol::Seq;

impl<J: Clone> Dispatcher<J> {
    /// A peer has given back what it had not started.
    pub(super) fn returned(&mut self, id: PeerId, from: Seq, to: Seq, out: &mut Vec<Action<J>>) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some((first, last)) = peer.recalled.take() else {
            return;
        };
        // No more than it has been asked for.
        let given = from.max(first)..=to.min(last);
        peer.begun = from.clamp(first, last + 1) - 1;
        let held = std::mem::take(&mut peer.flights);
        let (back, held): (VecDeque<_>, _) = held.into_iter().partition(|f| given.contains(&f.seq));
        peer.flights = held;
        self.endpoints[peer.endpoint].counts.assigned -= back.len() as u64;
        let mut free = Vec::new();
        for task in self.unsend(&back).into_iter().rev() {
            if self.is_free(task) {
                free.push(task);
            } else {
                self.peer(id).pinned.push_front(task);
            }
        }
        free.reverse();
        self.requeue(free);
        self.feed_idle(out);
        self.feed(id, out);
    }

    /// Has peers give back what stands behind a task that turns out long.
    pub(super) fn recall_overdue(&mut self, out: &mut Vec<Action<J>>) {
        if self.look_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.look_at = None;
        while let Some((since, id)) = self.since.first() {
            // Also of what is not due: the next look is for the first daemon that has not replied since.
            if self.drop_stale() {
                continue;
            }
            let due = since + OVERDUE;
            if due > self.now {
                self.look_at = Some(due);
                break;
            }
            self.recall(id, out);
        }
    }

    /// Drops the first entry of `since` if it says nothing any more: the peer has replied, is gone, or holds nothing that
    /// it could be asked for.
    pub(super) fn drop_stale(&mut self) -> bool {
        let Some((since, id)) = self.since.first() else {
            return false;
        };
        if let Some(peer) = self.peers.get_mut(&id) {
            if peer.since == since {
                if peer.holds.is_some() {
                    return false;
                }
                peer.watched = None;
            }
        }
        self.since.remove_first();
        true
    }

    /// There is a peer with nothing to do: has the one that holds most give it back.
    pub(super) fn recall_for_idle(&mut self, out: &mut Vec<Action<J>>) {
        if let Some(most) = self.holders.most() {
            self.recall(most, out);
        }
    }

    pub(super) fn recall(&mut self, id: PeerId, out: &mut Vec<Action<J>>) {
        let peer = self.peer(id);
        // The first one is under way.
        let (from, to) = (peer.flights[1].seq.max(peer.begun + 1), peer.last_seq);
        peer.recalled = Some((from, to));
        self.hold_no_more(id);
        out.push(Action::Recall { peer: id, from, to });
    }
}
