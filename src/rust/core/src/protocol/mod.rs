//! The language between host and daemon: [`message`] says what is said,
//! [`frame`] how it is laid into a byte stream, `websocket` how WebSocket wraps that. None does I/O.

pub mod frame;
mod message;
pub(crate) mod websocket;

pub use frame::{Flat, Frame, FrameError, FrameReader, Hole, Limits};
pub use message::{
    Control, Done, Kind, MOST_OF_AN_ERROR, Nonce, Seq, Stream, ToDaemon, ToHost, VERSION,
};
