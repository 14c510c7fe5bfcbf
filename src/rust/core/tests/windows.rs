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
use mirai_core::process::{Job, Program, Surroundings, command, start};
use mirai_core::protocol::VERSION;
use mirai_core::task::{Outcome, Task};
use mirai_core::transport::{Address, local_url};
use mirai_core::worker::{AutoExit, Next, Options, Runtime, Worker};

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
        // One whose daemon was started by somebody else.
        ["host-at", url, ear] => {
            let host = Host::new(Config::default());
            listening(url, &host);
            let task = submit(&host, format!("stay {ear}"));
            outcome(&task);
        }
        ["lingers", ear] => {
            let _call = call(ear);
            loop {
                std::thread::park();
            }
        }
        // Starts one that tells what it is given.
        ["starts"] => {
            let program = Program {
                path: std::env::var_os(ODD_PROGRAM).unwrap().into(),
                args: odd_arguments().map(Into::into).collect(),
                env: vec![(ROLE.into(), Some("tells".into()))],
                surroundings: Some(Arc::new(Surroundings::now().unwrap())),
                ..Program::default()
            };
            let child = start(&program, |_| {}).unwrap();
            until(|| child.exit().is_some());
            eprintln!("{}", child.stderr());
            std::process::exit(0);
        }
        ["tells"] => {
            for argument in std::env::args_os().skip(1) {
                eprintln!("<{}>", argument.to_string_lossy());
            }
            eprintln!("<{}>", std::env::var(ODD_VARIABLE).unwrap());
            eprintln!("<{}>", std::env::current_dir().unwrap().display());
            std::process::exit(0);
        }
        _ => {
            eprintln!("no such luck");
            std::process::exit(2);
        }
    }
}

/// What the host does not want any more ends with the process.
struct Exits;

impl Runtime for Exits {
    fn interrupt(&self) {}
    fn forget_interrupt(&self) {}
    fn exit(&self) {
        std::process::exit(4);
    }
    fn raise(&self, _: i32) {}
}

/// A connection that ends with this process.
fn call(ear: &str) -> TcpStream {
    let mut call = TcpStream::connect(ear).unwrap();
    call.write_all(b"x").unwrap();
    call
}

