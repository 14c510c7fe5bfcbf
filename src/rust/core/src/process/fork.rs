//! The fork server: a process of the language runtime, started once and otherwise idle,
//! that forks itself upon request. That takes milliseconds where starting the runtime
//! takes tenths of a second.
//!
//! The two talk over a socket pair, the server's end being its stdin. A request carries
//! what the new process shall be like (directory, environment, umask, what to evaluate),
//! its stdout and stderr, and its end of a [`line`](super::line); the answer is its process id.
//!
//! Requests are [`Order`]s, which wait in a queue of ours: the I/O thread sends one after the other,
//! at most [`WINDOW`] ahead of the answers, so that neither the socket nor this process's table of
//! descriptors has to hold many of them. Nobody waits for that.
//!
//! A forked process does nothing before it has heard by its line that it is wanted, which it is told once
//! the answer is there. So a request is served once or not at all: should the server fail, or be silent for
//! [`ANSWER_TIMEOUT`], the lines of what it has not answered are dropped, by which processes that it may
//! have forked all the same end at once; and the orders are started in the ordinary way.
//!
//! The server's side ([`serve`]) uses no threads and no I/O runtime, because a forked
//! process has but the one thread that forked.
//!
//! Over 500 lines: both ends of one conversation, and the format that they speak, are read together.

use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::platform::{attend, end_of, spawn};
use super::{Child, Exit, OnExit, Program, Surroundings, line};
use crate::descriptors;
use crate::protocol::frame::encode_head;
use crate::protocol::{FrameReader, Limits};
use crate::sys::{Polled, flush_c_streams, io_thread, signals};
use crate::transport::unix;

/// Requests that are sent and not answered at most.
const WINDOW: usize = 8;
/// Time for an answer; the first one includes the start of the language runtime.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for the server to say how a process has ended. It does little else, but may be stopped.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// Once the server has forked, this time without a request means that it may do something else.
const QUIET: Duration = Duration::from_millis(100);

/// What a new process shall be like. Strings are bytes, as the system has them.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    directory: Vec<u8>,
    environment: Vec<(Vec<u8>, Vec<u8>)>,
    umask: u32,
    /// The soft limit of descriptors, if the server has another.
    descriptors: Option<u64>,
    code: String,
}

/// What the host asks the server for.
#[derive(Debug, Serialize, Deserialize)]
enum Call {
    /// Fork a process, as the [`Request`] in the body says. Requests are counted from 0.
    Fork { number: u64 },
    /// Say how a process has ended, which you have forked. It has.
    Reap { pid: u32 },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Forked {
        number: u64,
        /// The process. `None`: the directory is gone, or there can be no more processes or descriptors.
        pid: Option<u32>,
    },
    Reaped {
        pid: u32,
        /// As waitpid(2) has it; `None` if that fails.
        status: Option<i32>,
    },
}

