//! What a host and its daemons on this machine see of each other without a system call: whether the host looks, and
//! which daemons have written something.
//!
//! The board is a page that the host shares with all its daemons. A daemon that has written to its ring sets its mark,
//! and reads what the host does ([`Notice::post`]). The host says what it does ([`Board::set`]), and takes the marks
//! ([`Board::take`]). Both in this order, each step in one order for all: so either the host sees the mark, or the daemon
//! sees that the host has to be woken.
//!
//! Any daemon of the same user could write anything here. It could make the host look for nothing, or miss a look until
//! the next wake-up; the marks name nothing but readers to ask.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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

#[repr(C, align(64))]
struct Line<T>(T);

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

    /// Says what the main thread does from now on.
    pub(super) fn set(&self, attends: Attends) {
        // A swap, so that what is looked at next is looked at after this.
        let host = &page(&self.memory).host.0;
        host.swap(attends as u32, Ordering::SeqCst);
    }

    /// Whether there may be marks.
    pub(super) fn has_marks(&self) -> bool {
        page(&self.memory).words.0.load(Ordering::SeqCst) != 0
    }

    /// Takes all marks, and tells of each.
    pub(super) fn take(&self, mut tell: impl FnMut(usize)) {
        let page = page(&self.memory);
        for_each_bit(page.words.0.swap(0, Ordering::SeqCst), |word| {
            let marks = page.marks[word].swap(0, Ordering::SeqCst);
            for_each_bit(marks, |bit| tell(64 * word + bit));
        });
    }
}

fn for_each_bit(mut bits: u64, mut f: impl FnMut(usize)) {
    while bits != 0 {
        f(bits.trailing_zeros() as usize);
        bits &= bits - 1;
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
        let page = page(&self.memory);
        let (word, bit) = (self.mark / 64, self.mark % 64);
        page.marks[word].fetch_or(1 << bit, Ordering::SeqCst);
        page.words.0.fetch_or(1 << word, Ordering::SeqCst);
        self.host()
    }

    /// What the host does.
    pub(crate) fn host(&self) -> Attends {
        match page(&self.memory).host.0.load(Ordering::SeqCst) {
            1 => Attends::Looks,
            2 => Attends::Sleeps,
            _ => Attends::Later,
        }
    }
}

#[cfg(test)]
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
