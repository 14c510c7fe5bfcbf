//! The daemon's end of a link.
//!
//! The daemon's main thread calls [`Worker::next`], which reads from the link,
//! evaluates, and answers. Beside it there is always another that hears control messages
//! (on the same machine, the *watcher*; across the network, one of NNG's): it
//! interrupts a task that was cancelled and sees the host go while the main thread is busy.
//! Both decide under the lock of a [`Gate`], so an interrupt can only ever hit the task
//! that it was meant for.

mod assignment;
mod gate;
#[cfg_attr(windows, path = "no_output.rs")]
pub mod output;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::memory::{Arrival, Content, Kept, Layout, Parts};
use crate::protocol::{Done, MOST_OF_AN_ERROR, Seq, ToDaemon, ToHost};
use crate::sys::Polled;
use crate::sys::{Bell, Waited};
use crate::tls::Trust;
use crate::transport::Address;
pub use assignment::{Assignment, Common};
use gate::{Begin, Gate};
use output::Output;
pub(crate) use wire::Sender;
use wire::{Dialling, Wire};

/// What a daemon does when its host goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoExit {
    /// Leave at once; a running task is interrupted.
    Now,
    /// Finish the running task first.
    AfterTask,
    /// Stay, and dial again.
    Never,
    /// Raise this signal.
    Signal(i32),
}

/// Time for the process to leave normally before it is made to.
const GRACE: Duration = Duration::from_millis(200);
/// Time for the host to answer a hello, or a goodbye.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses between attempts to dial: the first, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

/// What the language runtime lends to the watcher. Called from its thread, unless it
/// says otherwise.
pub trait Runtime: Send + Sync + 'static {
    /// Interrupts what the main thread evaluates, as Ctrl-C would.
    fn interrupt(&self);
    /// Whether an interrupt has been noted and not yet been acted upon. If it stays so for a while, it is repeated.
    fn interrupt_is_pending(&self) -> bool {
        false
    }
    /// Forgets an interrupt that has not been acted upon: a Ctrl-C, or that of a task which is over. Called from the main
    /// thread.
    fn forget_interrupt(&self);
    /// Ends the process here and now, leaving no files behind.
    fn exit(&self);
    /// Raises a signal for the process.
    fn raise(&self, signal: i32);
    /// Hears that the host does not want a task any more that has been read, running or not: for
    /// those who run several.
    fn cancelled(&self, _: Seq) {}
}

/// How to dial and what to do at the end.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do when the host is gone.
    pub autoexit: AutoExit,
    /// Go on dialling until somebody listens.
    pub asyncdial: bool,
    /// Then, go on also if somebody listens who is not trusted: it has been another before.
    pub insist: bool,
    /// This process's session directory.
    pub tempdir: String,
    /// Let SIGINT end the wait for a task, rather than ignore it.
    pub interruptible: bool,
    /// Tasks that may run at once: 1, unless they are passed on to others.
    pub slots: u32,
    /// How to know a host at a secure URL.
    pub trust: Option<Trust>,
}

impl Default for Options {
    /// One that dials once and works on one task after the other, on its own.
    fn default() -> Options {
        Options {
            autoexit: AutoExit::Never,
            asyncdial: false,
            insist: false,
            tempdir: String::new(),
            interruptible: false,
            slots: 1,
            trust: None,
        }
    }
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There is no connection.
    #[error("cannot connect to '{url}': {source}")]
    Connect {
        /// What was dialled.
        url: String,
        /// Of the network, or of the system.
        source: io::Error,
    },
    /// The host does not want this daemon.
    #[error("'{url}' refused this daemon: {reason}")]
    Refused {
        /// What was dialled.
        url: String,
        /// As the host says it.
        reason: String,
    },
    /// The host did not answer the hello, or not as a host does.
    #[error("no answer from '{url}': {source}")]
    Handshake {
        /// What was dialled.
        url: String,
        /// Of the connection.
        source: io::Error,
    },
    /// One end does not trust the other.
    #[error("cannot connect to '{url}': {reason}")]
    Untrusted {
        /// What was dialled.
        url: String,
        /// In words for the user.
        reason: String,
    },
    /// By a Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// The time given for it was over.
    #[error("timed out")]
    TimedOut,
}

/// What comes next for the main thread.
#[derive(Debug)]
pub enum Next {
    /// A task to evaluate.
    Task(Assignment),
    /// What the host wants its daemons to know.
    Configuration(Vec<u8>),
    /// Nothing came before the given time.
    TimedOut,
    /// By a Ctrl-C: see [`Options::interruptible`].
    Interrupted,
    /// The host is gone, or has told the daemon to leave.
    Lost {
        /// The host has told the daemon to leave for good.
        end: bool,
    },
}

