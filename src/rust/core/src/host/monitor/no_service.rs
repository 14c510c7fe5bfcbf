//! Systems on which sessions cannot be monitored yet.

use std::io;
use std::time::Duration;

use super::{Heard, Session};
use crate::sys::Attention;

fn unsupported() -> io::Error {
    let text = "sessions cannot be monitored on this system";
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Has no values here.
pub(super) enum Service {}

impl Service {
    pub(super) fn start() -> io::Result<Service> {
        Err(unsupported())
    }

    pub(super) fn stop(self) {
        match self {}
    }
}

/// Does nothing here.
pub(super) fn remove_stale(_: u32) {}

/// None here.
pub fn sessions() -> Vec<Session> {
    Vec::new()
}

/// Has no values here.
pub enum Monitor {}

impl Monitor {
    /// See `client`: not here.
    ///
    /// # Errors
    /// Always.
    pub fn attach(_: u32) -> io::Result<Monitor> {
        Err(unsupported())
    }

    /// See `client`: not here.
    ///
    /// # Errors
    /// None.
    pub fn next(&mut self, _: bool, _: Option<Duration>, _: impl Attention) -> io::Result<Heard> {
        match *self {}
    }

    /// See `client`: not here.
    ///
    /// # Errors
    /// None.
    pub fn when_ready(&self, _: impl FnOnce() + Send + 'static) -> io::Result<()> {
        match *self {}
    }
}
