//! R's serialization, in its native binary format (no byte swapping), straight
//! into and out of the buffers that are sent and received.
//!
//! What tasks are usually made of is written and read by our own [`writer`] and
//! [`reader`]; whatever they do not know is left to R, from the beginning, in the same
//! format.

mod format;
pub mod hooks;
pub use format::header;
mod reader;
mod routines;
mod writer;

pub use routines::routines;

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use extendr_ffi::{
    R_NilValue, R_Serialize, R_Unserialize, R_inpstream_st, R_inpstream_t, R_outpstream_st,
    R_outpstream_t, R_pstream_format_t, Rf_error, Rf_protect, Rf_unprotect, SEXP,
};

/// Version 3 knows of ALTREP and of the native encoding; R has it since 3.5.
const VERSION: c_int = 3;
/// A buffer larger than this is handed over rather than copied out of.
const SMALL: usize = 32 * 1024;

/// Memory to serialize into, used again for each small object.
#[derive(Default)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    pub const fn new() -> Buffer {
        Buffer(Vec::new())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Serializes an object in place of what was there. False if a hook has failed: R's
    /// error buffer says how.
    ///
    /// # Safety
    /// On R's main thread, `object` protected. Leaves by a long jump if R cannot serialize
    /// the object; the buffer then holds a part of it, to be overwritten.
    #[must_use]
    pub unsafe fn write(this: *mut Buffer, object: SEXP) -> bool {
        if (*this).0.capacity() > 4 * SMALL {
            (*this).0 = Vec::new();
        }
        if hooks::any() {
            return hooks::write(this, object);
        }
        Self::write_once(this, object, None);
        true
    }

    /// Serializes an object; what hooks are for is set aside in `collected`.
    unsafe fn write_once(
        this: *mut Buffer,
        object: SEXP,
        collected: Option<*mut hooks::Collected>,
    ) {
        static USES: AtomicU64 = AtomicU64::new(0);
        let out = &raw mut (*this).0;
        loop {
            let this_use = USES.fetch_add(1, Ordering::Relaxed) + 1;
            let clear = || {
                (*out).clear();
                collected.inspect(|c| (**c).clear());
            };
            clear();
            let references = std::ptr::addr_of_mut!(REFERENCES);
            if !writer::write(out, references, collected, object) {
                clear();
                write_by_r(this, object, collected.map(|_| hooks::collect_one as Hook));
            }
            // A finalizer, which R may run whenever it allocates, could have used the same
            // memory to serialize something itself. It will not run again.
            if USES.load(Ordering::Relaxed) == this_use {
                return;
            }
        }
    }

    /// What was written, to be sent and kept.
    pub fn take(&mut self) -> Bytes {
        if self.0.len() <= SMALL {
            Bytes::from(self.0.as_slice().to_vec())
        } else {
            Bytes::from(std::mem::take(&mut self.0))
        }
    }
}

/// The one buffer of the main thread. A static rather than a local, so that an R
/// error in the middle of serialization does not lose it.
static mut BUFFER: Buffer = Buffer::new();

/// The buffer of the main thread.
pub fn buffer() -> *mut Buffer {
    std::ptr::addr_of_mut!(BUFFER)
}

/// For the main thread; a static, so that a long jump does not lose it.
static mut REFERENCES: writer::References = writer::References::new();

type Hook = unsafe extern "C" fn(SEXP, SEXP) -> SEXP;

/// Appends an object to the buffer by R's own means.
unsafe fn write_by_r(buffer: *mut Buffer, object: SEXP, hook: Option<Hook>) {
    let mut stream = R_outpstream_st {
        data: buffer.cast::<c_void>(),
        type_: R_pstream_format_t::R_pstream_binary_format,
        version: VERSION,
        OutChar: Some(out_char),
        OutBytes: Some(out_bytes),
        OutPersistHookFunc: hook,
        OutPersistHookData: R_NilValue,
    };
    R_Serialize(object, &mut stream);
}

unsafe extern "C" fn out_char(stream: R_outpstream_t, c: c_int) {
    let mut byte = c as u8;
    out_bytes(stream, std::ptr::from_mut(&mut byte).cast(), 1);
}

unsafe extern "C" fn out_bytes(stream: R_outpstream_t, bytes: *mut c_void, n: c_int) {
    let bytes = std::slice::from_raw_parts(bytes.cast::<u8>(), n as usize);
    let out = &mut (*(*stream).data.cast::<Buffer>()).0;
    if out.try_reserve(bytes.len()).is_err() {
        Rf_error(c"cannot allocate memory to serialize an object".as_ptr());
    }
    out.extend_from_slice(bytes);
}

/// Makes the object again that `bytes` were made from. `None` if a hook has failed: R's
/// error buffer says how.
///
/// # Safety
/// On R's main thread. Leaves by a long jump if the bytes are not an R object;
/// `bytes` must stay where they are until this returns.
pub unsafe fn read(bytes: &[u8]) -> Option<SEXP> {
    match hooks::split(bytes) {
        None => Some(read_with(bytes, R_NilValue)),
        Some((made, rest)) => {
            let restored = Rf_protect(hooks::restore(read_with(made, R_NilValue))?);
            let object = read_with(rest, restored);
            Rf_unprotect(1);
            Some(object)
        }
    }
}

unsafe fn read_with(bytes: &[u8], restored: SEXP) -> SEXP {
    reader::read(bytes, restored).unwrap_or_else(|| read_by_r(bytes, restored))
}

unsafe fn read_by_r(bytes: &[u8], restored: SEXP) -> SEXP {
    let mut rest = bytes;
    let mut stream = R_inpstream_st {
        data: std::ptr::from_mut(&mut rest).cast(),
        type_: R_pstream_format_t::R_pstream_any_format,
        InChar: Some(in_char),
        InBytes: Some(in_bytes),
        InPersistHookFunc: Some(hooks::restore_one),
        InPersistHookData: restored,
        native_encoding: [0; 64],
        nat2nat_obj: std::ptr::null_mut(),
        nat2utf8_obj: std::ptr::null_mut(),
    };
    R_Unserialize(&mut stream)
}

unsafe extern "C" fn in_char(stream: R_inpstream_t) -> c_int {
    let mut byte = 0u8;
    in_bytes(stream, std::ptr::from_mut(&mut byte).cast(), 1);
    byte.into()
}

unsafe extern "C" fn in_bytes(stream: R_inpstream_t, to: *mut c_void, n: c_int) {
    let rest = &mut *(*stream).data.cast::<&[u8]>();
    let n = n as usize;
    if rest.len() < n {
        Rf_error(c"serialized object is truncated".as_ptr());
    }
    std::ptr::copy_nonoverlapping(rest.as_ptr(), to.cast(), n);
    *rest = &rest[n..];
}
