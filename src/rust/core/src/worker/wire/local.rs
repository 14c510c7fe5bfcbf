//! On the host's machine: two Unix sockets. The data channel is read by the main thread
//! itself (a thread in between would cost a wake-up per task), the control channel by a
//! thread of its own, the *watcher*.

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
use crate::transport::unix::Incoming;
use crate::transport::{Address, unix};

struct LocalWire {
    data: UnixStream,
    /// Held while something is sent there: mostly by the main thread, rarely by the watcher.
    sending: Arc<Mutex<()>>,
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
    let sending = Arc::default();
    let gate = dialling.gate.clone();
    let watcher = watch(&data, &control, gate, Arc::clone(&sending)).map_err(handshake)?;
    Ok(Box::new(LocalWire {
        data,
        sending,
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
        let _sending = self.sending.lock();
        unix::send_message(&self.data, message, body)
    }

    fn passes_memory(&self) -> bool {
        cfg!(target_os = "linux")
    }

    fn sender(&self) -> Box<dyn Sender> {
        Box::new(LocalSender {
            data: self.data.try_clone(),
            sending: self.sending.clone(),
        })
    }

    fn close(&mut self) {
        let _ = self.data.shutdown(std::net::Shutdown::Both);
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// Another handle of the socket, if there could be one.
struct LocalSender {
    data: io::Result<UnixStream>,
    sending: Arc<Mutex<()>>,
}

impl Sender for LocalSender {
    fn send(&self, message: &ToHost, body: Parts<'_>) -> io::Result<()> {
        let _sending = self.sending.lock();
        match &self.data {
            Ok(data) => unix::send_message(data, message, body),
            Err(e) => Err(e.kind().into()),
        }
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

/// Starts the watcher.
fn watch(
    data: &UnixStream,
    control: &UnixStream,
    gate: Arc<Gate>,
    sending: Arc<Mutex<()>>,
) -> io::Result<JoinHandle<()>> {
    let (data, control) = (data.try_clone()?, control.try_clone()?);
    let host = unix::peer_process(&data);
    // Signals are for the main thread.
    signals::with_all_blocked(|| {
        std::thread::Builder::new()
            .name("mirai-watcher".into())
            .stack_size(128 * 1024)
            .spawn(move || {
                let mut reader = FrameReader::<Control>::new(Limits::HANDSHAKE);
                while unix::wait_readable(&control, host.as_ref()) {
                    let Ok((1.., _)) = reader.fill(|room| unix::recv(control.as_fd(), room)) else {
                        break;
                    };
                    while let Ok(Some((message, _))) = reader.next() {
                        match message {
                            Control::Cancel { seq } => cancel(&gate, seq),
                            Control::Recall { from, to } => {
                                let from = gate.give_back(from, to);
                                let _sending = sending.lock();
                                // If the host is gone, the next read will tell.
                                let returned = ToHost::Returned { from, to };
                                let _ = unix::send_message(&data, &returned, (&[]).into());
                            }
                            Control::End => gate.end(),
                            // Here, what has arrived may begin.
                            Control::Grant { .. } => {}
                        }
                    }
                }
                // The main thread may not have noticed.
                let _ = data.shutdown(std::net::Shutdown::Both);
                gate.hang_up(GRACE);
            })
    })
}
