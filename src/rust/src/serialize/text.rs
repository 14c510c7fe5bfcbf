//! A string as R's format has it: flags, length, bytes.

use extendr_ffi::{cetype_t, R_NaString, Rf_mkCharLenCE, SEXP, SEXPTYPE};

use super::format::{BYTES, HAS_ATTRIBUTES, LATIN1, UTF8};

pub(crate) struct Text<'a> {
    flags: i32,
    /// `None` is `NA`.
    bytes: Option<&'a [u8]>,
}

impl<'a> Text<'a> {
    /// The one that comes first, which is taken away. `None` if it is not a string.
    pub(crate) fn take(from: &mut &'a [u8]) -> Option<Text<'a>> {
        let flags = integer(from)?;
        if flags & (0xff | HAS_ATTRIBUTES) != SEXPTYPE::CHARSXP as i32 {
            return None;
        }
        Text::after(flags, from)
    }

    /// The same where its flags have been taken.
    pub(crate) fn after(flags: i32, from: &mut &'a [u8]) -> Option<Text<'a>> {
        let bytes = match integer(from)? {
            -1 => None,
            n => {
                let (bytes, rest) = from.split_at_checked(usize::try_from(n).ok()?)?;
                *from = rest;
                Some(bytes)
            }
        };
        Some(Text { flags, bytes })
    }

    /// R's string.
    ///
    /// # Safety
    /// On R's main thread. May leave by a long jump if R runs out of memory or there is a zero
    /// among the bytes.
    pub(crate) unsafe fn make(self) -> SEXP {
        // SAFETY: as this function demands; `take` has found as many bytes.
        unsafe {
            let Some(bytes) = self.bytes else {
                return R_NaString;
            };
            let encoding = match self.flags >> 12 & (UTF8 | LATIN1 | BYTES) {
                UTF8 => cetype_t::CE_UTF8,
                LATIN1 => cetype_t::CE_LATIN1,
                BYTES => cetype_t::CE_BYTES,
                // The header says that the sender's native encoding is ours.
                _ => cetype_t::CE_NATIVE,
            };
            Rf_mkCharLenCE(bytes.as_ptr().cast(), bytes.len() as i32, encoding)
        }
    }
}

fn integer(from: &mut &[u8]) -> Option<i32> {
    let (bytes, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(i32::from_ne_bytes(*bytes))
}
