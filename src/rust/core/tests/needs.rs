//! Tasks that need the values of others, over real links: what they are sent, and what becomes of them.

mod common;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::*;
use mirai_core::checkpoint::{Checkpoint, Key};
use mirai_core::dispatcher::{Config, Policy, Retry, Target, TaskState};
use mirai_core::host::{Host, cancel_unwanted};
use mirai_core::memory::plain;
use mirai_core::protocol::Kind;
use mirai_core::relay::{Relay, SLOTS};
use mirai_core::task::{Outcome, Payload, Task, next_task_id};
use mirai_core::transport::local_url;
use mirai_core::worker::{Assignment, Next, Options, Worker};

fn needing(body: impl Into<Vec<u8>>, needs: &[&Arc<Task>]) -> Arc<Task> {
    let payload = Payload {
        constants: None,
        kind: Kind::Task,
        stream: None,
        body: body.into().into(),
    };
    let needs = needs.iter().map(|need| Arc::clone(need)).collect();
    Arc::new(Task::new(next_task_id(), payload).needing(needs))
}

fn submit_needing(host: &Host, body: impl Into<Vec<u8>>, needs: &[&Arc<Task>]) -> Arc<Task> {
    let task = needing(body, needs);
    host.submit(task.clone(), None, Target::Any);
    task
}

/// The message, and each value.
fn parts(task: &Assignment) -> Vec<Vec<u8>> {
    let (bytes, pieces) = task.layout.message(&task.body, &task.pieces);
    let mut parts = vec![plain(bytes, pieces).into_owned()];
    for i in 0..task.layout.attached() {
        let (range, pieces) = task.layout.value(i, &task.pieces).unwrap();
        let mut value = Vec::new();
        let mut taken = range.start;
        for piece in pieces {
            value.extend_from_slice(&task.body[taken..piece.at()]);
            taken = piece.at();
            let memory = piece.memory();
            // SAFETY: the memory is mapped, and nobody writes to it.
            value.extend_from_slice(unsafe {
                std::slice::from_raw_parts(memory.as_ptr(), memory.len())
            });
        }
        value.extend_from_slice(&task.body[taken..range.end]);
        parts.push(value);
    }
    parts
}

/// A daemon in a thread of its own. Its values are what it is sent, in brackets: `message[value][value]`; `fail` is an
/// error.
fn joining(mut worker: Worker) -> JoinHandle<()> {
    thread::spawn(move || {
        while let Next::Task(task) = worker.next(None, || false) {
            worker.finish();
            let mut parts = parts(&task).into_iter();
            let mut value = parts.next().unwrap();
            let failed = value == b"fail";
            for part in parts {
                value.extend_from_slice(&[b"[", &part[..], b"]"].concat());
            }
            if !worker.reply(task.seq, &value, failed) {
                break;
            }
        }
    })
}

fn host_at(url: &str, config: Config) -> (Host, String) {
    let host = Host::new(config);
    let url = listening(url, &host).0;
    (host, url)
}

fn local() -> (Host, String) {
    host_at(&local_url(), Config::default())
}

