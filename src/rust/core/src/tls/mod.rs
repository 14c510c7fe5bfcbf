//! TLS for links over the network: who the host is, and whom a daemon trusts.
//!
//! - [`identity`]: the host's side: certificate and private key.
//! - [`trust`]: the daemon's side: whom it believes to be its host.
//! - [`secret`]: what a daemon proves to the host without sending it.
//! - [`engine`]: rustls put to work under NNG's `tls+tcp` and `wss`.
//!
//! A host needs no configuration: [`Identity::single_use`] makes a certificate in
//! memory, and [`Identity::for_daemons`] is the text that its daemons are given.

pub(crate) mod cork;
pub mod engine;
pub mod identity;
pub mod secret;
pub mod trust;
mod x509;

#[cfg(test)]
mod tests;

pub use engine::Failure;
pub use identity::Identity;
pub use secret::Secret;
pub use trust::Trust;

use pem::Pem;

/// Why the certificates, keys or passwords given cannot be used.
///
/// Never holds any part of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read '{path}': {why}")]
    Read {
        /// The file, as it was named.
        path: String,
        /// The reason, in words for the user.
        why: String,
    },
    /// No certificate is in the text from this place.
    #[error("there is no certificate in {0}: a '-----BEGIN CERTIFICATE-----' block is expected")]
    NoCertificate(String),
    /// No private key is in the text from this place.
    #[error("there is no private key in {0}: a '-----BEGIN PRIVATE KEY-----' block is expected")]
    NoKey(String),
    /// Several private keys are in the text from this place.
    #[error("there is more than one private key in {0}")]
    ManyKeys(String),
    /// The text is not PEM, for this reason.
    #[error("not valid PEM text: {0}")]
    Pem(String),
    /// rustls cannot use a certificate, for this reason.
    #[error("a certificate cannot be read: {0}")]
    Certificate(String),
    /// The certificate is of this version of X.509, which is too old.
    #[error(
        "the certificate is of X.509 version {0}, which names no hosts: \
         one of version 3 with a 'subjectAltName' is needed"
    )]
    Version(u8),
    /// The certificate's time is over.
    #[error("the certificate has expired: it was valid until {until}")]
    Expired {
        /// Date and time (UTC).
        until: String,
    },
    /// The certificate's time has not begun.
    #[error("the certificate is not valid yet: it will be from {from}")]
    NotYet {
        /// Date and time (UTC).
        from: String,
    },
    /// Certificate and key are not a pair.
    #[error("the key does not belong to the certificate")]
    KeyMismatch,
    /// The key is encrypted and no password was given.
    #[error("the key is encrypted: give its password")]
    PasswordNeeded,
    /// The password does not decrypt the key.
    #[error("the key is encrypted and the password given does not open it")]
    PasswordWrong,
    /// The key is encrypted by this method, which is not supported.
    #[error(
        "the key is encrypted in a form that is not supported ({0}): \
         convert it with 'openssl pkcs8 -topk8 -v2 aes-256-cbc -in key.pem -out new.pem'"
    )]
    Encryption(String),
    /// The key is encrypted in OpenSSL's traditional form.
    #[error(
        "the key is encrypted in OpenSSL's traditional form ('Proc-Type: 4,ENCRYPTED'), which is \
         not supported: convert it with 'openssl pkcs8 -topk8 -in key.pem -out new.pem'"
    )]
    LegacyEncryption,
    /// The key is of a kind that is not supported.
    #[error(
        "this kind of key is not supported: it may be ECDSA (P-256 or P-384), \
         RSA (2048 to 4096 bits) or Ed25519"
    )]
    KeyKind,
    /// A certificate cannot be made for this name.
    #[error("'{0}' is neither a host name nor an IP address")]
    Name(String),
    /// The secret that comes with the certificate cannot be read.
    #[error("the secret given along with the certificate is damaged")]
    Secret,
    /// Anything else, as rustls or rcgen says it.
    #[error("TLS: {0}")]
    Other(String),
}

/// Records of this size, by rustls's reckoning, fit NNG's buffer of 16 KiB with what
/// encryption adds, 24 bytes at most: so none of them is sent in two parts.
const MAX_RECORD: usize = 16384 - 24;

/// Tags of the PEM blocks that daemons are given.
const CERTIFICATE: &str = "CERTIFICATE";
const SECRET: &str = "MIRAI SECRET";

/// The PEM blocks of `text`, whatever else stands around them.
fn pem_blocks(text: &str) -> Result<Vec<Pem>, TlsError> {
    pem::parse_many(text).map_err(|e| TlsError::Pem(e.to_string()))
}

fn read_file(path: &std::path::Path) -> Result<zeroize::Zeroizing<String>, TlsError> {
    let read = |why: String| TlsError::Read {
        path: path.display().to_string(),
        why,
    };
    let bytes = std::fs::read(path).map_err(|e| read(e.to_string()))?;
    String::from_utf8(bytes)
        .map(zeroize::Zeroizing::new)
        .map_err(|_| read("not a text file (PEM is expected)".into()))
}

/// How a message names the place that PEM text came from.
fn place(path: Option<&std::path::Path>) -> String {
    path.map_or_else(
        || "the text given".to_owned(),
        |p| format!("'{}'", p.display()),
    )
}

/// The cryptography of all our connections: ring, as it needs no tools beyond a C compiler.
fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::ring::default_provider())
}

/// A host as it stands in a URL: a name, or an IP address with or without brackets.
fn server_name(name: &str) -> Option<rustls::pki_types::ServerName<'static>> {
    let bare = name
        .strip_prefix('[')
        .and_then(|n| n.strip_suffix(']'))
        .unwrap_or(name);
    rustls::pki_types::ServerName::try_from(bare.to_owned()).ok()
}
