//! TLS from end to end: the package's host, and a bare stream of NNG's as the daemon.
//!
//! Over 500 lines: all tests use the two ends that the first 200 lines make.

// Wine has no program `openssl`.
#[cfg(unix)]
mod openssl;

use std::ffi::{CString, c_void};
use std::net::TcpListener;
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use nng_sys::{nng_aio, nng_iov, nng_stream};
use parking_lot::Mutex;

use super::engine::{check, install, secure_dialer};
use super::*;
use crate::protocol::Frame;
use crate::transport::nng::{Connection, Receiver};
use crate::transport::{Address, Channel, Listening, listen};

const LONG: Duration = Duration::from_secs(60);

/// Bytes of a frame that has no message.
const HEAD: usize = 16;

/// The package's own end. Whoever connects is sent a bare frame.
struct Host {
    scheme: &'static str,
    listening: Listening,
    connections: Arc<Mutex<Vec<Arc<Connection>>>>,
    /// Of all of them.
    _inbox: Arc<Inbox>,
    heard: mpsc::Receiver<Vec<u8>>,
    unread: Mutex<Vec<u8>>,
}

struct Inbox(mpsc::Sender<Vec<u8>>);

impl Receiver for Inbox {
    fn received(&self, bytes: &[u8]) -> std::io::Result<()> {
        let _ = self.0.send(bytes.to_vec());
        Ok(())
    }

    fn ended(&self) {}
}

impl Host {
    fn new(scheme: &'static str, identity: &Identity) -> Self {
        let url = format!("{scheme}://127.0.0.1:0");
        let Ok(Address::Network(url)) = url.parse() else {
            panic!("{url}");
        };
        let (tell, heard) = mpsc::channel();
        let inbox = Arc::new(Inbox(tell));
        let connections = Arc::<Mutex<Vec<_>>>::default();
        let (receiver, accepted) = (Arc::downgrade(&inbox), connections.clone());
        let listening = listen(&url, Some(identity), move |connection| {
            accepted.lock().push(connection.clone());
            connection.start(receiver.clone());
            connection.post(Channel::Data, Frame::bare(&()));
            connection.flush();
        });
        Host {
            scheme,
            listening: listening.unwrap(),
            connections,
            _inbox: inbox,
            heard,
            unread: Mutex::default(),
        }
    }

    fn port(&self) -> u16 {
        self.listening.port()
    }

    fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port())
    }

    /// The first that came.
    fn connection(&self) -> Arc<Connection> {
        self.connections.lock()[0].clone()
    }

    /// So many bytes, from anybody.
    fn recv(&self, n: usize) -> Vec<u8> {
        let mut unread = self.unread.lock();
        while unread.len() < n {
            unread.extend(self.heard.recv_timeout(LONG).unwrap());
        }
        let rest = unread.split_off(n);
        std::mem::replace(&mut unread, rest)
    }
}

fn send(connection: &Connection, message: &[u8]) {
    let frame = Frame::new(&(), Bytes::copy_from_slice(message));
    connection.send_all(frame).unwrap();
}

/// A bare stream of NNG's, as a daemon's, but any name may be asked for.
struct Daemon(NonNull<nng_stream>);

// SAFETY: NNG's functions on a stream may be called from any thread.
unsafe impl Send for Daemon {}
// SAFETY: as above.
unsafe impl Sync for Daemon {}

impl Daemon {
    fn send(&self, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let rest = bytes[done..].as_ptr().cast_mut();
            let begin = |aio| {
                // SAFETY: the stream lives; its operation ends before this does.
                unsafe { nng_sys::nng_stream_send(self.0.as_ptr(), aio) };
            };
            done += operate(rest, bytes.len() - done, begin).unwrap().0;
        }
    }

    fn recv(&self, n: usize) -> Result<Vec<u8>, nng::Error> {
        let mut bytes = vec![0; n];
        let mut done = 0;
        while done < n {
            let rest = bytes[done..].as_mut_ptr();
            let begin = |aio| {
                // SAFETY: as in `send`.
                unsafe { nng_sys::nng_stream_recv(self.0.as_ptr(), aio) };
            };
            done += operate(rest, n - done, begin)?.0;
        }
        Ok(bytes)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SAFETY: ours, and not used after this; no operation is under way.
        unsafe { nng_sys::nng_stream_free(self.0.as_ptr()) };
    }
}

