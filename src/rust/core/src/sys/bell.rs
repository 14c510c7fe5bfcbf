//! Waiting on the host's main thread.
//!
//! Mostly there is one [`Bell`] a process, because only the main thread waits. Whatever
//! it may wait for (results, daemons connecting, room in the queue) rings the
//! bell when it happens; the waiter then looks again at its own condition. The
//! bell makes no system call unless somebody is waiting.
//!
//! While the main thread waits, its runtime may want to be called (R: time limits, input
//! handlers). An [`Attention`] says when; the wait then ends as interrupted, and the caller
//! waits again after it has served its runtime. [`Group`] makes that cheap for many tasks.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::sys::signals::{Attention, Polled};
use crate::task::Task;

#[cfg(all(test, mirai_loom))]
use self::model::{Flag, Token};
#[cfg(not(all(test, mirai_loom)))]
use self::{AtomicBool as Flag, token::Token};

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// What was waited for is there.
    Ready,
    TimedOut,
    /// The caller's [`Attention`] has ended it.
    Interrupted,
}

/// Wakes the main thread. See the [module documentation](self).
pub struct Bell {
    token: Token,
    waiting: Flag,
}

impl Bell {
    /// The process's bell.
    pub fn get() -> &'static Bell {
        static BELL: OnceLock<Bell> = OnceLock::new();
        BELL.get_or_init(Bell::new)
    }

    /// One for a wait of its own.
    pub(crate) fn new() -> Bell {
        Bell {
            token: Token::new(),
            waiting: Flag::new(false),
        }
    }

    /// Something has happened. From any thread.
    pub fn ring(&self) {
        // Pairs with the swap in `wait`: either this sees that somebody waits, or
        // they see what was done before ringing.
        if self.waiting.swap(false, Ordering::SeqCst) {
            self.token.put();
        }
    }

    /// Waits until `ready`. Only one thread may wait.
    ///
    /// `attention` is asked before each wait and after each signal.
    pub fn wait(
        &self,
        timeout: Option<Duration>,
        attention: impl Attention,
        mut ready: impl FnMut() -> bool,
    ) -> Waited {
        let end = timeout.and_then(|t| Instant::now().checked_add(t));
        let waited = loop {
            self.waiting.swap(true, Ordering::SeqCst);
            if ready() {
                break Waited::Ready;
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            match self.token.wait(left, &attention) {
                // Always taken: it may be one that was put after the last wait had ended, of
                // which `waiting` tells nothing. `ready` is asked again after this.
                Polled::Readable => self.token.take(),
                Polled::TimedOut => break Waited::TimedOut,
                Polled::Interrupted => break Waited::Interrupted,
            }
        };
        // Nobody waits any more. A ring that came meanwhile is taken back if its token is there
        // already; if not, the next wait wakes once for nothing.
        if !self.waiting.swap(false, Ordering::SeqCst) {
            self.token.take();
        }
        waited
    }
}

#[cfg(not(all(test, mirai_loom)))]
mod token {
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::Duration;

    use crate::sys::signals::{Attention, Polled, poll_in};

    /// What lies in a descriptor while a ring has not been heard.
    pub(super) struct Token {
        /// Read end and write end (the same, for an eventfd).
        read: OwnedFd,
        write: OwnedFd,
    }

    impl Token {
        pub(super) fn new() -> Token {
            let (read, write) = wake_pair();
            Token { read, write }
        }

        pub(super) fn put(&self) {
            // One byte or eight: an eventfd wants eight, a pipe takes them.
            let _ = rustix::io::write(&self.write, &1u64.to_ne_bytes());
        }

        /// Takes away what is there.
        pub(super) fn take(&self) {
            let mut drain = [0u8; 64];
            let _ = rustix::io::read(&self.read, &mut drain);
        }

        /// Waits until there is one. A signal, too, counts as that.
        pub(super) fn wait(&self, timeout: Option<Duration>, attention: &impl Attention) -> Polled {
            poll_in(self.read.as_fd(), timeout, attention)
        }
    }

    #[cfg(target_os = "linux")]
    fn wake_pair() -> (OwnedFd, OwnedFd) {
        use rustix::event::{EventfdFlags, eventfd};
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd");
        let twin = rustix::io::fcntl_dupfd_cloexec(&fd, 0).expect("dup of eventfd");
        (fd, twin)
    }

