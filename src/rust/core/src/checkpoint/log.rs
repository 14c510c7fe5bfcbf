//! How a checkpoint is laid out. Integers are little endian.
//!
//! | part | bytes |
//! | --- | --- |
//! | header | [`MAGIC`], format ([`VERSION`], `u32`), process that has opened it last (`u32`) |
//! | record | key (16), size of the body (`u64`), bytes of notes at its end (`u32`), checksum of these 28 (`u32`), body, checksum of the body (`u32`) |
//!
//! Checksums are CRC-32. A record whose body is damaged is passed over, because its length is known. Where the first 32
//! bytes of a record are damaged, the log ends: what follows is cut off.

use std::fs::File;
use std::io;

use rustc_hash::FxHashMap;

use super::{Key, OpenError};
use crate::sys::files::FileExt;

pub(super) const MAGIC: [u8; 8] = *b"miraickp";
/// Version of this layout, and of what a [`Key`] is made of.
pub(super) const VERSION: u32 = 1;
/// Bytes of the header.
pub(super) const HEADER: u64 = 16;
/// Bytes of a record before its body.
pub(super) const HEAD: usize = 32;
/// Bytes of a record after its body.
pub(super) const TAIL: usize = 4;

/// Where a result is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset of the body.
    pub(super) at: u64,
    /// Bytes of the body, notes included.
    pub(super) size: u64,
    pub(super) notes: u32,
    pub(super) checksum: u32,
}

/// The first bytes of a record.
pub(super) fn head(key: &Key, size: u64, notes: u32) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..16].copy_from_slice(&key.0);
    head[16..24].copy_from_slice(&size.to_le_bytes());
    head[24..28].copy_from_slice(&notes.to_le_bytes());
    let checksum = crc32fast::hash(&head[..28]);
    head[28..].copy_from_slice(&checksum.to_le_bytes());
    head
}

/// The key, the size of the body and that of its notes; `None` if these bytes are no head.
fn parse(head: &[u8; HEAD]) -> Option<(Key, u64, u32)> {
    let number =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if crc32fast::hash(&head[..28]) != number(28) {
        return None;
    }
    let mut key = Key::default();
    key.0.copy_from_slice(&head[..16]);
    let size = u64::from(number(16)) | u64::from(number(20)) << 32;
    Some((key, size, number(24)))
}

/// What a file has.
pub(super) struct Scanned {
    pub(super) index: FxHashMap<Key, Place>,
    /// Where the next record goes.
    pub(super) end: u64,
}

/// The process that says in the header that it has opened the file.
pub(super) fn holder(file: &File) -> Option<u32> {
    let mut header = [0; HEADER as usize];
    file.read_exact_at(&mut header, 0).ok()?;
    let pid = [header[12], header[13], header[14], header[15]];
    header.starts_with(&MAGIC).then(|| u32::from_le_bytes(pid))
}

/// Checks a file that is locked, makes it a checkpoint if it is empty, and cuts off a damaged tail.
pub(super) fn open(file: &File, stop: &dyn Fn() -> bool) -> Result<Scanned, OpenError> {
    let length = file.metadata()?.len();
    let mut header = [0; HEADER as usize];
    let there = length.min(HEADER) as usize;
    file.read_exact_at(&mut header[..there], 0)?;
    // A process that was killed, or a loss of power, may have left a part of it, or zeros.
    let begun = length <= HEADER
        && (MAGIC.starts_with(&header[..there.min(8)]) && length < HEADER
            || header.iter().all(|byte| *byte == 0));
    if begun {
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        file.write_all_at(&header, 0)?;
    } else if length < HEADER || !header.starts_with(&MAGIC) {
        return Err(OpenError::Foreign);
    }
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if version != VERSION {
        return Err(OpenError::Version(version));
    }
    let scanned = scan(file, length, stop)?;
    if scanned.end < length {
        file.set_len(scanned.end)?;
    }
    file.write_all_at(&std::process::id().to_le_bytes(), 12)?;
    file.sync_all()?;
    Ok(scanned)
}

/// Reads a file from the beginning to the end, in parts.
struct Reader<'a> {
    file: &'a File,
    stop: &'a dyn Fn() -> bool,
    /// Offset of the next byte that is not in `part`.
    at: u64,
    part: Vec<u8>,
    taken: usize,
}

/// Bytes that are read at once.
const PART: usize = 1 << 20;

impl Reader<'_> {
    /// The next bytes, at most `n` and at least one; none at the end of the file.
    fn next(&mut self, n: u64) -> Result<&[u8], OpenError> {
        if self.taken == self.part.len() {
            if (self.stop)() {
                return Err(OpenError::Stopped);
            }
            self.part.resize(PART, 0);
            let read = loop {
                match self.file.read_at(&mut self.part, self.at) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            self.part.truncate(read);
            (self.at, self.taken) = (self.at + read as u64, 0);
        }
        let left = (self.part.len() - self.taken) as u64;
        let from = self.taken;
        self.taken += n.min(left) as usize;
        Ok(&self.part[from..self.taken])
    }

    fn fill(&mut self, mut out: &mut [u8]) -> Result<bool, OpenError> {
        while !out.is_empty() {
            let bytes = self.next(out.len() as u64)?;
            if bytes.is_empty() {
                return Ok(false);
            }
            let (filled, rest) = out.split_at_mut(bytes.len());
            filled.copy_from_slice(bytes);
            out = rest;
        }
        Ok(true)
    }
}

fn scan(file: &File, length: u64, stop: &dyn Fn() -> bool) -> Result<Scanned, OpenError> {
    let mut reader = Reader {
        file,
        stop,
        at: HEADER,
        part: Vec::new(),
        taken: 0,
    };
    let mut index = FxHashMap::default();
    let mut end = HEADER;
    let mut at = HEADER;
    let mut head = [0; HEAD];
    let mut tail = [0; TAIL];
    while reader.fill(&mut head)? {
        let Some((key, size, notes)) = parse(&head) else {
            break;
        };
        let body = at + HEAD as u64;
        let next = size
            .checked_add(TAIL as u64)
            .and_then(|size| body.checked_add(size));
        let Some(next) = next.filter(|next| *next <= length) else {
            break;
        };
        let mut checksum = crc32fast::Hasher::new();
        let mut left = size;
        while left > 0 {
            let bytes = reader.next(left)?;
            if bytes.is_empty() {
                break;
            }
            checksum.update(bytes);
            left -= bytes.len() as u64;
        }
        if left > 0 || !reader.fill(&mut tail)? {
            break;
        }
        let checksum = checksum.finalize();
        if u32::from_le_bytes(tail) == checksum {
            let place = Place {
                at: body,
                size,
                notes,
                checksum,
            };
            index.insert(key, place);
            end = next;
        }
        at = next;
    }
    Ok(Scanned { index, end })
}
