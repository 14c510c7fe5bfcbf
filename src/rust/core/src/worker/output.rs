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

use std::collections::VecDeque;
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

use crate::sys::{pipe, signals};
use lines::Lines;

/// Of what one task writes, this many bytes of its beginning are kept, and as many of its end.
pub const HALF: usize = 512 * 1024;

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
        flush();
        let [out, err] = &self.0;
        // If that fails, nothing better can be done.
        let _ = out.as_ref().map(dup2_stdout);
        let _ = err.as_ref().map(dup2_stderr);
    }
}

/// Writes what C's streams hold back.
fn flush() {
    // SAFETY: a null pointer stands for all streams that are open for writing.
    unsafe { libc::fflush(std::ptr::null_mut()) };
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

/// Prints to a stream as it was.
#[derive(Debug)]
struct Printer {
    /// `None`: it was closed.
    to: Option<OwnedFd>,
    lines: Lines,
}

impl Printer {
    fn new(to: Option<BorrowedFd<'_>>) -> Printer {
        Printer {
            to: to.and_then(|fd| fcntl_dupfd_cloexec(fd, ABOVE).ok()),
            lines: Lines::default(),
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let to = self.to.as_ref();
        self.lines
            .add(bytes, Instant::now(), |bytes| print(to, bytes));
    }

    fn finish(&mut self) {
        let to = self.to.as_ref();
        self.lines.finish(|bytes| print(to, bytes));
    }

    /// Shows a line that is not complete, if it is time.
    fn be_prompt(&mut self, now: Instant) {
        let to = self.to.as_ref();
        if self.lines.due().is_some_and(|due| due <= now) {
            self.lines.show_held(|bytes| print(to, bytes));
        }
    }
}

/// Writes all, and waits if it must. What cannot be written is dropped: nobody reads it.
fn print(to: Option<&OwnedFd>, mut bytes: &[u8]) {
    let Some(to) = to else { return };
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            // Somebody who has the same stream does not want to wait.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(to, PollFlags::OUT)], None);
            }
            Err(_) => return,
        }
    }
}

/// A pipe with the last that was written. Neither end ever waits.
#[derive(Debug)]
struct Tail {
    reader: OwnedFd,
    writer: OwnedFd,
}

/// Bytes of the tail, more or less.
const TAIL: usize = 4096;
/// Bytes that are dropped from a full pipe at once: as few as make room.
const DROP: usize = 512;

impl Tail {
    fn new() -> io::Result<Tail> {
        let (reader, writer) = pipe()?;
        fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        fcntl_setfl(&writer, OFlags::NONBLOCK)?;
        shorten(&writer);
        Ok(Tail { reader, writer })
    }

    fn add(&self, bytes: &[u8]) {
        let mut left = &bytes[bytes.len().saturating_sub(TAIL)..];
        while !left.is_empty() {
            match write(&self.writer, left) {
                Ok(n) => left = &left[n..],
                Err(Errno::INTR) => {}
                // It is full.
                Err(Errno::AGAIN) if self.drop_some() => {}
                Err(_) => return,
            }
        }
    }

    /// False if there is nothing more.
    fn drop_some(&self) -> bool {
        read(&self.reader, &mut [0; DROP]).is_ok_and(|n| n > 0)
    }
}

