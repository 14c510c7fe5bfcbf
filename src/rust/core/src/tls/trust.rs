//! The daemon's side: whom it believes to be its host.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError,
    RootCertStore, SignatureScheme,
};
use zeroize::Zeroize;

use super::x509::Facts;
use super::{
    CERTIFICATE, MAX_RECORD, SECRET, Secret, TlsError, pem_blocks, place, provider, read_file,
};

/// The certificates that a daemon was given to recognise its host by, and the
/// secret to be recognised by, if there is one.
#[derive(Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
    secret: Option<Secret>,
}

impl Trust {
    /// From PEM text: what [`Identity::for_daemons`](super::Identity::for_daemons)
    /// returned; or the certificates of the user's authorities; or a chain that
    /// starts with the host's own certificate and ends with the authority's.
    pub fn from_pem(text: &str) -> Result<Self, TlsError> {
        Self::from_text(text, None)
    }

    /// From a file of PEM text: see [`from_pem`](Self::from_pem).
    pub fn from_file(path: &Path) -> Result<Self, TlsError> {
        Self::from_text(&read_file(path)?, Some(path))
    }

    fn from_text(text: &str, path: Option<&Path>) -> Result<Self, TlsError> {
        let mut given = Vec::new();
        let mut secret = None;
        for block in pem_blocks(text)? {
            match block.tag() {
                CERTIFICATE => given.push(CertificateDer::from(block.into_contents())),
                SECRET => {
                    let mut bytes = block.into_contents();
                    secret = Some(Secret::from_bytes(&bytes));
                    bytes.zeroize();
                }
                _ => {}
            }
        }
        if given.is_empty() {
            return Err(TlsError::NoCertificate(place(path)));
        }
        let provider = provider();
        let verifier = Verifier::new(given, provider.signature_verification_algorithms)?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::Other(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        config.max_fragment_size = Some(MAX_RECORD);
        Ok(Trust {
            config: Arc::new(config),
            secret: secret.transpose()?,
        })
    }

    /// What the daemon proves to know, if its host gave it a secret.
    pub fn secret(&self) -> Option<&Secret> {
        self.secret.as_ref()
    }

    /// What rustls needs to know a host by.
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("secret", &self.secret.is_some())
            .finish_non_exhaustive()
    }
}

/// Verifies a host's certificate as webpki does, with two additions for what
/// people make with `openssl` and what the documentation has always promised:
/// a certificate that was given may itself be the host's, and one that lists no
/// alternative names at all is for the host that its common name says.
#[derive(Debug)]
struct Verifier {
    given: Vec<CertificateDer<'static>>,
    /// Those of `given` that may sign others.
    authorities: RootCertStore,
    constrains_names: bool,
    /// An authority was left out because of its dates.
    expired: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(
        given: Vec<CertificateDer<'static>>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, TlsError> {
        let mut authorities = RootCertStore::empty();
        let mut constrains_names = false;
        let mut expired = false;
        for cert in &given {
            let facts = Facts::read(cert)?;
            constrains_names |= facts.constrains_names;
            if !facts.authority {
                continue;
            }
            // An anchor's dates are not looked at in verification.
            match facts.check_dates(UnixTime::now()) {
                Ok(()) => authorities
                    .add(cert.clone())
                    .map_err(|e| TlsError::Certificate(e.to_string()))?,
                Err(error) if given.len() == 1 => return Err(error),
                Err(_) => expired = true,
            }
        }
        Ok(Verifier {
            given,
            authorities,
            constrains_names,
            expired,
            algorithms,
        })
    }

