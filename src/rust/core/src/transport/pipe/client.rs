//! The daemon's end: one thread reads, and any thread writes.

use std::io;
use std::mem::MaybeUninit;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use windows_sys::Win32::Foundation::{
    ERROR_BROKEN_PIPE, ERROR_IO_PENDING, ERROR_PIPE_BUSY, ERROR_PIPE_NOT_CONNECTED, GENERIC_READ,
    GENERIC_WRITE,
};
use windows_sys::Win32::Storage::FileSystem::{
    CreateFileW, FILE_FLAG_OVERLAPPED, OPEN_EXISTING, ReadFile, SECURITY_IDENTIFICATION,
    SECURITY_SQOS_PRESENT, WriteFile,
};
use windows_sys::Win32::System::IO::{CancelIoEx, GetOverlappedResult, OVERLAPPED};
use windows_sys::Win32::System::Pipes::WaitNamedPipeW;

use super::{BUFFER, name};
use crate::sys::handles::{Event, check, owned, wait_any};
use crate::sys::security::check_owner;
use crate::transport::Address;

/// How long to wait for a host that has no instance of its pipe to spare. It makes the next one as soon as one has
/// connected, unless too many peers have connected and said nothing yet.
const BUSY: Duration = Duration::from_secs(10);

/// A pipe to a host.
#[derive(Debug)]
pub struct Client {
    pipe: OwnedHandle,
    reading: Mutex<Event>,
    writing: Mutex<Event>,
    stop: Event,
}

/// What a call on a pipe is given, until it is done.
struct Call<'a> {
    pipe: &'a OwnedHandle,
    overlapped: OVERLAPPED,
}

impl Client {
    /// Connects to a host of this user.
    ///
    /// # Errors
    /// Nobody listens there, or it is another user; all instances of the pipe were taken for [`BUSY`].
    pub fn connect(address: &Address) -> io::Result<Client> {
        let until = Instant::now() + BUSY;
        let name: Vec<u16> = format!("{}\0", name(address)?).encode_utf16().collect();
        let pipe = loop {
            // SAFETY: the name ends in 0; null pointers stand for what is usual. The host may learn who connects, and not
            // act in their name.
            let opened = owned(unsafe {
                CreateFileW(
                    name.as_ptr(),
                    GENERIC_READ | GENERIC_WRITE,
                    0,
                    std::ptr::null(),
                    OPEN_EXISTING,
                    FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION,
                    std::ptr::null_mut(),
                )
            });
            match opened {
                Err(e) if e.raw_os_error() == Some(ERROR_PIPE_BUSY as i32) => {
                    // Another peer may take the instance that this has waited for, and so on.
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    // 0 would stand for the time that the host has set.
                    let millis = (left.as_millis() as u32).max(1);
                    // SAFETY: the name ends in 0.
                    check(unsafe { WaitNamedPipeW(name.as_ptr(), millis) })?;
                }
                opened => break opened?,
            }
        };
        check_owner(&pipe)?;
        Ok(Client {
            pipe,
            reading: Mutex::new(Event::new()?),
            writing: Mutex::new(Event::new()?),
            stop: Event::new()?,
        })
    }

    #[cfg(test)]
    pub(super) fn pipe(&self) -> &OwnedHandle {
        &self.pipe
    }

    /// Reads once, for [`FrameReader::fill`](crate::protocol::FrameReader::fill). 0 at the end.
    ///
    /// # Errors
    /// Of the pipe; `ConnectionAborted` after [`stop`](Self::stop).
    pub fn read(&self, room: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let event = self.reading.lock();
        let mut call = Call::new(&self.pipe, &event);
        let len = u32::try_from(room.len()).unwrap_or(u32::MAX);
        // SAFETY: `done` does not return before the call is over, so it does not write to memory that is another's.
        let begun = check(unsafe {
            ReadFile(
                self.pipe.as_raw_handle(),
                room.as_mut_ptr().cast(),
                len,
                std::ptr::null_mut(),
                &raw mut call.overlapped,
            )
        });
        match call.done(begun, &event, &self.stop) {
            Err(e) if is_end(&e) => Ok(0),
            got => got,
        }
    }

    /// Sends all of a frame.
    ///
    /// # Errors
    /// The host is gone, or this end has been stopped. A part may have been sent, and the link is over.
    pub fn send_all(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let event = self.writing.lock();
        // One write for what is small: each costs the host a wake-up.
        if head.len() + body.len() <= BUFFER as usize {
            let mut whole = Vec::with_capacity(head.len() + body.len());
            whole.extend_from_slice(head);
            whole.extend_from_slice(body);
            return self.write(&whole, &event);
        }
        self.write(head, &event)?;
        self.write(body, &event)
    }

    fn write(&self, mut bytes: &[u8], event: &Event) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut call = Call::new(&self.pipe, event);
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            // SAFETY: as of `read`.
            let begun = check(unsafe {
                WriteFile(
                    self.pipe.as_raw_handle(),
                    bytes.as_ptr(),
                    len,
                    std::ptr::null_mut(),
                    &raw mut call.overlapped,
                )
            });
            match call.done(begun, event, &self.stop)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => bytes = &bytes[written..],
            }
        }
        Ok(())
    }

    /// Ends what reads and writes, now and later.
    pub fn stop(&self) {
        self.stop.set();
    }
}

fn is_end(e: &io::Error) -> bool {
    let code = e.raw_os_error().map(|code| code as u32);
    matches!(code, Some(ERROR_BROKEN_PIPE | ERROR_PIPE_NOT_CONNECTED))
}

impl<'a> Call<'a> {
    fn new(pipe: &'a OwnedHandle, event: &Event) -> Call<'a> {
        // SAFETY: all zeros are one, too.
        let mut overlapped: OVERLAPPED = unsafe { std::mem::zeroed() };
        overlapped.hEvent = event.raw();
        Call { pipe, overlapped }
    }

    /// Waits until the call is over. `stop` ends it.
    fn done(&mut self, begun: io::Result<()>, event: &Event, stop: &Event) -> io::Result<usize> {
        let mut stopped = false;
        match begun {
            Err(e) if e.raw_os_error() == Some(ERROR_IO_PENDING as i32) => {
                // An error of the wait, too, has the call cancelled: it must not go on without us.
                stopped = !matches!(wait_any(&[event.raw(), stop.raw()], None), Ok(Some(0)));
                if stopped {
                    // SAFETY: the call has begun on this handle.
                    unsafe { CancelIoEx(self.pipe.as_raw_handle(), &raw const self.overlapped) };
                }
            }
            Err(e) => return Err(e),
            Ok(()) => {}
        }
        let mut moved = 0;
        // SAFETY: all pointers are valid. With 1 it waits until the call is over.
        let over = check(unsafe {
            GetOverlappedResult(
                self.pipe.as_raw_handle(),
                &raw const self.overlapped,
                &raw mut moved,
                1,
            )
        });
        match over {
            Err(_) if stopped => Err(io::ErrorKind::ConnectionAborted.into()),
            Err(e) => Err(e),
            Ok(()) => Ok(moved as usize),
        }
    }
}
