//! When a daemon leaves by itself, and why it has left.

use std::time::{Duration, Instant};

use super::settings::Settings;

/// Why a daemon has ended: the value of `daemon()`.
#[derive(Clone, Copy)]
pub(super) enum End {
    Lost = 0,
    Idle = 1,
    Wall = 2,
    MaxTasks = 3,
    /// The user has pressed Ctrl-C; R is told when Rust is done.
    Interrupted = -1,
}

/// When a daemon leaves by itself. It looks at the limits between tasks only.
pub(super) struct Limits {
    /// Tasks that have been evaluated.
    pub tasks: u64,
    /// Whether `timerstart` tasks have been evaluated, so that the two timers count.
    timers_run: bool,
    /// The longest time without a task.
    idle: Option<Duration>,
    /// When the daemon ends.
    pub wall: Option<Instant>,
    /// Whether the host has told this daemon to end, also if it should outlive the host.
    pub told_to_end: bool,
}

impl Limits {
    pub(super) fn new(settings: &Settings) -> Limits {
        let mut limits = Limits {
            tasks: 0,
            timers_run: false,
            idle: None,
            wall: None,
            told_to_end: false,
        };
        limits.start_timers(settings);
        limits
    }

    /// Starts the timers if enough tasks have been evaluated.
    pub(super) fn start_timers(&mut self, settings: &Settings) {
        if !self.timers_run && self.tasks >= settings.timerstart {
            self.timers_run = true;
            self.idle = settings.idletime;
            self.wall = settings
                .walltime
                .and_then(|t| Instant::now().checked_add(t));
        }
    }

    /// Until when to wait for a task.
    pub(super) fn until(&self) -> Option<Instant> {
        let idle = self.idle.and_then(|t| Instant::now().checked_add(t));
        [idle, self.wall].into_iter().flatten().min()
    }

    /// Whether `walltime` is over.
    pub(super) fn wall_is_over(&self) -> bool {
        self.wall.is_some_and(|t| Instant::now() >= t)
    }
}