/// A request's body is a [`Request`]; an environment can be large.
const LIMITS: Limits = Limits {
    meta: 64,
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

/// A process that is asked for.
struct Order {
    child: Arc<Child>,
    program: Program,
    on_exit: OnExit,
}

/// What the host shares with the I/O thread.
#[derive(Default)]
struct Orders {
    /// Not yet sent, with their [`Request`]s.
    queue: Mutex<VecDeque<(Order, Vec<u8>)>>,
    /// Forked processes that have ended, whose status has not been asked for.
    ended: Mutex<Vec<u32>>,
    more: Notify,
    /// Those who wait for the status of a process. `None` once the server is gone.
    waiting: Mutex<Option<FxHashMap<u32, oneshot::Sender<i32>>>>,
}

static SERVER: Mutex<Option<Arc<Orders>>> = Mutex::new(None);

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
    super::set_environment(&mut command, program);
    command.env(TUNABLES, with_huge_pages(std::env::var_os(TUNABLES)));
    // SAFETY: system calls alone, which may be made between fork and exec.
    unsafe {
        command.pre_exec(|| {
            signals::unblock_all();
            close_on_exec();
            Ok(())
        });
    }
    let mut process = command.spawn()?;
    // It holds the server's end of the socket.
    drop(command);
    let socket = {
        let _inside = io_thread::handle().enter();
        io_thread::register(ours)?
    };
    let orders = Arc::<Orders>::default();
    *orders.waiting.lock() = Some(FxHashMap::default());
    *SERVER.lock() = Some(orders.clone());
    io_thread::handle().spawn(async move {
        let counter = Counter::new(socket);
        tokio::select! {
            biased;
            _ = counter.hear(&orders) => {}
            _ = counter.hand_out(&orders) => {}
        }
        // It is of no more use. What it has not answered goes the other way.
        *SERVER.lock() = None;
        *orders.waiting.lock() = None;
        let _ = process.kill();
        // By this, what it may have forked for them ends.
        let sent = std::mem::take(&mut *counter.sent.lock());
        let mut unanswered: Vec<_> = sent.into_iter().collect();
        unanswered.sort_unstable_by_key(|(number, _)| *number);
        let unanswered = unanswered.into_iter().map(|(_, sent)| sent.order);
        let unsent = std::mem::take(&mut *orders.queue.lock());
        for order in unanswered.chain(unsent.into_iter().map(|(order, _)| order)) {
            start_otherwise(order);
        }
        end_of(&mut process).await;
    });
    Ok(())
}

