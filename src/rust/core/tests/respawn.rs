//! Daemons that are started again when they have crashed, or left.
//!
//! As in `processes.rs`, this program itself is run as the daemon, with [`ROLE`] set to the URL.
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::*;
use mirai_core::dispatcher::{Config, Retry};
use mirai_core::host::{Host, MOST_CRASHES, Respawn};
use mirai_core::process::{Program, line};
use mirai_core::task::{Outcome, Task};
use mirai_core::transport::local_url;
use mirai_core::worker::Next;

const ROLE: &str = "MIRAI_TEST_ROLE";

/// What the test's processes run: a daemon whose tasks say what becomes of it.
#[test]
fn a_role() {
    let Ok(url) = std::env::var(ROLE) else {
        return;
    };
    // SAFETY: nothing else is done in this process.
    unsafe { line::find() };
    if url == "fails" {
        eprintln!("no such luck");
        end(2);
    }
    let mut worker = dial(&url, None);
    line::tell_connected();
    while let Next::Task(task) = worker.next(None, || false) {
        match &task.body[..] {
            b"kill" => {
                // SAFETY: no pointers.
                unsafe { libc::raise(libc::SIGKILL) };
            }
            b"exit" => end(3),
            b"leave" => {
                worker.reply(task.seq, b"left", false);
                worker.leave();
                end(0);
            }
            // The connection ends before the process does.
            body if body.starts_with(b"leave, then wait ") => {
                worker.reply(task.seq, b"left", false);
                worker.leave();
                wait_for_file(&body["leave, then wait ".len()..]);
                end(0);
            }
            body if body.starts_with(b"hang up, then wait ") => {
                let file = body["hang up, then wait ".len()..].to_vec();
                drop(worker);
                wait_for_file(&file);
                end(3);
            }
            b"mask" => {
                let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
                let blocked = status.lines().find_map(|l| l.strip_prefix("SigBlk:"));
                worker.reply(task.seq, blocked.unwrap().trim().as_bytes(), false);
            }
            body => {
                if let Some(file) = body.strip_prefix(b"wait ") {
                    wait_for_file(file);
                }
                worker.reply(task.seq, body, false);
            }
        }
    }
    end(0);
}

