//! What a host and its daemons on this machine see of each other without a system call: whether the host looks, and
//! which daemons have written something.
//!
//! The board is a page that the host shares with all its daemons. A daemon that has written to its ring sets its mark,
//! and reads what the host does ([`Notice::post`]). The host says what it does ([`Board::set`]), and looks for marks
//! ([`Board::take`]). Between the two steps, both have a fence: so either the host sees the mark, or the daemon sees that
//! the host has to be woken.
//!
//! Any daemon of the same user could write anything here. It could make the host look for nothing, or miss a look until
//! the next wake-up; the marks name nothing but readers to ask.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
#[cfg(not(all(test, mirai_loom)))]
use std::sync::atomic::{AtomicU32, AtomicU64, fence};

#[cfg(all(test, mirai_loom))]
use loom::sync::atomic::{AtomicU32, AtomicU64, fence};

use super::shared::SharedMemory;

/// Daemons that can have a mark.
pub(crate) const MOST_MARKS: usize = 64 * 64;
const LEN: usize = 4096;

#[repr(C)]
struct Page {
    host: Line<AtomicU32>,
    /// Bit `w` is set if there may be a mark in word `w`.
    words: Line<AtomicU64>,
    marks: [AtomicU64; MOST_MARKS / 64],
}

/// A cache line of its own.
#[repr(C, align(64))]
struct Line<T>(T);

#[cfg(not(all(test, mirai_loom)))]
const _: () = assert!(size_of::<Page>() <= LEN);

/// What the host's main thread does, as far as its daemons are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Attends {
    /// Something else, or it sleeps until much is there: its I/O thread reads, soon enough.
    Later = 0,
    /// It looks at the board, and will once more before it does anything else.
    Looks = 1,
    /// It sleeps until there is something, and is to be woken for it.
    Sleeps = 2,
}

fn page(memory: &SharedMemory) -> &Page {
    // SAFETY: the memory is at least as long, begins with a page and was zeros at first. All fields are atomics, which
    // any bytes make valid.
    unsafe { &*memory.as_ptr().cast::<Page>() }
}

impl Page {
    fn set(&self, attends: Attends) {
        self.host.0.store(attends as u32, Ordering::Relaxed);
        // Pairs with that of `post`.
        fence(Ordering::SeqCst);
    }

    fn has_marks(&self) -> bool {
        self.words.0.load(Ordering::Relaxed) != 0
    }

    fn take(&self, mut tell: impl FnMut(usize)) {
        for_each_bit(self.words.0.swap(0, Ordering::AcqRel), |word| {
            let marks = self.marks[word].swap(0, Ordering::AcqRel);
            for_each_bit(marks, |bit| tell(64 * word + bit));
        });
    }

    fn post(&self, mark: usize) -> Attends {
        let (word, bit) = (mark / 64, mark % 64);
        self.marks[word].fetch_or(1 << bit, Ordering::AcqRel);
        self.words.0.fetch_or(1 << word, Ordering::AcqRel);
        // Pairs with that of `set`.
        fence(Ordering::SeqCst);
        self.attends()
    }

    fn attends(&self) -> Attends {
        match self.host.0.load(Ordering::Relaxed) {
            1 => Attends::Looks,
            2 => Attends::Sleeps,
            _ => Attends::Later,
        }
    }
}

fn for_each_bit(mut bits: u64, mut f: impl FnMut(usize)) {
    while bits != 0 {
        f(bits.trailing_zeros() as usize);
        bits &= bits - 1;
    }
}

/// The host's end.
pub(crate) struct Board {
    memory: SharedMemory,
    fd: OwnedFd,
}

impl Board {
    fn new() -> io::Result<Board> {
        let (memory, fd) = SharedMemory::new(c"mirai-board", LEN)?;
        Ok(Board { memory, fd })
    }

    /// That of this process. `None`: the system has no memory for it.
    pub(crate) fn get() -> Option<&'static Board> {
        static BOARD: OnceLock<Option<Board>> = OnceLock::new();
        BOARD.get_or_init(|| Board::new().ok()).as_ref()
    }

    /// What to pass to daemons.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Says what the main thread does from now on. Marks that are looked for next are those of all daemons that have not
    /// seen it.
    pub(super) fn set(&self, attends: Attends) {
        page(&self.memory).set(attends);
    }

    /// Whether there may be marks.
    pub(super) fn has_marks(&self) -> bool {
        page(&self.memory).has_marks()
    }

    /// Takes all marks, and tells of each.
    pub(super) fn take(&self, tell: impl FnMut(usize)) {
        page(&self.memory).take(tell);
    }
}

/// A daemon's end.
pub(crate) struct Notice {
    memory: SharedMemory,
    mark: usize,
}

impl Notice {
    /// A host's board, and the number of the own mark.
    ///
    /// # Errors
    /// It is none, or has no such mark.
    pub(crate) fn receive(fd: BorrowedFd<'_>, mark: u32) -> io::Result<Notice> {
        let mark = mark as usize;
        if mark >= MOST_MARKS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let memory = SharedMemory::receive(fd, LEN)?;
        Ok(Notice { memory, mark })
    }

