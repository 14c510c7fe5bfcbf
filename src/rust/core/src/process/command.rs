//! Commands that start daemons elsewhere, such as `ssh`, `sbatch` or `curl`. They differ from
//! the programs that become daemons here in that they may be given something to read, that
//! what they say on stdout counts as well, and that they may leave others behind who still
//! write to it.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::platform::{end_of, listen, read_all, read_some};
use super::{Child, Exit, Job};
use crate::descriptors;
use crate::sys::{io_thread, no_sigpipe, pipe, signals};

/// Starts a command. [`Child::stderr`] is the end of what it says on stdout and stderr; the bell rings at its end,
/// after `on_exit` was called. If it is not wanted any more, it is sent SIGTERM.
///
/// It has a session of its own: it cannot be reached by a Ctrl-C meant for us, outlives our
/// terminal, and cannot ask there for a password, which it would in vain, being in the
/// background.
///
/// # Errors
/// The command cannot be started.
pub fn run(job: &Job, on_exit: impl FnOnce(&Child) + Send + 'static) -> io::Result<Arc<Child>> {
    let (read, write) = pipe()?;
    let mut command = Command::new(&job.path);
    let mut umask = None;
    if let Some(surroundings) = &job.surroundings {
        surroundings.set(&mut command);
        umask = surroundings.umask;
    }
    let input = job.input.clone();
    command
        .args(&job.args)
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
            umask.inspect(|umask| {
                libc::umask(*umask as libc::mode_t);
            });
            limit.inspect(|limit| descriptors::set_limit(*limit));
            Ok(())
        });
    }
    let mut spawned = command.spawn()?;
    // Its ends of the pipe are closed, so that we learn when the last one is.
    drop(command);
    if let (Some(mut stdin), Some(input)) = (spawned.stdin.take(), input) {
        // A thread, because it may not read. One without signals, because it may be gone.
        no_sigpipe(&stdin);
        signals::with_all_blocked(|| {
            std::thread::Builder::new().spawn(move || stdin.write_all(input.as_bytes()))
        })?;
    }
    let child = Arc::new(Child::default());
    let pid = spawned.id();
    child.pid.store(pid, Ordering::SeqCst);
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
            () = ask_to_end(&child, pid) => unreachable!("waits for ever"),
        };
        if let Some(output) = &output {
            while read_some(&child, output.get_ref()).is_ok_and(|n| n > 0) {}
        }
        child.ended(Exit::Status(exit), Box::new(on_exit));
        // Whoever it has left behind shall not die of a broken pipe.
        if let Some(output) = &output {
            read_all(&child, output).await;
        }
    });
    Ok(child)
}

/// Asks a command to end once it is not wanted any more; never returns. To be dropped before the process is reaped:
/// until then its id is its own.
async fn ask_to_end(child: &Child, pid: u32) {
    child.unwanted.notified().await;
    // SAFETY: no pointers.
    unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) };
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::super::Surroundings;
    use super::*;
    use crate::sys::{Bell, Waited};
    use std::time::Duration;

    fn sh(script: &str, input: Option<&str>) -> Job {
        Job {
            name: "it".into(),
            path: "/bin/sh".into(),
            args: ["-c", script].map(String::from).into(),
            input: input.map(String::from),
            ..Job::default()
        }
    }

    fn shell(script: &str, input: Option<&str>) -> Arc<Child> {
        run(&sh(script, input), |_| {}).unwrap()
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
        let job = Job {
            path: "/nowhere/to/be/found".into(),
            ..Job::default()
        };
        assert!(run(&job, |_| {}).is_err());
    }

    #[test]
    fn what_a_job_has_failed_of_is_told() {
        let answer = |status: &str| format!("printf 'some\nbody\n{status}'");
        for (script, asks, failure) in [
            ("echo yes".to_owned(), false, None),
            ("echo 500".into(), false, None),
            (
                "echo no; exit 3".into(),
                false,
                Some("it (exit status 3):\nno"),
            ),
            (
                "kill -9 $$".into(),
                false,
                Some("it (killed by signal 9):\n(it wrote nothing)"),
            ),
            (answer("399"), true, None),
            (
                answer("503"),
                true,
                Some("http://here has answered with status 503:\nsome\nbody"),
            ),
            (
                format!("{}; exit 7", answer("000")),
                true,
                Some("it (exit status 7):\nsome\nbody"),
            ),
        ] {
            let job = Job {
                service: asks.then(|| "http://here".into()),
                ..sh(&script, None)
            };
            let child = run(&job, |_| {}).unwrap();
            wait(|| child.exit().is_some());
            assert_eq!(job.failure(&child).as_deref(), failure, "{script}");
        }
    }

    #[test]
    fn one_that_is_not_wanted_is_asked_to_end() {
        let child = shell("exec sleep 1000", None);
        super::super::end_unconnected(std::slice::from_ref(&child));
        wait(|| child.exit().is_some());
        assert_eq!(child.exit().unwrap().to_string(), "killed by signal 15");
        // One that has brought its daemon goes on.
        let child = shell("read line; exit $line", Some("7\n"));
        child.has_connected();
        super::super::end_unconnected(std::slice::from_ref(&child));
        wait(|| child.exit().is_some());
        assert_eq!(child.exit().unwrap().to_string(), "exit status 7");
    }

    #[test]
    fn it_has_the_surroundings_that_were_noted() {
        let surroundings = Surroundings {
            environment: vec![("NOTED".into(), "before".into())],
            directory: "/".into(),
            umask: Some(0o27),
        };
        let job = Job {
            surroundings: Some(Arc::new(surroundings)),
            ..sh("echo $NOTED-$HOME-; pwd; umask", None)
        };
        let child = run(&job, |_| {}).unwrap();
        wait(|| child.exit().is_some());
        assert_eq!(child.stderr(), "before--\n/\n0027\n");
    }
}
