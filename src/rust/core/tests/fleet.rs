//! Daemons that the host launches by commands as its queue asks.
//!
//! As in `respawn.rs`, this program itself is run as the daemon, with [`ROLE`] set to the URL: by a shell that starts
//! it in the background and ends, as `sbatch` does, or that becomes it, as `srun` does.
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::*;
use mirai_core::dispatcher::{Config, Retry};
use mirai_core::host::{Host, MOST_FAILURES, MakeJob};
use mirai_core::process::Job;
use mirai_core::task::{Outcome, Task};
use mirai_core::transport::local_url;
use mirai_core::worker::Next;

const ROLE: &str = "MIRAI_TEST_ROLE";
const LONG: Duration = Duration::from_secs(600);

/// What the test's commands run: a daemon whose tasks say what becomes of it.
#[test]
fn a_role() {
    let Ok(url) = std::env::var(ROLE) else {
        return;
    };
    let mut worker = dial(&url, None);
    while let Next::Task(task) = worker.next(None, || false) {
        match &task.body[..] {
            b"kill" => {
                // SAFETY: no pointers.
                unsafe { libc::raise(libc::SIGKILL) };
            }
            b"leave" => {
                worker.reply(task.seq, b"left", false);
                worker.leave();
                end(0);
            }
            b"pid" => {
                let pid = std::process::id().to_string();
                worker.reply(task.seq, pid.as_bytes(), false);
            }
            body => {
                let text = String::from_utf8_lossy(body);
                while text
                    .strip_prefix("wait ")
                    .is_some_and(|file| !Path::new(file).exists())
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                worker.reply(task.seq, body, false);
            }
        }
    }
    end(0);
}

fn end(status: i32) -> ! {
    // SAFETY: ends the process; the test harness shall say nothing.
    unsafe { libc::_exit(status) }
}

fn shell(script: &str) -> Job {
    Job {
        name: "launcher".into(),
        path: "/bin/sh".into(),
        args: ["-c", script].map(String::from).into(),
        ..Job::default()
    }
}

/// A command that runs a daemon for this URL: in the background, or in its own place.
fn daemon(url: &str, in_background: bool) -> Job {
    let program = std::env::current_exe().unwrap();
    let run = format!(
        "{} a_role --exact --test-threads=1 --nocapture",
        program.display()
    );
    let set = format!("export {ROLE}='{url}'");
    shell(&match in_background {
        true => format!("{set}; {run} >/dev/null 2>&1 &"),
        false => format!("{set}; exec {run}"),
    })
}

/// A fleet: the host, and the number of launches.
struct Fleet {
    host: Host,
    launches: Arc<AtomicU32>,
}

impl Fleet {
    /// `make` makes a command from the URL and the number of launches before, of the whole fleet.
    fn new(
        most: usize,
        config: Config,
        patience: Duration,
        make: impl Fn(&str, u32) -> Job + Send + Sync + 'static,
    ) -> Fleet {
        let host = Host::new(config);
        let make = Arc::new(make);
        let launches = Arc::new(AtomicU32::new(0));
        for _ in 0..most {
            listening(&any_port("tcp"), &host);
        }
        let jobs = host.urls().into_iter().map(|url| {
            let (make, launches) = (make.clone(), launches.clone());
            let job: MakeJob =
                Box::new(move |_| make(&url, launches.fetch_add(1, Ordering::SeqCst)));
            job
        });
        host.launch_as_asked(jobs.collect(), patience);
        Fleet { host, launches }
    }

    fn launches(&self) -> u32 {
        self.launches.load(Ordering::SeqCst)
    }

    fn connected(&self, n: usize) {
        eventually("so many are connected", || {
            self.host.counts().connections == n
        });
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.host.close(true);
    }
}

fn reason(task: &Task) -> String {
    assert_eq!(*outcome(task), Outcome::Reset);
    task.loss().expect("there is a reason").to_string()
}

/// Tasks that run until the file is there.
fn hold(host: &Host, n: usize, go: &Path) -> Vec<Arc<Task>> {
    let wait = format!("wait {}", go.display());
    (0..n).map(|_| submit(host, wait.as_bytes())).collect()
}

