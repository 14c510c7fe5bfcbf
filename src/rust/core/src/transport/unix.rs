//! Links on the same machine: Unix sockets and our own framing.
//!
//! A daemon connects once and sends, along with its hello, one end of a socket
//! pair. So a link has two channels: *data*, which the daemon's main thread
//! reads itself (a thread in between would cost a wake-up per task), and
//! *control*, which its watcher reads while R is busy. Either one ending means
//! that the peer is gone.
//!
//! The host writes from whichever thread has something to say, without blocking;
//! what does not fit waits in an [`Outbox`] for the I/O thread.
//!
//! A frame is sent whole or the link ends: there is never a hole in the stream. Where the system has no
//! memory for a send just now, it is tried again, for a second at most.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
#[cfg(not(target_os = "linux"))]
use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use smallvec::SmallVec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::{Address, Link};
use crate::descriptors::{are_scarce, out_of_the_way};
use crate::memory::{Arrival, Inset, MOST_DESCRIPTORS, Parts, Segment};
use crate::protocol::frame::encode_head_with;
use crate::protocol::{Control, Frame, FrameReader, Hole};

/// The system has no memory for a send just now: pause before it is tried again, and tries.
const SCARCE: Duration = Duration::from_millis(10);
const TRIES: u32 = 100;
/// This process has no room for descriptors that were passed to it: tries, with the same pause.
const CROWDED_TRIES: u32 = 3000;

/// Frames put into one system call at most.
const BATCH: usize = 32;
/// Bytes of a control message with as many descriptors as there may be.
const SPACE: usize = rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS));

// A closed peer must show as an error, not as a signal.
#[cfg(target_os = "linux")]
const SEND: SendFlags = SendFlags::NOSIGNAL;
#[cfg(not(target_os = "linux"))]
const SEND: SendFlags = SendFlags::empty(); // no_sigpipe() sets SO_NOSIGPIPE instead

/// Binds a listener. The socket of an `ipc://` URL is removed by [`unlink`].
pub fn listen(address: &Address) -> io::Result<UnixListener> {
    match address {
        #[cfg(target_os = "linux")]
        Address::Abstract(name) => {
            use std::os::linux::net::SocketAddrExt;
            use std::os::unix::net::SocketAddr;
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
        }
        Address::Ipc(path) => match UnixListener::bind(path) {
            // A socket left by a process that is gone may be taken over.
            Err(e)
                if e.kind() == io::ErrorKind::AddrInUse
                    && UnixStream::connect(path)
                        .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) =>
            {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            other => other,
        },
        _ => Err(unsupported(address)),
    }
}

/// Removes what a listener leaves in the file system.
pub fn unlink(address: &Address) {
    if let Address::Ipc(path) = address {
        let _ = std::fs::remove_file(path);
    }
}

/// Connects to a listener.
pub fn connect(address: &Address) -> io::Result<UnixStream> {
    let stream = match address {
        #[cfg(target_os = "linux")]
        Address::Abstract(name) => {
            use std::os::linux::net::SocketAddrExt;
            use std::os::unix::net::SocketAddr;
            UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?
        }
        Address::Ipc(path) => UnixStream::connect(path)?,
        _ => return Err(unsupported(address)),
    };
    check_peer(&stream)?;
    Ok(stream)
}

fn unsupported(address: &Address) -> io::Error {
    let text = format!("{address} cannot be used on this system");
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Refuses a peer that belongs to somebody else: an abstract name has no
/// permissions, so anybody on the machine can connect to it or squat on it.
pub fn check_peer(stream: &UnixStream) -> io::Result<()> {
    no_sigpipe(stream);
    let theirs = peer_uid(stream)?;
    let ours = rustix::process::geteuid().as_raw();
    if theirs == ours {
        Ok(())
    } else {
        let text = format!("peer belongs to another user (uid {theirs})");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }
}

#[cfg(target_os = "linux")]
fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid.as_raw())
}

