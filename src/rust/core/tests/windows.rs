//! Processes and pipes on Windows: `tools/platforms` runs this under wine.
//!
//! As in `respawn.rs`, this program itself is run as the daemon, with [`ROLE`] set to what it is to do.
#![cfg(windows)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use common::*;
use mirai_core::dispatcher::Config;
use mirai_core::host::{Host, Respawn};
use mirai_core::process::{Job, Program, command};
use mirai_core::task::{Outcome, Task};
use mirai_core::transport::local_url;
use mirai_core::worker::Next;

const ROLE: &str = "MIRAI_TEST_ROLE";

/// What the test's processes run.
#[test]
fn a_role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.split(' ').collect::<Vec<_>>()[..] {
        ["daemon", url] => daemon(url),
        ["host", ear] => {
            let host = Host::new(Config::default());
            let (url, ..) = listening(&local_url(), &host);
            let started = host.keep(Respawn::Never, move |_| program(&format!("daemon {url}")));
            started.unwrap();
            let task = submit(&host, format!("call {ear}"));
            outcome(&task);
            loop {
                std::thread::park();
            }
        }
        ["lingers", ear] => {
            let _call = call(ear);
            loop {
                std::thread::park();
            }
        }
        _ => {
            eprintln!("no such luck");
            std::process::exit(2);
        }
    }
}

/// A connection that ends with this process.
fn call(ear: &str) -> TcpStream {
    let mut call = TcpStream::connect(ear).unwrap();
    call.write_all(b"x").unwrap();
    call
}

fn daemon(url: &str) -> ! {
    let mut worker = dial(url, None);
    let mut calls = Vec::new();
    while let Next::Task(task) = worker.next(None, || false) {
        let body = String::from_utf8_lossy(&task.body);
        match body.split(' ').collect::<Vec<_>>()[..] {
            ["abort"] => std::process::abort(),
            ["exit"] => std::process::exit(3),
            ["call", ear] => calls.push(call(ear)),
            ["pid"] => {
                worker.reply(task.seq, std::process::id().to_string().as_bytes(), false);
                continue;
            }
            _ => {}
        }
        worker.reply(task.seq, &task.body, false);
    }
    std::process::exit(0);
}

fn program(role: &str) -> Program {
    Program {
        path: std::env::current_exe().unwrap(),
        args: ["a_role", "--exact", "--test-threads=1", "--nocapture"]
            .map(Into::into)
            .into(),
        env: vec![(ROLE.into(), Some(role.into()))],
        attached: true,
        ..Program::default()
    }
}

/// A host with a daemon in a process of its own.
fn keeping(respawn: Respawn) -> Host {
    let host = Host::new(Config::default());
    let (url, ..) = listening(&local_url(), &host);
    host.keep(respawn, move |_| program(&format!("daemon {url}")))
        .unwrap();
    until(|| host.counts().connections == 1);
    host
}

fn reason(task: &Task) -> String {
    assert_eq!(*outcome(task), Outcome::Reset);
    task.loss().expect("there is a reason").to_string()
}

#[test]
fn a_daemon_that_crashes_is_started_again_and_the_reason_is_known() {
    let host = keeping(Respawn::Crashed);
    let pid = || {
        let task = submit(&host, "pid");
        match outcome(&task) {
            Outcome::Value(pid) => pid.bytes.clone(),
            other => panic!("{other:?}"),
        }
    };
    let first = pid();
    let crashed = submit(&host, "exit");
    let said = reason(&crashed);
    assert!(said.contains("exited with status 3"), "{said}");
    assert_ne!(first, pid());
    let aborted = reason(&submit(&host, "abort"));
    assert!(aborted.contains("exited with status"), "{aborted}");
    assert_eq!(*outcome(&submit(&host, "x")), value("x"));
    host.close(true);
}

#[test]
fn a_process_that_ends_before_it_connects_says_why() {
    let host = Host::new(Config::default());
    let task = task(b"");
    let address = local_url().parse().unwrap();
    host.submit_to_new(task.clone(), None, &address, &program("fails"))
        .unwrap();
    let said = reason(&task);
    assert!(said.starts_with("its process (pid "), "{said}");
    assert!(said.contains(" exited with status 2 and said:"), "{said}");
    assert!(said.ends_with("no such luck"), "{said}");
    host.close(true);
}

#[test]
fn what_has_not_connected_ends_with_the_host() {
    let ear = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = Host::new(Config::default());
    let role = format!("lingers {}", ear.local_addr().unwrap());
    host.launch(&program(&role)).unwrap();
    let (mut call, _) = ear.accept().unwrap();
    assert_eq!(call.read(&mut [0]).unwrap(), 1);
    host.close(true);
    is_over(&mut call);
}

/// Also if it is killed, and nothing in it can do anything about that.
#[test]
fn daemons_end_with_the_process_of_the_host() {
    let ear = TcpListener::bind("127.0.0.1:0").unwrap();
    let role = format!("host {}", ear.local_addr().unwrap());
    let program = program(&role);
    let mut host = std::process::Command::new(&program.path)
        .args(&program.args)
        .env(ROLE, role)
        .spawn()
        .unwrap();
    let (mut call, _) = ear.accept().unwrap();
    assert_eq!(call.read(&mut [0]).unwrap(), 1);
    host.kill().unwrap();
    host.wait().unwrap();
    is_over(&mut call);
}

fn is_over(call: &mut TcpStream) {
    call.set_read_timeout(Some(LONG)).unwrap();
    match call.read(&mut [0]) {
        Ok(n) => assert_eq!(n, 0),
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn a_command_reads_and_its_output_is_kept_in_order() {
    let job = Job {
        path: "cmd.exe".into(),
        args: ["/c", "findstr x& echo oh>&2& exit 3"]
            .map(String::from)
            .into(),
        input: Some("read x\n".into()),
        ..Job::default()
    };
    let child = command::run(&job, |_| {}).unwrap();
    until(|| child.exit().is_some());
    let said = child.stderr().replace('\r', "");
    assert!(said.ends_with("oh\n"), "{said:?}");
    assert_eq!(child.exit().unwrap().to_string(), "exit status 3");
}

#[test]
fn a_large_value_goes_there_and_back() {
    let host = Host::new(Config::default());
    let (url, ..) = listening(&local_url(), &host);
    let daemon = echoing(dial(&url, None));
    until(|| host.counts().connections == 1);
    let large: Vec<u8> = (0..20_000_000_u32).map(|i| (i % 251) as u8).collect();
    assert!(*outcome(&submit(&host, large.clone())) == value(large));
    // The daemon is busy reading as the host posts.
    let tasks: Vec<Arc<Task>> = (0..200)
        .map(|i| submit(&host, vec![i as u8; i * 1000]))
        .collect();
    for (i, task) in tasks.iter().enumerate() {
        assert!(*outcome(task) == value(vec![i as u8; i * 1000]), "{i}");
    }
    host.close(true);
    assert_eq!(daemon.join().unwrap(), 201);
}

/// Not a limit, but a figure: `tools/platforms` shows it.
#[test]
fn round_trips_by_a_pipe() {
    let host = Host::new(Config::default());
    let (url, ..) = listening(&local_url(), &host);
    let daemon = echoing(dial(&url, None));
    until(|| host.counts().connections == 1);
    let start = Instant::now();
    let n = 2000;
    for _ in 0..n {
        assert_eq!(*outcome(&submit(&host, "x")), value("x"));
    }
    eprintln!("a round trip takes {:?}", start.elapsed() / n);
    host.close(true);
    daemon.join().unwrap();
}
