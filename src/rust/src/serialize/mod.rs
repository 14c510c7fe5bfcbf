//! R's serialization, in its native binary format (no byte swapping), straight
//! into and out of the buffers that are sent and received.
//!
//! What tasks are usually made of is written and read by our own [`writer`] and
//! [`reader`]; whatever they do not know is left to R, from the beginning, in the same
//! format.
//!
//! Where the receiver may be on this machine, the data of large vectors are left out and put
//! into segments of shared memory, one for each, which know their places (see
//! [`mirai_core::memory`]). With them put back in, the bytes are R's format again. The reader
//! makes [vectors](crate::altrep) of them that need no copy; if R has to read, it gets to see
//! all bytes in a row. The strings of character vectors go the same way, as they are in R's
//! format, if they are many different ones.

mod format;
pub mod hooks;
pub use format::header;
mod reader;
mod routines;
pub mod text;
mod writer;

pub use routines::routines;
pub use writer::TOO_DEEP;

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use extendr_ffi::{
    R_NilValue, R_Serialize, R_Unserialize, R_inpstream_st, R_inpstream_t, R_outpstream_st,
    R_outpstream_t, R_pstream_format_t, Rf_protect, Rf_unprotect, SEXP,
};
use mirai_core::memory::{
    prefer_huge_pages, Body, Content, Draft, Inset, Parts, Piece, Segment, MOST_DESCRIPTORS,
};

use mirai_scan::{Depth, Hooked, Scanner};

use crate::{altrep, r, stack};

/// Version 3 knows of ALTREP and of the native encoding; R has it since 3.5.
const VERSION: c_int = 3;
/// A buffer larger than this is handed over rather than copied out of.
const SMALL: usize = 32 * 1024;

/// Data from this size on are put into a segment. Below, making, passing and mapping one costs more
/// than copying.
const LARGE: usize = 256 * 1024;
/// R passes vectors on in parts of so many elements.
const PART: usize = 8096;

/// Memory to serialize into, used again for each small object.
#[derive(Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    /// What has been left out.
    insets: Vec<Inset>,
    /// Whether anything shall be.
    sharing: bool,
    run: Run,
}

/// Parts of a vector that R writes one after the other.
struct Run {
    /// Where the next part would be in R's memory.
    next: *const u8,
    /// Where the first one is in the buffer.
    from: usize,
    /// Where they are once they have become many.
    draft: Option<Draft>,
}

impl Default for Run {
    fn default() -> Run {
        Run::NONE
    }
}

impl Run {
    const NONE: Run = Run {
        next: std::ptr::null(),
        from: 0,
        draft: None,
    };
}

impl Buffer {
    pub const fn new() -> Buffer {
        Buffer {
            bytes: Vec::new(),
            insets: Vec::new(),
            sharing: false,
            run: Run::NONE,
        }
    }

    /// From now on, whether large vectors are to be left out of what is written.
    pub fn share(&mut self, sharing: bool) {
        self.sharing = sharing;
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        let shared: usize = self.insets.iter().map(|i| i.segment.len()).sum();
        self.bytes.len() + shared
    }

    pub fn as_slice(&self) -> Parts<'_> {
        Parts {
            bytes: &self.bytes,
            insets: &self.insets,
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.insets.clear();
        self.run = Run::NONE;
    }

    fn may_share_more(&self) -> bool {
        let descriptors: usize = self.insets.iter().map(|i| i.segment.weight()).sum();
        // The next one may need two.
        self.sharing && descriptors + 2 <= MOST_DESCRIPTORS
    }

    /// Appends the data of a vector. False if there is no memory for them.
    fn append(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() >= LARGE && self.may_share_more() {
            // What has been received, and hardly changed, need not be copied.
            // SAFETY: on R's main thread, as all that writes.
            let received = unsafe { altrep::segment(bytes) };
            if let Some(segment) = received.or_else(|| Segment::copy_of(bytes)) {
                self.put_in(segment);
                return true;
            }
        }
        self.append_plain(bytes)
    }

    fn put_in(&mut self, segment: Segment) {
        let at = self.bytes.len();
        self.insets.push(Inset { at, segment });
    }

