//! Waiting on the host's main thread.
//!
//! Mostly there is one [`Bell`] a process, because only the main thread waits. Whatever
//! it may wait for (results, daemons connecting, room in the queue) rings the
//! bell when it happens; the waiter then looks again at its own condition. The
//! bell makes no system call unless somebody is waiting.
//!
//! While the main thread waits, it reads what comes from the daemons of this machine itself, where the system allows it
//! (`unix/readers.rs`): an answer then wakes no thread but the one that wants it, or none if that one has not gone to
//! sleep yet.
//!
//! While the main thread waits, its runtime may want to be called (R: time limits, input
//! handlers). An [`Attention`] says when; the wait then ends as interrupted, and the caller
//! waits again after it has served its runtime.

use std::sync::OnceLock;
#[cfg(not(all(test, mirai_loom)))]
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::sys::attention::{Attention, Polled};

#[cfg(all(test, mirai_loom))]
use self::model::{AtomicU8, Token, lead, leads, spin};
#[cfg(not(all(test, mirai_loom)))]
use super::platform::{Token, lead, leads};
use super::spin::MOMENT;
#[cfg(not(all(test, mirai_loom)))]
use super::spin::spin;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// What was waited for is there.
    Ready,
    /// The time is over.
    TimedOut,
    /// The caller's [`Attention`] has ended it.
    Interrupted,
}

/// No thread is in [`Bell::wait`], or [`Bell::ring`] was called and the waiting thread has not asked `ready` since.
const AWAY: u8 = 0;
/// The waiting thread asks `ready` or spins. It sees [`AWAY`] without a token.
const LOOKS: u8 = 1;
/// The waiting thread sleeps until there is a [`Token`].
const SLEEPS: u8 = 2;

/// Wakes the main thread. See the [module documentation](self).
pub struct Bell {
    token: Token,
    /// What its waiter does: [`AWAY`], [`LOOKS`] or [`SLEEPS`].
    waiter: AtomicU8,
    /// Whether its waiter reads in the I/O thread's place.
    leads: bool,
}

impl Bell {
    /// The process's bell.
    pub fn get() -> &'static Bell {
        static BELL: OnceLock<Bell> = OnceLock::new();
        BELL.get_or_init(|| Bell {
            leads: true,
            ..Bell::new()
        })
    }

    /// One for a wait of its own.
    pub(crate) fn new() -> Bell {
        Bell {
            token: Token::new(),
            waiter: AtomicU8::new(AWAY),
            leads: false,
        }
    }

    /// Something has happened. From any thread.
    pub fn ring(&self) {
        // Pairs with the swap in `wait`: either this sees that somebody waits, or
        // they see what was done before ringing.
        if self.waiter.swap(AWAY, Ordering::SeqCst) != SLEEPS {
            return;
        }
        // A waiter that rings for itself looks again when it has read.
        if !(self.leads && leads()) {
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
        ready: impl FnMut() -> bool,
    ) -> Waited {
        self.wait_for_many(timeout, attention, ready, || true)
    }

    /// As [`wait`](Self::wait), for what comes in many parts. Unless `is_near` says that few are missing, daemons of this
    /// machine may gather some results before they wake this thread.
    pub(crate) fn wait_for_many(
        &self,
        timeout: Option<Duration>,
        attention: impl Attention,
        mut ready: impl FnMut() -> bool,
        is_near: impl Fn() -> bool,
    ) -> Waited {
        let end = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut leading = None;
        // A ring that was seen while looking has not asked `attention`. So the next look is after a sleep, however
        // often the bell is rung.
        let mut may_look = true;
        let waited = loop {
            self.waiter.swap(LOOKS, Ordering::SeqCst);
            if ready() {
                break Waited::Ready;
            }
            if self.leads && leading.is_none() {
                leading = Some(lead());
            }
            let rung = || {
                if let Some(lead) = &leading {
                    lead.look();
                }
                self.waiter.load(Ordering::SeqCst) == AWAY
            };
            let left = || end.map(|end| end.saturating_duration_since(Instant::now()));
            if may_look && left().is_none_or(|left| left > MOMENT) && spin(rung) {
                may_look = false;
                continue;
            }
            let sleeps =
                self.waiter
                    .compare_exchange(LOOKS, SLEEPS, Ordering::SeqCst, Ordering::SeqCst);
            if sleeps.is_err() {
                // Rung for meanwhile, without a token. With one, the wait below ends at once, and asks `attention`.
                self.token.put();
            } else if leading.as_ref().is_some_and(|lead| lead.sleeps(is_near())) {
                // What was read may be what is waited for. As above.
                self.token.put();
            }
            may_look = true;
            let left = left();
            match self.token.wait(left, &attention, leading.as_ref()) {
                // The token may be one that was put after the last wait had ended, of which `waiter`
                // tells nothing. `ready` is asked again after this.
                Polled::Readable => {}
                Polled::TimedOut => break Waited::TimedOut,
                Polled::Interrupted => break Waited::Interrupted,
            }
        };
        // Nobody waits any more. A ring that came meanwhile is taken back if its token is there
        // already; if not, the next wait wakes once for nothing.
        if self.waiter.swap(AWAY, Ordering::SeqCst) == AWAY {
            self.token.take();
        }
        waited
    }
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

    use loom::sync::atomic::AtomicBool as Flag;
    pub(super) use loom::sync::atomic::AtomicU8;
    use loom::sync::{Condvar, Mutex};

    use crate::sys::attention::{Attention, Polled};

    /// There is nothing to read.
    pub(super) struct Lead;

    impl Lead {
        pub(super) fn look(&self) {}

        pub(super) fn sleeps(&self, _: bool) -> bool {
            false
        }
    }

    pub(super) fn lead() -> Lead {
        Lead
    }

    pub(super) fn spin(mut look: impl FnMut() -> bool) -> bool {
        look()
    }

    pub(super) fn leads() -> bool {
        false
    }

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
        pub(super) fn wait(
            &self,
            timeout: Option<Duration>,
            attention: &impl Attention,
            _: Option<&Lead>,
        ) -> Polled {
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
            *there = false;
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

#[cfg(all(test, unix, not(mirai_loom)))]
mod attention_tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::{AsRawFd, RawFd};
    use std::os::unix::net::UnixStream;

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
}

#[cfg(all(test, not(mirai_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_bell_that_rings_without_end_does_not_keep_an_interrupt_from_ending_the_wait() {
        let bell = Bell::new();
        let mut looked = 0;
        let waited = bell.wait(
            None,
            || true,
            || {
                looked += 1;
                // As from another thread, between the look and the sleep.
                bell.ring();
                looked > 1000
            },
        );
        assert_eq!(waited, Waited::Interrupted);
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
}
