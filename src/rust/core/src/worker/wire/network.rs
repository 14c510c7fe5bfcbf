//! Across the network: one connection, which one of NNG's threads reads. So while the main
//! thread is busy with R, messages are taken apart as they come, control messages are
//! obeyed, and the host hears that the daemon is there.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::{ANSWER_TIMEOUT, DialError, GRACE};
use super::{Dialling, Gate, Sender, Wire, accepted, cancel};
use crate::memory::{Arrival, Parts};
use crate::protocol::{Control, Frame, FrameReader, Limits, Seq, ToDaemon, ToHost, VERSION};
use crate::sys::Polled;
use crate::sys::io_thread;
use crate::sys::{Bell, Waited};
use crate::tls::Trust;
use crate::transport::nng::{self, Connection, Receiver};
use crate::transport::{Channel, NetworkUrl};

/// Time for the last words to a silent host to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// A body up to this is copied, so that the main thread need not wait until it is sent.
const COPIED: usize = 64 * 1024;

struct NetworkWire {
    connection: Arc<Connection>,
    inbox: Arc<Inbox>,
}

/// What has come and is not yet read by the main thread.
struct Inbox {
    state: Mutex<State>,
    bell: Bell,
    /// Once the host has said welcome.
    gate: OnceLock<Arc<Gate>>,
    connection: Weak<Connection>,
}

struct State {
    reader: FrameReader<ToDaemon>,
    ready: VecDeque<(ToDaemon, Arrival)>,
    /// The last task that may begin.
    granted: Seq,
    over: bool,
}

impl State {
    /// Whether there is something for the main thread: not a task that has not been granted, nor what
    /// stands behind it.
    fn has_next(&self) -> bool {
        match self.ready.front() {
            Some((ToDaemon::Task { seq, .. }, _)) => *seq <= self.granted,
            other => other.is_some(),
        }
    }
}

pub(super) fn dial(url: &NetworkUrl, dialling: &Dialling<'_>) -> Result<Box<dyn Wire>, DialError> {
    let trust = dialling.options.trust.as_ref();
    if url.scheme.is_secure() && trust.is_none() {
        return Err(DialError::Untrusted {
            url: url.to_string(),
            reason: "this URL is a secure one: give the host's certificate as 'tls'".into(),
        });
    }
    let trust = trust.filter(|_| url.scheme.is_secure());
    let dialled = nng::dial(url, trust, dialling.until, dialling.interrupted);
    let connection = dialled.map_err(|e| match e {
        nng::DialError::Failed(source) => DialError::Connect {
            url: url.to_string(),
            source,
        },
        nng::DialError::Untrusted(reason) => DialError::Untrusted {
            url: url.to_string(),
            reason,
        },
        nng::DialError::Interrupted => DialError::Interrupted,
        nng::DialError::TimedOut => DialError::TimedOut,
    })?;
    let inbox = Arc::new(Inbox {
        state: Mutex::new(State {
            reader: FrameReader::new(Limits::LINK),
            ready: VecDeque::new(),
            granted: 0,
            over: false,
        }),
        bell: Bell::new(),
        gate: OnceLock::new(),
        connection: Arc::downgrade(&connection),
    });
    let weak: Weak<Inbox> = Arc::downgrade(&inbox);
    connection.start(weak);
    let mut wire = NetworkWire { connection, inbox };
    let introduced = wire.introduce(url, trust, dialling);
    let patience = introduced.inspect_err(|_| wire.connection.close())?;
    let _ = wire.inbox.gate.set(dialling.gate.clone());
    if wire.inbox.state.lock().over {
        // Before there was a gate to tell.
        wire.inbox.hang_up();
    }
    if patience > 0 {
        let patience = Duration::from_millis(patience.into());
        keep_alive(&wire.connection, dialling.gate.clone(), patience);
    }
    Ok(Box::new(wire))
}

