//! rustls as NNG's TLS engine: what carries `tls+tcp` and `wss`.
//!
//! NNG knows TLS libraries only through tables of functions
//! (`nng/supplemental/tls/engine.h`) and configures them by text in PEM. Ours
//! takes ready configurations of rustls instead: [`secure_listener`] and
//! [`secure_dialer`] leave one in a thread-local, and the engine's function for a
//! new configuration, which NNG calls from there, picks it up. What NNG makes
//! without them, by itself, has none, and all of its connections fail.
//!
//! NNG's side of the interface is `nng/src/supplemental/tls/tls_common.c`, and
//! three things about it are not in the header. It may call `send` and `recv`
//! before the handshake is done. It calls again after the socket has taken or
//! given bytes, but only for what somebody above waits for: bytes left with us
//! after a successful `send` could stay for ever, so `send` is successful only
//! once all have gone. And of several pieces it passes on one a call, each
//! costing a switch of threads: see [`cork`](super::cork).

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::{self, IoSlice, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Once};

use nng_sys::{
    nng_stream_dialer, nng_stream_dialer_set_ptr, nng_stream_listener, nng_stream_listener_set_ptr,
};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::cork::Cork;
use super::trust::describe;
use super::{Identity, Trust};

/// Records of this size, by rustls's reckoning, fit NNG's buffer of 16 KiB with what
/// encryption adds, 24 bytes at most: so none of them is sent in two parts.
pub(super) const MAX_RECORD: usize = 16384 - 24;

/// Pieces of a frame are put together up to this size.
const HOLD: usize = 4096;

/// As much of a piece is encrypted at a time.
const SEND_AHEAD: usize = 256 * 1024;

/// Makes rustls the TLS engine of NNG in this process.
///
/// NNG refuses to make a listener or dialer for `tls+tcp` or `wss` before.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: no arguments; it initialises NNG, which would forget an
        // engine registered before that.
        unsafe { nng_tls_engine_name() };
        // SAFETY: the tables are constants of the shape of engine.h, version 1.
        let rv = unsafe { nng_tls_engine_register(&ENGINE.0) };
        assert_eq!(rv, 0, "NNG refuses a TLS engine of version 1");
    });
}

/// Has `listener` be `identity`. Before it is started.
///
/// # Safety
/// The listener lives.
pub unsafe fn secure_listener(
    listener: *mut nng_stream_listener,
    identity: &Identity,
) -> Result<(), nng::Error> {
    identity.shared().with_pointer(|config| {
        // SAFETY: the listener lives, the option's name is a C string, and its value a
        // configuration that lives through the call; NNG takes a hold of its own.
        check(unsafe { nng_stream_listener_set_ptr(listener, TLS_CONFIG.as_ptr(), config) })
    })
}

/// Has `dialer` connect only to whom `trust` believes to be `name`: the host
/// name or IP address, brackets or not, of its URL. Before it is started.
///
/// Returns the place where the reason for a failed handshake is found.
///
/// # Safety
/// The dialer lives.
pub unsafe fn secure_dialer(
    dialer: *mut nng_stream_dialer,
    trust: &Trust,
    name: &str,
) -> Result<Failure, nng::Error> {
    let name = super::server_name(name).ok_or(nng::Error::AddressInvalid)?;
    let failure = Failure::default();
    let role = Role::Client {
        config: trust.config().clone(),
        name,
        failure: failure.clone(),
    };
    Shared::new(role).with_pointer(|config| {
        // SAFETY: as in `secure_listener`.
        check(unsafe { nng_stream_dialer_set_ptr(dialer, TLS_CONFIG.as_ptr(), config) })
    })?;
    Ok(failure)
}

/// Why a dialer's last TLS handshake failed, in words for the user. Shared by all clones.
#[derive(Debug, Clone, Default)]
pub struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    /// None while nothing has failed, and after a handshake that succeeded.
    pub fn get(&self) -> Option<String> {
        self.0.lock().clone()
    }

    fn set(&self, why: Option<String>) {
        *self.0.lock() = why;
    }
}

