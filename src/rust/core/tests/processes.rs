//! Processes that are started: each once or not at all, and none left when it is not wanted.
//!
//! This program itself takes the part of the language runtime: as the fork server, or started by itself,
//! it is run again with [`ROLE`] set, and does what its code says.
#![cfg(target_os = "linux")]

mod common;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::*;
use mirai_core::dispatcher::Config;
use mirai_core::host::Host;
use mirai_core::process::{self, Child, Program, fork, line};
use mirai_core::task::Outcome;

const ROLE: &str = "MIRAI_TEST_ROLE";
/// A pipe into which the fork server says that it has prepared itself.
const PREPARED: &str = "MIRAI_TEST_PREPARED";

static HAS_PREPARED: AtomicBool = AtomicBool::new(false);

/// What the test's processes run. The fork server's role is "server", that of others is their code.
#[test]
fn a_role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    if role != "server" {
        // SAFETY: nothing else is done in this process.
        unsafe { line::find() };
        act(&role, "started");
    }
    let prepare = || {
        if let Some(pipe) = std::env::var_os(PREPARED) {
            std::fs::write(pipe, "prepared").unwrap();
            HAS_PREPARED.store(true, Ordering::SeqCst);
        }
    };
    // SAFETY: with a single test at a time, that runs on the main thread.
    if let Some(forked) = unsafe { fork::serve(prepare) } {
        act(&forked.code_if_wanted(), "forked");
    }
}

/// `note FILE TEXT`, `linger FILE TEXT` for ever; `kill FILE TEXT` kills the parent, too; `limit FILE TEXT` notes
/// how many descriptors there may be; `say DIRECTORY` by the line.
fn act(code: &str, how: &str) -> ! {
    let words: Vec<&str> = code.split(' ').collect();
    match words[..] {
        ["daemon", url] => daemon(url, false),
        ["once", url] => daemon(url, true),
        ["say", directory] => {
            line::tell_directory(Path::new(directory));
            println!("said");
            pause();
        }
        [what, file, text] => {
            if what == "kill" && how == "forked" {
                // SAFETY: no pointers.
                unsafe { libc::kill(libc::getppid(), libc::SIGKILL) };
            }
            if what == "prepared" {
                let prepared = HAS_PREPARED.load(Ordering::SeqCst);
                note(file, &format!("{text} {prepared} 0"));
            } else if what == "limit" {
                note(file, &format!("{text} {how} {}", limit().rlim_cur));
            } else {
                // SAFETY: no pointers.
                let pid = unsafe { libc::getpid() };
                note(file, &format!("{text} {how} {pid}"));
            }
            if what == "linger" {
                pause();
            }
        }
        _ => {}
    }
    // SAFETY: ends the process; the test harness shall say nothing.
    unsafe { libc::_exit(0) }
}

fn pause() {
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

fn note(file: &str, text: &str) {
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(file);
    // One write, so that lines of several processes do not mix.
    file.unwrap()
        .write_all(format!("{text}\n").as_bytes())
        .unwrap();
}

/// The lines of a file: text, how its process was started, and the process.
fn notes(file: &Path) -> Vec<(String, String, i32)> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let words = |line: &str| -> Option<(String, String, i32)> {
        let mut words = line.split(' ').map(String::from);
        Some((words.next()?, words.next()?, words.next()?.parse().ok()?))
    };
    text.lines().filter_map(words).collect()
}

fn myself(role: &str) -> Program {
    Program {
        path: std::env::current_exe().unwrap(),
        args: ["a_role", "--exact", "--test-threads=1", "--nocapture"]
            .map(Into::into)
            .into(),
        env: vec![(ROLE.into(), Some(role.into()))],
        output: false,
        code: None,
        attached: true,
        ..Program::default()
    }
}

fn start_server() {
    fork::start_server(&myself("server")).unwrap();
}

