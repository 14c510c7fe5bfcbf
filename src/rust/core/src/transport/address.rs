//! URLs at which a host listens and to which a daemon dials.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A parsed URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `abstract://name`: a Unix socket in Linux's abstract name space, or a named pipe on Windows.
    Abstract(String),
    /// `ipc://path`: a Unix socket in the file system, or a named pipe on Windows.
    Ipc(PathBuf),
    /// A URL across the network.
    Network(NetworkUrl),
}

/// `tcp:// ws:// tls+tcp:// wss://`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkUrl {
    /// What comes before `://`.
    pub scheme: Scheme,
    /// A name or an address; of IPv6, without its brackets. Empty: any.
    pub host: String,
    /// 0: any that is free.
    pub port: u16,
    /// From its slash on; empty if there is none, as always with TCP.
    pub path: String,
}

/// How a connection across the network is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `tcp`
    Tcp,
    /// `tls+tcp`
    TlsTcp,
    /// `ws`: WebSocket
    Ws,
    /// `wss`: WebSocket over TLS
    Wss,
}

impl Scheme {
    fn from_name(name: &str) -> Option<Scheme> {
        Some(match name {
            "tcp" => Scheme::Tcp,
            "tls+tcp" => Scheme::TlsTcp,
            "ws" => Scheme::Ws,
            "wss" => Scheme::Wss,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Scheme::Tcp => "tcp",
            Scheme::TlsTcp => "tls+tcp",
            Scheme::Ws => "ws",
            Scheme::Wss => "wss",
        }
    }

    /// Whether URLs have a path, so that several can share a port.
    pub fn has_path(self) -> bool {
        matches!(self, Scheme::Ws | Scheme::Wss)
    }

    /// Whether TLS is spoken.
    pub fn is_secure(self) -> bool {
        matches!(self, Scheme::TlsTcp | Scheme::Wss)
    }

    /// The port that a URL means which names none.
    fn default_port(self) -> Option<u16> {
        match self {
            Scheme::Ws => Some(80),
            Scheme::Wss => Some(443),
            Scheme::Tcp | Scheme::TlsTcp => None,
        }
    }
}

/// Why a string is not a URL that can be used here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// No scheme that is known begins this URL.
    #[error(
        "'{0}' is not a valid URL: it should start with abstract://, ipc://, tcp://, ws://, tls+tcp:// or wss://"
    )]
    Scheme(String),
    /// Nothing follows the scheme of this URL.
    #[error("'{0}' is not a valid URL: nothing follows the scheme")]
    Empty(String),
    /// This name does not fit into the address of a Unix socket.
    #[error("'{0}' is too long for a socket name")]
    TooLong(String),
    /// This URL, of this scheme, names no port.
    #[error("'{0}' is not a valid URL: a port should follow the host, as in {1}://host:5555")]
    NoPort(String, &'static str),
    /// The port of this URL is no number of 16 bits.
    #[error("'{0}' is not a valid URL: its port should be a number from 0 to 65535")]
    BadPort(String),
    /// This URL, of this scheme, has an IPv6 address without brackets.
    #[error(
        "'{0}' is not a valid URL: an IPv6 address should be in brackets, as in {1}://[::1]:5555"
    )]
    Brackets(String, &'static str),
    /// This URL has a path, though its scheme has none.
    #[error("'{0}' is not a valid URL: {1}:// has no path")]
    Path(String, &'static str),
    /// This URL has a character that URLs cannot have.
    #[error("'{0}' is not a valid URL: it has a character that cannot be in one")]
    Character(String),
    /// From the port of this URL on, there are not as many ports as this.
    #[error("'{0}' cannot be extended to {1} consecutive ports: they end at 65535")]
    TooManyPorts(String, usize),
}

/// The longest name that fits into a `sockaddr_un` everywhere.
const LONGEST: usize = 100;
/// NNG's own limit for a URL, and more than any should have.
const LONGEST_URL: usize = 127;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(url: &str) -> Result<Address, AddressError> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(AddressError::Scheme(url.into()));
        };
        let network = Scheme::from_name(scheme);
        if network.is_none() && !matches!(scheme, "abstract" | "ipc") {
            return Err(AddressError::Scheme(url.into()));
        }
        if rest.is_empty() {
            return Err(AddressError::Empty(url.into()));
        }
        if let Some(scheme) = network {
            return NetworkUrl::parse(url, scheme, rest).map(Address::Network);
        }
        if rest.len() > LONGEST {
            return Err(AddressError::TooLong(url.into()));
        }
        Ok(match scheme {
            "abstract" => Address::Abstract(rest.into()),
            _ => Address::Ipc(rest.into()),
        })
    }
}

