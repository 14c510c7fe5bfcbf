//! Files: reading and writing at a place, locks, and which file it is.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

pub(crate) use std::os::unix::fs::FileExt;

/// The device and the number of a file.
pub(crate) type FileId = (u64, u64);

fn id(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

/// Which file this is.
pub(crate) fn id_of(file: &File) -> io::Result<FileId> {
    Ok(id(&file.metadata()?))
}

/// Which file is at this path.
pub(crate) fn id_at(path: &Path) -> io::Result<FileId> {
    Ok(id(&path.metadata()?))
}

/// Locks a file for this process alone. False if another one has locked it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Undoes [`try_lock`].
pub(crate) fn unlock(file: &File) {
    let _ = flock(file, FlockOperation::Unlock);
}
