//! One TLS connection: rustls between NNG's calls and the socket.

use std::ffi::c_int;
use std::io::{self, IoSlice, Read, Write};

use rustls::{ClientConnection, Connection, ServerConnection};

use super::super::cork::Cork;
use super::super::trust::describe;
use super::{Failure, Role};

/// Pieces of a frame are put together up to this size.
const HOLD: usize = 4096;

/// As much of a piece is encrypted at a time.
const SEND_AHEAD: usize = 256 * 1024;

// Codes of NNG's.
pub(super) const CLOSED: c_int = nng_sys::NNG_ECLOSED as c_int;
const CONN_SHUT: c_int = nng_sys::NNG_ECONNSHUT as c_int;
pub(super) const CRYPTO: c_int = nng_sys::NNG_ECRYPTO as c_int;
pub(super) const INTERNAL: c_int = nng_sys::NNG_EINTERNAL as c_int;

/// Why one of the engine's functions has not done what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The socket has to take or give bytes first.
    WouldBlock,
    /// It cannot be done any more; NNG gets this code.
    Failed(c_int),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Stop::WouldBlock,
            io::ErrorKind::BrokenPipe => Stop::Failed(CLOSED),
            _ => Stop::Failed(CRYPTO),
        }
    }
}

/// One TLS connection. `W` is the way to the socket.
pub(super) struct Conn<W> {
    tls: Connection,
    wire: W,
    /// Where the dialer looks for the reason, as long as the handshake can fail. `None` afterwards, and for a host.
    failure: Option<Failure>,
    state: State,
    cork: Cork,
    /// The beginning of a frame whose rest is sure to come, or what cannot be sent before
    /// the handshake is done.
    held: Vec<u8>,
    /// Of the piece that `send` was last called with: bytes already encrypted, but not yet all sent.
    sent: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Handshaking,
    Open,
    /// The peer caused the handshake to fail. Its TLS alert is still being sent.
    Alerting,
    /// All is over: every call returns this code of NNG's.
    Broken(c_int),
}

/// How much is done of a buffer that NNG will come back with.
#[derive(Debug, Default)]
struct Part {
    of: usize,
    done: usize,
}

impl Part {
    /// That it is indeed the same buffer, which NNG gives up only along with the connection.
    fn check(&self, buf: &[u8]) -> Result<(), Stop> {
        if self.done == 0 || (self.of == buf.as_ptr().addr() && self.done <= buf.len()) {
            return Ok(());
        }
        Err(Stop::Failed(INTERNAL))
    }

    fn add(&mut self, n: usize, buf: &[u8]) {
        self.of = buf.as_ptr().addr();
        self.done += n;
    }

    fn take(&mut self) -> usize {
        std::mem::take(&mut self.done)
    }
}

impl<W: Read + Write> Conn<W> {
    pub(super) fn new(role: &Role, wire: W) -> Result<Self, c_int> {
        let (mut tls, failure) = match role {
            Role::Server(config) => {
                let tls = ServerConnection::new(config.clone()).map_err(|_| CRYPTO)?;
                (Connection::from(tls), None)
            }
            Role::Client {
                config,
                name,
                failure,
            } => {
                let tls = ClientConnection::new(config.clone(), name.clone()).map_err(|e| {
                    failure.set(Some(describe(&e)));
                    CRYPTO
                })?;
                (Connection::from(tls), Some(failure.clone()))
            }
        };
        tls.set_buffer_limit(None); // we limit what we give
        Ok(Conn {
            tls,
            wire,
            failure,
            state: State::Handshaking,
            cork: Cork::default(),
            held: Vec::new(),
            sent: Part::default(),
        })
    }

    fn ready(&mut self) -> Result<(), Stop> {
        match self.state {
            State::Handshaking => self.handshake(),
            State::Open => Ok(()),
            // An error here would close the socket before the alert is sent. NNG asks
            // for the handshake, not for this, once the socket has taken something.
            State::Alerting => Err(Stop::WouldBlock),
            State::Broken(rv) => Err(Stop::Failed(rv)),
        }
    }

    pub(super) fn handshake(&mut self) -> Result<(), Stop> {
        match self.state {
            State::Handshaking | State::Open => {}
            State::Alerting => {
                self.state = State::Broken(CRYPTO); // NNG asks no more after this
                return Err(Stop::Failed(CRYPTO));
            }
            State::Broken(rv) => return Err(Stop::Failed(rv)),
        }
        while self.tls.is_handshaking() {
            self.flush()?;
            self.pull()?;
        }
        if !self.held.is_empty() {
            self.encrypt(&[])?;
        }
        self.flush()?;
        self.state = State::Open;
        if let Some(failure) = self.failure.take() {
            failure.set(None);
        }
        Ok(())
    }

