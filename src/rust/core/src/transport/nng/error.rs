//! NNG's errors as the system's.

use std::io;

/// NNG's error in the words of the system.
pub(super) fn io_error(e: nng::Error) -> io::Error {
    use io::ErrorKind as Kind;
    let kind = match e {
        nng::Error::AddressInUse => Kind::AddrInUse,
        nng::Error::AddressInvalid => Kind::AddrNotAvailable,
        nng::Error::ConnectionRefused => Kind::ConnectionRefused,
        nng::Error::ConnectionReset | nng::Error::ConnectionShutdown | nng::Error::Closed => {
            Kind::ConnectionReset
        }
        nng::Error::PermissionDenied => Kind::PermissionDenied,
        nng::Error::TimedOut => Kind::TimedOut,
        nng::Error::OutOfMemory => Kind::OutOfMemory,
        _ => Kind::Other,
    };
    let text = match e {
        nng::Error::AddressInvalid => {
            "no such address: the host has none, or it is not this machine's".into()
        }
        nng::Error::ConnectionRefused => "connection refused: nobody listens there".into(),
        nng::Error::AddressInUse => "the port is in use already".into(),
        nng::Error::OutOfFiles => "too many files are open".into(),
        nng::Error::DestUnreachable => "the host is unreachable".into(),
        nng::Error::TimedOut => "timed out".into(),
        nng::Error::EntryNotFound => "nobody listens at this path".into(),
        other => other.to_string().to_lowercase(),
    };
    io::Error::new(kind, text)
}
