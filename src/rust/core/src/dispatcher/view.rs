//! What a monitor shows of the dispatcher: a bounded number of rows, and how many more there are.

use std::time::Duration;

use super::{Counts, Dispatcher, Label, PeerId, PeerRow, Tally, TaskId, TaskRow, Time};

/// Limit of the running tasks, of the connected daemons and of the last tasks in a [`View`].
pub const SHOWN: usize = 200;

/// Limit of the failures and of the daemons that are gone in a [`View`].
pub const SHOWN_LATELY: usize = 20;

/// A task that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Number of the task.
    pub id: TaskId,
    /// What people call it.
    pub label: Label,
    /// Number of the connection.
    pub peer: PeerId,
    /// When it was sent to the daemon.
    pub started: Time,
}

/// The dispatcher at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Numbers of tasks and connections.
    pub counts: Counts,
    /// Numbers of tasks that have ended.
    pub tally: Tally,
    /// Tasks that run. The other `counts.executing` wait on a daemon.
    pub running: usize,
    /// Of these, those that have run longest, the oldest first.
    pub tasks: Vec<Running>,
    /// Daemons that are connected, in the order in which they connected.
    pub peers: Vec<PeerRow>,
    /// Daemons that are gone, the last first.
    pub gone: Vec<PeerRow>,
    /// Tasks that have failed, timed out or been lost, the last first.
    pub failures: Vec<TaskRow>,
    /// Tasks that have ended, the last first.
    pub ended: Vec<TaskRow>,
    /// How many have ended within the last second, and within the last ten.
    pub ended_within: [f64; 2],
}

impl<J: Clone> Dispatcher<J> {
    /// What there is to be seen at `now`. It looks at each connected daemon and each running task, at few of the queue
    /// and of the log.
    pub fn view(&self, now: Time) -> View {
        let mut running: Vec<(Time, TaskId, PeerId)> = Vec::new();
        for (id, peer) in &self.peers {
            for flight in peer.flights.iter().take(peer.slots) {
                let task = flight
                    .id
                    .and_then(|task| Some((task, self.tasks.get(task)?)));
                let Some((task, entry)) = task else { continue };
                if let Some(since) = peer.running_since(flight.seq, entry.sent_at.get()) {
                    running.push((since, task, *id));
                }
            }
        }
        let mut peers: Vec<PeerId> = self.peers.keys().copied().collect();
        let counts = self.counts();
        let rows_of = |seconds| self.log.ended_within(Duration::from_secs(seconds), now);
        View {
            counts,
            tally: self.log.tally,
            running: running.len(),
            tasks: smallest(&mut running)
                .iter()
                .filter_map(|(started, id, peer)| {
                    Some(Running {
                        id: *id,
                        label: self.tasks.get(*id)?.label.clone(),
                        peer: *peer,
                        started: *started,
                    })
                })
                .collect(),
            peers: smallest(&mut peers)
                .iter()
                .map(|id| self.peers[id].row(*id))
                .collect(),
            gone: self.log.peers().rev().take(SHOWN_LATELY).cloned().collect(),
            failures: self.log.failures().take(SHOWN_LATELY).collect(),
            ended: self.log.tasks().rev().take(SHOWN).collect(),
            ended_within: [rows_of(1), rows_of(10)],
        }
    }
}

/// The [`SHOWN`] smallest, in order.
fn smallest<T: Ord>(all: &mut [T]) -> &[T] {
    let n = all.len().min(SHOWN);
    if all.len() > n {
        all.select_nth_unstable(n);
    }
    all[..n].sort_unstable();
    &all[..n]
}

#[cfg(test)]
mod tests {
    use super::super::{Action, Config, Event, Replies, Reply, TaskState};
    use super::*;
    use crate::protocol::Done;

    #[test]
    fn a_view_is_bounded_and_tells_what_there_is() {
        let mut dispatcher = Dispatcher::<u64>::new(Config::default());
        let endpoint = dispatcher.add_endpoint();
        let mut out = Vec::new();
        let at = Duration::from_secs;
        let joined = |peer| Event::Joined {
            peer,
            endpoint,
            slots: 1,
            replies: Replies::Sure,
        };
        let n = SHOWN as u64 + 50;
        for peer in 1..=n as u32 {
            dispatcher.handle(at(1), joined(peer), &mut out);
        }
        for id in 1..=n + 7 {
            let submit = Event::Submit {
                waits: false,
                id,
                job: id,
                bytes: 1,
                deadline: None,
                rules: None,
                target: super::super::Target::Any,
                label: Label {
                    number: id as u32,
                    name: None,
                },
            };
            dispatcher.handle(at(1 + id), submit, &mut out);
        }
        let view = dispatcher.view(at(2 * n));
        assert_eq!((view.running, view.tasks.len()), (n as usize, SHOWN));
        assert_eq!((view.counts.awaiting, view.peers.len()), (7, SHOWN));
        // The oldest of them, in order.
        assert!(view.tasks.iter().map(|task| task.id).eq(1..=SHOWN as u64));
        assert_eq!(view.tasks[0].started, at(2));
        assert!(view.peers.iter().map(|p| p.peer).eq(1..=SHOWN as u32));
        assert_eq!(view.ended_within, [0.0, 0.0]);

        // The first task fails, and the daemon of the second is lost.
        let (first, second) = (view.tasks[0].peer, view.tasks[1].peer);
        let seq = out.iter().find_map(|action| match action {
            Action::Send { peer, seq, .. } if *peer == first => Some(*seq),
            _ => None,
        });
        let reply = Reply {
            outcome: Done::Error,
            bytes: 1,
            error: Some("no".into()),
        };
        let replied = Event::Replied {
            peer: first,
            seq: seq.unwrap(),
            spent: at(1),
            reply,
        };
        dispatcher.handle(at(2 * n + 1), replied, &mut out);
        let lost = Event::Lost {
            peer: second,
            heard_out: true,
        };
        dispatcher.handle(at(2 * n + 5), lost, &mut out);
        let view = dispatcher.view(at(2 * n + 5));
        let failures: Vec<_> = view.failures.iter().map(|f| (f.id, f.state)).collect();
        assert_eq!(failures, [(2, TaskState::Lost), (1, TaskState::Failed)]);
        assert_eq!(view.failures[1].error.as_deref(), Some("no"));
        assert_eq!(view.ended, view.failures);
        assert_eq!(view.ended_within, [1.0, 2.0]);
        assert_eq!((view.gone.len(), view.gone[0].peer), (1, second));
        assert_eq!((view.tally.failed, view.tally.lost), (1, 1));
    }
}
