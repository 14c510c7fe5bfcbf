//! Tasks that wait for others before they join a queue.

use super::{Action, Dispatcher, Endpoint, Entry, Policy, Target, TaskId, Verdict};

/// What the log says of a task that is [broken](Verdict::Broken).
pub(super) const BROKEN: &str = "an argument could not be computed";

impl<J: Clone> Dispatcher<J> {
    /// What a task has waited for is there; its payload has this size now.
    pub(super) fn ready(&mut self, id: TaskId, bytes: u64, out: &mut Vec<Action<J>>) {
        let Some(entry) = self.tasks.get_mut(id).filter(|entry| entry.waits) else {
            return;
        };
        entry.waits = false;
        let before = std::mem::replace(&mut entry.bytes, bytes);
        self.counts.queued = self.counts.queued - before + bytes;
        let target = entry.target;
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
        self.waiting_at(endpoint).next().is_some()
    }

    fn waiting_at(&self, endpoint: Endpoint) -> impl Iterator<Item = TaskId> + '_ {
        let there = Target::Endpoint(endpoint);
        let waiting = move |entry: &Entry<J>| entry.waits && entry.target == there;
        let all = self.tasks.iter();
        all.filter(move |(_, entry)| waiting(entry))
            .map(|(id, _)| id)
    }

    /// Nobody will connect at an endpoint: tasks for it need not wait.
    pub(super) fn abandon_waiting(&mut self, endpoint: Endpoint, out: &mut Vec<Action<J>>) {
        for id in self.waiting_at(endpoint).collect::<Vec<_>>() {
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
