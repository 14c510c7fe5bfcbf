//! The few facts of a certificate that are asked for outside a chain's
//! verification, which is webpki's business.

use rustls::pki_types::{CertificateDer, UnixTime};
use x509_cert::Certificate;
use x509_cert::certificate::Version;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::db::rfc4519;
use x509_cert::der::{Any, Decode, Tag, Tagged};
use x509_cert::ext::pkix::{BasicConstraints, NameConstraints, SubjectAltName};
use x509_cert::time::Time;

use super::TlsError;

/// What [`read`](Facts::read) found in a certificate.
pub(super) struct Facts {
    pub(super) version: u8,
    pub(super) authority: bool,
    pub(super) has_alternative_names: bool,
    pub(super) constrains_names: bool,
    pub(super) common_names: Vec<String>,
    not_before: Time,
    not_after: Time,
}

impl Facts {
    pub(super) fn read(der: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let unreadable = |e: x509_cert::der::Error| TlsError::Certificate(e.to_string());
        let cert = Certificate::from_der(der).map_err(unreadable)?;
        let cert = cert.tbs_certificate();
        let self_issued = cert.issuer() == cert.subject();
        let version = match cert.version() {
            Version::V1 => 1,
            Version::V2 => 2,
            Version::V3 => 3,
        };
        let constraints = cert
            .get_extension::<BasicConstraints>()
            .map_err(unreadable)?;
        Ok(Facts {
            version,
            // Before version 3 nothing said so, and roots of that age are still around.
            authority: constraints.map_or(version == 1 && self_issued, |(_, c)| c.ca),
            has_alternative_names: cert
                .get_extension::<SubjectAltName>()
                .map_err(unreadable)?
                .is_some(),
            constrains_names: cert
                .get_extension::<NameConstraints>()
                .map_err(unreadable)?
                .is_some(),
            common_names: cert
                .subject()
                .iter()
                .filter(|a| a.oid == rfc4519::COMMON_NAME)
                .filter_map(|a| string(&a.value))
                .collect(),
            not_before: cert.validity().not_before,
            not_after: cert.validity().not_after,
        })
    }

    /// Whether the certificate is valid at `now`, by its dates.
    pub(super) fn check_dates(&self, now: UnixTime) -> Result<(), TlsError> {
        let now = now.as_secs();
        if now < self.not_before.to_unix_duration().as_secs() {
            return Err(TlsError::NotYet {
                from: self.not_before.to_string(),
            });
        }
        if now > self.not_after.to_unix_duration().as_secs() {
            return Err(TlsError::Expired {
                until: self.not_after.to_string(),
            });
        }
        Ok(())
    }
}

fn string(value: &Any) -> Option<String> {
    match value.tag() {
        Tag::Utf8String => Some(value.decode_as::<Utf8StringRef<'_>>().ok()?.to_string()),
        Tag::PrintableString => Some(
            value
                .decode_as::<PrintableStringRef<'_>>()
                .ok()?
                .to_string(),
        ),
        Tag::Ia5String => Some(value.decode_as::<Ia5StringRef<'_>>().ok()?.to_string()),
        _ => None,
    }
}
