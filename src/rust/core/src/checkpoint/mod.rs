//! A checkpoint: a file that keeps the results of tasks, so that a later process need not run them again.
//!
//! The file is an append-only log with checksums (`log`): a record for each result. An embedded store (redb, SQLite)
//! would update pages in place, which costs a journal and several writes a result. Here nothing is ever changed: a
//! result is one sequential write, and a crash can damage the records of the last moments only. What is looked up,
//! the place of each result by its [`Key`], is small enough for memory.
//!
//! - [`Checkpoint::open`] locks the file, checks every record, and cuts off a damaged tail.
//! - [`Checkpoint::find`] gives a [`Stored`]: the place of a result, which is read when it is asked for.
//! - [`Checkpoint::store`] takes a result from any thread and does not block. One thread for each file (`writer`) appends
//!   it, and calls fdatasync [`DELAY`] later at the latest.
//!
//! The lock lasts until the last [`Checkpoint`] is dropped and everything is on disk. A process that opens a file again
//! meanwhile gets the same checkpoint. What a [`Stored`] refers to needs no lock, because nobody changes a record.
//!
//! If writing fails, the checkpoint [stops](Status::failure): later results are dropped, and tasks go on.

mod log;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

pub use self::log::Place;
use self::writer::{Shared, State};
use crate::memory::Content;
use crate::sys::files::{self, FileExt, FileId};

/// What a result is stored under: the first half of a SHA-256 of everything that the result depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key(pub [u8; 16]);

/// Makes a [`Key`]. Has no destructor.
#[derive(Clone)]
pub struct Hasher(ring::digest::Context);

impl Default for Hasher {
    fn default() -> Hasher {
        Hasher(ring::digest::Context::new(&ring::digest::SHA256))
    }
}

impl Hasher {
    /// Adds bytes to what is hashed.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes that were added.
    pub fn finish(self) -> Key {
        let mut key = Key::default();
        key.0.copy_from_slice(&self.0.finish().as_ref()[..16]);
        key
    }
}

/// A result lies in the memory of the process at most this long before it is on disk, unless the disk is slower.
pub const DELAY: Duration = Duration::from_millis(500);

/// Why a checkpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened, read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file is no checkpoint.
    #[error("it is not a checkpoint")]
    Foreign,
    /// Another version of this package has made it.
    #[error("it was made by another version of mirai: its format is {0}, this version reads {VERSION}", VERSION = log::VERSION)]
    Version(u32),
    /// By Ctrl-C.
    #[error("interrupted")]
    Stopped,
    /// With the process that has it open.
    #[error("process {0} is writing to it")]
    Locked(u32),
}

/// A result to be stored: most are shared with a task, so that nothing is copied.
pub type Value = Box<dyn AsRef<Content> + Send>;

/// See the [module documentation](self). Clones are the same checkpoint.
pub struct Checkpoint(Arc<Shared>);

/// The checkpoints of this process that are open. Locked before the state of one of them.
static OPEN: Mutex<Vec<(FileId, Arc<Shared>)>> = Mutex::new(Vec::new());
/// To close one that has nothing to write takes no longer.
const CLOSING: Duration = Duration::from_secs(5);
/// One has been closed.
static CLOSED: Condvar = Condvar::new();

