//! Descriptors that two threads may read: the main thread does so while it waits, and the I/O thread at all other
//! times.
//!
//! An answer that the main thread waits for should wake that thread, and no other one first. So `set`, an epoll
//! instance, has all these descriptors, and both threads can ask it which of them are readable. The I/O thread hears of
//! it through a second instance, the `door`, which has nothing but the set. The main thread shuts the door while it
//! waits ([`lead`]), and opens it again when it goes back to its own work. The door tells of what is unread then, if
//! the set does not already stand in its list of what has happened. So the I/O thread empties that list before it looks
//! at the set, and the door is edge-triggered: it does not put back what has been told.
//!
//! The main thread does not see a Ctrl-C before it looks at the set again, and what it reads it also carries out: so
//! each look is for `BATCH` readers at most.
//!
//! Both may read at once for a moment, if the I/O thread was at it when the main thread began to wait: so a [`Reader`]
//! has a lock.
//!
//! What a daemon writes to its ring (`ring.rs`) is no event for epoll. Its mark on the board (`board.rs`) says so to a
//! main thread that looks; one that sleeps, and the I/O thread, are woken by a frame through the socket. The marks of
//! all [`Seat`]s are taken at once.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use smallvec::SmallVec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::board::{Attends, Board, MOST_MARKS};

/// Limit of descriptors that one look at the set tells of.
const BATCH: usize = 16;
/// Looks at the board for each look at the set, while the main thread spins: the board costs no system call.
const LOOKS_AT_BOARD: u32 = 16;

/// What the door tells of.
const OPEN: EventFlags = EventFlags::IN.union(EventFlags::ET);
const SHUT: EventFlags = EventFlags::ET;

/// The other end is gone: there is an end to read, also after what has been drained.
const ENDED: EventFlags = EventFlags::RDHUP
    .union(EventFlags::HUP)
    .union(EventFlags::ERR);

/// What has a descriptor in the set. It keeps the descriptor open.
pub(crate) trait Reader: Send + Sync {
    /// Reads once, without waiting. Called when there may be something to read, by the main thread or the I/O thread,
    /// or by both at once.
    fn read(&self) -> Progress;

    /// Reads what has come by its ring, if it has one. Called when there may be something, as [`read`](Self::read).
    fn look(&self) -> Progress {
        Progress::Drained
    }

    /// It has [paused](Progress::Paused), and is not called any more.
    fn paused(&self);
}

/// How far a [`Reader`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It has read all that there was.
    Drained,
    /// There may be more.
    More,
    /// It is not to be called again until [`Registration::resume`]. Said once for each pause.
    Paused,
}

/// A place in the set, until it is dropped. The descriptor must stay open until then.
#[must_use]
pub(crate) struct Registration {
    readers: &'static Readers,
    id: u64,
    fd: RawFd,
}

struct Readers {
    set: OwnedFd,
    door: AsyncFd<OwnedFd>,
    all: Mutex<FxHashMap<u64, Entry>>,
    seats: Mutex<Seats>,
    /// The process that reads. One that is forked from it has the same set, and must leave it alone.
    pid: u32,
    last_id: AtomicU64,
}

#[derive(Clone)]
struct Entry {
    fd: RawFd,
    reader: Arc<dyn Reader>,
}

/// Who has which mark on the board.
#[derive(Default)]
struct Seats {
    all: Vec<Option<Entry>>,
    free: Vec<usize>,
}

/// A mark on the board, until it is dropped.
#[must_use]
pub(crate) struct Seat {
    readers: &'static Readers,
    mark: usize,
}

static READERS: OnceLock<Readers> = OnceLock::new();

/// The main thread waits, and is the one that reads. The I/O thread is not woken for what can be read, until this is
/// dropped.
pub(in crate::sys) struct Lead {
    readers: Option<&'static Readers>,
    board: Option<&'static Board>,
    looks: Cell<u32>,
}

thread_local! {
    /// Whether this thread reads as the leader just now.
    static LEADS: Cell<bool> = const { Cell::new(false) };
}

/// Begins to lead. For the main thread only.
pub(in crate::sys) fn lead() -> Lead {
    let ours = |readers: &&Readers| readers.pid == std::process::id();
    let readers = READERS.get().filter(ours);
    let lead = Lead {
        readers,
        board: readers.and_then(|_| Board::get()),
        looks: Cell::new(0),
    };
    lead.door(SHUT);
    lead.attends(Attends::Looks);
    lead
}

/// Whether this thread reads as the leader just now: it will look at what it waits for without being woken.
pub(in crate::sys) fn leads() -> bool {
    LEADS.get()
}

