//! Linux, macOS and their like.

#[cfg(target_os = "linux")]
pub(crate) mod board;
pub(crate) mod files;
#[cfg(target_os = "linux")]
pub(crate) mod readers;
#[cfg(not(target_os = "linux"))]
#[path = "no_readers.rs"]
mod readers;
#[cfg(target_os = "linux")]
pub(crate) mod ring;
#[cfg(target_os = "linux")]
pub(crate) mod shared;
pub(crate) mod signals;
#[cfg(not(all(test, mirai_loom)))]
mod token;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[cfg(not(all(test, mirai_loom)))]
pub(super) use {
    readers::{lead, leads},
    token::Token,
};

/// What a wait can look at: a descriptor.
pub type Waitable = RawFd;

/// The name that this machine has given itself.
pub fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into()
}

/// Bytes of a page: 4 KiB mostly, 16 KiB or 64 KiB on some arm64 systems.
#[cfg(target_os = "linux")]
pub(crate) fn page_size() -> usize {
    // Not by rustix, which under valgrind looks for it in memory that is not there.
    // SAFETY: no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// Threads of all processes that run just now or want to. The kernel tells in some 2 µs: the fourth number of
/// `/proc/loadavg` (proc_loadavg(5)).
#[cfg(target_os = "linux")]
pub(super) fn running_threads() -> Option<usize> {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::OnceLock;
    // Of the process that opens it, and of those that are forked from it: it says the same to all.
    static LOAD: OnceLock<Option<File>> = OnceLock::new();
    let load = LOAD.get_or_init(|| File::open("/proc/loadavg").ok());
    let mut text = [0; 64];
    let read = load.as_ref()?.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..read]).ok()?;
    text.split(' ').nth(3)?.split('/').next()?.parse().ok()
}

/// Rows and columns of the terminal to which this process writes. `None` if there is none.
pub fn terminal_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// Has the I/O thread watch a descriptor. Must be called within the runtime.
pub(crate) fn register<T: AsRawFd + AsFd>(fd: T) -> io::Result<AsyncFd<T>> {
    register_for(fd, Interest::READABLE | Interest::WRITABLE)
}

/// As [`register`], for a descriptor that can only be waited for until it is readable, as that of [`end_of_process`].
pub(crate) fn register_readable<T: AsRawFd + AsFd>(fd: T) -> io::Result<AsyncFd<T>> {
    register_for(fd, Interest::READABLE)
}

/// As [`register`], for one kind of readiness.
pub(crate) fn register_for<T: AsRawFd + AsFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: what a `T` lends stays open and the same as long as it is owned or borrowed, so
    // until the `AsyncFd` is dropped.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// Writes what C's streams (`FILE`) hold back.
pub(crate) fn flush_c_streams() {
    // SAFETY: a null pointer stands for all streams that are open for writing.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// A pipe whose ends, the one to read first, are closed in programs that are started. `std::io::pipe` came with Rust
/// 1.87.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    #[cfg(not(target_vendor = "apple"))]
    let ends = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    #[cfg(target_vendor = "apple")]
    let ends = rustix::pipe::pipe()?;
    #[cfg(target_vendor = "apple")]
    for end in [&ends.0, &ends.1] {
        rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
    }
    Ok(ends)
}

/// Has a write to a descriptor whose other end is closed fail, without a signal. macOS sends SIGPIPE to the process,
/// whatever signals the thread that writes has blocked. On other systems, `MSG_NOSIGNAL` or a blocked SIGPIPE does the
/// same.
#[cfg(target_vendor = "apple")]
pub(crate) fn no_sigpipe(fd: impl AsFd) {
    // SAFETY: no pointers, and the descriptor is open.
    unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETNOSIGPIPE, 1) };
}

#[cfg(not(target_vendor = "apple"))]
pub(crate) fn no_sigpipe(_: impl AsFd) {}

/// A descriptor that is readable once a process is gone.
///
/// # Errors
/// It is gone already, or the system (Linux before 5.3) has no such descriptors.
#[cfg(target_os = "linux")]
pub(crate) fn end_of_process(pid: Pid) -> io::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, pidfd_open};
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// A kqueue with one event, the process's end.
#[cfg(not(target_os = "linux"))]
pub(crate) fn end_of_process(pid: Pid) -> io::Result<OwnedFd> {
    use rustix::event::kqueue::{Event, EventFilter, EventFlags, ProcessEvents, kevent, kqueue};
    let queue = kqueue()?;
    rustix::io::fcntl_setfd(&queue, rustix::io::FdFlags::CLOEXEC)?;
    let flags = ProcessEvents::EXIT;
    let filter = EventFilter::Proc { pid, flags };
    let exit = Event::new(filter, EventFlags::ADD, std::ptr::null_mut());
    let mut none: [Event; 0] = [];
    // SAFETY: the event refers to no descriptor.
    unsafe { kevent(&queue, &[exit], &mut none, None) }?;
    Ok(queue)
}
