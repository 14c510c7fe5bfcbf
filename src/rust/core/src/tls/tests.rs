mod openssl;

use std::net::TcpListener;

use nng::options::{Options, RecvTimeout, SendTimeout};
use nng::{Dialer, DialerBuilder, Listener, ListenerBuilder, Protocol, Socket};

use super::engine::{Failure, install, secure_dialer, secure_listener};
use super::*;

const LONG: std::time::Duration = std::time::Duration::from_secs(60);

fn socket() -> Socket {
    let socket = Socket::new(Protocol::Pair1).unwrap();
    socket.set_opt::<RecvTimeout>(Some(LONG)).unwrap();
    socket.set_opt::<SendTimeout>(Some(LONG)).unwrap();
    socket
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

fn listen(socket: &Socket, url: &str, identity: &Identity) -> Listener {
    install();
    let builder = ListenerBuilder::new(socket, url).unwrap();
    secure_listener(builder.nng_listener(), identity).unwrap();
    builder.start().map_err(|(_, e)| e).unwrap()
}

fn dial(
    socket: &Socket,
    url: &str,
    trust: &Trust,
    name: &str,
) -> (Result<Dialer, nng::Error>, Failure) {
    install();
    let builder = DialerBuilder::new(socket, url).unwrap();
    let failure = secure_dialer(builder.nng_dialer(), trust, name).unwrap();
    (builder.start(false).map_err(|(_, e)| e), failure)
}

fn single_use() -> (Identity, Trust) {
    let identity = Identity::single_use(&["localhost".into(), "127.0.0.1".into()]).unwrap();
    let trust = Trust::from_pem(identity.for_daemons()).unwrap();
    (identity, trust)
}

#[test]
fn fifty_megabytes_come_back_as_they_went() {
    for scheme in ["tls+tcp", "wss"] {
        let url = format!("{scheme}://127.0.0.1:{}", free_port());
        let (identity, trust) = single_use();
        let (host, daemon) = (socket(), socket());
        let _listener = listen(&host, &url, &identity);
        let (dialer, failure) = dial(&daemon, &url, &trust, "127.0.0.1");
        let _dialer = dialer.unwrap_or_else(|e| panic!("{scheme}: {e}: {:?}", failure.get()));
        let bytes: Vec<u8> = (0..50_000_000u32).map(|i| (i ^ i >> 11) as u8).collect();
        for message in [&bytes[..0], &bytes[..1], &bytes[..4096], &bytes[..]] {
            let echo = daemon.clone();
            let echo = std::thread::spawn(move || {
                let m = echo.recv().unwrap();
                echo.send(m).unwrap();
            });
            host.send(message).unwrap();
            assert!(host.recv().unwrap().as_slice() == message, "{scheme}");
            echo.join().unwrap();
        }
    }
}

#[test]
fn large_messages_may_cross() {
    for scheme in ["tls+tcp", "wss"] {
        let url = format!("{scheme}://127.0.0.1:{}", free_port());
        let (identity, trust) = single_use();
        let (host, daemon) = (socket(), socket());
        let _listener = listen(&host, &url, &identity);
        let _dialer = dial(&daemon, &url, &trust, "127.0.0.1").0.unwrap();
        let send = |socket: &Socket, byte: u8| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                for i in 0..4 {
                    socket.send(&vec![byte + i; 5_000_000][..]).unwrap();
                }
            })
        };
        let senders = [send(&host, 10), send(&daemon, 20)];
        for i in 0..4 {
            for (socket, byte) in [(&host, 20), (&daemon, 10)] {
                let message = socket.recv().unwrap();
                assert_eq!(message.len(), 5_000_000);
                assert!(message.iter().all(|b| *b == byte + i), "{scheme}");
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
    }
}

