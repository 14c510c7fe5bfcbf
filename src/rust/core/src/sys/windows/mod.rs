//! Windows.

pub(crate) mod files;
pub(crate) mod handles;
pub(crate) mod security;
pub(crate) mod signals;
mod token;

use std::os::windows::io::RawHandle;

use windows_sys::Win32::System::Console::{
    CONSOLE_SCREEN_BUFFER_INFO, GetConsoleScreenBufferInfo, GetStdHandle, STD_OUTPUT_HANDLE,
};

pub(super) use token::{Token, lead, leads};

/// What a wait can look at: the handle of something that can be signalled.
pub type Waitable = RawHandle;

/// The name that this machine has given itself.
pub fn node_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "localhost".into())
}

/// Rows and columns of the console window to which this process writes. `None` if there is none.
pub fn terminal_size() -> Option<(u16, u16)> {
    let mut info = CONSOLE_SCREEN_BUFFER_INFO::default();
    // SAFETY: fills in a structure of ours; the handle is this process's own, or none, which is an error.
    let found = unsafe { GetConsoleScreenBufferInfo(GetStdHandle(STD_OUTPUT_HANDLE), &mut info) };
    let shown = info.srWindow;
    let size = |first: i16, last: i16| u16::try_from(last - first + 1).ok();
    (found != 0).then_some(())?;
    size(shown.Top, shown.Bottom).zip(size(shown.Left, shown.Right))
}
