//! What a daemon was given by its host along with the certificate, and proves
//! to know without sending it.

use std::fmt;
use std::sync::Arc;

use ring::hmac;
use zeroize::Zeroizing;

use super::{SECRET, TlsError};

/// Length of a [`Secret`].
pub const SECRET_BYTES: usize = 32;

/// A secret shared by a host and its daemons.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<[u8; SECRET_BYTES]>>);

impl Secret {
    pub(super) fn random() -> Self {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        crate::sys::random(&mut *bytes);
        Secret(Arc::new(bytes))
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, TlsError> {
        let bytes = <[u8; SECRET_BYTES]>::try_from(bytes).map_err(|_| TlsError::Secret)?;
        Ok(Secret(Arc::new(Zeroizing::new(bytes))))
    }

    pub(super) fn to_pem(&self) -> Zeroizing<String> {
        let block = pem::Pem::new(SECRET, self.0.as_slice());
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        Zeroizing::new(pem::encode_config(&block, config))
    }

    /// HMAC-SHA-256 over `role` and `nonces`: only who knows the secret can make it.
    ///
    /// Each side has a role of its own, so that what one side sends cannot be
    /// sent back to it, and contributes a nonce, so that no proof can be used twice.
    pub fn proof(&self, role: &[u8], nonces: &[&[u8]]) -> [u8; 32] {
        let tag = hmac::sign(&self.key(), &message(role, nonces));
        tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Whether `proof` is the one for `role` and `nonces`; takes the same time for any.
    pub fn verify(&self, role: &[u8], nonces: &[&[u8]], proof: &[u8]) -> bool {
        hmac::verify(&self.key(), &message(role, nonces), proof).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.0.as_slice())
    }
}

/// The parts, each behind its length: no two lists of parts give the same bytes.
fn message(role: &[u8], nonces: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in std::iter::once(&role).chain(nonces) {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_for_its_role_and_nonces_and_secret_only() {
        let secret = Secret::random();
        let proof = secret.proof(b"daemon", &[b"a", b"b"]);
        assert!(secret.verify(b"daemon", &[b"a", b"b"], &proof));
        assert!(!secret.verify(b"host", &[b"a", b"b"], &proof));
        assert!(!secret.verify(b"daemon", &[b"b", b"a"], &proof));
        assert!(!secret.verify(b"daemon", &[b"ab"], &proof));
        assert!(!secret.verify(b"daemona", &[b"b"], &proof));
        assert!(!secret.verify(b"daemon", &[b"a", b"b"], &proof[..31]));
        assert!(!secret.verify(b"daemon", &[b"a", b"b"], &[]));
        assert!(!Secret::random().verify(b"daemon", &[b"a", b"b"], &proof));
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::from_bytes(&[0xab; 32]).unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    #[test]
    fn a_secret_goes_through_pem_and_no_other_length_does() {
        let secret = Secret::random();
        let text = secret.to_pem();
        let block = pem::parse(text.as_str()).unwrap();
        let again = Secret::from_bytes(block.contents()).unwrap();
        assert_eq!(*again.0, *secret.0);
        assert_eq!(Secret::from_bytes(&[1; 31]).unwrap_err(), TlsError::Secret);
    }
}
