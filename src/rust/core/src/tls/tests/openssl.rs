//! With certificates and keys as people make them: by the `openssl` command.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use super::*;

/// A directory to work in.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        Desk(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, names: &str) -> String {
        let read = |name: &str| std::fs::read_to_string(self.path(name)).unwrap();
        names.split(' ').map(read).collect()
    }

    fn run(&self, command: &str) -> Output {
        Command::new("openssl")
            .args(command.split_whitespace())
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .expect("openssl is installed")
    }

    fn openssl(&self, command: &str) {
        let out = self.run(command);
        let why = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "openssl {command}: {why}");
    }

    /// Makes `name.pem` and `name.key`, signed by `by`.
    fn sign(&self, name: &str, by: &str, kind: &str, extensions: &str) {
        self.write("extensions", extensions);
        self.openssl(&format!(
            "req -newkey {kind} -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {by}.pem -CAkey {by}.key -CAcreateserial \
             -days 2 -extfile extensions -out {name}.pem"
        ));
    }

    /// Makes `root.pem`, `middle.pem` signed by it, and `host.pem` signed by that.
    fn chain(&self, kind: &str) {
        self.openssl(&format!(
            "req -x509 -newkey {kind} -nodes -subj /CN=root -days 3 -keyout root.key -out root.pem"
        ));
        self.sign("middle", "root", kind, "basicConstraints=critical,CA:TRUE");
        let names = "subjectAltName=DNS:host.org,IP:127.0.0.1";
        self.sign("host", "middle", kind, names);
    }
}

const RSA: &str = "rsa:2048";
const EC: &str = "ec -pkeyopt ec_paramgen_curve:P-256";

#[test]
fn a_chain_may_be_given_on_either_side() {
    for kind in [RSA, EC, "ec -pkeyopt ec_paramgen_curve:P-384", "ed25519"] {
        let desk = Desk::new();
        desk.chain(kind);
        for (host, daemon, fits) in [
            ("host.pem", "host.pem middle.pem root.pem", true),
            ("host.pem middle.pem", "root.pem", true),
            ("host.pem", "middle.pem root.pem", true),
            ("host.pem", "root.pem middle.pem", true),
            ("host.pem", "middle.pem", true),
            ("host.pem", "host.pem", true),
            (
                "host.pem middle.pem root.pem",
                "host.pem middle.pem root.pem",
                true,
            ),
            ("host.pem", "root.pem", false),
        ] {
            let chain = desk.read(host);
            let identity = Identity::from_pem(&chain, &desk.read("host.key"), None).unwrap();
            let trust = Trust::from_pem(&desk.read(daemon)).unwrap();
            for name in ["host.org", "127.0.0.1"] {
                let met = meet(&identity, &trust, name);
                assert_eq!(met.is_ok(), fits, "{kind}, {host}, {daemon}: {met:?}");
            }
            assert!(meet(&identity, &trust, "host").is_err(), "the common name");
        }
    }
}

#[test]
fn certificate_and_key_may_share_a_file() {
    let desk = Desk::new();
    desk.chain(EC);
    desk.write("both", &desk.read("host.pem middle.pem host.key"));
    let identity = Identity::from_file(&desk.path("both"), None).unwrap();
    let trust = Trust::from_file(&desk.path("root.pem")).unwrap();
    meet(&identity, &trust, "host.org").unwrap();
}

#[test]
fn a_self_signed_certificate_serves_by_alternative_or_common_name() {
    for names in ["-addext subjectAltName=DNS:host.org", ""] {
        let desk = Desk::new();
        desk.openssl(&format!(
            "req -x509 -newkey {RSA} -nodes -subj /CN=host.org {names} -keyout key -out cert"
        ));
        let identity = Identity::from_pem(&desk.read("cert"), &desk.read("key"), None).unwrap();
        let trust = Trust::from_pem(&desk.read("cert")).unwrap();
        meet(&identity, &trust, "host.org").unwrap();
        assert!(meet(&identity, &trust, "other.org").is_err());
        desk.openssl(&format!(
            "req -x509 -newkey {RSA} -nodes -subj /CN=host.org {names} -keyout key2 -out cert2"
        ));
        let other = Identity::from_pem(&desk.read("cert2"), &desk.read("key2"), None).unwrap();
        assert!(meet(&other, &trust, "host.org").is_err());
    }
}

#[test]
fn a_chain_may_end_in_a_common_name() {
    let desk = Desk::new();
    desk.chain(EC);
    desk.sign("plain.org", "middle", EC, "basicConstraints=CA:FALSE");
    let chain = desk.read("plain.org.pem middle.pem");
    let identity = Identity::from_pem(&chain, &desk.read("plain.org.key"), None).unwrap();
    let trust = Trust::from_pem(&desk.read("root.pem")).unwrap();
    meet(&identity, &trust, "plain.org").unwrap();
    assert!(meet(&identity, &trust, "other.org").is_err());
    let (_, stranger) = single_use();
    assert!(meet(&identity, &stranger, "plain.org").is_err());
}

