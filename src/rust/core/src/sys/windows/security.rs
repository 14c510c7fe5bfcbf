//! Who may connect to a pipe, and whose it is.

use std::ffi::c_void;
use std::io;
use std::os::windows::io::{AsRawHandle, OwnedHandle};

use windows_sys::Win32::Foundation::{ERROR_SUCCESS, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, GetSecurityInfo,
    SDDL_REVISION_1, SE_KERNEL_OBJECT,
};
use windows_sys::Win32::Security::{
    EqualSid, GetTokenInformation, OBJECT_SECURITY_INFORMATION, OWNER_SECURITY_INFORMATION,
    PSECURITY_DESCRIPTOR, PSID, SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER, TokenUser,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};

use super::handles::{check, owned};

/// The user of this process, as its token has it.
struct User(Vec<u64>);

impl User {
    fn this() -> io::Result<User> {
        let mut token = std::ptr::null_mut();
        // SAFETY: the pointer is valid. The handle of this process need not be closed.
        check(unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) })?;
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
pub(crate) struct OnlyUs {
    descriptor: Local,
}

// SAFETY: nobody writes to it, and any thread may free it.
unsafe impl Send for OnlyUs {}
// SAFETY: as above.
unsafe impl Sync for OnlyUs {}

impl OnlyUs {
    pub(crate) fn new() -> io::Result<OnlyUs> {
        let user = User::this()?;
        let mut text = std::ptr::null_mut();
        // SAFETY: the user's id is valid, and so is the pointer.
        check(unsafe { ConvertSidToStringSidW(user.sid(), &raw mut text) })?;
        let text = Local(text.cast());
        // SAFETY: the system has written it.
        let sid = unsafe { string(text.0.cast()) };
        // This user owns it, which `check_owner` looks for: by default, the owner of what an administrator makes is
        // their group. Protected from what it would inherit; all access for this user.
        OnlyUs::by(&format!("O:{sid}D:P(A;;GA;;;{sid})"))
    }

    /// By rules in the system's own language for these.
    pub(crate) fn by(rules: &str) -> io::Result<OnlyUs> {
        let rules: Vec<u16> = rules.encode_utf16().chain([0]).collect();
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
    pub(crate) fn attributes(&self) -> SECURITY_ATTRIBUTES {
        SECURITY_ATTRIBUTES {
            nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: self.descriptor.0,
            bInheritHandle: 0,
        }
    }
}

/// A string that the system has written.
///
/// # Safety
/// It ends in 0.
unsafe fn string(mut at: *const u16) -> String {
    let mut units = Vec::new();
    // SAFETY: the caller's.
    while let unit @ 1.. = unsafe { *at } {
        units.push(unit);
        at = at.wrapping_add(1);
    }
    String::from_utf16_lossy(&units)
}

/// What the system keeps of whose a pipe is.
fn descriptor_of(
    pipe: &OwnedHandle,
    what: OBJECT_SECURITY_INFORMATION,
) -> io::Result<(PSID, Local)> {
    let mut owner: PSID = std::ptr::null_mut();
    let mut descriptor: PSECURITY_DESCRIPTOR = std::ptr::null_mut();
    // SAFETY: the handle is open. The pointers are valid, or null for what is not asked.
    let code = unsafe {
        GetSecurityInfo(
            pipe.as_raw_handle(),
            SE_KERNEL_OBJECT,
            what,
            &raw mut owner,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            &raw mut descriptor,
        )
    };
    match code {
        ERROR_SUCCESS => Ok((owner, Local(descriptor))),
        code => Err(io::Error::from_raw_os_error(code as i32)),
    }
}

/// Refuses a pipe of another user: anybody may make one of a name that this user's host has not made yet. The pipe
/// itself tells its owner, as only this user can make it theirs. The process at its other end could be gone, and its id
/// another's.
pub(crate) fn check_owner(pipe: &OwnedHandle) -> io::Result<()> {
    let (owner, _descriptor) = descriptor_of(pipe, OWNER_SECURITY_INFORMATION)?;
    let ours = User::this()?;
    // SAFETY: both are valid for as long as what holds them; an owner that is not there is null.
    if !owner.is_null() && unsafe { EqualSid(owner, ours.sid()) } != 0 {
        return Ok(());
    }
    let text = "the pipe belongs to another user";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// Who owns a pipe, and who may use it, in the language of [`OnlyUs::by`].
#[cfg(test)]
pub(crate) fn rules_of(pipe: &OwnedHandle) -> io::Result<String> {
    use windows_sys::Win32::Security::Authorization::ConvertSecurityDescriptorToStringSecurityDescriptorW;
    use windows_sys::Win32::Security::DACL_SECURITY_INFORMATION;
    let what = OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION;
    let (_, descriptor) = descriptor_of(pipe, what)?;
    let mut text = std::ptr::null_mut();
    // SAFETY: the descriptor is valid, and so is the pointer.
    check(unsafe {
        ConvertSecurityDescriptorToStringSecurityDescriptorW(
            descriptor.0,
            SDDL_REVISION_1,
            what,
            &raw mut text,
            std::ptr::null_mut(),
        )
    })?;
    let text = Local(text.cast());
    // SAFETY: the system has written it.
    Ok(unsafe { string(text.0.cast()) })
}
