//! What this process uses, as Windows tells it.

use std::time::Duration;

use windows_sys::Win32::Foundation::FILETIME;
use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetProcessHandleCount, GetProcessTimes,
};

/// Processor time of this process so far.
pub fn processor() -> Duration {
    let mut times = [FILETIME::default(); 4];
    let [created, ended, kernel, user] = &mut times;
    // SAFETY: all pointers are valid.
    let done = unsafe { GetProcessTimes(GetCurrentProcess(), created, ended, kernel, user) };
    assert_ne!(done, 0);
    let hundreds = |t: &FILETIME| u64::from(t.dwHighDateTime) << 32 | u64::from(t.dwLowDateTime);
    Duration::from_nanos(100 * (hundreds(kernel) + hundreds(user)))
}

/// Memory of this process, in bytes.
pub fn memory() -> i64 {
    let mut counters = PROCESS_MEMORY_COUNTERS::default();
    let size = size_of_val(&counters) as u32;
    // SAFETY: there is as much room as `size` says.
    let done = unsafe { K32GetProcessMemoryInfo(GetCurrentProcess(), &raw mut counters, size) };
    assert_ne!(done, 0);
    counters.WorkingSetSize as i64
}

/// Handles of this process. Those of its threads are among them, so threads are not counted.
pub fn held() -> (usize, usize) {
    let mut handles = 0;
    // SAFETY: the pointer is valid.
    let done = unsafe { GetProcessHandleCount(GetCurrentProcess(), &raw mut handles) };
    assert_ne!(done, 0);
    (handles as usize, 0)
}
