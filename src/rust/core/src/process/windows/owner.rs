//! Which process something belongs to: here, nothing forks.

/// The process that has made it.
#[derive(Clone, Copy, Debug)]
pub struct Owner;

impl Owner {
    /// This process.
    pub fn this() -> Owner {
        Owner
    }

    /// False: there are no forks.
    pub fn has_forked(self) -> bool {
        false
    }
}
