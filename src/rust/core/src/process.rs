//! Starting processes, keeping what they say until they have connected, and
//! learning of their end without polling. [`fork`] is the fast way to start one, and
//! [`command`] is for those that start one elsewhere.
//!
//! A process that was started and has not connected is of no use to anybody but us: see
//! [`end_unconnected`]. How one says that it has connected, and where its files are: see [`line`].

#[cfg_attr(windows, path = "process/windows/command.rs")]
pub mod command;
mod exit;
#[cfg(target_os = "linux")]
pub mod fork;
mod job;
#[cfg_attr(windows, path = "process/windows/line.rs")]
pub mod line;
mod oom;
#[cfg_attr(windows, path = "process/windows/owner.rs")]
mod owner;
#[cfg_attr(unix, path = "process/unix.rs")]
#[cfg_attr(windows, path = "process/windows/mod.rs")]
mod platform;
mod surroundings;

pub use exit::Exit;
pub use job::Job;
pub use owner::Owner;
pub use surroundings::Surroundings;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::descriptors::{self, Held};
use crate::loss::Loss;
use crate::sys::Bell;
use crate::sys::io_thread;

/// The end of what a process wrote to stderr is kept up to this many bytes.
const KEPT: usize = 16 * 1024;

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

    /// Has a command that runs be ended, without waiting for that.
    pub(crate) fn is_not_wanted(&self) {
        self.unwanted.notify_one();
    }

    #[cfg(target_os = "linux")]
    fn is_unwanted(&self) -> bool {
        self.state.lock().unwanted
    }

    /// Has `loss` told how it ends; at once if it has.
    pub fn tells(&self, loss: Arc<Loss>) {
        // Held until `loss` is in place, so that `ended` finds it there if it comes next.
        let state = self.state.lock();
        match state.exit {
            Some(exit) => {
                loss.has_written(&String::from_utf8_lossy(&state.stderr));
                loss.tell(exit.to_reason());
            }
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
        // `tells` locks both, the other one first.
        let loss = self.loss.lock().take();
        if let Some(loss) = loss {
            loss.has_written(&self.stderr());
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
    let held = Held::if_spare(DESCRIPTORS).ok_or_else(too_many_files)?;
    oom::begin_counting();
    let child = Arc::new(Child::default());
    let on_exit: OnExit = Box::new(move |child: &Child| {
        // Given back first: `on_exit` may start another process.
        {
            let _held = held;
        }
        on_exit(child);
    });
    #[cfg(target_os = "linux")]
    let on_exit = match fork::try_fork(&child, program, on_exit) {
        Ok(()) => return Ok(child),
        Err(on_exit) => on_exit,
    };
    platform::spawn(&child, program, on_exit).map_err(|(e, _)| explained(e))?;
    Ok(child)
}

fn too_many_files() -> io::Error {
    io::Error::other("this session is about to have too many open files: see 'ulimit -n'")
}

/// Why no process could be started, for the user. Other parts of this process may have taken the descriptors that
/// [`start`] has counted as spare.
fn explained(e: io::Error) -> io::Error {
    match descriptors::are_exhausted(&e) {
        true => too_many_files(),
        false => e,
    }
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

#[cfg(all(test, unix))]
mod tests;