    #[cfg(not(target_os = "linux"))]
    fn wake_pair() -> (OwnedFd, OwnedFd) {
        let (read, write) = rustix::pipe::pipe().expect("pipe");
        for fd in [&read, &write] {
            rustix::io::ioctl_fionbio(fd, true).expect("non-blocking pipe");
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).expect("close on exec");
        }
        (read, write)
    }
}

/// Counts tasks down: rings the bell when few enough are left, or one that ends the
/// wait has failed.
pub(crate) struct Countdown {
    left: AtomicUsize,
    /// The number left at which the wait ends. Only the waiting thread changes it.
    goal: AtomicUsize,
    until_failure: bool,
    failed: AtomicBool,
}

impl Countdown {
    pub(crate) fn tick(&self, failed: bool) {
        let failed = failed && self.until_failure;
        if failed {
            self.failed.store(true, Ordering::SeqCst);
        }
        let left = self.left.fetch_sub(1, Ordering::SeqCst) - 1;
        // If the waiting thread sets another goal meanwhile, it looks at `left` after that.
        if failed || left == self.goal.load(Ordering::SeqCst) {
            Bell::get().ring();
        }
    }

    fn is_over(&self) -> bool {
        self.left.load(Ordering::SeqCst) <= self.goal.load(Ordering::SeqCst)
            || self.failed.load(Ordering::SeqCst)
    }
}

/// Tasks that are waited for together, without a look at each of them in every wait. The main
/// thread is woken once for a wait, not for each task.
///
/// A task ticks for one group at a time: a group is of no use after another with some of the same
/// tasks has been made.
pub struct Group {
    countdown: Arc<Countdown>,
    size: usize,
}

impl Group {
    /// Of tasks of which none comes twice. With `until_failure`, one that fails ends every wait.
    pub fn new<'a>(tasks: impl Iterator<Item = &'a Task> + Clone, until_failure: bool) -> Group {
        let size = tasks.clone().count();
        let countdown = Arc::new(Countdown {
            left: AtomicUsize::new(size),
            goal: AtomicUsize::new(0),
            until_failure,
            failed: AtomicBool::new(false),
        });
        for task in tasks {
            if !task.watch(&countdown) {
                countdown.tick(task.has_failed());
            }
        }
        Group { countdown, size }
    }

    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.size
    }

    /// Whether one has failed that ends every wait.
    pub fn has_failed(&self) -> bool {
        self.countdown.failed.load(Ordering::SeqCst)
    }

    /// How many of them have resolved.
    pub fn resolved(&self) -> usize {
        self.size - self.countdown.left.load(Ordering::SeqCst)
    }

    /// Waits until `enough` of them have resolved.
    pub fn wait(
        &self,
        enough: usize,
        timeout: Option<Duration>,
        attention: impl Attention,
    ) -> Waited {
        let goal = self.size.saturating_sub(enough);
        self.countdown.goal.store(goal, Ordering::SeqCst);
        Bell::get().wait(timeout, attention, || self.countdown.is_over())
    }

    /// Nobody will wait for these tasks again. Without this, those that resolve later may wake
    /// another wait for nothing.
    pub fn give_up<'a>(self, tasks: impl Iterator<Item = &'a Task>) {
        for task in tasks {
            task.unwatch(&self.countdown);
        }
    }
}

/// How many tasks to wait for, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How many of them have to resolve, counting those that already have.
    pub enough: usize,
    /// Whether one that fails ends the wait, too.
    pub until_failure: bool,
    pub timeout: Option<Duration>,
}

impl Patience {
    /// Until so many have resolved.
    pub fn for_all(enough: usize) -> Patience {
        Patience {
            enough,
            until_failure: false,
            timeout: None,
        }
    }
}

/// Waits once for tasks of which none comes twice.
pub fn wait_for<'a>(
    tasks: impl Iterator<Item = &'a Task> + Clone,
    patience: Patience,
    attention: impl Attention,
) -> Waited {
    let resolved = tasks.clone().filter(|t| t.is_resolved()).count();
    if resolved >= patience.enough {
        return Waited::Ready;
    }
    let group = Group::new(tasks.clone(), patience.until_failure);
    let waited = group.wait(patience.enough, patience.timeout, attention);
    group.give_up(tasks);
    waited
}

/// The bell's token and flag as loom explores them, with every order in which threads can run:
///
/// ```sh
/// RUSTFLAGS="--cfg mirai_loom" CARGO_TARGET_DIR=target/loom cargo test -p mirai-core --lib sys::bell::model
/// ```
///
/// Only the tests in here can run in that build.
#[cfg(all(test, mirai_loom))]
mod model {
    use std::time::Duration;

