//! Starting processes, keeping what they say until they have connected, and
//! learning of their end without polling. [`fork`] is the fast way to start one, and
//! [`command`] is for those that start one elsewhere.
//!
//! A process that was started and has not connected is of no use to anybody but us: see
//! [`end_unconnected`]. How one says that it has connected, and where its files are: see [`line`].

pub mod command;
mod exit;
#[cfg(target_os = "linux")]
pub mod fork;
pub mod line;
mod oom;
mod owner;
mod surroundings;

pub use surroundings::Surroundings;

pub use exit::Exit;
pub use owner::Owner;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};

use crate::descriptors::{self, Held};
use crate::loss::Loss;
use crate::sys::Bell;
use crate::sys::{io_thread, signals};

/// The end of what a process wrote to stderr is kept up to this many bytes.
const KEPT: usize = 16 * 1024;

/// A process that is no longer wanted is sent SIGINT, upon which the language runtime removes its
/// files, this often and this many times (it may not hear all of them), and then SIGKILL. It gets more time
/// while nobody else could remove its files, not knowing them.
const INTERRUPT_EVERY: Duration = Duration::from_millis(100);
const INTERRUPTS: u32 = 10;
const INTERRUPTS_WITHOUT_DIRECTORY: u32 = 50;
/// How long [`end_unconnected`] waits: mostly somewhat longer than that.
const FAREWELL: Duration = Duration::from_millis(1500);

/// Descriptors for a process that was started, its link and where it connects among them.
const DESCRIPTORS: usize = 5;

/// A program to start.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Its arguments, without its name.
    pub args: Vec<OsString>,
    /// Variables set, or removed, on top of this process's environment.
    pub env: Vec<(OsString, Option<OsString>)>,
    /// Let it write to our own stdout and stderr. Otherwise stdout is discarded
    /// and stderr kept for [`Child::stderr`].
    pub output: bool,
    /// What a process forked by the fork server has to evaluate to become the same
    /// as this program; `None` if only the program itself will do.
    pub code: Option<String>,
    /// Whether it ends with this process if it has not connected by then. A program that does not has no
    /// [`line`].
    pub attached: bool,
    /// What it has from the process that starts it. `None`: what that has when it starts it, on its main thread.
    pub surroundings: Option<Arc<Surroundings>>,
}

/// A process that was started by [`start`] or [`command::run`]. Dropping this does not end it.
#[derive(Default)]
pub struct Child {
    /// 0 until it is known.
    pid: AtomicU32,
    state: Mutex<State>,
    /// It is no longer wanted: for whoever attends to it.
    unwanted: Notify,
    /// Set when `on_exit` has been called.
    over: watch::Sender<bool>,
    /// What is told how it ended.
    loss: Mutex<Option<Arc<Loss>>>,
}

#[derive(Default)]
struct State {
    stderr: Vec<u8>,
    exit: Option<Exit>,
    /// Its session directory, as it has said by its [`line`].
    directory: Option<PathBuf>,
    connected: bool,
    unwanted: bool,
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

    /// Its session directory, if it has said where that is.
    pub fn directory(&self) -> Option<PathBuf> {
        self.state.lock().directory.clone()
    }

    /// Notes that it has connected: from here on it is its link that holds it.
    pub fn has_connected(&self) {
        self.state.lock().connected = true;
    }

    /// Whether it has neither connected nor ended.
    pub fn is_on_its_way(&self) -> bool {
        let state = self.state.lock();
        !state.connected && state.exit.is_none()
    }

    /// Has a command that runs be ended, without waiting for that: SIGTERM asks it to.
    pub(crate) fn is_not_wanted(&self) {
        self.unwanted.notify_one();
    }

    fn is_unwanted(&self) -> bool {
        self.state.lock().unwanted
    }

    /// Has `loss` told how it ends; at once if it has.
    pub fn tells(&self, loss: Arc<Loss>) {
        // Held until `loss` is in place, so that `ended` finds it there if it comes next.
        let state = self.state.lock();
        match state.exit {
            Some(exit) => loss.tell(exit.to_reason()),
            None => {
                loss.will_be_told();
                *self.loss.lock() = Some(loss);
            }
        }
    }

    /// Whether it has ever said that it has connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.state.lock().connected
    }

    fn ended(&self, exit: Exit, on_exit: OnExit) {
        self.state.lock().exit = Some(exit);
        if let Some(loss) = self.loss.lock().take() {
            loss.tell(exit.to_reason());
        }
        on_exit(self);
        self.over.send_replace(true);
        Bell::get().ring();
    }

    /// How it has ended, as the end of a sentence about it, with what it has said.
    pub fn last_words(&self) -> String {
        let how = self.exit().map_or_else(|| "ended".into(), Exit::to_reason);
        let said = self.stderr();
        match said.trim_end() {
            "" => how,
            said => format!("{how} and said:\n{said}"),
        }
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

/// Ends those of these processes that have not connected, at once, whether or not they have been started
/// yet; waits until they have ended, for a second or so at most. Must not be called on the I/O thread.
///
/// A plain R that is killed before it has run any code of ours leaves its empty session directory behind: R gives
/// it a random name and tells nobody. A fork says where its directory is as soon as it has one.
pub fn end_unconnected(children: &[Arc<Child>]) {
    let unwanted = |child: &&Arc<Child>| {
        let mut state = child.state.lock();
        state.unwanted = !state.connected && state.exit.is_none();
        state.unwanted
    };
    let unwanted: Vec<_> = children.iter().filter(unwanted).collect();
    if unwanted.is_empty() {
        return;
    }
    for child in &unwanted {
        child.unwanted.notify_one();
    }
    #[cfg(target_os = "linux")]
    fork::discard_unwanted();
    let all = async {
        for child in unwanted {
            let _ = child.over.subscribe().wait_for(|over| *over).await;
        }
    };
    let _ = io_thread::handle().block_on(async { tokio::time::timeout(FAREWELL, all).await });
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
    let held = Held::if_spare(DESCRIPTORS).ok_or_else(|| {
        io::Error::other("this session is about to have too many open files: see 'ulimit -n'")
    })?;
    oom::begin_counting();
    let child = Arc::new(Child::default());
    let on_exit: OnExit = Box::new(move |child: &Child| {
        drop(held);
        on_exit(child);
    });
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

fn set_environment(command: &mut Command, program: &Program) {
    if let Some(surroundings) = &program.surroundings {
        surroundings.set(command);
    }
    for (name, value) in &program.env {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

/// Collects what a process says to its end, and returns what `end` does.
async fn attend<T, S>(
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
        .map(descriptors::out_of_the_way)
        .map_err(io::Error::from)
        .and_then(io_thread::register);
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
mod tests;
