//! What this process uses, as the system tells it.

use std::time::Duration;

/// Processor time of this process so far.
pub fn processor() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` has room for what the call writes; all zeros is valid too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Memory of this process, in bytes.
#[cfg(target_os = "linux")]
pub fn memory() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: i64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// Descriptors and threads of this process.
#[cfg(target_os = "linux")]
pub fn held() -> (usize, usize) {
    let count = |dir: &str| std::fs::read_dir(dir).unwrap().count();
    (count("/proc/self/fd") - 1, count("/proc/self/task"))
}

/// Memory of this process, in bytes.
#[cfg(target_os = "macos")]
pub fn memory() -> i64 {
    task_info().pti_resident_size as i64
}

/// Descriptors and threads of this process.
#[cfg(target_os = "macos")]
pub fn held() -> (usize, usize) {
    let mut fds = [const { std::mem::MaybeUninit::<libc::proc_fdinfo>::uninit() }; 4096];
    let bytes = ask(libc::PROC_PIDLISTFDS, &mut fds);
    let descriptors = bytes / size_of::<libc::proc_fdinfo>();
    (descriptors, task_info().pti_threadnum as usize)
}

#[cfg(target_os = "macos")]
fn task_info() -> libc::proc_taskinfo {
    let mut info = [std::mem::MaybeUninit::zeroed()];
    assert_eq!(ask(libc::PROC_PIDTASKINFO, &mut info), size_of_val(&info));
    // SAFETY: the system has filled it in.
    unsafe { info[0].assume_init() }
}

/// Returns the number of bytes that the system has filled in.
#[cfg(target_os = "macos")]
fn ask<T>(kind: libc::c_int, into: &mut [std::mem::MaybeUninit<T>]) -> usize {
    let (pid, size) = (std::process::id() as libc::c_int, size_of_val(into));
    // SAFETY: there is room for `size` bytes.
    let got =
        unsafe { libc::proc_pidinfo(pid, kind, 0, into.as_mut_ptr().cast(), size as libc::c_int) };
    usize::try_from(got).unwrap()
}
