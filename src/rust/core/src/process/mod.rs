//! Starting processes, keeping what they say until they have connected, and
//! learning of their end without polling.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;

use crate::runtime;
use crate::wait::Bell;

/// The end of what a process wrote to stderr is kept up to this many bytes.
const KEPT: usize = 16 * 1024;

/// A program to start.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    pub args: Vec<OsString>,
    /// Variables set, or removed, on top of this process's environment.
    pub env: Vec<(OsString, Option<OsString>)>,
    /// Let it write to our own stdout and stderr. Otherwise stdout is discarded
    /// and stderr kept for [`Child::stderr`].
    pub output: bool,
}

/// A process that was started by [`spawn`]. Dropping this does not end it.
pub struct Child {
    pid: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stderr: Vec<u8>,
    exit: Option<ExitStatus>,
}

impl Child {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, once it has.
    pub fn exit(&self) -> Option<ExitStatus> {
        self.state.lock().exit
    }

    /// The end of what it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.state.lock().stderr).into_owned()
    }

    fn keep(&self, bytes: &[u8]) {
        let kept = &mut self.state.lock().stderr;
        kept.extend_from_slice(bytes);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }
}

/// Says in words how a process ended.
pub fn describe(exit: ExitStatus) -> String {
    match (exit.code(), exit.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// Starts a process in a process group of its own (so that a Ctrl-C meant for us
/// does not reach it). The bell rings at its end, after `on_exit` was called.
pub fn spawn(
    program: &Program,
    on_exit: impl FnOnce(&Child) + Send + 'static,
) -> io::Result<Arc<Child>> {
    let mut command = Command::new(&program.path);
    command.args(&program.args).stdin(Stdio::null());
    for (name, value) in &program.env {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if !program.output {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    command.process_group(0);
    let mut spawned = command.spawn()?;
    let stderr = spawned.stderr.take().map(OwnedFd::from);
    let child = Arc::new(Child {
        pid: spawned.id(),
        state: Mutex::default(),
    });
    let watched = child.clone();
    runtime::handle().spawn(async move {
        let stderr = stderr.and_then(|fd| {
            rustix::io::ioctl_fionbio(&fd, true).ok()?;
            runtime::register(fd).ok()
        });
        let exit = tokio::select! {
            biased;
            exit = end_of(&mut spawned) => exit,
            () = listen(&watched, stderr.as_ref()) => unreachable!("listens for ever"),
        };
        if let Some(stderr) = &stderr {
            // What it said last may not have been read yet.
            while read_some(&watched, stderr.get_ref()).is_ok_and(|n| n > 0) {}
        }
        watched.state.lock().exit = Some(exit);
        on_exit(&watched);
        Bell::get().ring();
    });
    Ok(child)
}

/// Collects stderr; never returns.
async fn listen(child: &Child, stderr: Option<&AsyncFd<OwnedFd>>) {
    if let Some(stderr) = stderr {
        while let Ok(mut ready) = stderr.readable().await {
            if let Ok(Ok(0) | Err(_)) = ready.try_io(|fd| read_some(child, fd.get_ref())) {
                break;
            }
        }
    }
    std::future::pending().await
}

fn read_some(child: &Child, stderr: &OwnedFd) -> io::Result<usize> {
    let mut bytes = [0u8; 4096];
    let n = rustix::io::read(stderr, &mut bytes)?;
    child.keep(&bytes[..n]);
    Ok(n)
}

/// Waits for the end and reaps the process.
#[cfg(target_os = "linux")]
async fn end_of(child: &mut std::process::Child) -> ExitStatus {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pid = Pid::from_child(child);
    let end = pidfd_open(pid, PidfdFlags::empty())
        .map_err(io::Error::from)
        .and_then(runtime::register);
    match end {
        Ok(end) => {
            let _ = end.readable().await;
            reap(child)
        }
        // Kernels before 5.3.
        Err(_) => end_by_thread(child).await,
    }
}

#[cfg(not(target_os = "linux"))]
async fn end_of(child: &mut std::process::Child) -> ExitStatus {
    end_by_thread(child).await
}

/// Where a process is not a descriptor: a thread that waits for it, without
/// reaping it, so that its id stays ours until we do.
async fn end_by_thread(child: &mut std::process::Child) -> ExitStatus {
    let pid = child.id();
    let waited = tokio::task::spawn_blocking(move || {
        let mut info = std::mem::MaybeUninit::uninit();
        let how = libc::WEXITED | libc::WNOWAIT;
        // SAFETY: `info` is valid for writing.
        while unsafe { libc::waitid(libc::P_PID, pid, info.as_mut_ptr(), how) } == -1
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    });
    let _ = waited.await;
    reap(child)
}

fn reap(child: &mut std::process::Child) -> ExitStatus {
    // Fails only if somebody else has reaped it, and then nobody knows how it ended.
    child.wait().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn shell(script: &str) -> Program {
        Program {
            path: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("GIVEN".into(), Some("value".into()))],
            output: false,
        }
    }

    #[test]
    fn a_process_says_why_it_died() {
        let (tell, told) = std::sync::mpsc::channel();
        let program = shell("echo oh $GIVEN >&2; exit 3");
        let child = spawn(&program, move |c| tell.send(c.stderr()).unwrap()).unwrap();
        let said = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(said, "oh value\n");
        assert_eq!(describe(child.exit().unwrap()), "exit status 3");
    }

    #[test]
    fn only_the_end_of_a_long_complaint_is_kept() {
        let (tell, told) = std::sync::mpsc::channel();
        let program = shell("yes | head -c 100000 >&2; echo last >&2; kill -9 $$");
        let child = spawn(&program, move |c| tell.send(c.stderr()).unwrap()).unwrap();
        let said = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(said.ends_with("y\nlast\n"));
        assert_eq!(said.len(), KEPT);
        assert_eq!(describe(child.exit().unwrap()), "killed by signal 9");
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let mut program = shell("");
        program.path = "/nowhere/to/be/found".into();
        assert!(spawn(&program, |_| {}).is_err());
    }
}
