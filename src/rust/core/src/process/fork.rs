//! The fork server: a process of the language runtime, started once and otherwise idle,
//! that forks itself upon request. That takes milliseconds where starting the runtime
//! takes tenths of a second.
//!
//! The two talk over a socket pair, the server's end being its stdin. A request carries
//! what the new process shall be like (directory, environment, umask, what to evaluate)
//! and its stdout and stderr; the answer is its process id. Requests wait in the socket
//! while the server starts, so nobody waits for it. Should it fail, whatever it has not
//! answered is started in the ordinary way.
//!
//! The server's side ([`serve`]) uses no threads and no I/O runtime, because a forked
//! process has but the one thread that forked.

use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::{Child, Exit, OnExit, Program, attend, spawn};
use crate::protocol::frame::encode_head;
use crate::protocol::{FrameReader, Limits};
use crate::transport::unix;
use crate::{runtime, signals};

/// What a new process shall be like. Strings are bytes, as the system has them.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    directory: Vec<u8>,
    environment: Vec<(Vec<u8>, Vec<u8>)>,
    umask: u32,
    code: String,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Forked {
        pid: u32,
    },
    /// The directory is gone, or there can be no more processes.
    Failed,
}

/// A request is a body; an environment can be large.
const LIMITS: Limits = Limits {
    meta: 16,
    body: 16 << 20,
};

/// Where glibc's malloc is told how to work, from 2.35 on; see its manual, "Memory Allocation Tunables".
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Has malloc ask for huge pages for large blocks. Without, half of the time in which a daemon makes a
/// large vector goes by in page faults. It is read once, when a program starts, so it holds
/// for all that is forked, whose environment is the host's again.
fn with_huge_pages(given: Option<OsString>) -> OsString {
    const HUGE: &str = "glibc.malloc.hugetlb";
    match given {
        Some(given) if given.to_string_lossy().contains(HUGE) => given,
        Some(mut given) if !given.is_empty() => {
            given.push(format!(":{HUGE}=1"));
            given
        }
        _ => format!("{HUGE}=1").into(),
    }
}

struct Waiting {
    child: Arc<Child>,
    program: Program,
    stderr: Option<OwnedFd>,
    on_exit: OnExit,
}

/// The host's end.
struct Server {
    socket: Arc<AsyncFd<UnixStream>>,
    waiting: Arc<Mutex<VecDeque<Waiting>>>,
}

static SERVER: Mutex<Option<Server>> = Mutex::new(None);

/// Whether the server has been started (and has not failed).
pub fn is_running() -> bool {
    SERVER.lock().is_some()
}

/// Starts the server. `program` is to call [`serve`] on its stdin.
///
/// # Errors
/// The program cannot be started, or the system is too old: without descriptors of
/// processes nobody would learn of the end of those that are not our children.
pub fn start_server(program: &Program) -> io::Result<()> {
    pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    for (name, value) in &program.env {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env(TUNABLES, with_huge_pages(std::env::var_os(TUNABLES)));
    let mut process = command.spawn()?;
    let socket = {
        let _inside = runtime::handle().enter();
        Arc::new(runtime::register(ours)?)
    };
    let waiting = Arc::<Mutex<VecDeque<Waiting>>>::default();
    *SERVER.lock() = Some(Server {
        socket: socket.clone(),
        waiting: waiting.clone(),
    });
    runtime::handle().spawn(async move {
        let _ = hear(&socket, &waiting).await;
        // It is of no more use. What it has not answered goes the other way.
        *SERVER.lock() = None;
        let _ = socket.get_ref().shutdown(std::net::Shutdown::Both);
        for unanswered in std::mem::take(&mut *waiting.lock()) {
            start_otherwise(unanswered);
        }
        super::end_of(&mut process).await;
    });
    Ok(())
}

/// Asks the server for a process. Gives `on_exit` back if that cannot be done.
pub(super) fn try_fork(
    child: &Arc<Child>,
    program: &Program,
    on_exit: OnExit,
) -> Result<(), OnExit> {
    let guard = SERVER.lock();
    let (Some(server), Some(code)) = (guard.as_ref(), &program.code) else {
        return Err(on_exit);
    };
    let Ok((request, stdout, stderr, kept)) = prepare(program, code) else {
        return Err(on_exit);
    };
    // Before it is sent, so that it is there when the answer comes.
    server.waiting.lock().push_back(Waiting {
        child: child.clone(),
        program: program.clone(),
        stderr: kept,
        on_exit,
    });
    let head = encode_head(&(), request.len());
    let fds = [stdout.as_fd(), stderr.as_fd()];
    if unix::send_all_with(server.socket.get_ref(), &head, &request, &fds).is_err() {
        // It does not take any more, perhaps in the middle of a request: its end is seen
        // by the I/O thread, which starts what waits in the ordinary way.
        let _ = server.socket.get_ref().shutdown(std::net::Shutdown::Both);
    }
    Ok(())
}

/// This process's umask. umask(2) can only be asked by setting it, which other threads
/// would notice.
fn umask() -> io::Result<u32> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|l| l.strip_prefix("Umask:"));
    let mask = mask.ok_or(io::ErrorKind::Unsupported)?;
    u32::from_str_radix(mask.trim(), 8).map_err(io::Error::other)
}

type Prepared = (Vec<u8>, OwnedFd, OwnedFd, Option<OwnedFd>);

