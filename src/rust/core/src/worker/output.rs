//! The standard streams of a daemon: what its tasks write to stdout and stderr is kept for each task, or discarded but for
//! the end, which the host reads should the daemon be killed.
//!
//! The streams become the writing end of a pipe: both of one, so that their lines stay in order. A thread reads the other
//! end while a task runs, for a pipe is small. When the task is over, the main thread reads what is left, under the same
//! lock: so nothing that this process has written before is missed, and no wait is needed.
//!
//! The thread writes what it has read into a second, smaller pipe, the *tail*, of which it drops the oldest when it is
//! full. A host on the same machine has both pipes open, too. When this process is killed, the tail and then the rest
//! of the first pipe are what it has written last, and nothing of that depends on this process. Only on Linux can a
//! host open them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl, fstat};
use rustix::io::{Errno, fcntl_dupfd_cloexec, read, write};
use rustix::stdio::{dup2_stderr, dup2_stdout, stderr, stdout};

use crate::sys::{pipe, signals};

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
}

/// The standard streams of this process while it serves a host, for as long as this lives.
#[derive(Debug)]
pub struct Output {
    keep: Keep,
    saved: Option<Saved>,
    writer: OwnedFd,
    /// Bytes that the pipe holds at most.
    capacity: usize,
    shared: Arc<Shared>,
    reading: Option<JoinHandle<()>>,
    /// A byte in it ends the thread. In the other pipe, the host could take it. It is no use to close this instead: a process
    /// that a task has forked may have a copy.
    end: OwnedFd,
}

#[derive(Debug)]
struct Shared {
    reader: OwnedFd,
    text: Mutex<Text>,
    tail: Tail,
    /// Something was read since the last task began.
    dirty: AtomicBool,
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
        let shared = Arc::new(Shared {
            reader,
            text: Mutex::default(),
            tail: Tail::new()?,
            dirty: AtomicBool::new(false),
        });
        let (ended, end) = pipe()?;
        let thread = shared.clone();
        let start = || {
            std::thread::Builder::new()
                .name("mirai-output".into())
                .stack_size(STACK)
                .spawn(move || thread.read_on(keep, &ended))
        };
        let reading = signals::with_all_blocked(start)?;
        let output = Output {
            keep,
            saved: Some(Saved::now()),
            writer,
            capacity,
            shared,
            reading: Some(reading),
            end,
        };
        output.redirect();
        Ok(output)
    }

    /// What can fail here leaves a stream as it was.
    fn redirect(&self) {
        let _ = dup2_stderr(&self.writer);
        if self.keep == Keep::Tasks {
            let _ = dup2_stdout(&self.writer);
        } else if let Ok(null) = File::options().write(true).open("/dev/null") {
            let _ = dup2_stdout(&null);
        }
    }

    /// The numbers of the pipes with what was written last, the earlier part first.
    pub(super) fn last_words(&self) -> [u32; 2] {
        [&self.shared.tail.reader, &self.shared.reader].map(|fd| fd.as_raw_fd() as u32)
    }

    /// A task begins. What was written since the last one is nobody's: by processes that a task has left, say. A stream
    /// that a task has closed or redirected is put right.
    pub fn task_begins(&self) {
        if self.shared.dirty.load(Ordering::Relaxed) || self.keep == Keep::Tasks {
            self.begin_anew();
        }
    }

    fn begin_anew(&self) {
        let ours = |stream: BorrowedFd<'_>| match (fstat(stream), fstat(&self.writer)) {
            (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
            _ => false,
        };
        if !ours(stderr()) || self.keep == Keep::Tasks && !ours(stdout()) {
            self.redirect();
        }
        let mut text = self.shared.text.lock();
        self.shared.read(&mut text, self.keep, self.capacity);
        *text = Text::default();
        while self.shared.tail.drop_some() {}
        self.shared.dirty.store(false, Ordering::Relaxed);
    }

    /// The task is over: what it has written, if that is kept. Bytes that are not UTF-8 are replaced.
    pub fn take(&self) -> String {
        if self.keep != Keep::Tasks {
            return String::new();
        }
        flush();
        let mut text = self.shared.text.lock();
        // What was written before this call is in the pipe: no more than it can hold. What others write meanwhile must
        // not keep us here.
        self.shared.read(&mut text, self.keep, self.capacity);
        std::mem::take(&mut *text).into_string()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.saved = None;
        let _ = write(&self.end, b"x");
        let _ = self.reading.take().map(JoinHandle::join);
    }
}

impl Shared {
    /// Reads until there is something in `ended`.
    fn read_on(&self, keep: Keep, ended: &OwnedFd) {
        loop {
            let mut watched = [
                PollFd::new(&self.reader, PollFlags::IN),
                PollFd::new(ended, PollFlags::IN),
            ];
            match poll(&mut watched, None) {
                Ok(_) if !watched[1].revents().is_empty() => return,
                Ok(_) => self.read(&mut self.text.lock(), keep, usize::MAX),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Takes over what the pipe holds, `most` bytes or somewhat more.
    fn read(&self, text: &mut Text, keep: Keep, most: usize) {
        let mut bytes = [0; CHUNK];
        let mut n = 0_usize;
        while n < most {
            match read(self.reader.as_fd(), &mut bytes) {
                Ok(0) => return,
                Ok(some) => {
                    let bytes = &bytes[..some];
                    self.dirty.store(true, Ordering::Relaxed);
                    self.tail.add(bytes);
                    if keep == Keep::Tasks {
                        text.add(bytes);
                    }
                    n += some;
                }
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

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
        output.task_begins();
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
        output.task_begins();
        assert_eq!(output.take(), "");
    }

    #[test]
    fn a_flood_is_kept_in_part_and_does_not_stop_whoever_writes() {
        let output = Output::begin(Keep::Tasks).unwrap();
        output.task_begins();
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
        output.task_begins();
        say("something");
        let null = File::options().write(true).open("/dev/null").unwrap();
        dup2_stdout(&null).unwrap();
        say("gone");
        assert_eq!(output.take(), "something");
        output.task_begins();
        say("again");
        assert_eq!(output.take(), "again");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn of_what_is_discarded_the_end_can_be_read_by_others() {
        let output = Output::begin(Keep::LastWords).unwrap();
        let words = || {
            // The thread stands still, as after the end of this process.
            let _stopped = output.shared.text.lock();
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
        output.task_begins();
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
        output.begin_anew();
        assert_eq!(words(), "");
    }

    #[test]
    fn it_ends_though_somebody_else_reads_the_pipe() {
        for _ in 0..100 {
            let output = Output::begin(Keep::LastWords).unwrap();
            // As the host does when the daemon has left.
            let reader = rustix::io::fcntl_dupfd_cloexec(&output.shared.reader, 0).unwrap();
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
