//! The standard streams of a daemon: what its tasks write to stdout and stderr is kept for each task, printed with the
//! task's number before each line, or discarded but for the end, which the host reads should the daemon be killed.
//!
//! The streams become the writing end of a pipe: both of one, so that their lines stay in order. A thread reads the other
//! end while a task runs, for a pipe is small. When the task is over, the main thread reads what is left, under the same
//! lock: so nothing that this process has written before is missed, and no wait is needed.
//!
//! What is printed is written by the thread alone, to the streams as they were. If they are two files, there are two
//! pipes. The main thread never writes it: should nobody read it any more, a SIGPIPE would reach the language runtime
//! there, which may jump. So it waits for the thread when a task is over.
//!
//! The thread writes what it has read into a second, smaller pipe, the *tail*, of which it drops the oldest when it is
//! full. A host on the same machine has both pipes open, too. When this process is killed, the tail and then the rest
//! of the first pipe are what it has written last, and nothing of that depends on this process. Only on Linux can a
//! host open them.

mod lines;
mod printer;
mod tail;
#[cfg(test)]
mod tests;
mod text;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl, fstat};
use rustix::io::{Errno, fcntl_dupfd_cloexec, read, write};
use rustix::stdio::{dup2_stderr, dup2_stdout, stderr, stdout};

use crate::sys::{flush_c_streams, pipe, signals};
use printer::Printer;
use tail::Tail;
use text::Text;

pub use text::HALF;

/// A descriptor that a program uses for its own purposes gets at least this number: below are those that shells and
/// programs know by number.
const ABOVE: i32 = 10;

/// The standard streams as they were. Dropping this puts them back.
#[derive(Debug)]
struct Saved([Option<OwnedFd>; 2]);

impl Saved {
    fn now() -> Saved {
        let out = fcntl_dupfd_cloexec(stdout(), ABOVE).ok();
        let err = fcntl_dupfd_cloexec(stderr(), ABOVE).ok();
        Saved([out, err])
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        flush_c_streams();
        let [out, err] = &self.0;
        // If that fails, nothing better can be done.
        let _ = out.as_ref().map(dup2_stdout);
        let _ = err.as_ref().map(dup2_stderr);
    }
}

/// What is kept of what tasks write, besides the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing. Only stderr has a tail; stdout is discarded.
    LastWords,
    /// What each task writes to stdout and stderr.
    Tasks,
    /// Nothing: it is printed at once, where it went before, with the number of the task before each line.
    Shown,
}

/// The standard streams of this process while it serves a host, for as long as this lives.
#[derive(Debug)]
pub struct Output {
    keep: Keep,
    saved: Option<Saved>,
    /// Of stderr, and of stdout unless it has one of its own.
    writer: OwnedFd,
    /// Of stdout, if that is printed to another file than stderr.
    apart: Option<OwnedFd>,
    /// Bytes that a pipe holds at most.
    capacity: usize,
    shared: Arc<Shared>,
    reading: Option<JoinHandle<()>>,
    /// Bytes in it are told to the thread: [`END`] or [`SETTLE`]. In the other pipe, the host could take them. It is no use to
    /// close this instead: a process that a task has forked may have a copy.
    control: OwnedFd,
}

/// Ends the thread.
const END: u8 = b'x';
/// Has the thread print all that was written before.
const SETTLE: u8 = b's';

#[derive(Debug)]
struct Shared {
    /// The reading ends of the pipes of [`Output::writer`] and [`Output::apart`].
    readers: Vec<OwnedFd>,
    sink: Mutex<Sink>,
    tail: Tail,
    /// Something was read since the last task began.
    dirty: AtomicBool,
    settled: Mutex<Settled>,
    has_settled: Condvar,
}

/// Where it goes what is read.
#[derive(Debug)]
enum Sink {
    Nowhere,
    Text(Text),
    /// One for each pipe.
    Printers(Vec<Printer>),
}

/// How often the thread has printed all upon [`SETTLE`].
#[derive(Debug, Default)]
struct Settled {
    times: u64,
    /// The thread is gone.
    over: bool,
}

/// Bytes that a pipe holds at most.
#[cfg(target_os = "linux")]
fn capacity(pipe: &OwnedFd) -> io::Result<usize> {
    Ok(rustix::pipe::fcntl_getpipe_size(pipe)?)
}

/// `BIG_PIPE_SIZE` of macOS.
#[cfg(not(target_os = "linux"))]
fn capacity(_: &OwnedFd) -> io::Result<usize> {
    Ok(64 * 1024)
}