/// An operation of NNG's from its beginning to its end: bytes transferred, and what was made.
fn operate(
    buf: *mut u8,
    size: usize,
    begin: impl FnOnce(*mut nng_aio),
) -> Result<(usize, *mut c_void), nng::Error> {
    let piece = nng_iov {
        iov_buf: buf.cast(),
        iov_len: size,
    };
    let mut aio = null_mut();
    // SAFETY: `aio` is written to, lives until it is freed, and is asked about its operation
    // when that is over; the caller's memory stays until then.
    unsafe {
        check(nng_sys::nng_aio_alloc(&mut aio, None, null_mut()))?;
        nng_sys::nng_aio_set_timeout(aio, LONG.as_millis() as i32);
        nng_sys::nng_aio_set_iov(aio, 1, &piece);
        begin(aio);
        nng_sys::nng_aio_wait(aio);
        let result = check(nng_sys::nng_aio_result(aio));
        let done = (
            nng_sys::nng_aio_count(aio),
            nng_sys::nng_aio_get_output(aio, 0),
        );
        nng_sys::nng_aio_free(aio);
        result.map(|()| done)
    }
}

/// A daemon, once the host's first bytes have come: with `tls+tcp`, the handshake comes with them.
fn dial(url: &str, trust: &Trust, name: &str) -> (Result<Daemon, nng::Error>, Failure) {
    install();
    let url = CString::new(url).unwrap();
    let mut dialer = null_mut();
    // SAFETY: `url` is a C string; `dialer` is written to, and lives until it is freed.
    let (dialed, failure) = unsafe {
        check(nng_sys::nng_stream_dialer_alloc(&mut dialer, url.as_ptr())).unwrap();
        let failure = secure_dialer(dialer, trust, name).unwrap();
        let dialed = operate(null_mut(), 0, |aio| {
            nng_sys::nng_stream_dialer_dial(dialer, aio);
        });
        nng_sys::nng_stream_dialer_free(dialer);
        (dialed, failure)
    };
    let daemon = dialed.and_then(|(_, stream)| {
        let daemon = Daemon(NonNull::new(stream.cast()).unwrap());
        daemon.recv(HEAD).map(|_| daemon)
    });
    (daemon, failure)
}

fn single_use() -> (Identity, Trust) {
    let identity = Identity::single_use(&["localhost".into(), "127.0.0.1".into()]).unwrap();
    let trust = Trust::from_pem(identity.for_daemons()).unwrap();
    (identity, trust)
}

#[test]
fn fifty_megabytes_come_back_as_they_went() {
    for scheme in ["tls+tcp", "wss"] {
        let (identity, trust) = single_use();
        let host = Host::new(scheme, &identity);
        let (daemon, failure) = dial(&host.url(), &trust, "127.0.0.1");
        let daemon = daemon.unwrap_or_else(|e| panic!("{scheme}: {e}: {:?}", failure.get()));
        let bytes: Vec<u8> = (0..50_000_000u32).map(|i| (i ^ i >> 11) as u8).collect();
        let messages = [&bytes[..0], &bytes[..1], &bytes[..4096], &bytes[..]];
        let (over, until_over) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let daemon = &daemon;
            // One thread, which stays to the end: see `Operation::begin`.
            scope.spawn(move || {
                for message in messages {
                    let m = daemon.recv(HEAD + message.len()).unwrap();
                    daemon.send(&m[HEAD..]);
                }
                let _ = until_over.recv();
            });
            for message in messages {
                send(&host.connection(), message);
                assert!(host.recv(message.len()) == message, "{scheme}");
            }
            drop(over);
        });
    }
}

#[test]
fn large_messages_may_cross() {
    for scheme in ["tls+tcp", "wss"] {
        let (identity, trust) = single_use();
        let host = Host::new(scheme, &identity);
        let daemon = dial(&host.url(), &trust, "127.0.0.1").0.unwrap();
        let connection = host.connection();
        let message = |byte: u8| vec![byte; 5_000_000];
        // Both threads stay until all has arrived: see `Operation::begin`.
        let (over, until_over) = mpsc::channel::<()>();
        let until_over = Mutex::new(until_over);
        std::thread::scope(|scope| {
            let (connection, daemon, until_over) = (&connection, &daemon, &until_over);
            scope.spawn(move || {
                (10..14).for_each(|byte| send(connection, &message(byte)));
                let _ = until_over.lock().recv();
            });
            scope.spawn(move || {
                (20..24).for_each(|byte| daemon.send(&message(byte)));
                let _ = until_over.lock().recv();
            });
            for i in 0..4 {
                assert!(host.recv(5_000_000) == message(20 + i), "{scheme}");
                let got = daemon.recv(HEAD + 5_000_000).unwrap();
                assert!(got[HEAD..] == message(10 + i), "{scheme}");
            }
            drop(over);
        });
    }
}

