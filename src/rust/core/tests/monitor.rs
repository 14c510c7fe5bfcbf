//! Monitors that attach to this process: what they are told, and what they may do.
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use mirai_core::dispatcher::Config;
use mirai_core::host::Host;
use mirai_core::host::monitor::{self, FORMAT, Heard, INTERVAL, MOST_MONITORS, Monitor, Snapshot};
use mirai_core::protocol::Done;
use mirai_core::task::Outcome;
use mirai_core::transport::local_url;
use mirai_core::worker::{Next, Worker};

/// A host on this machine that monitors are shown under this name, and a daemon there.
fn shown(name: &str) -> (Host, Worker) {
    let host = Host::new(Config::default());
    let (url, trust, _) = listening(&local_url(), &host);
    monitor::watch(name, &host);
    let worker = dial(&url, trust);
    until(|| host.counts().connections == 1);
    (host, worker)
}

fn attach() -> Monitor {
    Monitor::attach(std::process::id()).unwrap()
}

fn hear(monitor: &mut Monitor) -> Heard {
    monitor.next(true, Some(LONG), || false).unwrap()
}

fn snapshot(monitor: &mut Monitor) -> Snapshot {
    match hear(monitor) {
        Heard::Snapshot(line) => Snapshot::parse(&line).unwrap(),
        other => panic!("a snapshot expected, not {other:?}"),
    }
}

/// Waits for a snapshot of which this is true.
fn until_shown(monitor: &mut Monitor, so: impl Fn(&Snapshot) -> bool) -> Snapshot {
    loop {
        let snapshot = snapshot(monitor);
        if so(&snapshot) {
            return snapshot;
        }
    }
}

/// A connection that is not made by [`Monitor`].
fn raw() -> UnixStream {
    let uid = rustix::process::geteuid().as_raw();
    let path = std::env::temp_dir().join(format!("mirai-{uid}/{}", std::process::id()));
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

#[test]
fn a_monitor_is_told_what_happens() {
    let (host, mut worker) = shown("default");
    let mut monitor = attach();
    let first = snapshot(&mut monitor);
    assert_eq!(
        (first.version, first.pid, first.profiles.len()),
        (FORMAT, std::process::id(), 1)
    );
    let profile = &first.profiles[0];
    assert_eq!((&*profile.name, profile.urls.len()), ("default", 1));
    let daemon = &profile.daemons[0];
    assert_eq!((daemon.daemon, &*daemon.state), (1, "idle"));
    assert_eq!(daemon.pid, Some(std::process::id()));
    assert!(daemon.memory.is_some() && first.memory.is_some());

    let tasks: Vec<_> = (0..3).map(|i| submit(&host, vec![i])).collect();
    let Next::Task(task) = worker.next(None, || false) else {
        panic!("a task expected");
    };
    let busy = until_shown(&mut monitor, |s| s.profiles[0].tasks.running == 1);
    let profile = &busy.profiles[0];
    assert_eq!((profile.tasks.queued, profile.running_more), (2, 0));
    assert_eq!(profile.queue.bytes, 2);
    let running = &profile.running[0];
    assert_eq!((running.daemon, running.id), (1, None));
    // The clocks are read one after the other.
    assert!((busy.time - running.started - running.age).abs() < 1.0);
    assert_eq!(profile.daemons[0].state, "busy");
    // Nothing happens: no snapshot comes.
    let silent = monitor.next(true, Some(3 * INTERVAL), || false).unwrap();
    assert_eq!(silent, Heard::TimedOut);

    assert!(worker.reply_noted(task.seq, b"no", Done::Error, 0, Some("it \"failed\"\u{1b}")));
    let failed = until_shown(&mut monitor, |s| s.profiles[0].tasks.failed == 1);
    let failure = &failed.profiles[0].failures[0];
    assert_eq!(failure.error.as_deref(), Some("it \"failed\"\u{1b}"));
    assert_eq!((&*failure.state, failure.daemon), ("failed", Some(1)));
    let past = &failed.profiles[0].recent[0];
    assert!(past.started.unwrap() <= past.ended && past.ended <= failed.time);
    assert_eq!(failed.profiles[0].throughput.last_10s, 1.0);
    drop(worker);
    let lost = until_shown(&mut monitor, |s| s.profiles[0].tasks.lost == 1);
    let gone = &lost.profiles[0].gone[0];
    assert_eq!((&*gone.state, gone.tasks), ("lost", 1));
    assert_eq!(*outcome(&tasks[1]), Outcome::Reset);

    // A second profile, and the end of the first.
    let (other, _worker) = shown("another");
    let both = until_shown(&mut monitor, |s| s.profiles.len() == 2);
    assert_eq!(both.profiles[0].name, "another");
    monitor::forget("default");
    host.close(true);
    until_shown(&mut monitor, |s| s.profiles.len() == 1);
    other.close(true);
    until_shown(&mut monitor, |s| s.profiles.is_empty());
    monitor::forget("another");
    let mine = |s: &monitor::Session| s.pid == std::process::id();
    assert!(monitor::sessions().iter().any(mine));
    monitor::close();
    while hear(&mut monitor) != Heard::Ended {}
    assert!(!monitor::sessions().iter().any(mine));
    let gone = Monitor::attach(std::process::id()).err().unwrap();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

#[test]
fn throughput_falls_to_zero_by_itself_and_then_there_is_silence() {
    let (host, worker) = shown("default");
    let daemon = echoing(worker);
    let mut monitor = attach();
    for _ in 0..10 {
        outcome(&submit(&host, b"x"));
    }
    let throughput = |s: &Snapshot| {
        (
            s.profiles[0].throughput.last_1s,
            s.profiles[0].throughput.last_10s,
        )
    };
    until_shown(&mut monitor, |s| throughput(s) == (10.0, 10.0));
    until_shown(&mut monitor, |s| throughput(s) == (0.0, 10.0));
    until_shown(&mut monitor, |s| throughput(s) == (0.0, 0.0));
    let silent = monitor.next(true, Some(Duration::from_secs(2)), || false);
    assert_eq!(silent.unwrap(), Heard::TimedOut);
    host.close(true);
    daemon.join().unwrap();
    monitor::close();
}

#[test]
fn one_that_does_not_read_misses_snapshots_and_nobody_else_does() {
    let (host, worker) = shown("default");
    let daemon = echoing(worker);
    let stuck = raw();
    let mut monitor = attach();
    let mut heard = 0;
    let began = Instant::now();
    // Long enough for more than a socket has room for: a snapshot with 200 tasks that have ended takes some 20 KB.
    while heard < 20 {
        for _ in 0..50 {
            outcome(&submit(&host, b"x"));
        }
        if let Heard::Snapshot(_) = monitor.next(false, Some(Duration::ZERO), || false).unwrap() {
            heard += 1;
        }
    }
    assert!(began.elapsed() >= 18 * INTERVAL, "more than four a second");
    let done = host.tally().done;
    until_shown(&mut monitor, |s| s.profiles[0].tasks.done == done);
    let mut lines = BufReader::new(stuck).lines();
    let mut told = 0;
    loop {
        let line = lines.next().unwrap().unwrap();
        told += 1;
        if Snapshot::parse(&line).unwrap().profiles[0].tasks.done == done {
            break;
        }
    }
    assert!(told < heard, "{told} of {heard}");
    host.close(true);
    daemon.join().unwrap();
    monitor::close();
}

#[test]
fn what_a_monitor_sends_ends_its_connection_and_the_rest_goes_on() {
    let (host, worker) = shown("default");
    let daemon = echoing(worker);
    let mut monitor = attach();
    snapshot(&mut monitor);
    for garbage in [&b"x"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 100_000]] {
        let mut client = raw();
        let _ = client.write_all(garbage);
        let mut told = Vec::new();
        // Reset or end: it is over.
        let _ = client.read_to_end(&mut told);
    }
    outcome(&submit(&host, b"x"));
    until_shown(&mut monitor, |s| s.profiles[0].tasks.done == 1);
    host.close(true);
    daemon.join().unwrap();
    monitor::close();
}

#[test]
fn there_is_a_limit_of_monitors_and_those_beyond_are_told() {
    let (host, worker) = shown("default");
    let mut monitors: Vec<_> = (0..MOST_MONITORS).map(|_| attach()).collect();
    for monitor in &mut monitors {
        snapshot(monitor);
    }
    let Heard::Refused(reason) = hear(&mut attach()) else {
        panic!("one too many was let in");
    };
    assert_eq!(reason, "16 monitors are attached already");
    // There is room again as soon as one has left.
    monitors.pop();
    let end = Instant::now() + LONG;
    while let Heard::Refused(_) = hear(&mut attach()) {
        assert!(Instant::now() < end);
    }
    // Many that come and go.
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| drop(Monitor::attach(std::process::id())));
        }
    });
    submit(&host, b"x");
    until_shown(&mut monitors[0], |s| s.profiles[0].tasks.running == 1);
    drop(worker);
    host.close(true);
    monitor::close();
}

