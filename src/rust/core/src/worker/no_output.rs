//! Systems on which the standard streams of a daemon stay as they are: what its tasks print is not kept.

use std::io;

/// See `output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    LastWords,
    /// What each task writes to stdout and stderr: not here.
    Tasks,
    /// Nothing: the streams stay as they are, and lines do not name their task.
    Shown,
}

/// The standard streams of this process while it serves a host.
#[derive(Debug)]
pub struct Output(());

impl Output {
    /// See `output`.
    ///
    /// # Errors
    /// Output of tasks is to be kept, which cannot be done here.
    pub fn can_be_kept(keep: Keep) -> io::Result<()> {
        match keep {
            Keep::LastWords | Keep::Shown => Ok(()),
            Keep::Tasks => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "what tasks print cannot be kept on this system",
            )),
        }
    }

    /// Changes nothing.
    ///
    /// # Errors
    /// As [`can_be_kept`](Self::can_be_kept).
    pub fn begin(keep: Keep) -> io::Result<Output> {
        Output::can_be_kept(keep).map(Output)
    }

    /// Nobody asks: no host opens pipes of another process here.
    pub(super) fn last_words(&self) -> [u32; 2] {
        [0, 0]
    }

    /// Does nothing here.
    pub fn task_begins(&self, _: u32) {}

    /// Nothing.
    pub fn take(&self) -> String {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tasks_print_is_refused_before_a_daemon_connects() {
        let refused = Output::can_be_kept(Keep::Tasks).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
        assert!(Output::begin(Keep::Tasks).is_err());
        assert!(Output::can_be_kept(Keep::LastWords).is_ok());
    }
}
