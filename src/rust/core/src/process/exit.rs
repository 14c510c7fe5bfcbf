//! How a process ended, in words.

use std::process::ExitStatus;

use super::oom;
use super::platform::{killed_by, status_text};

/// By its number on every system, also those without signals.
const SIGKILL: i32 = 9;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Its exit status, or the signal that killed it.
    Status(ExitStatus),
    /// Only its parent knows, and that is the fork server.
    Unknown,
}

impl Exit {
    /// As the end of a sentence about the process.
    pub(super) fn to_reason(self) -> String {
        let Exit::Status(status) = self else {
            return "ended".into();
        };
        match (status.code(), killed_by(status)) {
            (Some(code), _) => format!("exited with status {}", status_text(code)),
            (None, Some(SIGKILL)) if oom::has_killed() => {
                "was killed by signal 9; the kernel's out-of-memory killer did it".into()
            }
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".into(),
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Status(status) => match (status.code(), killed_by(*status)) {
                (Some(code), _) => write!(f, "exit status {}", status_text(code)),
                (None, Some(signal)) => write!(f, "killed by signal {signal}"),
                (None, None) => f.write_str("ended"),
            },
            Exit::Unknown => f.write_str("ended"),
        }
    }
}
