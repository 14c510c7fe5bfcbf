//! Daemons that leave or are lost, and what becomes of the tasks that they held.

use std::collections::VecDeque;

use super::peer::Flight;
use super::retry::Failure;
use super::{
    Action, Dispatcher, Endpoint, Farewell, PeerId, PeerRow, PeerState, Policy, TaskId, Verdict,
};
use crate::protocol::Seq;

impl<J: Clone> Dispatcher<J> {
    /// What is to be said of a connected daemon.
    pub fn farewell(&self, peer: PeerId) -> Option<Farewell> {
        let peer = self.peers.get(&peer)?;
        Some(Farewell {
            left: peer.leaving,
            finished: peer.finished,
        })
    }

    pub(super) fn leaving(&mut self, id: PeerId, begun: Seq, out: &mut Vec<Action<J>>) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.leaving = true;
        let running = peer.flights.partition_point(|f| f.seq <= begun);
        let flights = peer.flights.split_off(running);
        self.endpoints[peer.endpoint].counts.assigned -= flights.len() as u64;
        self.retire(id);
        self.take_back(id, flights, out);
    }

    /// `verdict` is what becomes of tasks that may have been begun. `None`: they are attempted again, or over.
    pub(super) fn lost(
        &mut self,
        id: PeerId,
        heard_out: bool,
        verdict: Option<Verdict>,
        out: &mut Vec<Action<J>>,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let said_goodbye = std::mem::replace(&mut peer.leaving, true);
        let started = peer.begun_at_most(heard_out);
        let mut flights = std::mem::take(&mut peer.flights);
        let unstarted = flights.split_off(started);
        self.endpoints[peer.endpoint].counts.assigned -= unstarted.len() as u64;
        self.retire(id);
        let mut back = VecDeque::new();
        for flight in flights {
            let Some(task) = flight.id else { continue };
            let again = match verdict {
                None => self.next_attempt(task, Failure::Crash),
                Some(_) => None,
            };
            match again {
                None => self.finish(task, verdict.unwrap_or(Verdict::Reset), false, out),
                Some(pause) => {
                    self.announce_again(task, out);
                    if pause.is_zero() {
                        back.push_back(flight);
                    } else {
                        self.pause(task, pause);
                    }
                }
            }
        }
        back.extend(unstarted);
        self.take_back(id, back, out);
        let peer = self.peers.remove(&id).expect("peer is present");
        self.log.add_peer(PeerRow {
            state: if said_goodbye {
                PeerState::Left
            } else {
                PeerState::Lost
            },
            ended: Some(self.now),
            ..peer.row(id)
        });
        let state = &mut self.endpoints[peer.endpoint];
        state.peers.remove(&id);
        state.counts.online -= 1;
        self.reuse(peer.endpoint);
    }

    pub(super) fn moved(&mut self, endpoint: Endpoint, out: &mut Vec<Action<J>>) {
        let there = self.peers_at(endpoint);
        // None of them shall be given what another one leaves behind.
        for peer in &there {
            self.peer(*peer).leaving = true;
            self.retire(*peer);
        }
        for peer in there {
            // It may be in the middle of anything.
            self.lost(peer, false, Some(Verdict::Closed), out);
        }
        if let Some(state) = self.endpoints.get_mut(endpoint) {
            state.counts.instance = -state.counts.instance.abs();
        }
    }

    /// Notes that these are with no peer any more. Those that are still wanted.
    pub(super) fn unsend(&mut self, flights: &VecDeque<Flight>) -> Vec<TaskId> {
        let back: Vec<TaskId> = flights.iter().filter_map(|f| f.id).collect();
        for task in &back {
            let entry = self.tasks.get_mut(*task).expect("a flight's task is known");
            entry.sent = None;
            self.in_flight -= 1;
            self.counts.queued += entry.bytes;
        }
        back
    }

    /// Returns to the queue, at its head and in order, what a peer held
    /// unstarted; what was pinned to it has nowhere to go.
    pub(super) fn take_back(
        &mut self,
        id: PeerId,
        flights: VecDeque<Flight>,
        out: &mut Vec<Action<J>>,
    ) {
        let pinned = std::mem::take(&mut self.peer(id).pinned);
        let mut back = self.unsend(&flights);
        back.extend(std::mem::take(&mut self.peer(id).assigned));
        back.retain(|task| self.tasks.contains(*task));
        let (free, bound): (Vec<_>, Vec<_>) = back.into_iter().partition(|t| self.is_free(*t));
        for task in bound.into_iter().chain(pinned) {
            self.finish(task, Verdict::Reset, false, out);
        }
        self.put_back(free, out);
    }

    /// Has tasks that nobody holds wait for a daemon again.
    pub(super) fn put_back(&mut self, free: Vec<TaskId>, out: &mut Vec<Action<J>>) {
        match self.config.policy {
            Policy::Queue => {
                self.requeue(free);
                self.feed_idle(out);
            }
            Policy::RoundRobin => {
                let in_turn = self.next_queued().is_none();
                for task in free.into_iter().rev() {
                    self.queue.push_front(task);
                }
                if in_turn {
                    self.deal(out);
                } else {
                    self.feed_idle(out);
                }
            }
        }
    }
}