impl NetworkUrl {
    fn parse(url: &str, scheme: Scheme, rest: &str) -> Result<NetworkUrl, AddressError> {
        // What has a meaning in a URL, or none anywhere, is not passed on.
        let odd = |c: char| c.is_whitespace() || c.is_control() || "\"'`\\?#@;%<>^|{}".contains(c);
        if rest.contains(odd) {
            return Err(AddressError::Character(url.into()));
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if !path.is_empty() && !scheme.has_path() {
            return Err(AddressError::Path(url.into(), scheme.name()));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner
                    .split_once(']')
                    .filter(|(host, _)| host.parse::<std::net::Ipv6Addr>().is_ok())
                    .ok_or_else(|| AddressError::Brackets(url.into(), scheme.name()))?;
                (host, after.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err(AddressError::Brackets(url.into(), scheme.name()));
                }
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            // Not by its own parser alone, which takes a sign.
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
                .parse()
                .map_err(|_| AddressError::BadPort(url.into()))?,
            Some(_) => return Err(AddressError::BadPort(url.into())),
            None => scheme
                .default_port()
                .ok_or_else(|| AddressError::NoPort(url.into(), scheme.name()))?,
        };
        let parsed = NetworkUrl {
            scheme,
            host: if host == "*" { "" } else { host }.into(),
            port,
            path: path.into(),
        };
        // As NNG is given it: with the port, which may be the default one of the scheme.
        if url.len().max(parsed.to_string().len()) > LONGEST_URL {
            return Err(AddressError::TooLong(url.into()));
        }
        Ok(parsed)
    }
}

impl fmt::Display for NetworkUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') {
            ("[", "]")
        } else {
            ("", "")
        };
        let host = if self.host.is_empty() {
            "*"
        } else {
            &self.host
        };
        let scheme = self.scheme.name();
        write!(
            f,
            "{scheme}://{open}{host}{close}:{}{}",
            self.port, self.path
        )
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Abstract(name) => write!(f, "abstract://{name}"),
            Address::Ipc(path) => write!(f, "ipc://{}", path.display()),
            Address::Network(url) => url.fmt(f),
        }
    }
}

impl Address {
    /// One URL made into `n`: by a number in the path; with TCP, which has none, by
    /// consecutive ports. Port 0 stays, as it is another one each time.
    pub fn extend(&self, n: usize) -> Result<Vec<Address>, AddressError> {
        match self {
            Address::Network(url) if !url.scheme.has_path() => (0..n)
                .map(|i| {
                    let mut next = url.clone();
                    if url.port > 0 {
                        next.port = u16::try_from(url.port as usize + i)
                            .map_err(|_| AddressError::TooManyPorts(self.to_string(), n))?;
                    }
                    Ok(Address::Network(next))
                })
                .collect(),
            _ => Ok((1..=n).map(|i| self.with_path(&i.to_string())).collect()),
        }
    }

    /// With one more part at the end of the path; TCP, which has no path, as it is.
    pub fn with_path(&self, part: &str) -> Address {
        match self {
            Address::Abstract(name) => Address::Abstract(format!("{name}/{part}")),
            // The path is that of a file, in a directory that is there.
            Address::Ipc(path) => Address::Ipc(format!("{}-{part}", path.display()).into()),
            Address::Network(url) if url.scheme.has_path() => {
                let path = format!("{}/{part}", url.path.trim_end_matches('/'));
                Address::Network(NetworkUrl {
                    path,
                    ..url.clone()
                })
            }
            Address::Network(_) => self.clone(),
        }
    }

