//! Systems on which a daemon does not keep what it has written last.

/// Has no values here.
#[derive(Debug)]
pub(crate) enum LastWords {}

impl LastWords {
    /// See `words`: not here.
    pub(crate) fn of(_: u32, _: [u32; 2]) -> Option<LastWords> {
        None
    }

    pub(super) fn read(self) -> String {
        match self {}
    }
}
