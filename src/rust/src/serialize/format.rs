//! Numbers of R's serialization format, version 3.

use std::sync::OnceLock;

pub(super) const NIL: i32 = 254;
pub(super) const GLOBAL_ENV: i32 = 253;
pub(super) const UNBOUND_VALUE: i32 = 252;
pub(super) const MISSING_ARG: i32 = 251;
pub(super) const BASE_NAMESPACE: i32 = 250;
pub(super) const EMPTY_ENV: i32 = 242;
pub(super) const BASE_ENV: i32 = 241;
pub(super) const REFERENCE: i32 = 255;
pub(super) const NAMESPACE: i32 = 249;
/// An object that a hook has made something of.
pub(super) const PERSISTENT: i32 = 247;

pub(super) const IS_OBJECT: i32 = 1 << 8;
pub(super) const HAS_ATTRIBUTES: i32 = 1 << 9;
pub(super) const HAS_TAG: i32 = 1 << 10;

/// Bits of a string that tell its encoding.
pub(super) const BYTES: i32 = 1 << 1;
pub(super) const LATIN1: i32 = 1 << 2;
pub(super) const UTF8: i32 = 1 << 3;
pub(super) const ASCII: i32 = 1 << 6;
/// The bits of a binding that is locked, and of one that is active.
pub(super) const LOCKED: i32 = 1 << 14;
pub(super) const ACTIVE: i32 = 1 << 15;
/// The bit of any other object that tells an S4 object.
pub(super) const S4: i32 = 1 << 4;

/// What every stream begins with here: native binary format, version 3, by this R,
/// readable from R 3.5 on, this session's encoding. Taken from R itself.
pub(crate) fn header() -> &'static [u8] {
    static HEADER: OnceLock<Vec<u8>> = OnceLock::new();
    HEADER.get_or_init(|| {
        let mut buffer = super::Buffer::new();
        // SAFETY: NULL is serialized without fail; it takes the last four bytes.
        unsafe {
            super::by_r::write(&mut buffer, extendr_ffi::R_NilValue, None);
        }
        let n = buffer.bytes.len() - 4;
        buffer.bytes.truncate(n);
        buffer.bytes
    })
}
