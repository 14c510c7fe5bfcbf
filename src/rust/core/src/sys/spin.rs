//! Looking again for a moment before a thread sleeps.
//!
//! To wake a thread takes 5 to 60 µs, the more the deeper its core sleeps, and what another process of this machine
//! answers is often there sooner. So [`spin`] has a thread that is about to wait look again for up to [`MOMENT`]. The
//! thread does so only while there is a core for each thread that runs: else it would keep the one that it waits for
//! from running.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use super::platform::running_threads;

/// For how long a thread looks again. A wait that is longer costs a wake-up, which is little beside it.
pub(crate) const MOMENT: Duration = Duration::from_micros(50);

static ALLOWED: AtomicBool = AtomicBool::new(true);

/// Whether threads of this process may look again before they sleep. They may, unless told otherwise.
pub fn allow_spinning(allowed: bool) {
    ALLOWED.store(allowed, Ordering::Relaxed);
}

/// See [`allow_spinning`].
pub fn spinning_is_allowed() -> bool {
    ALLOWED.load(Ordering::Relaxed)
}

/// Asks `look` until it says yes, for no longer than [`MOMENT`], and only once if no core is free for that. What `look`
/// has said last.
pub(crate) fn spin(mut look: impl FnMut() -> bool) -> bool {
    if look() {
        return true;
    }
    if !spinning_is_allowed() || !a_core_is_free() {
        return false;
    }
    let begun = Instant::now();
    while begun.elapsed() < MOMENT {
        std::hint::spin_loop();
        if look() {
            return true;
        }
    }
    false
}

/// Whether there is a core for each thread that runs or wants to, this one included.
#[cfg(target_os = "linux")]
fn a_core_is_free() -> bool {
    use std::sync::OnceLock;
    // By affinity and by the quota of a container.
    static CORES: OnceLock<usize> = OnceLock::new();
    let cores = *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    cores > 1 && running_threads().is_some_and(|running| running <= cores)
}

/// These systems do not tell.
#[cfg(not(target_os = "linux"))]
fn a_core_is_free() -> bool {
    false
}

#[cfg(all(test, not(mirai_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_already_is_seen_at_once() {
        let mut looks = 0;
        let seen = spin(|| {
            looks += 1;
            true
        });
        assert!(seen);
        assert_eq!(looks, 1);
    }

    #[test]
    fn what_does_not_come_is_not_waited_for() {
        assert!(!spin(|| false));
    }

    #[test]
    fn who_may_not_spin_looks_once() {
        allow_spinning(false);
        for _ in 0..100 {
            let mut looks = 0;
            assert!(!spin(|| {
                looks += 1;
                false
            }));
            assert_eq!(looks, 1);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_core_is_free_only_while_no_more_threads_run_than_there_are_cores() {
        use std::sync::Arc;

        let cores = std::thread::available_parallelism().unwrap().get();
        let stop = Arc::new(AtomicBool::new(false));
        let busy: Vec<_> = (0..cores)
            .map(|_| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        // This thread is one more. The kernel may count a new thread a moment after it has begun to run.
        let crowded = (0..100_000).any(|_| running_threads().unwrap() > cores);
        stop.store(true, Ordering::Relaxed);
        for thread in busy {
            thread.join().unwrap();
        }
        assert!(crowded);
    }
}
