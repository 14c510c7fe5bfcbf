//! A host that was suspended (SIGSTOP, Ctrl-Z) for longer than its daemons' patience: it hears what they said meanwhile, and
//! nothing that they never began is lost with them.
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use mirai_core::dispatcher::{Config, Policy};
use mirai_core::host::Host;
use mirai_core::task::Outcome;
use mirai_core::worker::{Next, Options, Worker};

const PATIENCE: Duration = Duration::from_millis(1500);
/// Policy and scheme, in the environment of the host's process.
const PART: &str = "MIRAI_TEST_HOST";

/// Not a test but the host's process, if it is started for that: submits a task for each line that it reads, and says
/// what becomes of it.
#[test]
fn the_host_of_the_others() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    let (policy, scheme) = part.split_once(' ').unwrap();
    let policy = match policy {
        "queue" => Policy::Queue,
        _ => Policy::RoundRobin,
    };
    let config = Config {
        policy,
        ..Config::default()
    };
    let host = Host::with_patience(config, PATIENCE);
    let (url, _, _) = listening(&any_port(scheme), &host);
    println!("\n> {url}");
    for line in std::io::stdin().lines() {
        let name = line.unwrap();
        let task = submit(&host, name.clone());
        task.on_resolved(Box::new(move |outcome| {
            let end = match outcome {
                Outcome::Value(_) => "value",
                Outcome::Reset => "reset",
                _ => "other",
            };
            println!("\n> {name} {end}");
        }));
    }
    host.close(true);
}

struct Process {
    child: Child,
    said: std::io::Lines<BufReader<ChildStdout>>,
    stdin: ChildStdin,
    url: String,
}

impl Process {
    fn new(part: &str) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_host_of_the_others", "--nocapture"])
            .env(PART, part)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let stdin = child.stdin.take().unwrap();
        let url = String::new();
        let mut process = Process {
            child,
            said,
            stdin,
            url,
        };
        process.url = process.hear();
        process
    }

    fn hear(&mut self) -> String {
        let mut lines = self.said.by_ref().map(Result::unwrap);
        let line = lines.find(|line| line.starts_with("> "));
        line.expect("the host goes on")[2..].to_owned()
    }

    fn submit(&mut self, name: &str) {
        writeln!(self.stdin, "{name}").unwrap();
    }

    /// Waits until the whole process is stopped.
    fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let mut status = 0;
        // SAFETY: the process is our child and not waited for by anybody else yet; `status` is written to.
        let stopped =
            unsafe { libc::waitpid(self.child.id() as i32, &raw mut status, libc::WUNTRACED) };
        assert!(stopped > 0 && libc::WIFSTOPPED(status));
    }

    fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the process is our child, and not waited for before it is dropped.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn begin(worker: &mut Worker, name: &str) -> u64 {
    match worker.next(Some(Instant::now() + LONG), || false) {
        Next::Task(task) => {
            assert_eq!(task.body, name.as_bytes());
            task.seq
        }
        other => panic!("task {name} expected, not {other:?}"),
    }
}

fn work(worker: &mut Worker, name: &str) {
    let seq = begin(worker, name);
    assert!(worker.reply(seq, name.as_bytes(), false));
}

fn gives_up(mut worker: Worker) {
    let next = worker.next(Some(Instant::now() + LONG), || false);
    assert!(matches!(next, Next::Lost { end: false }), "{next:?}");
}

fn again(host: &Process) -> Worker {
    let options = Options {
        asyncdial: true,
        ..Options::default()
    };
    try_dial(&host.url, &options).unwrap()
}

fn in_every_way(story: impl Fn(Process) + Sync) {
    std::thread::scope(|scope| {
        for part in ["queue tcp", "queue ws", "robin tcp", "robin ws"] {
            let story = &story;
            scope.spawn(move || story(Process::new(part)));
        }
    });
}

#[test]
fn what_is_submitted_after_a_suspension_waits_for_a_daemon_that_is_there() {
    in_every_way(|mut host| {
        let mut worker = again(&host);
        host.submit("first");
        work(&mut worker, "first");
        assert_eq!(host.hear(), "first value");
        host.stop();
        gives_up(worker);
        // It submits this as soon as it goes on, to one that it takes for idle.
        host.submit("next");
        host.go_on();
        let mut worker = again(&host);
        work(&mut worker, "next");
        assert_eq!(host.hear(), "next value");
    });
}

#[test]
fn a_reply_that_came_during_a_suspension_is_heard_and_what_has_not_begun_runs_later() {
    in_every_way(|mut host| {
        let mut worker = again(&host);
        host.submit("running");
        let seq = begin(&mut worker, "running");
        host.submit("waiting");
        // It has been sent, or never will be to this daemon.
        host.submit("sentinel");
        host.stop();
        assert!(worker.reply(seq, b"", false));
        gives_up(worker);
        host.submit("last");
        host.go_on();
        assert_eq!(host.hear(), "running value");
        let mut worker = again(&host);
        for name in ["waiting", "sentinel", "last"] {
            work(&mut worker, name);
            assert_eq!(host.hear(), format!("{name} value"));
        }
    });
}

#[test]
fn a_brief_suspension_is_nobodys_loss() {
    in_every_way(|mut host| {
        let mut worker = again(&host);
        host.submit("running");
        let seq = begin(&mut worker, "running");
        host.stop();
        std::thread::sleep(PATIENCE / 3);
        host.go_on();
        assert!(worker.reply(seq, b"", false));
        assert_eq!(host.hear(), "running value");
        host.submit("next");
        work(&mut worker, "next");
        assert_eq!(host.hear(), "next value");
    });
}