/// What does the same forked, and started by itself; with an environment of this size.
fn program(code: &str, environment: usize) -> Program {
    let mut program = myself(code);
    program.code = Some(code.into());
    // A single variable may not be larger when a program is started.
    for i in 0..environment / 100_000 {
        let value = "x".repeat(100_000);
        program
            .env
            .push((format!("LARGE{i}").into(), Some(value.into())));
    }
    program
}

/// Starts processes, which note their numbers. What is returned hears of the end of each.
fn start_all(
    what: &str,
    file: &Path,
    numbers: std::ops::Range<usize>,
    environment: usize,
) -> (Vec<Arc<Child>>, mpsc::Receiver<usize>) {
    let (tell, ends) = mpsc::channel();
    let start = |i| {
        let tell = tell.clone();
        let code = format!("{what} {} {i}", file.display());
        let on_exit = move |_: &Child| tell.send(i).unwrap();
        process::start(&program(&code, environment), on_exit).unwrap()
    };
    (numbers.map(start).collect(), ends)
}

fn wait_for_ends(ends: &mpsc::Receiver<usize>, n: usize) {
    let mut ended: Vec<usize> = (0..n).map(|_| ends.recv_timeout(LONG).unwrap()).collect();
    ended.sort_unstable();
    ended.dedup();
    assert_eq!(ended.len(), n);
}

fn numbers(notes: &[(String, String, i32)]) -> Vec<usize> {
    let mut numbers: Vec<usize> = notes.iter().map(|n| n.0.parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

fn is_there(pid: i32) -> bool {
    // SAFETY: no pointers.
    unsafe { libc::kill(pid, 0) == 0 }
}

#[test]
fn the_fork_server_serves_any_number_of_requests_of_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes");
    start_server();
    let (_, ends) = start_all("note", &file, 0..100, 300_000);
    wait_for_ends(&ends, 100);
    let notes = notes(&file);
    assert_eq!(numbers(&notes), Vec::from_iter(0..100));
    assert!(notes.iter().all(|(_, how, _)| how == "forked"));
    assert!(fork::is_running());
}

#[test]
fn the_fork_server_prepares_once_it_is_idle_for_what_it_forks_later() {
    let dir = tempfile::tempdir().unwrap();
    let (file, pipe) = (dir.path().join("notes"), dir.path().join("pipe"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let mut server = myself("server");
    let variable = Some(pipe.clone().into_os_string());
    server.env.push((PREPARED.into(), variable));
    fork::start_server(&server).unwrap();
    let one = |number| {
        let (children, ends) = start_all("prepared", &file, number..number + 1, 0);
        assert_eq!(ends.recv_timeout(LONG), Ok(number));
        drop(children);
    };
    one(0);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(std::fs::read_to_string(pipe).unwrap()));
    assert_eq!(told.recv_timeout(LONG).as_deref(), Ok("prepared"));
    one(1);
    let noted = |number: &str, prepared: &str| (number.into(), prepared.into(), 0);
    assert_eq!(notes(&file), [noted("0", "false"), noted("1", "true")]);
}

#[test]
fn a_fork_server_that_dies_loses_and_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes");
    start_server();
    let (_, ends) = start_all("note", &file, 0..10, 0);
    let (_, end) = start_all("kill", &file, 10..11, 0);
    let (_, others) = start_all("note", &file, 11..40, 0);
    wait_for_ends(&ends, 10);
    wait_for_ends(&end, 1);
    wait_for_ends(&others, 29);
    let notes = notes(&file);
    assert_eq!(numbers(&notes), Vec::from_iter(0..40));
    let started = notes.iter().filter(|n| n.1 == "started").count();
    assert!((1..40).contains(&started), "{started}");
    assert!(!fork::is_running());
}

#[test]
fn what_is_not_wanted_ends_at_once_or_never_begins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes");
    // Some are under way by then, some are not, and some stand in the queue.
    for begun in [0, 1, 5] {
        start_server();
        let (children, ends) = start_all("linger", &file, 0..50, 100_000);
        eventually("some run", || notes(&file).len() >= begun);
        process::end_unconnected(&children);
        wait_for_ends(&ends, 50);
        assert!(children.iter().all(|child| child.exit().is_some()));
        let noted = notes(&file);
        assert!(noted.len() < 50, "{}", noted.len());
        assert!(!noted.iter().any(|(_, _, pid)| is_there(*pid)));
        // The server, which takes one after the other, has dealt with them and goes on.
        let (_, end) = start_all("note", &file, 50..51, 0);
        wait_for_ends(&end, 1);
        assert_eq!(notes(&file).len(), noted.len() + 1);
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn what_has_connected_is_not_ended() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes");
    let (children, ends) = start_all("linger", &file, 0..2, 0);
    eventually("both run", || notes(&file).len() == 2);
    children[0].has_connected();
    process::end_unconnected(&children);
    assert_eq!(ends.recv_timeout(LONG).unwrap(), 1);
    assert!(children[0].exit().is_none() && children[1].exit().is_some());
    // SAFETY: no pointers; nobody has reaped it.
    unsafe { libc::kill(children[0].pid() as i32, libc::SIGKILL) };
    assert_eq!(ends.recv_timeout(LONG).unwrap(), 0);
}

#[test]
fn a_killed_process_leaves_no_directory_however_it_was_started() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(Config::default());
    host.listen(&any_port("tcp").parse().unwrap()).unwrap();
    for server in [false, true] {
        if server {
            start_server();
        }
        for (name, remains) in [("RtmpOne", false), ("else", true)] {
            let directory = dir.path().join(name);
            std::fs::create_dir_all(directory.join("within")).unwrap();
            let code = format!("say {}", directory.display());
            let child = host.launch(&program(&code, 0)).unwrap();
            eventually("it has said so", || child.directory().is_some());
            // SAFETY: no pointers; it has not ended.
            unsafe { libc::kill(child.pid() as i32, libc::SIGKILL) };
            until(|| child.exit().is_some());
            eventually("it is as it should be", || directory.exists() == remains);
        }
    }
    host.close(false);
}

