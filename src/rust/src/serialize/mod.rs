//! R's serialization, in its native binary format (no byte swapping), straight
//! into and out of the buffers that are sent and received.
//!
//! Our own [`writer`] and [`reader`] know what tasks are usually made of. If there is anything else in an object, R
//! writes or reads all of it ([`by_r`]), in the same format.
//!
//! Where the receiver may be on this machine, the data of large vectors are left out and put
//! into segments of shared memory, one for each vector. A segment knows its place (see
//! [`mirai_core::memory`]); with the data put back there, the bytes are R's format again. The reader
//! makes [vectors](crate::altrep) of segments, without a copy; if R has to read, it is given
//! all bytes in a row. The strings of a character vector go the same way, in R's
//! format, if most of them differ.

mod buffer;
mod by_r;
pub(crate) mod digest;
mod format;
pub(crate) mod hooks;
mod reader;
mod routines;
mod source;
pub(crate) mod text;
mod writer;

pub(crate) use buffer::{buffer, Buffer};
pub(crate) use format::header;
pub(crate) use routines::routines;
pub(crate) use source::Source;
pub(crate) use writer::TOO_DEEP;

use std::sync::atomic::{AtomicU64, Ordering};

use extendr_ffi::{R_NilValue, Rf_protect, Rf_unprotect, SEXP};
use mirai_scan::{Depth, Hooked, Scanner};

use crate::{r, stack};

/// Number of objects serialized so far.
static USES: AtomicU64 = AtomicU64::new(0);

/// The number of objects serialized so far. If it has changed, the buffer of the main thread may have been overwritten.
pub(crate) fn uses() -> u64 {
    USES.load(Ordering::Relaxed)
}

/// For the main thread; a static, so that a long jump does not lose it.
static mut REFERENCES: writer::References = writer::References::new();

/// Serializes an object into a buffer, in place of what was there. False if a hook has failed: R's
/// error buffer says how.
///
/// # Safety
/// On R's main thread, `object` protected. Leaves by a long jump if R cannot serialize
/// the object; the buffer then holds a part of it, to be overwritten.
#[must_use]
pub(crate) unsafe fn write(buffer: *mut Buffer, object: SEXP) -> bool {
    // SAFETY: as this function demands.
    unsafe {
        (*buffer).let_go();
        if hooks::any() {
            return hooks::write(buffer, object);
        }
        write_once(buffer, object, None);
        true
    }
}

/// Serializes an object. With `collected`, objects that have hooks are collected there instead.
unsafe fn write_once(buffer: *mut Buffer, object: SEXP, collected: Option<*mut hooks::Collected>) {
    // SAFETY: as `write` demands. `REFERENCES` is used by R's main thread only; no reference to it or the buffer
    // is held while R is called.
    unsafe {
        loop {
            let this_use = USES.fetch_add(1, Ordering::Relaxed) + 1;
            let clear = || {
                (*buffer).clear();
                collected.inspect(|c| (**c).clear());
            };
            clear();
            let references = std::ptr::addr_of_mut!(REFERENCES);
            if !writer::write(buffer, references, collected, object) {
                clear();
                by_r::write(
                    buffer,
                    object,
                    collected.map(|_| hooks::collect_one as by_r::Hook),
                );
            }
            // A finalizer, which R may run whenever it allocates, could have used the same
            // memory to serialize something itself. It will not run again.
            if USES.load(Ordering::Relaxed) == this_use {
                return;
            }
        }
    }
}

/// Reads an object. A peer may have sent any bytes, so they are [checked](mirai_scan) first.
///
/// # Safety
/// On R's main thread. Leaves by a long jump if R runs out of memory, or cannot read the bytes, or
/// a hook fails, or R is interrupted; `bytes` must stay where they are until this returns.
pub(crate) unsafe fn read<'a>(source: impl Into<Source<'a>>) -> Result<SEXP, Unread> {
    // SAFETY: as this function demands; `restored` is protected while it is used.
    unsafe {
        let source = source.into();
        match hooks::split(source) {
            None => read_with(source, R_NilValue),
            Some((made, rest)) => {
                let made = read_with(made, R_NilValue)?;
                let restored = Rf_protect(hooks::restore(made));
                let object = read_with(rest, restored);
                Rf_unprotect(1);
                object
            }
        }
    }
}