/// What a child of this test's process does, as another user: connects and prints what it is told.
#[test]
fn helper_connects_as_another_user() {
    let Some(path) = std::env::var_os("MIRAI_TEST_SOCKET") else {
        return;
    };
    let mut told = String::new();
    let mut stream = UnixStream::connect(path).unwrap();
    stream.read_to_string(&mut told).unwrap();
    print!("told: {told}");
}

#[test]
fn another_user_is_refused_and_told_so() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // A program and a directory for temporary files that this user can reach.
    let base = tempfile::tempdir_in("/tmp").unwrap();
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(base.path(), 0o755);
    // SAFETY: this process runs this test alone, and has no other thread that reads the environment yet.
    unsafe { std::env::set_var("TMPDIR", base.path()) };
    let (host, worker) = shown("default");
    let place = base.path().join("mirai-0");
    let socket = place.join(std::process::id().to_string());
    let program = base.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let connect = || {
        let mut child = std::process::Command::new(&program);
        child.args(["--exact", "helper_connects_as_another_user", "--nocapture"]);
        child
            .env("MIRAI_TEST_SOCKET", &socket)
            .current_dir("/")
            .uid(NOBODY);
        let output = child.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(
        connect().contains("FAILED"),
        "the directory is closed to others"
    );
    // Should somebody have opened it, the session itself says no.
    mode(&socket, 0o777);
    mode(&place, 0o755);
    let told = connect();
    mode(&place, 0o700);
    let line = "told: {\"error\":\"this session belongs to another user\",\"version\":1}";
    assert!(told.contains(line), "{told}");
    snapshot(&mut attach());
    drop(worker);
    host.close(true);
    monitor::close();
}
