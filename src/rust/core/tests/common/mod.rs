//! What tests of the network share: hosts with a real daemon at every kind of URL, and
//! strangers who connect there by hand.
//!
//! Over 500 lines: one module for all test files, because each of them is compiled with it anyhow.
#![allow(dead_code, unreachable_pub, unused_imports)] // each of them uses some

#[cfg_attr(windows, path = "usage_windows.rs")]
mod usage;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mirai_core::dispatcher::{Config, Target};
use mirai_core::host::Host;
use mirai_core::protocol::frame::encode_head;
use mirai_core::protocol::{FrameReader, Kind, Limits, ToDaemon, ToHost, VERSION};
use mirai_core::sys::{Bell, Waited};
use mirai_core::task::{Outcome, Payload, Task, next_task_id};
use mirai_core::tls::{Identity, Trust};
use mirai_core::transport::Address;
use mirai_core::worker::{Assignment, DialError, Next, Options, Runtime, Worker};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
pub use usage::*;

/// Beyond this something hangs. Under wine, whatever waits asks its one server: a byte there and back takes fifty times
/// as long as on Linux.
pub const LONG: Duration = Duration::from_secs(if cfg!(windows) { 120 } else { 30 });

pub const SCHEMES: [&str; 4] = ["tcp", "ws", "tls+tcp", "wss"];

pub struct NoRuntime;

impl Runtime for NoRuntime {
    fn interrupt(&self) {}
    fn forget_interrupt(&self) {}
    fn exit(&self) {}
    fn raise(&self, _: i32) {}
}

pub fn options(trust: Option<Trust>) -> Options {
    Options {
        trust,
        ..Options::default()
    }
}

pub fn try_dial(url: &str, options: &Options) -> Result<Worker, DialError> {
    let address: Address = url.parse().unwrap();
    Worker::dial(&address, options, Arc::new(NoRuntime), None, || false)
}

pub fn dial(url: &str, trust: Option<Trust>) -> Worker {
    try_dial(url, &options(trust)).unwrap()
}

/// A URL of this scheme on loopback, with any free port.
pub fn any_port(scheme: &str) -> String {
    let path = if scheme.starts_with('w') { "/a" } else { "" };
    format!("{scheme}://127.0.0.1:0{path}")
}

/// A host that listens at `url`, and the URL with its port; for a secure one, also what
/// its daemons trust.
pub fn listening(url: &str, host: &Host) -> (String, Option<Trust>, Option<String>) {
    let addresses: Vec<Address> = vec![url.parse().unwrap()];
    let identity: Option<Identity> = addresses[0]
        .is_secure()
        .then(|| Host::single_use_identity(&addresses).unwrap());
    host.listen_all(&addresses, identity.as_ref()).unwrap();
    let pem = identity.map(|i| i.for_daemons().to_string());
    let trust = pem.as_ref().map(|pem| Trust::from_pem(pem).unwrap());
    (host.urls().remove(0), trust, pem)
}

/// Waits, as the host's main thread does. Only for the test's main thread.
pub fn until(so: impl FnMut() -> bool) {
    let end = Bell::get().wait(Some(LONG), || false, so);
    assert_eq!(end, Waited::Ready);
}

pub fn task(body: impl Into<Vec<u8>>) -> Arc<Task> {
    let payload = Payload {
        constants: None,
        kind: Kind::Task,
        stream: None,
        body: body.into().into(),
    };
    Arc::new(Task::new(next_task_id(), payload))
}

pub fn submit(host: &Host, body: impl Into<Vec<u8>>) -> Arc<Task> {
    let task = task(body);
    host.submit(task.clone(), None, Target::Any);
    task
}

/// The next task that a daemon is sent.
pub fn next(worker: &mut Worker) -> Assignment {
    match worker.next(Some(Instant::now() + LONG), || false) {
        Next::Task(task) => task,
        other => panic!("a task expected, not {other:?}"),
    }
}

/// The same, for which the evaluation is over at once.
pub fn next_finished(worker: &mut Worker) -> Assignment {
    let task = next(worker);
    worker.finish();
    task
}

/// What becomes of a task; on any thread.
pub fn outcome(task: &Task) -> &Outcome {
    let (tell, told) = mpsc::channel();
    task.on_resolved(Box::new(move |_| {
        let _ = tell.send(());
    }));
    told.recv_timeout(LONG).expect("the task resolves");
    task.outcome().unwrap()
}

pub fn value(bytes: impl Into<Vec<u8>>) -> Outcome {
    Outcome::Value(bytes.into().into())
}

