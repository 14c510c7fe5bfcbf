//! Processes on Linux, macOS and their like: signals, descriptors, and a [`line`] to each.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::Pid;
use tokio::io::unix::AsyncFd;

use super::{Child, Exit, OnExit, Program, line, set_environment};
use crate::descriptors;
use crate::sys::{end_of_process, io_thread, signals};

/// A process that is no longer wanted is sent SIGINT, upon which the language runtime removes its
/// files, this often and this many times (it may not hear all of them), and then SIGKILL. It gets more time
/// while nobody else could remove its files, not knowing them.
const INTERRUPT_EVERY: Duration = Duration::from_millis(100);
const INTERRUPTS: u32 = 10;
const INTERRUPTS_WITHOUT_DIRECTORY: u32 = 50;

/// The signal that has killed a process.
pub(super) fn killed_by(status: ExitStatus) -> Option<i32> {
    status.signal()
}

/// A status as users know it.
pub(super) fn status_text(code: i32) -> String {
    code.to_string()
}

/// Starts a program in a process group of its own, so that a Ctrl-C meant for us
/// does not reach it. Gives `on_exit` back if it cannot be started.
pub(super) fn spawn(
    child: &Arc<Child>,
    program: &Program,
    on_exit: OnExit,
) -> Result<(), (io::Error, OnExit)> {
    let (mut spawned, line) = match spawn_program(program) {
        Ok(spawned) => spawned,
        Err(e) => return Err((e, on_exit)),
    };
    let stderr = spawned.stderr.take().map(OwnedFd::from);
    let pid = spawned.id();
    child.pid.store(pid, Ordering::SeqCst);
    let child = child.clone();
    io_thread::handle().spawn(async move {
        // SAFETY: no pointers. The id stays the process's until `end_of` has reaped it.
        let signal = |signal| unsafe { libc::kill(pid as libc::pid_t, signal) };
        let exit = attend(&child, stderr, line, signal, end_of(&mut spawned)).await;
        child.ended(Exit::Status(exit), on_exit);
    });
    Ok(())
}

