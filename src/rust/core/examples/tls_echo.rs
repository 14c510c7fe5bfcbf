//! What TLS costs: the time of a round trip, and the throughput of large messages,
//! between two threads over loopback with NNG's plain transports and those with TLS.
//! The best of several runs each, as other processes only ever add to it. Switches of
//! threads are what most of a round trip's time goes to, and are counted too.
//!
//! `cargo run --release -p mirai-core --example tls_echo [SCHEME...]`

use std::net::TcpListener;
use std::time::{Duration, Instant};

use mirai_core::tls::engine::{install, secure_dialer, secure_listener};
use mirai_core::tls::{Identity, Trust};
use nng::options::{Options, RecvBufferSize, SendBufferSize};
use nng::{DialerBuilder, ListenerBuilder, Message, Protocol, Socket};

const ROUNDS: u32 = 2000;
const HOST: &str = "127.0.0.1";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    println!(
        "{:8}{:>10}{:>15}{:>16}{:>16}",
        "", "µs/trip", "switches/trip", "256 KiB, MB/s", "1 MiB, MB/s"
    );
    for scheme in ["tcp", "tls+tcp", "ws", "wss"] {
        if args.is_empty() || args.iter().any(|a| a == scheme) {
            measure(scheme);
        }
    }
}

fn measure(scheme: &str) {
    let (host, daemon) = pair(scheme);
    let echo = {
        let daemon = daemon.clone();
        std::thread::spawn(move || echo(&daemon))
    };
    let before = switches();
    round_trip(&host);
    let switches = (switches() - before) / f64::from(ROUNDS);
    let trip = (0..10).map(|_| round_trip(&host)).fold(f64::MAX, f64::min);
    let mut best = [0f64; 2];
    for _ in 0..5 {
        for (best, size) in best.iter_mut().zip([256 << 10, 1 << 20]) {
            *best = best.max(throughput(&host, size));
        }
    }
    host.send(&b""[..]).unwrap();
    echo.join().unwrap();
    println!(
        "{scheme:8}{trip:>10.1}{switches:>15.1}{:>16.0}{:>16.0}",
        best[0], best[1]
    );
}

/// Two connected sockets.
fn pair(scheme: &str) -> (Socket, Socket) {
    let port = TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap();
    let url = format!("{scheme}://{HOST}:{}", port.port());
    let socket = || {
        let socket = Socket::new(Protocol::Pair1).unwrap();
        socket.set_opt::<SendBufferSize>(8).unwrap();
        socket.set_opt::<RecvBufferSize>(8).unwrap();
        socket
    };
    let (host, daemon) = (socket(), socket());
    install();
    let listener = ListenerBuilder::new(&host, &url).unwrap();
    let dialer = DialerBuilder::new(&daemon, &url).unwrap();
    if ["tls+tcp", "wss"].contains(&scheme) {
        let identity = Identity::single_use(&[HOST.to_owned()]).unwrap();
        let trust = Trust::from_pem(identity.for_daemons()).unwrap();
        secure_listener(listener.nng_listener(), &identity).unwrap();
        secure_dialer(dialer.nng_dialer(), &trust, HOST).unwrap();
    }
    listener.start().unwrap();
    dialer.start(false).unwrap();
    (host, daemon)
}

/// Answers small messages with themselves and large ones not at all; ends at an empty one.
fn echo(socket: &Socket) {
    loop {
        let message = socket.recv().unwrap();
        match message.len() {
            0 => return,
            1..=1024 => socket.send(message).unwrap(),
            _ => {}
        }
    }
}

/// Microseconds for 512 bytes there and back.
fn round_trip(socket: &Socket) -> f64 {
    let start = Instant::now();
    for _ in 0..ROUNDS {
        socket.send(&[1; 512][..]).unwrap();
        socket.recv().unwrap();
    }
    micros(start.elapsed()) / f64::from(ROUNDS)
}

/// One way, in megabytes a second.
fn throughput(socket: &Socket, size: usize) -> f64 {
    let count = (256 << 20) / size;
    let mut message = Message::with_capacity(size);
    message.push_back(&vec![7; size]);
    let start = Instant::now();
    for _ in 0..count {
        socket.send(message.clone()).unwrap();
    }
    // The last has arrived when this comes back.
    socket.send(&[1][..]).unwrap();
    socket.recv().unwrap();
    (count * size) as f64 / micros(start.elapsed())
}

/// How often a thread of this process has had to wait so far.
fn switches() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` has room for what the call writes; all zeros is valid too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_nvcsw as f64
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
