//! The line: a socket pair between a process that was started and the one that has started it,
//! for as long as the started one has not connected.
//!
//! By it the started process says where its session directory is, so that this can be removed should
//! the process be killed; across a network, nobody would believe it. It says when it has
//! connected. And it sees that the other process is gone.
//!
//! A process that is forked by the fork server holds its end from the beginning. One that was
//! started as a program finds the number of the descriptor in the environment, see [`VARIABLE`].

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::protocol::frame::encode_head;
use crate::protocol::{FrameReader, Limits};
use crate::transport::unix;

/// The environment variable with the number of the descriptor.
pub(super) const VARIABLE: &str = "MIRAI_LINE";

/// A path may be of 4096 bytes.
const LIMITS: Limits = Limits {
    meta: 8192,
    body: 0,
};

/// What the started process says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    /// Who it is, and its session directory.
    Directory { pid: u32, path: Vec<u8> },
    /// It has connected, to whomever. Nothing more will be said.
    Connected,
}

impl Told {
    pub(super) fn path(bytes: Vec<u8>) -> std::path::PathBuf {
        std::ffi::OsString::from_vec(bytes).into()
    }
}

pub(super) fn reader() -> FrameReader<Told> {
    FrameReader::new(LIMITS)
}

/// Both ends, closed on exec.
pub(super) fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = unix::control_pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours, theirs.into()))
}

/// The started process's end.
static LINE: Mutex<Option<UnixStream>> = Mutex::new(None);

/// Puts an end in place that was inherited from the fork server.
pub(super) fn hold(line: OwnedFd) {
    *LINE.lock() = Some(line.into());
}

/// Takes hold of the line that the environment names, if this process was started with one. What it
/// starts itself shall not find it there.
///
/// # Safety
/// No other thread uses the environment, nor opens and closes descriptors.
pub unsafe fn find() {
    let Some(number) = std::env::var_os(VARIABLE) else {
        return;
    };
    // SAFETY: the caller's.
    unsafe { std::env::remove_var(VARIABLE) };
    let number = number.to_str().and_then(|n| n.parse::<RawFd>().ok());
    let Some(number) = number.filter(|n| *n > 2) else {
        return;
    };
    // SAFETY: only reads what the descriptor is, which may be none.
    if unsafe { !is_unix_socket(number) } {
        return;
    }
    // SAFETY: whoever has started this process has left it open for this purpose.
    let line = unsafe { OwnedFd::from_raw_fd(number) };
    let _ = rustix::io::fcntl_setfd(&line, rustix::io::FdFlags::CLOEXEC);
    hold(line);
}

/// # Safety
/// None, but that the number may stand for anything.
unsafe fn is_unix_socket(number: RawFd) -> bool {
    let mut address = std::mem::MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: the address has as much room as `len` says; all zeros are an address, too.
    unsafe {
        libc::getsockname(number, address.as_mut_ptr().cast(), &raw mut len) == 0
            && libc::c_int::from(address.assume_init().ss_family) == libc::AF_UNIX
    }
}

fn tell(line: &UnixStream, told: &Told) {
    // It is small, and there is nothing else in the socket. Without a reader, nobody needs it.
    let _ = unix::send_all(line, &encode_head(told, 0), &[], None);
}

/// Says where this process's session directory is.
pub fn tell_directory(path: &Path) {
    if let Some(line) = &*LINE.lock() {
        let path = path.as_os_str().as_bytes().to_vec();
        let pid = std::process::id();
        tell(line, &Told::Directory { pid, path });
    }
}

/// Says that this process has connected, and lets go of the line.
pub fn tell_connected() {
    if let Some(line) = LINE.lock().take() {
        tell(&line, &Told::Connected);
    }
}

/// Whether this process has not connected yet, and whoever has started it is gone or wants it no more.
pub fn is_abandoned() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let line = LINE.lock();
    let Some(line) = &*line else { return false };
    let mut fds = [PollFd::new(line, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
}

/// Waits, in a process just forked, for the word that it is wanted. False if it is not.
#[cfg(target_os = "linux")]
pub(super) fn wait_until_wanted() -> bool {
    let Some(line) = LINE.lock().as_ref().and_then(|line| line.try_clone().ok()) else {
        return false;
    };
    let mut word = [0];
    loop {
        match rustix::io::read(&line, &mut word) {
            Ok(n) => return n > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Says so.
#[cfg(target_os = "linux")]
pub(super) fn tell_wanted(line: &UnixStream) {
    // One byte into an empty socket. If the process is gone, its end says so.
    let _ = unix::send_all(line, &[1], &[], None);
}