/// A handshake in memory: nothing, or what the user of the daemon is told.
fn meet(identity: &Identity, trust: &Trust, name: &str) -> Result<(), String> {
    let name = server_name(name).unwrap();
    let mut host = rustls::ServerConnection::new(identity.config().clone()).unwrap();
    let mut daemon = rustls::ClientConnection::new(trust.config().clone(), name).unwrap();
    while host.is_handshaking() || daemon.is_handshaking() {
        let mut bytes = Vec::new();
        while daemon.wants_write() {
            daemon.write_tls(&mut bytes).unwrap();
        }
        let mut unread = &bytes[..];
        while !unread.is_empty() {
            host.read_tls(&mut unread).unwrap();
            host.process_new_packets().map_err(|e| e.to_string())?;
        }
        bytes.clear();
        while host.wants_write() {
            host.write_tls(&mut bytes).unwrap();
        }
        let mut unread = &bytes[..];
        while !unread.is_empty() {
            daemon.read_tls(&mut unread).unwrap();
            daemon
                .process_new_packets()
                .map_err(|e| trust::describe(&e))?;
        }
    }
    Ok(())
}

/// That the listener at `url` still takes a daemon.
fn goes_on(host: &Socket, url: &str, trust: &Trust) {
    let daemon = socket();
    let (dialer, failure) = dial(&daemon, url, trust, "127.0.0.1");
    let dialer = dialer.unwrap_or_else(|e| panic!("{e}: {:?}", failure.get()));
    assert_eq!(failure.get(), None);
    daemon.send(&b"here"[..]).unwrap();
    assert_eq!(host.recv().unwrap().as_slice(), b"here");
    dialer.close();
}

#[test]
fn a_daemon_says_why_it_does_not_connect_and_the_host_goes_on() {
    for scheme in ["tls+tcp", "wss"] {
        let port = free_port();
        let url = format!("{scheme}://127.0.0.1:{port}");
        let (identity, trust) = single_use();
        let host = socket();
        let _listener = listen(&host, &url, &identity);

        let (result, failure) = dial(&socket(), &url, &trust, "elsewhere.org");
        result.unwrap_err();
        let why = failure.get().unwrap();
        assert!(
            why.starts_with(
                "the host's certificate is not valid for the name 'elsewhere.org' (it is for: "
            ) && why.contains("localhost")
                && why.contains("127.0.0.1"),
            "{why}"
        );

        let (_, stranger) = single_use();
        let (result, failure) = dial(&socket(), &url, &stranger, "127.0.0.1");
        result.unwrap_err();
        assert_eq!(
            failure.get().unwrap(),
            "the host's certificate is not signed by any of those given in 'tls'"
        );
        goes_on(&host, &url, &trust);
    }
}

#[test]
fn who_does_not_speak_tls_is_shown_out_and_the_host_goes_on() {
    use std::io::{Read, Write};
    for scheme in ["tls+tcp", "wss"] {
        let port = free_port();
        let url = format!("{scheme}://127.0.0.1:{port}");
        let (identity, trust) = single_use();
        let host = socket();
        let _listener = listen(&host, &url, &identity);
        let mut noise = vec![0; 100_000];
        crate::random(&mut noise);
        let plain = b"\0SP\0\0\x11\0\0";
        for bytes in [&plain[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &noise] {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            let _ = stream.write_all(bytes);
            let _ = stream.read_to_end(&mut Vec::new()); // ends
        }
        goes_on(&host, &url, &trust);
    }
}

#[test]
fn a_handshake_without_end_is_ended_and_keeps_nobody_waiting() {
    use std::io::{Read, Write};
    let port = free_port();
    let url = format!("tls+tcp://127.0.0.1:{port}");
    let (identity, trust) = single_use();
    let host = socket();
    let _listener = listen(&host, &url, &identity);
    // Silent, and in the middle of a greeting.
    let starts: [&[u8]; 2] = [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"];
    let mut streams: Vec<_> = starts
        .iter()
        .map(|start| {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(start).unwrap();
            stream
        })
        .collect();
    goes_on(&host, &url, &trust);
    for stream in &mut streams {
        let _ = stream.read_to_end(&mut Vec::new()); // NNG waits 10 seconds
    }
}

#[test]
fn the_host_is_sent_an_alert_by_a_daemon_that_refuses_it() {
    let (identity, _) = single_use();
    let (_, stranger) = single_use();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tls+tcp://{}", listener.local_addr().unwrap());
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut tls = rustls::ServerConnection::new(identity.config().clone()).unwrap();
        loop {
            if let Err(error) = tls.complete_io(&mut stream) {
                return error.to_string();
            }
        }
    });
    let (result, _) = dial(&socket(), &url, &stranger, "127.0.0.1");
    result.unwrap_err();
    let seen = host.join().unwrap();
    assert!(seen.contains("UnknownCA"), "{seen}");
}

