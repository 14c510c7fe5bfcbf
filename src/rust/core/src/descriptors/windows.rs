//! Handles, of which there are always enough.

/// Does nothing here.
pub(crate) fn raise_limit() {}

/// Handles that are held for long. They are not counted here.
#[derive(Debug)]
pub(crate) struct Held;

impl Held {
    pub(crate) fn if_spare(_: usize) -> Option<Held> {
        Some(Held)
    }
}