    /// Takes up to all of `piece`: returns how many bytes, once they are sent or held.
    pub(super) fn send(&mut self, piece: &[u8]) -> Result<usize, Stop> {
        match self.ready() {
            // Who greets first is made to wait for the answer instead: NNG can give up
            // receiving after a time, but not sending while the socket has nothing to send.
            Err(Stop::WouldBlock)
                if self.state == State::Handshaking && self.held.len() + piece.len() <= HOLD =>
            {
                self.cork.ends_frame(piece);
                self.held.extend_from_slice(piece);
                return Ok(piece.len());
            }
            other => other?,
        }
        self.sent.check(piece)?;
        if self.sent.done == 0 {
            let piece = &piece[..piece.len().min(SEND_AHEAD)];
            if !self.cork.ends_frame(piece) && self.held.len() + piece.len() <= HOLD {
                self.held.extend_from_slice(piece);
                return Ok(piece.len());
            }
            self.encrypt(piece)?;
            self.sent.add(piece.len(), piece);
        }
        self.flush()?;
        Ok(self.sent.take())
    }

    /// With what is held before it, and without copying it first.
    fn encrypt(&mut self, piece: &[u8]) -> io::Result<()> {
        let all = [IoSlice::new(&self.held), IoSlice::new(piece)];
        let size = self.held.len() + piece.len();
        let taken = if self.held.is_empty() {
            self.tls.writer().write(piece)?
        } else {
            self.tls.writer().write_vectored(&all)?
        };
        if taken != size {
            return Err(io::ErrorKind::Other.into());
        }
        self.held.clear();
        Ok(())
    }

    /// Fills as much of `buf` as there is.
    pub(super) fn recv(&mut self, buf: &mut [u8]) -> Result<usize, Stop> {
        self.ready()?;
        let mut filled = 0;
        loop {
            match self.tls.reader().read(&mut buf[filled..]) {
                Ok(0) if filled > 0 => return Ok(filled), // and the end when asked again
                Ok(0) => return Err(Stop::Failed(CONN_SHUT)),
                Ok(n) => {
                    filled += n;
                    if filled == buf.len() {
                        return Ok(filled);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(not) = self.pull() {
                        return if filled > 0 { Ok(filled) } else { Err(not) };
                    }
                    // Acknowledgements and the like. If the socket does not take
                    // them now, they go with whatever is sent next.
                    if let Err(Stop::Failed(rv)) = self.flush() {
                        return Err(Stop::Failed(rv));
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Ends the connection in good order, as far as the socket takes it now.
    pub(super) fn close(&mut self) {
        if matches!(self.state, State::Handshaking | State::Open) {
            self.tls.send_close_notify();
            let _ = self.flush();
            self.state = State::Broken(CLOSED);
        }
    }

    /// After a panic in here.
    pub(super) fn fail_inside(&mut self) {
        self.state = State::Broken(INTERNAL);
    }

    /// Whether the peer has shown whom its certificate names.
    pub(super) fn is_verified(&self) -> bool {
        self.state == State::Open && matches!(self.tls, Connection::Client(_))
    }

    /// All that rustls has for the peer.
    fn flush(&mut self) -> Result<(), Stop> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.wire)?;
        }
        Ok(())
    }

    /// Some of what the peer sent.
    fn pull(&mut self) -> Result<(), Stop> {
        if self.tls.read_tls(&mut self.wire)? == 0 {
            return Err(Stop::Failed(CONN_SHUT));
        }
        self.tls
            .process_new_packets()
            .map(drop)
            .map_err(|error| self.fail(&error))
    }

    /// Says why to the user, and to the peer by a TLS alert.
    fn fail(&mut self, error: &rustls::Error) -> Stop {
        if let Some(failure) = &self.failure {
            failure.set(Some(describe(error)));
        }
        let alert = self.tls.wants_write();
        let alerting = self.flush().is_ok() && alert;
        self.state = match self.state {
            State::Handshaking if alerting => State::Alerting,
            _ => State::Broken(CRYPTO),
        };
        if alerting {
            // NNG closes the socket when we fail, and the alert may still wait
            // behind something. Having sent it, NNG will ask again.
            Stop::WouldBlock
        } else {
            Stop::Failed(CRYPTO)
        }
    }
}

impl<W> Drop for Conn<W> {
    fn drop(&mut self) {
        if let Some(failure) = &self.failure {
            let mut why = failure.0.lock();
            why.get_or_insert_with(|| "the connection ended during the TLS handshake".into());
        }
    }
}

/// For the fuzzer: a host's and a daemon's end of TLS, to which the peer says `input`.
#[cfg(fuzzing)]
pub(crate) fn fuzz(input: &[u8], identity: &crate::tls::Identity, trust: &crate::tls::Trust) {
    struct Script<'a>(&'a [u8]);

    impl Read for Script<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            // A few bytes at a time: records arrive in parts.
            let n = self.0.len().min(buf.len()).min(61);
            if n == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    impl Write for Script<'_> {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let server = Role::Server(identity.config().clone());
    let client = Role::Client {
        config: trust.config().clone(),
        name: crate::tls::server_name("127.0.0.1").expect("it is an address"),
        failure: Failure::default(),
    };
    for role in [server, client] {
        let Ok(mut conn) = Conn::new(&role, Script(input)) else {
            continue;
        };
        let mut buf = [0; 512];
        for _ in 0..64 {
            match conn.recv(&mut buf) {
                Ok(_) | Err(Stop::WouldBlock) => {}
                Err(Stop::Failed(_)) => break,
            }
            let _ = conn.send(b"GET / HTTP/1.1\r\n\r\n");
        }
        conn.close();
    }
}
