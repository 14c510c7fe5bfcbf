//! The thread that writes to a checkpoint.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashMap;

use super::log::{self, HEAD, Place, Scanned, TAIL};
use super::{CLOSED, DELAY, Key, OPEN, Value};
use crate::memory::Content;
use crate::sys::files::{self, FileExt, FileId};
use crate::sys::{Bell, signals};

/// What the users of a checkpoint and its thread share.
pub(super) struct Shared {
    pub(super) file: Arc<File>,
    pub(super) state: Mutex<State>,
    /// There is something to write, or the last user has gone.
    pub(super) changed: Condvar,
    /// Results that others can see already and that are about to be pushed.
    pub(super) expected: Arc<AtomicUsize>,
}

pub(super) struct State {
    pub(super) index: FxHashMap<Key, Place>,
    /// The number of [`Checkpoint`](super::Checkpoint)s. The file is closed when there is none, and nothing to write.
    pub(super) users: usize,
    pub(super) failure: Option<String>,
    /// Whether to ring the bell when everything is written.
    pub(super) watched: bool,
    queue: Vec<(Key, Value)>,
    /// The thread has taken what was in the queue.
    writing: bool,
    end: u64,
}

impl State {
    /// With one user.
    pub(super) fn new(scanned: Scanned) -> State {
        State {
            index: scanned.index,
            users: 1,
            failure: None,
            watched: false,
            queue: Vec::new(),
            writing: false,
            end: scanned.end,
        }
    }

    pub(super) fn is_written(&self) -> bool {
        self.queue.is_empty() && !self.writing
    }
}

impl Shared {
    pub(super) fn new(file: Arc<File>, state: State) -> Shared {
        Shared {
            file,
            state: Mutex::new(state),
            changed: Condvar::new(),
            expected: Arc::default(),
        }
    }

    /// `expected`: it counts as such no longer.
    pub(super) fn push(&self, key: Key, value: Value, expected: bool) {
        let mut state = self.state.lock();
        if expected {
            self.expected.fetch_sub(1, Ordering::SeqCst);
        }
        if state.failure.is_some() {
            if std::mem::take(&mut state.watched) {
                Bell::get().ring();
            }
            drop(state);
            (*value).as_ref().release();
            return;
        }
        state.queue.push((key, value));
        let first = state.queue.len() == 1;
        drop(state);
        if first {
            self.changed.notify_one();
        }
    }
}

/// Starts the thread.
pub(super) fn start(shared: &Arc<Shared>, id: FileId) -> io::Result<()> {
    // It rings it.
    Bell::get();
    let mut writer = Writer {
        end: shared.state.lock().end,
        shared: shared.clone(),
        id,
        buffer: Vec::new(),
        placed: Vec::new(),
        unsynced: None,
    };
    // A write beyond the limit of a file's size (SIGXFSZ) is an error and nothing worse, too.
    signals::with_all_blocked(|| {
        std::thread::Builder::new()
            .name("mirai-checkpoint".into())
            .spawn(move || writer.run())
    })?;
    Ok(())
}

/// Records are gathered up to this many bytes and written at once.
const GATHERED: usize = 1 << 20;

struct Writer {
    shared: Arc<Shared>,
    id: FileId,
    /// Records to be written at `end`.
    buffer: Vec<u8>,
    /// Where the results in `buffer` will be.
    placed: Vec<(Key, Place)>,
    /// Offset of the end of what is written.
    end: u64,
    /// When the oldest write was made that is not known to be on disk.
    unsynced: Option<Instant>,
}

impl Writer {
    fn run(&mut self) {
        while let Some(batch) = self.next() {
            let mut batch = batch.into_iter();
            let mut done = Ok(());
            for (key, value) in batch.by_ref() {
                let content = (*value).as_ref();
                done = self.append(key, content);
                content.release();
                if done.is_err() {
                    break;
                }
            }
            let done = done
                .and_then(|()| self.flush())
                .and_then(|()| self.sync_if_due());
            if let Err(error) = done {
                self.fail(&error);
            }
            for (_, value) in batch {
                (*value).as_ref().release();
            }
        }
    }