fn cause(task: &Task) -> u64 {
    match outcome(task) {
        Outcome::Argument(cause) => cause.task().id(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_go_from_daemon_to_daemon_by_any_link() {
    let round_robin = Config {
        policy: Policy::RoundRobin,
        ..Config::default()
    };
    for (url, config) in [
        (local_url(), Config::default()),
        (local_url(), round_robin),
        (any_port("tcp"), Config::default()),
    ] {
        let (host, url) = host_at(&url, config);
        let daemons = [(); 2].map(|()| joining(dial(&url, None)));
        let a = submit(&host, b"a");
        let b = submit_needing(&host, b"b", &[&a]);
        let both = submit_needing(&host, b"both", &[&b, &a]);
        assert_eq!(*outcome(&both), value(b"both[b[a]][a]"));
        // Those that have resolved already.
        let again = submit_needing(&host, b"again", &[&a, &both]);
        assert_eq!(*outcome(&again), value(b"again[a][both[b[a]][a]]"));
        host.close(true);
        daemons.into_iter().for_each(|d| d.join().unwrap());
    }
}

#[test]
fn long_chains_and_many_values() {
    let (host, url) = local();
    let daemons = [(); 2].map(|()| joining(dial(&url, None)));
    let many: Vec<_> = (0..1000).map(|i| submit(&host, format!("{i}"))).collect();
    let refs: Vec<_> = many.iter().collect();
    let all = submit_needing(&host, b"", &refs);
    let expected: String = (0..1000).map(|i| format!("[{i}]")).collect();
    assert_eq!(*outcome(&all), value(expected));
    let mut last = submit(&host, b"");
    for _ in 0..1000 {
        last = submit_needing(&host, b"", &[&last]);
    }
    assert_eq!(
        *outcome(&last),
        value(format!("{}{}", "[".repeat(1000), "]".repeat(1000)))
    );
    host.close(true);
    daemons.into_iter().for_each(|d| d.join().unwrap());
}

#[test]
fn a_failure_ends_all_that_depend_on_it_however_many_these_are() {
    let hosts = [local(), local()];
    let fails = submit(&hosts[0].0, b"fail");
    let mut chain = vec![fails.clone()];
    // Each waits with another host than the one before: every step is a callback.
    for i in 0..20_000 {
        let host = &hosts[i % 2].0;
        chain.push(submit_needing(host, b"never", &[chain.last().unwrap()]));
    }
    let independent = submit(&hosts[0].0, b"fine");
    let daemons = hosts.each_ref().map(|(_, url)| joining(dial(url, None)));
    assert!(matches!(outcome(&fails), Outcome::Error(_)));
    for task in &chain[1..] {
        assert_eq!(cause(task), fails.id());
    }
    assert_eq!(*outcome(&independent), value(b"fine"));
    let rows = hosts[1].0.task_log(usize::MAX).rows;
    let never = rows
        .iter()
        .all(|row| row.state == TaskState::Failed && row.attempts == 0);
    assert!(never && rows.len() == 10_000);
    // Of one that has failed before.
    let late = submit_needing(&hosts[1].0, b"late", &[chain.last().unwrap()]);
    assert_eq!(cause(&late), fails.id());
    for (host, _) in &hosts {
        host.close(true);
    }
    daemons.into_iter().for_each(|d| d.join().unwrap());
}

#[test]
fn what_waits_is_cancelled_times_out_and_ends_with_either_host() {
    let ((one, _), (two, _)) = (local(), local());
    let first = submit(&one, b"first");
    let canceled = submit_needing(&two, b"canceled", &[&first]);
    let late = needing(b"late", &[&first]);
    two.submit(late.clone(), Some(Duration::from_millis(20)), Target::Any);
    let (of_one, of_two) = (
        submit_needing(&one, b"of one", &[&first]),
        submit_needing(&two, b"of two", &[&first]),
    );
    assert_eq!(two.counts().awaiting, 3);
    assert!(two.cancel(&canceled));
    assert_eq!(*outcome(&late), Outcome::TimedOut);
    one.close(true);
    assert_eq!(*outcome(&first), Outcome::Reset);
    assert_eq!(*outcome(&of_one), Outcome::Reset);
    assert_eq!(cause(&of_two), first.id());
    two.close(true);
}

#[test]
fn what_nobody_can_ask_for_is_wanted_while_others_need_it() {
    let (host, _) = local();
    let first = submit(&host, b"first");
    assert!(first.is_wanted());
    let (a, b) = (
        submit_needing(&host, b"a", &[&first]),
        submit_needing(&host, b"b", &[&first]),
    );
    assert!(first.is_wanted());
    first.abandon();
    assert!(first.is_wanted());
    assert_eq!(
        a.needs().iter().map(|n| n.id()).collect::<Vec<_>>(),
        [first.id()]
    );
    host.cancel(&a);
    assert!(first.is_wanted() && a.needs().is_empty());
    host.cancel(&b);
    assert!(!first.is_wanted());
    host.close(true);
}

#[test]
fn what_nobody_wants_is_cancelled_whatever_has_ended_those_that_needed_it() {
    let ((one, _), (two, url)) = (local(), local());
    let timing_out = |needs: &[&Arc<Task>]| {
        let late = needing(b"late", needs);
        two.submit(late.clone(), Some(Duration::from_millis(20)), Target::Any);
        late
    };
    // Nobody can ask for it before it is let down.
    let first = submit(&one, b"first");
    let late = timing_out(&[&first]);
    first.abandon();
    assert_eq!(*outcome(&late), Outcome::TimedOut);
    assert_eq!(*outcome(&first), Outcome::Canceled);
    // Nobody can ask for it any more after that.
    let first = submit(&one, b"first");
    assert_eq!(*outcome(&timing_out(&[&first])), Outcome::TimedOut);
    assert!(first.is_wanted() && !first.is_resolved());
    first.abandon();
    cancel_unwanted();
    assert_eq!(*outcome(&first), Outcome::Canceled);
    // One that has let down nobody is of use by what it does.
    let useful = submit(&one, b"useful");
    useful.abandon();
    cancel_unwanted();
    // By a failure, and by a host that closes
    let (fails, other) = (submit(&two, b"fail"), submit(&one, b"other"));
    let of_two = submit_needing(&two, b"both", &[&fails, &other]);
    other.abandon();
    let daemon = joining(dial(&url, None));
    assert_eq!(cause(&of_two), fails.id());
    assert_eq!(*outcome(&other), Outcome::Canceled);
    let first = submit(&one, b"first");
    let constants = two.constants_needing(b"c".as_slice().into(), vec![first.clone()]);
    let with_constants = Payload {
        constants: Some(constants),
        kind: Kind::Map,
        stream: None,
        body: b"element".as_slice().into(),
    };
    let element = Arc::new(Task::new(next_task_id(), with_constants));
    two.submit(element.clone(), None, Target::Any);
    first.abandon();
    two.close(true);
    assert_eq!(*outcome(&element), Outcome::Reset);
    assert_eq!(*outcome(&first), Outcome::Canceled);
    daemon.join().unwrap();
    assert!(!useful.is_resolved());
    one.close(true);
}

#[test]
fn what_goes_to_a_checkpoint_is_wanted() {
    let (host, _) = local();
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&dir.path().join("file"), &|| false).unwrap();
    let first = task(b"first");
    first.keep_in(checkpoint, Key::default());
    host.submit(first.clone(), None, Target::Any);
    let next = submit_needing(&host, b"next", &[&first]);
    first.abandon();
    assert!(host.cancel(&next));
    assert!(first.is_wanted() && !first.is_resolved());
    host.close(true);
}

#[test]
fn a_long_chain_and_many_values_are_cancelled_without_beginning_any() {
    let (host, url) = local();
    let mut worker = dial(&url, None);
    let mut running = submit(&host, b"running");
    let task = next_finished(&mut worker);
    // A chain, and its last needs many more.
    for _ in 0..20_000 {
        let next = submit_needing(&host, b"never", &[&running]);
        running.abandon();
        running = next;
    }
    let many: Vec<_> = (0..1000).map(|_| submit(&host, b"never")).collect();
    let mut refs: Vec<_> = many.iter().collect();
    refs.push(&running);
    let last = submit_needing(&host, b"never", &refs);
    many.iter()
        .chain([&running])
        .for_each(|task| task.abandon());
    assert!(host.cancel(&last));
    // At once, on this thread.
    assert!(running.is_resolved() && many.iter().all(|task| task.is_resolved()));
    let after = submit(&host, b"after");
    worker.reply(task.seq, b"", false);
    let task = next_finished(&mut worker);
    assert_eq!(task.body, b"after");
    worker.reply(task.seq, b"", false);
    assert_eq!(*outcome(&after), value(b""));
    assert_eq!(host.counts().awaiting, 0);
    host.close(true);
}

#[test]
fn with_retry_the_same_values_are_sent_again() {
    let config = Config {
        retry: Retry::AFTER_CRASH,
        ..Config::default()
    };
    let (host, url) = host_at(&local_url(), config);
    let mut crashes = dial(&url, None);
    let first = submit(&host, b"first");
    let second = submit_needing(&host, b"second", &[&first]);
    let task = next_finished(&mut crashes);
    crashes.reply(task.seq, b"value", false);
    assert_eq!(
        parts(&next_finished(&mut crashes)),
        [&b"second"[..], b"value"]
    );
    drop(crashes);
    let daemon = joining(dial(&url, None));
    assert_eq!(*outcome(&second), value(b"second[value]"));
    host.close(true);
    daemon.join().unwrap();
}

#[test]
fn a_relay_passes_values_on() {
    let round_robin = Config {
        policy: Policy::RoundRobin,
        ..Config::default()
    };
    let (host, above) = host_at(&any_port("tcp"), round_robin);
    let (below, url) = local();
    let relay = Relay::new(below);
    let relaying = thread::spawn(move || {
        let options = Options {
            slots: SLOTS,
            ..options(None)
        };
        let address = above.parse().unwrap();
        let mut up = Worker::dial(&address, &options, relay.clone(), None, || false).unwrap();
        relay.run(&mut up, || false)
    });
    let daemon = joining(dial(&url, None));
    let constants = host.constants_needing(b"c".as_slice().into(), vec![submit(&host, b"x")]);
    let with_constants = Payload {
        constants: Some(constants),
        kind: Kind::Task,
        stream: None,
        body: b"element".as_slice().into(),
    };
    let element = Arc::new(Task::new(next_task_id(), with_constants));
    host.submit(element.clone(), None, Target::Any);
    let a = submit(&host, b"a");
    let b = submit_needing(&host, b"b", &[&a]);
    assert_eq!(*outcome(&b), value(b"b[a]"));
    assert_eq!(*outcome(&element), value(b"element"));
    host.close(true);
    relaying.join().unwrap();
    daemon.join().unwrap();
}

#[test]
fn a_task_has_the_number_of_its_handle_on_a_daemon_and_behind_a_relay() {
    let ((host, above), (below, url)) = (local(), local());
    let numbered = |number| {
        let body = b"x".as_slice().into();
        let payload = Payload {
            constants: None,
            kind: Kind::Task,
            stream: None,
            body,
        };
        let task = Arc::new(Task::new(next_task_id(), payload).labelled(number, None));
        host.submit(task.clone(), None, Target::Any);
        task
    };
    let mut direct = dial(&above, None);
    let one = numbered(41);
    let task = next_finished(&mut direct);
    assert_eq!(task.number, 41);
    direct.reply(task.seq, b"y", false);
    assert_eq!(*outcome(&one), value(b"y"));
    drop(direct);
    // Else it might be sent the next task.
    until(|| host.counts().connections == 0);
    let relay = Relay::new(below);
    let relaying = thread::spawn(move || {
        let options = Options {
            slots: SLOTS,
            ..options(None)
        };
        let address = above.parse().unwrap();
        let mut up = Worker::dial(&address, &options, relay.clone(), None, || false).unwrap();
        relay.run(&mut up, || false)
    });
    let two = numbered(u32::MAX);
    let mut behind = dial(&url, None);
    let task = next_finished(&mut behind);
    assert_eq!(task.number, u32::MAX);
    behind.reply(task.seq, b"z", false);
    assert_eq!(*outcome(&two), value(b"z"));
    host.close(true);
    relaying.join().unwrap();
}

#[test]
fn a_task_that_comes_while_its_constants_are_completed_is_sent() {
    let (host, url) = local();
    let daemon = joining(dial(&url, None));
    // Under wine, a task may take milliseconds there and back.
    for _ in 0..if cfg!(windows) { 20 } else { 100 } {
        let first = submit(&host, b"first");
        let needs = vec![first.clone()];
        let constants = host.constants_needing(b"common".as_slice().into(), needs);
        let mut tasks = Vec::new();
        // No more than the daemon can do soon, should it be a while before the first one is done.
        while tasks.len() < 10 || !first.is_resolved() && tasks.len() < 100 {
            let payload = Payload {
                constants: Some(constants.clone()),
                kind: Kind::Map,
                stream: None,
                body: b"element".as_slice().into(),
            };
            let task = Arc::new(Task::new(next_task_id(), payload));
            host.submit(task.clone(), None, Target::Any);
            tasks.push(task);
        }
        for task in tasks {
            assert_eq!(*outcome(&task), value(b"element"));
        }
    }
    host.close(true);
    daemon.join().unwrap();
}

#[test]
fn constants_have_the_values_that_they_need() {
    let (host, url) = local();
    let first = submit(&host, b"first");
    let constants = host.constants_needing(b"common".as_slice().into(), vec![first.clone()]);
    let tasks: Vec<_> = (0..3)
        .map(|i| {
            let payload = Payload {
                constants: Some(constants.clone()),
                kind: Kind::Map,
                stream: None,
                body: vec![i].into(),
            };
            let task = Arc::new(Task::new(next_task_id(), payload));
            host.submit(task.clone(), None, Target::Any);
            task
        })
        .collect();
    drop(constants);
    assert_eq!(tasks[0].needs().len(), 1);
    let mut worker = dial(&url, None);
    let task = next_finished(&mut worker);
    worker.reply(task.seq, b"value", false);
    for (i, task) in tasks.iter().enumerate() {
        let sent = next_finished(&mut worker);
        let common = sent.constants.unwrap();
        assert_eq!((sent.body, common.layout.attached()), (vec![i as u8], 1));
        let (range, _) = common.layout.value(0, &common.pieces).unwrap();
        assert_eq!(&common.bytes[range], b"value");
        assert_eq!(common.layout.message(&common.bytes, &[]).0, b"common");
        worker.reply(sent.seq, b"", false);
        assert_eq!(*outcome(task), value(b""));
    }
    host.close(true);
}

#[cfg(target_os = "linux")]
mod memory {
    use super::*;
    use mirai_core::memory::{Inset, Parts, Segment};
    use mirai_core::protocol::frame::encode_head;
    use mirai_core::protocol::{Done, ToDaemon};
    use mirai_core::transport::unix;
    use std::io::Read;
    use std::time::Instant;

    #[test]
    fn a_large_value_goes_on_as_the_same_memory_whoever_reads_or_changes_it() {
        let (host, url) = local();
        let mut worker = dial(&url, None);
        // One that keeps its descriptor, and one that does not.
        let large = vec![1; 2 << 20];
        let small = vec![2; 300 << 10];
        let inset = |at, bytes: &[u8]| Inset {
            at,
            segment: Segment::copy_of(bytes).unwrap(),
        };
        let insets = [inset(1, &large), inset(2, &small)];
        let whole = [b"a", &large[..], b"b", &small[..], b"c"].concat();
        let reply = Parts {
            bytes: b"abc",
            insets: &insets,
            marks: &[],
        };
        let first = submit(&host, b"first");
        let needing = [(); 2].map(|()| submit_needing(&host, b"next", &[&first]));
        let task = next_finished(&mut worker);
        worker.reply_noted(task.seq, reply, Done::Value, 0, None);
        let Outcome::Value(content) = outcome(&first) else {
            panic!("a value")
        };
        // The host's own reader writes to it.
        first.make_ready_to_pass();
        for piece in content.pieces.iter() {
            let memory = piece.give().unwrap();
            // SAFETY: nobody else reads it.
            unsafe { memory.as_ptr().write(9) };
        }
        let task = next_finished(&mut worker);
        assert_eq!(task.pieces.len(), 2);
        assert!(parts(&task) == [b"next".to_vec(), whole.clone()]);
        worker.reply(task.seq, b"", false);
        let task = next_finished(&mut worker);
        assert!(parts(&task) == [b"next".to_vec(), whole]);
        worker.reply(task.seq, b"", false);
        needing.iter().for_each(|task| {
            outcome(task);
        });
        drop((first, needing, task));
        host.close(true);
    }

    #[test]
    fn a_host_that_lies_about_what_is_attached_is_left() {
        let url = local_url();
        let address: mirai_core::transport::Address = url.parse().unwrap();
        let listener = unix::listen(&address).unwrap();
        let host = thread::spawn(move || {
            for attached in [1, 2, u32::MAX] {
                let (stream, _) = listener.accept().unwrap();
                let welcome = encode_head(
                    &ToDaemon::Welcome {
                        patience: 0,
                        spins: true,
                    },
                    0,
                );
                unix::send_all(&stream, &welcome, &[], None).unwrap();
                let task = ToDaemon::Task {
                    seq: 1,
                    kind: Kind::Task,
                    stream: None,
                    constants: None,
                    granted: 1,
                    attached,
                    number: 0,
                };
                let body = [[255; 8], [1; 8]].concat();
                let head = encode_head(&task, body.len());
                unix::send_all(&stream, &head, &body, None).unwrap();
                let _ = (&stream).read_to_end(&mut Vec::new());
            }
        });
        for _ in 0..3 {
            let mut worker = dial(&url, None);
            let end = worker.next(Some(Instant::now() + LONG), || false);
            assert!(matches!(end, Next::Lost { end: false }), "{end:?}");
        }
        host.join().unwrap();
    }
}