impl Output {
    /// Whether this system can do it. A daemon asks before it connects, when its host still reads what it says.
    ///
    /// # Errors
    /// None on this system.
    pub fn can_be_kept(_: Keep) -> io::Result<()> {
        Ok(())
    }

    /// From now on.
    ///
    /// # Errors
    /// The system has no descriptors, or no thread, left.
    pub fn begin(keep: Keep) -> io::Result<Output> {
        let (reader, writer) = pipe()?;
        // The two ends have flags of their own: whoever writes waits if the pipe is full.
        fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        let capacity = capacity(&writer)?;
        let saved = Saved::now();
        let mut readers = vec![reader];
        let mut apart = None;
        let sink = match keep {
            Keep::LastWords => Sink::Nowhere,
            Keep::Tasks => Sink::Text(Text::default()),
            Keep::Shown => {
                let [out, err] = saved.0.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd));
                let mut printers = vec![Printer::new(err)];
                if !out.zip(err).is_some_and(|(out, err)| are_one(out, err)) {
                    let (reader, writer) = pipe()?;
                    fcntl_setfl(&reader, OFlags::NONBLOCK)?;
                    readers.push(reader);
                    apart = Some(writer);
                    printers.push(Printer::new(out));
                }
                Sink::Printers(printers)
            }
        };
        let shared = Arc::new(Shared {
            readers,
            sink: Mutex::new(sink),
            tail: Tail::new()?,
            dirty: AtomicBool::new(false),
            settled: Mutex::default(),
            has_settled: Condvar::new(),
        });
        let (told, control) = pipe()?;
        let thread = shared.clone();
        let start = || {
            std::thread::Builder::new()
                .name("mirai-output".into())
                .stack_size(STACK)
                .spawn(move || thread.read_on(&told, capacity))
        };
        let reading = signals::with_all_blocked(start)?;
        let output = Output {
            keep,
            saved: Some(saved),
            writer,
            apart,
            capacity,
            shared,
            reading: Some(reading),
            control,
        };
        output.redirect();
        Ok(output)
    }

    /// What can fail here leaves a stream as it was.
    fn redirect(&self) {
        let _ = dup2_stderr(&self.writer);
        if let Some(out) = self.of_stdout() {
            let _ = dup2_stdout(out);
        } else if let Ok(null) = File::options().write(true).open("/dev/null") {
            let _ = dup2_stdout(&null);
        }
    }

    /// The pipe of stdout, unless that is discarded.
    fn of_stdout(&self) -> Option<&OwnedFd> {
        match self.keep {
            Keep::LastWords => None,
            Keep::Tasks | Keep::Shown => Some(self.apart.as_ref().unwrap_or(&self.writer)),
        }
    }

    /// The numbers of the pipes with what was written last, the earlier part first.
    pub(super) fn last_words(&self) -> [u32; 2] {
        [&self.shared.tail.reader, &self.shared.readers[0]].map(|fd| fd.as_raw_fd() as u32)
    }

    /// A task begins, the handle of which has this number, or 0. What was written since the last one is nobody's: by
    /// processes that a task has left, say. A stream that a task has closed or redirected is put right.
    pub fn task_begins(&self, number: u32) {
        if self.shared.dirty.load(Ordering::Relaxed) || self.keep != Keep::LastWords {
            self.begin_anew(number);
        }
    }

    fn begin_anew(&self, number: u32) {
        let ours = |stream: BorrowedFd<'_>, pipe: &OwnedFd| are_one(stream, pipe.as_fd());
        if !ours(stderr(), &self.writer)
            || self.of_stdout().is_some_and(|pipe| !ours(stdout(), pipe))
        {
            self.redirect();
        }
        if self.keep == Keep::Shown {
            self.settle(number);
        }
        let mut sink = self.shared.sink.lock();
        match &mut *sink {
            Sink::Nowhere => {
                self.shared.read(&mut sink, self.capacity);
            }
            Sink::Text(_) => {
                self.shared.read(&mut sink, self.capacity);
                *sink = Sink::Text(Text::default());
            }
            Sink::Printers(_) => {}
        }
        self.shared.tail.clear();
        self.shared.dirty.store(false, Ordering::Relaxed);
    }

    /// The task is over: what it has written, if that is kept. Bytes that are not UTF-8 are replaced. If it is printed
    /// instead, all of it was printed when this returns.
    pub fn take(&self) -> String {
        if self.keep == Keep::LastWords {
            return String::new();
        }
        flush_c_streams();
        if self.keep == Keep::Shown {
            self.settle(0);
        }
        let mut sink = self.shared.sink.lock();
        if let Sink::Text(_) = *sink {
            // What was written before this call is in the pipe: no more than it can hold. What others write meanwhile must
            // not keep us here.
            self.shared.read(&mut sink, self.capacity);
        }
        match &mut *sink {
            Sink::Text(text) => std::mem::take(text).into_string(),
            Sink::Nowhere | Sink::Printers(_) => String::new(),
        }
    }

    /// Has all printed that was written so far. What comes after it is of the task with this number.
    fn settle(&self, number: u32) {
        let name = |sink: &mut Sink| {
            if let Sink::Printers(printers) = sink {
                for printer in printers {
                    printer.lines.belong_to(number);
                }
            }
        };
        {
            let mut sink = self.shared.sink.lock();
            if self.shared.has_settled(&sink) {
                return name(&mut sink);
            }
        }
        let mut settled = self.shared.settled.lock();
        let before = settled.times;
        if write(&self.control, &[SETTLE]).is_ok() {
            while settled.times == before && !settled.over {
                self.shared.has_settled.wait(&mut settled);
            }
        }
        drop(settled);
        name(&mut self.shared.sink.lock());
    }
}

