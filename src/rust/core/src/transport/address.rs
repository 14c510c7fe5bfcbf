//! URLs at which a host listens and to which a daemon dials.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A parsed URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `abstract://name`: a Unix socket in Linux's abstract name space.
    Abstract(String),
    /// `ipc://path`: a Unix socket in the file system.
    Ipc(PathBuf),
    /// `tcp:// ws:// tls+tcp:// wss://`, whole as given.
    Network(String),
}

/// Why a string is not a URL that can be used here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    #[error(
        "'{0}' is not a valid URL: it should start with abstract://, ipc://, tcp://, ws://, tls+tcp:// or wss://"
    )]
    Scheme(String),
    #[error("'{0}' is not a valid URL: nothing follows the scheme")]
    Empty(String),
    #[error("'{0}' is too long for a socket name")]
    TooLong(String),
}

/// The longest name that fits into a `sockaddr_un` everywhere.
const LONGEST: usize = 100;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(url: &str) -> Result<Address, AddressError> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(AddressError::Scheme(url.into()));
        };
        let local = match scheme {
            "abstract" | "ipc" => true,
            "tcp" | "ws" | "tls+tcp" | "wss" => false,
            _ => return Err(AddressError::Scheme(url.into())),
        };
        if rest.is_empty() {
            return Err(AddressError::Empty(url.into()));
        }
        if local && rest.len() > LONGEST {
            return Err(AddressError::TooLong(url.into()));
        }
        Ok(match scheme {
            "abstract" => Address::Abstract(rest.into()),
            "ipc" => Address::Ipc(rest.into()),
            _ => Address::Network(url.into()),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Abstract(name) => write!(f, "abstract://{name}"),
            Address::Ipc(path) => write!(f, "ipc://{}", path.display()),
            Address::Network(url) => f.write_str(url),
        }
    }
}

/// A fresh URL on this machine that nobody can guess: an abstract name on
/// Linux, a socket in the temporary directory elsewhere.
pub fn local_url() -> String {
    let token = crate::token();
    if cfg!(target_os = "linux") {
        format!("abstract://{token}")
    } else {
        let path = std::env::temp_dir().join(token);
        format!("ipc://{}", path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_parse_and_print_back() {
        for url in ["abstract://a1", "ipc:///tmp/x", "tcp://h:1", "wss://h:1/p"] {
            assert_eq!(url.parse::<Address>().unwrap().to_string(), url);
        }
    }

    #[test]
    fn what_is_not_a_url_is_told_so() {
        let bad = |url: &str| url.parse::<Address>().unwrap_err().to_string();
        assert!(bad("localhost:5555").contains("should start with"));
        assert!(bad("http://x").contains("should start with"));
        assert!(bad("ipc://").contains("nothing follows"));
        assert!(bad(&format!("ipc://{}", "x".repeat(200))).contains("too long"));
    }

    #[test]
    fn local_urls_differ() {
        assert_ne!(local_url(), local_url());
    }
}