    pub(super) use loom::sync::atomic::AtomicBool as Flag;
    use loom::sync::{Condvar, Mutex};

    use crate::sys::signals::{Attention, Polled};

    pub(super) struct Token {
        there: Mutex<bool>,
        put: Condvar,
    }

    impl Token {
        pub(super) fn new() -> Token {
            Token {
                there: Mutex::new(false),
                put: Condvar::new(),
            }
        }

        pub(super) fn put(&self) {
            *self.there.lock().unwrap() = true;
            self.put.notify_one();
        }

        pub(super) fn take(&self) {
            *self.there.lock().unwrap() = false;
        }

        /// There is no time here: a wait that may end by itself has ended.
        pub(super) fn wait(&self, timeout: Option<Duration>, attention: &impl Attention) -> Polled {
            if attention.is_interrupted() {
                return Polled::Interrupted;
            }
            let mut there = self.there.lock().unwrap();
            if !*there && timeout.is_some() {
                return Polled::TimedOut;
            }
            while !*there {
                there = self.put.wait(there).unwrap();
            }
            Polled::Readable
        }
    }

    mod tests {
        use std::sync::atomic::Ordering;

        use loom::sync::Arc;
        use loom::thread;

        use super::super::{Bell, Waited};
        use super::Flag;

        /// Waits until `done`. No more than one wake-up for nothing, besides that for `rings`.
        fn wait(bell: &Bell, done: &Flag, rings: usize) {
            let mut looked = 0;
            let waited = bell.wait(
                None,
                || false,
                || {
                    looked += 1;
                    assert!(looked <= 2 + rings, "the wait spins");
                    done.load(Ordering::Relaxed)
                },
            );
            assert_eq!(waited, Waited::Ready);
        }

        #[test]
        fn no_ring_is_lost_and_none_rings_for_ever() {
            loom::model(|| {
                let bell = Arc::new(Bell::new());
                let done = Arc::new([Flag::new(false), Flag::new(false)]);
                let ringer = {
                    let (bell, done) = (bell.clone(), done.clone());
                    thread::spawn(move || {
                        for done in done.iter() {
                            done.store(true, Ordering::Relaxed);
                            bell.ring();
                        }
                    })
                };
                wait(&bell, &done[0], 2);
                wait(&bell, &done[1], 2);
                ringer.join().unwrap();
            });
        }

        #[test]
        fn a_ring_after_the_end_of_a_wait_does_not_disturb_the_next() {
            // Three threads: all orders with up to three switches that no thread asks for.
            let mut model = loom::model::Builder::new();
            model.preemption_bound = Some(3);
            model.check(|| {
                let bell = Arc::new(Bell::new());
                let done = Arc::new([Flag::new(false), Flag::new(false)]);
                let ringers = [0, 1].map(|i| {
                    let (bell, done) = (bell.clone(), done.clone());
                    thread::spawn(move || {
                        done[i].store(true, Ordering::Relaxed);
                        bell.ring();
                    })
                });
                // Over at once, or by the first ring.
                bell.wait(None, || true, || done[0].load(Ordering::Relaxed));
                wait(&bell, &done[1], 2);
                ringers.map(|ringer| ringer.join().unwrap());
            });
        }
    }
}

#[cfg(all(test, not(mirai_loom)))]
mod tests {
    use super::*;
    use crate::task::Outcome;
    use std::io::Write;
    use std::os::fd::{AsRawFd, RawFd};
    use std::os::unix::net::UnixStream;

    fn tasks(n: u64) -> Vec<Arc<Task>> {
        (0..n).map(|id| Arc::new(Task::empty(id))).collect()
    }

    #[test]
    fn a_ring_that_comes_after_the_end_of_a_wait_wakes_the_next_once() {
        let bell = Bell::new();
        // As by a thread that has seen somebody wait, and writes only now.
        bell.token.put();
        let mut looked = 0;
        let waited = bell.wait(
            Some(Duration::from_millis(50)),
            || false,
            || {
                looked += 1;
                false
            },
        );
        assert_eq!(waited, Waited::TimedOut);
        // Before the poll, after the late token, and perhaps for a signal.
        assert!(looked <= 3, "woken {looked} times");
    }

    /// Ends a wait when this descriptor is readable, or this time has come.
    #[derive(Clone, Copy)]
    struct Until(RawFd, Option<Instant>);

    impl Attention for Until {
        fn is_interrupted(&self) -> bool {
            false
        }