    fn append_plain(&mut self, bytes: &[u8]) -> bool {
        let before = self.bytes.capacity();
        let reserved = self.bytes.try_reserve(bytes.len() + 64).is_ok();
        if reserved {
            if self.bytes.capacity() > before {
                prefer_huge_pages(self.bytes.spare_capacity_mut());
            }
            self.bytes.extend_from_slice(bytes);
        }
        reserved
    }

    /// The strings of a vector follow, up to [`end_strings`](Self::end_strings).
    fn begin_strings(&mut self) {
        self.run = Run::NONE;
        self.run.from = self.bytes.len();
    }

    /// Puts strings into a segment once they are many, if that is `worth` it. False if they are
    /// lost.
    fn spill(&mut self, worth: impl FnOnce() -> bool) -> bool {
        if self.bytes.len() < LARGE.saturating_add(self.run.from) {
            return true;
        }
        if self.run.draft.is_none() {
            let worth = self.may_share_more() && worth();
            self.run.draft = worth.then(Draft::new).flatten();
        }
        let Some(draft) = &mut self.run.draft else {
            // They stay here.
            self.run.from = usize::MAX;
            return true;
        };
        let done = draft.write(&self.bytes[self.run.from..]).is_ok();
        self.bytes.truncate(self.run.from);
        done
    }

    /// False if strings are lost.
    fn end_strings(&mut self) -> bool {
        if let Some(draft) = &mut self.run.draft {
            if draft.write(&self.bytes[self.run.from..]).is_err() {
                return false;
            }
            self.bytes.truncate(self.run.from);
            // One of the strings may have been large.
            self.bytes.shrink_to(2 * LARGE);
        }
        self.end_run()
    }

    /// Appends what R writes, which may be a part of a vector's data. False if there is no
    /// memory for it.
    fn append_part(&mut self, bytes: &[u8]) -> bool {
        if bytes.as_ptr() != self.run.next {
            if !self.end_run() {
                return false;
            }
            if bytes.len() < PART || !self.may_share_more() {
                return self.append_plain(bytes);
            }
            self.run.from = self.bytes.len();
        }
        self.run.next = bytes.as_ptr_range().end;
        let draft = match &mut self.run.draft {
            Some(draft) => draft,
            None => {
                if !self.append_plain(bytes) {
                    return false;
                }
                if self.bytes.len() - self.run.from < LARGE {
                    return true;
                }
                let Some(mut draft) = Draft::new() else {
                    self.run.next = std::ptr::null();
                    return true;
                };
                let done = draft.write(&self.bytes[self.run.from..]).is_ok();
                if !done {
                    // They are here, too.
                    self.run.next = std::ptr::null();
                    return true;
                }
                self.bytes.truncate(self.run.from);
                self.run.draft = Some(draft);
                return true;
            }
        };
        draft.write(bytes).is_ok()
    }

    /// The last part of a vector has been written. False if they are lost.
    fn end_run(&mut self) -> bool {
        let run = std::mem::take(&mut self.run);
        let Some(draft) = run.draft else { return true };
        let Some(segment) = draft.seal() else {
            return false;
        };
        self.put_in(segment);
        true
    }

