//! TLS as R's arguments describe it: how a host identifies itself, and what its daemons trust.

use mirai_core::host::Host;
use mirai_core::tls::{Identity, TlsError, Trust};
use mirai_core::transport::Address;

use crate::error::{Error, Result};

/// What the host presents at secure URLs: from `tls` if it is given (a file name, or a certificate chain and a
/// key), else made for these URLs. `None` if no URL is secure.
///
/// # Errors
/// `tls` is not valid, or a certificate cannot be made.
pub(crate) fn identity(
    addresses: &[Address],
    tls: Option<Vec<String>>,
    pass: Option<String>,
) -> Result<Option<Identity>> {
    let pass = pass.as_deref();
    let given = |e| Error::connect(format!("'tls' cannot be used: {e}"));
    match tls.as_deref() {
        Some([file]) if !file.contains("-----BEGIN") => Identity::from_file(file.as_ref(), pass)
            .map(Some)
            .map_err(given),
        Some([both]) => Identity::from_pem(both, "", pass).map(Some).map_err(given),
        Some([chain, key, ..]) => Identity::from_pem(chain, key, pass)
            .map(Some)
            .map_err(given),
        _ if addresses.iter().any(Address::is_secure) => Host::single_use_identity(addresses)
            .map(Some)
            .map_err(|e| Error::connect(format!("a certificate cannot be made: {e}"))),
        _ => Ok(None),
    }
}

/// What a daemon recognises its host by. `text` holds certificates, or is the name of a file with them.
///
/// # Errors
/// There is no certificate that can be used.
pub(crate) fn trust(text: &str) -> std::result::Result<Trust, TlsError> {
    if text.contains("-----BEGIN") {
        Trust::from_pem(text)
    } else {
        Trust::from_file(text.as_ref())
    }
}
