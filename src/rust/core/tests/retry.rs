//! Attempts over real links: waits between them, what a failed one has sent ahead, and relays.

mod common;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use mirai_core::dispatcher::{Backoff, Config, Retry, Rules, Target, TaskState};
use mirai_core::host::Host;
use mirai_core::protocol::Done;
use mirai_core::relay::{Relay, SLOTS};
use mirai_core::task::{Outcome, Task};
use mirai_core::transport::local_url;
use mirai_core::worker::{Options, Worker};

fn retry(crash: u32, error: u32, first: u64) -> Retry {
    let first = Duration::from_millis(first);
    Retry {
        crash,
        error,
        backoff: Backoff {
            first,
            factor: 1.0,
            most: first,
        },
    }
}

fn submit_with(host: &Host, body: &[u8], retry: Retry) -> Arc<Task> {
    let task = task(body);
    let rules = Rules {
        retry: Some(retry),
        ..Rules::default()
    };
    host.submit_with(task.clone(), None, Target::Any, Some(Arc::new(rules)));
    task
}

#[test]
fn a_task_that_fails_is_attempted_again_after_a_wait_and_keeps_the_reports_of_the_last() {
    for url in [any_port("tcp"), local_url()] {
        let host = Host::new(Config::default());
        let (url, trust, _) = listening(&url, &host);
        let mut worker = dial(&url, trust);
        let wait = Duration::from_millis(100);
        let doomed = submit_with(&host, b"x", retry(0, 2, 100));
        for attempt in 1..=3 {
            let start = Instant::now();
            let task = next(&mut worker);
            assert!(attempt == 1 || start.elapsed() > wait / 2 - wait / 10);
            assert!(worker.report(task.seq, &[attempt]));
            assert!(worker.reply_noted(task.seq, &[attempt][..], Done::Error, 0, Some("no")));
        }
        assert_eq!(*outcome(&doomed), Outcome::Error(vec![3].into()));
        let reports = doomed.reports().kept;
        let reports: Vec<_> = reports.iter().map(|r| r.bytes.clone()).collect();
        assert_eq!(reports, [vec![3]]);
        let row = host.task_log(1).rows.remove(0);
        assert_eq!((row.attempts, row.state), (3, TaskState::Failed));

        let last = submit_with(&host, b"x", retry(0, 2, 100));
        let task = next(&mut worker);
        assert!(worker.reply_noted(task.seq, b"e", Done::Final, 0, None));
        assert_eq!(*outcome(&last), Outcome::Error(b"e".to_vec().into()));
        host.close(true);
    }
}

#[test]
fn crashes_are_limited_and_the_last_one_is_the_reason() {
    let host = Host::new(Config::default());
    let (url, ..) = listening(&local_url(), &host);
    let task = submit_with(&host, b"x", retry(2, 0, 10));
    for _ in 0..3 {
        let mut crashing = dial(&url, None);
        next(&mut crashing);
    }
    assert_eq!(*outcome(&task), Outcome::Reset);
    let reason = task.loss().unwrap().to_string();
    assert!(reason.starts_with("daemon 3 "), "{reason}");
    host.close(true);
}

#[test]
fn what_a_relay_has_lost_is_attempted_again() {
    let (above, below) = (Host::new(Config::default()), Host::new(Config::default()));
    let (above_url, ..) = listening(&local_url(), &above);
    let (below_url, ..) = listening(&local_url(), &below);
    let relay = Relay::new(below.clone());
    let options = Options {
        slots: SLOTS,
        ..options(None)
    };
    let address = above_url.parse().unwrap();
    let mut worker = Worker::dial(&address, &options, relay.clone(), None, || false).unwrap();
    let relaying = thread::spawn(move || relay.run(&mut worker, || false));
    let task = submit_with(&above, b"x", retry(1, 0, 0));
    let mut crashing = dial(&below_url, None);
    next(&mut crashing);
    drop(crashing);
    let mut staying = dial(&below_url, None);
    let again = next(&mut staying);
    assert!(staying.reply(again.seq, b"y", false));
    assert_eq!(*outcome(&task), value(b"y".to_vec()));
    // The host above hears what became of the daemon.
    let task = submit_with(&above, b"x", retry(0, 0, 0));
    next(&mut staying);
    drop(staying);
    assert_eq!(*outcome(&task), Outcome::Reset);
    let reason = task.loss().unwrap().to_string();
    assert!(reason.starts_with("behind a relay, daemon 2 "), "{reason}");
    above.close(true);
    relaying.join().unwrap();
}
