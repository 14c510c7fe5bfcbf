//! The job of this process: what is in it ends when the last handle of the job is closed, which the system does at the end
//! of this process, also after a crash.

use std::io;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::sync::OnceLock;

use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
};
use windows_sys::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation,
    SetInformationJobObject,
};
use windows_sys::Win32::System::Threading::{OpenThread, ResumeThread, THREAD_SUSPEND_RESUME};

use crate::sys::handles::{check, owned};

fn job() -> io::Result<&'static OwnedHandle> {
    static JOB: OnceLock<OwnedHandle> = OnceLock::new();
    if let Some(job) = JOB.get() {
        return Ok(job);
    }
    // SAFETY: null pointers stand for what is usual (a handle that is not inherited), and for no name.
    let job = owned(unsafe { CreateJobObjectW(std::ptr::null(), std::ptr::null()) })?;
    // SAFETY: all zeros are one, too: no limits.
    let mut limits: JOBOBJECT_EXTENDED_LIMIT_INFORMATION = unsafe { std::mem::zeroed() };
    limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
    // SAFETY: the pointer is to what the class of information is made of, and as large as that.
    check(unsafe {
        SetInformationJobObject(
            job.as_raw_handle(),
            JobObjectExtendedLimitInformation,
            (&raw const limits).cast(),
            size_of_val(&limits) as u32,
        )
    })?;
    Ok(JOB.get_or_init(|| job))
}

/// Has a process, and what it will start, end with this one.
pub(super) fn add(process: &std::process::Child) -> io::Result<()> {
    // SAFETY: both handles are open.
    check(unsafe { AssignProcessToJobObject(job()?.as_raw_handle(), process.as_raw_handle()) })
}

/// Has a process begin that was started suspended. It has one thread.
pub(super) fn resume(pid: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    let all = owned(unsafe { CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0) })?;
    // SAFETY: all zeros are one, too.
    let mut thread: THREADENTRY32 = unsafe { std::mem::zeroed() };
    thread.dwSize = size_of_val(&thread) as u32;
    // SAFETY: the handle is of a snapshot, and the entry says how large it is.
    check(unsafe { Thread32First(all.as_raw_handle(), &raw mut thread) })?;
    while thread.th32OwnerProcessID != pid {
        // SAFETY: as above.
        check(unsafe { Thread32Next(all.as_raw_handle(), &raw mut thread) })?;
    }
    // SAFETY: no pointers. The process has not begun, so the thread's id is its own.
    let thread = owned(unsafe { OpenThread(THREAD_SUSPEND_RESUME, 0, thread.th32ThreadID) })?;
    // SAFETY: the handle is open.
    match unsafe { ResumeThread(thread.as_raw_handle()) } {
        u32::MAX => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
