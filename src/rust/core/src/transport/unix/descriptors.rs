//! System calls that send and receive, with descriptors that travel along.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use smallvec::SmallVec;

#[cfg(target_os = "linux")]
use crate::memory::Segment;
use crate::memory::{Inset, MOST_DESCRIPTORS};

/// A send that fails for want of kernel memory is retried up to `TRIES` times, each after a pause of `SCARCE`.
pub(super) const SCARCE: Duration = Duration::from_millis(10);
pub(super) const TRIES: u32 = 100;
/// Bytes of a control message with [`MOST_DESCRIPTORS`] descriptors.
pub(super) const SPACE: usize = rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS));

// A closed peer must show as an error, not as a signal.
#[cfg(target_os = "linux")]
pub(super) const SEND: SendFlags = SendFlags::NOSIGNAL;
#[cfg(not(target_os = "linux"))]
pub(super) const SEND: SendFlags = SendFlags::empty(); // see no_sigpipe()

/// Reads once without an intermediate copy, for [`FrameReader::fill`](crate::protocol::FrameReader::fill).
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

/// Reads once and takes up to three descriptors that came along, all sent at once. Those that this process
/// had no room for are lost.
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
    // A program that is started would keep the peer's channel open.
    #[cfg(not(target_os = "linux"))]
    for fd in &fds {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    }
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
pub(super) fn recv_passing(
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

/// Whether this process had no room for descriptors. They are still in the socket.
pub(super) fn is_crowded(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::ResourceBusy
}

/// Returns the bytes read, and whether all descriptors that came along could be taken.
#[cfg(target_os = "linux")]
fn recv_once(
    fd: BorrowedFd<'_>,
    room: &mut [MaybeUninit<u8>],
    came: &mut Vec<OwnedFd>,
    flags: libc::c_int,
) -> io::Result<(usize, bool)> {
    use std::os::fd::{AsRawFd, FromRawFd};
    // Room for the 253 descriptors that the kernel passes at most, aligned for a header.
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
    // Without room for any descriptor there is no control message, but the flag is set.
    Ok((got, message.msg_flags & libc::MSG_CTRUNC == 0))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn recv_passing(
    fd: BorrowedFd<'_>,
    room: &mut [MaybeUninit<u8>],
    _: &mut VecDeque<OwnedFd>,
    _: bool,
) -> io::Result<usize> {
    recv(fd, room)
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

/// Sends all of a frame, with up to [`MOST_DESCRIPTORS`] descriptors. Blocks if the socket is blocking;
/// otherwise it fails when the socket is full. After an error a part may have been sent, and the stream is useless.
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

/// Sends once, without blocking, from byte `done` of a frame. Returns the number of bytes sent.
#[cfg(target_os = "linux")]
pub fn send_some(
    stream: impl AsFd,
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
pub(super) fn descriptors(insets: &[Inset]) -> SmallVec<[BorrowedFd<'_>; 4]> {
    let segments = insets.iter().map(|inset| &inset.segment);
    segments.flat_map(Segment::descriptors).collect()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn descriptors(_: &[Inset]) -> SmallVec<[BorrowedFd<'_>; 4]> {
    SmallVec::new()
}

/// Whether the kernel had no memory, so that a retry may work. (A full socket becomes writable, and tells so.)
pub(super) fn is_scarcity(e: rustix::io::Errno) -> bool {
    matches!(e, rustix::io::Errno::NOBUFS | rustix::io::Errno::NOMEM)
}
