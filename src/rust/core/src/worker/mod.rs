//! The daemon's end of a link.
//!
//! The daemon's main thread calls [`Worker::next`], which reads the data channel
//! itself, evaluates, and answers. Beside it runs a *watcher*, the one other
//! thread, which reads the control channel: it interrupts a task that was
//! cancelled and sees the host go while the main thread is busy. Both decide
//! under the lock of a [`Gate`], so an interrupt can only ever hit the task that
//! it was meant for.

mod gate;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::protocol::{
    Control, Done, Frame, FrameReader, Kind, Limits, Seq, Stream, ToDaemon, ToHost, VERSION,
};
use crate::signals::{self, Polled, poll_in};
use crate::transport::{Address, unix};
use crate::wait::{Bell, Waited};
use gate::Gate;

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
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses between attempts to dial: the first, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

/// What the language runtime lends to the watcher. Called from its thread, unless it
/// says otherwise.
pub trait Runtime: Send + Sync + 'static {
    /// Interrupts what the main thread evaluates, as Ctrl-C would.
    fn interrupt(&self);
    /// Forgets a Ctrl-C that has not been obeyed yet. Called from the main thread.
    fn forget_interrupt(&self);
    /// Ends the process here and now, leaving no files behind.
    fn exit(&self);
    /// Raises a signal for the process.
    fn raise(&self, signal: i32);
}

/// How to dial and what to do at the end.
#[derive(Clone, Debug)]
pub struct Options {
    pub autoexit: AutoExit,
    /// Go on dialling until somebody listens.
    pub asyncdial: bool,
    /// This process's session directory.
    pub tempdir: String,
    /// Let SIGINT end the wait for a task, rather than ignore it.
    pub interruptible: bool,
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot connect to '{url}': {source}")]
    Connect { url: String, source: io::Error },
    #[error("'{url}' refused this daemon: {reason}")]
    Refused { url: String, reason: String },
    #[error("no answer from '{url}': {source}")]
    Handshake { url: String, source: io::Error },
    #[error("interrupted")]
    Interrupted,
    /// The time given for it was over.
    #[error("timed out")]
    TimedOut,
}

/// What comes next for the main thread.
#[derive(Debug)]
pub enum Next {
    Task(Assignment),
    /// What the host wants its daemons to know.
    Configuration(Vec<u8>),
    /// Nothing came before the given time.
    TimedOut,
    Interrupted,
    /// The host is gone, or has told the daemon to leave.
    Lost {
        end: bool,
    },
}

/// A task to evaluate. Answer with [`Worker::reply`].
#[derive(Debug)]
pub struct Assignment {
    pub seq: Seq,
    pub kind: Kind,
    pub stream: Option<Stream>,
    /// What it has in common with other tasks.
    pub constants: Option<Arc<Vec<u8>>>,
    pub body: Vec<u8>,
}

/// See the [module documentation](self).
pub struct Worker {
    data: UnixStream,
    control: UnixStream,
    reader: FrameReader<ToDaemon>,
    /// What tasks have in common, by id, as the host has sent it.
    constants: FxHashMap<u64, Arc<Vec<u8>>>,
    gate: Arc<Gate>,
    options: Options,
    watcher: Option<std::thread::JoinHandle<()>>,
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
            let error = match Self::dial_once(address, options, &runtime) {
                Ok(worker) => return Ok(worker),
                Err(e @ DialError::Refused { .. }) => return Err(e),
                Err(e) => e,
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
    ) -> Result<Worker, DialError> {
        let url = || address.to_string();
        let data =
            unix::connect(address).map_err(|source| DialError::Connect { url: url(), source })?;
        let (data, control, reader, answer) = introduce(data, options)
            .map_err(|source| DialError::Handshake { url: url(), source })?;
        match answer {
            ToDaemon::Welcome => {}
            ToDaemon::Refused { reason } => {
                return Err(DialError::Refused { url: url(), reason });
            }
            _ => {
                let source = io::ErrorKind::InvalidData.into();
                return Err(DialError::Handshake { url: url(), source });
            }
        }
        let gate = Arc::new(Gate::new(options.autoexit, runtime.clone()));
        let watcher = watch(&data, &control, gate.clone())
            .map_err(|source| DialError::Handshake { url: url(), source })?;
        Ok(Worker {
            data,
            control,
            reader,
            constants: FxHashMap::default(),
            gate,
            options: options.clone(),
            watcher: Some(watcher),
        })
    }

    /// The next task, unless something else happens first.
    pub fn next(&mut self, until: Option<Instant>, interrupted: impl Fn() -> bool) -> Next {
        loop {
            match self.reader.next() {
                Ok(Some((ToDaemon::Configuration, body))) => return Next::Configuration(body),
                Ok(Some((message, body))) => {
                    let Some(task) = self.take(message, body) else {
                        continue;
                    };
                    let seq = task.seq;
                    if !self.gate.begin(seq) {
                        let skipped = ToHost::Done {
                            seq,
                            outcome: Done::Skipped,
                        };
                        if self.send(&skipped, &[]).is_err() {
                            return self.lost();
                        }
                        continue;
                    }
                    return Next::Task(task);
                }
                Ok(None) => {}
                Err(_) => return self.lost(),
            }
            if until.is_some() || self.options.interruptible {
                let left = until.map(|t| t.saturating_duration_since(Instant::now()));
                match poll_in(self.data.as_fd(), left, &interrupted) {
                    Polled::Readable => {}
                    Polled::TimedOut => return Next::TimedOut,
                    Polled::Interrupted => return Next::Interrupted,
                }
                if !readable(&self.data) {
                    continue;
                }
            }
            let data = self.data.as_fd();
            match self.reader.fill(|room| unix::recv(data, room)) {
                Ok((0, _)) => return self.lost(),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.lost(),
            }
        }
    }

