//! Whether the kernel's out-of-memory killer has been at work, by its own count.
//!
//! The count is of the control group that this process is in, and its children as a rule, or else of the whole
//! system: see `memory.events.local` in the kernel's "Control Group v2", and proc_vmstat(5).

use parking_lot::Mutex;

/// The count when it was last looked at; `None` before the first process is started.
static COUNT: Mutex<Option<u64>> = Mutex::new(None);

/// To be called before a process is started.
pub(super) fn begin_counting() {
    let mut count = COUNT.lock();
    if count.is_none() {
        *count = killed();
    }
}

/// Whether it has killed something since this was last asked, or since counting began.
pub(super) fn has_killed() -> bool {
    let now = killed();
    let mut count = COUNT.lock();
    let more = matches!((*count, now), (Some(before), Some(now)) if now > before);
    *count = now.or(*count);
    more
}

#[cfg(target_os = "linux")]
fn killed() -> Option<u64> {
    let group = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = group.lines().find_map(|line| line.strip_prefix("0::"));
    let events = group.and_then(|path| {
        std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.events.local")).ok()
    });
    let counts = match events {
        Some(events) => events,
        None => std::fs::read_to_string("/proc/vmstat").ok()?,
    };
    count_in(&counts)
}

#[cfg(not(target_os = "linux"))]
fn killed() -> Option<u64> {
    None
}

/// The number in the line of `oom_kill`.
#[cfg(any(target_os = "linux", test))]
fn count_in(counts: &str) -> Option<u64> {
    let number = counts.lines().find_map(|l| l.strip_prefix("oom_kill "));
    number?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_either_file() {
        let events = "low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(count_in(events), Some(2));
        assert_eq!(count_in("nr_free_pages 5\noom_kill 0\n"), Some(0));
        assert_eq!(count_in("nr_free_pages 5\n"), None);
        if cfg!(target_os = "linux") {
            assert!(killed().is_some());
        }
    }
}
