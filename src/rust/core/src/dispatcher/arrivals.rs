//! Daemons that connect, and what they reply.

use std::collections::VecDeque;
use std::time::Duration;

use super::log::Over;
use super::peer::Peer;
use super::retry::Failure;
use super::{
    Action, Dispatcher, Endpoint, PeerId, Policy, Replies, Reply, Target, TaskState, Verdict,
};
use crate::protocol::{Done, Seq};

impl<J: Clone> Dispatcher<J> {
    pub(super) fn joined(
        &mut self,
        id: PeerId,
        endpoint: Endpoint,
        slots: u32,
        replies: Replies,
        out: &mut Vec<Action<J>>,
    ) {
        let state = &mut self.endpoints[endpoint];
        state.peers.insert(id);
        state.counts.online += 1;
        state.counts.instance = state.counts.instance.abs() + 1;
        self.counts.cumulative += 1;
        state.first.get_or_insert(id);
        let mut pinned = std::mem::take(&mut state.waiting);
        if let Some(mut tasks) = self.joins.remove(&self.counts.cumulative) {
            pinned.append(&mut tasks);
        }
        // In the order of submission, which is that of ids.
        pinned.make_contiguous().sort_unstable();
        let peer = Peer {
            endpoint,
            slots: slots.max(1) as usize,
            replies,
            flights: VecDeque::new(),
            granted: 0,
            begun: 0,
            pinned,
            assigned: VecDeque::new(),
            last_seq: 0,
            leaving: false,
            retired: false,
            idle: None,
            holds: None,
            watched: None,
            pace: None,
            since: self.now,
            recalled: None,
            joined: self.now,
            tasks: 0,
            busy: Duration::ZERO,
            finished: 0,
        };
        self.peers.insert(id, peer);
        self.staying += 1;
        if self.config.policy == Policy::RoundRobin {
            self.turn.push_back(id);
        }
        self.feed(id, out);
    }

    pub(super) fn replied(
        &mut self,
        id: PeerId,
        seq: Seq,
        spent: Duration,
        reply: Reply,
        out: &mut Vec<Action<J>>,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Ok(at) = peer.flights.binary_search_by_key(&seq, |f| f.seq) else {
            return;
        };
        let flight = peer.flights.remove(at).expect("position is in range");
        peer.keep_pace(spent);
        peer.since = self.now;
        peer.tasks += 1;
        peer.busy += spent;
        self.endpoints[peer.endpoint].counts.complete += 1;
        let failure = match reply.outcome {
            Done::Error => Some(Failure::Error),
            Done::Lost => Some(Failure::Crash),
            Done::Value | Done::Skipped | Done::Final => None,
        };
        if let Some((task, failure)) = flight.id.zip(failure) {
            if self.try_again(task, failure, out) {
                self.peer(id).finished += u64::from(failure == Failure::Error);
                self.feed(id, out);
                return;
            }
        }
        // The daemon comes first: it shall not wait for the host's own business.
        let done = flight.id.and_then(|task| self.take(task));
        let evaluated = matches!(reply.outcome, Done::Value | Done::Error | Done::Final);
        if evaluated
            && done
                .as_ref()
                .is_some_and(|entry| entry.target == Target::Any)
        {
            self.peer(id).finished += 1;
        }
        self.feed(id, out);
        if let Some((task, entry)) = flight.id.zip(done) {
            // By the host's clock: a peer may say anything.
            let sent = entry.sent_at.get().unwrap_or_default();
            let started = self.now.saturating_sub(spent).max(sent);
            self.log.add(Over {
                id: task,
                submitted: entry.submitted,
                started: started.into(),
                ended: self.now.into(),
                spent: spent.into(),
                bytes_in: entry.bytes,
                bytes_out: reply.bytes,
                peer: Some(id),
                attempts: entry.failures.count().saturating_add(1),
                state: match reply.outcome {
                    Done::Value => TaskState::Done,
                    Done::Error | Done::Final => TaskState::Failed,
                    Done::Skipped => TaskState::Canceled,
                    Done::Lost => TaskState::Lost,
                },
                label: entry.label,
                error: reply.error,
            });
            out.push(Action::Resolve {
                job: entry.job,
                verdict: Verdict::Replied,
            });
        }
    }
}
