//! What the daemon's main thread and its watcher agree on: which task runs, and
//! whether it may be interrupted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashSet;

use super::{AutoExit, Runtime};
use crate::protocol::Seq;
use crate::sys::locks::{Condvar, Mutex};

/// Pauses before an interrupt is repeated: the first, and the longest.
const REPEAT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What to do with a task that has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    Evaluate,
    /// It was cancelled: answer that it was skipped.
    Skip,
    /// The host has taken it back, perhaps for another daemon: say nothing of it.
    Returned,
    /// The host is gone, and nobody would receive its value.
    Gone,
}

pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    autoexit: AutoExit,
    runtime: Arc<dyn Runtime>,
}

#[derive(Default)]
struct State {
    /// The task under evaluation.
    running: Option<Seq>,
    /// The last task begun. Later ones have not arrived yet, or are unread.
    last: Seq,
    /// Tasks cancelled before they began.
    skip: FxHashSet<Seq>,
    /// First and last of tasks that were given back before they began.
    returned: VecDeque<(Seq, Seq)>,
    /// An interrupt was raised for the running task.
    interrupted: bool,
    /// The host has told us to leave for good.
    end: bool,
    /// The control channel has ended.
    gone: bool,
    /// The main thread has given up this link.
    released: bool,
}

impl Gate {
    pub(super) fn new(autoexit: AutoExit, runtime: Arc<dyn Runtime>) -> Gate {
        Gate {
            state: Mutex::default(),
            changed: Condvar::new(),
            autoexit,
            runtime,
        }
    }

    /// Main thread: a task has been read.
    pub(super) fn begin(&self, seq: Seq) -> Begin {
        let mut state = self.state.lock();
        state.last = seq;
        // An interrupt that is still pending was meant for the task before, or for none.
        self.runtime.forget_interrupt();
        state.running = None;
        state.interrupted = false;
        if state.gone {
            return Begin::Gone;
        }
        let skip = !state.skip.is_empty() && state.skip.remove(&seq);
        while state.returned.front().is_some_and(|(_, last)| *last < seq) {
            state.returned.pop_front();
        }
        if state
            .returned
            .front()
            .is_some_and(|(first, _)| *first <= seq)
        {
            return Begin::Returned;
        }
        if skip {
            return Begin::Skip;
        }
        state.running = Some(seq);
        Begin::Evaluate
    }

    /// This daemon has given up its host: nothing begins any more. Returns the last task that was begun, or
    /// passed over.
    pub(super) fn stop(&self) -> Seq {
        let mut state = self.state.lock();
        state.gone = true;
        state.last
    }

    /// The last task that was begun, or passed over.
    pub(super) fn last(&self) -> Seq {
        self.state.lock().last
    }

    /// Watcher: the host wants those of these tasks back that have not begun. Returns the
    /// first that it gets.
    pub(super) fn give_back(&self, from: Seq, to: Seq) -> Seq {
        let mut state = self.state.lock();
        let first = from.max(state.last + 1);
        if first <= to {
            state.returned.push_back((first, to));
        }
        first
    }

    /// Main thread: the evaluation is over. True if it had been interrupted.
    pub(super) fn finish(&self) -> bool {
        let mut state = self.state.lock();
        state.running = None;
        let interrupted = std::mem::take(&mut state.interrupted);
        if interrupted {
            self.changed.notify_all();
        }
        interrupted
    }

    /// Watcher: the host does not want this task any more. If that has interrupted it, somebody has to
    /// [`insist`](Self::insist): then this returns true.
    pub(super) fn cancel(&self, seq: Seq) -> bool {
        let mut state = self.state.lock();
        let runs = state.running == Some(seq);
        if runs {
            self.interrupt(&mut state);
        } else if seq > state.last {
            state.skip.insert(seq);
        }
        // Otherwise the task is over: its reply was on its way when the host sent this.
        let read = seq <= state.last;
        drop(state);
        if read {
            self.runtime.cancelled(seq);
        }
        runs
    }

