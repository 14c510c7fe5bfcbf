//! How much of the stack is left: reading and writing nested objects takes some for each level.

use std::sync::OnceLock;

/// What remains for whatever is called at the deepest level, and for R to say that it is too deep.
const RESERVE: usize = 768 << 10;
/// R uses no more, whatever the system allows.
const MOST: usize = 16 << 20;

/// How many levels of `size` bytes each the stack still has room for.
pub(crate) fn levels(size: usize) -> usize {
    let here = 0u8;
    let here = std::ptr::from_ref(&here).addr();
    here.saturating_sub(end() + RESERVE) / size
}

/// The lowest address of the main thread's stack.
fn end() -> usize {
    static END: OnceLock<usize> = OnceLock::new();
    *END.get_or_init(|| {
        let (end, size) = bounds().unwrap_or_else(|| {
            // What any system has.
            let here = 0u8;
            let size = 1 << 20;
            (std::ptr::from_ref(&here).addr() - size, size)
        });
        end + size.saturating_sub(MOST)
    })
}

/// The lowest address and the size.
#[cfg(target_os = "linux")]
fn bounds() -> Option<(usize, usize)> {
    let mut attributes = std::mem::MaybeUninit::uninit();
    let (mut end, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: of this thread, into variables of ours; destroyed if it was made.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let found = libc::pthread_attr_getstack(attributes.as_ptr(), &mut end, &mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (found == 0).then_some((end.addr(), size))
    }
}

#[cfg(target_os = "macos")]
fn bounds() -> Option<(usize, usize)> {
    // SAFETY: of this thread.
    let (top, size) = unsafe {
        let this = libc::pthread_self();
        (
            libc::pthread_get_stackaddr_np(this).addr(),
            libc::pthread_get_stacksize_np(this),
        )
    };
    Some((top.checked_sub(size)?, size))
}

/// What is reserved; the system commits it page by page as it is used.
#[cfg(windows)]
fn bounds() -> Option<(usize, usize)> {
    #[link(name = "kernel32")]
    extern "system" {
        fn GetCurrentThreadStackLimits(low: *mut usize, high: *mut usize);
    }
    let (mut low, mut high) = (0, 0);
    // SAFETY: of this thread, into variables of ours.
    unsafe { GetCurrentThreadStackLimits(&raw mut low, &raw mut high) };
    Some((low, high.checked_sub(low)?))
}

#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
fn bounds() -> Option<(usize, usize)> {
    None
}
