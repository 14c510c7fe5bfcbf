//! URLs and hosts come and go, in the middle of whatever happens, and leave nothing behind.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use mirai_core::dispatcher::Config;
use mirai_core::host::Host;
use mirai_core::task::Outcome;
use mirai_core::transport::{Address, local_url};
use mirai_core::worker::{Next, Worker};

fn next_seq(worker: &mut Worker) -> u64 {
    match worker.next(Some(Instant::now() + LONG), || false) {
        Next::Task(task) => task.seq,
        other => panic!("a task expected, not {other:?}"),
    }
}

fn is_lost(worker: &mut Worker) {
    let next = worker.next(Some(Instant::now() + LONG), || false);
    assert!(matches!(next, Next::Lost { end: false }), "{next:?}");
}

#[test]
fn a_fresh_url_takes_the_place_of_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let ipc = format!("ipc://{}", dir.path().join("s").display());
    for given in [any_port("ws"), any_port("wss"), local_url(), ipc] {
        let host = Host::new(Config::default());
        let (old, trust, _) = listening(&given, &host);
        let instance = || host.status().endpoints[0].counts;
        let mut worker = dial(&old, trust.clone());
        until(|| host.counts().connections == 1);
        let before = instance();
        let running = submit(&host, "running");
        next_seq(&mut worker);
        let queued = submit(&host, "queued");

        assert_eq!(host.renew(0, false).unwrap(), None, "{given}");
        assert_eq!(host.renew(1, true).unwrap(), None);
        assert!(running.outcome().is_none());
        let new = host.renew(0, true).unwrap().expect("a fresh URL");
        assert_ne!(new, old);
        assert_eq!(host.urls(), std::slice::from_ref(&new));
        assert_eq!(*outcome(&running), Outcome::Closed, "{given}");
        is_lost(&mut worker);
        assert!(queued.outcome().is_none());
        assert!(try_dial(&old, &options(trust.clone())).is_err());
        until(|| host.counts().connections == 0);
        assert_eq!((before.instance, instance().instance), (1, -1));

        let next = echoing(dial(&new, trust.clone()));
        assert_eq!(*outcome(&queued), value("queued"), "{given}");
        assert_eq!(instance().instance, 2);
        // Nobody there: no need for force. And again, from the URL as it was given.
        host.close(true);
        next.join().unwrap();
        let host = Host::new(Config::default());
        let (old, ..) = listening(&given, &host);
        let first = host.renew(0, false).unwrap().unwrap();
        let second = host.renew(0, false).unwrap().unwrap();
        assert!(old != first && first != second && old != second);
        assert_eq!(first.len(), second.len());
        host.close(true);
    }
}

/// Daemons dial while the URL is renewed: those that are connected then are known, and get tasks.
fn renewed_while_they_dial(given: &str, round: usize) {
    let host = Host::new(Config::default());
    let (url, trust, _) = listening(given, &host);
    let served = AtomicUsize::new(0);
    let dialled = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let worker = try_dial(&url, &options(trust.clone()));
                dialled.fetch_add(1, Ordering::SeqCst);
                let Ok(mut worker) = worker else { return };
                served.fetch_add(1, Ordering::SeqCst);
                let next = worker.next(Some(Instant::now() + LONG), || false);
                assert!(matches!(next, Next::Lost { .. }), "{next:?}");
                served.fetch_sub(1, Ordering::SeqCst);
            });
        }
        while dialled.load(Ordering::SeqCst) < round % 8 {
            thread::yield_now();
        }
        host.renew(0, true).unwrap().expect("a fresh URL");
        while dialled.load(Ordering::SeqCst) < 8 {
            thread::yield_now();
        }
        eventually("those that are not known are sent away", || {
            host.counts().connections == served.load(Ordering::SeqCst)
        });
        host.close(true);
    });
}

#[test]
fn a_daemon_that_joins_while_the_url_is_renewed_is_known_or_sent_away() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..60 {
        let ipc = format!("ipc://{}", dir.path().join("s").display());
        for given in [local_url(), ipc, any_port("ws")] {
            renewed_while_they_dial(&given, round);
        }
    }
}

#[test]
fn a_url_without_a_path_stays() {
    for scheme in ["tcp", "tls+tcp"] {
        let place = Place::new(scheme);
        assert_eq!(place.host.renew(0, true).unwrap(), None);
        place.goes_on();
        place.close();
    }
}