/// See the [module documentation](self).
pub struct Worker {
    wire: Box<dyn Wire>,
    /// What tasks have in common, by id, as the host has sent it.
    constants: FxHashMap<u64, Kept>,
    gate: Arc<Gate>,
    options: Options,
    /// When the last answer was sent, and how long there has been nothing to do since.
    answered: Instant,
    idle: Duration,
    /// An answer could not be sent. No further task begins: the host would take it for one that has not.
    mute: bool,
}

impl Worker {
    /// Connects and introduces this daemon. Retries for ever, or until `until`,
    /// if [`Options::asyncdial`] says so.
    pub fn dial(
        address: &Address,
        options: &Options,
        runtime: Arc<dyn Runtime>,
        until: Option<Instant>,
        interrupted: impl Fn() -> bool,
    ) -> Result<Worker, DialError> {
        let mut pause = BACK_OFF.0;
        loop {
            let error = match Self::dial_once(address, options, &runtime, until, &interrupted) {
                Ok(worker) => return Ok(worker),
                Err(e @ (DialError::Connect { .. } | DialError::Handshake { .. })) => e,
                Err(e @ DialError::Untrusted { .. }) if options.insist => e,
                Err(e) => return Err(e),
            };
            if !options.asyncdial {
                return Err(error);
            }
            let left = until.map_or(pause, |t| {
                pause.min(t.saturating_duration_since(Instant::now()))
            });
            if left.is_zero() {
                return Err(DialError::TimedOut);
            }
            // Nothing rings here; this is a pause that SIGINT can end.
            if Bell::get().wait(Some(left), &interrupted, || false) == Waited::Interrupted {
                return Err(DialError::Interrupted);
            }
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    fn dial_once(
        address: &Address,
        options: &Options,
        runtime: &Arc<dyn Runtime>,
        until: Option<Instant>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Worker, DialError> {
        let gate = Arc::new(Gate::new(options.autoexit, runtime.clone()));
        let dialling = Dialling {
            options,
            gate: gate.clone(),
            until,
            interrupted,
        };
        let wire = wire::dial(address, &dialling)?;
        if matches!(address, Address::Network(_)) {
            let about = ToHost::About {
                host: crate::sys::node_name().into(),
                pid: std::process::id(),
            };
            // Should that fail, the link has ended, and reading from it will say so.
            let _sent = wire.send(&about, (&[]).into());
        }
        Ok(Worker {
            wire,
            constants: FxHashMap::default(),
            gate,
            options: options.clone(),
            answered: Instant::now(),
            idle: Duration::ZERO,
            mute: false,
        })
    }

    /// The next task, unless something else happens first.
    pub fn next(&mut self, until: Option<Instant>, interrupted: impl Fn() -> bool) -> Next {
        loop {
            if self.mute {
                return self.lost();
            }
            match self.wire.next() {
                Ok(Some((ToDaemon::Configuration, body))) => {
                    return Next::Configuration(Content::from(body).into_plain());
                }
                Ok(Some((message, body))) => {
                    let task = match self.take(message, body) {
                        Ok(Some(task)) => task,
                        Ok(None) => continue,
                        // What has come is none of ours.
                        Err(_) => return self.lost(),
                    };
                    let seq = task.seq;
                    match self.gate.begin(seq) {
                        Begin::Evaluate => return Next::Task(task),
                        Begin::Returned => continue,
                        Begin::Gone => return self.lost(),
                        Begin::Skip => {}
                    }
                    if self
                        .answer(seq, Done::Skipped, (&[]).into(), 0, None)
                        .is_err()
                    {
                        return self.lost();
                    }
                    continue;
                }
                Ok(None) => {}
                Err(_) => return self.lost(),
            }
            let interrupted: Option<&dyn Fn() -> bool> =
                (until.is_some() || self.options.interruptible).then_some(&interrupted);
            let before = Instant::now();
            let waited = self.wire.wait(left(until), interrupted);
            self.idle += before.elapsed();
            match waited {
                Ok(Polled::Readable) => {}
                Ok(Polled::TimedOut) => return Next::TimedOut,
                Ok(Polled::Interrupted) => return Next::Interrupted,
                Err(_) => return self.lost(),
            }
        }
    }

    /// A task out of a message; anything else is dealt with here.
    fn take(&mut self, message: ToDaemon, body: Arrival) -> io::Result<Option<Assignment>> {
        match message {
            ToDaemon::Task {
                seq,
                kind,
                stream,
                constants,
                granted: _,
                attached,
                number,
            } => {
                let common = constants.and_then(|id| self.constants.get(&id));
                let Content { bytes, pieces, .. } = Content::from(body);
                Ok(Some(Assignment {
                    seq,
                    number,
                    kind,
                    stream,
                    constants: common.map(Common::lent).transpose()?,
                    layout: Layout::of(&bytes, &pieces, attached)?,
                    body: bytes,
                    pieces,
                }))
            }
            ToDaemon::Constants { id, attached } => {
                self.constants.insert(id, Kept::new(body, attached));
                Ok(None)
            }
            ToDaemon::Forget { id } => {
                self.constants.remove(&id);
                Ok(None)
            }
            // Dealt with elsewhere.
            ToDaemon::Challenge { .. }
            | ToDaemon::Welcome { .. }
            | ToDaemon::Refused { .. }
            | ToDaemon::Configuration
            | ToDaemon::Control(_)
            | ToDaemon::Ping => Ok(None),
        }
    }

    /// To be called when the evaluation of a task is over, before its value is
    /// made ready to send: from here on it is not interrupted any more. True if an
    /// interrupt was raised meanwhile, which the caller must then clear.
    pub fn finish(&self) -> bool {
        self.gate.finish()
    }

    /// Answers a task with its value, or with the error that its evaluation ended
    /// in, after which it may be attempted again. False if the host is gone.
    pub fn reply<'a>(&mut self, seq: Seq, value: impl Into<Parts<'a>>, failed: bool) -> bool {
        let outcome = if failed { Done::Error } else { Done::Value };
        self.reply_noted(seq, value, outcome, 0, None)
    }

    /// As [`reply`](Self::reply), where the last `notes` bytes are not of the value, but noted beside it: the
    /// host finds them as [`Content::notes`]. `error` is the message of an error, for the log; of a long one the
    /// beginning is sent.
    pub fn reply_noted<'a>(
        &mut self,
        seq: Seq,
        value: impl Into<Parts<'a>>,
        outcome: Done,
        notes: usize,
        error: Option<&str>,
    ) -> bool {
        self.answer(seq, outcome, value.into(), notes, error.map(shortened))
            .is_ok()
    }

    /// Sends a value ahead of the reply of the task that runs. False if the host is gone.
    pub fn report<'a>(&self, seq: Seq, value: impl Into<Parts<'a>>) -> bool {
        self.send(&ToHost::Report { seq }, value.into()).is_ok()
    }

