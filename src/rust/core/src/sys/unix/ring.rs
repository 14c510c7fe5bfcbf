//! A stream of bytes in memory that two processes share. One writes and one reads, without a system call.
//!
//! What has been written is there for the reader even if the writer is killed right after it. Either end may be
//! hostile: a position that cannot be is an error, and each end trusts its own position only, of which the memory has a
//! copy for the other.
//!
//! The reader may be asleep. So a ring has a flag by which a writer knows whether it has to wake the reader:
//! [`Writer::must_wake`] and [`Reader::answer`]. And the reader may turn away for good, which the writer must learn before
//! it relies on what it has written: [`Writer::is_closed`] and [`Reader::close`].

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
#[cfg(not(all(test, mirai_loom)))]
use std::sync::atomic::{AtomicU32, AtomicU64, fence};

#[cfg(all(test, mirai_loom))]
use loom::sync::atomic::{AtomicU32, AtomicU64, fence};

use super::shared::SharedMemory;

/// Bytes that a ring can hold.
pub(crate) const CAPACITY: usize = 64 * 1024;
/// Where the bytes begin.
const HEADER: usize = 4096;
const LEN: usize = HEADER + CAPACITY;

/// At the start of the memory. Each field has a cache line of its own.
#[repr(C)]
pub(super) struct Header {
    /// Bytes written so far.
    written: Line<AtomicU64>,
    /// Bytes read so far.
    read: Line<AtomicU64>,
    /// The writer has woken the reader, which has not answered yet.
    woken: Line<AtomicU32>,
    /// The reader will not read any more.
    closed: Line<AtomicU32>,
}

#[repr(C, align(64))]
struct Line<T>(T);

#[cfg(not(all(test, mirai_loom)))]
const _: () = assert!(size_of::<Header>() <= HEADER);

impl Header {
    #[cfg(all(test, mirai_loom))]
    pub(super) fn new() -> Header {
        Header {
            written: Line(AtomicU64::new(0)),
            read: Line(AtomicU64::new(0)),
            woken: Line(AtomicU32::new(0)),
            closed: Line(AtomicU32::new(0)),
        }
    }

    /// Says how much was written.
    pub(super) fn publish(&self, written: u64) {
        self.written.0.store(written, Ordering::Release);
        // Pairs with those of `answer` and `close`: whatever the writer looks at next, it looks at after the bytes are
        // there.
        fence(Ordering::SeqCst);
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.written.0.load(Ordering::Acquire)
    }

    pub(super) fn must_wake(&self) -> bool {
        self.woken.0.swap(1, Ordering::AcqRel) == 0
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.0.load(Ordering::Relaxed) != 0
    }

    pub(super) fn answer(&self) {
        self.woken.0.swap(0, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    pub(super) fn close(&self) {
        self.closed.0.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

struct Ring(SharedMemory);

impl Ring {
    fn header(&self) -> &Header {
        // SAFETY: the memory is at least as long, begins with a page and was zeros at first. All fields are atomics,
        // which any bytes make valid.
        unsafe { &*self.0.as_ptr().cast::<Header>() }
    }

    /// The byte at this position of the stream, and how many follow it without a turn.
    fn at(&self, position: u64) -> (*mut u8, usize) {
        let at = (position % CAPACITY as u64) as usize;
        // SAFETY: inside the memory.
        let byte = unsafe { self.0.as_ptr().add(HEADER + at) };
        (byte, CAPACITY - at)
    }
}

/// A new ring: the end that reads, and the memory to pass to the one that writes.
pub(crate) fn ring() -> io::Result<(Reader, OwnedFd)> {
    let (memory, fd) = SharedMemory::new(c"mirai-ring", LEN)?;
    let reader = Reader {
        ring: Ring(memory),
        read: 0,
    };
    Ok((reader, fd))
}

/// The end that writes.
pub(crate) struct Writer {
    ring: Ring,
    written: u64,
}

impl Writer {
    /// Of a ring that another process has made with [`ring`].
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn receive(fd: BorrowedFd<'_>) -> io::Result<Writer> {
        Ok(Writer {
            ring: Ring(SharedMemory::receive(fd, LEN)?),
            written: 0,
        })
    }

    /// How many bytes it can take now.
    pub(crate) fn room(&self) -> usize {
        let read = self.ring.header().read.0.load(Ordering::Acquire);
        let unread = self.written.wrapping_sub(read);
        CAPACITY.saturating_sub(usize::try_from(unread).unwrap_or(usize::MAX))
    }

    /// Writes these bytes, for which there must be room. The reader finds all of them or none.
    pub(crate) fn write(&mut self, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        assert!(len <= self.room(), "a ring has room for what is written");
        for part in parts {
            let mut left = *part;
            while !left.is_empty() {
                let (to, straight) = self.ring.at(self.written);
                let (now, later) = left.split_at(left.len().min(straight));
                // SAFETY: so many bytes follow `to`, and `now` is not in the ring. The reader does not look at them yet,
                // unless it is hostile, and then it is its own affair.
                unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), to, now.len()) };
                self.written = self.written.wrapping_add(now.len() as u64);
                left = later;
            }
        }
        self.ring.header().publish(self.written);
    }

    /// Whether the reader has to be woken for what has been written: it was not, or has answered since.
    pub(crate) fn must_wake(&self) -> bool {
        self.ring.header().must_wake()
    }

    /// Whether what was written last may have come too late to be read.
    pub(crate) fn is_closed(&self) -> bool {
        self.ring.header().is_closed()
    }
}

/// The end that reads.
pub(crate) struct Reader {
    ring: Ring,
    read: u64,
}

impl Reader {
    /// Says that it is awake: the writer wakes it again for what it writes from now on. What has been written before is
    /// seen by the next [`unread`](Self::unread).
    pub(crate) fn answer(&self) {
        self.ring.header().answer();
    }

