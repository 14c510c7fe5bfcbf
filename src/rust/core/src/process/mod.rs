//! Starting processes, keeping what they say until they have connected, and
//! learning of their end without polling. [`fork`] is the fast way to start one, and
//! [`command`] is for those that start one elsewhere.

pub mod command;
#[cfg(target_os = "linux")]
pub mod fork;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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
    /// What a process forked by the fork server has to evaluate to become the same
    /// as this program; `None` if only the program itself will do.
    pub code: Option<String>,
}

/// A process that was started by [`start`] or [`command::run`]. Dropping this does not end it.
#[derive(Default)]
pub struct Child {
    /// 0 until it is known.
    pid: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stderr: Vec<u8>,
    exit: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Status(ExitStatus),
    /// Only its parent knows, and that is the fork server.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Status(status) => match (status.code(), status.signal()) {
                (Some(code), _) => write!(f, "exit status {code}"),
                (None, Some(signal)) => write!(f, "killed by signal {signal}"),
                (None, None) => f.write_str("ended"),
            },
            Exit::Unknown => f.write_str("ended"),
        }
    }
}

type OnExit = Box<dyn FnOnce(&Child) + Send>;

impl Child {
    /// Its process id; 0 if it is still being forked.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::SeqCst)
    }

    /// How it ended, once it has.
    pub fn exit(&self) -> Option<Exit> {
        self.state.lock().exit
    }

    fn ended(&self, exit: Exit, on_exit: OnExit) {
        self.state.lock().exit = Some(exit);
        on_exit(self);
        Bell::get().ring();
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

/// How many of this process's forebears have forked it, one from the other, since somebody first asked.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Tells a process from those that are forked from it, by `fork(3)` as it runs pthread_atfork(3)'s
/// handlers, which takes no system call.
#[derive(Clone, Copy, Debug)]
pub struct Owner(u32);

impl Owner {
    /// This process.
    pub fn this() -> Owner {
        static HANDLER: std::sync::Once = std::sync::Once::new();
        extern "C" fn forked() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the handler does nothing but count.
        HANDLER.call_once(|| unsafe {
            libc::pthread_atfork(None, None, Some(forked));
        });
        Owner(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this is another process, forked from the owner.
    pub fn has_forked(self) -> bool {
        self.0 != FORKS.load(Ordering::Relaxed)
    }
}

/// Starts a process: through the fork server if there is one and it will do.
/// The bell rings at its end, after `on_exit` was called.
///
/// # Errors
/// The program cannot be started.
pub fn start(
    program: &Program,
    on_exit: impl FnOnce(&Child) + Send + 'static,
) -> io::Result<Arc<Child>> {
    let child = Arc::new(Child::default());
    let on_exit: OnExit = Box::new(on_exit);
    #[cfg(target_os = "linux")]
    let on_exit = match fork::try_fork(&child, program, on_exit) {
        Ok(()) => return Ok(child),
        Err(on_exit) => on_exit,
    };
    spawn(&child, program, on_exit).map_err(|(e, _)| e)?;
    Ok(child)
}

/// Starts a program in a process group of its own, so that a Ctrl-C meant for us
/// does not reach it. Gives `on_exit` back if it cannot be started.
fn spawn(
    child: &Arc<Child>,
    program: &Program,
    on_exit: OnExit,
) -> Result<(), (io::Error, OnExit)> {
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
    let mut spawned = match command.spawn() {
        Ok(spawned) => spawned,
        Err(e) => return Err((e, on_exit)),
    };
    let stderr = spawned.stderr.take().map(OwnedFd::from);
    child.pid.store(spawned.id(), Ordering::SeqCst);
    let child = child.clone();
    runtime::handle().spawn(async move {
        let exit = attend(&child, stderr, end_of(&mut spawned)).await;
        child.ended(Exit::Status(exit), on_exit);
    });
    Ok(())
}

/// Collects what a process says to its end, and returns what `end` does.
async fn attend<T>(child: &Child, stderr: Option<OwnedFd>, end: impl Future<Output = T>) -> T {
    let stderr = stderr.and_then(|fd| {
        rustix::io::ioctl_fionbio(&fd, true).ok()?;
        runtime::register(fd).ok()
    });
    let end = tokio::select! {
        biased;
        end = end => end,
        () = listen(child, stderr.as_ref()) => unreachable!("listens for ever"),
    };
    if let Some(stderr) = &stderr {
        // What it said last may not have been read yet.
        while read_some(child, stderr.get_ref()).is_ok_and(|n| n > 0) {}
    }
    end
}

/// Collects stderr; never returns.
async fn listen(child: &Child, stderr: Option<&AsyncFd<OwnedFd>>) {
    if let Some(stderr) = stderr {
        read_all(child, stderr).await;
    }
    std::future::pending().await
}

/// Collects what is said until nobody is left who could say more.
async fn read_all(child: &Child, stderr: &AsyncFd<OwnedFd>) {
    while let Ok(mut ready) = stderr.readable().await {
        if let Ok(Ok(0) | Err(_)) = ready.try_io(|fd| read_some(child, fd.get_ref())) {
            break;
        }
    }
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
            code: None,
        }
    }

    #[test]
    fn a_process_says_why_it_died() {
        let (tell, told) = std::sync::mpsc::channel();
        let program = shell("echo oh $GIVEN >&2; exit 3");
        let child = start(&program, move |c| tell.send(c.stderr()).unwrap()).unwrap();
        let said = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(said, "oh value\n");
        assert_eq!(child.exit().unwrap().to_string(), "exit status 3");
    }

    #[test]
    fn only_the_end_of_a_long_complaint_is_kept() {
        let (tell, told) = std::sync::mpsc::channel();
        let program = shell("yes | head -c 100000 >&2; echo last >&2; kill -9 $$");
        let child = start(&program, move |c| tell.send(c.stderr()).unwrap()).unwrap();
        let said = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(said.ends_with("y\nlast\n"));
        assert_eq!(said.len(), KEPT);
        assert_eq!(child.exit().unwrap().to_string(), "killed by signal 9");
    }

    #[test]
    fn a_forked_process_is_not_the_owner() {
        let owner = Owner::this();
        // SAFETY: the child calls only what may be called after a fork.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(!owner.has_forked() || Owner::this().has_forked())) };
        }
        let mut status = -1;
        // SAFETY: `status` is valid for writing.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert_eq!(status, 0);
        assert!(!owner.has_forked());
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let mut program = shell("");
        program.path = "/nowhere/to/be/found".into();
        assert!(start(&program, |_| {}).is_err());
    }
}