    /// That the certificate is one of those given or signed by one of them.
    fn check_origin(
        &self,
        cert: &ParsedCertificate<'_>,
        der: &CertificateDer<'_>,
        facts: &Facts,
        sent: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let signed = verify_server_cert_signed_by_trust_anchor(
            cert,
            &self.authorities,
            sent,
            now,
            self.algorithms.all,
        )
        .map_err(|e| match e {
            // Signed by another one of the same name: nobody that we know.
            Error::InvalidCertificate(CertificateError::BadSignature) => {
                CertificateError::UnknownIssuer.into()
            }
            other => other,
        });
        match signed {
            // No need for anybody's signature if the very certificate was given.
            Err(_) if self.given.iter().any(|g| g == der) => {
                facts.check_dates(now).map_err(|e| match e {
                    TlsError::NotYet { .. } => CertificateError::NotValidYet.into(),
                    _ => CertificateError::Expired.into(),
                })
            }
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) if self.expired => {
                Err(explained(
                    "a certificate given in 'tls' has expired or is not valid yet, \
                     and the host's is not signed by any other",
                ))
            }
            other => other,
        }
    }

    fn check_name(
        &self,
        cert: &ParsedCertificate<'_>,
        facts: &Facts,
        sent: &[CertificateDer<'_>],
        name: &ServerName<'_>,
    ) -> Result<(), Error> {
        let Err(error) = verify_server_name(cert, name) else {
            return Ok(());
        };
        if facts.has_alternative_names {
            return Err(error);
        }
        // An authority's limits on names do not reach common names, so where
        // there are any, common names do not count.
        let limited = self.constrains_names
            || sent
                .iter()
                .any(|c| Facts::read(c).map_or(true, |f| f.constrains_names));
        let fits = |common: &String| {
            super::server_name(common).is_some_and(|common| common == name.to_owned())
        };
        if !limited && facts.common_names.iter().any(fits) {
            return Ok(());
        }
        Err(CertificateError::NotValidForNameContext {
            expected: name.to_owned(),
            presented: facts.common_names.clone(),
        }
        .into())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        let facts = Facts::read(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        self.check_origin(&cert, end_entity, &facts, intermediates, now)?;
        self.check_name(&cert, &facts, intermediates, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[derive(Debug)]
struct Explained(&'static str);

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Explained {}

fn explained(why: &'static str) -> Error {
    CertificateError::Other(OtherError(Arc::new(Explained(why)))).into()
}

/// What went wrong with a connection to the host, in words for the user.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => describe_certificate(error),
        Error::InvalidMessage(_) => "the peer does not speak TLS".into(),
        Error::AlertReceived(AlertDescription::ProtocolVersion)
        | Error::PeerIncompatible(_)
        | Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            "the peer and this side have no TLS version and cipher in common".into()
        }
        Error::AlertReceived(alert) => format!("the peer refused: {alert:?}"),
        Error::NoCertificatesPresented => "the host showed no certificate".into(),
        other => other.to_string(),
    }
}

fn describe_certificate(error: &CertificateError) -> String {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => "the host's certificate has expired".into(),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "the host's certificate is not valid yet; are the clocks right?".into()
        }
        E::NotValidForNameContext {
            expected,
            presented,
        } => {
            let presented: Vec<&str> = presented.iter().map(|p| plain_name(p)).collect();
            format!(
                "the host's certificate is not valid for the name '{}' (it is for: {})",
                expected.to_str(),
                if presented.is_empty() {
                    "nothing".into()
                } else {
                    presented.join(", ")
                }
            )
        }
        E::UnknownIssuer => {
            "the host's certificate is not signed by any of those given in 'tls'".into()
        }
        E::BadSignature => "the host has not the key of the certificate that it shows".into(),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "the host's certificate is not one for servers".into()
        }
        E::Other(OtherError(other)) => match other.to_string() {
            version if version.contains("UnsupportedCertVersion") => {
                "the host's certificate is not of X.509 version 3".into()
            }
            authority if authority.contains("CaUsedAsEndEntity") => {
                "the host's certificate is an authority's, and not one given in 'tls'".into()
            }
            other => other,
        },
        other => format!("the host's certificate cannot be accepted: {other}"),
    }
}

/// webpki writes names as `DnsName("a")` and `IpAddress(::1)`.
fn plain_name(name: &str) -> &str {
    name.split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'))
        .map_or(name, |inner| inner.trim_matches('"'))
}