fn wait_for_file(path: &[u8]) {
    let path = String::from_utf8_lossy(path);
    while !Path::new(&*path).exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn end(status: i32) -> ! {
    // SAFETY: ends the process; the test harness shall say nothing.
    unsafe { libc::_exit(status) }
}

fn daemon(url: &str) -> Program {
    Program {
        path: std::env::current_exe().unwrap(),
        args: ["a_role", "--exact", "--test-threads=1", "--nocapture"]
            .map(Into::into)
            .into(),
        env: vec![(ROLE.into(), Some(url.into()))],
        attached: true,
        ..Program::default()
    }
}

/// A host with a daemon that is kept. Counts how often that is started.
fn keeping(respawn: Respawn, url: &str, config: Config) -> (Host, Arc<AtomicU32>) {
    let host = Host::new(config);
    let (url, ..) = listening(url, &host);
    let started = Arc::new(AtomicU32::new(0));
    let count = started.clone();
    host.keep(respawn, move |before| {
        assert_eq!(count.fetch_add(1, Ordering::SeqCst), before);
        daemon(&url)
    })
    .unwrap();
    until(|| host.counts().connections == 1);
    (host, started)
}

/// Waits until all daemons are over, and none will be started again.
fn none_is_to_come(host: &Host) {
    eventually("no daemon lives", || host.daemons_alive() == 0);
}

fn reason(task: &Task) -> String {
    assert_eq!(*outcome(task), Outcome::Reset);
    task.loss().expect("there is a reason").to_string()
}

#[test]
fn a_daemon_that_crashes_is_started_again() {
    for url in [local_url(), any_port("tcp")] {
        let (host, started) = keeping(Respawn::Crashed, &url, Config::default());
        let doomed = submit(&host, b"kill");
        let waiting = submit(&host, b"waits");
        assert_eq!(*outcome(&waiting), value(b"waits".to_vec()));
        let reason = reason(&doomed);
        // Across the network, what a daemon has said of itself may be lost with it.
        let near = url.starts_with("abstract:");
        assert!(!near || reason.ends_with("killed by signal 9"), "{reason}");
        assert_eq!(started.load(Ordering::SeqCst), 2);
        assert_eq!(host.counts().cumulative, 2);
        host.close(true);
    }
}

#[test]
fn a_daemon_that_is_started_again_blocks_no_signals() {
    let (host, _) = keeping(Respawn::Crashed, &local_url(), Config::default());
    for _ in 0..2 {
        // Of the thread that serves the tasks, which has the mask of the thread that made it.
        assert_eq!(*outcome(&submit(&host, b"mask")), value(vec![b'0'; 16]));
        reason(&submit(&host, b"kill"));
    }
    host.close(true);
}

#[test]
fn a_daemon_that_leaves_is_started_again_only_where_that_is_wanted() {
    let (host, started) = keeping(Respawn::Crashed, &local_url(), Config::default());
    assert_eq!(*outcome(&submit(&host, b"leave")), value(b"left".to_vec()));
    until(|| host.counts().connections == 0);
    let waiting = submit(&host, b"x");
    none_is_to_come(&host);
    assert!(!waiting.is_resolved());
    assert_eq!(started.load(Ordering::SeqCst), 1);
    host.close(true);

    let (host, started) = keeping(Respawn::Always, &local_url(), Config::default());
    for _ in 0..2 * MOST_CRASHES {
        assert_eq!(*outcome(&submit(&host, b"leave")), value(b"left".to_vec()));
    }
    until(|| host.counts().connections == 1 && started.load(Ordering::SeqCst) == 11);
    host.close(true);
}

#[test]
fn one_that_is_not_kept_stays_away() {
    let (host, started) = keeping(Respawn::Never, &local_url(), Config::default());
    let doomed = submit(&host, b"kill");
    reason(&doomed);
    let waiting = submit(&host, b"x");
    none_is_to_come(&host);
    assert!(!waiting.is_resolved());
    assert_eq!(started.load(Ordering::SeqCst), 1);
    host.close(true);
}

#[test]
fn crashes_without_a_finished_task_between_them_have_an_end_and_what_waits_is_told() {
    for url in [local_url(), any_port("tcp")] {
        let (host, started) = keeping(Respawn::Crashed, &url, Config::default());
        for _ in 0..3 {
            submit(&host, b"exit");
        }
        // This one counts as finished.
        assert_eq!(*outcome(&submit(&host, b"x")), value(b"x".to_vec()));
        let doomed: Vec<_> = (0..MOST_CRASHES).map(|_| submit(&host, b"exit")).collect();
        let waiting: Vec<_> = (0..10).map(|_| submit(&host, b"x")).collect();
        // Across the network, what a daemon has said of itself may be lost with it.
        let near = url.starts_with("abstract:");
        for task in &doomed {
            let reason = reason(task);
            assert!(!near || reason.contains("exited with status 3"), "{reason}");
        }
        for task in &waiting {
            let reason = reason(task);
            let start = format!("daemon {} (pid ", 3 + MOST_CRASHES);
            assert!(!near || reason.starts_with(&start), "{reason}");
            let end = "was the last daemon, and is not started again after 5 crashes without a finished task \
                       between them: it exited with status 3";
            assert!(reason.ends_with(end), "{reason}");
        }
        assert_eq!(started.load(Ordering::SeqCst), 3 + MOST_CRASHES);
        // What comes now waits for a daemon, and why there is none can be asked.
        let later = submit(&host, b"later");
        let why = host.why_none_is_left().unwrap();
        assert!(why.ends_with("it exited with status 3"), "{why}");
        host.keep(Respawn::Crashed, {
            let url = host.urls()[0].clone();
            move |_| daemon(&url)
        })
        .unwrap();
        assert_eq!(*outcome(&later), value(b"later".to_vec()));
        assert_eq!(host.why_none_is_left(), None);
        host.close(true);
    }
}

#[test]
fn a_task_that_kills_every_daemon_ends_in_spite_of_retry() {
    let config = Config {
        retry: Retry::AFTER_CRASH,
        ..Config::default()
    };
    let (host, _) = keeping(Respawn::Crashed, &local_url(), config);
    let doomed = submit(&host, b"kill");
    assert!(
        reason(&doomed).contains("after 5 crashes"),
        "{}",
        reason(&doomed)
    );
    assert_eq!(host.task_log(1).rows[0].attempts, MOST_CRASHES);
    host.close(true);
}

#[test]
fn while_another_daemon_is_left_what_waits_goes_there() {
    let config = Config {
        retry: Retry::AFTER_CRASH,
        ..Config::default()
    };
    let (host, _) = keeping(Respawn::Crashed, &local_url(), config);
    let other = dial(&host.urls()[0], None);
    until(|| host.counts().connections == 2);
    let tasks: Vec<_> = (0..20).map(|_| submit(&host, b"kill")).collect();
    eventually("the log says why it is gone for good", || {
        let rows = host.daemon_log().rows;
        let reasons = rows.iter().filter_map(|row| row.reason.as_deref());
        let end = "killed by signal 9; it is not started again: 5 crashes without a finished task between them";
        reasons.filter(|reason| reason.ends_with(end)).count() == 1
    });
    echoing(other);
    for task in tasks {
        assert_eq!(*outcome(&task), value(b"kill".to_vec()));
    }
    host.close(true);
}

#[test]
fn one_that_cannot_be_started_again_says_why() {
    for fails in [true, false] {
        let host = Host::new(Config::default());
        let (url, ..) = listening(&local_url(), &host);
        host.keep(Respawn::Crashed, move |before| match before {
            0 => daemon(&url),
            _ if fails => daemon("fails"),
            _ => Program {
                path: "/nowhere".into(),
                ..daemon("")
            },
        })
        .unwrap();
        until(|| host.counts().connections == 1);
        submit(&host, b"kill");
        let waiting = reason(&submit(&host, b"x"));
        let end = if fails {
            "it exited with status 2 and said:\nno such luck"
        } else {
            "it cannot be started: No such file or directory (os error 2)"
        };
        assert!(waiting.ends_with(end), "{waiting}");
        host.close(true);
    }
}

#[test]
fn a_first_launch_that_fails_is_not_tried_again() {
    let host = Host::new(Config::default());
    let launches = Arc::new(AtomicU32::new(0));
    let counted = launches.clone();
    let child = host.keep(Respawn::Always, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        daemon("fails")
    });
    let child = child.unwrap();
    until(|| child.exit().is_some());
    none_is_to_come(&host);
    host.close(true);
    assert_eq!(launches.load(Ordering::SeqCst), 1);
}

