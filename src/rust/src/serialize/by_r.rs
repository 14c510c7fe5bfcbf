//! Serialization by R itself, where our [`writer`](super::writer) and [`reader`](super::reader) do not know an
//! object.

use std::ffi::{c_int, c_void};

use extendr_ffi::{
    R_NilValue, R_Serialize, R_Unserialize, R_inpstream_st, R_inpstream_t, R_outpstream_st,
    R_outpstream_t, R_pstream_format_t, SEXP,
};

use super::{hooks, Buffer, Source};
use crate::r;

/// Version 3, which has ALTREP and the native encoding; R has it since 3.5.
const VERSION: c_int = 3;

/// A hook of `R_Serialize()`: gets an object and the hook's data.
pub(super) type Hook = unsafe extern "C" fn(SEXP, SEXP) -> SEXP;

/// Appends an object to the buffer.
///
/// # Safety
/// On R's main thread, `object` protected. Leaves by a long jump if R cannot serialize it.
pub(super) unsafe fn write(buffer: *mut Buffer, object: SEXP, hook: Option<Hook>) {
    // SAFETY: as this function demands; the callbacks have the types that R expects, and get this `stream`.
    unsafe {
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
        if !(*buffer).end_run() {
            r::raise(NO_MEMORY);
        }
        (*buffer).strip();
    }
}

const NO_MEMORY: &str = "cannot allocate memory to serialize an object";

unsafe extern "C" fn out_char(stream: R_outpstream_t, c: c_int) {
    // SAFETY: R passes the `stream` of `write`; the one byte outlives the call.
    unsafe {
        let mut byte = c as u8;
        out_bytes(stream, std::ptr::from_mut(&mut byte).cast(), 1);
    }
}

unsafe extern "C" fn out_bytes(stream: R_outpstream_t, bytes: *mut c_void, n: c_int) {
    // SAFETY: R passes the `stream` of `write` and `n` bytes. Its data are the buffer, to which nobody else has a
    // reference now.
    unsafe {
        let bytes = std::slice::from_raw_parts(bytes.cast::<u8>(), n as usize);
        if !(*(*stream).data.cast::<Buffer>()).append_part(bytes) {
            r::raise(NO_MEMORY);
        }
    }
}

/// Reads an object.
///
/// # Safety
/// On R's main thread. Leaves by a long jump if R cannot read it; `source` and `restored` outlive that.
pub(super) unsafe fn read(source: Source<'_>, restored: SEXP) -> SEXP {
    // SAFETY: as this function demands; the callbacks have the types that R expects, and get this `stream`.
    unsafe {
        let mut source = source;
        let mut stream = R_inpstream_st {
            data: std::ptr::from_mut(&mut source).cast(),
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
}

unsafe extern "C" fn in_char(stream: R_inpstream_t) -> c_int {
    // SAFETY: R passes the `stream` of `read`; the one byte outlives the call.
    unsafe {
        let mut byte = 0u8;
        in_bytes(stream, std::ptr::from_mut(&mut byte).cast(), 1);
        byte.into()
    }
}

unsafe extern "C" fn in_bytes(stream: R_inpstream_t, to: *mut c_void, n: c_int) {
    // SAFETY: R passes the `stream` of `read` and room for `n` bytes. Its data are the `source` there, which
    // nobody else uses now.
    unsafe {
        let source = &mut *(*stream).data.cast::<Source<'_>>();
        // The scan has checked the lengths, but memory safety must not depend on that.
        let copied = usize::try_from(n).is_ok_and(|n| source.copy(to.cast(), n));
        if !copied {
            r::raise("serialized object is truncated");
        }
    }
}
