//! Carries out what the dispatcher decides.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Connected, Shared, monitor, needs};
use crate::dispatcher::{Action, Dispatcher, Event, Time, Verdict};
use crate::loss::Loss;
use crate::protocol::{Control, Frame, Seq, ToDaemon};
use crate::sys::Bell;
use crate::task::{Constants, Outcome, Payload, Task};
use crate::transport::Link;

impl Shared {
    /// Lets the dispatcher decide about an event and carries out what it says.
    /// `reply` is the value that came with [`Event::Replied`], or what a task resolves to by [`Event::Broken`].
    pub(super) fn handle(self: &Arc<Self>, event: Event<Arc<Task>>, reply: Option<Outcome>) {
        self.act(reply, None, |dispatcher, now, out| {
            dispatcher.handle(now, event, out);
        });
    }

    /// As [`handle`](Self::handle), for several events at once. `loss`: the daemon that is lost by them.
    pub(super) fn act(
        self: &Arc<Self>,
        mut reply: Option<Outcome>,
        loss: Option<Arc<Loss>>,
        decide: impl FnOnce(&mut Dispatcher<Arc<Task>>, Time, &mut Vec<Action<Arc<Task>>>),
    ) {
        let now = self.origin.elapsed();
        let closed = self.is_closed();
        let mut flush = SmallVec::<[Arc<dyn Link>; 2]>::new();
        let mut over = SmallVec::<[Arc<Task>; 2]>::new();
        let mut room = false;
        let (before, after, unserved);
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            before = state.dispatcher.next_deadline();
            decide(&mut state.dispatcher, now, &mut state.actions);
            for action in state.actions.drain(..) {
                let (peer, send): (_, Posting) = match action {
                    Action::Send {
                        peer,
                        seq,
                        job,
                        granted,
                    } => {
                        let Some(payload) = job.payload() else {
                            continue;
                        };
                        if let (Some(constants), Some(connected)) =
                            (&payload.constants, state.links.get_mut(&peer))
                        {
                            connected.send_once(constants);
                        }
                        (
                            peer,
                            Posting::Task(task_frame(seq, granted, job.number(), payload)),
                        )
                    }
                    Action::Cancel { peer, seq } => {
                        (peer, Posting::Control(Control::Cancel { seq }))
                    }
                    Action::Grant { peer, to } => (peer, Posting::Control(Control::Grant { to })),
                    Action::Recall { peer, from, to } => {
                        (peer, Posting::Control(Control::Recall { from, to }))
                    }
                    Action::Dismiss { peer } => {
                        if let Some(Connected { link, .. }) = state.links.get(&peer) {
                            link.close();
                        }
                        continue;
                    }
                    Action::Again { job } => {
                        job.forget_reports();
                        continue;
                    }
                    Action::Resolve { job, verdict } => {
                        if verdict == Verdict::Reset {
                            match &loss {
                                Some(loss) => job.lost_with(loss.clone()),
                                None if closed => job.closed_with_host(),
                                None => {}
                            }
                        }
                        // Here, so that a task which the dispatcher no longer
                        // knows has an outcome: see `cancel`.
                        if job.settle(outcome_of(verdict, &mut reply)) {
                            over.push(job);
                        }
                        continue;
                    }
                    Action::Room => {
                        room = true;
                        continue;
                    }
                };
                // A link may be gone whose end the dispatcher has yet to hear of.
                if let Some(Connected { link, .. }) = state.links.get(&peer) {
                    match send {
                        Posting::Task(frame) => link.post(frame),
                        Posting::Control(message) => link.control(message),
                    }
                    // Several frames for one daemon are one write.
                    if !flush.last().is_some_and(|last| Arc::ptr_eq(last, link)) {
                        flush.push(link.clone());
                    }
                }
            }
            after = state.dispatcher.next_deadline();
            unserved = state.dispatcher.unserved() > 0;
        }
        for link in flush {
            link.flush();
        }
        for task in over {
            task.announce();
        }
        if room {
            Bell::get().ring();
        }
        // A later deadline needs nobody woken: `keep_time` looks again at the earlier one.
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.timer.notify_one();
        }
        monitor::changed();
        if unserved {
            self.scale();
        }
        needs::cancel_unwanted();
    }
}

/// What an action has sent to a daemon.
enum Posting {
    Task(Frame),
    Control(Control),
}

fn outcome_of(verdict: Verdict, reply: &mut Option<Outcome>) -> Outcome {
    match verdict {
        // Without a value, the daemon has skipped it.
        Verdict::Replied => reply.take().unwrap_or(Outcome::Canceled),
        // It comes with the event.
        Verdict::Broken => reply.take().unwrap_or(Outcome::Reset),
        Verdict::TimedOut => Outcome::TimedOut,
        Verdict::Reset => Outcome::Reset,
        Verdict::Closed => Outcome::Closed,
        Verdict::Canceled => Outcome::Canceled,
    }
}

impl Connected {
    /// Sends constants to a daemon that does not have them yet.
    fn send_once(&mut self, constants: &Constants) {
        let id = constants.id;
        if self.holds.insert(id) {
            let body = constants.body();
            let message = ToDaemon::Constants {
                id,
                attached: body.attached(),
            };
            self.link.post(Frame::new(&message, body.clone()));
        }
    }
}

/// The frame that carries a task.
fn task_frame(seq: Seq, granted: Seq, number: u32, payload: Payload) -> Frame {
    let message = ToDaemon::Task {
        seq,
        kind: payload.kind,
        stream: payload.stream,
        constants: payload.constants.map(|c| c.id),
        granted,
        attached: payload.body.attached(),
        number,
    };
    Frame::new(&message, payload.body)
}