#[test]
fn names_of_a_single_use_identity_may_be_addresses() {
    let names = ["host.local", "127.0.0.1", "[::1]", "fe80::1"].map(String::from);
    let identity = Identity::single_use(&names).unwrap();
    let trust = Trust::from_pem(identity.for_daemons()).unwrap();
    for name in [
        "host.local",
        "HOST.local",
        "127.0.0.1",
        "::1",
        "[::1]",
        "[fe80::1]",
    ] {
        meet(&identity, &trust, name).unwrap();
    }
    for name in ["local", "127.0.0.2", "::2"] {
        let why = meet(&identity, &trust, name).unwrap_err();
        assert!(why.contains("is not valid for the name"), "{why}");
    }
    let wrong = Identity::single_use(&["no name".into()]).unwrap_err();
    assert_eq!(wrong, TlsError::Name("no name".into()));
}

#[test]
fn host_and_daemon_share_the_secret_of_a_single_use_identity() {
    let (identity, trust) = single_use();
    let proof = trust.secret().unwrap().proof(b"daemon", &[b"nonce"]);
    let secret = identity.secret().unwrap();
    assert!(secret.verify(b"daemon", &[b"nonce"], &proof));
    let text = identity.for_daemons();
    assert!(text.starts_with("-----BEGIN CERTIFICATE-----\n"));
    assert!(text.ends_with("-----END MIRAI SECRET-----\n"));
    assert!(!text.contains("PRIVATE KEY"));
    let damaged = text.replace(
        "-----BEGIN MIRAI SECRET-----\n",
        "-----BEGIN MIRAI SECRET-----\nAAAA",
    );
    assert_eq!(Trust::from_pem(&damaged).unwrap_err(), TlsError::Secret);
    for shown in [format!("{identity:?}"), format!("{trust:?}")] {
        assert!(shown.len() < 80 && !shown.contains('['), "{shown}");
    }
}

mod made_by_rcgen {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    struct Authority(CertificateParams, KeyPair, String);