    /// A thread of its own: repeats the interrupt of this task until the runtime has acted on it, or the task is over.
    pub(super) fn insist(&self, seq: Seq) {
        let (mut pause, longest) = REPEAT;
        let mut state = self.state.lock();
        loop {
            let runs = |s: &mut State| s.running == Some(seq) && s.interrupted;
            let waited = self.changed.wait_while_for(&mut state, runs, pause);
            if !waited.timed_out() || !self.runtime.interrupt_is_pending() {
                return;
            }
            // Under the lock, as the first.
            self.runtime.interrupt();
            pause = longest.min(pause * 2);
        }
    }

    fn interrupt(&self, state: &mut State) {
        state.interrupted = true;
        // Under the lock: `finish` cannot return before the signal is on its way.
        self.runtime.interrupt();
    }

    /// Watcher: the host wants this daemon to end.
    pub(super) fn end(&self) {
        self.state.lock().end = true;
    }

    /// Watcher: the host is gone. Does what `autoexit` says, and if that is to
    /// leave, sees to it that the process does.
    pub(super) fn hang_up(&self, grace: Duration) {
        let mut state = self.state.lock();
        state.gone = true;
        self.changed.notify_all();
        if state.released {
            return;
        }
        match self.autoexit {
            _ if state.end => {}
            AutoExit::Now => {}
            AutoExit::AfterTask | AutoExit::Never => return,
            AutoExit::Signal(signal) => return self.runtime.raise(signal),
        }
        if state.running.is_some() {
            self.interrupt(&mut state);
        }
        let released = |s: &mut State| !s.released;
        let waited = self.changed.wait_while_for(&mut state, released, grace);
        if waited.timed_out() {
            drop(state);
            self.runtime.exit();
        }
    }

    /// Main thread: the data channel has ended. Waits for the watcher to hear the
    /// last of the control channel; true if that was "end".
    pub(super) fn wait_until_gone(&self, most: Duration) -> bool {
        let mut state = self.state.lock();
        let staying = |s: &mut State| !s.gone;
        self.changed.wait_while_for(&mut state, staying, most);
        state.end
    }

    /// Main thread: done with this link.
    pub(super) fn release(&self) {
        self.state.lock().released = true;
        self.changed.notify_all();
    }
}

/// The gate as loom explores it, with every order in which main thread and watcher can meet: `tools/sanitize loom`.
#[cfg(all(test, mirai_loom))]
mod model {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use loom::thread;

    use super::*;

    #[derive(Default)]
    struct Counts {
        interrupts: AtomicUsize,
        exits: AtomicUsize,
    }

    impl Runtime for Counts {
        fn interrupt(&self) {
            self.interrupts.fetch_add(1, SeqCst);
        }
        fn forget_interrupt(&self) {}
        fn exit(&self) {
            self.exits.fetch_add(1, SeqCst);
        }
        fn raise(&self, _: i32) {}
    }

    fn gate() -> (Arc<Counts>, loom::sync::Arc<Gate>) {
        let counts = Arc::new(Counts::default());
        let gate = Gate::new(AutoExit::Now, counts.clone());
        (counts, loom::sync::Arc::new(gate))
    }

    #[test]
    fn an_interrupt_is_known_to_the_task_that_it_hits_and_hits_no_other() {
        loom::model(|| {
            let (counts, gate) = gate();
            let watcher = {
                let gate = gate.clone();
                thread::spawn(move || gate.cancel(1))
            };
            let first = gate.begin(1);
            let hit = gate.finish();
            assert_eq!(gate.begin(2), Begin::Evaluate);
            assert!(!gate.finish(), "the second task was not meant");
            watcher.join().unwrap();
            assert!(first == Begin::Evaluate || first == Begin::Skip && !hit);
            assert_eq!(counts.interrupts.load(SeqCst), usize::from(hit));
        });
    }

