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
use crate::sys::io_thread;

/// Time for what a process wrote last to be read, if another process that it has left may still write.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// No signal has killed a process here.
pub(super) fn killed_by(_: ExitStatus) -> Option<i32> {
    None
}

/// Starts a program. Gives `on_exit` back if it cannot be started.
pub(super) fn spawn(
    child: &Arc<Child>,
    program: &Program,
    on_exit: OnExit,
) -> Result<(), (io::Error, OnExit)> {
    let (mut spawned, stderr) = match spawn_program(program) {
        Ok(spawned) => spawned,
        Err(e) => return Err((e, on_exit)),
    };
    child.pid.store(spawned.id(), Ordering::SeqCst);
    let child = child.clone();
    io_thread::handle().spawn(async move {
        let exit = attend(&child, stderr, &mut spawned).await;
        child.ended(Exit::Status(exit), on_exit);
    });
    Ok(())
}

fn spawn_program(program: &Program) -> io::Result<(std::process::Child, Option<NamedPipeServer>)> {
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
        return Ok((command.spawn()?, stderr));
    }
    // Nothing that it starts may be outside of the job.
    command.creation_flags(flags | CREATE_SUSPENDED);
    let mut spawned = command.spawn()?;
    let begun = job::add(&spawned).and_then(|()| job::resume(spawned.id()));
    if let Err(e) = begun {
        let _ = spawned.kill();
        return Err(e);
    }
    Ok((spawned, stderr))
}

/// Collects what a process says to its end, and returns how it has ended.
async fn attend(
    child: &Child,
    stderr: Option<NamedPipeServer>,
    process: &mut std::process::Child,
) -> ExitStatus {
    let ended = Ended::of(process);
    tokio::select! {
        biased;
        () = ended.wait() => {}
        () = listen(child, stderr.as_ref()) => unreachable!("listens for ever"),
        () = child.unwanted.notified() => {
            // It may have ended by itself meanwhile.
            let _ = process.kill();
            ended.wait().await;
        }
    }
    drop(ended);
    if let Some(stderr) = &stderr {
        let _ = tokio::time::timeout(LAST_WORDS, read_all(child, stderr)).await;
    }
    exit_status(process)
}

/// Collects stderr; never returns.
async fn listen(child: &Child, stderr: Option<&NamedPipeServer>) {
    if let Some(stderr) = stderr {
        read_all(child, stderr).await;
    }
    std::future::pending().await
}

fn exit_status(process: &mut std::process::Child) -> ExitStatus {
    process.wait().unwrap_or_default()
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
    fn of(process: &std::process::Child) -> Ended {
        let told = Arc::new(Notify::new());
        let mut wait: HANDLE = std::ptr::null_mut();
        let flags = WT_EXECUTEONLYONCE | WT_EXECUTEINWAITTHREAD;
        // SAFETY: the process's handle outlives this value, as does what the context points to: both are let go of only
        // after `UnregisterWaitEx` has waited for the callback.
        let registered = unsafe {
            RegisterWaitForSingleObject(
                &raw mut wait,
                process.as_raw_handle(),
                Some(tell),
                Arc::as_ptr(&told).cast(),
                INFINITE,
                flags,
            )
        };
        assert!(registered != 0, "the system waits for a process");
        Ended { wait, told }
    }

    async fn wait(&self) {
        self.told.notified().await;
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // SAFETY: it was registered, and is unregistered once.
        unsafe { UnregisterWaitEx(self.wait, INVALID_HANDLE_VALUE) };
    }
}

unsafe extern "system" fn tell(told: *mut c_void, _timed_out: bool) {
    // SAFETY: see `Ended::of`.
    unsafe { &*told.cast::<Notify>() }.notify_one();
}

/// Waits for the end of a process that nobody ends, and collects what it says.
pub(super) async fn end_of(
    child: &Child,
    process: &mut std::process::Child,
    output: &NamedPipeServer,
) -> ExitStatus {
    let ended = Ended::of(process);
    tokio::select! {
        biased;
        () = ended.wait() => {}
        () = listen(child, Some(output)) => unreachable!("listens for ever"),
        () = child.unwanted.notified() => {
            // It may have ended by itself meanwhile.
            let _ = process.kill();
            ended.wait().await;
        }
    }
    drop(ended);
    let _ = tokio::time::timeout(LAST_WORDS, read_all(child, output)).await;
    exit_status(process)
}