    /// Tells the host that there is something to read. Returns what the host does.
    pub(crate) fn post(&self) -> Attends {
        page(&self.memory).post(self.mark)
    }

    /// What the host does.
    pub(crate) fn host(&self) -> Attends {
        page(&self.memory).attends()
    }
}

#[cfg(all(test, not(mirai_loom)))]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn marks_are_told_once() {
        let board = Board::new().unwrap();
        let notice = |mark| Notice::receive(board.fd().as_fd(), mark).unwrap();
        let taken = || {
            let mut all = Vec::new();
            board.take(|mark| all.push(mark));
            all
        };
        assert!(!board.has_marks());
        for mark in [4095, 0, 63, 64, 0] {
            assert_eq!(notice(mark).post(), Attends::Later);
        }
        assert!(board.has_marks());
        assert_eq!(taken(), [0, 63, 64, 4095]);
        assert!(!board.has_marks());
        assert!(taken().is_empty());
        assert!(Notice::receive(board.fd().as_fd(), 4096).is_err());
    }

    #[test]
    fn daemons_see_what_the_host_does() {
        let board = Board::new().unwrap();
        let notice = Notice::receive(board.fd().as_fd(), 7).unwrap();
        for attends in [Attends::Looks, Attends::Sleeps, Attends::Later] {
            board.set(attends);
            assert_eq!(notice.host(), attends);
            assert_eq!(notice.post(), attends);
        }
    }
}

/// Board and ring as loom explores them, with every order in which a daemon and its host can meet: `tools/sanitize loom`.
#[cfg(all(test, mirai_loom))]
mod model {
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::super::ring::Header;
    use super::*;

    /// What daemon and host share, and the socket by which the host is woken.
    struct Link {
        page: Page,
        ring: Header,
        socket: Mutex<bool>,
        written: Condvar,
    }

    impl Link {
        fn new() -> Arc<Link> {
            Arc::new(Link {
                page: Page {
                    host: Line(AtomicU32::new(0)),
                    words: Line(AtomicU64::new(0)),
                    marks: std::array::from_fn(|_| AtomicU64::new(0)),
                },
                ring: Header::new(),
                socket: Mutex::new(false),
                written: Condvar::new(),
            })
        }

        /// The daemon writes to its ring.
        fn reply(&self, written: u64) {
            self.ring.publish(written);
            if self.page.post(0) != Attends::Looks && self.ring.must_wake() {
                *self.socket.lock().unwrap() = true;
                self.written.notify_one();
            }
        }

        /// The host reads the ring. Returns how much was written.
        fn read(&self) -> u64 {
            self.ring.answer();
            self.ring.written()
        }

        fn look(&self, read: &mut u64) -> bool {
            let has_marks = self.page.has_marks();
            if has_marks {
                self.page.take(|_| *read = self.read());
            }
            has_marks
        }

        fn sleep(&self, read: &mut u64) {
            let mut socket = self.socket.lock().unwrap();
            while !*socket {
                socket = self.written.wait(socket).unwrap();
            }
            *socket = false;
            drop(socket);
            *read = self.read();
        }
    }

    /// The host waits until two replies are there. It would sleep for ever if it were not woken, which loom reports.
    #[test]
    fn no_reply_stays_in_the_ring_of_a_host_that_sleeps() {
        // Orders in which loom takes a thread that could go on off the processor at most 3 times. There are too many others.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let link = Link::new();
            let daemon = {
                let link = link.clone();
                thread::spawn(move || {
                    link.reply(1);
                    link.reply(2);
                })
            };
            let mut read = 0;
            while read < 2 {
                link.page.set(Attends::Looks);
                link.look(&mut read);
                link.page.set(Attends::Sleeps);
                if !link.look(&mut read) && read < 2 {
                    link.sleep(&mut read);
                }
            }
            daemon.join().unwrap();
        });
    }

    /// The main thread looks, and goes back to its own work. Then the I/O thread, which sleeps, is woken for what comes.
    #[test]
    fn no_reply_stays_in_the_ring_when_the_main_thread_stops_looking() {
        loom::model(|| {
            let link = Link::new();
            let daemon = {
                let link = link.clone();
                thread::spawn(move || link.reply(1))
            };
            let mut read = 0;
            link.page.set(Attends::Looks);
            link.look(&mut read);
            link.page.set(Attends::Later);
            link.look(&mut read);
            if read == 0 {
                link.sleep(&mut read);
            }
            assert_eq!(read, 1);
            daemon.join().unwrap();
        });
    }

    #[test]
    fn a_reply_is_read_or_its_daemon_knows_that_it_was_late() {
        loom::model(|| {
            let link = Link::new();
            let daemon = {
                let link = link.clone();
                thread::spawn(move || {
                    link.ring.publish(1);
                    !link.ring.is_closed()
                })
            };
            link.ring.close();
            let read = link.ring.written() == 1;
            let relies_on_it = daemon.join().unwrap();
            assert!(read || !relies_on_it);
        });
    }
}
