//! The host's side: the certificate it shows and the private key behind it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use pem::Pem;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
    UnixTime,
};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, ServerConfig};
use zeroize::{Zeroize, Zeroizing};

use super::engine::Shared;
use super::x509::Facts;
use super::{CERTIFICATE, MAX_RECORD, Secret, TlsError, pem_blocks, place, provider, read_file};

/// The host as its daemons see it over TLS.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    config: Arc<ServerConfig>,
    /// NNG's object for `config`, once there is a listener.
    shared: Shared,
    for_daemons: ForDaemons,
}

/// What daemons are given to know the host by, and to be known.
#[derive(Default)]
pub(super) struct ForDaemons {
    text: Zeroizing<String>,
    secret: Option<Secret>,
}

impl Identity {
    /// An identity for this time only, valid for `names`: host names or IP
    /// addresses, the latter with or without the brackets of a URL.
    ///
    /// The key of the authority that signs it is discarded at once, so nobody
    /// can make a second certificate that the daemons would believe. It has no
    /// end of validity to speak of: it ends with the process, and clocks of
    /// other machines may be wrong.
    pub fn single_use(names: &[String]) -> Result<Self, TlsError> {
        let other = |e: rcgen::Error| TlsError::Other(e.to_string());

        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        authority.distinguished_name = rcgen::DistinguishedName::new();
        authority.distinguished_name.push(
            DnType::CommonName,
            format!("mirai single-use {}", crate::sys::token()),
        );
        let authority_key = KeyPair::generate().map_err(other)?;
        let authority_cert = authority.self_signed(&authority_key).map_err(other)?;

        let mut leaf = CertificateParams::default();
        for name in names {
            leaf.subject_alt_names.push(alternative_name(name)?);
        }
        leaf.distinguished_name = rcgen::DistinguishedName::new();
        leaf.distinguished_name
            .push(DnType::CommonName, "mirai host");
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(other)?;
        let cert = leaf
            .signed_by(&key, &Issuer::new(authority, authority_key))
            .map_err(other)?;

        let secret = Secret::random();
        let text = Zeroizing::new(format!(
            "{}{}",
            authority_cert.pem().replace("\r\n", "\n"),
            *secret.to_pem()
        ));
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Self::new(
            vec![cert.der().clone()],
            key,
            ForDaemons {
                text,
                secret: Some(secret),
            },
        )
    }

    /// An identity from PEM text: the host's certificate, followed by those
    /// between it and the authority's if any, and its private key, which may
    /// also stand in `chain` (`key` is then empty).
    ///
    /// Whatever would make every connection fail later is an error now.
    pub fn from_pem(chain: &str, key: &str, pass: Option<&str>) -> Result<Self, TlsError> {
        Self::from_text(chain, key, pass, None)
    }

    /// As [`from_pem`](Self::from_pem), all of it in one file.
    pub fn from_file(path: &Path, pass: Option<&str>) -> Result<Self, TlsError> {
        Self::from_text(&read_file(path)?, "", pass, Some(path))
    }