impl Lead {
    /// What is readable when there is something to [`read`](Self::read).
    pub(in crate::sys) fn set(&self) -> Option<BorrowedFd<'_>> {
        self.readers.map(|readers| readers.set.as_fd())
    }

    /// Reads what there is.
    pub(in crate::sys) fn read(&self) {
        self.leading(|readers| {
            if let Some(board) = self.board {
                readers.look_at(board);
            }
            readers.serve();
        });
    }

    /// Reads what there is, for one who asks again and again: at the board each time, at the set now and then.
    pub(in crate::sys) fn look(&self) {
        let looks = self.looks.get();
        self.looks.set(looks.wrapping_add(1));
        if looks % LOOKS_AT_BOARD == 0 {
            self.read();
        } else {
            self.look_at_board();
        }
    }

    /// The main thread is awake: it looks by itself, and needs not be woken.
    pub(in crate::sys) fn looks(&self) {
        self.attends(Attends::Looks);
    }

    /// The main thread is about to sleep, until there is something (`for_each`), or much. True if something was read
    /// that had come before it could be woken for it.
    pub(in crate::sys) fn sleeps(&self, for_each: bool) -> bool {
        self.attends(if for_each {
            Attends::Sleeps
        } else {
            Attends::Later
        });
        self.look_at_board()
    }

    /// True if there were marks.
    fn look_at_board(&self) -> bool {
        let Some(board) = self.board.filter(|board| board.has_marks()) else {
            return false;
        };
        self.leading(|readers| readers.look_at(board));
        true
    }

    fn leading(&self, read: impl FnOnce(&Readers)) {
        struct Reading;
        impl Drop for Reading {
            fn drop(&mut self) {
                LEADS.set(false);
            }
        }
        let Some(readers) = self.readers else { return };
        // What is read may start something on the I/O thread.
        let _inside = crate::sys::io_thread::handle().enter();
        LEADS.set(true);
        let _reading = Reading;
        read(readers);
    }

    fn attends(&self, attends: Attends) {
        if let Some(board) = self.board {
            board.set(attends);
        }
    }

    fn door(&self, interest: EventFlags) {
        if let Some(Readers { set, door, .. }) = self.readers {
            // It cannot fail: the set is behind the door from the beginning.
            let _ = epoll::modify(door, set, EventData::new_u64(0), interest);
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.door(OPEN);
        self.attends(Attends::Later);
        // For what was written before that, nobody was woken.
        self.look_at_board();
    }
}

/// The readers of this process.
///
/// # Errors
/// There is no descriptor for the set, or no memory in the kernel.
fn all() -> io::Result<&'static Readers> {
    if let Some(readers) = READERS.get() {
        return Ok(readers);
    }
    // Two threads may come here at once: the second one's are closed again.
    let new = Readers::new()?;
    let mut first = false;
    let readers = READERS.get_or_init(|| {
        first = true;
        new
    });
    if first {
        crate::sys::io_thread::handle().spawn(readers.follow());
    }
    Ok(readers)
}

/// Has `reader` called whenever `fd` is readable.
///
/// # Errors
/// There is no descriptor for the set, or no memory in the kernel.
pub(crate) fn add(fd: BorrowedFd<'_>, reader: Arc<dyn Reader>) -> io::Result<Registration> {
    let readers = all()?;
    let id = readers.last_id.fetch_add(1, Ordering::Relaxed) + 1;
    let fd = fd.as_raw_fd();
    readers.all.lock().insert(id, Entry { fd, reader });
    let registration = Registration { readers, id, fd };
    registration.resume()?;
    Ok(registration)
}

/// A mark on the board that nobody has. `None`: there is none, or no board.
pub(crate) fn seat() -> Option<Seat> {
    let readers = all().ok()?;
    Board::get()?;
    let mut seats = readers.seats.lock();
    let mark = match seats.free.pop() {
        Some(mark) => mark,
        None if seats.all.len() == MOST_MARKS => return None,
        None => {
            seats.all.push(None);
            seats.all.len() - 1
        }
    };
    Some(Seat { readers, mark })
}

impl Seat {
    /// The number of the mark.
    pub(crate) fn mark(&self) -> u32 {
        self.mark as u32
    }

    /// Has `reader` look when its mark is set. It has `fd` in the set.
    pub(crate) fn take(&self, fd: BorrowedFd<'_>, reader: Arc<dyn Reader>) {
        let fd = fd.as_raw_fd();
        self.readers.seats.lock().all[self.mark] = Some(Entry { fd, reader });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let gone = {
            let mut seats = self.readers.seats.lock();
            seats.free.push(self.mark);
            seats.all[self.mark].take()
        };
        // Not under the lock: it may be the last one's end.
        drop(gone);
    }
}

