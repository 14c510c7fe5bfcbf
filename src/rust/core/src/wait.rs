//! Waiting on the host's main thread.
//!
//! Mostly there is one [`Bell`] a process, because only the main thread waits. Whatever
//! it may wait for (results, daemons connecting, room in the queue) rings the
//! bell when it happens; the waiter then looks again at its own condition. The
//! bell makes no system call unless somebody is waiting.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::signals::{Polled, poll_in};
use crate::task::Task;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// What was waited for is there.
    Ready,
    TimedOut,
    /// The caller's `interrupted` said so.
    Interrupted,
}

/// Wakes the main thread. See the [module documentation](self).
pub struct Bell {
    /// Read end and write end (the same, for an eventfd).
    read: OwnedFd,
    write: OwnedFd,
    waiting: AtomicBool,
}

impl Bell {
    /// The process's bell.
    pub fn get() -> &'static Bell {
        static BELL: OnceLock<Bell> = OnceLock::new();
        BELL.get_or_init(Bell::new)
    }

    /// One for a wait of its own.
    pub(crate) fn new() -> Bell {
        let (read, write) = wake_pair();
        Bell {
            read,
            write,
            waiting: AtomicBool::new(false),
        }
    }

    /// Something has happened. From any thread.
    pub fn ring(&self) {
        // Pairs with the store in `wait`: either we see that somebody waits, or
        // they see what we did before ringing.
        if self.waiting.swap(false, Ordering::SeqCst) {
            // One byte or eight: an eventfd wants eight, a pipe takes them.
            let _ = rustix::io::write(&self.write, &1u64.to_ne_bytes());
        }
    }

    /// Waits until `ready`. Only one thread may wait.
    ///
    /// `interrupted` tells whether the user wants to stop waiting; it is asked
    /// before each wait and after each signal.
    pub fn wait(
        &self,
        timeout: Option<Duration>,
        interrupted: impl Fn() -> bool,
        mut ready: impl FnMut() -> bool,
    ) -> Waited {
        let end = timeout.and_then(|t| Instant::now().checked_add(t));
        loop {
            self.waiting.store(true, Ordering::SeqCst);
            if ready() {
                break;
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            match poll_in(self.read.as_fd(), left, &interrupted) {
                Polled::Readable => {}
                Polled::TimedOut => {
                    self.silence();
                    return Waited::TimedOut;
                }
                Polled::Interrupted => {
                    self.silence();
                    return Waited::Interrupted;
                }
            }
            self.silence();
        }
        self.silence();
        Waited::Ready
    }

    /// Nobody waits any more; takes back a ring that came meanwhile.
    fn silence(&self) {
        if !self.waiting.swap(false, Ordering::SeqCst) {
            let mut drain = [0u8; 64];
            let _ = rustix::io::read(&self.read, &mut drain);
        }
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

/// Counts tasks down: rings the bell when enough of them have resolved, or one that
/// ends the wait has failed.
pub(crate) struct Countdown {
    left: AtomicUsize,
    until_failure: bool,
    failed: AtomicBool,
}

impl Countdown {
    pub(crate) fn tick(&self, failed: bool) {
        if failed && self.until_failure {
            self.failed.store(true, Ordering::SeqCst);
            Bell::get().ring();
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            Bell::get().ring();
        }
    }

    fn is_over(&self) -> bool {
        // Beyond zero it wraps: more may resolve than were waited for.
        let left = self.left.load(Ordering::SeqCst);
        left == 0 || left > usize::MAX / 2 || self.failed.load(Ordering::SeqCst)
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

/// Waits for tasks. The main thread is woken once, not for each of them.
pub fn wait_for<'a>(
    tasks: impl Iterator<Item = &'a Task> + Clone,
    patience: Patience,
    interrupted: impl Fn() -> bool,
) -> Waited {
    let resolved = tasks.clone().filter(|t| t.is_resolved()).count();
    if resolved >= patience.enough {
        return Waited::Ready;
    }
    let countdown = Arc::new(Countdown {
        left: AtomicUsize::new(patience.enough),
        until_failure: patience.until_failure,
        failed: AtomicBool::new(false),
    });
    for task in tasks.clone() {
        if !task.watch(&countdown) {
            countdown.tick(task.has_failed());
        }
    }
    let end = Bell::get().wait(patience.timeout, interrupted, || countdown.is_over());
    for task in tasks {
        task.unwatch(&countdown);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Outcome;

    fn tasks(n: u64) -> Vec<Arc<Task>> {
        (0..n).map(|id| Arc::new(Task::empty(id))).collect()
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
}
