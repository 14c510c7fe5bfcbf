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
//! A frame is sent whole, or the link ends: the stream never has a gap. A send that fails for want of kernel
//! memory is retried for at most a second.

mod descriptors;
mod incoming;
mod listener;
#[cfg(target_os = "linux")]
mod offer;
mod outbox;
#[cfg(target_os = "linux")]
mod reading;
#[cfg(not(target_os = "linux"))]
#[path = "reading_alone.rs"]
mod reading;

#[cfg(target_os = "linux")]
pub use descriptors::send_some;
pub use descriptors::{recv, recv_with_fd, recv_with_fds, send_all, send_all_with};
pub use incoming::Incoming;
pub use listener::{Listener, Stranger};
#[cfg(target_os = "linux")]
pub(crate) use offer::{Taken, take_ring};
pub use outbox::Outbox;

use std::io;
#[cfg(not(target_os = "linux"))]
use std::os::fd::AsRawFd;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use rustix::process::Pid;
use smallvec::SmallVec;

use self::descriptors::descriptors;
use super::{Address, Link};
use crate::memory::{Arrival, Parts};
use crate::protocol::frame::encode_head_with;
use crate::protocol::{Control, Frame, FrameReader, ToHost};
use crate::sys::{end_of_process, no_sigpipe};

/// Retries, each after `SCARCE`, when this process has no room for descriptors that were passed to it.
const CROWDED_TRIES: u32 = 3000;

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
            // A socket that nobody listens at was left by a process that is gone: take it over.
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

/// Refuses a peer of another user: an abstract name has no permissions, so any
/// user of the machine can connect to it, or listen at it first.
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

/// The process at the other end, as a descriptor that is readable once it is gone; `None` if the system has none.
pub fn peer_process(stream: &UnixStream) -> Option<OwnedFd> {
    end_of_process(peer_pid(stream)?).ok()
}

#[cfg(target_os = "linux")]
fn peer_pid(stream: &UnixStream) -> Option<Pid> {
    Some(rustix::net::sockopt::socket_peercred(stream).ok()?.pid)
}

#[cfg(not(target_os = "linux"))]
fn peer_pid(stream: &UnixStream) -> Option<Pid> {
    let (mut pid, mut len) = (
        0 as libc::pid_t,
        size_of::<libc::pid_t>() as libc::socklen_t,
    );
    // SAFETY: the descriptor is open, and there is room for as many bytes as `len` says.
    let got = unsafe {
        let (fd, into) = (stream.as_raw_fd(), (&raw mut pid).cast());
        libc::getsockopt(fd, libc::SOL_LOCAL, libc::LOCAL_PEERPID, into, &raw mut len)
    };
    Pid::from_raw(pid).filter(|_| got == 0)
}

/// Waits until there is something to read. False if there is nothing and the peer's process is
/// gone: its end does not end the stream while a process forked from it holds the socket open.
pub fn wait_readable(stream: &UnixStream, peer: Option<&OwnedFd>) -> bool {
    wait_readable_or(stream, peer, None) != Come::End
}

/// What [`wait_readable_or`] has waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Come {
    /// There is something to read, or the stream is over.
    Bytes,
    /// The other descriptor is readable, and there is nothing to read.
    Beside,
    /// There is nothing to read, and there will not be.
    End,
}

/// As [`wait_readable`], or until another descriptor is readable.
pub fn wait_readable_or(
    stream: &UnixStream,
    peer: Option<&OwnedFd>,
    beside: Option<BorrowedFd<'_>>,
) -> Come {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = SmallVec::<[PollFd<'_>; 3]>::new();
    fds.push(PollFd::new(stream, PollFlags::IN));
    fds.extend(peer.map(|peer| PollFd::new(peer, PollFlags::IN)));
    fds.extend(beside.map(|beside| PollFd::from_borrowed_fd(beside, PollFlags::IN)));
    if fds.len() == 1 {
        // The caller's read waits.
        return Come::Bytes;
    }
    while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
    let is_readable = |at: usize| fds[at].revents().contains(PollFlags::IN);
    if !fds[0].revents().is_empty() {
        Come::Bytes
    } else if peer.is_some() && is_readable(1) {
        Come::End
    } else if beside.is_some() && is_readable(fds.len() - 1) {
        Come::Beside
    } else {
        // They cannot be waited for; the caller's read waits.
        Come::Bytes
    }
}

/// Whether there is something to read, or the stream is over.
pub fn is_readable(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())) != Ok(0)
}

/// A connected pair for the control channel, closed on exec.
pub fn control_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    no_sigpipe(&ours);
    no_sigpipe(&theirs);
    Ok((ours, theirs))
}

/// Sends a message with its segments, from the daemon's end. An error ends the link.
pub fn send_message<M: serde::Serialize>(
    stream: &UnixStream,
    message: &M,
    body: Parts<'_>,
) -> io::Result<()> {
    let head = encode_head_with(message, body.bytes.len(), body.insets);
    let pass = descriptors(body.insets);
    let sent = match send_all_with(stream, &head, body.bytes, &pass) {
        // Too many descriptors are in flight; nothing has been sent.
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

/// As [`transport::local`](crate::transport::local) calls it.
pub type LocalLink = UnixLink;

/// The host's end of an established link.
pub struct UnixLink {
    data: Outbox,
    control: Outbox,
    /// The ring, until it is served.
    #[cfg(target_os = "linux")]
    offered: parking_lot::Mutex<Option<offer::Offered>>,
}

impl UnixLink {
    /// Must be called within the I/O runtime.
    pub fn new(data: OwnedFd, control: OwnedFd) -> io::Result<Arc<UnixLink>> {
        let link = Arc::new(UnixLink {
            data: Outbox::new(data)?,
            control: Outbox::new(control)?,
            #[cfg(target_os = "linux")]
            offered: parking_lot::Mutex::default(),
        });
        Ok(link)
    }

    /// Offers the peer a ring. To be called before anything is sent.
    #[cfg(target_os = "linux")]
    pub(crate) fn offer_ring(&self) {
        // Without one, the peer sends everything by the socket.
        *self.offered.lock() = offer::offer(&self.control.sink).ok();
    }

    /// Reads frames and hands them to `on_frame` until the peer is gone or says
    /// something that is not in the protocol. Runs on the I/O thread, together
    /// with what else the link needs there; `on_frame` may be called on the main thread while that waits.
    pub async fn serve(
        self: &Arc<Self>,
        reader: FrameReader<ToHost>,
        on_frame: impl FnMut(ToHost, Arrival) + Send + 'static,
    ) -> io::Result<()> {
        let reading = reading::read(self.clone(), reader, on_frame);
        tokio::select! {
            biased;
            end = reading => end,
            fault = self.data.drain_when_writable() => Err(fault),
            fault = self.control.drain_when_writable() => Err(fault),
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
    use std::os::fd::AsFd;

    use super::*;
    use crate::protocol::Limits;

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
            assert!(posted_without_memory(errno, true).is_empty());
        }
        assert!(posted_without_memory(libc::EMSGSIZE, false).is_empty());
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