#[test]
fn what_comes_along_with_the_end_is_not_lost() {
    let (identity, trust) = single_use();
    let host = Host::new("tls+tcp", &identity);
    let daemon = dial(&host.url(), &trust, "127.0.0.1").0.unwrap();
    // NNG reads so much ahead; the rest, and the end, it finds together.
    send(&host.connection(), b"first");
    std::thread::sleep(Duration::from_millis(100));
    send(&host.connection(), b"last");
    host.connection().close();
    std::thread::sleep(Duration::from_millis(100));
    let mut all = vec![0; 1000];
    let mut done = 0;
    loop {
        let rest = all[done..].as_mut_ptr();
        let begin = |aio| {
            // SAFETY: the stream lives; its operation ends before this does.
            unsafe { nng_sys::nng_stream_recv(daemon.0.as_ptr(), aio) };
        };
        match operate(rest, all.len() - done, begin) {
            Ok((n, _)) => done += n,
            Err(_) => break,
        }
    }
    assert_eq!(done, HEAD + 5 + HEAD + 4);
    assert_eq!(all[done - 4..done], *b"last");
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

/// That the host still takes a daemon.
fn goes_on(host: &Host, trust: &Trust) {
    let (daemon, failure) = dial(&host.url(), trust, "127.0.0.1");
    let daemon = daemon.unwrap_or_else(|e| panic!("{e}: {:?}", failure.get()));
    assert_eq!(failure.get(), None);
    daemon.send(b"here");
    assert_eq!(host.recv(4), b"here");
}

#[test]
fn a_daemon_says_why_it_does_not_connect_and_the_host_goes_on() {
    for scheme in ["tls+tcp", "wss"] {
        let (identity, trust) = single_use();
        let host = Host::new(scheme, &identity);

        let (result, failure) = dial(&host.url(), &trust, "elsewhere.org");
        assert!(result.is_err());
        let why = failure.get().unwrap();
        assert!(
            why.starts_with(
                "the host's certificate is not valid for the name 'elsewhere.org' (it is for: "
            ) && why.contains("localhost")
                && why.contains("127.0.0.1"),
            "{why}"
        );

        let (_, stranger) = single_use();
        let (result, failure) = dial(&host.url(), &stranger, "127.0.0.1");
        assert!(result.is_err());
        assert_eq!(
            failure.get().unwrap(),
            "the host's certificate is not signed by any of those given in 'tls'"
        );
        goes_on(&host, &trust);
    }
}

#[test]
fn who_does_not_speak_tls_is_shown_out_and_the_host_goes_on() {
    use std::io::{Read, Write};
    for scheme in ["tls+tcp", "wss"] {
        let (identity, trust) = single_use();
        let host = Host::new(scheme, &identity);
        let mut noise = vec![0; 100_000];
        crate::sys::random(&mut noise);
        let plain = Frame::bare(&()).head;
        for bytes in [&plain[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &noise] {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", host.port())).unwrap();
            let _ = stream.write_all(bytes);
            let _ = stream.read_to_end(&mut Vec::new()); // ends
        }
        goes_on(&host, &trust);
    }
}

#[test]
fn a_handshake_without_end_keeps_nobody_waiting_and_can_be_ended() {
    use std::io::{Read, Write};
    let (identity, trust) = single_use();
    let host = Host::new("tls+tcp", &identity);
    // Silent, and in the middle of a greeting.
    let starts: [&[u8]; 2] = [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"];
    let mut streams: Vec<_> = starts
        .iter()
        .map(|start| {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", host.port())).unwrap();
            stream.write_all(start).unwrap();
            stream
        })
        .collect();
    goes_on(&host, &trust);
    // When is up to whoever listens.
    host.connections.lock().iter().for_each(|c| c.close());
    for stream in &mut streams {
        let _ = stream.read_to_end(&mut Vec::new());
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
    let (result, _) = dial(&url, &stranger, "127.0.0.1");
    assert!(result.is_err());
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
