//! The engine's C interface (`nng/supplemental/tls/engine.h`): functions that NNG calls, and those of NNG's that we
//! call. All `unsafe` code of the engine is here.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{NonNull, null_mut};
use std::sync::Once;

use nng_sys::{
    nng_stream_dialer, nng_stream_dialer_set_ptr, nng_stream_listener, nng_stream_listener_set_ptr,
};

use super::conn::{CLOSED, CRYPTO, INTERNAL, Stop};
use super::{Role, check, conn};

/// A connection over NNG's socket.
type Conn = conn::Conn<Wire>;

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

const TLS_CONFIG: &CStr = match CStr::from_bytes_with_nul(nng_sys::NNG_OPT_TLS_CONFIG) {
    Ok(name) => name,
    Err(_) => panic!("not a C string"),
};

thread_local! {
    /// For the next configuration that NNG makes on this thread.
    static ROLE: RefCell<Option<Role>> = const { RefCell::new(None) };
}

/// One hold of a configuration object of NNG's.
pub(super) struct Handle(NonNull<c_void>);

// SAFETY: NNG counts the holds of the object under a lock of its own, and we
// never change it.
unsafe impl Send for Handle {}

impl Handle {
    pub(super) fn new(role: &Role) -> Result<Self, nng::Error> {
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

    /// Has a listener use the configuration.
    ///
    /// # Safety
    /// The listener lives.
    pub(super) unsafe fn secure_listener(
        &self,
        listener: *mut nng_stream_listener,
    ) -> Result<(), nng::Error> {
        let (name, config) = (TLS_CONFIG.as_ptr(), self.0.as_ptr());
        // SAFETY: the listener lives, the option's name is a C string, and its value a
        // configuration that lives through the call; NNG takes a hold of its own.
        check(unsafe { nng_stream_listener_set_ptr(listener, name, config) })
    }

    /// Has a dialer use the configuration.
    ///
    /// # Safety
    /// The dialer lives.
    pub(super) unsafe fn secure_dialer(
        &self,
        dialer: *mut nng_stream_dialer,
    ) -> Result<(), nng::Error> {
        let (name, config) = (TLS_CONFIG.as_ptr(), self.0.as_ptr());
        // SAFETY: as in `secure_listener`.
        check(unsafe { nng_stream_dialer_set_ptr(dialer, name, config) })
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
pub(super) struct Wire(*mut c_void);

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
            conn.fail_inside();
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
        let conn = slot.replace(null_mut());
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
            verified = conn.is_verified();
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
        let role = slot.replace(null_mut());
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
const UNSUPPORTED: c_int = nng_sys::NNG_ENOTSUP as c_int;

unsafe extern "C" {
    fn nng_tls_engine_name() -> *const c_char;
    fn nng_tls_engine_register(engine: *const Engine) -> c_int;
    fn nng_tls_engine_send(wire: *mut c_void, buf: *const u8, size: *mut usize) -> c_int;
    fn nng_tls_engine_recv(wire: *mut c_void, buf: *mut u8, size: *mut usize) -> c_int;
    fn nng_tls_config_alloc(config: *mut *mut c_void, mode: c_int) -> c_int;
    fn nng_tls_config_free(config: *mut c_void);
}