    /// Whether [`with_path`](Self::with_path) makes a difference.
    pub fn has_path(&self) -> bool {
        !matches!(self, Address::Network(url) if !url.scheme.has_path())
    }

    /// Whether TLS is spoken there.
    pub fn is_secure(&self) -> bool {
        matches!(self, Address::Network(url) if url.scheme.is_secure())
    }
}

/// A fresh URL on this machine that nobody can guess: an abstract name on
/// Linux and Windows, a socket in the temporary directory elsewhere.
pub fn local_url() -> String {
    let token = crate::sys::token();
    if cfg!(any(target_os = "linux", windows)) {
        format!("abstract://{token}")
    } else {
        let path = std::env::temp_dir().join(token);
        format!("ipc://{}", path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Address {
        url.parse().unwrap()
    }

    #[test]
    fn urls_parse_and_print_back() {
        for url in [
            "abstract://a1",
            "ipc:///tmp/x",
            "tcp://h:1",
            "wss://h:1/p/q",
            "tls+tcp://[::ffff:a6f:50d]:5555",
            "ws://127.0.0.1:0",
            "tcp://*:0",
        ] {
            assert_eq!(parsed(url).to_string(), url);
        }
        assert_eq!(parsed("ws://h/p").to_string(), "ws://h:80/p");
        assert_eq!(parsed("tcp://:0").to_string(), "tcp://*:0");
    }

    #[test]
    fn what_is_not_a_url_is_told_so() {
        let bad = |url: &str| url.parse::<Address>().unwrap_err().to_string();
        assert!(bad("localhost:5555").contains("should start with"));
        assert!(bad("http://x").contains("should start with"));
        assert!(bad("ipc://").contains("nothing follows"));
        assert!(bad(&format!("ipc://{}", "x".repeat(200))).contains("too long"));
        assert!(bad("tcp://host").contains("port should follow the host, as in tcp://host:5555"));
        assert!(bad("tcp://host:").contains("from 0 to 65535"));
        assert!(bad("tcp://host:+1").contains("from 0 to 65535"));
        assert!(bad("tcp://host:65536").contains("from 0 to 65535"));
        assert!(bad("tcp://::1:5555").contains("in brackets, as in tcp://[::1]:5555"));
        assert!(bad("tls+tcp://[::1:5555").contains("in brackets"));
        assert!(bad("tcp://[::1]").contains("port should follow"));
        assert!(bad("tcp://host:1/path").contains("tcp:// has no path"));
        assert!(bad("ws://me@host:1/path").contains("character"));
        assert!(bad("ws://host:1/a b").contains("character"));
        // Too long once the default port stands in it, as NNG is given it.
        assert!(bad(&format!("ws://{}", "h".repeat(121))).contains("too long"));
    }

    #[test]
    fn one_url_is_extended_to_several() {
        let extended = |url: &str, n| -> Vec<String> {
            let all = parsed(url).extend(n).unwrap();
            all.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            extended("tcp://h:5555", 2),
            ["tcp://h:5555", "tcp://h:5556"]
        );
        assert_eq!(extended("tcp://h:0", 2), ["tcp://h:0", "tcp://h:0"]);
        assert_eq!(extended("ws://h:1", 2), ["ws://h:1/1", "ws://h:1/2"]);
        assert_eq!(extended("wss://h:1/a/", 1), ["wss://h:1/a/1"]);
        assert_eq!(extended("abstract://a", 1), ["abstract://a/1"]);
        assert_eq!(extended("ipc:///tmp/a", 1), ["ipc:///tmp/a-1"]);
        let end = parsed("tcp://h:65535").extend(2);
        assert!(end.unwrap_err().to_string().contains("end at 65535"));
    }

    #[test]
    fn local_urls_differ() {
        assert_ne!(local_url(), local_url());
    }
}
