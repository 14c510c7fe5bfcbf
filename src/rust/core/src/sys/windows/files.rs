//! Files: reading and writing at a place, locks, and which file it is.

use std::fs::File;
use std::io;
use std::os::windows::fs::FileExt as _;
use std::os::windows::io::AsRawHandle;
use std::path::Path;

use windows_sys::Win32::Foundation::{ERROR_IO_PENDING, ERROR_LOCK_VIOLATION};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, GetFileInformationByHandle, LOCKFILE_EXCLUSIVE_LOCK,
    LOCKFILE_FAIL_IMMEDIATELY, LockFileEx, UnlockFileEx,
};
use windows_sys::Win32::System::IO::OVERLAPPED;

use super::handles::check;

/// Reading and writing at a place, as on other systems. Moves the place where the file is read in order, which nobody uses.
pub(crate) trait FileExt {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize>;
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
}

impl FileExt for File {
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.seek_read(bytes, at)
    }

    fn read_exact_at(&self, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.seek_read(bytes, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    bytes = &mut bytes[n..];
                    at += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_all_at(&self, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.seek_write(bytes, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    at += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The volume and the number of a file.
pub(crate) type FileId = (u64, u64);

/// Which file this is.
pub(crate) fn id_of(file: &File) -> io::Result<FileId> {
    // SAFETY: all zeros are one, too.
    let mut about: BY_HANDLE_FILE_INFORMATION = unsafe { std::mem::zeroed() };
    // SAFETY: the handle is open and the pointer valid.
    check(unsafe { GetFileInformationByHandle(file.as_raw_handle(), &raw mut about) })?;
    let number = u64::from(about.nFileIndexHigh) << 32 | u64::from(about.nFileIndexLow);
    Ok((about.dwVolumeSerialNumber.into(), number))
}

/// Which file is at this path.
pub(crate) fn id_at(path: &Path) -> io::Result<FileId> {
    id_of(&File::open(path)?)
}

/// The byte that is locked. Nobody else could read what is locked, so it is none that a file has.
fn locked_byte() -> OVERLAPPED {
    // SAFETY: all zeros are one, too.
    let mut place: OVERLAPPED = unsafe { std::mem::zeroed() };
    place.Anonymous.Anonymous.Offset = u32::MAX - 1;
    place.Anonymous.Anonymous.OffsetHigh = i32::MAX as u32;
    place
}

/// Locks a file for this process alone. False if another one has locked it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    let flags = LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY;
    let mut place = locked_byte();
    // SAFETY: the handle is open, and the call does not outlast this one: the file was opened for such calls.
    let locked = check(unsafe { LockFileEx(file.as_raw_handle(), flags, 0, 1, 0, &raw mut place) });
    match locked {
        Ok(()) => Ok(true),
        Err(e) => match e.raw_os_error().map(|code| code as u32) {
            Some(ERROR_LOCK_VIOLATION | ERROR_IO_PENDING) => Ok(false),
            _ => Err(e),
        },
    }
}

/// Undoes [`try_lock`].
pub(crate) fn unlock(file: &File) {
    let mut place = locked_byte();
    // SAFETY: as above.
    unsafe { UnlockFileEx(file.as_raw_handle(), 0, 1, 0, &raw mut place) };
}