/// Has this process close all descriptors from 3 on when it becomes the server. R opens files and sockets without
/// `FD_CLOEXEC`: the server, and each daemon that it forks, would keep those of the host open.
fn close_on_exec() {
    // SAFETY: no memory is passed.
    unsafe {
        let flag = libc::CLOSE_RANGE_CLOEXEC;
        if libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, flag) == 0 {
            return;
        }
        // Kernels before 5.11.
        for fd in 3..1024 {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

/// Asks the server for a process. Gives `on_exit` back if that cannot be done.
pub(super) fn try_fork(
    child: &Arc<Child>,
    program: &Program,
    on_exit: OnExit,
) -> Result<(), OnExit> {
    let guard = SERVER.lock();
    let code = program.code.as_ref().filter(|_| program.attached);
    let (Some(orders), Some(code)) = (guard.as_ref(), code) else {
        return Err(on_exit);
    };
    let Ok(request) = request(program, code) else {
        return Err(on_exit);
    };
    let order = Order {
        child: child.clone(),
        program: program.clone(),
        on_exit,
    };
    // Under the lock: the I/O thread takes what is left there after it has taken the server away.
    orders.queue.lock().push_back((order, request));
    orders.more.notify_one();
    Ok(())
}

/// Ends orders that are no longer wanted and have not been sent.
pub(super) fn discard_unwanted() {
    let Some(orders) = SERVER.lock().clone() else {
        return;
    };
    let unwanted: VecDeque<_> = {
        let mut queue = orders.queue.lock();
        let all = std::mem::take(&mut *queue).into_iter();
        let (unwanted, wanted) = all.partition(|(order, _)| order.child.is_unwanted());
        *queue = wanted;
        unwanted
    };
    for (order, _) in unwanted {
        order.child.ended(Exit::Unknown, order.on_exit);
    }
}

/// An order that has been sent.
struct Sent {
    order: Order,
    stderr: Option<OwnedFd>,
    line: UnixStream,
}

/// Where orders go out and answers come in, on the I/O thread.
struct Counter {
    socket: AsyncFd<UnixStream>,
    /// By their numbers.
    sent: Mutex<FxHashMap<u64, Sent>>,
    /// One has been sent.
    sending: Notify,
    window: Semaphore,
}

impl Counter {
    fn new(socket: AsyncFd<UnixStream>) -> Counter {
        Counter {
            socket,
            sent: Mutex::default(),
            sending: Notify::new(),
            window: Semaphore::new(WINDOW),
        }
    }

    /// Sends orders, until the server is gone.
    async fn hand_out(&self, orders: &Orders) -> io::Result<()> {
        let mut number = 0;
        loop {
            let permit = self.window.acquire().await.map_err(io::Error::other)?;
            let (order, request) = loop {
                let ended = std::mem::take(&mut *orders.ended.lock());
                for pid in ended {
                    let call = encode_head(&Call::Reap { pid }, 0);
                    self.send(&call, &[], &[]).await?;
                }
                if let Some(next) = orders.queue.lock().pop_front() {
                    break next;
                }
                orders.more.notified().await;
            };
            if order.child.is_unwanted() {
                order.child.ended(Exit::Unknown, order.on_exit);
                continue;
            }
            let opened = match Opened::new(&order.program) {
                Ok(opened) => opened,
                Err(e) => {
                    fail(order, e);
                    continue;
                }
            };
            let Opened {
                stdout,
                stderr,
                line,
                kept,
                our_line,
            } = opened;
            let sent = Sent {
                order,
                stderr: kept,
                line: our_line,
            };
            // Before it goes out, so that it is there when the answer comes.
            self.sent.lock().insert(number, sent);
            self.sending.notify_one();
            permit.forget();
            let pass = [stdout.as_fd(), stderr.as_fd(), line.as_fd()];
            let call = encode_head(&Call::Fork { number }, request.len());
            self.send(&call, &request, &pass).await?;
            number += 1;
        }
    }

    /// Sends a frame, which may be larger than what the socket takes at a time.
    async fn send(&self, head: &[u8], body: &[u8], pass: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut done = 0;
        while done < head.len() + body.len() {
            // Descriptors go with the first byte.
            let pass = if done == 0 { pass } else { &[] };
            let send = |socket: &UnixStream| unix::send_some(socket, head, body, done, pass);
            done += self.socket.async_io(Interest::WRITABLE, send).await?;
        }
        Ok(())
    }

    /// Takes the server's answers, to its end.
    async fn hear(&self, orders: &Arc<Orders>) -> io::Result<()> {
        let mut reader = FrameReader::<Answer>::new(LIMITS);
        loop {
            while let Some((answer, _)) = reader.next()? {
                let (number, pid) = match answer {
                    Answer::Forked { number, pid } => (number, pid),
                    Answer::Reaped { pid, status } => {
                        let mut waiting = orders.waiting.lock();
                        let who = waiting.as_mut().and_then(|waiting| waiting.remove(&pid));
                        if let Some((who, status)) = who.zip(status) {
                            let _ = who.send(status);
                        }
                        continue;
                    }
                };
                let sent = self.sent.lock().remove(&number);
                let sent = sent.ok_or(io::ErrorKind::InvalidData)?;
                self.window.add_permits(1);
                match pid {
                    Some(pid) => follow(sent, pid, orders.clone()),
                    None => start_otherwise(sent.order),
                }
            }
            let mut ready = if self.sent.lock().is_empty() {
                tokio::select! {
                    ready = self.socket.readable() => ready?,
                    () = self.sending.notified() => continue,
                }
            } else {
                tokio::time::timeout(ANSWER_TIMEOUT, self.socket.readable()).await??
            };
            match ready.try_io(|s| reader.fill(|room| unix::recv(s.get_ref().as_fd(), room))) {
                Ok(Ok((0, _))) => return Ok(()),
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
            }
        }
    }
}

/// What the process shall be like: as this one is now, unless the program says otherwise.
fn request(program: &Program, code: &str) -> io::Result<Vec<u8>> {
    let now;
    let surroundings = match &program.surroundings {
        Some(surroundings) => surroundings,
        None => {
            now = Surroundings::now()?;
            &now
        }
    };
    let bytes = |(name, value): (OsString, OsString)| (name.into_vec(), value.into_vec());
    let environment = surroundings.environment_with(&program.env);
    let request = Request {
        directory: surroundings.directory.as_os_str().as_bytes().to_vec(),
        environment: environment.into_iter().map(bytes).collect(),
        umask: surroundings.umask.ok_or(io::ErrorKind::Unsupported)?,
        descriptors: descriptors::given_limit(),
        code: code.into(),
    };
    postcard::to_allocvec(&request).map_err(io::Error::other)
}

/// Descriptors of a new process, and our ends of them.
struct Opened {
    stdout: OwnedFd,
    stderr: OwnedFd,
    line: OwnedFd,
    kept: Option<OwnedFd>,
    our_line: UnixStream,
}

impl Opened {
    fn new(program: &Program) -> io::Result<Opened> {
        let (our_line, line) = line::pair()?;
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
        Ok(Opened {
            stdout,
            stderr,
            line,
            kept,
            our_line,
        })
    }
}

fn start_otherwise(order: Order) {
    let Order {
        child,
        program,
        on_exit,
    } = order;
    if child.is_unwanted() {
        child.ended(Exit::Unknown, on_exit);
    } else if let Err((e, on_exit)) = spawn(&child, &program, on_exit) {
        let order = Order {
            child,
            program,
            on_exit,
        };
        fail(order, e);
    }
}

/// There is no process, as if it had said why and ended at once.
fn fail(order: Order, e: io::Error) {
    let Order {
        child,
        program,
        on_exit,
    } = order;
    let path = program.path.display();
    let e = super::explained(e);
    child.keep(format!("'{path}' cannot be started: {e}").as_bytes());
    child.ended(Exit::Unknown, on_exit);
}

impl Orders {
    /// Asks the server how a process has ended. `None`: the server is gone, or does not answer.
    async fn status_of(&self, pid: u32) -> Option<i32> {
        let (tell, told) = oneshot::channel();
        self.waiting.lock().as_mut()?.insert(pid, tell);
        self.ended.lock().push(pid);
        self.more.notify_one();
        tokio::time::timeout(STATUS_TIMEOUT, told).await.ok()?.ok()
    }
}

/// Sees a forked process to its end.
fn follow(sent: Sent, pid: u32, orders: Arc<Orders>) {
    let Sent {
        order,
        stderr,
        line,
    } = sent;
    // It does nothing yet, so this is it and no other; it may have been killed, though.
    let process = Pid::from_raw(pid as i32)
        .ok_or(io::ErrorKind::InvalidData.into())
        .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?))
        .map(descriptors::out_of_the_way)
        .and_then(io_thread::register);
    let process = match process {
        Ok(process) => process,
        // By the line's end it ends.
        Err(e) => return fail(order, e),
    };
    let Order { child, on_exit, .. } = order;
    child.pid.store(pid, Ordering::SeqCst);
    if !child.is_unwanted() {
        line::tell_wanted(&line);
    }
    io_thread::handle().spawn(async move {
        let signal = |signal| {
            let signal = Signal::from_named_raw(signal).unwrap_or(Signal::KILL);
            // It fails if the process has ended.
            let _ = pidfd_send_signal(process.get_ref(), signal);
        };
        let end = async {
            let _ = process.readable().await;
        };
        attend(&child, stderr, line, signal, end).await;
        let exit = match orders.status_of(pid).await {
            Some(status) => Exit::Status(ExitStatus::from_raw(status)),
            None => Exit::Unknown,
        };
        child.ended(exit, on_exit);
    });
}