/// Whether two descriptors are of the same file.
fn are_one(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    match (fstat(a), fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.saved = None;
        let _ = write(&self.control, &[END]);
        let _ = self.reading.take().map(JoinHandle::join);
    }
}

impl Shared {
    /// Reads until it is told to end. Pipes hold at most `capacity` bytes.
    fn read_on(&self, told: &OwnedFd, capacity: usize) {
        while self.wait(told).is_ok() {
            let mut byte = [0];
            let told = match poll(&mut [PollFd::new(told, PollFlags::IN)], Some(&NO_TIME)) {
                Ok(1) if read(told, &mut byte) == Ok(1) => Some(byte[0]),
                _ => None,
            };
            let mut sink = self.sink.lock();
            // No more than was there: whoever goes on writing must not keep the main thread from the lock.
            self.read(&mut sink, capacity);
            if let Sink::Printers(printers) = &mut *sink {
                let now = Instant::now();
                for printer in printers {
                    match told {
                        Some(_) => printer.finish(),
                        None => printer.be_prompt(now),
                    }
                }
            }
            drop(sink);
            match told {
                Some(SETTLE) => self.settled.lock().times += 1,
                Some(_) => break,
                None => continue,
            }
            self.has_settled.notify_all();
        }
        self.settled.lock().over = true;
        self.has_settled.notify_all();
    }

    /// Waits until there is something to read, or to be told, or a line is to be shown that is not complete.
    fn wait(&self, told: &OwnedFd) -> rustix::io::Result<()> {
        let due = match &*self.sink.lock() {
            Sink::Printers(printers) => printers.iter().filter_map(|p| p.lines.due()).min(),
            Sink::Nowhere | Sink::Text(_) => None,
        };
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut watched: Vec<_> = std::iter::once(told)
            .chain(&self.readers)
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        match poll(&mut watched, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether all is printed that was written so far.
    fn has_settled(&self, sink: &Sink) -> bool {
        let mut watched: Vec<_> = self
            .readers
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        let none = matches!(poll(&mut watched, Some(&NO_TIME)), Ok(0));
        let lines_are_over = match sink {
            Sink::Printers(printers) => printers.iter().all(|p| p.lines.are_over()),
            Sink::Nowhere | Sink::Text(_) => true,
        };
        none && lines_are_over
    }

    /// Takes over what the pipes hold, of each `most` bytes or somewhat more.
    fn read(&self, sink: &mut Sink, most: usize) {
        for (at, reader) in self.readers.iter().enumerate() {
            self.read_one(at, reader, sink, most);
        }
    }

    fn read_one(&self, at: usize, reader: &OwnedFd, sink: &mut Sink, most: usize) {
        let mut bytes = [0; CHUNK];
        let mut n = 0_usize;
        while n < most {
            match read(reader, &mut bytes) {
                Ok(0) => return,
                Ok(some) => {
                    let bytes = &bytes[..some];
                    self.dirty.store(true, Ordering::Relaxed);
                    if at == 0 {
                        self.tail.add(bytes);
                    }
                    match sink {
                        Sink::Nowhere => {}
                        Sink::Text(text) => text.add(bytes),
                        Sink::Printers(printers) => printers[at].add(bytes),
                    }
                    n += some;
                }
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

const NO_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
/// Bytes that are read at once.
const CHUNK: usize = 16 * 1024;
/// Of the thread, which calls nothing deep.
const STACK: usize = 128 * 1024;
