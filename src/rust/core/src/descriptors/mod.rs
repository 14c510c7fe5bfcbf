//! How many descriptors this process may have, and how many of them are ours.
//!
//! A host has some five for each daemon on its machine, and more for large vectors on their way. Many
//! systems give a process 1024 at first (the soft limit), and as many more as it asks for (up to the
//! hard one). So a host asks, and:
//!
//! - What it starts gets the limit that the user has set. Programs may rely on it: `select()` takes no
//!   descriptor from 1024 on, and some close all numbers that there could be.
//! - So may the language runtime in this process: what is ours for long is moved beyond those numbers,
//!   see `out_of_the_way`.
//!
//! Windows limits a process to 2^24 handles, which no host comes near.

#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(windows, path = "windows.rs")]
mod platform;

pub(crate) use platform::*;