#[test]
fn daemons_are_launched_as_the_queue_asks_and_no_more() {
    for in_background in [true, false] {
        let fleet = Fleet::new(3, Config::default(), LONG, move |url, _| {
            daemon(url, in_background)
        });
        assert_eq!(fleet.launches(), 0);
        assert_eq!(*outcome(&submit(&fleet.host, b"x")), value(b"x".to_vec()));
        assert_eq!(*outcome(&submit(&fleet.host, b"y")), value(b"y".to_vec()));
        assert_eq!(fleet.launches(), 1, "the second was taken at once");
        let dir = tempfile::tempdir().unwrap();
        let go = dir.path().join("go");
        let two = hold(&fleet.host, 2, &go);
        fleet.connected(2);
        let more = hold(&fleet.host, 10, &go);
        fleet.connected(3);
        assert_eq!(fleet.host.counts().executing, 3);
        std::fs::write(&go, "").unwrap();
        for task in two.iter().chain(&more) {
            assert!(matches!(outcome(task), Outcome::Value(_)));
        }
        assert_eq!(fleet.launches(), 3);
        assert!(fleet.host.launch_reports().is_empty());
        // One that has left is launched again when it is wanted.
        for _ in 0..3 {
            outcome(&submit(&fleet.host, b"leave"));
        }
        fleet.connected(0);
        assert_eq!(*outcome(&submit(&fleet.host, b"x")), value(b"x".to_vec()));
        assert_eq!(fleet.launches(), 4);
    }
}

#[test]
fn launches_by_hand_count() {
    let fleet = Fleet::new(2, Config::default(), LONG, |url, _| daemon(url, true));
    let urls = fleet.host.urls();
    let child = fleet.host.launch_at(0, daemon(&urls[0], true)).unwrap();
    assert!(
        fleet
            .host
            .launch_at(0, daemon(&urls[0], true))
            .unwrap()
            .is_none()
    );
    until(|| child.as_ref().unwrap().exit().is_some());
    fleet.connected(1);
    let other = dial(&urls[1], None);
    fleet.connected(2);
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let tasks = hold(&fleet.host, 5, &go);
    // There is no event for what does not happen.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(fleet.launches(), 0);
    drop(other);
    eventually("another is launched", || fleet.launches() == 1);
    std::fs::write(&go, "").unwrap();
    // The one that was dialled may have begun a task, or not.
    for task in &tasks[1..] {
        assert!(matches!(outcome(task), Outcome::Value(_)));
    }
}

#[test]
fn a_daemon_that_is_killed_is_replaced_and_without_retry_its_task_is_lost() {
    let fleet = Fleet::new(2, Config::default(), LONG, |url, _| daemon(url, true));
    for _ in 0..2 * MOST_FAILURES {
        let doomed = submit(&fleet.host, b"kill");
        // This is finished by the same daemon before, or by another.
        let fine = submit(&fleet.host, b"x");
        reason(&doomed);
        assert_eq!(*outcome(&fine), value(b"x".to_vec()));
        outcome(&submit(&fleet.host, b"x"));
    }
    assert!(fleet.host.launch_reports().is_empty());
}

#[test]
fn launches_that_fail_have_an_end_and_what_waits_is_told() {
    let fleet = Fleet::new(3, Config::default(), LONG, |_, _| {
        shell("echo the queue is closed; exit 3")
    });
    let waiting: Vec<_> = (0..10).map(|_| submit(&fleet.host, b"x")).collect();
    for task in &waiting {
        assert_eq!(
            reason(task),
            "the last launch of a daemon has failed, and no other follows after 5 failures one after another: \
             launcher (exit status 3):\nthe queue is closed"
        );
    }
    assert_eq!(fleet.launches(), 3 * MOST_FAILURES);
    let reports = fleet.host.launch_reports();
    assert_eq!(reports.len(), 3 * MOST_FAILURES as usize + 1);
    assert!(reports[0].starts_with("a launch of daemons has failed: launcher (exit status 3)"));
    assert!(
        reports
            .iter()
            .any(|r| r.starts_with("no more daemons are launched"))
    );
    assert!(fleet.host.launch_reports().is_empty());
    // What comes now waits, until somebody launches a daemon by hand: then the fleet tries again.
    let later = submit(&fleet.host, b"later");
    assert!(fleet.host.is_deserted(&later));
    assert_eq!(fleet.host.why_none_is_left(), Some(reason(&waiting[0])));
    let worker = dial(&fleet.host.urls()[0], None);
    echoing(worker);
    assert_eq!(*outcome(&later), value(b"later".to_vec()));
}

#[test]
fn a_command_that_does_not_exist_is_a_failure_too() {
    let fleet = Fleet::new(1, Config::default(), LONG, |_, _| Job {
        path: "/nowhere".into(),
        ..shell("")
    });
    let waiting = reason(&submit(&fleet.host, b"x"));
    assert!(
        waiting.ends_with("No such file or directory (os error 2)"),
        "{waiting}"
    );
}

#[test]
fn a_task_that_kills_every_daemon_ends_in_spite_of_retry() {
    let config = Config {
        retry: Retry::AFTER_CRASH,
        ..Config::default()
    };
    let fleet = Fleet::new(2, config, LONG, |url, _| daemon(url, false));
    let doomed = submit(&fleet.host, b"kill");
    let why = reason(&doomed);
    assert!(
        why.contains("was the last daemon, and no other is launched after 5 failures"),
        "{why}"
    );
    assert_eq!(fleet.launches(), MOST_FAILURES);
    assert_eq!(fleet.host.task_log(1).rows[0].attempts, MOST_FAILURES);
}