    /// Serializes an object in place of what was there. False if a hook has failed: R's
    /// error buffer says how.
    ///
    /// # Safety
    /// On R's main thread, `object` protected. Leaves by a long jump if R cannot serialize
    /// the object; the buffer then holds a part of it, to be overwritten.
    #[must_use]
    pub unsafe fn write(this: *mut Buffer, object: SEXP) -> bool {
        (*this).let_go();
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
        loop {
            let this_use = USES.fetch_add(1, Ordering::Relaxed) + 1;
            let clear = || {
                (*this).clear();
                collected.inspect(|c| (**c).clear());
            };
            clear();
            let references = std::ptr::addr_of_mut!(REFERENCES);
            if !writer::write(this, references, collected, object) {
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

    /// Takes out the byte code that R has written, which no receiver reads.
    fn strip(&mut self) {
        let place = |inset: &Inset| mirai_scan::Piece {
            at: inset.at,
            data: &[],
        };
        let places: Vec<_> = self.insets.iter().map(place).collect();
        // If it fails, the receiver will say why.
        if let Ok(Some(stripped)) = mirai_scan::strip(&self.bytes, &places) {
            self.bytes = stripped.bytes;
            let inset = |(number, at): &(usize, usize)| Inset {
                at: *at,
                segment: self.insets[*number].segment.clone(),
            };
            self.insets = stripped.pieces.iter().map(inset).collect();
        }
    }

    /// Forgets what was written and gives back the memory, unless that is little.
    pub fn let_go(&mut self) {
        self.clear();
        if self.bytes.capacity() > 4 * SMALL {
            self.bytes = Vec::new();
        }
    }

    /// What was written, to be sent and kept.
    pub fn take(&mut self) -> Body {
        let bytes = if self.bytes.len() <= SMALL {
            Bytes::from(self.bytes.as_slice().to_vec())
        } else {
            Bytes::from(std::mem::take(&mut self.bytes))
        };
        Body::new(bytes, std::mem::take(&mut self.insets))
    }
}

/// How often something has been serialized: whether what is in a buffer can still be what was
/// written there.
static USES: AtomicU64 = AtomicU64::new(0);

pub fn uses() -> u64 {
    USES.load(Ordering::Relaxed)
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
    if !(*buffer).end_run() {
        r::raise(NO_MEMORY);
    }
    (*buffer).strip();
}

const NO_MEMORY: &str = "cannot allocate memory to serialize an object";

unsafe extern "C" fn out_char(stream: R_outpstream_t, c: c_int) {
    let mut byte = c as u8;
    out_bytes(stream, std::ptr::from_mut(&mut byte).cast(), 1);
}

unsafe extern "C" fn out_bytes(stream: R_outpstream_t, bytes: *mut c_void, n: c_int) {
    let bytes = std::slice::from_raw_parts(bytes.cast::<u8>(), n as usize);
    if !(*(*stream).data.cast::<Buffer>()).append_part(bytes) {
        r::raise(NO_MEMORY);
    }
}

/// Bytes to read, and where among them there are pieces of shared memory.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// All of them, apart from pieces.
    bytes: &'a [u8],
    /// Up to the next piece.
    rest: &'a [u8],
    /// From there on, apart from pieces.
    tail: &'a [u8],
    /// Where that begins.
    tail_at: usize,
    pieces: &'a [Piece],
    /// Others have mapped the same.
    common: bool,
    /// What is left of a piece of which R has read a part.
    begun: &'a [u8],
}

impl<'a> Source<'a> {
    pub fn new(bytes: &'a [u8], pieces: &'a [Piece]) -> Source<'a> {
        let mut source = Source {
            bytes,
            rest: &[],
            tail: bytes,
            tail_at: 0,
            pieces,
            common: false,
            begun: &[],
        };
        source.advance();
        source
    }

    /// The same, where others have mapped the pieces, too.
    pub fn common(self) -> Source<'a> {
        Source {
            common: true,
            ..self
        }
    }

    /// Makes the bytes up to the next piece the ones to be read.
    fn advance(&mut self) {
        let until = match self.pieces.first() {
            Some(piece) => piece.at().saturating_sub(self.tail_at).min(self.tail.len()),
            None => self.tail.len(),
        };
        (self.rest, self.tail) = self.tail.split_at(until);
        self.tail_at += until;
    }

    /// The piece that comes next, if one does. To be [passed](Self::pass_piece).
    fn piece(&self) -> Option<&'a Piece> {
        if self.rest.is_empty() {
            self.pieces.first()
        } else {
            None
        }
    }

    fn pass_piece(&mut self) {
        self.pieces = &self.pieces[1..];
        self.advance();
    }

    /// The data of a piece, to be copied.
    unsafe fn bytes_of(piece: &'a Piece) -> &'a [u8] {
        let memory = piece.memory();
        std::slice::from_raw_parts(memory.as_ptr(), memory.len())
    }

    /// Copies the next bytes, whatever they are. False if there are fewer.
    unsafe fn copy(&mut self, to: *mut u8, n: usize) -> bool {
        let mut done = 0;
        while done < n {
            let from = if self.begun.is_empty() {
                &mut self.rest
            } else {
                &mut self.begun
            };
            let now = from.len().min(n - done);
            std::ptr::copy_nonoverlapping(from.as_ptr(), to.add(done), now);
            *from = &from[now..];
            done += now;
            if done < n {
                let Some(piece) = self.piece() else {
                    return false;
                };
                self.begun = Self::bytes_of(piece);
                self.pass_piece();
            }
        }
        true
    }
}

