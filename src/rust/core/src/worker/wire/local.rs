//! On the host's machine: two Unix sockets. The data channel is read by the main thread
//! itself (a thread in between would cost a wake-up per task), the control channel by a
//! thread of its own, the *watcher*. What goes to the host is in [`outbound`].

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::super::{ANSWER_TIMEOUT, DialError, GRACE, Options};
use super::{Dialling, Gate, Sender, Wire, accepted, cancel};
use crate::memory::{Arrival, Parts};
use crate::protocol::{Control, Frame, FrameReader, Limits, ToDaemon, ToHost, VERSION};
use crate::sys::signals::{self, poll_in};
use crate::sys::{Polled, spin};
use crate::transport::unix::{Come, Incoming};
use crate::transport::{Address, unix};

#[cfg(target_os = "linux")]
mod outbound;
#[cfg(not(target_os = "linux"))]
#[path = "local/socket_only.rs"]
mod outbound;

use outbound::Outbound;

struct LocalWire {
    data: UnixStream,
    /// Locked while something is sent: mostly by the main thread, rarely by the watcher.
    outbound: Arc<Mutex<Outbound>>,
    control: UnixStream,
    incoming: Incoming<ToDaemon>,
    watcher: Option<JoinHandle<()>>,
}

pub(super) fn dial(address: &Address, dialling: &Dialling<'_>) -> Result<Box<dyn Wire>, DialError> {
    let url = || address.to_string();
    let connect = |source| DialError::Connect { url: url(), source };
    let handshake = |source| DialError::Handshake { url: url(), source };
    let data = unix::connect(address).map_err(connect)?;
    let (data, control, incoming, answer) = introduce(data, dialling.options).map_err(handshake)?;
    accepted(answer, address)?;
    let (outbound, commands) = begin(&data, &control).map_err(handshake)?;
    let outbound = Arc::new(Mutex::new(outbound));
    let gate = dialling.gate.clone();
    let watcher = watch(&data, &control, commands, gate, outbound.clone()).map_err(handshake)?;
    Ok(Box::new(LocalWire {
        data,
        outbound,
        control,
        incoming,
        watcher: Some(watcher),
    }))
}

impl Wire for LocalWire {
    fn next(&mut self) -> io::Result<Option<(ToDaemon, Arrival)>> {
        self.incoming.next_frame()
    }

    fn wait(
        &mut self,
        most: Option<Duration>,
        interrupted: Option<&dyn Fn() -> bool>,
    ) -> io::Result<Polled> {
        self.outbound.lock().hand_over()?;
        spin(|| unix::is_readable(&self.data));
        if most.is_some() || interrupted.is_some() {
            let polled = poll_in(self.data.as_fd(), most, &|| {
                interrupted.is_some_and(|i| i())
            });
            if polled != Polled::Readable {
                return Ok(polled);
            }
            // A signal, too, ends a poll.
            let now = Some(Duration::ZERO);
            if poll_in(self.data.as_fd(), now, &|| false) != Polled::Readable {
                return Ok(Polled::Readable);
            }
        }
        match self.incoming.fill(self.data.as_fd()) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
            _ => Ok(Polled::Readable),
        }
    }

    fn send(&self, message: &ToHost, body: Parts<'_>) -> io::Result<()> {
        let more = self.incoming.holds_frame();
        self.outbound.lock().send(message, body, more)
    }

    fn passes_memory(&self) -> bool {
        cfg!(target_os = "linux")
    }

    fn sender(&self) -> Box<dyn Sender> {
        Box::new(LocalSender(self.outbound.clone()))
    }

    fn close(&mut self) {
        let _ = self.data.shutdown(std::net::Shutdown::Both);
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

struct LocalSender(Arc<Mutex<Outbound>>);

impl Sender for LocalSender {
    fn send(&self, message: &ToHost, body: Parts<'_>) -> io::Result<()> {
        self.0.lock().send(message, body, false)
    }
}

type Introduction = (UnixStream, UnixStream, Incoming<ToDaemon>, ToDaemon);

/// Sends the hello and hears the answer.
fn introduce(data: UnixStream, options: &Options) -> io::Result<Introduction> {
    let (control, theirs) = unix::control_pair()?;
    let hello = Frame::bare(&ToHost::Hello {
        version: VERSION,
        pid: std::process::id(),
        tempdir: options.tempdir.clone(),
        slots: options.slots,
    });
    unix::send_all(&data, &hello.head, &[], Some(theirs.as_fd()))?;
    drop(theirs);
    data.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut incoming = Incoming::<ToDaemon>::new(FrameReader::new(Limits::LINK));
    let answer = loop {
        if let Some((answer, _)) = incoming.next_frame()? {
            break answer;
        }
        match incoming.fill(data.as_fd()) {
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
    Ok((data, control, incoming, answer))
}

/// What the host says by the control channel: what is being read, and what was read already.
type Commands = (FrameReader<Control>, Option<Control>);

/// Takes the ring, if the host has offered one.
fn begin(data: &UnixStream, control: &UnixStream) -> io::Result<(Outbound, Commands)> {
    let data = data.try_clone()?;
    #[cfg_attr(not(target_os = "linux"), allow(unused_mut))]
    let mut reader = FrameReader::new(Limits::HANDSHAKE);
    #[cfg(target_os = "linux")]
    {
        let (taken, first) = unix::take_ring(control, &mut reader)?;
        Ok((Outbound::new(data, taken), (reader, first)))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = control;
        Ok((Outbound::new(data), (reader, None)))
    }
}

/// Starts the watcher.
fn watch(
    data: &UnixStream,
    control: &UnixStream,
    commands: Commands,
    gate: Arc<Gate>,
    outbound: Arc<Mutex<Outbound>>,
) -> io::Result<JoinHandle<()>> {
    let (data, control) = (data.try_clone()?, control.try_clone()?);
    let host = unix::peer_process(&data);
    // Signals are for the main thread.
    signals::with_all_blocked(|| {
        std::thread::Builder::new()
            .name("mirai-watcher".into())
            .stack_size(128 * 1024)
            .spawn(move || {
                let (mut reader, first) = commands;
                if let Some(message) = first {
                    obey(message, &gate, &outbound);
                }
                // Its own handle: the main thread holds the lock while it sends.
                let timer = outbound.lock().timer();
                let timer = timer.as_deref().map(AsFd::as_fd);
                loop {
                    while let Ok(Some((message, _))) = reader.next() {
                        obey(message, &gate, &outbound);
                    }
                    match unix::wait_readable_or(&control, host.as_ref(), timer) {
                        Come::End => break,
                        // If the host is gone, the next read will tell.
                        Come::Beside => drop(outbound.lock().tick()),
                        Come::Bytes => {
                            let read = reader.fill(|room| unix::recv(control.as_fd(), room));
                            let Ok((1.., _)) = read else {
                                break;
                            };
                        }
                    }
                }
                // The main thread may not have noticed.
                let _ = data.shutdown(std::net::Shutdown::Both);
                gate.hang_up(GRACE);
            })
    })
}

/// Does what the host says.
fn obey(message: Control, gate: &Arc<Gate>, outbound: &Mutex<Outbound>) {
    match message {
        Control::Cancel { seq } => cancel(gate, seq),
        Control::Recall { from, to } => {
            let from = gate.give_back(from, to);
            // If the host is gone, the next read will tell.
            let returned = ToHost::Returned { from, to };
            let _ = outbound.lock().send(&returned, (&[]).into(), false);
        }
        Control::End => gate.end(),
        // Here, what has arrived may begin; and a ring comes first.
        Control::Grant { .. } | Control::Ring { .. } => {}
    }
}