#[cfg(not(target_os = "linux"))]
fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    let (mut uid, mut gid) = (0, 0);
    // SAFETY: the descriptor is open and both pointers are valid for writing.
    match unsafe { libc::getpeereid(stream.as_raw_fd(), &mut uid, &mut gid) } {
        0 => Ok(uid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The process at the other end, as a descriptor that is readable once it is gone.
#[cfg(target_os = "linux")]
pub fn peer_process(stream: &UnixStream) -> Option<OwnedFd> {
    use rustix::process::{PidfdFlags, pidfd_open};
    let pid = rustix::net::sockopt::socket_peercred(stream).ok()?.pid;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

#[cfg(not(target_os = "linux"))]
pub fn peer_process(_: &UnixStream) -> Option<OwnedFd> {
    None
}

/// Waits until there is something to be read. False if there is nothing and the peer's
/// process is gone: that does not end the stream while another one, forked from it, has
/// it open, too.
pub fn wait_readable(stream: &UnixStream, peer: Option<&OwnedFd>) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let Some(peer) = peer else {
        return true;
    };
    let mut fds = [
        PollFd::new(stream, PollFlags::IN),
        PollFd::new(peer, PollFlags::IN),
    ];
    while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
    !fds[0].revents().is_empty()
}

#[cfg(target_os = "macos")]
fn no_sigpipe(stream: &UnixStream) {
    let _ = rustix::net::sockopt::set_socket_nosigpipe(stream, true);
}

#[cfg(not(target_os = "macos"))]
fn no_sigpipe(_: &UnixStream) {}

/// A connected pair for the control channel, closed on exec.
pub fn control_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    no_sigpipe(&ours);
    no_sigpipe(&theirs);
    Ok((ours, theirs))
}

/// Reads once without an intermediate copy, for [`FrameReader::fill`].
pub fn recv(fd: BorrowedFd<'_>, room: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    let (_, got) = rustix::net::recv(fd, room, RecvFlags::empty())?;
    Ok(got)
}

/// Reads once and takes a descriptor that came along.
pub fn recv_with_fd(
    fd: BorrowedFd<'_>,
    room: &mut [MaybeUninit<u8>],
    passed: &mut Option<OwnedFd>,
) -> io::Result<usize> {
    let mut all = VecDeque::new();
    let got = recv_with_fds(fd, room, &mut all)?;
    // Any beyond the first is closed by being dropped.
    if let Some(first) = all.into_iter().flatten().next() {
        passed.get_or_insert(first);
    }
    Ok(got)
}

/// Reads once and takes descriptors that came along, three at most: all of them were sent at a time.
/// Those that this process had no room for are lost.
pub fn recv_with_fds(
    fd: BorrowedFd<'_>,
    room: &mut [MaybeUninit<u8>],
    passed: &mut VecDeque<Vec<OwnedFd>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // recvmsg wants initialised memory; what comes with descriptors is small.
    let mut bytes = [0u8; 4096];
    let most = room.len().min(bytes.len());
    let mut iov = [IoSliceMut::new(&mut bytes[..most])];
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::empty();
    let received = rustix::net::recvmsg(fd, &mut iov, &mut control, flags)?;
    let (got, lost) = (received.bytes, received.flags.contains(ReturnFlags::CTRUNC));
    let rights = |message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    };
    let fds: Vec<OwnedFd> = control.drain().filter_map(rights).flatten().collect();
    if lost || !fds.is_empty() {
        passed.push_back(fds);
    }
    for (slot, byte) in room.iter_mut().zip(&bytes[..got]) {
        slot.write(*byte);
    }
    Ok(got)
}

/// Reads once, as [`recv`], and takes all descriptors that came along. With `first_look`, if this process
/// has no room for all of them, they and the bytes stay where they are ([`is_crowded`]).
#[cfg(target_os = "linux")]
fn recv_passing(
    fd: BorrowedFd<'_>,
    room: &mut [MaybeUninit<u8>],
    passed: &mut VecDeque<OwnedFd>,
    first_look: bool,
) -> io::Result<usize> {
    let mut came = Vec::new();
    let flags = if first_look { libc::MSG_PEEK } else { 0 };
    let (got, all) = recv_once(fd, room, &mut came, flags)?;
    if !all {
        return Err(if first_look {
            io::ErrorKind::ResourceBusy.into()
        } else {
            // This process may have no more descriptors.
            io::Error::other("descriptors that a peer has passed are lost")
        });
    }
    if first_look {
        // The same bytes, from the socket this time; without room for descriptors, which are there already.
        let mut at = 0;
        while at < got {
            at += match rustix::net::recv(fd, &mut room[at..got], RecvFlags::empty()) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, n)) => n,
                Err(rustix::io::Errno::INTR) => 0,
                Err(e) => return Err(e.into()),
            };
        }
    }
    passed.extend(came);
    Ok(got)
}