/// A daemon in a thread of its own that echoes until the host goes.
pub fn echoing(mut worker: Worker) -> JoinHandle<usize> {
    thread::spawn(move || {
        let mut done = 0;
        while let Next::Task(task) = worker.next(None, || false) {
            worker.finish();
            if !worker.reply(task.seq, &task.body, false) {
                break;
            }
            done += 1;
        }
        done
    })
}

/// A host that listens at one URL, and a real daemon there.
pub struct Place {
    pub scheme: &'static str,
    pub host: Host,
    pub url: String,
    pub trust: Option<Trust>,
    pub pem: Option<String>,
    daemon: Option<JoinHandle<usize>>,
}

impl Place {
    pub fn new(scheme: &'static str) -> Place {
        let mut place = Place::empty(scheme);
        place.daemon = Some(echoing(dial(&place.url, place.trust.clone())));
        until(|| place.host.counts().connections == 1);
        place
    }

    /// Without a daemon.
    pub fn empty(scheme: &'static str) -> Place {
        Place::with(scheme, Config::default())
    }

    /// Without a daemon, with these settings.
    pub fn with(scheme: &'static str, config: Config) -> Place {
        let host = Host::new(config);
        let (url, trust, pem) = listening(&any_port(scheme), &host);
        Place {
            scheme,
            host,
            url,
            trust,
            pem,
            daemon: None,
        }
    }

    pub fn is_secure(&self) -> bool {
        self.trust.is_some()
    }

    pub fn is_ws(&self) -> bool {
        self.scheme.starts_with('w')
    }

    /// The daemon gets tasks done.
    pub fn goes_on(&self) {
        for size in [1, 10_000] {
            let task = submit(&self.host, vec![7; size]);
            assert!(*outcome(&task) == value(vec![7; size]), "{}", self.url);
        }
    }

    /// How far a stranger may get before the host's own protocol begins.
    pub fn depths(&self) -> Vec<Depth> {
        let mut depths = vec![Depth::Socket];
        if self.is_secure() {
            depths.push(Depth::Tls);
        }
        if self.is_ws() {
            depths.push(Depth::WebSocket);
        }
        depths
    }

    pub fn last_depth(&self) -> Depth {
        *self.depths().last().unwrap()
    }

    pub fn stranger(&self, depth: Depth) -> Stranger {
        Stranger::connect(&self.url, depth)
    }

    /// The bytes by which a daemon would go on from there.
    pub fn greeting(&self, depth: Depth) -> Vec<u8> {
        if depth == Depth::Socket && self.is_secure() {
            let mut bytes = Vec::new();
            client().write_tls(&mut bytes).unwrap();
            bytes
        } else if depth != Depth::WebSocket && self.is_ws() {
            request(&self.url)
        } else {
            hello(VERSION)
        }
    }

    /// Closes the host; whether the daemon has left by itself.
    pub fn close(mut self) {
        self.host.close(true);
        if let Some(daemon) = self.daemon.take() {
            daemon.join().unwrap();
        }
    }
}

/// Hosts of all schemes, each with a daemon. `story` happens at all of them at the same
/// time; afterwards nobody else has been let in, and all go on.
pub fn everywhere(story: impl Fn(&Place) + Sync) {
    everywhere_with(0, story);
}

/// The same, where so many more daemons join.
pub fn everywhere_with(more: u64, story: impl Fn(&Place) + Sync) {
    let places: Vec<Place> = SCHEMES.into_iter().map(Place::new).collect();
    thread::scope(|scope| {
        for place in &places {
            scope.spawn(|| story(place));
        }
    });
    for place in places {
        place.goes_on();
        assert_eq!(place.host.counts().cumulative, 1 + more, "{}", place.url);
        place.close();
    }
}

/// How far a stranger has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    Socket,
    Tls,
    WebSocket,
}

pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Somebody who has connected to a host, and is not (or not to be known as) a daemon.
pub struct Stranger {
    pub socket: TcpStream,
    stream: Box<dyn Stream>,
    depth: Depth,
    /// WebSocket frames not yet taken apart.
    unread: Vec<u8>,
    reader: FrameReader<ToDaemon>,
}

impl Stranger {
    pub fn connect(url: &str, depth: Depth) -> Stranger {
        Stranger::try_connect(url, depth).unwrap()
    }