/// A process that the server has forked, which does not know yet whether it is wanted.
#[derive(Debug)]
pub struct Forked {
    code: String,
}

impl Forked {
    /// What to evaluate. Does not return if the process that asked for this one wants it no more, or is gone.
    pub fn code_if_wanted(self) -> String {
        if !line::wait_until_wanted() {
            // SAFETY: ends the process without running anything of the runtime's, whose files are the
            // server's.
            unsafe { libc::_exit(0) };
        }
        self.code
    }
}

/// The server: takes requests from stdin and forks. Returns `None` at the end of stdin,
/// in the server; in each new process something else, where it is then as the request
/// says and knows nothing of the server.
///
/// `prepare` is called once, when the first processes have been forked and nobody waits for another: what it does need not be
/// done by the later ones.
///
/// # Safety
/// The process has a single thread.
pub unsafe fn serve(prepare: impl FnOnce()) -> Option<Forked> {
    let mut prepare = Some(prepare);
    let mut has_forked = false;
    // Forks are counted from here on.
    super::Owner::this();
    // The children are waited for when the host asks how they have ended.
    // SAFETY: SIG_DFL runs no code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // Else each forked process would write once more what code in `.Rprofile` has left in them.
    flush_c_streams();
    // SAFETY: stdin is ours, and is the socket.
    let socket = unsafe { UnixStream::from_raw_fd(0) };
    let host = unix::peer_process(&socket);
    let mut reader = FrameReader::<Call>::new(LIMITS);
    let mut passed = VecDeque::new();
    loop {
        while let Ok(Some((call, body))) = reader.next() {
            let number = match call {
                Call::Fork { number } => number,
                Call::Reap { pid } => {
                    let answer = Answer::Reaped {
                        pid,
                        status: reap(pid),
                    };
                    unix::send_all(&socket, &encode_head(&answer, 0), &[], None).ok()?;
                    continue;
                }
            };
            let request = postcard::from_bytes::<Request>(&body).ok()?;
            let fds = passed.pop_front().map(<[OwnedFd; 3]>::try_from);
            let pid = match fds {
                // SAFETY: the process has a single thread, as the caller says.
                Some(Ok(fds)) => match unsafe { libc::fork() } {
                    0 => {
                        // Only the server's descriptors are closed. R knows others by number: its script, and files that
                        // code in `.Rprofile` has opened.
                        drop((host, passed));
                        become_new(&request, socket, fds);
                        super::owner::is_its_own();
                        return Some(Forked { code: request.code });
                    }
                    pid => u32::try_from(pid).ok(),
                },
                // There were no more to be had.
                _ => None,
            };
            let answer = Answer::Forked { number, pid };
            unix::send_all(&socket, &encode_head(&answer, 0), &[], None).ok()?;
            has_forked = true;
        }
        if has_forked && prepare.is_some() {
            let heard = signals::poll_in(socket.as_fd(), Some(QUIET), &|| false);
            if heard == Polled::TimedOut {
                prepare.take().into_iter().for_each(|prepare| prepare());
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

/// How a child has ended.
fn reap(pid: u32) -> Option<i32> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0)?;
    let mut status = 0;
    // SAFETY: the status is ours. WNOHANG: it has ended, or is none of our children.
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    (reaped == pid).then_some(status)
}

/// Makes this process, just forked, what the request says. `socket`, the server's, is stdin.
fn become_new(request: &Request, socket: UnixStream, [stdout, stderr, line]: [OwnedFd; 3]) {
    // SAFETY: there is a single thread, and nothing else uses the descriptors replaced or the environment changed here.
    unsafe {
        if let Ok(null) = std::fs::File::open("/dev/null") {
            libc::dup2(null.as_raw_fd(), socket.into_raw_fd());
        }
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::setpgid(0, 0);
        libc::dup2(stdout.as_raw_fd(), 1);
        libc::dup2(stderr.as_raw_fd(), 2);
        drop((stdout, stderr));
        line::hold(line);
        libc::umask(request.umask);
        if let Some(limit) = request.descriptors {
            descriptors::set_limit(limit);
        }
        libc::clearenv();
        for (name, value) in &request.environment {
            let text = |bytes: &Vec<u8>| CString::new(bytes.as_slice()).unwrap_or_default();
            libc::setenv(text(name).as_ptr(), text(value).as_ptr(), 1);
        }
        let directory = CString::new(request.directory.as_slice()).unwrap_or_default();
        // Should it be gone, the process begins where the server did.
        libc::chdir(directory.as_ptr());
    }
    signals::unblock_all();
}
