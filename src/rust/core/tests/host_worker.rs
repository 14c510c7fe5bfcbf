//! Host and daemons together, over real sockets, in one process.
//!
//! Mostly one thread plays both: it submits, then is the daemon, then waits for
//! the result. So each step of a story happens when the test says so; threads
//! come in only where things shall happen at the same time. To be run with
//! `cargo nextest`: the bell, on which the host waits, is the process's.
//!
//! Over 500 lines: the stories share one stage (host, daemon, and the steps of both), and are short each.

#[cfg(unix)]
#[path = "host_worker/sockets.rs"]
mod sockets;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use mirai_core::dispatcher::{Config, Policy, Retry, Target};
use mirai_core::host::Host;
use mirai_core::process::Program;
use mirai_core::protocol::Kind;
use mirai_core::sys::{Bell, Waited};
use mirai_core::task::{Outcome, Patience, Payload, Task, next_task_id, wait_for};
use mirai_core::transport::{Address, local_url};
use mirai_core::worker::{Assignment, AutoExit, DialError, Next, Options, Runtime, Worker};

/// Beyond this something hangs, also under wine.
const LONG: Duration = Duration::from_secs(if cfg!(windows) { 120 } else { 20 });

/// Stands in for the language runtime and keeps what is asked of it.
#[derive(Default)]
struct Recorder {
    asked: Mutex<Asked>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Asked {
    interrupts: usize,
    exits: usize,
    raised: Option<i32>,
}

impl Recorder {
    fn note(&self, change: impl FnOnce(&mut Asked)) {
        change(&mut self.asked.lock().unwrap());
        self.changed.notify_all();
    }

    fn asked(&self) -> Asked {
        *self.asked.lock().unwrap()
    }

    /// Waits until an interrupt is pending, at most so long; whether there is one.
    fn wait_interrupted(&self, most: Duration) -> bool {
        let asked = self.asked.lock().unwrap();
        let none = |asked: &mut Asked| asked.interrupts == 0;
        let (asked, _) = self.changed.wait_timeout_while(asked, most, none).unwrap();
        asked.interrupts > 0
    }