impl Checkpoint {
    /// Opens a file, or makes it. All of it is read, until `stop` says no.
    ///
    /// # Errors
    /// The file is left as it is.
    pub fn open(path: &Path, stop: &dyn Fn() -> bool) -> Result<Checkpoint, OpenError> {
        let mut open = OPEN.lock();
        if let Ok(known) = path.metadata() {
            if !known.is_file() {
                return Err(OpenError::Foreign);
            }
            let id = files::id_at(path)?;
            if let Some((_, shared)) = open.iter().find(|(known, _)| *known == id) {
                let mut state = shared.state.lock();
                if state.users > 0 || state.failure.is_none() {
                    state.users += 1;
                    return Ok(Checkpoint(shared.clone()));
                }
                // It has stopped, and its thread is about to close it: the file may be of use again.
                drop(state);
                CLOSED.wait_for(&mut open, CLOSING);
            }
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let id = files::id_of(&file)?;
        if !files::try_lock(&file)? {
            return Err(OpenError::Locked(log::holder(&file).unwrap_or(0)));
        }
        let file = Arc::new(file);
        let scanned = log::open(&file, stop)?;
        // The name of a new file is to outlast a loss of power, too.
        let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        if let Ok(dir) = File::open(parent.unwrap_or(Path::new("."))) {
            // Not every file system can do it.
            let _ = dir.sync_all();
        }
        let shared = Arc::new(Shared::new(file, State::new(scanned)));
        writer::start(&shared, id)?;
        open.push((id, shared.clone()));
        Ok(Checkpoint(shared))
    }

    /// The result that is stored under a key.
    pub fn find(&self, key: &Key) -> Option<Stored> {
        let place = *self.0.state.lock().index.get(key)?;
        Some(Stored {
            file: self.0.file.clone(),
            place,
            content: OnceLock::new(),
        })
    }

    /// Stores a result. Does not block. Once it has been written, or cannot be, [`Content::release`] is called.
    pub fn store(&self, key: Key, value: Value) {
        self.0.push(key, value, false);
    }

    /// As [`store`](Self::store), of a result that has been counted in [`expected`](Self::expected).
    pub(crate) fn store_expected(&self, key: Key, value: Value) {
        self.0.push(key, value, true);
    }

    /// The number of results that others can see already and that are about to be stored.
    pub(crate) fn expected(&self) -> Arc<AtomicUsize> {
        self.0.expected.clone()
    }

    /// What has become of it, without keeping it open.
    pub fn status(&self) -> Status {
        Status(self.0.clone())
    }
}

impl Clone for Checkpoint {
    fn clone(&self) -> Checkpoint {
        self.0.state.lock().users += 1;
        Checkpoint(self.0.clone())
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.users -= 1;
        if state.users == 0 {
            self.0.changed.notify_one();
        }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Checkpoint").field(&self.0.file).finish()
    }
}

/// See [`Checkpoint::status`].
#[derive(Clone)]
pub struct Status(Arc<Shared>);

impl Status {
    /// Why results are no longer stored, if so.
    pub fn failure(&self) -> Option<String> {
        self.0.state.lock().failure.clone()
    }

    /// Whether everything that has been stored so far is in the file, though perhaps not on disk yet. If not, the bell
    /// rings when it is.
    pub fn is_written(&self) -> bool {
        let mut state = self.0.state.lock();
        let written = state.is_written() && self.0.expected.load(Ordering::SeqCst) == 0;
        state.watched = !written;
        written
    }
}

/// Waits until every checkpoint that nobody uses any more is on disk and closed, at most for `timeout`. For the end of
/// the process.
pub fn finish(timeout: Duration) {
    let end = std::time::Instant::now() + timeout;
    let mut open = OPEN.lock();
    while open
        .iter()
        .any(|(_, shared)| shared.state.lock().users == 0)
    {
        if CLOSED.wait_until(&mut open, end).timed_out() {
            return;
        }
    }
}

/// A result in a file, which is read when it is asked for.
#[derive(Debug)]
pub struct Stored {
    file: Arc<File>,
    place: Place,
    /// Once it has been read.
    content: OnceLock<Content>,
}

impl PartialEq for Stored {
    fn eq(&self, other: &Stored) -> bool {
        Arc::ptr_eq(&self.file, &other.file) && self.place == other.place
    }
}

impl Eq for Stored {}

impl Stored {
    /// The result, which the first call reads from the file.
    ///
    /// # Errors
    /// The file cannot be read, has been changed, or there is no memory.
    pub fn content(&self) -> io::Result<&Content> {
        match self.content.get() {
            Some(content) => Ok(content),
            None => {
                let read = self.read()?;
                Ok(self.content.get_or_init(|| read))
            }
        }
    }

    fn read(&self) -> io::Result<Content> {
        let size = usize::try_from(self.place.size).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(size).is_err() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        bytes.resize(size, 0);
        self.file.read_exact_at(&mut bytes, self.place.at)?;
        if crc32fast::hash(&bytes) != self.place.checksum {
            let text = "the checkpoint has been changed by another program";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut content = Content::from(bytes);
        content.split_notes(self.place.notes.into());
        Ok(content)
    }
}
