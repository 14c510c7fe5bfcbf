//! Commands that launch daemons elsewhere: started all at once, and watched together.

use std::sync::Arc;
use std::time::Duration;

use extendr_api::prelude::*;
use extendr_api::Result;
use mirai_core::process::{command, Child, Exit};
use mirai_core::sys::{Bell, Waited};

use crate::events::Events;
use crate::profiles::{self, Profile};
use crate::r;

/// A command that is running, or has ended.
struct Launched(Arc<Child>);

fn is_failure(exit: Exit) -> bool {
    !matches!(exit, Exit::Status(status) if status.success())
}

/// Starts a command, with `input` to read from its stdin.
#[extendr]
fn run_command(path: &str, args: Vec<String>, input: Nullable<String>) -> Result<Robj> {
    if profiles::is_forked() {
        return Err(profiles::forked());
    }
    let child = command::run(path, &args, input.into_option())
        .map_err(|e| r::error(format!("'{path}' cannot be started: {e}")))?;
    Ok(ExternalPtr::new(Launched(child)).into())
}

/// Waits until all commands have ended, one of them has failed, `cumulative` daemons have
/// connected to the profile so far, or the time is over (unless `NULL`). `FALSE` if R has something to do before:
/// call `serve_events`. `cumulative` is infinite if the daemons
/// do not connect to the profile.
#[extendr]
fn wait_commands(
    profile: Robj,
    commands: List,
    cumulative: f64,
    seconds: Nullable<f64>,
) -> Result<bool> {
    let commands = commands
        .values()
        .map(ExternalPtr::<Launched>::try_from)
        .collect::<Result<Vec<_>>>()?;
    let connected = || {
        // SAFETY: it is an R object.
        let counts = unsafe {
            profiles::with_current(profile.get(), |profile| {
                profile.and_then(Profile::host).map(|host| host.counts())
            })
        };
        match counts {
            Some(counts) => counts.cumulative as f64 >= cumulative,
            // The profile has been closed: there is nothing more to come.
            None => cumulative.is_finite(),
        }
    };
    let settled = || {
        commands.iter().any(|c| c.0.exit().is_some_and(is_failure))
            || commands.iter().all(|c| c.0.exit().is_some())
            || connected()
    };
    let timeout = seconds.into_option().map(Duration::from_secs_f64);
    Ok(Bell::get().wait(timeout, Events::new(), settled) != Waited::Interrupted)
}

/// What there is to know about a command.
#[extendr]
fn command_state(command: ExternalPtr<Launched>) -> List {
    let exit = command.0.exit();
    list!(
        running = exit.is_none(),
        failed = exit.is_some_and(is_failure),
        how = exit.map(|exit| exit.to_string()).unwrap_or_default(),
        output = command.0.stderr(),
        pid = command.0.pid() as i32
    )
}

extendr_module! {
    mod launch;
    fn run_command;
    fn wait_commands;
    fn command_state;
}
