//! Processes on Windows. There are no signals and no forks: a process that is no longer wanted is terminated, and one that
//! is to end with this process is in its *job*, which the system ends however this process does.

mod job;
mod pipe;

use std::ffi::c_void;
use std::io;
use std::os::windows::io::AsRawHandle;
use std::os::windows::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::windows::named_pipe::NamedPipeServer;
use tokio::sync::Notify;
use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::System::Threading::{
    CREATE_NO_WINDOW, CREATE_SUSPENDED, INFINITE, RegisterWaitForSingleObject, UnregisterWaitEx,
    WT_EXECUTEINWAITTHREAD, WT_EXECUTEONLYONCE,
};

pub(super) use self::pipe::{pair, read_all};
use super::{Child, Exit, OnExit, Program, set_environment};
use crate::sys::handles::check;
use crate::sys::io_thread;

/// Time for what a process wrote last to be read, if another process that it has left may still write.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// No signal has killed a process here.
pub(super) fn killed_by(_: ExitStatus) -> Option<i32> {
    None
}

/// A status as users know it: that of an exception which nobody has caught is hexadecimal, and the usual ones have
/// names.
pub(super) fn status_text(code: i32) -> String {
    let what = match code as u32 {
        0xC000_0005 => " (access violation)",
        0xC000_0017 | 0xC000_012D => " (out of memory)",
        0xC000_001D => " (illegal instruction)",
        0xC000_0094 => " (integer division by zero)",
        0xC000_00FD => " (stack overflow)",
        0xC000_0135 => " (a DLL is missing)",
        0xC000_0139 => " (a DLL lacks a function)",
        0xC000_013A => " (Ctrl-C)",
        0xC000_0142 => " (a DLL cannot be initialised)",
        0xC000_0374 => " (heap corruption)",
        0xC000_0409 => " (aborted)",
        0xE06D_7363 => " (C++ exception)",
        0xC000_0000..=0xCFFF_FFFF => "",
        _ => return code.to_string(),
    };
    format!("0x{code:08X}{what}")
}

/// Starts a program. Gives `on_exit` back if it cannot be started.
pub(super) fn spawn(
    child: &Arc<Child>,
    program: &Program,
    on_exit: OnExit,
) -> Result<(), (io::Error, OnExit)> {
    let mut spawned = match spawn_program(program) {
        Ok(spawned) => spawned,
        Err(e) => return Err((e, on_exit)),
    };
    child.pid.store(spawned.process.id(), Ordering::SeqCst);
    let child = child.clone();
    io_thread::handle().spawn(async move {
        let exit = spawned.attend(&child).await;
        child.ended(Exit::Status(exit), on_exit);
    });
    Ok(())
}

fn spawn_program(program: &Program) -> io::Result<Spawned> {
    let mut command = Command::new(&program.path);
    command.args(&program.args).stdin(Stdio::null());
    set_environment(&mut command, program);
    let mut stderr = None;
    let mut flags = 0;
    if !program.output {
        let (reader, writer) = pair()?;
        stderr = Some(reader);
        command.stdout(Stdio::null()).stderr(writer);
        // A console of its own that nobody sees: a Ctrl-C meant for us does not reach it.
        flags |= CREATE_NO_WINDOW;
    }
    if !program.attached {
        command.creation_flags(flags);
        return Spawned::new(command.spawn()?, stderr);
    }
    // Nothing that it starts may be outside of the job.
    command.creation_flags(flags | CREATE_SUSPENDED);
    let mut spawned = Spawned::new(command.spawn()?, stderr)?;
    let begun = job::add(&spawned.process).and_then(|()| job::resume(spawned.process.id()));
    if let Err(e) = begun {
        let _ = spawned.process.kill();
        return Err(e);
    }
    Ok(spawned)
}

/// A process that was started, and what it writes.
pub(super) struct Spawned {
    /// Dropped first, as long as the process's handle is open.
    ended: Ended,
    pub(super) process: std::process::Child,
    /// `None`: it writes to our own streams.
    pub(super) output: Option<NamedPipeServer>,
}

impl Spawned {
    /// # Errors
    /// The system cannot wait for its end: it is terminated.
    pub(super) fn new(
        mut process: std::process::Child,
        output: Option<NamedPipeServer>,
    ) -> io::Result<Spawned> {
        let ended = Ended::of(&process).inspect_err(|_| {
            let _ = process.kill();
        })?;
        Ok(Spawned {
            ended,
            process,
            output,
        })
    }

    /// Collects what the process says to its end, and returns how it has ended. Terminates it once it is not wanted.
    pub(super) async fn attend(&mut self, child: &Child) -> ExitStatus {
        let output = self.output.as_ref();
        tokio::select! {
            biased;
            () = self.ended.wait() => {}
            () = listen(child, output) => unreachable!("listens for ever"),
            () = child.unwanted.notified() => {
                // It may have ended by itself meanwhile.
                let _ = self.process.kill();
                self.ended.wait().await;
            }
        }
        if let Some(output) = output {
            let _ = tokio::time::timeout(LAST_WORDS, read_all(child, output)).await;
        }
        self.process.wait().unwrap_or_default()
    }
}

/// Collects what is said; never returns.
async fn listen(child: &Child, output: Option<&NamedPipeServer>) {
    if let Some(output) = output {
        read_all(child, output).await;
    }
    std::future::pending().await
}

/// Tells when a process has ended: one of the system's threads waits for it, and for others.
struct Ended {
    wait: HANDLE,
    told: Arc<Notify>,
}

// SAFETY: the handle may be used and closed by any thread.
unsafe impl Send for Ended {}
// SAFETY: as above.
unsafe impl Sync for Ended {}

impl Ended {
    /// To be dropped before the process's handle.
    fn of(process: &std::process::Child) -> io::Result<Ended> {
        let told = Arc::new(Notify::new());
        let mut wait: HANDLE = std::ptr::null_mut();
        let flags = WT_EXECUTEONLYONCE | WT_EXECUTEINWAITTHREAD;
        // SAFETY: the process's handle outlives this value (see `Spawned`), as does what the context points to: both
        // are let go of only after `UnregisterWaitEx` has waited for the callback.
        check(unsafe {
            RegisterWaitForSingleObject(
                &raw mut wait,
                process.as_raw_handle(),
                Some(tell),
                Arc::as_ptr(&told).cast(),
                INFINITE,
                flags,
            )
        })?;
        Ok(Ended { wait, told })
    }

    async fn wait(&self) {
        self.told.notified().await;
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // SAFETY: it was registered, and is unregistered once. With this handle, the call returns when the callback
        // has.
        unsafe { UnregisterWaitEx(self.wait, INVALID_HANDLE_VALUE) };
    }
}

unsafe extern "system" fn tell(told: *mut c_void, _timed_out: bool) {
    // SAFETY: see `Ended::of`.
    unsafe { &*told.cast::<Notify>() }.notify_one();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_as_users_know_it() {
        assert_eq!(status_text(3), "3");
        assert_eq!(status_text(-1), "-1");
        let violation = 0xC000_0005_u32 as i32;
        assert_eq!(status_text(violation), "0xC0000005 (access violation)");
        assert_eq!(status_text(violation + 1), "0xC0000006");
    }
}