    pub fn try_connect(url: &str, depth: Depth) -> io::Result<Stranger> {
        let socket = TcpStream::connect(authority(url))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LONG))?;
        socket.set_write_timeout(Some(LONG))?;
        let plain = socket.try_clone()?;
        let secure = url.starts_with("tls") || url.starts_with("wss");
        let stream: Box<dyn Stream> = if secure && depth != Depth::Socket {
            let mut stream = rustls::StreamOwned::new(client(), plain);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            Box::new(stream)
        } else {
            Box::new(plain)
        };
        let mut stranger = Stranger {
            socket,
            stream,
            depth,
            unread: Vec::new(),
            reader: FrameReader::new(Limits::LINK),
        };
        if depth == Depth::WebSocket {
            stranger.stream.write_all(&request(url))?;
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stranger.stream.read_exact(&mut byte)?;
                answer.push(byte[0]);
            }
            let text = String::from_utf8_lossy(&answer).into_owned();
            assert!(text.starts_with("HTTP/1.1 101"), "{text}");
            assert!(text.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{text}");
        }
        Ok(stranger)
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Sends bytes, in a frame of WebSocket's if that is spoken.
    pub fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.depth == Depth::WebSocket {
            let framed = ws_frame(0x82, bytes);
            return self.raw(&framed);
        }
        self.raw(bytes)
    }

    pub fn tell(&mut self, message: &ToHost, body: &[u8]) -> io::Result<()> {
        let mut bytes = encode_head(message, body.len()).to_vec();
        bytes.extend_from_slice(body);
        self.say(&bytes)
    }

    /// The next message; `None` at the end.
    pub fn hear(&mut self) -> Option<(ToDaemon, Vec<u8>)> {
        loop {
            if let Some(message) = self.reader.next().unwrap() {
                return Some(message);
            }
            let mut bytes = vec![0; 64 * 1024];
            let n = self.stream.read(&mut bytes).ok().filter(|n| *n > 0)?;
            self.unread.extend_from_slice(&bytes[..n]);
            let payload = if self.depth == Depth::WebSocket {
                ws_payload(&mut self.unread)
            } else {
                std::mem::take(&mut self.unread)
            };
            let mut rest = &payload[..];
            while !rest.is_empty() {
                let taken = self.reader.feed(rest).unwrap();
                rest = &rest[taken..];
            }
        }
    }

    /// Becomes a daemon, by all the rules.
    pub fn join(&mut self, trust: Option<&Trust>) {
        self.say(&hello(VERSION)).unwrap();
        loop {
            match self.hear() {
                Some((ToDaemon::Challenge { nonce }, _)) => {
                    let secret = trust.unwrap().secret().unwrap();
                    let proof = secret.proof(b"daemon", &[&nonce]);
                    self.tell(&ToHost::Proof { proof }, &[]).unwrap();
                }
                Some((ToDaemon::Welcome { .. }, _)) => return,
                other => panic!("a welcome expected, not {other:?}"),
            }
        }
    }

    /// Reads to the end, which comes within [`LONG`].
    pub fn is_sent_away(&mut self) {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if is_timeout(&e) => panic!("still connected"),
                Err(_) => return,
            }
        }
    }

    /// Whether the end comes within this time.
    pub fn ends_within(&mut self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut bytes = vec![0; 64 * 1024];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return !is_timeout(&e),
            }
        }
    }
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Host and port.
pub fn authority(url: &str) -> &str {
    let rest = url.split_once("://").unwrap().1;
    rest.split('/').next().unwrap()
}

pub fn hello(version: u16) -> Vec<u8> {
    let hello = ToHost::Hello {
        version,
        pid: 1,
        tempdir: String::new(),
        slots: 1,
    };
    encode_head(&hello, 0).to_vec()
}

/// A frame's head that announces these lengths.
pub fn head(meta: u32, body: u64) -> Vec<u8> {
    let mut bytes = b"mira".to_vec();
    bytes.extend_from_slice(&meta.to_le_bytes());
    bytes.extend_from_slice(&body.to_le_bytes());
    bytes
}

/// The request by which WebSocket begins; the key is that of RFC 6455.
pub fn request(url: &str) -> Vec<u8> {
    let authority = authority(url);
    let path = &url.split_once("://").unwrap().1[authority.len()..];
    format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// A frame of WebSocket's from a client, whose mask changes nothing.
pub fn ws_frame(op: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![op];
    match bytes.len() {
        n @ ..126 => out.push(0x80 | n as u8),
        n @ ..65536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(bytes);
    out
}

/// Takes whole frames from a server out of `bytes`.
fn ws_payload(bytes: &mut Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let (head, len) = match bytes[..] {
            [_, n @ ..126, ..] => (2, n as usize),
            [_, 126, a, b, ..] => (4, u16::from_be_bytes([a, b]) as usize),
            [_, 127, a, b, c, d, e, f, g, h, ..] => {
                (10, u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize)
            }
            _ => return out,
        };
        if bytes.len() < head + len {
            return out;
        }
        out.extend_from_slice(&bytes[head..head + len]);
        bytes.drain(..head + len);
    }
}

/// A TLS client that believes anybody.
fn client() -> ClientConnection {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::new(config), name).unwrap()
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Waits, by looking again and again, for what nobody tells of.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < LONG, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}