#[test]
fn processes_for_one_task_leave_no_records() {
    let host = Host::new(Config::default());
    for i in 0..60 {
        let address: mirai_core::transport::Address =
            mirai_core::transport::local_url().parse().unwrap();
        let task = task([0]);
        // Every third one never connects.
        let program = match i % 3 {
            0 => program("nothing", 0),
            _ => program(&format!("once {address}"), 0),
        };
        host.submit_to_new(task.clone(), None, &address, &program)
            .unwrap();
        let expected = match i % 3 {
            0 => Outcome::Reset,
            _ => value("ab"),
        };
        assert_eq!(*outcome(&task), expected);
    }
    let endpoints = host.status().endpoints.len();
    assert!(endpoints <= 20, "{endpoints}");
    host.close(true);
}

#[test]
fn a_host_that_closes_takes_along_what_has_not_connected() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes");
    start_server();
    let host = Host::new(Config::default());
    let code = |i: usize| format!("linger {} {i}", file.display());
    let launch = |i| host.launch(&program(&code(i), 0)).unwrap();
    let children: Vec<_> = (0..20).map(launch).collect();
    eventually("one runs", || !notes(&file).is_empty());
    host.close(false);
    assert!(children.iter().all(|child| child.exit().is_some()));
    let late = host.launch(&program(&code(20), 0)).unwrap();
    assert!(late.exit().is_some());
    assert!(!notes(&file).iter().any(|(_, _, pid)| is_there(*pid)));
}

fn limit() -> libc::rlimit {
    let mut limit = std::mem::MaybeUninit::uninit();
    // SAFETY: there is room for what the call writes.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr()), 0);
        limit.assume_init()
    }
}

