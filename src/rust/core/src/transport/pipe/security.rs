//! Who may connect to a pipe, and whose it is.

use std::ffi::c_void;
use std::io;
use std::os::windows::io::{AsRawHandle, OwnedHandle, RawHandle};

use windows_sys::Win32::Foundation::LocalFree;
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::{
    EqualSid, GetTokenInformation, PSECURITY_DESCRIPTOR, PSID, SECURITY_ATTRIBUTES, TOKEN_QUERY,
    TOKEN_USER, TokenUser,
};
use windows_sys::Win32::System::Pipes::GetNamedPipeServerProcessId;
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, OpenProcess, OpenProcessToken, PROCESS_QUERY_LIMITED_INFORMATION,
};

use crate::sys::handles::{check, owned};

/// The user of a process, as its token has it.
struct User(Vec<u64>);

impl User {
    fn of(process: RawHandle) -> io::Result<User> {
        let mut token = std::ptr::null_mut();
        // SAFETY: the caller's handle is open, and the pointer valid.
        check(unsafe { OpenProcessToken(process, TOKEN_QUERY, &raw mut token) })?;
        let token = owned(token)?;
        let mut len = 0;
        // SAFETY: without room, the call tells how much it wants.
        unsafe {
            GetTokenInformation(
                token.as_raw_handle(),
                TokenUser,
                std::ptr::null_mut(),
                0,
                &raw mut len,
            )
        };
        // Of integers, as it begins with a pointer.
        let mut room = vec![0_u64; (len as usize).div_ceil(8)];
        // SAFETY: there is as much room as `len` says.
        check(unsafe {
            GetTokenInformation(
                token.as_raw_handle(),
                TokenUser,
                room.as_mut_ptr().cast(),
                len,
                &raw mut len,
            )
        })?;
        Ok(User(room))
    }

    fn this() -> io::Result<User> {
        // SAFETY: no pointers. What it returns need not be closed.
        User::of(unsafe { GetCurrentProcess() })
    }

    fn sid(&self) -> PSID {
        // SAFETY: it was written as one of these, and what it points to is in the same memory.
        unsafe { (*self.0.as_ptr().cast::<TOKEN_USER>()).User.Sid }
    }
}

/// Memory that the system has allocated, and wants back.
struct Local(*mut c_void);

impl Drop for Local {
    fn drop(&mut self) {
        // SAFETY: it is freed once, as the system says it is to be.
        unsafe { LocalFree(self.0) };
    }
}

/// Lets this user's processes in, and nobody else's.
pub(super) struct OnlyUs {
    descriptor: Local,
}

// SAFETY: nobody writes to it, and any thread may free it.
unsafe impl Send for OnlyUs {}
// SAFETY: as above.
unsafe impl Sync for OnlyUs {}

impl OnlyUs {
    pub(super) fn new() -> io::Result<OnlyUs> {
        let user = User::this()?;
        let mut text = std::ptr::null_mut();
        // SAFETY: the user's id is valid, and so is the pointer.
        check(unsafe { ConvertSidToStringSidW(user.sid(), &raw mut text) })?;
        let text = Local(text.cast());
        let mut sid = Vec::new();
        let mut at = text.0.cast::<u16>();
        // SAFETY: the system has written a string that ends in 0.
        while let unit @ 1.. = unsafe { *at } {
            sid.push(unit);
            at = at.wrapping_add(1);
        }
        let sid = String::from_utf16_lossy(&sid);
        // Protected from what it would inherit; all access for this user.
        let rules: Vec<u16> = format!("D:P(A;;GA;;;{sid})\0").encode_utf16().collect();
        let mut descriptor: PSECURITY_DESCRIPTOR = std::ptr::null_mut();
        // SAFETY: the string ends in 0, and the pointer is valid.
        check(unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                rules.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                std::ptr::null_mut(),
            )
        })?;
        Ok(OnlyUs {
            descriptor: Local(descriptor),
        })
    }

    /// To be used while this lives.
    pub(super) fn attributes(&self) -> SECURITY_ATTRIBUTES {
        SECURITY_ATTRIBUTES {
            nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: self.descriptor.0,
            bInheritHandle: 0,
        }
    }
}

/// Refuses a pipe of another user: anybody may make one of a name that this user's host has not made yet.
pub(super) fn check_server(pipe: &OwnedHandle) -> io::Result<()> {
    let mut pid = 0;
    // SAFETY: the handle is open, and the pointer valid.
    check(unsafe { GetNamedPipeServerProcessId(pipe.as_raw_handle(), &raw mut pid) })?;
    // SAFETY: no pointers.
    let process = owned(unsafe { OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid) })?;
    let (theirs, ours) = (User::of(process.as_raw_handle())?, User::this()?);
    // SAFETY: both are valid for as long as what holds them.
    if unsafe { EqualSid(theirs.sid(), ours.sid()) } != 0 {
        return Ok(());
    }
    let text = format!("the pipe belongs to another user (process {pid})");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}