#[test]
fn one_that_takes_the_place_of_another_is_set_up_as_that_was() {
    let (host, _) = keeping(Respawn::Crashed, &local_url(), Config::default());
    let everywhere = |body: &'static [u8]| {
        let mut made = Vec::new();
        let submitted = host.submit_to_each(1, |n| {
            made = (0..n).map(|_| task(body)).collect();
            Some(made.clone())
        });
        submitted.unwrap();
        made
    };
    for body in [&b"one"[..], b"two", b"one"] {
        for task in everywhere(body) {
            assert_eq!(*outcome(&task), value(body.to_vec()));
        }
    }
    // This is not repeated, and neither is what fails.
    for task in everywhere(b"kill") {
        reason(&task);
    }
    let rows = |n| {
        eventually("all are over", || host.counts().completed == n);
        host.task_log(100).rows
    };
    let again = rows(6);
    assert!(again[4..].iter().all(|row| row.peer == Some(2)));
    reason(&submit(&host, b"kill"));
    assert!(rows(9)[7..].iter().all(|row| row.peer == Some(3)));
    host.close(true);
}

/// A host with a daemon that stays, and others in reserve, which leave upon a task that says so.
fn with_reserve(n: u32) -> (Host, Arc<AtomicU32>) {
    let (host, started) = keeping(Respawn::Crashed, &local_url(), Config::default());
    for _ in 0..n {
        let (url, started) = (host.urls()[0].clone(), started.clone());
        host.reserve(move |_| {
            started.fetch_add(1, Ordering::SeqCst);
            daemon(&url)
        });
    }
    (host, started)
}

#[test]
fn daemons_in_reserve_come_as_the_queue_asks_and_no_more() {
    let (host, started) = with_reserve(3);
    // A task that is taken at once asks for nobody.
    assert_eq!(*outcome(&submit(&host, b"x")), value(b"x".to_vec()));
    assert_eq!(started.load(Ordering::SeqCst), 1);
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let wait = format!("wait {}", go.display());
    let tasks: Vec<_> = (0..3).map(|_| submit(&host, wait.as_bytes())).collect();
    eventually("one for each task", || host.counts().connections == 3);
    let more: Vec<_> = (0..10).map(|_| submit(&host, wait.as_bytes())).collect();
    eventually("all there are", || host.counts().connections == 4);
    assert_eq!(host.counts().executing, 4);
    std::fs::write(&go, "").unwrap();
    for task in tasks.iter().chain(&more) {
        assert_eq!(*outcome(task), value(wait.clone()));
    }
    assert_eq!(started.load(Ordering::SeqCst), 4);
    host.close(true);
}