/// The request, stdout and stderr for the new process, and our end of its stderr.
fn prepare(program: &Program, code: &str) -> io::Result<Prepared> {
    let mut environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    for (name, value) in &program.env {
        environment.retain(|(n, _)| n != name);
        if let Some(value) = value {
            environment.push((name.clone(), value.clone()));
        }
    }
    let bytes = |(name, value): (OsString, OsString)| (name.into_vec(), value.into_vec());
    let request = Request {
        directory: std::env::current_dir()?.as_os_str().as_bytes().to_vec(),
        environment: environment.into_iter().map(bytes).collect(),
        umask: umask()?,
        code: code.into(),
    };
    let request = postcard::to_allocvec(&request).map_err(io::Error::other)?;
    let (stdout, stderr, kept) = if program.output {
        let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        (
            copy(io::stdout().as_fd())?,
            copy(io::stderr().as_fd())?,
            None,
        )
    } else {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let null = std::fs::File::options().write(true).open("/dev/null")?;
        (null.into(), write, Some(read))
    };
    Ok((request, stdout, stderr, kept))
}

/// Takes the server's answers, to its end.
async fn hear(socket: &AsyncFd<UnixStream>, waiting: &Mutex<VecDeque<Waiting>>) -> io::Result<()> {
    let mut reader = FrameReader::<Answer>::new(LIMITS);
    loop {
        while let Some((answer, _)) = reader.next()? {
            let Some(next) = waiting.lock().pop_front() else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            match answer {
                Answer::Forked { pid } => follow(next, pid),
                Answer::Failed => start_otherwise(next),
            }
        }
        let mut ready = socket.readable().await?;
        match ready.try_io(|s| reader.fill(|room| unix::recv(s.get_ref().as_fd(), room))) {
            Ok(Ok((0, _))) => return Ok(()),
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(e)) => return Err(e),
        }
    }
}

fn start_otherwise(waiting: Waiting) {
    let Waiting {
        child,
        program,
        on_exit,
        ..
    } = waiting;
    if let Err((_, on_exit)) = spawn(&child, &program, on_exit) {
        // There is no process, as if it had ended at once.
        child.ended(Exit::Unknown, on_exit);
    }
}

/// Sees a forked process to its end.
fn follow(waiting: Waiting, pid: u32) {
    let Waiting {
        child,
        stderr,
        on_exit,
        ..
    } = waiting;
    child.pid.store(pid, Ordering::SeqCst);
    runtime::handle().spawn(async move {
        let end = async {
            // That this fails means that it has ended already.
            let end = Pid::from_raw(pid as i32)
                .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
                .and_then(|end| runtime::register(end).ok());
            if let Some(end) = end {
                let _ = end.readable().await;
            }
        };
        attend(&child, stderr, end).await;
        child.ended(Exit::Unknown, on_exit);
    });
}

/// The server: takes requests from stdin and forks. Returns `None` at the end of stdin,
/// in the server; and what to evaluate, in each new process, which is then as the request
/// says and knows nothing of the server.
///
/// # Safety
/// The process has a single thread.
pub unsafe fn serve() -> Option<String> {
    // Nobody waits for the children here; the host knows their ids.
    // SAFETY: SIG_IGN runs no code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    // SAFETY: stdin is ours, and is the socket.
    let socket = unsafe { UnixStream::from_raw_fd(0) };
    let host = unix::peer_process(&socket);
    let mut reader = FrameReader::<()>::new(LIMITS);
    let mut passed = VecDeque::new();
    loop {
        while let Ok(Some(((), body))) = reader.next() {
            let fds = (passed.pop_front(), passed.pop_front());
            let request = postcard::from_bytes::<Request>(&body);
            let (Ok(request), (Some(stdout), Some(stderr))) = (request, fds) else {
                return None;
            };
            // SAFETY: the process has a single thread, as the caller says.
            match unsafe { libc::fork() } {
                0 => {
                    // Replaced by `become_new`, which closes it.
                    std::mem::forget(socket);
                    std::mem::forget(passed);
                    become_new(&request, stdout, stderr);
                    return Some(request.code);
                }
                pid => {
                    let answer = match u32::try_from(pid) {
                        Ok(pid) => Answer::Forked { pid },
                        Err(_) => Answer::Failed,
                    };
                    let head = encode_head(&answer, 0);
                    unix::send_all(&socket, &head, &[], None).ok()?;
                }
            }
        }
        if !unix::wait_readable(&socket, host.as_ref()) {
            return None;
        }
        match reader.fill(|room| unix::recv_with_fds(socket.as_fd(), room, &mut passed)) {
            Ok((0, _)) => return None,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// Makes this process, just forked, what the request says.
fn become_new(request: &Request, stdout: OwnedFd, stderr: OwnedFd) {
    use std::os::fd::AsRawFd;
    // SAFETY: there is a single thread, and nothing else uses the descriptors closed or
    // the environment changed here.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::setpgid(0, 0);
        libc::dup2(stdout.as_raw_fd(), 1);
        libc::dup2(stderr.as_raw_fd(), 2);
        if let Ok(null) = std::fs::File::open("/dev/null") {
            libc::dup2(null.as_raw_fd(), 0);
        }
        drop((stdout, stderr));
        close_others();
        libc::umask(request.umask);
        libc::clearenv();
        for (name, value) in &request.environment {
            let text = |bytes: &Vec<u8>| CString::new(bytes.as_slice()).unwrap_or_default();
            libc::setenv(text(name).as_ptr(), text(value).as_ptr(), 1);
        }
        let directory = CString::new(request.directory.as_slice()).unwrap_or_default();
        // Should it be gone, the process begins where the server did.
        libc::chdir(directory.as_ptr());
    }
    signals::restore_defaults();
}

/// Closes what the server had open, such as the file with its own script.
///
/// # Safety
/// Nothing else in this process uses a descriptor from 3 on.
unsafe fn close_others() {
    // SAFETY: as the caller says.
    if unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) } == 0 {
        return;
    }
    // Kernels before 5.9.
    for fd in 3..1024 {
        // SAFETY: as the caller says.
        unsafe { libc::close(fd) };
    }
}