impl NetworkWire {
    /// Says hello, proves what is to be proved, and hears the answer.
    fn introduce(
        &mut self,
        url: &NetworkUrl,
        trust: Option<&Trust>,
        dialling: &Dialling<'_>,
    ) -> Result<u32, DialError> {
        let hello = ToHost::Hello {
            version: VERSION,
            pid: std::process::id(),
            // Of no use on another machine, and nobody's business there.
            tempdir: String::new(),
            slots: dialling.options.slots,
        };
        self.post(&hello, Bytes::new());
        let until = Instant::now() + ANSWER_TIMEOUT;
        loop {
            match self.answer(until, dialling.interrupted) {
                Ok(ToDaemon::Challenge { nonce }) => {
                    let secret = trust.and_then(Trust::secret);
                    let secret = secret.ok_or_else(|| DialError::Untrusted {
                        url: url.to_string(),
                        reason: "the host wants proof that this daemon is meant to be one: give as 'tls' \
                                 all of what launch_remote() shows there, not its certificate alone"
                            .into(),
                    })?;
                    let proof = secret.proof(b"daemon", &[&nonce]);
                    self.post(&ToHost::Proof { proof }, Bytes::new());
                }
                Ok(answer) => return accepted(answer, url),
                Err(Some(source)) => {
                    // Of TLS over TCP this is where the handshake fails.
                    let url = url.to_string();
                    return Err(match self.connection.failure() {
                        Some(reason) => DialError::Untrusted { url, reason },
                        None => DialError::Handshake { url, source },
                    });
                }
                Err(None) => return Err(DialError::Interrupted),
            }
        }
    }

