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
    let trust = Trust::from_pem(identity.for_daemons().unwrap()).unwrap();
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