#[test]
fn a_daemon_in_reserve_that_has_left_or_crashed_may_come_again() {
    let (host, started) = with_reserve(1);
    let dir = tempfile::tempdir().unwrap();
    for (round, end) in [&b"leave"[..], b"kill", b"leave"].into_iter().enumerate() {
        let go = dir.path().join(round.to_string());
        let wait = format!("wait {}", go.display());
        let busy = submit(&host, wait.as_bytes());
        let ends = submit(&host, end);
        outcome(&ends);
        eventually("it is gone", || host.counts().connections == 1);
        std::fs::write(&go, "").unwrap();
        assert_eq!(*outcome(&busy), value(wait));
    }
    assert_eq!(started.load(Ordering::SeqCst), 4);
    host.close(true);
}

/// While the process of a daemon runs whose connection is over, it counts as one that starts: a task that waits calls none
/// from the reserve. When it is gone for good, one has to come in its place.
#[test]
fn a_daemon_in_reserve_comes_for_one_that_does_not_come_again() {
    let another = Host::new(Config::default());
    let (url, ..) = listening(&local_url(), &another);
    echoing(dial(&url, None));
    until(|| another.counts().connections == 1);
    for end in ["leave", "hang up"] {
        let (host, started) = keeping(Respawn::Crashed, &local_url(), Config::default());
        let crashes = if end == "leave" { 0 } else { MOST_CRASHES - 1 };
        for n in 0..crashes {
            reason(&submit(&host, b"kill"));
            until(|| host.counts().cumulative == u64::from(n) + 2);
        }
        let (url, reserve) = (host.urls()[0].clone(), Arc::new(AtomicU32::new(0)));
        let count = reserve.clone();
        host.reserve(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            daemon(&url)
        });
        let dir = tempfile::tempdir().unwrap();
        let go = dir.path().join("go");
        outcome(&submit(&host, format!("{end}, then wait {}", go.display())));
        until(|| host.counts().connections == 0);
        // The I/O thread reads this reply when it is done with the end of that connection.
        outcome(&submit(&another, b"x"));
        let waiting = submit(&host, b"x");
        assert_eq!(
            (host.daemons_alive(), reserve.load(Ordering::SeqCst)),
            (1, 0)
        );
        std::fs::write(&go, "").unwrap();
        assert_eq!(*outcome(&waiting), value(b"x".to_vec()), "{end}");
        assert_eq!(started.load(Ordering::SeqCst), crashes + 1);
        assert_eq!(reserve.load(Ordering::SeqCst), 1);
        host.close(true);
    }
    another.close(true);
}

#[test]
fn crashes_have_an_end_with_a_reserve_too() {
    let config = Config {
        retry: Retry::AFTER_CRASH,
        ..Config::default()
    };
    let (host, started) = keeping(Respawn::Crashed, &local_url(), config);
    let (url, reserve) = (host.urls()[0].clone(), Arc::new(AtomicU32::new(0)));
    let count = reserve.clone();
    host.reserve(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        daemon(&url)
    });
    let doomed = submit(&host, b"kill");
    assert!(
        reason(&doomed).contains("after 5 crashes"),
        "{}",
        reason(&doomed)
    );
    for count in [started, reserve] {
        assert!(count.load(Ordering::SeqCst) <= MOST_CRASHES);
    }
    host.close(true);
}

#[test]
fn a_daemon_in_reserve_is_set_up_as_the_others_were() {
    let (host, _) = with_reserve(1);
    let mut made = Vec::new();
    let submitted = host.submit_to_each(1, |n| {
        made = (0..n).map(|_| task(b"set up".to_vec())).collect();
        Some(made.clone())
    });
    submitted.unwrap();
    outcome(&made[0]);
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let wait = format!("wait {}", go.display());
    let tasks: Vec<_> = (0..2).map(|_| submit(&host, wait.as_bytes())).collect();
    eventually("both run", || host.counts().executing == 2);
    std::fs::write(&go, "").unwrap();
    tasks.iter().for_each(|task| {
        outcome(task);
    });
    eventually("all are over", || host.counts().completed == 4);
    host.close(true);
}

#[test]
fn a_host_that_closes_starts_nothing_again() {
    for _ in 0..5 {
        let (host, started) = keeping(Respawn::Always, &local_url(), Config::default());
        for body in [&b"leave"[..], b"kill", b"kill"] {
            submit(&host, body);
        }
        host.close(true);
        let before = started.load(Ordering::SeqCst);
        none_is_to_come(&host);
        assert_eq!(started.load(Ordering::SeqCst), before);
    }
}