const TLS_CONFIG: &CStr = match CStr::from_bytes_with_nul(nng_sys::NNG_OPT_TLS_CONFIG) {
    Ok(name) => name,
    Err(_) => panic!("not a C string"),
};

pub(super) fn check(rv: c_int) -> Result<(), nng::Error> {
    std::num::NonZeroU32::new(rv as u32).map_or(Ok(()), |code| Err(nng::Error::from(code)))
}

/// Which end of a connection we are, and how.
#[derive(Clone)]
enum Role {
    Server(Arc<ServerConfig>),
    Client {
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        failure: Failure,
    },
}

thread_local! {
    /// For the next configuration that NNG makes on this thread.
    static ROLE: RefCell<Option<Role>> = const { RefCell::new(None) };
}

/// A configuration object of NNG's, made when it is first needed.
///
/// An identity keeps its only one: listeners of `wss` with the same address share a
/// server inside NNG, and giving it another configuration while it is accepting
/// could free the one in use.
pub(super) struct Shared {
    role: Role,
    made: Mutex<Option<Handle>>,
}

impl Shared {
    pub(super) fn server(config: Arc<ServerConfig>) -> Self {
        Self::new(Role::Server(config))
    }

    fn new(role: Role) -> Self {
        Shared {
            role,
            made: Mutex::new(None),
        }
    }

    fn with_pointer<T>(
        &self,
        use_it: impl FnOnce(*mut c_void) -> Result<T, nng::Error>,
    ) -> Result<T, nng::Error> {
        install();
        let mut made = self.made.lock();
        let handle = match &*made {
            Some(handle) => handle,
            None => made.insert(Handle::new(&self.role)?),
        };
        use_it(handle.0.as_ptr())
    }
}

/// One hold of a configuration object of NNG's.
struct Handle(NonNull<c_void>);

// SAFETY: NNG counts the holds of the object under a lock of its own, and we
// never change it.
unsafe impl Send for Handle {}

impl Handle {
    fn new(role: &Role) -> Result<Self, nng::Error> {
        let mode = match role {
            Role::Client { .. } => MODE_CLIENT,
            Role::Server(_) => MODE_SERVER,
        };
        ROLE.set(Some(role.clone()));
        let mut config = null_mut();
        // SAFETY: `config` is where the new object's address goes.
        let rv = unsafe { nng_tls_config_alloc(&mut config, mode) };
        ROLE.take();
        check(rv)?;
        NonNull::new(config)
            .map(Handle)
            .ok_or(nng::Error::OutOfMemory)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the hold is ours and given up once.
        unsafe { nng_tls_config_free(self.0.as_ptr()) };
    }
}