/// For this process; with a hard limit only if that may be lower for good.
fn set_limit(soft: u64, hard: Option<u64>) {
    let hard = hard.unwrap_or(limit().rlim_max);
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` is valid for reading.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
}

// Each of these has its limits for itself only in a process of its own, as nextest has it.

#[test]
fn a_host_has_all_descriptors_that_it_may_and_what_it_starts_the_users_limit() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes");
    set_limit(300, None);
    let host = Host::new(Config::default());
    let raised = limit();
    assert_eq!(raised.rlim_cur, raised.rlim_max.min(65_536));
    let (_, ends) = start_all("limit", &file, 0..1, 0);
    wait_for_ends(&ends, 1);
    start_server();
    let (_, ends) = start_all("limit", &file, 1..2, 0);
    wait_for_ends(&ends, 1);
    let said: Vec<_> = notes(&file).into_iter().map(|n| (n.1, n.2)).collect();
    assert_eq!(said, [("started".into(), 300), ("forked".into(), 300)]);
    host.close(false);
}

#[test]
fn a_process_for_which_others_have_left_no_descriptors_is_an_error_that_says_so() {
    set_limit(200, Some(200));
    let host = Host::new(Config::default());
    let held: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let failure = host.launch(&program("linger", 0)).err();
    assert!(failure.unwrap().to_string().contains("ulimit -n"));
    drop(held);
    host.close(false);
}

#[test]
fn more_processes_than_there_are_descriptors_for_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes");
    set_limit(200, Some(200));
    let host = Host::new(Config::default());
    let code = format!("linger {} 0", file.display());
    let failure = (0..40).find_map(|_| host.launch(&program(&code, 0)).err());
    let failure = failure.expect("forty are too many").to_string();
    assert!(failure.contains("ulimit -n"), "{failure}");
    host.close(false);
    let (_, ends) = start_all("note", &file, 1..2, 0);
    wait_for_ends(&ends, 1);
}

/// A daemon that answers tasks, or one, by as many segments as they say.
fn daemon(url: &str, once: bool) -> ! {
    use mirai_core::memory::{Inset, Parts, Segment};
    let mut worker = dial(url, None);
    line::tell_connected();
    while let mirai_core::worker::Next::Task(task) = worker.next(None, || false) {
        worker.finish();
        let insets: Vec<Inset> = (0..task.body[0])
            .map(|i| Inset {
                at: 1,
                segment: Segment::copy_of(&[i; 10]).expect("there is one"),
            })
            .collect();
        let value = Parts {
            bytes: b"ab",
            insets: &insets,
            marks: &[],
        };
        worker.reply(task.seq, value, false);
        if once {
            worker.leave();
            break;
        }
    }
    // SAFETY: as in `act`.
    unsafe { libc::_exit(0) }
}

#[test]
fn a_result_waits_for_descriptors_and_is_not_lost() {
    set_limit(400, Some(400));
    let host = Host::new(Config::default());
    let url = mirai_core::transport::local_url();
    host.listen(&url.parse().unwrap()).unwrap();
    host.launch(&program(&format!("daemon {url}"), 0)).unwrap();
    until(|| host.counts().connections == 1);
    for left in [30, 5, 0] {
        let mut taken = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            taken.push(file);
        }
        taken.truncate(taken.len() - left);
        let task = submit(&host, [60]);
        let other = submit(&host, [0]);
        // It is on its way, and cannot arrive.
        std::thread::sleep(Duration::from_millis(200));
        assert!(task.outcome().is_none());
        drop(taken);
        let Outcome::Value(arrived) = outcome(&task) else {
            panic!("not {:?}", task.outcome());
        };
        let expected: Vec<u8> = (0..60).flat_map(|i| [i; 10]).collect();
        assert_eq!(arrived.plain()[1..601], expected);
        assert_eq!(*outcome(&other), value("ab"));
    }
    host.close(true);
}
