//! Events, and waiting for handles.

use std::io;
use std::os::windows::io::{AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle, RawHandle};
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{WAIT_FAILED, WAIT_OBJECT_0};
use windows_sys::Win32::System::Threading::{
    CreateEventW, INFINITE, ResetEvent, SetEvent, WaitForMultipleObjects,
};

/// Windows waits for no more than this many handles at once.
pub(crate) const MOST: usize = 64;

/// Something that is signalled from [`set`](Event::set) to [`reset`](Event::reset).
#[derive(Debug)]
pub(crate) struct Event(OwnedHandle);

impl Event {
    pub(crate) fn new() -> io::Result<Event> {
        // SAFETY: null pointers stand for what is usual, and for no name.
        let handle = unsafe { CreateEventW(std::ptr::null(), 1, 0, std::ptr::null()) };
        owned(handle).map(Event)
    }

    pub(crate) fn set(&self) {
        // SAFETY: the handle is open. It cannot fail for an event.
        unsafe { SetEvent(self.0.as_raw_handle()) };
    }

    pub(crate) fn reset(&self) {
        // SAFETY: as above.
        unsafe { ResetEvent(self.0.as_raw_handle()) };
    }

    pub(crate) fn raw(&self) -> RawHandle {
        self.0.as_raw_handle()
    }

    pub(crate) fn borrow(&self) -> BorrowedHandle<'_> {
        use std::os::windows::io::AsHandle;
        self.0.as_handle()
    }
}

/// A handle that a call has returned; none stands for an error.
pub(crate) fn owned(handle: RawHandle) -> io::Result<OwnedHandle> {
    use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
    if handle.is_null() || handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new, and nobody else's.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// A call that says by 0 that it has failed.
pub(crate) fn check(done: i32) -> io::Result<()> {
    match done {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits until one of these is signalled, [`MOST`] at most, or the time is over. Returns the index of the first one that is.
///
/// # Errors
/// One of them is no handle that can be waited for.
pub(crate) fn wait_any(
    handles: &[RawHandle],
    timeout: Option<Duration>,
) -> io::Result<Option<usize>> {
    let end = timeout.and_then(|t| Instant::now().checked_add(t));
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        // Rounded up, so that the time is over when it returns; a longer time than this call can wait is waited in parts.
        let millis = left.map_or(INFINITE, |left| {
            let millis = left.as_nanos().div_ceil(1_000_000);
            u32::try_from(millis).map_or(INFINITE - 1, |m| m.min(INFINITE - 1))
        });
        // SAFETY: the array is as long as it says, and the caller's handles stay open meanwhile.
        let waited =
            unsafe { WaitForMultipleObjects(handles.len() as u32, handles.as_ptr(), 0, millis) };
        if waited == WAIT_FAILED {
            return Err(io::Error::last_os_error());
        }
        let index = (waited - WAIT_OBJECT_0) as usize;
        if index < handles.len() {
            return Ok(Some(index));
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(None);
        }
    }
}