/// The bytes of a connection on their way between rustls and NNG's socket.
#[derive(Clone, Copy)]
struct Wire(*mut c_void);

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut n = buf.len();
        // SAFETY: NNG's connection lives as long as ours and is locked by whoever
        // called us; `buf` has room for `n` bytes.
        match unsafe { nng_tls_engine_recv(self.0, buf.as_mut_ptr(), &mut n) } {
            0 => Ok(n),
            rv => Err(wire_error(rv)),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut n = buf.len();
        // SAFETY: as in `read`; `buf` holds `n` bytes, which NNG copies.
        match unsafe { nng_tls_engine_send(self.0, buf.as_ptr(), &mut n) } {
            0 => Ok(n),
            rv => Err(wire_error(rv)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wire_error(rv: c_int) -> io::Error {
    if rv == AGAIN {
        io::ErrorKind::WouldBlock.into()
    } else {
        io::ErrorKind::BrokenPipe.into()
    }
}

/// Why one of the engine's functions has not done what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
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

/// One TLS connection. `W` is [`Wire`] but for the fuzzer.
struct Conn<W = Wire> {
    tls: Connection,
    wire: W,
    failure: Option<Failure>,
    /// The handshake is done.
    open: bool,
    /// Set when all is over: what every call returns from then on.
    broken: Option<c_int>,
    /// It was by a fault of the peer's, of which it is being told.
    alerting: bool,
    cork: Cork,
    /// The beginning of a frame whose rest is sure to come, or what cannot be sent before
    /// the handshake is done.
    held: Vec<u8>,
    /// Of the piece that `send` was last called with: bytes already encrypted, but not yet all sent.
    sent: Part,
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
    fn new(role: &Role, wire: W) -> Result<Self, c_int> {
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
            open: false,
            broken: None,
            alerting: false,
            cork: Cork::default(),
            held: Vec::new(),
            sent: Part::default(),
        })
    }

    fn ready(&mut self) -> Result<(), Stop> {
        match self.broken {
            // An error here would close the socket before the alert is sent. NNG asks
            // for the handshake, not for this, once the socket has taken something.
            Some(_) if self.alerting && !self.open => Err(Stop::WouldBlock),
            Some(rv) => Err(Stop::Failed(rv)),
            None if self.open => Ok(()),
            None => self.handshake(),
        }
    }

    fn handshake(&mut self) -> Result<(), Stop> {
        if let Some(rv) = self.broken {
            self.alerting = false; // NNG asks no more after this
            return Err(Stop::Failed(rv));
        }
        while self.tls.is_handshaking() {
            self.flush()?;
            self.pull()?;
        }
        if !self.held.is_empty() {
            self.encrypt(&[])?;
        }
        self.flush()?;
        if !self.open {
            self.open = true;
            if let Some(failure) = &self.failure {
                failure.set(None);
            }
        }
        Ok(())
    }

    /// Takes up to all of `piece`: returns how many bytes, once they are sent or held.
    fn send(&mut self, piece: &[u8]) -> Result<usize, Stop> {
        match self.ready() {
            // Who greets first is made to wait for the answer instead: NNG can give up
            // receiving after a time, but not sending while the socket has nothing to send.
            Err(Stop::WouldBlock)
                if self.broken.is_none() && self.held.len() + piece.len() <= HOLD =>
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
    fn recv(&mut self, buf: &mut [u8]) -> Result<usize, Stop> {
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
    fn close(&mut self) {
        if self.broken.is_none() {
            self.tls.send_close_notify();
            let _ = self.flush();
            self.broken = Some(CLOSED);
        }
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
        if let (Some(failure), false) = (&self.failure, self.open) {
            failure.set(Some(describe(error)));
        }
        self.broken = Some(CRYPTO);
        let alert = self.tls.wants_write();
        self.alerting = self.flush().is_ok() && alert;
        if self.alerting {
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
        if let (Some(failure), false) = (&self.failure, self.open) {
            let mut why = failure.0.lock();
            why.get_or_insert_with(|| "the connection ended during the TLS handshake".into());
        }
    }
}

// What follows is called by NNG. `*mut *mut Conn` is the memory that it keeps for us in
// each connection: zeroed at first, then a `Box` of ours.

/// Runs `act` on a connection, or says that there is none. No panic leaves it.
///
/// # Safety
/// `slot` is as NNG gives it, and nobody else uses the connection meanwhile:
/// NNG holds its lock.
unsafe fn with_conn(
    slot: *mut *mut Conn,
    act: impl FnOnce(&mut Conn) -> Result<(), Stop>,
) -> c_int {
    // SAFETY: promised by the caller.
    let Some(conn) = (unsafe { (*slot).as_mut() }) else {
        return CLOSED;
    };
    match catch_unwind(AssertUnwindSafe(|| act(conn))) {
        Ok(Ok(())) => 0,
        Ok(Err(Stop::WouldBlock)) => AGAIN,
        Ok(Err(Stop::Failed(rv))) => rv,
        Err(_) => {
            conn.broken = Some(INTERNAL);
            INTERNAL
        }
    }
}

unsafe extern "C" fn conn_init(
    slot: *mut *mut Conn,
    wire: *mut c_void,
    config: *mut *mut Role,
) -> c_int {
    // SAFETY: `config` is memory set by `config_init`; NNG holds the configuration.
    let Some(role) = (unsafe { (*config).as_ref() }) else {
        return CRYPTO; // made by NNG itself
    };
    match catch_unwind(AssertUnwindSafe(|| Conn::new(role, Wire(wire)))) {
        Ok(Ok(conn)) => {
            // SAFETY: `slot` is NNG's memory for us, still zero.
            unsafe { *slot = Box::into_raw(Box::new(conn)) };
            0
        }
        Ok(Err(rv)) => rv,
        Err(_) => INTERNAL,
    }
}

unsafe extern "C" fn conn_fini(slot: *mut *mut Conn) {
    // SAFETY: NNG is done with the connection, and does this even if it was never
    // initialised: then the pointer is null.
    unsafe {
        let conn = std::mem::replace(&mut *slot, null_mut());
        if !conn.is_null() {
            let conn = Box::from_raw(conn);
            let _ = catch_unwind(AssertUnwindSafe(|| drop(conn)));
        }
    }
}

unsafe extern "C" fn conn_close(slot: *mut *mut Conn) {
    // SAFETY: called by NNG under its lock.
    unsafe {
        with_conn(slot, |conn| {
            conn.close();
            Ok(())
        })
    };
}

unsafe extern "C" fn conn_handshake(slot: *mut *mut Conn) -> c_int {
    // SAFETY: called by NNG under its lock.
    unsafe { with_conn(slot, Conn::handshake) }
}

unsafe extern "C" fn conn_recv(slot: *mut *mut Conn, buf: *mut u8, size: *mut usize) -> c_int {
    // SAFETY: called by NNG under its lock, with `size` bytes at `buf`, from C's
    // allocator, that belong to whoever receives; we only write to them.
    unsafe {
        let buf = std::slice::from_raw_parts_mut(buf, *size);
        with_conn(slot, |conn| {
            *size = conn.recv(buf)?;
            Ok(())
        })
    }
}

unsafe extern "C" fn conn_send(slot: *mut *mut Conn, buf: *const u8, size: *mut usize) -> c_int {
    // SAFETY: called by NNG under its lock, with `size` bytes at `buf`.
    unsafe {
        let buf = std::slice::from_raw_parts(buf, *size);
        with_conn(slot, |conn| {
            *size = conn.send(buf)?;
            Ok(())
        })
    }
}

unsafe extern "C" fn conn_verified(slot: *mut *mut Conn) -> bool {
    let mut verified = false;
    // SAFETY: called by NNG under its lock.
    unsafe {
        with_conn(slot, |conn| {
            verified = conn.open && matches!(conn.tls, Connection::Client(_));
            Ok(())
        })
    };
    verified
}

unsafe extern "C" fn config_init(slot: *mut *mut Role, _mode: c_int) -> c_int {
    let role = ROLE
        .take()
        .map_or(null_mut(), |r| Box::into_raw(Box::new(r)));
    // SAFETY: `slot` is NNG's memory for us in the new configuration.
    unsafe { *slot = role };
    0
}

unsafe extern "C" fn config_fini(slot: *mut *mut Role) {
    // SAFETY: nobody holds the configuration any more; set by `config_init`.
    unsafe {
        let role = std::mem::replace(&mut *slot, null_mut());
        if !role.is_null() {
            drop(Box::from_raw(role));
        }
    }
}

/// NNG sets the host of a dialer's URL by itself. Our name comes from [`secure_dialer`].
unsafe extern "C" fn config_server(_: *mut *mut Role, _: *const c_char) -> c_int {
    0
}

/// NNG sets this for listeners by itself. Whether to verify is not a question here.
unsafe extern "C" fn config_auth(_: *mut *mut Role, _: c_int) -> c_int {
    0
}

unsafe extern "C" fn config_ca_chain(
    _: *mut *mut Role,
    _: *const c_char,
    _: *const c_char,
) -> c_int {
    UNSUPPORTED
}

unsafe extern "C" fn config_own_cert(
    _: *mut *mut Role,
    _: *const c_char,
    _: *const c_char,
    _: *const c_char,
) -> c_int {
    UNSUPPORTED
}

unsafe extern "C" fn config_version(_: *mut *mut Role, _: c_int, _: c_int) -> c_int {
    UNSUPPORTED
}

/// `nng_tls_engine_conn_ops`
#[repr(C)]
struct ConnOps {
    size: usize,
    init: unsafe extern "C" fn(*mut *mut Conn, *mut c_void, *mut *mut Role) -> c_int,
    fini: unsafe extern "C" fn(*mut *mut Conn),
    close: unsafe extern "C" fn(*mut *mut Conn),
    handshake: unsafe extern "C" fn(*mut *mut Conn) -> c_int,
    recv: unsafe extern "C" fn(*mut *mut Conn, *mut u8, *mut usize) -> c_int,
    send: unsafe extern "C" fn(*mut *mut Conn, *const u8, *mut usize) -> c_int,
    verified: unsafe extern "C" fn(*mut *mut Conn) -> bool,
}

/// `nng_tls_engine_config_ops`
#[repr(C)]
struct ConfigOps {
    size: usize,
    init: unsafe extern "C" fn(*mut *mut Role, c_int) -> c_int,
    fini: unsafe extern "C" fn(*mut *mut Role),
    server: unsafe extern "C" fn(*mut *mut Role, *const c_char) -> c_int,
    auth: unsafe extern "C" fn(*mut *mut Role, c_int) -> c_int,
    ca_chain: unsafe extern "C" fn(*mut *mut Role, *const c_char, *const c_char) -> c_int,
    own_cert:
        unsafe extern "C" fn(*mut *mut Role, *const c_char, *const c_char, *const c_char) -> c_int,
    version: unsafe extern "C" fn(*mut *mut Role, c_int, c_int) -> c_int,
}

/// `nng_tls_engine`
#[repr(C)]
struct Engine {
    version: c_int,
    config_ops: *const ConfigOps,
    conn_ops: *const ConnOps,
    name: *const c_char,
    description: *const c_char,
    fips_mode: bool,
}

struct Table(Engine);

// SAFETY: constants, never written.
unsafe impl Sync for Table {}

static CONFIG_OPS: ConfigOps = ConfigOps {
    size: size_of::<*mut Role>(),
    init: config_init,
    fini: config_fini,
    server: config_server,
    auth: config_auth,
    ca_chain: config_ca_chain,
    own_cert: config_own_cert,
    version: config_version,
};

static CONN_OPS: ConnOps = ConnOps {
    size: size_of::<*mut Conn>(),
    init: conn_init,
    fini: conn_fini,
    close: conn_close,
    handshake: conn_handshake,
    recv: conn_recv,
    send: conn_send,
    verified: conn_verified,
};

static ENGINE: Table = Table(Engine {
    version: 1,
    config_ops: &CONFIG_OPS,
    conn_ops: &CONN_OPS,
    name: c"rustls".as_ptr(),
    description: c"rustls with ring".as_ptr(),
    fips_mode: false,
});

const MODE_CLIENT: c_int = 0;
const MODE_SERVER: c_int = 1;

const AGAIN: c_int = nng_sys::NNG_EAGAIN as c_int;
const CLOSED: c_int = nng_sys::NNG_ECLOSED as c_int;
const CONN_SHUT: c_int = nng_sys::NNG_ECONNSHUT as c_int;
const CRYPTO: c_int = nng_sys::NNG_ECRYPTO as c_int;
const INTERNAL: c_int = nng_sys::NNG_EINTERNAL as c_int;
const UNSUPPORTED: c_int = nng_sys::NNG_ENOTSUP as c_int;

unsafe extern "C" {
    fn nng_tls_engine_name() -> *const c_char;
    fn nng_tls_engine_register(engine: *const Engine) -> c_int;
    fn nng_tls_engine_send(wire: *mut c_void, buf: *const u8, size: *mut usize) -> c_int;
    fn nng_tls_engine_recv(wire: *mut c_void, buf: *mut u8, size: *mut usize) -> c_int;
    fn nng_tls_config_alloc(config: *mut *mut c_void, mode: c_int) -> c_int;
    fn nng_tls_config_free(config: *mut c_void);
}

/// For the fuzzer: a host's and a daemon's end of TLS, to which the peer says `input`.
#[cfg(fuzzing)]
pub(crate) fn fuzz(input: &[u8], identity: &Identity, trust: &Trust) {
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
        name: super::server_name("127.0.0.1").expect("it is an address"),
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
