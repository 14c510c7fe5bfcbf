//! The language between host and daemon: [`message`] says what is said,
//! [`frame`] how it is laid into a byte stream. Neither does I/O.

pub mod frame;
mod message;

pub use frame::{Frame, FrameError, FrameReader, Hole, Limits};
pub use message::{Control, Done, Kind, Nonce, Seq, Stream, ToDaemon, ToHost, VERSION};
