//! What a process has from the one that starts it: environment variables, working directory and umask.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Command;

/// What this process has at one moment, for one that is started later. The variables must not be read while another thread
/// may change them, so a thread that is not the main one starts processes with what was noted before.
#[derive(Debug, PartialEq, Eq)]
pub struct Surroundings {
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) directory: PathBuf,
    /// `None`: it cannot be found out on this system.
    pub(super) umask: Option<u32>,
}

impl Surroundings {
    /// To be called on the main thread.
    ///
    /// # Errors
    /// The working directory does not exist any more.
    pub fn now() -> io::Result<Surroundings> {
        Ok(Surroundings {
            environment: std::env::vars_os().collect(),
            directory: std::env::current_dir()?,
            umask: umask(),
        })
    }

    /// Gives a command the variables and the working directory.
    pub(super) fn set(&self, command: &mut Command) {
        command.env_clear();
        command.envs(self.environment_with(&[]));
        command.current_dir(&self.directory);
    }

    /// The variables, with those that `changes` sets or removes.
    pub(super) fn environment_with(
        &self,
        changes: &[(OsString, Option<OsString>)],
    ) -> Vec<(OsString, OsString)> {
        let mut environment = self.environment.clone();
        for (name, value) in changes {
            environment.retain(|(n, _)| n != name);
            if let Some(value) = value {
                environment.push((name.clone(), value.clone()));
            }
        }
        environment
    }
}

/// This process's umask. umask(2) can only be asked by setting it, which other threads
/// would notice.
fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|l| l.strip_prefix("Umask:"))?;
    u32::from_str_radix(mask.trim(), 8).ok()
}