    fn clear_interrupts(&self) -> usize {
        std::mem::take(&mut self.asked.lock().unwrap().interrupts)
    }
}

impl Runtime for Recorder {
    fn interrupt(&self) {
        self.note(|asked| asked.interrupts += 1);
    }
    fn forget_interrupt(&self) {}
    fn exit(&self) {
        self.note(|asked| asked.exits += 1);
    }
    fn raise(&self, signal: i32) {
        self.note(|asked| asked.raised = Some(signal));
    }
}

fn listening(config: Config) -> (Host, Address) {
    let host = Host::new(config);
    let address = local_url().parse().unwrap();
    host.listen(&address).unwrap();
    (host, address)
}

fn options(autoexit: AutoExit) -> Options {
    Options {
        autoexit,
        ..Options::default()
    }
}

fn try_dial(
    address: &Address,
    options: &Options,
    recorder: &Arc<Recorder>,
) -> Result<Worker, DialError> {
    Worker::dial(address, options, recorder.clone(), None, || false)
}

fn dial_with(address: &Address, autoexit: AutoExit) -> (Worker, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let worker = try_dial(address, &options(autoexit), &recorder).unwrap();
    (worker, recorder)
}

fn dial(address: &Address) -> Worker {
    dial_with(address, AutoExit::Never).0
}

/// Waits, as the host's main thread does, until something it is told of is so.
fn until(so: impl FnMut() -> bool) {
    let end = Bell::get().wait(Some(LONG), || false, so);
    assert_eq!(end, Waited::Ready);
}

/// A daemon that the host knows of. A welcome is sent just before that.
fn join(host: &Host, address: &Address) -> Worker {
    let before = host.counts().cumulative;
    let worker = dial(address);
    until(|| host.counts().cumulative > before);
    worker
}

fn new_task(body: impl Into<Vec<u8>>) -> Arc<Task> {
    let payload = Payload {
        constants: None,
        kind: Kind::Task,
        stream: None,
        body: body.into().into(),
    };
    Arc::new(Task::new(next_task_id(), payload))
}

fn submit(host: &Host, body: impl Into<Vec<u8>>) -> Arc<Task> {
    let task = new_task(body);
    host.submit(task.clone(), None, Target::Any);
    task
}

fn submit_within(host: &Host, body: &str, ms: u64) -> Arc<Task> {
    let task = new_task(body);
    let timeout = Some(Duration::from_millis(ms));
    host.submit(task.clone(), timeout, Target::Any);
    task
}

fn wait_all(tasks: &[Arc<Task>]) {
    let end = wait_for(
        tasks.iter().map(Arc::as_ref),
        Patience {
            timeout: Some(LONG),
            ..Patience::for_all(tasks.len())
        },
        || false,
    );
    assert_eq!(end, Waited::Ready);
}

fn outcome(task: &Arc<Task>) -> &Outcome {
    wait_all(std::slice::from_ref(task));
    task.outcome().unwrap()
}

fn value(bytes: impl Into<Vec<u8>>) -> Outcome {
    Outcome::Value(bytes.into().into())
}

fn next(worker: &mut Worker) -> Assignment {
    match worker.next(Some(Instant::now() + LONG), || false) {
        Next::Task(assignment) => assignment,
        other => panic!("instead of a task: {other:?}"),
    }
}

/// The daemon evaluates one task to what `answer` makes of it.
fn evaluate(worker: &mut Worker, answer: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let task = next(worker);
    assert!(!worker.finish());
    assert!(worker.reply(task.seq, &answer(task.body), false));
}

/// A daemon in a thread of its own that echoes until the host goes.
fn echoing(mut worker: Worker) -> thread::JoinHandle<usize> {
    thread::spawn(move || {
        let mut done = 0;
        while let Next::Task(task) = worker.next(None, || false) {
            worker.finish();
            if !worker.reply(task.seq, &task.body, false) {
                break;
            }
            done += 1;
        }
        done
    })
}

/// Asserts that daemons can connect and work.
fn assert_in_order(host: &Host, address: &Address) {
    let mut worker = join(host, address);
    let task = submit(host, "still there?");
    evaluate(&mut worker, |_| b"yes".into());
    assert_eq!(outcome(&task), &value("yes"));
    drop(worker);
    until(|| host.counts().connections == 0);
}

#[test]
fn a_task_goes_out_and_its_value_comes_back() {
    let (host, address) = listening(Config::default());
    let mut worker = dial(&address);
    let payload = Payload {
        constants: None,
        kind: Kind::Map,
        stream: Some([1, 2, 3, 4, 5, 6]),
        body: b"question".as_slice().into(),
    };
    let task = Arc::new(Task::new(next_task_id(), payload));
    host.submit(task.clone(), None, Target::Any);
    let assignment = next(&mut worker);
    assert_eq!(assignment.kind, Kind::Map);
    assert_eq!(assignment.stream, Some([1, 2, 3, 4, 5, 6]));
    assert_eq!(assignment.body, b"question");
    assert!(!worker.finish());
    assert!(worker.reply(assignment.seq, b"answer", false));
    assert_eq!(outcome(&task), &value("answer"));

    let status = host.status();
    assert_eq!((status.counts.completed, status.counts.connections), (1, 1));
    assert_eq!(status.endpoints[0].url, address.to_string());
    assert_eq!(status.endpoints[0].counts.complete, 1);
    host.close(false);
}

#[test]
fn tasks_are_begun_first_in_first_out() {
    let (host, address) = listening(Config::default());
    let tasks: Vec<_> = (0..100u8).map(|i| submit(&host, vec![i])).collect();
    let mut worker = dial(&address);
    for i in 0..100u8 {
        evaluate(&mut worker, |body| {
            assert_eq!(body, [i]);
            body
        });
    }
    wait_all(&tasks);
    host.close(false);
}

#[test]
fn daemons_share_the_queue_and_nothing_is_lost_or_mixed_up() {
    for policy in [Policy::Queue, Policy::RoundRobin] {
        let (host, address) = listening(Config {
            policy,
            ..Config::default()
        });
        let daemons: Vec<_> = (0..3).map(|_| echoing(join(&host, &address))).collect();
        let number = |i: u32| i.to_le_bytes();
        let tasks: Vec<_> = (0..5000).map(|i| submit(&host, number(i))).collect();
        wait_all(&tasks);
        for (i, task) in (0..).zip(&tasks) {
            assert_eq!(outcome(task), &value(number(i)));
        }
        host.close(false);
        let done: Vec<usize> = daemons.into_iter().map(|d| d.join().unwrap()).collect();
        assert_eq!(done.iter().sum::<usize>(), 5000);
        if policy == Policy::RoundRobin {
            assert!(done.iter().all(|n| [1666, 1667].contains(n)), "{done:?}");
        }
    }
}

#[test]
fn what_a_daemon_holds_ahead_of_a_long_task_is_done_by_others_at_once() {
    let (host, address) = listening(Config::default());
    let mut slow = join(&host, &address);
    let mut tasks: Vec<_> = (0..100u32)
        .map(|i| submit(&host, i.to_le_bytes()))
        .collect();
    // Tiny tasks until it is sent some ahead, which depends on how busy this machine is.
    let mut at = 0;
    while host.counts().executing < 3 {
        evaluate(&mut slow, |body| body);
        let replied = Instant::now();
        wait_all(&tasks[at..=at]);
        at += 1;
        tasks.push(submit(&host, (tasks.len() as u32).to_le_bytes()));
        // This thread plays both, and the host's time is not the daemon's.
        slow.exclude_from_task_time(replied.elapsed());
    }
    let long = next(&mut slow);
    assert_eq!(long.body, (at as u32).to_le_bytes());
    let quick = join(&host, &address);
    let quick = thread::spawn(move || {
        let mut quick = quick;
        let mut done = Vec::new();
        while let Next::Task(task) = quick.next(None, || false) {
            quick.finish();
            done.push(u32::from_le_bytes(task.body[..4].try_into().unwrap()));
            assert!(quick.reply(task.seq, &task.body, false));
        }
        done
    });
    wait_all(&tasks[at + 1..]);
    assert!(!tasks[at].is_resolved());
    assert!(slow.reply(long.seq, &long.body, false));
    for (i, task) in (0u32..).zip(&tasks) {
        assert_eq!(outcome(task), &value(i.to_le_bytes()));
    }
    host.close(false);
    let mut done = quick.join().unwrap();
    done.sort_unstable();
    assert_eq!(
        done,
        (at as u32 + 1..tasks.len() as u32).collect::<Vec<_>>()
    );
    assert!(matches!(slow.next(None, || false), Next::Lost { .. }));
}

#[test]
fn a_crashed_daemons_task_resolves_to_reset_and_the_others_go_on() {
    let (host, address) = listening(Config::default());
    let mut crashing = join(&host, &address);
    let doomed = submit(&host, "doomed");
    assert_eq!(next(&mut crashing).body, b"doomed");
    let mut staying = join(&host, &address);
    let other = submit(&host, "other");
    let queued = submit(&host, "queued");
    drop(crashing);
    assert_eq!(outcome(&doomed), &Outcome::Reset);
    evaluate(&mut staying, |body| body);
    evaluate(&mut staying, |body| body);
    assert_eq!(outcome(&other), &value("other"));
    assert_eq!(outcome(&queued), &value("queued"));
    host.close(false);
}

#[test]
fn with_retry_a_crashed_daemons_task_runs_on_the_next() {
    let (host, address) = listening(Config {
        retry: Retry::AFTER_CRASH,
        ..Config::default()
    });
    let task = submit(&host, "twice");
    for _ in 0..3 {
        let mut crashing = dial(&address);
        assert_eq!(next(&mut crashing).body, b"twice");
    }
    let mut staying = dial(&address);
    evaluate(&mut staying, |body| body);
    assert_eq!(outcome(&task), &value("twice"));
    host.close(false);
}

#[test]
fn cancelling_a_running_task_interrupts_it_and_no_other() {
    let (host, address) = listening(Config::default());
    let (mut worker, recorder) = dial_with(&address, AutoExit::Never);
    let unwanted = submit(&host, "unwanted");
    let running = next(&mut worker);
    assert!(host.cancel(&unwanted));
    assert_eq!(unwanted.outcome(), Some(&Outcome::Canceled));
    assert!(!host.cancel(&unwanted));
    assert!(recorder.wait_interrupted(LONG));
    assert!(worker.finish());
    assert_eq!(recorder.clear_interrupts(), 1);
    worker.reply(running.seq, b"too late", false);

    let later = submit(&host, "later");
    evaluate(&mut worker, |body| body);
    assert_eq!(outcome(&later), &value("later"));
    assert!(!host.cancel(&later));
    assert_eq!(unwanted.outcome(), Some(&Outcome::Canceled));
    host.close(false);
    assert!(matches!(worker.next(None, || false), Next::Lost { .. }));
    assert_eq!(recorder.asked(), Asked::default());
}

#[test]
fn a_queued_task_that_is_cancelled_never_reaches_a_daemon() {
    let (host, address) = listening(Config::default());
    let unwanted = submit(&host, "unwanted");
    let wanted = submit(&host, "wanted");
    assert!(host.cancel(&unwanted));
    let mut worker = dial(&address);
    evaluate(&mut worker, |body| body);
    assert_eq!(outcome(&wanted), &value("wanted"));
    assert_eq!(unwanted.outcome(), Some(&Outcome::Canceled));
    host.close(false);
}

#[test]
fn what_times_out_is_interrupted_or_never_sent() {
    let (host, address) = listening(Config::default());
    let (mut worker, recorder) = dial_with(&address, AutoExit::Never);
    let running = submit_within(&host, "running", 30);
    let assignment = next(&mut worker);
    let queued = submit_within(&host, "queued", 10);
    let patient = submit_within(&host, "patient", 60_000);
    let begin = Instant::now();
    assert_eq!(outcome(&queued), &Outcome::TimedOut);
    assert_eq!(outcome(&running), &Outcome::TimedOut);
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(recorder.wait_interrupted(LONG));
    assert!(worker.finish());
    worker.reply(assignment.seq, b"", false);
    evaluate(&mut worker, |body| body);
    assert_eq!(outcome(&patient), &value("patient"));
    host.close(false);
}

#[test]
fn a_timeout_beyond_all_times_is_none() {
    let (host, address) = listening(Config::default());
    let mut worker = dial(&address);
    for timeout in [
        Duration::MAX,
        Duration::MAX / 2,
        Duration::from_secs(1 << 60),
    ] {
        let endless = new_task("endless");
        host.submit(endless.clone(), Some(timeout), Target::Any);
        let brief = submit_within(&host, "brief", 1);
        assert_eq!(outcome(&brief), &Outcome::TimedOut, "the clock goes on");
        evaluate(&mut worker, |body| body);
        assert_eq!(outcome(&endless), &value("endless"));
    }
    host.close(false);
}

#[test]
fn daemons_that_leave_lose_no_task() {
    for policy in [Policy::Queue, Policy::RoundRobin] {
        let (host, address) = listening(Config {
            policy,
            ..Config::default()
        });
        let over = Arc::new(AtomicBool::new(false));
        // Each comes back after having left, with a few tasks done.
        let daemons: Vec<_> = (1..4)
            .map(|most| {
                let (address, over) = (address.clone(), over.clone());
                thread::spawn(move || {
                    let mut seen = Vec::new();
                    while !over.load(SeqCst) {
                        let recorder = Arc::new(Recorder::default());
                        let options = options(AutoExit::Signal(2));
                        let Ok(mut worker) = try_dial(&address, &options, &recorder) else {
                            break;
                        };
                        for _ in 0..most {
                            let Next::Task(task) = worker.next(None, || false) else {
                                return seen;
                            };
                            worker.finish();
                            assert!(worker.reply(task.seq, &task.body, false));
                            seen.push(task.body);
                        }
                        worker.leave();
                        assert_eq!(recorder.asked(), Asked::default(), "the host is not gone");
                    }
                    seen
                })
            })
            .collect();
        let number = |i: u32| i.to_le_bytes();
        let tasks: Vec<_> = (0..1500).map(|i| submit(&host, number(i))).collect();
        wait_all(&tasks);
        for (i, task) in (0..).zip(&tasks) {
            assert_eq!(outcome(task), &value(number(i)));
        }
        over.store(true, SeqCst);
        host.close(true);
        let mut times = BTreeMap::new();
        for body in daemons.into_iter().flat_map(|d| d.join().unwrap()) {
            *times.entry(body).or_insert(0) += 1;
        }
        assert_eq!(times.len(), 1500);
        assert!(times.values().all(|n| *n == 1), "something ran twice");
    }
}

#[test]
fn closing_resolves_what_is_pending_and_tells_daemons_to_end() {
    for end in [false, true] {
        let (host, address) = listening(Config::default());
        let (mut worker, recorder) = dial_with(&address, AutoExit::AfterTask);
        let running = submit(&host, "running");
        next(&mut worker);
        let queued = submit(&host, "queued");
        host.close(end);
        for task in [running, queued] {
            assert_eq!(task.outcome(), Some(&Outcome::Reset));
        }
        if end {
            assert!(recorder.wait_interrupted(LONG));
        }
        // Otherwise this one may finish what it does, for its own sake.
        assert_eq!(worker.finish(), end);
        match worker.next(None, || false) {
            Next::Lost { end: told } => assert_eq!(told, end),
            other => panic!("{other:?}"),
        }
        let late = submit(&host, "late");
        assert_eq!(late.outcome(), Some(&Outcome::Reset));
        let again = try_dial(&address, &options(AutoExit::Now), &recorder);
        assert!(matches!(again, Err(DialError::Connect { .. })));
        // The name is free at once.
        let next = Host::new(Config::default());
        next.listen(&address).unwrap();
        assert_in_order(&next, &address);
        next.close(false);
    }
}

#[test]
fn a_daemon_that_shall_go_with_its_host_is_made_to() {
    let (host, address) = listening(Config::default());
    let (mut worker, recorder) = dial_with(&address, AutoExit::Now);
    let _running = submit(&host, "stuck");
    next(&mut worker);
    host.close(false);
    let asked = recorder.asked.lock().unwrap();
    let staying = |asked: &mut Asked| asked.exits == 0;
    let (asked, _) = recorder
        .changed
        .wait_timeout_while(asked, LONG, staying)
        .unwrap();
    assert_eq!(asked.exits, 1);
}

#[test]
fn bodies_of_fifty_megabytes_arrive_intact() {
    let (host, address) = listening(Config::default());
    let mut worker = dial(&address);
    let pattern = |seed: u32| -> Vec<u8> {
        let bytes = (0..50_000_000u32).map(|i| (i.wrapping_mul(seed) >> 13) as u8);
        bytes.collect()
    };
    let (there, back) = (pattern(2_654_435_761), pattern(0x9E37_79B9));
    let task = submit(&host, there.clone());
    evaluate(&mut worker, |body| {
        assert!(body == there);
        back.clone()
    });
    assert!(outcome(&task) == &Outcome::Value(back.into()));
    host.close(false);
}

#[test]
fn a_daemon_lost_within_a_large_body_does_not_hold_up_others() {
    let (host, address) = listening(Config::default());
    let crashing = join(&host, &address);
    // Not read, so most of it is still with the host.
    let large = submit(&host, vec![1; 20_000_000]);
    let mut staying = join(&host, &address);
    let small = submit(&host, "small");
    evaluate(&mut staying, |body| body);
    assert_eq!(outcome(&small), &value("small"));
    drop(crashing);
    assert_eq!(outcome(&large), &Outcome::Reset);
    host.close(false);
}

#[test]
fn cancelling_at_any_moment_hits_the_task_meant_or_nothing() {
    let (host, address) = listening(Config::default());
    let (mut worker, recorder) = dial_with(&address, AutoExit::Never);
    let daemon = thread::spawn(move || {
        let mut interrupted = Vec::new();
        let mut round = 0;
        while let Next::Task(task) = worker.next(None, || false) {
            // Long enough for the host to cancel during it, at times.
            recorder.wait_interrupted(Duration::from_micros(round % 7 * 20));
            round += 1;
            let told = worker.finish();
            let raised = recorder.clear_interrupts();
            assert_eq!(raised, usize::from(told), "one was left over from before");
            if told {
                interrupted.push(task.body.clone());
            }
            assert!(worker.reply(task.seq, &task.body, false));
        }
        interrupted
    });
    let mut unwanted = BTreeMap::new();
    for round in 0..500u32 {
        let body = [b"cancel ".as_slice(), &round.to_le_bytes()].concat();
        let task = submit(&host, body.clone());
        let mut moment = [0; 1];
        mirai_core::sys::random(&mut moment);
        let moment = Instant::now() + Duration::from_micros(moment[0].into());
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        if host.cancel(&task) {
            assert_eq!(task.outcome(), Some(&Outcome::Canceled));
        } else {
            assert_eq!(task.outcome(), Some(&Outcome::Value(body.clone().into())));
        }
        unwanted.insert(body, task);
        let wanted = submit(&host, "wanted");
        assert_eq!(outcome(&wanted), &value("wanted"));
    }
    host.close(false);
    for body in daemon.join().unwrap() {
        let task = unwanted
            .get(&body)
            .expect("only unwanted tasks are interrupted");
        assert_eq!(task.outcome(), Some(&Outcome::Canceled));
    }
}

#[test]
fn room_in_the_queue_rings_the_bell() {
    let (host, address) = listening(Config {
        capacity: Some(1000),
        ..Config::default()
    });
    let first = submit(&host, vec![0; 600]);
    assert!(host.has_room(400));
    assert!(!host.has_room(401));
    let daemon = thread::spawn(move || echoing(dial(&address)).join());
    until(|| host.has_room(600));
    let second = submit(&host, vec![1; 600]);
    wait_all(&[first, second]);

    let status = host.status();
    assert_eq!(status.capacity, Some(1000));
    assert_eq!((status.counts.queued, status.counts.peak), (0, 600));
    host.close(false);
    assert_eq!(daemon.join().unwrap().unwrap(), 2);
}

#[test]
fn a_process_that_never_connects_ends_its_task() {
    let host = Host::new(Config::default());
    let program = Program {
        code: None,
        attached: true,
        surroundings: None,
        // The test harness, which lists the tests and ends.
        path: std::env::current_exe().unwrap(),
        args: vec!["--list".into()],
        env: vec![],
        output: false,
    };
    // It may be gone before or after the task has found its place.
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let task = new_task("x");
            let address = local_url().parse().unwrap();
            host.submit_to_new(task.clone(), None, &address, &program)
                .unwrap();
            task
        })
        .collect();
    wait_all(&tasks);
    for task in tasks {
        assert_eq!(task.outcome(), Some(&Outcome::Reset));
    }
    host.close(false);
}

