//! On the host's machine, on Windows: one named pipe, which a thread of its own reads, the *watcher*. So while the main
//! thread is busy with R, control messages are obeyed, and the host's end is seen.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::{ANSWER_TIMEOUT, DialError, GRACE, Options};
use super::{Dialling, Gate, Sender, Wire, accepted, cancel};
use crate::memory::{Arrival, Parts};
use crate::protocol::frame::encode_head;
use crate::protocol::{Control, FrameReader, Limits, ToDaemon, ToHost, VERSION};
use crate::sys::Polled;
use crate::sys::{Bell, Waited};
use crate::transport::Address;
use crate::transport::pipe::Client;

struct PipeWire {
    client: Arc<Client>,
    inbox: Arc<Inbox>,
    watcher: Option<JoinHandle<()>>,
}

/// What has come and is not yet read by the main thread.
struct Inbox {
    state: Mutex<State>,
    bell: Bell,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct State {
    ready: VecDeque<(ToDaemon, Vec<u8>)>,
    /// The host has said so. The end of a host that has not is only that of an attempt to dial.
    welcome: bool,
    over: bool,
}

pub(super) fn dial(address: &Address, dialling: &Dialling<'_>) -> Result<Box<dyn Wire>, DialError> {
    let url = || address.to_string();
    let connect = |source| DialError::Connect { url: url(), source };
    let handshake = |source| DialError::Handshake { url: url(), source };
    let client = Arc::new(Client::connect(address).map_err(connect)?);
    let inbox = Arc::new(Inbox {
        state: Mutex::default(),
        bell: Bell::new(),
        gate: dialling.gate.clone(),
    });
    let watcher = watch(client.clone(), inbox.clone()).map_err(handshake)?;
    // Dropped on an error, and the watcher ends with it.
    let mut wire = Box::new(PipeWire {
        client,
        inbox,
        watcher: Some(watcher),
    });
    let answer = wire.introduce(dialling.options).map_err(handshake)?;
    accepted(answer, address)?;
    Ok(wire)
}

impl PipeWire {
    /// Sends the hello and hears the answer.
    fn introduce(&mut self, options: &Options) -> io::Result<ToDaemon> {
        let hello = ToHost::Hello {
            version: VERSION,
            pid: std::process::id(),
            tempdir: options.tempdir.clone(),
            slots: options.slots,
        };
        Wire::send(self, &hello, (&[]).into())?;
        let until = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if let Some((answer, _)) = self.next()? {
                return Ok(answer);
            }
            let left = until.saturating_duration_since(Instant::now());
            if self.wait(Some(left), None)? == Polled::TimedOut {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Wire for PipeWire {
    fn next(&mut self) -> io::Result<Option<(ToDaemon, Arrival)>> {
        let next = self.inbox.state.lock().ready.pop_front();
        Ok(next.map(|(message, body)| (message, body.into())))
    }

    fn wait(
        &mut self,
        most: Option<Duration>,
        interrupted: Option<&dyn Fn() -> bool>,
    ) -> io::Result<Polled> {
        let inbox = &self.inbox;
        let come = || {
            let state = inbox.state.lock();
            !state.ready.is_empty() || state.over
        };
        let interrupted = || interrupted.is_some_and(|i| i());
        Ok(match inbox.bell.wait(most, interrupted, come) {
            Waited::Ready if inbox.state.lock().ready.is_empty() => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Waited::Ready => Polled::Readable,
            Waited::TimedOut => Polled::TimedOut,
            Waited::Interrupted => Polled::Interrupted,
        })
    }

    fn send(&self, message: &ToHost, body: Parts<'_>) -> io::Result<()> {
        Sender::send(&self.client, message, body)
    }

    fn sender(&self) -> Box<dyn Sender> {
        Box::new(self.client.clone())
    }

    fn close(&mut self) {
        self.client.stop();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

impl Drop for PipeWire {
    fn drop(&mut self) {
        self.close();
    }
}

impl Sender for Arc<Client> {
    fn send(&self, message: &ToHost, body: Parts<'_>) -> io::Result<()> {
        let body = body.plain();
        let sent = self.send_all(&encode_head(message, body.len()), &body);
        sent.inspect_err(|_| self.stop())
    }
}

/// Starts the watcher.
fn watch(client: Arc<Client>, inbox: Arc<Inbox>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("mirai-watcher".into())
        .spawn(move || {
            // An error: the host is gone, says what is not in the protocol, or this end has been closed.
            let _over = inbox.read(&client);
            let welcome = {
                let mut state = inbox.state.lock();
                state.over = true;
                state.welcome
            };
            inbox.bell.ring();
            if welcome {
                inbox.gate.hang_up(GRACE);
            }
        })
}

impl Inbox {
    /// Takes apart what comes, until the end.
    fn read(&self, client: &Arc<Client>) -> io::Result<()> {
        let mut reader = FrameReader::<ToDaemon>::new(Limits::LINK);
        while let (1.., _) = reader.fill(|room| client.read(room))? {
            while let Some((message, body)) = reader.next()? {
                match message {
                    ToDaemon::Control(Control::Cancel { seq }) => cancel(&self.gate, seq),
                    ToDaemon::Control(Control::Recall { from, to }) => {
                        let from = self.gate.give_back(from, to);
                        let returned = ToHost::Returned { from, to };
                        Sender::send(client, &returned, (&[]).into())?;
                    }
                    ToDaemon::Control(Control::End) => self.gate.end(),
                    // Here, what has arrived may begin.
                    ToDaemon::Control(Control::Grant { .. } | Control::Ring { .. }) => {}
                    message => {
                        let mut state = self.state.lock();
                        state.welcome |= matches!(message, ToDaemon::Welcome { .. });
                        state.ready.push_back((message, body));
                        drop(state);
                        self.bell.ring();
                    }
                }
            }
        }
        Ok(())
    }
}
