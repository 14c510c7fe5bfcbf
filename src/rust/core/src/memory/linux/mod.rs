//! Segments by sealed memfds.
//!
//! What has been mapped and sent on with few changes, or none, need not be copied: the same memfd
//! goes out again, together with a small one that holds the [`Changes`](changes::Changes). Which pages of a mapping
//! have changed the kernel knows (`/proc/self/pagemap`, see its documentation, `pagemap.rst`).

mod changes;
mod mapping;
mod pages;
mod quota;
mod segment;

pub use mapping::Mapping;
pub use pages::{prefer_huge_pages, private_bytes};
pub use segment::{Draft, Segment};
