//! Commands that start daemons elsewhere, such as `ssh`, `sbatch` or `curl`. They differ from
//! the programs that become daemons here in that they may be given something to read, that
//! what they say on stdout counts as well, and that they may leave others behind who still
//! write to it.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::platform::{end_of, listen, read_all, read_some};
use super::{Child, Exit};
use crate::descriptors;
use crate::sys::{io_thread, signals};

/// Starts a command, with `input` to read. [`Child::stderr`] is the end of what it says on
/// stdout and stderr; the bell rings at its end.
///
/// It has a session of its own: it cannot be reached by a Ctrl-C meant for us, outlives our
/// terminal, and cannot ask there for a password, which it would in vain, being in the
/// background.
///
/// # Errors
/// The command cannot be started.
pub fn run(path: &str, args: &[String], input: Option<String>) -> io::Result<Arc<Child>> {
    let (read, write) = pipe()?;
    let mut command = Command::new(path);
    command
        .args(args)
        .env_remove("R_TESTS")
        .stdin(input.as_ref().map_or_else(Stdio::null, |_| Stdio::piped()))
        .stdout(write.try_clone()?)
        .stderr(write);
    let limit = descriptors::given_limit();
    // SAFETY: what is called may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            signals::unblock_all();
            limit.inspect(|limit| descriptors::set_limit(*limit));
            Ok(())
        });
    }
    let mut spawned = command.spawn()?;
    // Its ends of the pipe are closed, so that we learn when the last one is.
    drop(command);
    if let (Some(mut stdin), Some(input)) = (spawned.stdin.take(), input) {
        // A thread, because it may not read. One without signals, because it may be gone.
        signals::with_all_blocked(|| {
            std::thread::Builder::new().spawn(move || stdin.write_all(input.as_bytes()))
        })?;
    }
    let child = Arc::new(Child::default());
    child.pid.store(spawned.id(), Ordering::SeqCst);
    let of_task = child.clone();
    io_thread::handle().spawn(async move {
        let child = of_task;
        let output = rustix::io::ioctl_fionbio(&read, true)
            .map_err(io::Error::from)
            .and_then(|()| io_thread::register(read))
            .ok();
        let exit = tokio::select! {
            biased;
            exit = end_of(&mut spawned) => exit,
            () = listen(&child, output.as_ref()) => unreachable!("listens for ever"),
        };
        if let Some(output) = &output {
            while read_some(&child, output.get_ref()).is_ok_and(|n| n > 0) {}
        }
        child.ended(Exit::Status(exit), Box::new(|_| {}));
        // Whoever it has left behind shall not die of a broken pipe.
        if let Some(output) = &output {
            read_all(&child, output).await;
        }
    });
    Ok(child)
}

/// A pipe whose ends are closed in programs that are started. `std::io::pipe` came with Rust 1.87.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Bell, Waited};
    use std::time::Duration;

    fn shell(script: &str, input: Option<&str>) -> Arc<Child> {
        let args = ["-c".to_owned(), script.to_owned()];
        run("/bin/sh", &args, input.map(String::from)).unwrap()
    }

    fn wait(ready: impl FnMut() -> bool) {
        let waited = Bell::get().wait(Some(Duration::from_secs(20)), || false, ready);
        assert_eq!(waited, Waited::Ready);
    }

    #[test]
    fn a_command_reads_and_says_why_it_failed() {
        let child = shell("cat; echo oh >&2; exit 3", Some("read\n"));
        wait(|| child.exit().is_some());
        assert_eq!(child.stderr(), "read\noh\n");
        assert_eq!(child.exit().unwrap().to_string(), "exit status 3");
    }

    #[test]
    fn one_that_does_not_read_is_no_harm() {
        let child = shell("exec <&-; exit 0", Some(&"x".repeat(1 << 20)));
        wait(|| child.exit().is_some());
        assert_eq!(child.exit().unwrap().to_string(), "exit status 0");
    }

    #[test]
    fn its_end_is_not_that_of_those_it_leaves_behind() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo").display().to_string();
        let script = format!("mkfifo {fifo}; (echo left; cat {fifo}; echo late) & echo $!");
        let child = shell(&script, None);
        wait(|| child.exit().is_some());
        std::fs::write(&fifo, "").unwrap();
        // No bell rings for what is said.
        let all = || child.stderr().contains("late");
        for _ in 0..2000 {
            if all() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("only: {}", child.stderr());
    }

    #[test]
    fn a_missing_command_is_an_error() {
        assert!(run("/nowhere/to/be/found", &[], None).is_err());
    }
}