#[test]
fn what_no_daemon_would_accept_the_host_refuses_at_once() {
    let desk = Desk::new();
    desk.chain(EC);
    let key = desk.read("host.key");
    let error = |cert: &str, key: &str| Identity::from_pem(cert, key, None).unwrap_err();
    // Of OpenSSL 3.0, by `openssl x509 -req` without extensions. Later ones make version 3 of that.
    let v1 = include_str!("version1.pem");
    assert_eq!(error(v1, &key), TlsError::Version(1));
    // One that has expired: `openssl ca` can say so.
    desk.write("index.txt", "");
    desk.write(
        "ca.cnf",
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nrand_serial=yes\npolicy=p\n\
         default_md=sha256\nnew_certs_dir=.\n[p]\ncommonName=supplied\n",
    );
    desk.write("extensions", "subjectAltName=DNS:host.org");
    desk.openssl(
        "ca -batch -config ca.cnf -in host.csr -cert root.pem -keyfile root.key -out old.pem \
         -startdate 20200101000000Z -enddate 20210101000000Z -notext -extfile extensions",
    );
    let until = "2021-01-01T00:00:00Z".to_owned();
    assert_eq!(
        error(&desk.read("old.pem"), &key),
        TlsError::Expired { until }
    );
    let mismatch = error(&desk.read("host.pem"), &desk.read("root.key"));
    assert_eq!(mismatch, TlsError::KeyMismatch);
    desk.openssl("req -x509 -newkey rsa:1024 -nodes -subj /CN=x -keyout weak.key -out weak.pem");
    let weak = error(&desk.read("weak.pem"), &desk.read("weak.key"));
    assert_eq!(weak, TlsError::KeyKind);
}

#[test]
fn keys_come_in_many_forms() {
    let desk = Desk::new();
    for kind in [RSA, EC] {
        desk.chain(kind);
        let cert = desk.read("host.pem");
        let load = |key: &str, pass| Identity::from_pem(&cert, &desk.read(key), pass);
        desk.openssl("pkcs8 -topk8 -nocrypt -in host.key -out pkcs8");
        load("pkcs8", None).unwrap();
        load("pkcs8", Some("not needed")).unwrap();
        let old = if kind == RSA {
            "rsa -traditional"
        } else {
            "ec"
        };
        desk.openssl(&format!("{old} -in host.key -out old"));
        assert!(!desk.read("old").contains("BEGIN PRIVATE KEY"));
        load("old", None).unwrap();
        desk.openssl(&format!(
            "{old} -aes128 -passout pass:word -in host.key -out older"
        ));
        assert!(desk.read("older").contains("Proc-Type"));
        assert_eq!(
            load("older", Some("word")).unwrap_err(),
            TlsError::LegacyEncryption
        );
        for how in [
            "",
            "-v2 aes128",
            "-v2 des3",
            "-v2 aes-256-cbc -v2prf hmacWithSHA1",
            "-v2 aes-256-cbc -v2prf hmacWithSHA512",
            "-scrypt",
        ] {
            desk.openssl(&format!(
                "pkcs8 -topk8 {how} -passout pass:word -in host.key -out locked"
            ));
            let error = |pass| load("locked", pass).unwrap_err();
            load("locked", Some("word")).unwrap_or_else(|e| panic!("{how}: {e}"));
            assert_eq!(error(Some("sword")), TlsError::PasswordWrong, "{how}");
            assert_eq!(error(None), TlsError::PasswordNeeded);
            assert_eq!(error(Some("")), TlsError::PasswordNeeded);
        }
        desk.openssl("pkcs8 -topk8 -v1 PBE-SHA1-3DES -passout pass:word -in host.key -out v1");
        let error = load("v1", Some("word")).unwrap_err();
        assert!(matches!(error, TlsError::Encryption(_)), "{error}");
        assert!(error.to_string().contains("openssl pkcs8"), "{error}");
    }
}

#[test]
fn openssl_as_a_client_verifies_the_host() {
    let (identity, _) = single_use();
    let desk = Desk::new();
    desk.write("ca", identity.for_daemons());
    for scheme in ["tls+tcp", "wss"] {
        let host = Host::new(scheme, &identity);
        let port = host.port();
        for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
            let connect = |ca: &str, host: &str| {
                let out = desk.run(&format!(
                    "s_client -connect 127.0.0.1:{port} -CAfile {ca} {version} \
                     -verify_return_error {host}"
                ));
                (
                    out.status.success(),
                    String::from_utf8_lossy(&out.stdout).into_owned(),
                )
            };
            let (good, said) = connect("ca", "-verify_ip 127.0.0.1");
            assert!(good, "{said}");
            assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
            assert!(said.contains(name), "{said}");
            assert!(connect("ca", "-verify_hostname localhost").0);
            assert!(!connect("ca", "-verify_hostname elsewhere").0);
        }
    }
}