/// Whether descriptors could not be taken for want of room. They have not been lost.
fn is_crowded(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::ResourceBusy
}

/// What is read, and whether all descriptors that came along could be taken.
#[cfg(target_os = "linux")]
fn recv_once(
    fd: BorrowedFd<'_>,
    room: &mut [MaybeUninit<u8>],
    came: &mut Vec<OwnedFd>,
    flags: libc::c_int,
) -> io::Result<(usize, bool)> {
    use std::os::fd::{AsRawFd, FromRawFd};
    // As many descriptors as the kernel passes at most, and aligned as it wants it.
    let mut space = [MaybeUninit::<u64>::uninit(); 131];
    let mut iov = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    // SAFETY: all zeros are a message header without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&space);
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header describes memory that is ours to be written to for the call.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    if message.msg_controllen > 0 {
        // SAFETY: the kernel has written whole control messages, as many bytes as the header
        // now says. Each descriptor among them is a new one, which nobody else knows of.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(&raw const message);
            while let Some(header) = at.as_ref() {
                if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                    let data = libc::CMSG_DATA(at).cast::<libc::c_int>();
                    let bytes = header.cmsg_len - libc::CMSG_LEN(0) as usize;
                    for i in 0..bytes / size_of::<libc::c_int>() {
                        came.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                    }
                }
                at = libc::CMSG_NXTHDR(&raw const message, at);
            }
        }
    }
    // Where there was room for none, there is no control message.
    Ok((got, message.msg_flags & libc::MSG_CTRUNC == 0))
}

#[cfg(not(target_os = "linux"))]
fn recv_passing(
    fd: BorrowedFd<'_>,
    room: &mut [MaybeUninit<u8>],
    _: &mut VecDeque<OwnedFd>,
    _: bool,
) -> io::Result<usize> {
    recv(fd, room)
}

/// Takes frames, and the segments that belong to them, out of a stream.
pub struct Incoming<M> {
    reader: FrameReader<M>,
    /// Not yet matched to a frame: that of the first ones has begun to arrive.
    passed: VecDeque<OwnedFd>,
    /// Many peers may pass some at a time.
    one_of_many: bool,
}

impl<M: serde::de::DeserializeOwned> Incoming<M> {
    pub fn new(reader: FrameReader<M>) -> Incoming<M> {
        Incoming {
            reader,
            passed: VecDeque::new(),
            one_of_many: false,
        }
    }

    /// Reads once. Returns what [`FrameReader::fill`] does.
    pub fn fill(&mut self, fd: BorrowedFd<'_>) -> io::Result<(usize, bool)> {
        let before = self.passed.len();
        let passed = &mut self.passed;
        let first_look = self.one_of_many && are_scarce();
        let recv = |room: &mut [_]| recv_passing(fd, room, passed, first_look);
        let (got, drained) = self.reader.fill(recv)?;
        if self.passed.len() > 2 * MOST_DESCRIPTORS {
            return Err(unannounced());
        }
        // A read ends after bytes with which descriptors came, whatever else there is.
        Ok((got, drained && self.passed.len() == before))
    }

    /// The next complete frame, if there is one.
    pub fn next_frame(&mut self) -> io::Result<Option<(M, Arrival)>> {
        let Some((message, bytes, holes)) = self.reader.next_with_holes()? else {
            if !self.passed.is_empty() && !self.reader.is_within_frame() {
                return Err(unannounced());
            }
            return Ok(None);
        };
        let mut arrival = Arrival::from(bytes);
        for hole in holes {
            arrival.insets.push(inset(&mut self.passed, hole)?);
        }
        Ok(Some((message, arrival)))
    }
}

