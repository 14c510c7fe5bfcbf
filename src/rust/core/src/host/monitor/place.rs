//! Where a session's socket is, and which sessions there are.
//!
//! `mirai-UID` in the directory for temporary files, or `mirai` in `$XDG_RUNTIME_DIR`, holds a socket for each session, named
//! by its process id. The directory for temporary files comes first, because a session may outlive the login during which
//! `$XDG_RUNTIME_DIR` exists.
//!
//! Anybody may make a directory of that name there before we do. So one is used only if it belongs to this user, nobody
//! else may enter it, and it is no symbolic link.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::Session;
use crate::transport::{Address, unix};

/// Attempts to make the directory and a socket in it: another session may remove the directory in between, because it is
/// empty.
const TRIES: usize = 10;

/// The socket of this session. Dropping it removes it, and the directory if it was the last there.
pub(super) struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        if let Some(directory) = self.0.parent() {
            remove_dead(directory);
            // Fails if others are there.
            let _ = std::fs::remove_dir(directory);
        }
    }
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Directories in which this user's sessions may have their sockets, the preferred one first.
fn directories() -> Vec<PathBuf> {
    let mut all = vec![in_temporary(std::env::temp_dir())];
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR") {
        all.push(Path::new(&runtime).join("mirai"));
    }
    all.retain(|directory| directory.is_absolute());
    all
}

fn in_temporary(directory: PathBuf) -> PathBuf {
    directory.join(format!("mirai-{}", uid()))
}

/// Where the socket of a process may be: in our own directories, or in those of its `TMPDIR`, as far as the system tells.
fn directories_of(pid: u32) -> Vec<PathBuf> {
    let mut all = directories();
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut variables = environment.split(|b| *b == 0);
    let theirs = variables.find_map(|variable| variable.strip_prefix(b"TMPDIR="));
    let theirs = PathBuf::from(OsStr::from_bytes(theirs.unwrap_or(b"/tmp")));
    if theirs.is_absolute() {
        all.push(in_temporary(theirs));
    }
    all
}

/// Checks that nobody else can have put anything into a directory.
fn check(directory: &Path) -> io::Result<()> {
    let found = directory.symlink_metadata()?;
    if found.is_dir() && found.uid() == uid() && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    let text = format!(
        "'{}' is not a directory that only this user can enter",
        directory.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// Listens at this session's socket.
pub(super) fn listen() -> io::Result<(UnixListener, Socket)> {
    let mut first = None;
    for directory in directories() {
        match listen_in(&directory) {
            Ok(listening) => return Ok(listening),
            Err(e) => first.get_or_insert(e),
        };
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

fn listen_in(directory: &Path) -> io::Result<(UnixListener, Socket)> {
    let path = directory.join(std::process::id().to_string());
    let mut tries = 0;
    loop {
        tries += 1;
        match DirBuilder::new().mode(0o700).create(directory) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        let listening = check(directory).and_then(|()| unix::listen(&Address::Ipc(path.clone())));
        match listening {
            Ok(listener) => return Ok((listener, Socket(path))),
            Err(e) if e.kind() == io::ErrorKind::NotFound && tries < TRIES => {}
            Err(e) => return Err(e),
        }
    }
}

/// The process ids by which the sockets in a directory are named.
fn pids(directory: &Path) -> Vec<u32> {
    let Ok(entries) = check(directory).and_then(|()| std::fs::read_dir(directory)) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

fn is_dead(pid: u32) -> bool {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// Removes the sockets of processes that are gone.
fn remove_dead(directory: &Path) {
    for pid in pids(directory) {
        if is_dead(pid) {
            let _ = std::fs::remove_file(directory.join(pid.to_string()));
        }
    }
}

/// Removes the socket that a process has left behind.
pub(super) fn remove_stale(pid: u32) {
    for directory in directories() {
        let path = directory.join(pid.to_string());
        if path.symlink_metadata().is_ok() && check(&directory).is_ok() && is_dead(pid) {
            let _ = std::fs::remove_file(path);
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Sessions of this user that have had a compute profile and still run, in the order of their process ids. Removes the
/// sockets of those that have been killed.
pub fn sessions() -> Vec<Session> {
    let mut all = Vec::new();
    for directory in directories() {
        remove_dead(&directory);
        let pids = pids(&directory).into_iter();
        all.extend(pids.filter(|pid| connect_in(&directory, *pid).is_ok()));
    }
    all.sort_unstable();
    all.dedup();
    let session = |pid| Session {
        pid,
        command: command(pid),
    };
    all.into_iter().map(session).collect()
}

fn connect_in(directory: &Path, pid: u32) -> io::Result<UnixStream> {
    check(directory)?;
    // A process that was forked from it may still hold its socket open.
    if is_dead(pid) {
        return Err(io::ErrorKind::NotFound.into());
    }
    unix::connect(&Address::Ipc(directory.join(pid.to_string())))
}

/// Connects to the session of this process id.
pub(super) fn connect(pid: u32) -> io::Result<UnixStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for directory in directories_of(pid) {
        match connect_in(&directory, pid) {
            Ok(stream) => return Ok(stream),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Limit of a command line, in bytes: a longer one is cut.
const MOST_OF_A_COMMAND: usize = 200;

fn command(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MOST_OF_A_COMMAND)]).into_owned();
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).collect::<String>().trim().into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_a_directory_of_our_own_is_used() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("mirai");
        let refused = |path: &Path| listen_in(path).err().map(|e| e.kind());
        let denied = Some(io::ErrorKind::PermissionDenied);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o750)).unwrap();
        assert_eq!(refused(&path), denied);
        assert!(pids(&path).is_empty());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(refused(&path), None);
        let link = base.path().join("link");
        std::os::unix::fs::symlink(base.path(), &link).unwrap();
        assert_eq!(refused(&link), denied);
        let file = base.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(refused(&file), denied);
    }

    #[test]
    fn sockets_go_with_their_sessions() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("mirai");
        // A session before this one had the same process id and was killed.
        let (listener, socket) = listen_in(&path).unwrap();
        std::mem::forget(socket);
        drop(listener);
        let me = std::process::id();
        assert!(connect_in(&path, me).is_err());
        let (_listener, socket) = listen_in(&path).unwrap();
        assert_eq!(pids(&path), [me]);
        assert!(connect_in(&path, me).is_ok());
        // Another one was killed, too.
        let dead = std::process::Command::new("true").spawn().unwrap();
        let gone = dead.id();
        dead.wait_with_output().unwrap();
        std::fs::write(path.join(gone.to_string()), "").unwrap();
        drop(socket);
        assert!(!path.exists());
    }
}
