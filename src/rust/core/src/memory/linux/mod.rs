//! Segments by sealed memfds.
//!
//! A mapping with few changes, or none, is sent on without copying it: the same memfd goes out again, together with
//! a small one that holds the [`Changes`](changes::Changes). The kernel knows which pages of a mapping have changed
//! (`/proc/self/pagemap`, documented in the kernel's `pagemap.rst`).

mod changes;
mod mapping;
mod pages;
mod quota;
mod segment;

pub use mapping::Mapping;
pub use pages::{prefer_huge_pages, private_bytes};
pub use segment::{Draft, Segment};