/// Gives the tail's pipe the size of a tail, if the system can. If not, the tail is longer.
fn shorten(_pipe: &OwnedFd) {
    // A pipe is made of pages, some of which have few bytes in them, and there is room again once a whole page was
    // read. The kernel gives four pages to a user without privileges, too: its limit for one pipe is
    // `fs.pipe-max-size`, 1 MiB.
    #[cfg(target_os = "linux")]
    let _ = rustix::pipe::fcntl_setpipe_size(_pipe, 4 * crate::sys::page_size().max(TAIL));
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
        while self.shared.tail.drop_some() {}
        self.shared.dirty.store(false, Ordering::Relaxed);
    }

    /// The task is over: what it has written, if that is kept. Bytes that are not UTF-8 are replaced. If it is printed
    /// instead, all of it was printed when this returns.
    pub fn take(&self) -> String {
        if self.keep == Keep::LastWords {
            return String::new();
        }
        flush();
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

/// What a task has written: its beginning, its end, and the number of bytes between them.
#[derive(Debug, Default)]
struct Text {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
}

impl Text {
    fn add(&mut self, bytes: &[u8]) {
        let (to_head, rest) = bytes.split_at(bytes.len().min(HALF - self.head.len()));
        self.head.extend_from_slice(to_head);
        self.tail.extend(rest);
        let excess = self.tail.len().saturating_sub(HALF);
        self.tail.drain(..excess);
        self.dropped += excess as u64;
    }

    fn into_string(self) -> String {
        let mut bytes = self.head;
        if self.dropped > 0 {
            let gap = format!("\n[... {} bytes are left out here ...]\n", self.dropped);
            bytes.extend_from_slice(gap.as_bytes());
        }
        bytes.extend(self.tail);
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// As a program does it: the test harness captures `print!`.
    fn say(text: &str) {
        write(stdout(), text.as_bytes()).unwrap();
    }

    #[test]
    fn a_task_gets_what_it_has_written_and_nothing_else() {
        let output = Output::begin(Keep::Tasks).unwrap();
        say("before");
        output.task_begins(1);
        say("out\n");
        write(stderr(), b"err\n").unwrap();
        let child = Command::new("sh")
            .args(["-c", "echo child; echo more >&2"])
            .status();
        assert!(child.unwrap().success());
        say("\u{e9}\n");
        write(stdout(), b"\xff").unwrap();
        assert_eq!(output.take(), "out\nerr\nchild\nmore\n\u{e9}\n\u{fffd}");
        say("between");
        output.task_begins(1);
        assert_eq!(output.take(), "");
    }

    /// The streams of this process go to these files while `f` runs.
    fn with_streams_at(out: &OwnedFd, err: &OwnedFd, f: impl FnOnce()) {
        let saved = Saved::now();
        dup2_stdout(out).unwrap();
        dup2_stderr(err).unwrap();
        f();
        drop(saved);
    }

    /// All that is in a pipe, which nobody waits for.
    fn contents(pipe: &OwnedFd) -> String {
        fcntl_setfl(pipe, OFlags::NONBLOCK).unwrap();
        let mut all = Vec::new();
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = read(pipe, &mut bytes) {
            all.extend_from_slice(&bytes[..n]);
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn what_is_shown_is_there_when_its_task_is_over_and_bears_its_number() {
        let (shown, to) = pipe().unwrap();
        with_streams_at(&to, &to, || {
            let output = Output::begin(Keep::Shown).unwrap();
            say("before\n");
            for i in 1..100 {
                output.task_begins(i);
                say("out\n");
                write(stderr(), b"err\n").unwrap();
                say("the end");
                assert_eq!(output.take(), "");
                let before = if i == 1 { "before\n" } else { "" };
                let lines = ["out", "err", "the end"].map(|line| format!("[task {i}] {line}\n"));
                assert_eq!(contents(&shown), before.to_owned() + &lines.concat());
            }
            say("between\n");
            output.task_begins(0);
            assert_eq!(contents(&shown), "between\n");
            say("a task without a number\n");
            drop(output);
            say("after\n");
        });
        assert_eq!(contents(&shown), "a task without a number\nafter\n");
    }

    #[test]
    fn two_streams_are_shown_apart_and_half_a_line_after_a_while() {
        let (out, to_out) = pipe().unwrap();
        let (err, to_err) = pipe().unwrap();
        with_streams_at(&to_out, &to_err, || {
            let output = Output::begin(Keep::Shown).unwrap();
            output.task_begins(7);
            say("how many? ");
            write(stderr(), b"to stderr\n").unwrap();
            // It comes while the task goes on.
            poll(&mut [PollFd::new(&out, PollFlags::IN)], None).unwrap();
            assert_eq!(contents(&out), "[task 7] how many? ");
            say("5\n");
            output.take();
            assert_eq!(contents(&out), "5\n");
            assert_eq!(contents(&err), "[task 7] to stderr\n");
        });
    }

    #[test]
    fn whoever_writes_goes_on_though_nobody_reads_what_is_shown() {
        let (shown, to) = pipe().unwrap();
        with_streams_at(&to, &to, || {
            let output = Output::begin(Keep::Shown).unwrap();
            output.task_begins(1);
            drop(shown);
            say(&"a line\n".repeat(64 * 1024));
            output.take();
        });
    }

    #[test]
    fn somebody_else_who_floods_the_streams_does_not_keep_a_task_from_its_end() {
        let null = OwnedFd::from(File::options().write(true).open("/dev/null").unwrap());
        for keep in [Keep::Shown, Keep::Tasks] {
            with_streams_at(&null, &null, || {
                let output = Output::begin(keep).unwrap();
                output.task_begins(1);
                let mut child = Command::new("yes").spawn().unwrap();
                for _ in 0..20 {
                    output.take();
                    output.task_begins(2);
                }
                child.kill().unwrap();
                child.wait().unwrap();
            });
        }
    }

    #[test]
    fn a_flood_is_kept_in_part_and_does_not_stop_whoever_writes() {
        let output = Output::begin(Keep::Tasks).unwrap();
        output.task_begins(1);
        let line = "x".repeat(1023) + "\n";
        say("first\n");
        for _ in 0..64 * 1024 {
            say(&line);
        }
        say("last\n");
        let text = output.take();
        assert!(text.starts_with("first\nxxx"));
        assert!(text.ends_with("xxx\nlast\n"));
        let dropped = 64 * 1024 * 1024 + 11 - 2 * HALF;
        assert!(text.contains(&format!("\n[... {dropped} bytes are left out here ...]\n")));
        assert!(text.len() < 2 * HALF + 100);
    }

    #[test]
    fn a_task_that_redirects_its_streams_does_so_for_itself_only() {
        let output = Output::begin(Keep::Tasks).unwrap();
        output.task_begins(1);
        say("something");
        let null = File::options().write(true).open("/dev/null").unwrap();
        dup2_stdout(&null).unwrap();
        say("gone");
        assert_eq!(output.take(), "something");
        output.task_begins(1);
        say("again");
        assert_eq!(output.take(), "again");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn of_what_is_discarded_the_end_can_be_read_by_others() {
        let output = Output::begin(Keep::LastWords).unwrap();
        let words = || {
            // The thread stands still, as after the end of this process.
            let _stopped = output.shared.sink.lock();
            let mut all = Vec::new();
            for fd in output.last_words() {
                let path = format!("/proc/self/fd/{fd}");
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let pipe = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
                let mut bytes = [0; 64 * 1024];
                while let Ok(n @ 1..) = read(&pipe, &mut bytes) {
                    all.extend_from_slice(&bytes[..n]);
                }
            }
            String::from_utf8(all).unwrap()
        };
        output.task_begins(1);
        say("not this");
        write(stderr(), b"this").unwrap();
        assert_eq!(words(), "this");
        let both = output.capacity + capacity(&output.shared.tail.writer).unwrap();
        let lines = both / 5;
        for i in 0..=lines {
            write(stderr(), format!("line {i}\n").as_bytes()).unwrap();
        }
        let end = words();
        assert!(end.ends_with(&format!("line {}\nline {lines}\n", lines - 1)));
        assert!(end.len() >= TAIL / 2, "{}", end.len());
        assert!(end.len() <= both);
        assert_eq!(output.take(), "");
        // The next task begins anew.
        write(stderr(), b"old").unwrap();
        output.begin_anew(0);
        assert_eq!(words(), "");
    }

    #[test]
    fn it_ends_though_somebody_else_reads_the_pipe() {
        for _ in 0..100 {
            let output = Output::begin(Keep::LastWords).unwrap();
            // As the host does when the daemon has left.
            let reader = rustix::io::fcntl_dupfd_cloexec(&output.shared.readers[0], 0).unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            let other = {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        let _ = read(&reader, &mut [0; 64]);
                    }
                })
            };
            drop(output);
            stop.store(true, Ordering::SeqCst);
            other.join().unwrap();
        }
    }

    #[test]
    fn the_streams_are_put_back_while_others_still_hold_the_pipe() {
        let before = fstat(stdout()).unwrap().st_ino;
        let output = Output::begin(Keep::Tasks).unwrap();
        assert_ne!(fstat(stdout()).unwrap().st_ino, before);
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        drop(output);
        assert_eq!(fstat(stdout()).unwrap().st_ino, before);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