    #[test]
    fn who_insists_hears_of_the_end_of_the_task() {
        loom::model(|| {
            let (counts, gate) = gate();
            assert_eq!(gate.begin(1), Begin::Evaluate);
            let watcher = {
                let gate = gate.clone();
                thread::spawn(move || {
                    if gate.cancel(1) {
                        gate.insist(1);
                    }
                })
            };
            gate.finish();
            assert_eq!(gate.begin(2), Begin::Evaluate);
            watcher.join().unwrap();
            assert!(!gate.finish(), "the second task was not meant");
            assert!(counts.interrupts.load(SeqCst) <= 1);
        });
    }

    #[test]
    fn a_task_is_either_begun_or_given_back() {
        loom::model(|| {
            let (_, gate) = gate();
            let watcher = {
                let gate = gate.clone();
                thread::spawn(move || gate.give_back(1, 2))
            };
            let begun = [1, 2].map(|seq| {
                let begun = gate.begin(seq) == Begin::Evaluate;
                gate.finish();
                begun
            });
            let first = watcher.join().unwrap();
            assert_eq!(begun, [first > 1, first > 2]);
        });
    }

    #[test]
    fn a_daemon_that_lets_its_link_go_is_not_ended() {
        loom::model(|| {
            let (counts, gate) = gate();
            let watcher = {
                let gate = gate.clone();
                thread::spawn(move || {
                    gate.end();
                    gate.hang_up(Duration::ZERO);
                })
            };
            assert!(gate.wait_until_gone(Duration::ZERO), "it was told to end");
            gate.release();
            watcher.join().unwrap();
            assert_eq!(counts.exits.load(SeqCst), 0);
        });
    }
}