#[test]
fn a_program_that_cannot_be_started_is_an_error() {
    let host = Host::new(Config::default());
    let program = Program {
        code: None,
        attached: true,
        surroundings: None,
        path: "/nowhere/to/be/found".into(),
        args: vec![],
        env: vec![],
        output: false,
    };
    let task = new_task("x");
    let address = local_url().parse().unwrap();
    assert!(host.submit_to_new(task, None, &address, &program).is_err());
    assert_eq!(host.counts().awaiting, 0);
    host.close(false);
}

#[test]
fn a_daemon_dials_until_somebody_listens_if_it_shall() {
    let address: Address = local_url().parse().unwrap();
    let recorder = Arc::new(Recorder::default());
    let nobody = try_dial(&address, &options(AutoExit::Never), &recorder);
    assert!(matches!(nobody, Err(DialError::Connect { .. })));

    let patient = Options {
        asyncdial: true,
        ..options(AutoExit::Never)
    };
    let soon = Some(Instant::now() + Duration::from_millis(30));
    let nobody = Worker::dial(&address, &patient, recorder.clone(), soon, || false);
    assert!(matches!(nobody, Err(DialError::TimedOut)));

    let host = Host::new(Config::default());
    let dialling = address.clone();
    let daemon = thread::spawn(move || try_dial(&dialling, &patient, &recorder).is_ok());
    host.listen(&address).unwrap();
    assert!(daemon.join().unwrap());
    host.close(false);
}