    fn from_text(
        chain: &str,
        key: &str,
        pass: Option<&str>,
        path: Option<&Path>,
    ) -> Result<Self, TlsError> {
        let mut certs = Vec::new();
        let mut keys = Vec::new();
        for block in pem_blocks(chain)?.into_iter().chain(pem_blocks(key)?) {
            if block.tag() == CERTIFICATE {
                certs.push(CertificateDer::from(block.into_contents()));
            } else if block.tag().ends_with("PRIVATE KEY") {
                keys.push(block);
            }
        }
        let own = certs
            .first()
            .ok_or_else(|| TlsError::NoCertificate(place(path)))?;
        if keys.len() > 1 {
            return Err(TlsError::ManyKeys(place(path)));
        }
        let key = keys.pop().ok_or_else(|| TlsError::NoKey(place(path)))?;
        let key = private_key(key, pass)?;
        let facts = Facts::read(own)?;
        if facts.version < 3 {
            return Err(TlsError::Version(facts.version));
        }
        facts.check_dates(UnixTime::now())?;
        // Public, and enough: a daemon believes a certificate that it was given itself.
        let blocks: Vec<Pem> = certs
            .iter()
            .map(|cert| Pem::new(CERTIFICATE, cert.to_vec()))
            .collect();
        let text = pem::encode_many_config(
            &blocks,
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        );
        let for_daemons = ForDaemons {
            text: Zeroizing::new(text.replace("\n\n", "\n")),
            secret: None,
        };
        Self::new(certs, key, for_daemons)
    }

    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        for_daemons: ForDaemons,
    ) -> Result<Self, TlsError> {
        let provider = provider();
        let certified =
            CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
                Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::KeyMismatch,
                Error::InvalidCertificate(e) => TlsError::Certificate(format!("{e:?}")),
                _ => TlsError::KeyKind,
            })?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::Other(e.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
        // Daemons come once and stay: a session to resume would be sent for nothing.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.max_fragment_size = Some(MAX_RECORD);
        let config = Arc::new(config);
        Ok(Identity(Arc::new(Inner {
            shared: Shared::server(config.clone()),
            config,
            for_daemons,
        })))
    }

    /// What a daemon must be given to trust this identity, and be trusted by it: PEM text with
    /// certificates, and the secret of a single-use one.
    pub fn for_daemons(&self) -> &str {
        &self.0.for_daemons.text
    }

    /// What daemons of a single-use identity prove to know.
    pub fn secret(&self) -> Option<&Secret> {
        self.0.for_daemons.secret.as_ref()
    }

    /// What rustls needs to present this identity.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.0.config
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0.shared
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("single_use", &self.secret().is_some())
            .finish_non_exhaustive()
    }
}

fn alternative_name(name: &str) -> Result<rcgen::SanType, TlsError> {
    let wrong = || TlsError::Name(name.to_owned());
    match super::server_name(name).ok_or_else(wrong)? {
        rustls::pki_types::ServerName::IpAddress(address) => {
            Ok(rcgen::SanType::IpAddress(std::net::IpAddr::from(address)))
        }
        rustls::pki_types::ServerName::DnsName(name) => Ok(rcgen::SanType::DnsName(
            name.as_ref().try_into().map_err(|_| wrong())?,
        )),
        _ => Err(wrong()),
    }
}

fn private_key(block: Pem, pass: Option<&str>) -> Result<PrivateKeyDer<'static>, TlsError> {
    // OpenSSL's own encryption of old, announced in the block's headers.
    if block.headers().get("Proc-Type").is_some() {
        return Err(TlsError::LegacyEncryption);
    }
    let tag = block.tag().to_owned();
    let mut der = block.into_contents();
    match tag.as_str() {
        "PRIVATE KEY" => Ok(PrivatePkcs8KeyDer::from(der).into()),
        "RSA PRIVATE KEY" => Ok(PrivatePkcs1KeyDer::from(der).into()),
        "EC PRIVATE KEY" => Ok(PrivateSec1KeyDer::from(der).into()),
        "ENCRYPTED PRIVATE KEY" => decrypt(&der, pass),
        _ => {
            der.zeroize();
            Err(TlsError::KeyKind)
        }
    }
}

fn decrypt(der: &[u8], pass: Option<&str>) -> Result<PrivateKeyDer<'static>, TlsError> {
    use pkcs8::pkcs5;
    let pass = pass
        .filter(|p| !p.is_empty())
        .ok_or(TlsError::PasswordNeeded)?;
    let encrypted = pkcs8::EncryptedPrivateKeyInfoRef::try_from(der)
        .map_err(|e| TlsError::Encryption(e.to_string()))?;
    let key = encrypted.decrypt(pass).map_err(|e| match e {
        // What a wrong password opens is garbage: wrong padding, or not a key.
        pkcs8::Error::EncryptedPrivateKey(pkcs5::Error::DecryptFailed) => TlsError::PasswordWrong,
        pkcs8::Error::EncryptedPrivateKey(e) => TlsError::Encryption(e.to_string()),
        _ => TlsError::PasswordWrong,
    })?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}