impl Registration {
    /// Has the reader called again after it has [paused](Progress::Paused).
    pub(crate) fn resume(&self) -> io::Result<()> {
        let data = EventData::new_u64(self.id);
        epoll::add(
            &self.readers.set,
            self.fd(),
            data,
            EventFlags::IN | EventFlags::RDHUP,
        )?;
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open, by the contract of this type.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Kept until the last step: it may be what keeps the descriptor open, whose number another file may have next.
        let _gone = self.readers.all.lock().remove(&self.id);
        // It may have paused. Not left to the end of the descriptor: a forked process may hold a copy.
        let _ = epoll::delete(&self.readers.set, self.fd());
    }
}

impl Readers {
    fn new() -> io::Result<Readers> {
        let _inside = crate::sys::io_thread::handle().enter();
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        let door = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&door, &set, EventData::new_u64(0), OPEN)?;
        Ok(Readers {
            set,
            door: super::register_for(door, Interest::READABLE)?,
            all: Mutex::default(),
            seats: Mutex::default(),
            pid: std::process::id(),
            last_id: AtomicU64::new(0),
        })
    }

    /// The I/O thread's part.
    async fn follow(&self) {
        while let Ok(mut ready) = self.door.readable().await {
            self.hear();
            if !self.serve() {
                ready.clear_ready();
            }
            // Other tasks of this thread take their turn.
            tokio::task::yield_now().await;
        }
    }

    /// Empties the door's list.
    fn hear(&self) {
        let mut room = [MaybeUninit::<Event>::uninit(); 1];
        let _ = epoll::wait(&self.door, &mut room[..], Some(&Timespec::default()));
    }

    /// Calls those that have something to read, once each. False if nothing is left.
    fn serve(&self) -> bool {
        let mut room = [MaybeUninit::<Event>::uninit(); BATCH];
        let events = loop {
            match epoll::wait(&self.set, &mut room[..], Some(&Timespec::default())) {
                Ok((events, _)) => break events,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        };
        let mut more = events.len() == BATCH;
        for event in events {
            let id = event.data.u64();
            let found = self.all.lock().get(&id).cloned();
            let Some(Entry { fd, reader }) = found else {
                continue;
            };
            match reader.read() {
                Progress::Drained => more |= { event.flags }.intersects(ENDED),
                Progress::More => more = true,
                Progress::Paused => self.pause(fd, &*reader),
            }
        }
        more
    }

    /// Has those look whose marks are set, once each.
    fn look_at(&self, board: &Board) {
        let mut marks = SmallVec::<[usize; BATCH]>::new();
        board.take(|mark| marks.push(mark));
        for mark in marks {
            let found = self.seats.lock().all.get(mark).cloned().flatten();
            if let Some(Entry { fd, reader }) = found {
                if reader.look() == Progress::Paused {
                    self.pause(fd, &*reader);
                }
            }
        }
    }

    fn pause(&self, fd: RawFd, reader: &dyn Reader) {
        // SAFETY: the reader keeps it open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = epoll::delete(&self.set, fd);
        reader.paused();
    }
}