fn daemon(url: &str) -> ! {
    let options = Options {
        autoexit: AutoExit::Now,
        asyncdial: true,
        ..Options::default()
    };
    let address: Address = url.parse().unwrap();
    let mut worker = Worker::dial(&address, &options, Arc::new(Exits), None, || false).unwrap();
    let mut calls = Vec::new();
    while let Next::Task(task) = worker.next(None, || false) {
        let body = String::from_utf8_lossy(&task.body);
        match body.split(' ').collect::<Vec<_>>()[..] {
            ["abort"] => std::process::abort(),
            ["exit"] => {
                eprintln!("no such luck");
                std::process::exit(3)
            }
            ["violate"] => {
                // SAFETY: it is not: that is what is tested.
                unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
            }
            ["call", ear] => calls.push(call(ear)),
            ["stay", ear] => {
                calls.push(call(ear));
                loop {
                    std::thread::park();
                }
            }
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
    assert!(
        said.ends_with("The last that it wrote:\nno such luck"),
        "{said}"
    );
    assert_ne!(first, pid());
    let aborted = reason(&submit(&host, "abort"));
    assert!(aborted.contains("exited with status"), "{aborted}");
    let violated = reason(&submit(&host, "violate"));
    assert!(
        violated.contains("exited with status 0xC0000005 (access violation)"),
        "{violated}"
    );
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

/// One that is in no job, as another session has started it, sees the end of its link, while it is busy, too.
#[test]
fn a_busy_daemon_ends_when_the_host_elsewhere_is_killed() {
    let ear = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = local_url();
    let mut processes = [
        format!("daemon {url}"),
        format!("host-at {url} {}", ear.local_addr().unwrap()),
    ]
    .map(|role| {
        let program = program(&role);
        std::process::Command::new(&program.path)
            .args(&program.args)
            .env(ROLE, role)
            .spawn()
            .unwrap()
    });
    let (mut call, _) = ear.accept().unwrap();
    assert_eq!(call.read(&mut [0]).unwrap(), 1);
    let [daemon, host] = &mut processes;
    host.kill().unwrap();
    host.wait().unwrap();
    is_over(&mut call);
    assert_eq!(daemon.wait().unwrap().code(), Some(4));
}

const ODD_PROGRAM: &str = "MIRAI_TEST_ODD_PROGRAM";
const ODD_VARIABLE: &str = "MIRAI_TEST_\u{dc}";
const ODD: &str = "it's \u{e9}, \u{96ea} & %PATH% ^ 100%";

/// The last one makes the test's program run its role.
fn odd_arguments() -> impl Iterator<Item = &'static str> {
    let odd = [
        "",
        " ",
        "a \"b\" c",
        r"ends in \",
        r"\\s\p q\\",
        r#"\""#,
        "x\ty",
        "*.?",
        ODD,
    ];
    odd.into_iter()
        .chain(["--exact", "--nocapture", "--test-threads=1", "a_role"])
}

#[test]
fn programs_get_what_they_are_given_also_if_it_is_odd() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("d \u{e9} \u{96ea}");
    std::fs::create_dir(&directory).unwrap();
    let program = directory.join("p \u{e9}\u{96ea} .exe");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let starts = self::program("starts");
    let output = std::process::Command::new(&starts.path)
        .args(&starts.args)
        .env(ROLE, "starts")
        .env(ODD_PROGRAM, &program)
        .env(ODD_VARIABLE, ODD)
        .current_dir(&directory)
        .output()
        .unwrap();
    let mut wanted: Vec<String> = odd_arguments()
        .map(|argument| format!("<{argument}>"))
        .collect();
    wanted.push(format!("<{ODD}>"));
    wanted.push(format!("<{}>", directory.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    let told: Vec<&str> = said.lines().filter(|line| line.starts_with('<')).collect();
    assert_eq!(told, wanted, "{said}");
}

fn pipe_of(url: &str) -> String {
    format!(r"\\.\pipe\{}", url.strip_prefix("abstract://").unwrap())
}

#[test]
fn peers_that_come_and_go_do_not_disturb() {
    let host = Host::new(Config::default());
    let (url, ..) = listening(&local_url(), &host);
    let name = pipe_of(&url);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for i in 0..50_usize {
                    let mut opened = std::fs::OpenOptions::new();
                    // While it is taken, it is busy.
                    let Ok(mut pipe) = opened.read(true).write(true).open(&name) else {
                        continue;
                    };
                    let greeting = &hello(VERSION)[..i % 20];
                    pipe.write_all(greeting).unwrap();
                }
            });
        }
    });
    let daemon = echoing(dial(&url, None));
    assert_eq!(*outcome(&submit(&host, "x")), value("x"));
    assert_eq!(host.counts().cumulative, 1);
    host.close(true);
    daemon.join().unwrap();
}

#[test]
fn a_name_is_taken_once_and_is_free_again() {
    let host = Host::new(Config::default());
    let (url, ..) = listening(&local_url(), &host);
    let other = Host::new(Config::default());
    let address: Address = url.parse().unwrap();
    // Wine 10 does not know that a pipe shall be the first of its name: a program that makes two in this way gets both.
    if std::env::var_os("WINEPREFIX").is_none() {
        let taken = other.listen_all(std::slice::from_ref(&address), None);
        assert!(taken.is_err());
    }
    let mut worker = dial(&url, None);
    host.close(true);
    assert!(matches!(
        worker.next(None, || false),
        Next::Lost { end: true }
    ));
    drop(worker);
    until(|| {
        other
            .listen_all(std::slice::from_ref(&address), None)
            .is_ok()
    });
    other.close(true);
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