#[cfg(all(test, not(mirai_loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[derive(Default)]
    struct Recorder {
        interrupts: AtomicUsize,
        /// So many interrupts are not heard.
        deaf_to: usize,
        exits: AtomicUsize,
        raised: AtomicUsize,
        forgotten: AtomicUsize,
    }

    impl Runtime for Recorder {
        fn interrupt(&self) {
            self.interrupts.fetch_add(1, SeqCst);
        }
        fn interrupt_is_pending(&self) -> bool {
            self.interrupts.load(SeqCst) <= self.deaf_to
        }
        fn forget_interrupt(&self) {
            self.forgotten.fetch_add(1, SeqCst);
        }
        fn exit(&self) {
            self.exits.fetch_add(1, SeqCst);
        }
        fn raise(&self, signal: i32) {
            self.raised.fetch_add(signal as usize, SeqCst);
        }
    }

    fn gate(autoexit: AutoExit) -> (Arc<Recorder>, Gate) {
        let recorder = Arc::new(Recorder::default());
        let gate = Gate::new(autoexit, recorder.clone());
        (recorder, gate)
    }

    #[test]
    fn an_interrupt_hits_the_named_task_only() {
        let (recorder, gate) = gate(AutoExit::Now);
        assert_eq!(gate.begin(1), Begin::Evaluate);
        gate.cancel(1);
        // What came before the task was not for it; what has come since is.
        assert_eq!(recorder.forgotten.load(SeqCst), 1);
        assert_eq!(recorder.interrupts.load(SeqCst), 1);
        assert!(gate.finish());
        // The task has been answered already.
        gate.cancel(1);
        assert_eq!(gate.begin(2), Begin::Evaluate);
        gate.cancel(1);
        assert_eq!(recorder.interrupts.load(SeqCst), 1);
        assert!(!gate.finish());
    }

    #[test]
    fn an_interrupt_is_repeated_until_it_is_heard() {
        let recorder = Arc::new(Recorder {
            deaf_to: 2,
            ..Recorder::default()
        });
        let gate = Gate::new(AutoExit::Now, recorder.clone());
        gate.begin(1);
        assert!(gate.cancel(1));
        gate.insist(1);
        assert_eq!(recorder.interrupts.load(SeqCst), 3);
    }

    #[test]
    fn an_interrupt_is_not_repeated_once_its_task_is_over() {
        let recorder = Arc::new(Recorder {
            deaf_to: usize::MAX,
            ..Recorder::default()
        });
        let gate = Gate::new(AutoExit::Now, recorder.clone());
        gate.begin(1);
        assert!(gate.cancel(1));
        std::thread::scope(|scope| {
            let insists = scope.spawn(|| gate.insist(1));
            while recorder.interrupts.load(SeqCst) < 2 {
                std::thread::yield_now();
            }
            assert!(gate.finish());
            insists.join().unwrap();
        });
        let so_many = recorder.interrupts.load(SeqCst);
        gate.begin(2);
        gate.insist(1);
        assert_eq!(recorder.interrupts.load(SeqCst), so_many);
        assert!(!gate.cancel(1), "it does not run");
    }

    #[test]
    fn a_task_cancelled_before_it_began_is_skipped() {
        let (recorder, gate) = gate(AutoExit::Now);
        gate.cancel(2);
        assert_eq!(gate.begin(1), Begin::Evaluate);
        gate.finish();
        assert_eq!(gate.begin(2), Begin::Skip);
        assert_eq!(gate.begin(3), Begin::Evaluate);
        assert_eq!(recorder.interrupts.load(SeqCst), 0);
    }

    #[test]
    fn what_has_not_begun_is_given_back_and_what_has_is_not() {
        let (_, gate) = gate(AutoExit::Now);
        assert_eq!(gate.begin(1), Begin::Evaluate);
        gate.cancel(4);
        // The first is running, and the third may not have arrived.
        assert_eq!(gate.give_back(1, 3), 2);
        assert_eq!(gate.begin(2), Begin::Returned);
        assert_eq!(gate.give_back(3, 3), 3);
        assert_eq!(gate.begin(3), Begin::Returned);
        assert_eq!(gate.begin(4), Begin::Skip);
        assert_eq!(gate.begin(5), Begin::Evaluate);
        assert_eq!(gate.give_back(4, 5), 6, "nothing is left");
        assert_eq!(gate.begin(6), Begin::Evaluate);
        gate.cancel(8);
        assert_eq!(gate.give_back(7, 9), 7);
        assert_eq!(gate.begin(8), Begin::Returned);
        assert_eq!(gate.begin(10), Begin::Evaluate);
    }

    #[test]
    fn nothing_begins_for_a_host_that_is_gone() {
        let (_, gate) = gate(AutoExit::AfterTask);
        gate.hang_up(Duration::from_millis(1));
        assert_eq!(gate.begin(1), Begin::Gone);
    }

    #[test]
    fn a_host_that_goes_takes_its_daemon_along_unless_told_otherwise() {
        let brief = Duration::from_millis(1);
        let (recorder, now) = gate(AutoExit::Now);
        now.begin(1);
        now.hang_up(brief);
        assert_eq!(recorder.interrupts.load(SeqCst), 1);
        assert_eq!(recorder.exits.load(SeqCst), 1);

        let (recorder, released) = gate(AutoExit::Now);
        released.release();
        released.hang_up(brief);
        assert_eq!(recorder.exits.load(SeqCst), 0);

        for stay in [AutoExit::AfterTask, AutoExit::Never] {
            let (recorder, gate) = gate(stay);
            gate.begin(1);
            gate.hang_up(brief);
            assert_eq!(recorder.interrupts.load(SeqCst), 0);
            assert_eq!(recorder.exits.load(SeqCst), 0);
        }

        let (recorder, ended) = gate(AutoExit::Never);
        ended.end();
        ended.hang_up(brief);
        assert_eq!(recorder.exits.load(SeqCst), 1);
        assert!(ended.wait_until_gone(brief));

        let (recorder, raising) = gate(AutoExit::Signal(15));
        raising.hang_up(brief);
        assert_eq!(recorder.raised.load(SeqCst), 15);
    }
}