#[cfg(all(test, not(mirai_loom)))]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use super::*;

    // There is one set for a process, and nextest has one process for a test.

    const LONG: Duration = Duration::from_secs(20);

    /// Tells by whom each byte was read.
    struct Teller {
        stream: UnixStream,
        read: Mutex<Sender<(u8, ThreadId)>>,
    }

    impl Reader for Teller {
        fn read(&self) -> Progress {
            let read = self.read.lock();
            let mut bytes = [0; 2];
            match (&self.stream).read(&mut bytes) {
                Ok(0) => Progress::Paused,
                Ok(got) => {
                    read.send((bytes[0], thread::current().id())).unwrap();
                    if got == bytes.len() {
                        Progress::More
                    } else {
                        Progress::Drained
                    }
                }
                Err(_) => Progress::Drained,
            }
        }

        fn paused(&self) {
            self.read.lock().send((0, thread::current().id())).unwrap();
        }
    }

    fn teller() -> (UnixStream, Registration, Receiver<(u8, ThreadId)>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (tell, told) = channel();
        let teller = Teller {
            stream: ours,
            read: Mutex::new(tell),
        };
        let teller = Arc::new(teller);
        let registration = add(teller.stream.as_fd(), teller.clone()).unwrap();
        (theirs, registration, told)
    }

    #[test]
    fn what_the_leader_leaves_unread_the_io_thread_reads() {
        let (mut theirs, _registration, told) = teller();
        let me = thread::current().id();
        for byte in 1..=200 {
            theirs.write_all(&[byte]).unwrap();
            let (heard, by) = told.recv_timeout(LONG).unwrap();
            assert_eq!(heard, byte);
            assert_ne!(by, me);
            // Read by the leader alone, and then left unread by it.
            let leading = lead();
            theirs.write_all(&[byte]).unwrap();
            leading.read();
            assert_eq!(told.recv_timeout(LONG).unwrap().0, byte);
            theirs.write_all(&[byte]).unwrap();
            drop(leading);
            let (heard, by) = told.recv_timeout(LONG).unwrap();
            assert_eq!(heard, byte);
            assert_ne!(by, me);
        }
    }

    /// The I/O thread has looked at its descriptors, and done what it had to do.
    fn io_thread_takes_a_turn() {
        let handle = crate::sys::io_thread::handle();
        let turn = handle.spawn(async {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        });
        handle.block_on(turn).unwrap();
    }

    #[test]
    fn the_io_thread_hears_nothing_while_another_leads() {
        let (mut theirs, _registration, told) = teller();
        theirs.write_all(&[1]).unwrap();
        told.recv_timeout(LONG).unwrap();
        for byte in 1..=200 {
            io_thread_takes_a_turn();
            let leading = lead();
            theirs.write_all(&[byte]).unwrap();
            io_thread_takes_a_turn();
            assert!(told.try_recv().is_err());
            leading.read();
            let (heard, by) = told.recv_timeout(LONG).unwrap();
            assert_eq!((heard, by), (byte, thread::current().id()));
        }
    }

    #[test]
    fn an_end_that_comes_with_the_last_bytes_is_read() {
        for _ in 0..200 {
            let (mut theirs, _registration, told) = teller();
            let leading = lead();
            theirs.write_all(&[1]).unwrap();
            drop(theirs);
            drop(leading);
            assert_eq!(told.recv_timeout(LONG).unwrap().0, 1);
            assert_eq!(told.recv_timeout(LONG).unwrap().0, 0);
        }
    }

    #[test]
    fn one_that_has_paused_is_left_alone_until_it_resumes() {
        let (theirs, registration, told) = teller();
        drop(theirs);
        assert_eq!(told.recv_timeout(LONG).unwrap().0, 0);
        io_thread_takes_a_turn();
        assert!(told.try_recv().is_err());
        registration.resume().unwrap();
        assert_eq!(told.recv_timeout(LONG).unwrap().0, 0);
    }

    #[test]
    fn one_that_is_gone_is_not_in_the_set_although_a_copy_of_its_descriptor_is_open() {
        let (mut theirs, registration, _told) = teller();
        // As a forked process may hold one.
        let _copy = rustix::io::dup(registration.fd()).unwrap();
        drop(registration);
        theirs.write_all(&[1]).unwrap();
        let readers = READERS.get().unwrap();
        let mut room = [MaybeUninit::<Event>::uninit(); 1];
        let (events, _) =
            epoll::wait(&readers.set, &mut room[..], Some(&Timespec::default())).unwrap();
        assert!(events.is_empty());
    }

    #[test]
    fn what_never_ends_does_not_keep_a_wait_from_ending() {
        use crate::sys::{Bell, Waited};

        let (mut theirs, _registration, told) = teller();
        theirs.write_all(&[1]).unwrap();
        told.recv_timeout(LONG).unwrap();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writer = {
            let stop = stop.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    theirs.write_all(&[1; 64]).unwrap();
                }
            })
        };
        let waited = Bell::get().wait(Some(Duration::from_millis(50)), || false, || false);
        assert_eq!(waited, Waited::TimedOut);
        stop.store(true, Ordering::SeqCst);
        writer.join().unwrap();
    }

    #[test]
    fn a_forked_process_leaves_its_parents_descriptors_alone() {
        let (mut theirs, _registration, told) = teller();
        // SAFETY: the child calls nothing but `lead`, which makes system calls only.
        let child = match unsafe { libc::fork() } {
            0 => {
                let leads = lead().set().is_some();
                // SAFETY: ends the process.
                unsafe { libc::_exit(leads.into()) }
            }
            child => child,
        };
        let mut status = -1;
        // SAFETY: `status` can be written to.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        theirs.write_all(&[1]).unwrap();
        assert_eq!(told.recv_timeout(LONG).unwrap().0, 1);
    }
}