#[test]
fn waiting_for_a_task_ends_at_the_given_time() {
    let (host, address) = listening(Config::default());
    let mut worker = dial(&address);
    let soon = Some(Instant::now() + Duration::from_millis(5));
    assert!(matches!(worker.next(soon, || false), Next::TimedOut));
    let task = submit(&host, "x");
    evaluate(&mut worker, |body| body);
    assert_eq!(outcome(&task), &value("x"));
    host.close(false);
}

#[test]
fn what_tasks_have_in_common_is_sent_once_to_each_daemon_and_forgotten_at_the_end() {
    let (host, address) = listening(Config::default());
    let constants = host.constants(b"common".as_slice().into());
    let tasks: Vec<Arc<Task>> = (0..5)
        .map(|i: u8| {
            let payload = Payload {
                constants: Some(constants.clone()),
                kind: Kind::Map,
                stream: None,
                body: vec![i].into(),
            };
            Arc::new(Task::new(next_task_id(), payload))
        })
        .collect();
    drop(constants);
    for task in &tasks {
        host.submit(task.clone(), None, Target::Any);
    }
    // One that joins early and takes two tasks, and a late one that takes the rest.
    let mut held = Vec::new();
    for share in [2, 3] {
        let mut worker = join(&host, &address);
        for _ in 0..share {
            let task = next(&mut worker);
            let common = task.constants.expect("constants come before the task");
            assert_eq!(*common.bytes, b"common");
            held.push(common.bytes);
            worker.finish();
            assert!(worker.reply(task.seq, &task.body, false));
        }
        if share == 2 {
            // It has been sent the next one, which it gives back.
            worker.leave();
            until(|| host.counts().connections == 0);
        } else {
            // The same memory each time: it came once.
            assert!(held[2..].iter().all(|h| Arc::ptr_eq(h, &held[2])));
            wait_all(&tasks);
            let last = submit(&host, "after the map");
            evaluate(&mut worker, |_| b"done".into());
            assert_eq!(outcome(&last), &value("done"));
            held.truncate(3);
            // Ours is the last when the daemon has been told to forget. The I/O thread does that beside other work.
            for _ in 0..10_000 {
                let late = submit(&host, "later still");
                evaluate(&mut worker, |_| b"done".into());
                assert_eq!(outcome(&late), &value("done"));
                if Arc::strong_count(&held[2]) == 1 {
                    break;
                }
            }
            assert_eq!(Arc::strong_count(&held[2]), 1);
        }
    }
    assert_eq!(outcome(&tasks[0]), &value([0]));
    host.close(false);
}