#[cfg(target_os = "linux")]
fn inset(passed: &mut VecDeque<OwnedFd>, hole: Hole) -> io::Result<Inset> {
    let mut next = || passed.pop_front().ok_or_else(unannounced);
    let fd = next()?;
    let changes = hole.changed.then(next).transpose()?;
    // Lengths have been checked with the frame.
    Ok(Inset {
        at: hole.at as usize,
        segment: Segment::receive(fd, hole.len as usize, changes)?,
    })
}

#[cfg(not(target_os = "linux"))]
fn inset(_: &mut VecDeque<OwnedFd>, _: Hole) -> io::Result<Inset> {
    Err(unannounced())
}

fn unannounced() -> io::Error {
    let text = "descriptors passed and frames do not fit together";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Sends all of a frame, optionally with a descriptor.
pub fn send_all(
    stream: &UnixStream,
    head: &[u8],
    body: &[u8],
    pass: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    send_all_with(stream, head, body, pass.as_slice())
}

/// Sends all of a frame, with up to [`MOST_DESCRIPTORS`] descriptors. Blocks if the socket does, and
/// fails in the middle if that has no room and does not.
/// After an error, a part may have been sent, and the stream is of no more use.
pub fn send_all_with(
    stream: &UnixStream,
    head: &[u8],
    body: &[u8],
    pass: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let (mut head, mut body, mut pass) = (head, body, pass);
    let mut tries = 0;
    while !head.is_empty() || !body.is_empty() {
        let iov = [IoSlice::new(head), IoSlice::new(body)];
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !pass.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(pass));
        }
        match rustix::net::sendmsg(stream, &iov, &mut control, SEND) {
            Ok(sent) => {
                pass = &[];
                let of_head = sent.min(head.len());
                head = &head[of_head..];
                body = &body[sent - of_head..];
                tries = 0;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) if is_scarcity(e) && tries < TRIES => {
                tries += 1;
                std::thread::sleep(SCARCE);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Sends once, what a frame has after `done` bytes, without blocking. How many more are sent then.
#[cfg(target_os = "linux")]
pub fn send_some(
    stream: &UnixStream,
    head: &[u8],
    body: &[u8],
    done: usize,
    pass: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let of_head = done.min(head.len());
    let iov = [
        IoSlice::new(&head[of_head..]),
        IoSlice::new(&body[done - of_head..]),
    ];
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !pass.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(pass));
    }
    let flags = SEND | SendFlags::DONTWAIT;
    Ok(rustix::net::sendmsg(stream, &iov, &mut control, flags)?)
}

#[cfg(target_os = "linux")]
fn descriptors(insets: &[Inset]) -> SmallVec<[BorrowedFd<'_>; 4]> {
    let segments = insets.iter().map(|inset| &inset.segment);
    segments.flat_map(Segment::descriptors).collect()
}

#[cfg(not(target_os = "linux"))]
fn descriptors(_: &[Inset]) -> SmallVec<[BorrowedFd<'_>; 4]> {
    SmallVec::new()
}

/// Whether the same may work a little later. A socket that is full, on the other hand, says when it is not.
fn is_scarcity(e: rustix::io::Errno) -> bool {
    matches!(e, rustix::io::Errno::NOBUFS | rustix::io::Errno::NOMEM)
}

/// Sends all of a message and what belongs to it, for the daemon's end. After an error, the link has ended.
pub fn send_message<M: serde::Serialize>(
    stream: &UnixStream,
    message: &M,
    body: Parts<'_>,
) -> io::Result<()> {
    let head = encode_head_with(message, body.bytes.len(), body.insets);
    let pass = descriptors(body.insets);
    let sent = match send_all_with(stream, &head, body.bytes, &pass) {
        // Too many are on their way; nothing has been sent.
        Err(e) if e.raw_os_error() == Some(libc::ETOOMANYREFS) && !body.is_plain() => {
            let plain = body.plain();
            let head = encode_head_with(message, plain.len(), &[]);
            send_all_with(stream, &head, &plain, &[])
        }
        sent => sent,
    };
    sent.inspect_err(|_| {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    })
}

/// Sends as much of the first frames in line as one call takes; `usize` is what of a frame has been
/// sent before.
fn send_batch(fd: impl AsFd, queue: &VecDeque<(Frame, usize)>) -> Result<usize, rustix::io::Errno> {
    let mut iov = [IoSlice::new(&[]); 2 * BATCH];
    let mut used = 0;
    for (frame, done) in queue.iter().take(BATCH) {
        // Descriptors go with the first byte of what is sent.
        if used > 0 && !frame.insets().is_empty() {
            break;
        }
        let of_head = (*done).min(frame.head.len());
        iov[used] = IoSlice::new(&frame.head[of_head..]);
        iov[used + 1] = IoSlice::new(&frame.body[*done - of_head..]);
        used += 2;
    }
    let pass = match queue.front() {
        Some((frame, 0)) => descriptors(frame.insets()),
        _ => SmallVec::new(),
    };
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !pass.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&pass));
    }
    let flags = SEND | SendFlags::DONTWAIT;
    rustix::net::sendmsg(fd, &iov[..used], &mut control, flags)
}