#[test]
fn a_launch_that_does_not_connect_is_given_up_and_its_command_ended() {
    let dir = tempfile::tempdir().unwrap();
    let ended = dir.path().join("ended");
    let script = format!(
        "trap 'echo once >>{}; kill $!; exit' TERM; sleep 1000 & wait",
        ended.display()
    );
    let patience = Duration::from_millis(1500);
    let fleet = Fleet::new(
        1,
        Config::default(),
        patience,
        move |url, before| match before {
            0 => shell(&script),
            _ => daemon(url, true),
        },
    );
    assert_eq!(*outcome(&submit(&fleet.host, b"x")), value(b"x".to_vec()));
    assert_eq!(fleet.launches(), 2);
    let report =
        "a launch of daemons has failed: launcher: its daemon has not connected within 1.5 s";
    assert_eq!(fleet.host.launch_reports(), [report]);
    eventually("the command has ended", || {
        std::fs::read_to_string(&ended).is_ok_and(|text| text == "once\n")
    });
}

#[test]
fn a_daemon_that_comes_too_late_is_sent_away() {
    let fleet = Fleet::new(
        1,
        Config::default(),
        Duration::from_secs(2),
        |url, before| match before {
            0 => shell("exit 0"),
            _ => daemon(url, true),
        },
    );
    let url = fleet.host.urls()[0].clone();
    assert_eq!(*outcome(&submit(&fleet.host, b"x")), value(b"x".to_vec()));
    // This is the first one.
    let refused = try_dial(&url, &options(None)).err().unwrap().to_string();
    assert!(
        refused.contains("it comes more than 2 s after its launch"),
        "{refused}"
    );
    assert_eq!(fleet.host.counts().connections, 1);
    assert_eq!(fleet.host.counts().cumulative, 1);
}

#[test]
fn a_host_that_closes_ends_commands_and_launches_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let script = format!(
        "trap 'echo >{}; kill $!; exit' TERM; sleep 1000 & echo >{}; wait",
        path("ended"),
        path("began")
    );
    let fleet = Fleet::new(1, Config::default(), LONG, move |_, _| shell(&script));
    let task = submit(&fleet.host, b"x");
    eventually("it runs", || Path::new(&path("began")).exists());
    assert!(!fleet.host.is_deserted(&task));
    fleet.host.close(true);
    eventually("it has ended", || Path::new(&path("ended")).exists());
    assert_eq!(fleet.launches(), 1);
}

#[test]
fn a_daemon_that_comes_is_set_up_as_the_others_were() {
    let fleet = Fleet::new(2, Config::default(), LONG, |url, _| daemon(url, true));
    let host = &fleet.host;
    let everywhere = |body: &'static [u8]| {
        let submitted = host.submit_to_each(1, |n| Some((0..n).map(|_| task(body)).collect()));
        submitted.unwrap();
    };
    // The first daemon that comes has this one by itself, once.
    everywhere(b"one");
    host.launch_at(0, daemon(&host.urls()[0], true)).unwrap();
    fleet.connected(1);
    everywhere(b"two");
    eventually("it is set up", || host.counts().completed == 2);
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let tasks = hold(host, 2, &go);
    eventually("both are set up", || host.counts().completed == 4);
    std::fs::write(&go, "").unwrap();
    tasks.iter().for_each(|task| {
        outcome(task);
    });
    let rows = host.task_log(10).rows;
    let set_ups = |peer| {
        let of_three_bytes = rows.iter().filter(|row| row.bytes_in == 3);
        of_three_bytes.filter(|row| row.peer == Some(peer)).count()
    };
    assert_eq!((rows.len(), set_ups(1), set_ups(2)), (6, 2, 2));
}

#[test]
fn a_url_that_changes_has_no_launch_before_its_command_has_changed() {
    let host = Host::new(Config::default());
    let (url, ..) = listening(&local_url(), &host);
    let launches = Arc::new(AtomicU32::new(0));
    let job = |url: String| -> MakeJob {
        let launches = launches.clone();
        Box::new(move |_| {
            launches.fetch_add(1, Ordering::SeqCst);
            daemon(&url, true)
        })
    };
    host.launch_as_asked(vec![job(url)], LONG);
    let renewed = host.renew(0, false).unwrap().unwrap();
    let task = submit(&host, b"x");
    assert!(!task.is_resolved());
    host.change_job(0, job(renewed));
    assert_eq!(*outcome(&task), value(b"x".to_vec()));
    assert_eq!(launches.load(Ordering::SeqCst), 1);
    host.close(true);
}