fn spawn_program(program: &Program) -> io::Result<(std::process::Child, UnixStream)> {
    let (ours, theirs) = line::pair()?;
    let mut command = Command::new(&program.path);
    command.args(&program.args).stdin(Stdio::null());
    set_environment(&mut command, program);
    let number = theirs.as_raw_fd();
    let attached = program.attached;
    if attached {
        command.env(line::VARIABLE, number.to_string());
    }
    if !program.output {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    command.process_group(0);
    let limit = descriptors::given_limit();
    let umask = program.surroundings.as_ref().and_then(|s| s.umask);
    // Not opened to be inherited: other processes that are started meanwhile would have it, too.
    // SAFETY: what is called may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            signals::unblock_all();
            limit.inspect(|limit| descriptors::set_limit(*limit));
            umask.inspect(|umask| {
                libc::umask(*umask as libc::mode_t);
            });
            if attached && libc::fcntl(number, libc::F_SETFD, 0) == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok((command.spawn()?, ours))
}

/// Collects what a process says to its end, and returns what `end` does.
pub(super) async fn attend<T, S>(
    child: &Child,
    stderr: Option<OwnedFd>,
    line: UnixStream,
    signal: impl Fn(libc::c_int) -> S,
    end: impl Future<Output = T>,
) -> T {
    let stderr = stderr.and_then(|fd| {
        rustix::io::ioctl_fionbio(&fd, true).ok()?;
        io_thread::register(descriptors::out_of_the_way(fd)).ok()
    });
    let mut line = Line::new(line);
    let end = tokio::select! {
        biased;
        end = end => end,
        () = listen(child, stderr.as_ref()) => unreachable!("listens for ever"),
        () = line.hear(child) => unreachable!("hears for ever"),
        () = end_if_unwanted(child, signal) => unreachable!("waits for ever"),
    };
    // What it said last may not have been read yet.
    line.hear_rest(child);
    if let Some(stderr) = &stderr {
        while read_some(child, stderr.get_ref()).is_ok_and(|n| n > 0) {}
    }
    end
}

/// Ends the process once it is no longer wanted; never returns.
async fn end_if_unwanted<S>(child: &Child, signal: impl Fn(libc::c_int) -> S) {
    child.unwanted.notified().await;
    for sent in 0..INTERRUPTS_WITHOUT_DIRECTORY {
        if sent >= INTERRUPTS && child.directory().is_some() {
            break;
        }
        signal(libc::SIGINT);
        tokio::time::sleep(INTERRUPT_EVERY).await;
    }
    signal(libc::SIGKILL);
    std::future::pending().await
}

/// Our end of a [`line`], until nothing more comes.
struct Line {
    socket: Option<AsyncFd<UnixStream>>,
    reader: crate::protocol::FrameReader<line::Told>,
}

impl Line {
    fn new(socket: UnixStream) -> Line {
        Line {
            socket: io_thread::register(socket).ok(),
            reader: line::reader(),
        }
    }

    /// Notes what is said; never returns.
    async fn hear(&mut self, child: &Child) {
        while let Some(socket) = &self.socket {
            let Ok(mut ready) = socket.readable().await else {
                break;
            };
            let reader = &mut self.reader;
            let heard = ready.try_io(|socket| hear_some(child, socket.get_ref(), reader));
            if matches!(heard, Ok(Ok(0) | Err(_))) {
                // The descriptor is of use elsewhere.
                self.socket = None;
            }
        }
        std::future::pending().await
    }

    fn hear_rest(&mut self, child: &Child) {
        if let Some(socket) = &self.socket {
            while hear_some(child, socket.get_ref(), &mut self.reader).is_ok_and(|n| n > 0) {}
        }
    }
}

/// Reads once, and notes what is said. 0 at the end.
fn hear_some(
    child: &Child,
    socket: &UnixStream,
    reader: &mut crate::protocol::FrameReader<line::Told>,
) -> io::Result<usize> {
    let recv = |room: &mut [_]| crate::transport::unix::recv(socket.as_fd(), room);
    let (n, _) = reader.fill(recv)?;
    while let Some((told, _)) = reader.next()? {
        match told {
            // Who is started by the process has no business to say so.
            line::Told::Directory { pid, path } if pid == child.pid() => {
                child.state.lock().directory = Some(line::Told::path(path));
            }
            line::Told::Directory { .. } => {}
            line::Told::Connected => {
                child.has_connected();
                return Ok(0);
            }
        }
    }
    Ok(n)
}

/// Collects stderr; never returns.
pub(super) async fn listen(child: &Child, stderr: Option<&AsyncFd<OwnedFd>>) {
    if let Some(stderr) = stderr {
        read_all(child, stderr).await;
    }
    std::future::pending().await
}

/// Collects what is said until nobody is left who could say more.
pub(super) async fn read_all(child: &Child, stderr: &AsyncFd<OwnedFd>) {
    while let Ok(mut ready) = stderr.readable().await {
        if let Ok(Ok(0) | Err(_)) = ready.try_io(|fd| read_some(child, fd.get_ref())) {
            break;
        }
    }
}

pub(super) fn read_some(child: &Child, stderr: &OwnedFd) -> io::Result<usize> {
    let mut bytes = [0u8; 4096];
    let n = rustix::io::read(stderr, &mut bytes)?;
    child.keep(&bytes[..n]);
    Ok(n)
}

/// Waits for the end and reaps the process.
pub(super) async fn end_of(child: &mut std::process::Child) -> ExitStatus {
    let end = end_of_process(Pid::from_child(child))
        .map(descriptors::out_of_the_way)
        .and_then(io_thread::register_readable);
    match end {
        Ok(end) => {
            let _ = end.readable().await;
            reap(child)
        }
        Err(_) => end_by_thread(child).await,
    }
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