        fn descriptors(&self, add: &mut dyn FnMut(RawFd)) {
            add(self.0);
        }

        fn until(&self) -> Option<Instant> {
            self.1
        }
    }

    #[test]
    fn a_wait_ends_for_what_else_there_is_to_do() {
        let bell = Bell::new();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(5));
        let idle = Until(ours.as_raw_fd(), None);
        let (short, long) = (Duration::from_millis(5), Duration::from_secs(60));
        assert_eq!(bell.wait(Some(short), idle, || false), Waited::TimedOut);
        let pause = Until(ours.as_raw_fd(), soon());
        let waited = bell.wait(Some(long), pause, || false);
        assert_eq!(waited, Waited::Interrupted);
        let far = Until(ours.as_raw_fd(), Some(Instant::now() + long));
        assert_eq!(bell.wait(Some(short), far, || false), Waited::TimedOut);
        theirs.write_all(b"x").unwrap();
        assert_eq!(bell.wait(None, idle, || false), Waited::Interrupted);
        // What is waited for comes first.
        let mut looks = 0..;
        let ready = || looks.next() > Some(0);
        bell.token.put();
        assert_eq!(bell.wait(None, idle, ready), Waited::Ready);
    }

    // One test, because the bell is the process's and waits on one thread.
    #[test]
    fn the_main_thread_waits_for_what_happens_elsewhere() {
        let never = || false;
        let all = tasks(100);
        let theirs = all.clone();
        let other = std::thread::spawn(move || {
            for task in &theirs {
                task.resolve(Outcome::Value(vec![1].into()));
            }
        });
        let end = wait_for(all.iter().map(Arc::as_ref), Patience::for_all(100), never);
        assert_eq!(end, Waited::Ready);
        assert!(all.iter().all(|t| t.is_resolved()));
        other.join().unwrap();

        let some = tasks(3);
        some[1].resolve(Outcome::Canceled);
        let any = wait_for(some.iter().map(Arc::as_ref), Patience::for_all(1), never);
        assert_eq!(any, Waited::Ready);

        let hasty = Patience {
            timeout: Some(Duration::from_millis(5)),
            ..Patience::for_all(3)
        };
        let late = wait_for(some.iter().map(Arc::as_ref), hasty, never);
        assert_eq!(late, Waited::TimedOut);
        let stopped = wait_for(some.iter().map(Arc::as_ref), Patience::for_all(3), || true);
        assert_eq!(stopped, Waited::Interrupted);

        let failure = Patience {
            until_failure: true,
            ..Patience::for_all(3)
        };
        let failed = wait_for(some.iter().map(Arc::as_ref), failure, never);
        assert_eq!(failed, Waited::Ready);

        // A wait given up leaves nothing behind that could wake or confuse the next.
        let two = [some[0].clone(), some[2].clone()];
        let other = std::thread::spawn(move || two.map(|t| t.resolve(Outcome::TimedOut)));
        let end = wait_for(some.iter().map(Arc::as_ref), Patience::for_all(3), never);
        assert_eq!(end, Waited::Ready);
        other.join().unwrap();
    }

    #[test]
    fn a_group_is_waited_for_in_steps() {
        let all = tasks(10);
        let group = Group::new(all.iter().map(Arc::as_ref), true);
        let never = || false;
        assert_eq!(group.resolved(), 0);
        for step in 1..=4 {
            let theirs = all.clone();
            let other = std::thread::spawn(move || {
                for task in &theirs[2 * step - 2..2 * step] {
                    task.resolve(Outcome::Value(vec![].into()));
                }
            });
            assert_eq!(group.wait(2 * step, None, never), Waited::Ready);
            assert_eq!(group.resolved(), 2 * step);
            other.join().unwrap();
        }
        let short = Some(Duration::from_millis(5));
        assert_eq!(group.wait(9, short, never), Waited::TimedOut);
        assert_eq!(group.wait(8, None, never), Waited::Ready);
        all[9].resolve(Outcome::Canceled);
        assert_eq!(group.wait(10, None, never), Waited::Ready);
        assert_eq!(group.resolved(), 9);
        // Those that have resolved before are counted, and more may resolve than are waited for.
        let group = Group::new(all.iter().map(Arc::as_ref), false);
        all[8].resolve(Outcome::Value(vec![].into()));
        assert_eq!(group.wait(3, None, never), Waited::Ready);
        assert_eq!(group.resolved(), 10);
    }
}