/// As [`read`], but what cannot be read is an R error.
///
/// # Safety
/// As [`read`].
pub(crate) unsafe fn read_or_raise<'a>(source: impl Into<Source<'a>>) -> SEXP {
    // SAFETY: as this function demands. `Unread` owns nothing.
    unsafe {
        match read(source) {
            Ok(object) => object,
            Err(unread) => r::raise(unread),
        }
    }
}

/// Why bytes are not read. Owns nothing, so that a long jump may leave it.
#[derive(Clone, Copy)]
pub(crate) enum Unread {
    TooDeep,
    Empty,
    Refused(mirai_scan::Error),
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unread::TooDeep => f.write_str("the value is nested too deeply to be read"),
            Unread::Empty => {
                f.write_str("the value could not be sent, most likely for lack of memory")
            }
            Unread::Refused(error) => write!(f, "the value cannot be read: {error}"),
        }
    }
}

/// Bytes of stack that `R_Unserialize()` takes for each of its calls.
const R_CALL: usize = 512;

/// For the main thread, so that most scans need no memory.
static mut SCANNER: Scanner = Scanner::new();

/// As [`read`], for where R's errors are not caught. `None` if R could raise one, because R
/// itself would have to read, or would need much memory.
///
/// # Safety
/// As [`read`].
pub(crate) unsafe fn read_plain<'a>(source: impl Into<Source<'a>>) -> Option<Result<SEXP, Unread>> {
    // SAFETY: as this function demands.
    unsafe {
        /// R runs out of memory for an object up to this size no more easily than for anything else it does.
        const LITTLE: usize = 1 << 20;
        let source = source.into();
        if source.bytes.len() > LITTLE
            || !source.pieces.is_empty()
            || source.rest.starts_with(hooks::MAGIC)
        {
            return None;
        }
        match scan(source, R_NilValue) {
            Ok(_) => reader::read(source, R_NilValue).map(Ok),
            Err(unread) => Some(Err(unread)),
        }
    }
}

unsafe fn read_with(source: Source<'_>, restored: SEXP) -> Result<SEXP, Unread> {
    // SAFETY: as `read` demands.
    unsafe {
        let depth = scan(source, restored)?;
        if let Some(object) = reader::read(source, restored) {
            return Ok(object);
        }
        if depth.calls > stack::levels(R_CALL) {
            return Err(Unread::TooDeep);
        }
        Ok(by_r::read(source, restored))
    }
}

/// Checks what is to be read. Does not allocate in R.
unsafe fn scan(source: Source<'_>, restored: SEXP) -> Result<Depth, Unread> {
    // SAFETY: on R's main thread, which alone uses `SCANNER`; it does not come here again meanwhile, as `hooked`
    // only looks at objects. `restored` is protected.
    unsafe {
        let start = source.position();
        let bytes = &source.bytes[start..];
        if bytes.is_empty() {
            return Err(Unread::Empty);
        }
        let mut pieces = Vec::new();
        for piece in source.pieces {
            pieces.push(mirai_scan::Piece {
                at: piece.at().saturating_sub(start),
                data: Source::bytes_of(piece),
            });
        }
        // Neither reader can read more levels.
        let deepest = stack::levels(R_CALL.min(reader::LEVEL));
        let hooked = |i, j| {
            let object = hooks::restored(restored, [i, j])?;
            Some(match extendr_ffi::TYPEOF(object) {
                extendr_ffi::SEXPTYPE::ENVSXP => Hooked::Environment,
                _ => Hooked::Other,
            })
        };
        let scanner = &mut *std::ptr::addr_of_mut!(SCANNER);
        scanner
            .scan(bytes, &pieces, deepest, &hooked)
            .map_err(|error| match error.is_too_deep() {
                true => Unread::TooDeep,
                false => Unread::Refused(error),
            })
    }
}