    /// A task out of a message; anything else is dealt with here.
    fn take(&mut self, message: ToDaemon, body: Vec<u8>) -> Option<Assignment> {
        match message {
            ToDaemon::Task {
                seq,
                kind,
                stream,
                constants,
            } => Some(Assignment {
                seq,
                kind,
                stream,
                constants: constants.and_then(|id| self.constants.get(&id).cloned()),
                body,
            }),
            ToDaemon::Constants { id } => {
                self.constants.insert(id, Arc::new(body));
                None
            }
            ToDaemon::Forget { id } => {
                self.constants.remove(&id);
                None
            }
            // Dealt with elsewhere.
            ToDaemon::Welcome | ToDaemon::Refused { .. } | ToDaemon::Configuration => None,
        }
    }

    /// To be called when the evaluation of a task is over, before its value is
    /// made ready to send: from here on it is not interrupted any more. True if an
    /// interrupt was raised meanwhile, which the caller must then clear.
    pub fn finish(&self) -> bool {
        self.gate.finish()
    }

    /// Answers a task with its value, or with the error that its evaluation ended
    /// in. False if the host is gone.
    pub fn reply(&mut self, seq: Seq, value: &[u8], failed: bool) -> bool {
        let outcome = if failed { Done::Error } else { Done::Value };
        self.send(&ToHost::Done { seq, outcome }, value).is_ok()
    }

    /// Says goodbye and waits until the host has taken note: tasks that were on
    /// their way are then its own again.
    pub fn leave(mut self) {
        // The link that now ends does not mean that the host is gone.
        self.gate.release();
        if self.send(&ToHost::Leaving, &[]).is_ok() {
            let until = Some(Instant::now() + PATIENCE);
            while poll_in(self.data.as_fd(), left(until), || false) == Polled::Readable {
                let data = self.data.as_fd();
                match self.reader.fill(|room| unix::recv(data, room)) {
                    Ok((0, _)) | Err(_) => break,
                    Ok(_) => while let Ok(Some(_)) = self.reader.next() {},
                }
            }
        }
    }

    fn send(&self, message: &ToHost, body: &[u8]) -> io::Result<()> {
        let head = crate::protocol::frame::encode_head(message, body.len());
        unix::send_all(&self.data, &head, body, None)
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
        let _ = self.data.shutdown(std::net::Shutdown::Both);
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

fn left(until: Option<Instant>) -> Option<Duration> {
    until.map(|t| t.saturating_duration_since(Instant::now()))
}

/// A signal, too, ends a poll.
fn readable(stream: &UnixStream) -> bool {
    poll_in(stream.as_fd(), Some(Duration::ZERO), || false) == Polled::Readable
}

type Introduction = (UnixStream, UnixStream, FrameReader<ToDaemon>, ToDaemon);

/// Sends the hello and hears the answer.
fn introduce(data: UnixStream, options: &Options) -> io::Result<Introduction> {
    let (control, theirs) = unix::control_pair()?;
    let hello = Frame::bare(&ToHost::Hello {
        version: VERSION,
        pid: std::process::id(),
        tempdir: options.tempdir.clone(),
    });
    unix::send_all(&data, &hello.head, &[], Some(theirs.as_fd()))?;
    drop(theirs);
    data.set_read_timeout(Some(PATIENCE))?;
    let mut reader = FrameReader::<ToDaemon>::new(Limits::LINK);
    let answer = loop {
        if let Some((answer, _)) = reader.next()? {
            break answer;
        }
        match reader.fill(|room| unix::recv(data.as_fd(), room)) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // What a socket calls it when its read timeout is over.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(e) => return Err(e),
        }
    };
    data.set_read_timeout(None)?;
    Ok((data, control, reader, answer))
}

/// Starts the watcher.
fn watch(
    data: &UnixStream,
    control: &UnixStream,
    gate: Arc<Gate>,
) -> io::Result<std::thread::JoinHandle<()>> {
    let (data, control) = (data.try_clone()?, control.try_clone()?);
    let host = unix::peer_process(&data);
    // Signals are for the main thread.
    signals::with_all_blocked(|| {
        std::thread::Builder::new()
            .name("mirai-watcher".into())
            .stack_size(128 * 1024)
            .spawn(move || {
                let mut reader = FrameReader::<Control>::new(Limits::HANDSHAKE);
                while unix::wait_readable(&control, host.as_ref())
                    && let Ok((1.., _)) = reader.fill(|room| unix::recv(control.as_fd(), room))
                {
                    while let Ok(Some((message, _))) = reader.next() {
                        match message {
                            Control::Cancel { seq } => gate.cancel(seq),
                            Control::End => gate.end(),
                        }
                    }
                }
                // The main thread may not have noticed.
                let _ = data.shutdown(std::net::Shutdown::Both);
                gate.hang_up(GRACE);
            })
    })
}
