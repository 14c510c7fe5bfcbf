//! A command that launches a daemon elsewhere, before it is run, and what it has failed of: see
//! [`command`](super::command).

use std::sync::Arc;

use super::{Child, Exit, Surroundings};

/// A command to run.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// What users know it by.
    pub name: String,
    /// The program.
    pub path: String,
    /// Its arguments, without its name.
    pub args: Vec<String>,
    /// What it reads from its stdin.
    pub input: Option<String>,
    /// The address of a web service that it asks. The last line of output is the status of the answer then: from 400
    /// on, the command has failed.
    pub service: Option<String>,
    /// What it has from the process that starts it. `None`: what that has when it starts it, on its main thread.
    pub surroundings: Option<Arc<Surroundings>>,
}

impl Job {
    /// Why a command that has ended has failed, for the user, with what it has written. `None` if it has not, or runs.
    pub fn failure(&self, child: &Child) -> Option<String> {
        let (exit, output) = (child.exit()?, child.stderr());
        let (said, answer) = match (output.rsplit_once('\n'), &self.service) {
            (Some((said, status)), Some(service)) => {
                (said, status.trim().parse::<u32>().ok().zip(Some(service)))
            }
            _ => (&output[..], None),
        };
        let said = match said.trim() {
            "" => "(it wrote nothing)",
            said => said,
        };
        let succeeded = matches!(exit, Exit::Status(status) if status.success());
        match answer {
            _ if !succeeded => Some(format!("{} ({exit}):\n{said}", self.name)),
            Some((status, service)) if status >= 400 => Some(format!(
                "{service} has answered with status {status}:\n{said}"
            )),
            _ => None,
        }
    }
}
