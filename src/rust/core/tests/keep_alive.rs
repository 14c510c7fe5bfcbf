//! Peers that are there but silent, as after a pulled cable, are given up by either end;
//! those that are busy, or slow, are not. And daemons wait for hosts to come back.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use mirai_core::dispatcher::{Config, Policy, Retry, Target};
use mirai_core::host::Host;
use mirai_core::task::Outcome;
use mirai_core::tls::{Identity, Trust};
use mirai_core::transport::Address;
use mirai_core::worker::{DialError, Next, Options, Worker};

const PATIENCE: Duration = Duration::from_millis(600);

/// What a cable does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cable {
    Whole,
    /// Nothing passes, and nobody is told.
    Pulled,
    /// Some kilobytes at a time.
    Slow,
}

/// A host behind a cable: whoever connects to `port` talks to the host through it.
struct Proxy {
    port: u16,
    cable: Arc<(Mutex<Cable>, Condvar)>,
}

impl Proxy {
    fn new(url: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let cable = Arc::new((Mutex::new(Cable::Whole), Condvar::new()));
        let (host, theirs) = (authority(url).to_owned(), cable.clone());
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(&host));
                let Ok(far) = far else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let ends = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let cable = theirs.clone();
                    thread::spawn(move || forward(ends.0, ends.1, &cable));
                }
            }
        });
        Proxy { port, cable }
    }

    fn set(&self, cable: Cable) {
        *self.cable.0.lock().unwrap() = cable;
        self.cable.1.notify_all();
    }

    /// The URL of the host, through here.
    fn url(&self, url: &str) -> String {
        let (_, port) = authority(url).rsplit_once(':').unwrap();
        url.replace(&format!(":{port}"), &format!(":{}", self.port))
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, cable: &(Mutex<Cable>, Condvar)) {
    let mut bytes = [0; 16 * 1024];
    loop {
        let n = from.read(&mut bytes).unwrap_or(0);
        let state = cable.0.lock().unwrap();
        let state = cable.1.wait_while(state, |c| *c == Cable::Pulled).unwrap();
        let slow = *state == Cable::Slow;
        drop(state);
        if slow {
            thread::sleep(Duration::from_millis(10));
        }
        if n == 0 || to.write_all(&bytes[..n]).is_err() {
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// A host of little patience, what to dial, and the cable between.
fn behind_a_cable(
    scheme: &str,
    config: Config,
    patience: Duration,
) -> (Host, String, Options, Proxy) {
    let host = Host::with_patience(config, patience);
    let (url, trust, _) = listening(&any_port(scheme), &host);
    let proxy = Proxy::new(&url);
    let options = Options {
        asyncdial: true,
        ..options(trust)
    };
    (host, proxy.url(&url), options, proxy)
}

fn is_lost(worker: &mut Worker) {
    match worker.next(Some(Instant::now() + LONG), || false) {
        Next::Lost { end } => assert!(!end),
        other => panic!("the end expected, not {other:?}"),
    }
}

#[test]
fn silence_ends_a_link_at_both_ends_until_the_cable_is_mended() {
    for scheme in SCHEMES {
        let (host, url, options, proxy) = behind_a_cable(scheme, Config::default(), PATIENCE);
        let mut worker = try_dial(&url, &options).unwrap();
        let running = submit(&host, "running");
        next(&mut worker);
        let start = Instant::now();
        proxy.set(Cable::Pulled);
        let again = thread::spawn(move || {
            is_lost(&mut worker);
            assert!(start.elapsed() >= PATIENCE / 3);
            drop(worker);
            // Reaches the cable's near end, and hears nothing until it is mended.
            echoing(try_dial(&url, &options).unwrap())
        });
        assert_eq!(*outcome(&running), Outcome::Reset, "{scheme}");
        assert!(start.elapsed() >= PATIENCE / 3);
        until(|| host.counts().connections == 0);
        let queued = submit(&host, "queued");
        proxy.set(Cable::Whole);
        assert_eq!(*outcome(&queued), value("queued"), "{scheme}");
        host.close(true);
        again.join().unwrap().join().unwrap();
    }
}

#[test]
fn what_a_silent_daemon_was_to_do_is_done_by_another() {
    let config = Config {
        retry: Retry::AFTER_CRASH,
        policy: Policy::RoundRobin,
        ..Config::default()
    };
    let (host, url, options, proxy) = behind_a_cable("tcp", config, PATIENCE);
    let mut silent = try_dial(&url, &options).unwrap();
    until(|| host.counts().connections == 1);
    let task = submit(&host, "once more");
    next(&mut silent);
    proxy.set(Cable::Pulled);
    let other = echoing(dial(&host.urls()[0], None));
    assert_eq!(*outcome(&task), value("once more"));
    host.close(true);
    other.join().unwrap();
}

#[test]
fn a_daemon_that_is_only_busy_is_waited_for() {
    for scheme in SCHEMES {
        let host = Host::with_patience(Config::default(), PATIENCE);
        let (url, trust, _) = listening(&any_port(scheme), &host);
        let mut worker = dial(&url, trust);
        let task = submit(&host, "long");
        let got = next(&mut worker);
        // Its main thread does not look at the link for this long.
        thread::sleep(PATIENCE * 4);
        assert!(task.outcome().is_none());
        assert!(worker.reply(got.seq, b"done", false));
        assert_eq!(*outcome(&task), value("done"));
        assert_eq!(host.counts().cumulative, 1);
        // And when there is nothing to do at all.
        thread::sleep(PATIENCE * 2);
        assert_eq!(host.counts().connections, 1, "{scheme}");
        host.close(false);
    }
}

#[test]
fn what_takes_long_to_send_may_take_long() {
    // Longer than whatever else this machine does may keep anybody from the cable.
    let patience = PATIENCE * 3;
    for scheme in SCHEMES {
        let (host, url, options, proxy) = behind_a_cable(scheme, Config::default(), patience);
        let daemon = echoing(try_dial(&url, &options).unwrap());
        until(|| host.counts().connections == 1);
        proxy.set(Cable::Slow);
        let start = Instant::now();
        let body: Vec<u8> = (0..8 << 20).map(|i: u32| (i * 7) as u8).collect();
        let task = submit(&host, body.clone());
        assert!(*outcome(&task) == value(body), "{scheme}");
        assert!(start.elapsed() > patience * 3);
        proxy.set(Cable::Whole);
        assert_eq!(host.counts().cumulative, 1);
        host.close(true);
        daemon.join().unwrap();
    }
}

#[test]
fn daemons_outlive_their_host_and_serve_the_next() {
    for scheme in SCHEMES {
        let given: Vec<Address> = vec![any_port(scheme).parse().unwrap()];
        let identity: Option<Identity> = given[0]
            .is_secure()
            .then(|| Host::single_use_identity(&given).unwrap());
        let first = Host::new(Config::default());
        first.listen_all(&given, identity.as_ref()).unwrap();
        let url = first.urls().remove(0);
        let trust = identity
            .as_ref()
            .map(|i| Trust::from_pem(i.for_daemons()).unwrap());
        let options = Options {
            asyncdial: true,
            ..options(trust)
        };
        let mut worker = try_dial(&url, &options).unwrap();
        until(|| first.counts().connections == 1);
        first.close(false);
        is_lost(&mut worker);
        drop(worker);
        let theirs = url.clone();
        let dialling = thread::spawn(move || echoing(try_dial(&theirs, &options).unwrap()));
        // Some attempts come to nothing before anybody listens.
        thread::sleep(Duration::from_millis(300));
        let second = Host::new(Config::default());
        let there: Vec<Address> = vec![url.parse().unwrap()];
        second.listen_all(&there, identity.as_ref()).unwrap();
        let task = task("for the second");
        second.submit(task.clone(), None, Target::Any);
        assert_eq!(*outcome(&task), value("for the second"), "{scheme}");
        second.close(true);
        dialling.join().unwrap().join().unwrap();
    }
}

#[test]
fn waiting_for_a_host_ends_by_time_and_by_interrupt() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    for scheme in ["tcp", "ws"] {
        let address: Address = format!("{scheme}://127.0.0.1:{port}").parse().unwrap();
        let options = Options {
            asyncdial: true,
            ..options(None)
        };
        let dial = |until, interrupted: &dyn Fn() -> bool| {
            Worker::dial(&address, &options, Arc::new(NoRuntime), until, interrupted).map(drop)
        };
        let soon = Instant::now() + Duration::from_millis(300);
        assert!(matches!(
            dial(Some(soon), &|| false),
            Err(DialError::TimedOut)
        ));
        assert!(Instant::now() >= soon);
        let asked = std::cell::Cell::new(0);
        let third = || asked.replace(asked.get() + 1) == 3;
        assert!(matches!(dial(None, &third), Err(DialError::Interrupted)));
    }
}
