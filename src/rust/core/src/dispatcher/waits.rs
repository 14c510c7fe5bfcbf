//! Tasks that wait for others before they join a queue.

use super::{Action, Dispatcher, Endpoint, EndpointState, Policy, Target, TaskId, Verdict};

/// What the log says of a task that is [broken](Verdict::Broken).
pub(super) const BROKEN: &str = "an argument could not be computed";

impl<J: Clone> Dispatcher<J> {
    /// What a task has waited for is there; its payload has this size now.
    pub(super) fn ready(&mut self, id: TaskId, bytes: u64, out: &mut Vec<Action<J>>) {
        let Some(entry) = self.tasks.get_mut(id).filter(|entry| entry.waits) else {
            return;
        };
        entry.waits = false;
        let target = entry.target;
        let before = std::mem::replace(&mut entry.bytes, bytes);
        self.counts.queued = self.counts.queued - before + bytes;
        self.no_longer_waits(id, target);
        if bytes < before && self.config.capacity.is_some() {
            out.push(Action::Room);
        }
        if self.config.policy == Policy::Queue && target == Target::Any {
            self.put_back(vec![id], out);
        } else {
            self.place(id, target, out);
        }
    }

    /// Whether a task for this endpoint waits for others.
    pub fn is_awaited(&self, endpoint: Endpoint) -> bool {
        let state = self.endpoints.get(endpoint);
        state.is_some_and(|state| !state.needing.is_empty())
    }

    /// Notes that a new task waits for others.
    pub(super) fn waits(&mut self, id: TaskId, target: Target) {
        if let Some(state) = self.endpoint_of(target) {
            state.needing.insert(id);
        }
    }

    /// Notes that a task does not wait for others any more.
    pub(super) fn no_longer_waits(&mut self, id: TaskId, target: Target) {
        if let Some(state) = self.endpoint_of(target) {
            state.needing.remove(&id);
        }
    }

    fn endpoint_of(&mut self, target: Target) -> Option<&mut EndpointState> {
        match target {
            Target::Endpoint(endpoint) => self.endpoints.get_mut(endpoint),
            _ => None,
        }
    }

    /// Nobody will connect at an endpoint: tasks for it need not wait.
    pub(super) fn abandon_waiting(&mut self, endpoint: Endpoint, out: &mut Vec<Action<J>>) {
        let Some(state) = self.endpoints.get_mut(endpoint) else {
            return;
        };
        for id in std::mem::take(&mut state.needing) {
            self.finish(id, Verdict::Reset, false, out);
        }
    }

    /// A task that waited for others is over. If a process was started for it alone, that is of no use any more.
    pub(super) fn dismiss(&self, target: Target, out: &mut Vec<Action<J>>) {
        let Target::Endpoint(endpoint) = target else {
            return;
        };
        let first = self.endpoints.get(endpoint).and_then(|e| e.first);
        let there = first.and_then(|id| Some((id, self.peers.get(&id)?)));
        if let Some((peer, _)) = there.filter(|(_, peer)| !peer.leaving && peer.flights.is_empty())
        {
            out.push(Action::Dismiss { peer });
        }
    }
}