    /// Tells a host on this machine where it can read what this process has written last.
    pub fn tell_last_words(&self, output: &Output) {
        if self.passes_memory() {
            let pipes = output.last_words();
            // Should that fail, the link has ended, and the next call says so.
            let _sent = self.send(&ToHost::Words { pipes }, (&[]).into());
        }
    }

    /// Excludes `time`, which passed since the last answer, from the time that the next task is said to have taken.
    pub fn exclude_from_task_time(&mut self, time: Duration) {
        self.idle += time;
    }

    /// Sends an answer at once: a value never waits for a task that comes after it, and should
    /// that end this process, the host knows that this one was done.
    fn answer(
        &mut self,
        seq: Seq,
        outcome: Done,
        value: Parts<'_>,
        notes: usize,
        error: Option<Box<str>>,
    ) -> io::Result<()> {
        let now = Instant::now();
        let busy = (now - self.answered).saturating_sub(self.idle);
        self.answered = now;
        self.idle = Duration::ZERO;
        let message = ToHost::Done {
            seq,
            outcome,
            spent: busy.as_micros().try_into().unwrap_or(u32::MAX),
            notes: notes as u64,
            error,
        };
        let sent = self.send(&message, value);
        self.mute |= sent.is_err();
        sent
    }

    /// For answering from another thread than the one that reads.
    pub(crate) fn sender(&self) -> Box<dyn Sender> {
        self.wire.sender()
    }

    /// Says goodbye and waits until the host has taken note: tasks that were on
    /// their way are then its own again.
    pub fn leave(mut self) {
        // The link that now ends does not mean that the host is gone.
        self.gate.release();
        let begun = self.gate.last();
        if !self.mute && self.send(&ToHost::Leaving { begun }, (&[]).into()).is_ok() {
            let until = Some(Instant::now() + ANSWER_TIMEOUT);
            while matches!(self.wire.wait(left(until), None), Ok(Polled::Readable)) {
                while let Ok(Some(_)) = self.wire.next() {}
            }
        }
    }

    /// Whether a value had better have its large parts in segments.
    pub fn passes_memory(&self) -> bool {
        self.wire.passes_memory()
    }

    fn send(&self, message: &ToHost, body: Parts<'_>) -> io::Result<()> {
        self.wire.send(message, body)
    }

    fn lost(&self) -> Next {
        // The control channel ends at the same time; whether it said "end" before
        // that is known once the watcher is through with it.
        Next::Lost {
            end: self.gate.wait_until_gone(GRACE),
        }
    }
}

impl Drop for Worker {
    /// Lets the watcher go: the main thread is on its way out, or dials again.
    fn drop(&mut self) {
        self.gate.release();
        self.wire.close();
    }
}

fn shortened(message: &str) -> Box<str> {
    let mut end = message.len().min(MOST_OF_AN_ERROR);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].into()
}

fn left(until: Option<Instant>) -> Option<Duration> {
    until.map(|t| t.saturating_duration_since(Instant::now()))
}