    /// Waits for results; `None` when the checkpoint is closed. Meanwhile writes to disk what is due.
    fn next(&mut self) -> Option<Vec<(Key, Value)>> {
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        state.writing = false;
        loop {
            if !state.queue.is_empty() {
                state.writing = true;
                return Some(std::mem::take(&mut state.queue));
            }
            if std::mem::take(&mut state.watched) {
                Bell::get().ring();
            }
            let over = state.users == 0;
            match self.unsynced {
                None if over => {
                    drop(state);
                    if self.close() {
                        return None;
                    }
                    state = shared.state.lock();
                }
                None => shared.changed.wait(&mut state),
                Some(since) => {
                    if !over
                        && !shared
                            .changed
                            .wait_until(&mut state, since + DELAY)
                            .timed_out()
                    {
                        continue;
                    }
                    drop(state);
                    if let Err(error) = self.sync() {
                        self.fail(&error);
                    }
                    state = shared.state.lock();
                }
            }
        }
    }

    /// Adds a record to those that are gathered, or writes it, if it is large.
    fn append(&mut self, key: Key, content: &Content) -> io::Result<()> {
        let notes = content.notes().unwrap_or_default();
        let size = content.size() + notes.len() as u64;
        let Ok(notes_size) = u32::try_from(notes.len()) else {
            return Ok(());
        };
        // The daemon had no memory to send it.
        if content.size() == 0 {
            return Ok(());
        }
        self.buffer
            .extend_from_slice(&log::head(&key, size, notes_size));
        let mut at = self.end + self.buffer.len() as u64;
        let place = |checksum| Place {
            at,
            size,
            notes: notes_size,
            checksum,
        };
        let mut checksum = crc32fast::Hasher::new();
        if size <= GATHERED as u64 {
            for part in content.parts().chain([notes]) {
                checksum.update(part);
                self.buffer.extend_from_slice(part);
            }
            let checksum = checksum.finalize();
            self.buffer.extend_from_slice(&checksum.to_le_bytes());
            self.placed.push((key, place(checksum)));
            return match self.buffer.len() < GATHERED {
                true => Ok(()),
                false => self.flush().and_then(|()| self.sync_if_due()),
            };
        }
        // Straight from where it is, and each part while it is in the processor's cache.
        let head = self.buffer.split_off(self.buffer.len() - HEAD);
        self.flush()?;
        let start = self.end;
        let written = self.put(start, &head).and_then(|()| {
            for part in content.parts().chain([notes]) {
                for piece in part.chunks(GATHERED) {
                    checksum.update(piece);
                    self.put(at, piece)?;
                    at += piece.len() as u64;
                }
            }
            let sum = checksum.finalize();
            self.put(at, &sum.to_le_bytes())?;
            Ok(sum)
        });
        let sum = written?;
        let place = Place {
            at: start + HEAD as u64,
            size,
            notes: notes_size,
            checksum: sum,
        };
        self.end = at + TAIL as u64;
        self.shared.state.lock().index.insert(key, place);
        self.sync_if_due()
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.unsynced.get_or_insert_with(Instant::now);
        self.shared.file.write_all_at(bytes, at)
    }

    /// Writes what is gathered.
    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let buffer = std::mem::take(&mut self.buffer);
        self.put(self.end, &buffer)?;
        self.end += buffer.len() as u64;
        self.buffer = buffer;
        self.buffer.clear();
        self.shared.state.lock().index.extend(self.placed.drain(..));
        Ok(())
    }

    fn sync_if_due(&mut self) -> io::Result<()> {
        match self.unsynced {
            Some(since) if since.elapsed() >= DELAY => self.sync(),
            _ => Ok(()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.unsynced = None;
        self.shared.file.sync_data()
    }

    /// Stops storing. The next scan keeps the results that were written as a whole, and cuts off the rest.
    fn fail(&mut self, error: &io::Error) {
        self.buffer = Vec::new();
        self.placed.clear();
        self.unsynced = None;
        let left = {
            let mut state = self.shared.state.lock();
            state.failure.get_or_insert_with(|| error.to_string());
            std::mem::take(&mut state.queue)
        };
        for (_, value) in left {
            (*value).as_ref().release();
        }
    }

    /// Closes the checkpoint, unless somebody uses it again.
    fn close(&mut self) -> bool {
        let mut open = OPEN.lock();
        let state = self.shared.state.lock();
        if state.users > 0 || !state.queue.is_empty() {
            return false;
        }
        open.retain(|(id, _)| *id != self.id);
        // Explicitly, because results that have not been read yet keep the file open.
        files::unlock(&self.shared.file);
        CLOSED.notify_all();
        true
    }
}