/// Frames on their way to a socket that may not take them all at once.
pub struct Outbox {
    fd: AsyncFd<OwnedFd>,
    queue: Mutex<VecDeque<(Frame, usize)>>,
    /// Set when the socket was full: see [`drain_when_writable`](Outbox::drain_when_writable).
    blocked: Notify,
}

impl Outbox {
    /// Must be called within the I/O runtime.
    fn new(fd: OwnedFd) -> io::Result<Outbox> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Outbox {
            fd: crate::sys::io_thread::register(out_of_the_way(fd))?,
            queue: Mutex::default(),
            blocked: Notify::new(),
        })
    }

    fn post(&self, frame: Frame) {
        self.queue.lock().push_back((frame, 0));
    }

    fn flush(&self) {
        if self.try_flush().is_err() {
            self.blocked.notify_one();
        }
    }

    /// Writes until the queue is empty, the socket is full (`WouldBlock`), or the system has no memory for it
    /// (`OutOfMemory`). When the peer is gone, or a frame cannot be sent, the queue is emptied and the link
    /// ends; the reader will notice.
    fn try_flush(&self) -> io::Result<()> {
        let mut queue = self.queue.lock();
        while !queue.is_empty() {
            let passing = matches!(queue.front(), Some((frame, 0)) if !frame.insets().is_empty());
            match send_batch(&self.fd, &queue) {
                Ok(mut sent) => {
                    while let Some((frame, done)) = queue.front_mut() {
                        let left = frame.head.len() + frame.body.len() - *done;
                        if sent < left {
                            *done += sent;
                            break;
                        }
                        sent -= left;
                        queue.pop_front();
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
                // Too many are on their way.
                Err(rustix::io::Errno::TOOMANYREFS) if passing => {
                    if let Some((frame, _)) = queue.pop_front() {
                        queue.push_front((frame.plain(), 0));
                    }
                }
                Err(e) if is_scarcity(e) => return Err(io::ErrorKind::OutOfMemory.into()),
                Err(_) => {
                    queue.clear();
                    self.shutdown();
                }
            }
        }
        Ok(())
    }

    /// Runs on the I/O thread for as long as the link lives.
    async fn drain_when_writable(&self) {
        loop {
            self.blocked.notified().await;
            let mut tries = 0;
            let write = || self.fd.async_io(Interest::WRITABLE, |_| self.try_flush());
            while let Err(e) = write().await {
                if e.kind() != io::ErrorKind::OutOfMemory || tries == TRIES {
                    return;
                }
                tries += 1;
                tokio::time::sleep(SCARCE).await;
            }
        }
    }

    fn shutdown(&self) {
        // Not only closed: a process forked by user code may hold a copy.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }
}

/// The host's end of an established link.
pub struct UnixLink {
    data: Outbox,
    control: Outbox,
}

impl UnixLink {
    /// Must be called within the I/O runtime.
    pub fn new(data: OwnedFd, control: OwnedFd) -> io::Result<Arc<UnixLink>> {
        let link = Arc::new(UnixLink {
            data: Outbox::new(data)?,
            control: Outbox::new(control)?,
        });
        Ok(link)
    }

    /// Reads frames and hands them to `on_frame` until the peer is gone or says
    /// something that is not in the protocol. Runs on the I/O thread, together
    /// with what else the link needs there.
    pub async fn serve<M: serde::de::DeserializeOwned>(
        &self,
        reader: FrameReader<M>,
        mut on_frame: impl FnMut(M, Arrival),
    ) -> io::Result<()> {
        let mut incoming = Incoming::new(reader);
        incoming.one_of_many = true;
        let reading = async {
            let mut tries = 0;
            loop {
                // First: bytes may have come along with the handshake.
                while let Some((message, body)) = incoming.next_frame()? {
                    on_frame(message, body);
                }
                let mut ready = self.data.fd.readable().await?;
                let filled = ready.try_io(|fd| incoming.fill(fd.as_fd()));
                let crowded = matches!(&filled, Ok(Err(e)) if is_crowded(e));
                if crowded && tries < CROWDED_TRIES {
                    // What other links have passed makes room once it is mapped; nobody tells.
                    tries += 1;
                    tokio::time::sleep(SCARCE).await;
                    continue;
                }
                tries = 0;
                match filled {
                    Ok(Ok((0, _))) => return Ok(()),
                    // A short read has emptied the socket; asking again would
                    // only cost a system call to hear so.
                    Ok(Ok((_, true))) => ready.clear_ready(),
                    Ok(Ok((_, false))) => {}
                    Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                    Ok(Err(e)) => return Err(e),
                    Err(_would_block) => {}
                }
            }
        };
        tokio::select! {
            biased;
            end = reading => end,
            () = self.data.drain_when_writable() => Ok(()),
            () = self.control.drain_when_writable() => Ok(()),
        }
    }
}

impl Link for UnixLink {
    fn post(&self, frame: Frame) {
        self.data.post(frame);
    }

    fn control(&self, message: Control) {
        self.control.post(Frame::bare(&message));
    }

    fn flush(&self) {
        self.data.flush();
        self.control.flush();
    }

    fn close(&self) {
        self.data.shutdown();
        self.control.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Limits, ToHost};

    #[test]
    fn a_descriptor_travels_with_the_first_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        let (ours, theirs) = control_pair().unwrap();
        let hello = Frame::bare(&ToHost::Leaving { begun: 0 });
        send_all(&a, &hello.head, &hello.body, Some(theirs.as_fd())).unwrap();
        let mut reader = FrameReader::<ToHost>::new(Limits::HANDSHAKE);
        let mut passed = None;
        reader
            .fill(|room| recv_with_fd(b.as_fd(), room, &mut passed))
            .unwrap();
        assert_eq!(
            reader.next().unwrap().unwrap().0,
            ToHost::Leaving { begun: 0 }
        );
        let theirs = UnixStream::from(passed.expect("descriptor arrived"));
        send_all(&ours, b"x", b"y", None).unwrap();
        let mut got = [0; 2];
        io::Read::read_exact(&mut &theirs, &mut got).unwrap();
        assert_eq!(&got, b"xy");
    }

    /// Has this thread, and those that it starts from now on, fail to send with an error, as the kernel says.
    #[cfg(target_os = "linux")]
    fn cannot_send(errno: libc::c_int) {
        let step = |code: u32, jt, jf, k| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        // Of `seccomp_data`, the number of the system call is first.
        let mut filter = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            step(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                0,
                1,
                libc::SYS_sendmsg as u32,
            ),
            step(
                libc::BPF_RET | libc::BPF_K,
                0,
                0,
                libc::SECCOMP_RET_ERRNO | errno as u32,
            ),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the program outlives the call, which copies it.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let mode = libc::SECCOMP_MODE_FILTER;
            assert_eq!(
                libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program),
                0
            );
        }
    }

    #[cfg(target_os = "linux")]
    fn runtime() -> tokio::runtime::Runtime {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap()
    }

    /// Posts three frames from a thread that cannot send, to be sent by one that can, or cannot, either.
    /// What has arrived when the link is over.
    #[cfg(target_os = "linux")]
    fn posted_without_memory(errno: libc::c_int, everywhere: bool) -> Vec<usize> {
        let (host, daemon) = UnixStream::pair().unwrap();
        let (host_control, _daemon_control) = UnixStream::pair().unwrap();
        let receiver = std::thread::spawn(move || {
            let mut reader = FrameReader::<Control>::new(Limits::LINK);
            let mut sizes = Vec::new();
            while sizes.len() < 3 {
                match reader.fill(|room| recv(daemon.as_fd(), room)) {
                    Ok((0, _)) | Err(_) => break,
                    Ok(_) => {}
                }
                while let Some((Control::Cancel { .. }, body)) = reader.next().unwrap() {
                    sizes.push(body.len());
                }
            }
            sizes
        });
        let serving = std::thread::spawn(move || {
            runtime().block_on(async {
                let link = UnixLink::new(host.into(), host_control.into()).unwrap();
                let post = {
                    let link = link.clone();
                    move || {
                        cannot_send(errno);
                        for seq in 1..=3 {
                            let body = vec![0; 100 * seq as usize];
                            link.post(Frame::new(&Control::Cancel { seq }, body));
                            link.flush();
                        }
                    }
                };
                if everywhere {
                    post();
                } else {
                    std::thread::spawn(post).join().unwrap();
                }
                let reader = FrameReader::<ToHost>::new(Limits::LINK);
                let _ = link.serve(reader, |_, _| {}).await;
                link.close();
            });
        });
        let sizes = receiver.join().unwrap();
        serving.join().unwrap();
        sizes
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_the_system_has_no_memory_for_is_sent_later_or_ends_the_link() {
        for errno in [libc::ENOBUFS, libc::ENOMEM] {
            assert_eq!(posted_without_memory(errno, false), [100, 200, 300]);
        }
        for errno in [libc::ENOBUFS, libc::EMSGSIZE, libc::EPERM] {
            assert_eq!(posted_without_memory(errno, true), []);
        }
        assert_eq!(posted_without_memory(libc::EMSGSIZE, false), []);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_message_that_cannot_be_sent_ends_the_link() {
        let (daemon, mut host) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            cannot_send(libc::ENOBUFS);
            let leaving = ToHost::Leaving { begun: 0 };
            assert!(send_message(&daemon, &leaving, (&[]).into()).is_err());
            // As a daemon does that goes on with its next task.
            assert!(send_message(&daemon, &leaving, (&[]).into()).is_err());
            let mut end = [0];
            assert_eq!(io::Read::read(&mut &daemon, &mut end).unwrap(), 0);
        })
        .join()
        .unwrap();
        let mut end = [0];
        assert_eq!(io::Read::read(&mut host, &mut end).unwrap(), 0);
    }

    #[test]
    fn what_a_full_socket_does_not_take_arrives_later() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (host, daemon) = UnixStream::pair().unwrap();
        let (host_control, _daemon_control) = UnixStream::pair().unwrap();
        let frames = 200;
        let receiver = std::thread::spawn(move || {
            let mut reader = FrameReader::<Control>::new(Limits::LINK);
            let mut sizes = Vec::new();
            while sizes.len() < frames {
                reader.fill(|room| recv(daemon.as_fd(), room)).unwrap();
                while let Some((Control::Cancel { seq }, body)) = reader.next().unwrap() {
                    assert_eq!(seq as usize, sizes.len());
                    sizes.push(body.len());
                }
            }
            sizes
        });
        runtime.block_on(async {
            let link = UnixLink::new(host.into(), host_control.into()).unwrap();
            for seq in 0..frames as u64 {
                let body = vec![0; 10_000 * (seq as usize % 7)];
                link.post(Frame::new(&Control::Cancel { seq }, body));
                link.flush();
            }
            // Ends when the receiver has everything and drops its end.
            link.serve(FrameReader::<ToHost>::new(Limits::LINK), |_, _| {})
                .await
                .unwrap();
        });
        let sizes = receiver.join().unwrap();
        assert_eq!(sizes.len(), frames);
        assert_eq!(sizes[6], 60_000);
    }
}
