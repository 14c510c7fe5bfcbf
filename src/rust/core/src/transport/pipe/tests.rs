use std::os::windows::io::AsRawHandle;

use tokio::net::windows::named_pipe::ServerOptions;
use windows_sys::Win32::Foundation::{GetHandleInformation, HANDLE_FLAG_INHERIT};

use super::*;
use crate::sys::io_thread;
use crate::sys::security::{OnlyUs, rules_of};
use crate::transport::local_url;

fn address() -> Address {
    local_url().parse().unwrap()
}

#[test]
fn only_this_user_may_use_a_pipe_and_no_program_that_is_started_inherits_it() {
    let _inside = io_thread::handle().enter();
    let address = address();
    let listener = Listener::bind(&address).unwrap();
    let client = Client::connect(&address).unwrap();
    let rules = rules_of(client.pipe()).unwrap();
    let (owner, rest) = rules.split_once("D:").unwrap();
    let user = owner.strip_prefix("O:").unwrap();
    assert!(user.starts_with("S-1-"), "{rules}");
    // One rule: all access for the owner.
    assert!(rest.starts_with("P(A;;"), "{rules}");
    assert_eq!(rest.matches('(').count(), 1, "{rules}");
    assert!(rest.ends_with(&format!(";;;{user})")), "{rules}");
    for handle in [
        listener.waiting().as_raw_handle(),
        client.pipe().as_raw_handle(),
    ] {
        let mut flags = 0;
        // SAFETY: the handle is open, and the pointer valid.
        assert_ne!(unsafe { GetHandleInformation(handle, &raw mut flags) }, 0);
        assert_eq!(flags & HANDLE_FLAG_INHERIT, 0);
    }
}

#[test]
fn a_pipe_of_somebody_else_is_refused() {
    let _inside = io_thread::handle().enter();
    let address = address();
    // As an administrators' process makes it that does not say who owns it.
    let theirs = OnlyUs::by("O:BAD:(A;;GA;;;WD)").unwrap();
    let mut attributes = theirs.attributes();
    // SAFETY: the attributes and what they point to are valid for the call.
    let _pipe = unsafe {
        ServerOptions::new()
            .create_with_security_attributes_raw(
                name(&address).unwrap(),
                (&raw mut attributes).cast(),
            )
            .unwrap()
    };
    let refused = Client::connect(&address).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    assert!(refused.to_string().contains("another user"), "{refused}");
}
