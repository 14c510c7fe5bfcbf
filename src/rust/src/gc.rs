//! When R collects garbage because of mapped memory.
//!
//! R's collector sees only a few bytes of a vector in shared memory (see [`altrep`](crate::altrep)). So each such vector
//! has a charge in bytes here, and R is made to collect when the charges have become many, and a bit earlier while
//! nothing else is to be done. Nor does it see the value of a mirai that nobody has read: where other tasks have needed it,
//! it may well be garbage.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mirai_core::{memory, task};

use crate::r;

/// Bytes of garbage that may be mapped before R has to collect.
const SLACK: usize = 256 << 20;
/// A daemon that has been idle for this long has time for a collection, which takes tens of milliseconds at least.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);
/// A mapping that other processes also hold is charged size / `COMMON` bytes, at least `LEAST`: it costs page tables
/// and one slot of the system's limit of mappings.
const COMMON: usize = 256;
const LEAST: usize = 32 << 10;

/// Bytes charged for vectors that R has not collected.
static LIVE: AtomicUsize = AtomicUsize::new(0);
/// `LIVE` after the last [`collect`].
static LEFT: AtomicUsize = AtomicUsize::new(0);
/// The process's private memory in bytes after the last [`collect`].
static OWN: AtomicUsize = AtomicUsize::new(0);
/// Bytes of common memory that have been mapped since [`collect_for_common`] last compared with `OWN`.
static UNSEEN: AtomicUsize = AtomicUsize::new(0);
/// Processor time of the last [`collect`] in milliseconds.
static COST: AtomicUsize = AtomicUsize::new(0);
/// Bytes of values that had gone on to other tasks and were held after the last [`collect`].
static PASSED_LEFT: AtomicU64 = AtomicU64::new(0);
/// [`task::let_down`] at the last [`collect`].
static LET_DOWN: AtomicUsize = AtomicUsize::new(0);
/// When the last [`collect`] has ended, in microseconds since the first time that this was asked.
static ENDED: AtomicU64 = AtomicU64::new(0);
/// A collection that takes less than this is cheap. Milliseconds.
const CHEAP: usize = 100;
/// After a collection, the next one to find out which tasks nobody wants comes after this many times what it has cost.
const REST: u64 = 10;

/// A vector with this charge has been made.
pub(crate) fn add(weight: usize) {
    LIVE.fetch_add(weight, Ordering::Relaxed);
}

/// R has collected a vector with this charge.
pub(crate) fn remove(weight: usize) {
    let live = LIVE.fetch_sub(weight, Ordering::Relaxed) - weight;
    // R may have collected by itself.
    LEFT.fetch_min(live, Ordering::Relaxed);
}

/// The charge for a mapping of `size` bytes that other processes also hold. Collects first if there may be much garbage.
///
/// # Safety
/// As [`collect`].
pub(crate) unsafe fn common_weight(size: usize) -> usize {
    // SAFETY: as this function demands.
    unsafe {
        collect_for_common(size);
        (size / COMMON).max(LEAST)
    }
}

/// Collects garbage if there may be much of it, before `weight` bytes are added.
///
/// # Safety
/// As [`collect`].
pub(crate) unsafe fn collect_for(weight: usize) {
    // SAFETY: as this function demands.
    unsafe {
        let live = LIVE.load(Ordering::Relaxed);
        if live > 0 && live + weight > most() {
            collect();
        }
    }
}

/// Bytes that may be charged before R has to collect.
fn most() -> usize {
    2 * LEFT.load(Ordering::Relaxed) + SLACK
}

/// Collects garbage before `size` bytes of common memory are mapped, if the process's private memory has grown much:
/// pages of garbage may have been written, and these are private.
unsafe fn collect_for_common(size: usize) {
    // SAFETY: as this function demands.
    unsafe {
        if UNSEEN.fetch_add(size, Ordering::Relaxed) + size <= SLACK {
            return;
        }
        UNSEEN.store(0, Ordering::Relaxed);
        let most = 2 * OWN.load(Ordering::Relaxed) + SLACK;
        if memory::private_bytes().is_none_or(|bytes| bytes > most) {
            collect();
        }
    }
}

/// Has R collect garbage.
///
/// # Safety
/// On R's main thread. Finalizers may run, and these may run any code.
pub(crate) unsafe fn collect() {
    // SAFETY: as this function demands.
    unsafe {
        let start = processor_time();
        r::R_gc();
        let cost = processor_time().saturating_sub(start);
        COST.store(cost.as_millis() as usize, Ordering::Relaxed);
        LEFT.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
        PASSED_LEFT.store(task::bytes_passed_on(), Ordering::Relaxed);
        OWN.store(memory::private_bytes().unwrap_or(0), Ordering::Relaxed);
        LET_DOWN.store(task::let_down(), Ordering::Relaxed);
        ENDED.store(now(), Ordering::Relaxed);
    }
}

/// In microseconds.
fn now() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_micros() as u64
}

/// Whether tasks may still run whose values nobody wants: those that needed them have ended since the last collection,
/// and only R's collector knows whether somebody can ask for them. Not before `REST` is over.
pub(crate) fn worth_collecting_let_down() -> bool {
    if task::let_down() == LET_DOWN.load(Ordering::Relaxed) {
        return false;
    }
    let cost = 1000 * COST.load(Ordering::Relaxed) as u64;
    now() - ENDED.load(Ordering::Relaxed) >= REST * cost
}

/// Of this thread. The wall clock would also count how busy other processes are.
#[cfg(unix)]
fn processor_time() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Windows counts a thread's time in ticks of 16 ms, longer than most collections take: here it is the wall clock.
#[cfg(windows)]
fn processor_time() -> Duration {
    Duration::from_micros(now())
}

/// Whether enough values have piled up that have gone on to other tasks, and whose mirai may be garbage.
pub(crate) fn worth_collecting_passed() -> bool {
    let now = task::bytes_passed_on();
    let left = PASSED_LEFT.fetch_min(now, Ordering::Relaxed).min(now);
    now > 2 * left + SLACK as u64
}

/// Whether enough common memory has piled up for a collection while idle. The threshold is three times as high where a
/// collection is slow (`CHEAP`).
pub(crate) fn worth_collecting_when_idle() -> bool {
    let share = if COST.load(Ordering::Relaxed) < CHEAP {
        1
    } else {
        3
    };
    LIVE.load(Ordering::Relaxed) > most() / 4 * share
}
