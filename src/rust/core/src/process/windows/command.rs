//! Commands that start daemons elsewhere, such as `ssh` or `curl`. They differ from
//! the programs that become daemons here in that they may be given something to read, that
//! what they say on stdout counts as well, and that they may leave others behind who still
//! write to it.

use std::io::{self, Write};
use std::os::windows::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use windows_sys::Win32::System::Threading::CREATE_NO_WINDOW;

use super::platform::{Spawned, pair, read_all};
use super::{Child, Exit, Job};
use crate::sys::io_thread;

/// Starts a command. [`Child::stderr`] is the end of what it says on stdout and stderr; the bell rings at its end, after
/// `on_exit` was called. If it is not wanted any more, it is terminated.
///
/// It has a console of its own that nobody sees: it cannot be reached by a Ctrl-C meant for us, and cannot ask for a
/// password there. It may outlive this process.
///
/// # Errors
/// The command cannot be started.
pub fn run(job: &Job, on_exit: impl FnOnce(&Child) + Send + 'static) -> io::Result<Arc<Child>> {
    let (output, writer) = pair()?;
    let mut command = Command::new(&job.path);
    if let Some(surroundings) = &job.surroundings {
        surroundings.set(&mut command);
    }
    let input = job.input.clone();
    command
        .args(&job.args)
        .env_remove("R_TESTS")
        .stdin(input.as_ref().map_or_else(Stdio::null, |_| Stdio::piped()))
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .creation_flags(CREATE_NO_WINDOW);
    let mut spawned = Spawned::new(command.spawn()?, Some(output))?;
    // Its ends of the pipe are closed, so that we learn when the last one is.
    drop(command);
    if let (Some(mut stdin), Some(input)) = (spawned.process.stdin.take(), input) {
        // A thread, because it may not read.
        std::thread::Builder::new().spawn(move || stdin.write_all(input.as_bytes()))?;
    }
    let child = Arc::new(Child::default());
    child.pid.store(spawned.process.id(), Ordering::SeqCst);
    let of_task = child.clone();
    io_thread::handle().spawn(async move {
        let child = of_task;
        let exit = spawned.attend(&child).await;
        child.ended(Exit::Status(exit), Box::new(on_exit));
        // Whoever it has left behind shall not die of a broken pipe.
        if let Some(output) = &spawned.output {
            read_all(&child, output).await;
        }
    });
    Ok(child)
}