    /// Says that nothing is read any more but what is [`unread`](Self::unread) after this.
    pub(crate) fn close(&self) {
        self.ring.header().close();
    }

    /// How many bytes there are.
    ///
    /// # Errors
    /// More than the ring can hold.
    pub(crate) fn unread(&self) -> io::Result<usize> {
        let written = self.ring.header().written();
        let unread = usize::try_from(written.wrapping_sub(self.read)).unwrap_or(usize::MAX);
        if unread > CAPACITY {
            let text = "a ring has been written to as it cannot be";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(unread)
    }

    /// Reads up to `most` bytes into the beginning of `room`. Returns how many.
    pub(crate) fn read(&mut self, most: usize, room: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let most = most.min(room.len()).min(self.unread()?);
        let mut done = 0;
        while done < most {
            let (from, straight) = self.ring.at(self.read);
            let now = straight.min(most - done);
            let to = room[done..].as_mut_ptr().cast::<u8>();
            // SAFETY: so many bytes follow `from` and `to`. The writer does not change them before it is told that they
            // were read, unless it is hostile, and then any bytes are read, as from a socket.
            unsafe { std::ptr::copy_nonoverlapping(from, to, now) };
            self.read = self.read.wrapping_add(now as u64);
            done += now;
        }
        let read = &self.ring.header().read.0;
        read.store(self.read, Ordering::Release);
        Ok(done)
    }
}

#[cfg(all(test, not(mirai_loom)))]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (Writer, Reader) {
        let (reader, fd) = ring().unwrap();
        (Writer::receive(fd.as_fd()).unwrap(), reader)
    }

    fn all(reader: &mut Reader) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CAPACITY);
        let read = reader.read(CAPACITY, bytes.spare_capacity_mut()).unwrap();
        // SAFETY: that many have been written to.
        unsafe { bytes.set_len(read) };
        bytes
    }

    #[test]
    fn what_is_written_is_read_across_the_turn() {
        let (mut writer, mut reader) = pair();
        for round in 0..100u32 {
            let bytes: Vec<u8> = (0..7001).map(|i| (i + round) as u8).collect();
            let (head, body) = bytes.split_at(round as usize);
            for _ in 0..9 {
                writer.write(&[head, body]);
            }
            assert_eq!(writer.room(), CAPACITY - 9 * 7001);
            assert_eq!(all(&mut reader), bytes.repeat(9));
            assert_eq!(writer.room(), CAPACITY);
        }
    }

    #[test]
    fn a_ring_takes_as_much_as_it_can_hold() {
        let (mut writer, mut reader) = pair();
        writer.write(&[&[7; CAPACITY]]);
        assert_eq!(writer.room(), 0);
        assert_eq!(all(&mut reader), [7; CAPACITY]);
    }

    #[test]
    fn positions_that_cannot_be_are_found() {
        let (writer, mut reader) = pair();
        for lie in [CAPACITY as u64 + 1, u64::MAX] {
            writer.ring.header().written.0.store(lie, Ordering::SeqCst);
            assert!(reader.unread().is_err());
            assert!(reader.read(1, &mut [MaybeUninit::uninit()]).is_err());
            reader.ring.header().read.0.store(lie, Ordering::SeqCst);
            assert!(writer.room() < CAPACITY);
        }
    }

    #[test]
    fn the_reader_is_woken_once_until_it_answers() {
        let (mut writer, mut reader) = pair();
        writer.write(&[b"a"]);
        assert!(writer.must_wake());
        writer.write(&[b"b"]);
        assert!(!writer.must_wake());
        reader.answer();
        assert_eq!(all(&mut reader), b"ab");
        assert!(writer.must_wake());
    }

    #[test]
    fn what_comes_after_the_end_is_known_to_be_late() {
        let (mut writer, reader) = pair();
        writer.write(&[b"a"]);
        assert!(!writer.is_closed());
        reader.close();
        assert_eq!(reader.unread().unwrap(), 1);
        writer.write(&[b"b"]);
        assert!(writer.is_closed());
    }

    #[test]
    fn only_memory_that_nobody_can_cut_is_a_ring() {
        let (_reader, fd) = ring().unwrap();
        assert!(rustix::fs::ftruncate(&fd, 0).is_err());
        let other = super::super::shared::memfd(c"test").unwrap();
        rustix::fs::ftruncate(&other, LEN as u64).unwrap();
        assert!(Writer::receive(other.as_fd()).is_err());
    }

    #[test]
    fn two_threads_pass_a_stream() {
        let (mut writer, mut reader) = pair();
        let total = 3_000_000u32;
        let writing = std::thread::spawn(move || {
            let mut next = 0u32;
            while next < total {
                if writer.room() < 4 {
                    std::hint::spin_loop();
                    continue;
                }
                writer.write(&[&next.to_le_bytes()]);
                next += 1;
            }
        });
        let mut expected = 0u32;
        while expected < total {
            for four in all(&mut reader).chunks(4) {
                assert_eq!(four, expected.to_le_bytes());
                expected += 1;
            }
        }
        writing.join().unwrap();
    }
}