impl<'a> From<&'a [u8]> for Source<'a> {
    fn from(bytes: &'a [u8]) -> Source<'a> {
        Source::new(bytes, &[])
    }
}

impl<'a> From<&'a Content> for Source<'a> {
    fn from(content: &'a Content) -> Source<'a> {
        Source::new(&content.bytes, &content.pieces)
    }
}

/// Makes the object again that `bytes` were made from. They are whatever a peer has sent, so
/// they are [checked](mirai_scan) first.
///
/// # Safety
/// On R's main thread. Leaves by a long jump if R runs out of memory, or cannot read the bytes, or
/// a hook fails, or R is interrupted; `bytes` must stay where they are until this returns.
pub unsafe fn read<'a>(source: impl Into<Source<'a>>) -> Result<SEXP, Unread> {
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

/// The same where an R error is to say why it cannot be done.
///
/// # Safety
/// As [`read`].
pub unsafe fn read_or_raise<'a>(source: impl Into<Source<'a>>) -> SEXP {
    match read(source) {
        Ok(object) => object,
        Err(unread) => r::raise(unread),
    }
}

/// Why bytes are not read. Owns nothing, so that a long jump may leave it.
#[derive(Clone, Copy)]
pub enum Unread {
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

/// Stack that `R_Unserialize()` takes for each of its calls.
const R_CALL: usize = 512;

/// For the main thread, so that most scans need no memory.
static mut SCANNER: Scanner = Scanner::new();

/// The same without a need to be ready for R's errors; `None` if they have to be expected, because R
/// itself reads, or needs much memory.
///
/// # Safety
/// As [`read`].
pub unsafe fn read_plain<'a>(source: impl Into<Source<'a>>) -> Option<Result<SEXP, Unread>> {
    /// Up to here R runs out of memory as easily by anything else.
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

unsafe fn read_with(source: Source<'_>, restored: SEXP) -> Result<SEXP, Unread> {
    let depth = scan(source, restored)?;
    if let Some(object) = reader::read(source, restored) {
        return Ok(object);
    }
    if depth.calls > stack::levels(R_CALL) {
        return Err(Unread::TooDeep);
    }
    Ok(read_by_r(source, restored))
}

/// Checks what is to be read. R is not called but for what hooks have made.
unsafe fn scan(source: Source<'_>, restored: SEXP) -> Result<Depth, Unread> {
    let start = source.bytes.len() - source.rest.len() - source.tail.len();
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
    // More than these neither reader can read.
    let deepest = stack::levels(R_CALL.min(reader::LEVEL));
    let hooked = |i, j| {
        // SAFETY: on R's main thread.
        let object = unsafe { hooks::restored(restored, [i, j]) }?;
        // SAFETY: as above.
        Some(match unsafe { extendr_ffi::TYPEOF(object) } {
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

unsafe fn read_by_r(source: Source<'_>, restored: SEXP) -> SEXP {
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

unsafe extern "C" fn in_char(stream: R_inpstream_t) -> c_int {
    let mut byte = 0u8;
    in_bytes(stream, std::ptr::from_mut(&mut byte).cast(), 1);
    byte.into()
}

unsafe extern "C" fn in_bytes(stream: R_inpstream_t, to: *mut c_void, n: c_int) {
    let source = &mut *(*stream).data.cast::<Source<'_>>();
    // The scan has seen to that, which need not be believed here.
    let copied = usize::try_from(n).is_ok_and(|n| source.copy(to.cast(), n));
    if !copied {
        r::raise("serialized object is truncated");
    }
}