    fn authority(change: impl FnOnce(&mut CertificateParams)) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority(params, key, pem)
    }

    /// Certificate and key.
    fn leaf(by: &Authority, change: impl FnOnce(&mut CertificateParams)) -> (String, KeyPair) {
        let mut params = CertificateParams::new(vec!["host".into()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&by.0, &by.1);
        (params.signed_by(&key, &issuer).unwrap().pem(), key)
    }

    #[test]
    fn dates_are_checked_on_both_sides() {
        let by = authority(|_| {});
        let trust = Trust::from_pem(&by.2).unwrap();
        let (old, key) = leaf(&by, |p| p.not_after = rcgen::date_time_ymd(2020, 2, 3));
        let error = Identity::from_pem(&old, &key.serialize_pem(), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the certificate has expired: it was valid until 2020-02-03T00:00:00Z"
        );
        let unchecked = |pem: &str, key: &KeyPair| {
            let der = pem::parse(pem).unwrap().into_contents().into();
            let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
            Identity::new(vec![der], key.into(), Default::default()).unwrap()
        };
        assert_eq!(
            meet(&unchecked(&old, &key), &trust, "host").unwrap_err(),
            "the host's certificate has expired"
        );
        let (new, key) = leaf(&by, |p| p.not_before = rcgen::date_time_ymd(2200, 2, 3));
        let error = Identity::from_pem(&new, &key.serialize_pem(), None).unwrap_err();
        assert!(matches!(error, TlsError::NotYet { .. }), "{error}");
        let why = meet(&unchecked(&new, &key), &trust, "host").unwrap_err();
        assert!(why.contains("not valid yet"), "{why}");
    }

    #[test]
    fn an_authority_that_has_expired_is_not_believed() {
        let old = authority(|p| p.not_after = rcgen::date_time_ymd(2020, 2, 3));
        let error = Trust::from_pem(&old.2).unwrap_err();
        assert!(matches!(error, TlsError::Expired { .. }), "{error}");
        let (cert, key) = leaf(&old, |_| {});
        let identity = Identity::from_pem(&cert, &key.serialize_pem(), None).unwrap();
        let other = authority(|p| {
            p.distinguished_name
                .push(rcgen::DnType::CommonName, "other")
        });
        let trust = Trust::from_pem(&(other.2 + &old.2)).unwrap();
        let why = meet(&identity, &trust, "host").unwrap_err();
        assert!(why.contains("given in 'tls' has expired"), "{why}");
    }

    #[test]
    fn the_certificate_given_may_be_the_hosts_own_and_no_copy_of_it() {
        let by = authority(|_| {});
        let (cert, key) = leaf(&by, |_| {});
        let identity = Identity::from_pem(&cert, &key.serialize_pem(), None).unwrap();
        let trust = Trust::from_pem(&cert).unwrap();
        meet(&identity, &trust, "host").unwrap();
        assert!(meet(&identity, &trust, "guest").is_err());
        // The same in all but the key, and with its certificate for another's.
        let (forged, its_key) = leaf(&authority(|_| {}), |_| {});
        let forger = Identity::from_pem(&forged, &its_key.serialize_pem(), None).unwrap();
        assert!(meet(&forger, &trust, "host").is_err());
        let error = Identity::from_pem(&cert, &its_key.serialize_pem(), None).unwrap_err();
        assert_eq!(error, TlsError::KeyMismatch);
    }

    #[test]
    fn a_common_name_counts_only_without_any_other_and_without_limits() {
        let common = |p: &mut CertificateParams, name: &str| {
            p.distinguished_name.push(rcgen::DnType::CommonName, name);
        };
        let by = authority(|_| {});
        for name in ["cn.host", "127.0.0.1", "::1"] {
            let (cert, key) = leaf(&by, |p| {
                p.subject_alt_names.clear();
                p.distinguished_name = rcgen::DistinguishedName::new();
                p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
                common(p, name);
            });
            let identity = Identity::from_pem(&cert, &key.serialize_pem(), None).unwrap();
            meet(&identity, &Trust::from_pem(&by.2).unwrap(), name).unwrap();
            let why = meet(&identity, &Trust::from_pem(&by.2).unwrap(), "other").unwrap_err();
            assert!(why.ends_with(&format!("(it is for: {name})")), "{why}");
        }
        let (cert, key) = leaf(&by, |p| {
            p.distinguished_name = rcgen::DistinguishedName::new();
            common(p, "cn.host");
        });
        let identity = Identity::from_pem(&cert, &key.serialize_pem(), None).unwrap();
        let trust = Trust::from_pem(&by.2).unwrap();
        meet(&identity, &trust, "host").unwrap();
        assert!(meet(&identity, &trust, "cn.host").is_err());
        // An authority for one domain only does not sign for another by a common name.
        let limited = authority(|p| {
            p.name_constraints = Some(rcgen::NameConstraints {
                permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("inside".into())],
                excluded_subtrees: vec![],
            });
        });
        let (cert, key) = leaf(&limited, |p| {
            p.subject_alt_names.clear();
            p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
            p.distinguished_name = rcgen::DistinguishedName::new();
            common(p, "outside");
        });
        let identity = Identity::from_pem(&cert, &key.serialize_pem(), None).unwrap();
        let trust = Trust::from_pem(&limited.2).unwrap();
        assert!(meet(&identity, &trust, "outside").is_err());
    }

    #[test]
    fn what_is_missing_is_said() {
        let by = authority(|_| {});
        let (cert, key) = leaf(&by, |_| {});
        let key = key.serialize_pem();
        let error = |chain: &str, key: &str| Identity::from_pem(chain, key, None).unwrap_err();
        assert!(matches!(error(&key, ""), TlsError::NoCertificate(_)));
        assert!(matches!(error(&cert, ""), TlsError::NoKey(_)));
        assert!(matches!(
            error(&cert, &(key.clone() + &key)),
            TlsError::ManyKeys(_)
        ));
        assert!(matches!(error("", ""), TlsError::NoCertificate(_)));
        assert!(matches!(
            Trust::from_pem(&key).unwrap_err(),
            TlsError::NoCertificate(_)
        ));
        let nowhere = std::path::Path::new("/no/such/file.pem");
        let error = Identity::from_file(nowhere, None).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read '/no/such/file.pem': "),
            "{error}"
        );
        Identity::from_pem(&(cert + &key), "", None).unwrap();
    }
}