    /// The next message; `None` as an error: interrupted.
    fn answer(
        &mut self,
        until: Instant,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<ToDaemon, Option<io::Error>> {
        loop {
            if let Some((message, _)) = self.next().map_err(Some)? {
                return Ok(message);
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.wait(Some(left), Some(interrupted)).map_err(Some)? {
                Polled::Readable => {}
                Polled::TimedOut => return Err(Some(io::ErrorKind::TimedOut.into())),
                Polled::Interrupted => return Err(None),
            }
        }
    }

    fn post(&self, message: &ToHost, body: Bytes) {
        post(&self.connection, message, body);
    }
}

fn post(connection: &Connection, message: &ToHost, body: Bytes) {
    connection.post(Channel::Data, Frame::new(message, body));
    connection.flush();
}

impl Sender for Arc<Connection> {
    fn send(&self, message: &ToHost, body: Parts<'_>) -> io::Result<()> {
        if body.is_plain() && body.bytes.len() <= COPIED {
            post(self, message, Bytes::copy_from_slice(body.bytes));
            return Ok(());
        }
        // SAFETY: only for as long as `send_all` takes, which does not return before the
        // connection has let go of it: it is sent, or never will be.
        let lent: &'static [u8] = unsafe { std::mem::transmute(body.bytes) };
        self.send_all(Frame::new(message, body.with(Bytes::from_static(lent))))
    }
}

impl Wire for NetworkWire {
    fn next(&mut self) -> io::Result<Option<(ToDaemon, Arrival)>> {
        let mut state = self.inbox.state.lock();
        Ok(match state.has_next() {
            true => state.ready.pop_front(),
            false => None,
        })
    }

    fn wait(
        &mut self,
        most: Option<Duration>,
        interrupted: Option<&dyn Fn() -> bool>,
    ) -> io::Result<Polled> {
        let inbox = &self.inbox;
        let come = || {
            let state = inbox.state.lock();
            state.has_next() || state.over
        };
        let interrupted = || interrupted.is_some_and(|i| i());
        Ok(match inbox.bell.wait(most, interrupted, come) {
            Waited::Ready => {
                let state = inbox.state.lock();
                if !state.has_next() && state.over {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Polled::Readable
            }
            Waited::TimedOut => Polled::TimedOut,
            Waited::Interrupted => Polled::Interrupted,
        })
    }

    fn send(&self, message: &ToHost, body: Parts<'_>) -> io::Result<()> {
        Sender::send(&self.connection, message, body)
    }

    fn sender(&self) -> Box<dyn Sender> {
        Box::new(self.connection.clone())
    }

    fn close(&mut self) {
        // What has been said last shall be heard: a value, or that a limit is reached.
        let _ = self
            .connection
            .wait_sent(Some(Instant::now() + ANSWER_TIMEOUT));
        self.connection.close();
    }
}

impl Inbox {
    /// The host is gone. This may wait for the main thread to leave, so not here.
    fn hang_up(&self) {
        if let Some(gate) = self.gate.get().cloned() {
            let told = std::thread::Builder::new()
                .name("mirai-watcher".into())
                .stack_size(128 * 1024)
                .spawn(move || gate.hang_up(GRACE));
            // Without a thread for it, the main thread alone will notice.
            drop(told);
        }
    }
}

impl Receiver for Inbox {
    fn received(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        while !bytes.is_empty() {
            bytes = &bytes[state.reader.feed(bytes)?..];
            while let Some((message, body)) = state.reader.next_arrival()? {
                match message {
                    ToDaemon::Ping => {
                        if let Some(connection) = self.connection.upgrade() {
                            connection.post(Channel::Control, Frame::bare(&ToHost::Pong));
                            connection.flush();
                        }
                    }
                    ToDaemon::Control(Control::Cancel { seq }) => {
                        if let Some(gate) = self.gate.get() {
                            cancel(gate, seq);
                        }
                    }
                    ToDaemon::Control(Control::Recall { from, to }) => {
                        let connection = self.connection.upgrade();
                        if let (Some(gate), Some(connection)) = (self.gate.get(), connection) {
                            let from = gate.give_back(from, to);
                            let returned = ToHost::Returned { from, to };
                            connection.post(Channel::Control, Frame::bare(&returned));
                            connection.flush();
                        }
                    }
                    ToDaemon::Control(Control::End) => {
                        if let Some(gate) = self.gate.get() {
                            gate.end();
                        }
                        // The host waits for that, as closing it there could overtake the message.
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                    ToDaemon::Control(Control::Grant { to }) => {
                        state.granted = state.granted.max(to);
                    }
                    message => {
                        if let ToDaemon::Task { granted, .. } = &message {
                            state.granted = state.granted.max(*granted);
                        }
                        state.ready.push_back((message, body));
                    }
                }
            }
        }
        drop(state);
        self.bell.ring();
        Ok(())
    }

    fn ended(&self) {
        self.state.lock().over = true;
        self.bell.ring();
        self.hang_up();
    }
}

/// Tells the host that this daemon is there, and gives up one that has not been heard for so
/// long, though it says something more often than that. For as long as the connection lives.
fn keep_alive(connection: &Arc<Connection>, gate: Arc<Gate>, patience: Duration) {
    connection.begin_keep_alive(patience);
    let connection = Arc::downgrade(connection);
    io_thread::handle().spawn(async move {
        loop {
            tokio::time::sleep(patience / 4).await;
            let Some(connection) = connection.upgrade() else {
                return;
            };
            if !connection.keep_alive(patience, || Frame::bare(&ToHost::Pong)) {
                give_up(connection, &gate);
                return;
            }
        }
    });
}

/// Ends a link whose host is silent. The host may only be suspended, and read this when it goes on: so it hears which
/// of the tasks that it has sent, or is about to send, never began.
fn give_up(connection: Arc<Connection>, gate: &Gate) {
    let begun = gate.stop();
    post(&connection, &ToHost::Leaving { begun }, Bytes::new());
    let theirs = connection.clone();
    let sending = std::thread::Builder::new()
        .name("mirai-farewell".into())
        .stack_size(128 * 1024)
        .spawn(move || {
            let _ = theirs.wait_sent(Some(Instant::now() + FAREWELL));
            theirs.close();
        });
    if sending.is_err() {
        connection.close();
    }
}