#[test]
fn paths_share_a_port_and_come_and_go_by_themselves() {
    for scheme in ["ws", "wss"] {
        let host = Host::new(Config::default());
        let given = [
            format!("{scheme}://127.0.0.1:0/a"),
            format!("{scheme}://127.0.0.1:0/b/c"),
        ];
        let given: [Address; 2] = given.map(|url| url.parse().unwrap());
        let identity = given[0]
            .is_secure()
            .then(|| Host::single_use_identity(&given).unwrap());
        host.listen_all(&given, identity.as_ref()).unwrap();
        let urls = host.urls();
        assert_eq!(authority(&urls[0]), authority(&urls[1]));
        let trust = identity
            .as_ref()
            .map(|i| mirai_core::tls::Trust::from_pem(i.for_daemons()).unwrap());
        let daemons = [0, 1].map(|i| echoing(dial(&urls[i], trust.clone())));
        until(|| host.counts().connections == 2);
        let per_url = |host: &Host| {
            host.status()
                .endpoints
                .iter()
                .map(|e| e.counts.online)
                .collect::<Vec<_>>()
        };
        assert_eq!(per_url(&host), [1, 1]);
        for nowhere in ["", "/b", "/c", "/a/b", "/aa", "/b/c/d"] {
            let url = format!("{scheme}://{}{nowhere}", authority(&urls[0]));
            assert!(try_dial(&url, &options(trust.clone())).is_err(), "{url}");
        }
        // Another host may be at the same port, but not with another identity or path.
        let other = Host::new(Config::default());
        let base = format!("{scheme}://{}", authority(&urls[0]));
        let at = |path: &str| [format!("{base}{path}").parse().unwrap()];
        assert!(other.listen_all(&at("/a"), identity.as_ref()).is_err());
        other.listen_all(&at("/z"), identity.as_ref()).unwrap();
        if identity.is_some() {
            let stranger = Host::single_use_identity(&given).unwrap();
            let third = Host::new(Config::default());
            assert!(third.listen_all(&at("/y"), Some(&stranger)).is_err());
        }
        host.close(true);
        for daemon in daemons {
            daemon.join().unwrap();
        }
        let daemon = echoing(dial(&other.urls()[0], trust.clone()));
        let task = submit(&other, "still here");
        assert_eq!(*outcome(&task), value("still here"));
        assert!(try_dial(&urls[0], &options(trust)).is_err());
        other.close(true);
        daemon.join().unwrap();
    }
}

/// Hosts are closed while daemons connect, work and send; four threads of daemons each.
fn storm(scheme: &'static str, rounds: usize) {
    for round in 0..rounds {
        let host = Host::new(Config::default());
        let (url, trust, _) = listening(&any_port(scheme), &host);
        let closing = AtomicBool::new(false);
        let answers = AtomicUsize::new(0);
        let tasks: Vec<_> = (0..40)
            .map(|i| submit(&host, vec![1; if i % 8 == 0 { 3_000_000 } else { 100 }]))
            .collect();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !closing.load(Ordering::SeqCst) {
                        let Ok(mut worker) = try_dial(&url, &options(trust.clone())) else {
                            continue;
                        };
                        for _ in 0..3 {
                            let until = Some(Instant::now() + Duration::from_millis(50));
                            let Next::Task(task) = worker.next(until, || false) else {
                                break;
                            };
                            worker.reply(task.seq, &task.body, false);
                            answers.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
            // Later each time, so that it hits all stages.
            // Every daemon that goes takes with it what it may have begun.
            let waiting = || tasks.iter().any(|task| !task.is_resolved());
            while answers.load(Ordering::SeqCst) < round % 20 && waiting() {
                thread::yield_now();
            }
            host.close(round % 2 == 0);
            closing.store(true, Ordering::SeqCst);
        });
        for task in tasks {
            outcome(&task);
        }
    }
}

#[test]
fn hosts_are_closed_in_the_middle_of_everything() {
    thread::scope(|scope| {
        for scheme in SCHEMES {
            scope.spawn(|| storm(scheme, 20));
        }
    });
}

#[test]
fn fifty_hosts_leave_nothing_behind() {
    let one = |scheme| {
        let place = Place::new(scheme);
        let stranger = place.stranger(Depth::Socket);
        let half = place.stranger(place.last_depth());
        let body = vec![1; 1_000_000];
        let (sent, other) = (submit(&place.host, body.clone()), submit(&place.host, body));
        outcome(&sent);
        place.close();
        outcome(&other);
        drop((stranger, half));
    };
    // What a process holds for ever is there after the first.
    for scheme in SCHEMES {
        one(scheme);
    }
    // Until then, remains of them are cleared away.
    thread::sleep(Duration::from_millis(500));
    let (descriptors, threads) = held();
    let before = memory();
    for scheme in SCHEMES {
        for _ in 0..50 {
            one(scheme);
        }
    }
    eventually("descriptors and threads are given back", || {
        let now = held();
        now.0 <= descriptors && now.1 <= threads
    });
    let grown = memory() - before;
    assert!(grown < 30 << 20, "{grown}");
}
