//! Segments on their way between host and daemons, and peers that say one thing and pass another.
#![cfg(target_os = "linux")]

mod common;

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{LONG, any_port, dial, listening, next_finished, outcome, until, value};
use mirai_core::dispatcher::{Config, Retry, Target};
use mirai_core::host::Host;
use mirai_core::memory::{Body, Inset, Parts, Segment};
use mirai_core::protocol::frame::encode_head_with;
use mirai_core::protocol::{Done, Kind, ToDaemon, ToHost, VERSION};
use mirai_core::task::{Constants, Outcome, Payload, Task, next_task_id};
use mirai_core::transport::{local_url, unix};
use mirai_core::worker::Next;

fn inset(at: usize, bytes: &[u8]) -> Inset {
    Inset {
        at,
        segment: Segment::copy_of(bytes).unwrap(),
    }
}

fn body(bytes: &'static [u8], insets: &[Inset]) -> Body {
    Body::new(Bytes::from_static(bytes), insets.to_vec())
}

fn submit(host: &Host, body: Body, constants: Option<Arc<Constants>>) -> Arc<Task> {
    let payload = Payload {
        constants,
        kind: Kind::Task,
        stream: None,
        body,
    };
    let task = Arc::new(Task::new(next_task_id(), payload));
    host.submit(task.clone(), None, Target::Any);
    task
}

fn local(config: Config) -> (Host, String) {
    let host = Host::new(config);
    let url = listening(&local_url(), &host).0;
    (host, url)
}

/// Segments whose descriptors are open in this process.
fn open() -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .filter(|to| to.to_string_lossy().contains("memfd:mirai "))
        .count()
}

/// Nobody tells of a descriptor that is closed.
fn wait_open(n: usize) {
    let end = Instant::now() + LONG;
    while open() != n {
        assert!(Instant::now() < end, "{} are open instead of {n}", open());
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn segments_arrive_as_mappings_both_ways_and_nothing_is_left_open() {
    let (host, url) = local(Config::default());
    let mut worker = dial(&url, None);
    let task = submit(
        &host,
        body(b"abcd", &[inset(1, b"one"), inset(4, b"two")]),
        None,
    );
    assert_eq!(open(), 2);
    let got = next_finished(&mut worker);
    assert_eq!(got.body, b"abcd");
    assert_eq!(
        got.pieces.iter().map(|p| p.at()).collect::<Vec<_>>(),
        [1, 4]
    );
    assert_eq!(
        &*mirai_core::memory::plain(&got.body, &got.pieces),
        b"aonebcdtwo"
    );
    let insets = [inset(0, b"large")];
    let parts = Parts {
        bytes: b"small",
        insets: &insets,
        marks: &[],
    };
    assert!(worker.reply(got.seq, parts, false));
    drop(insets);
    assert_eq!(outcome(&task), &value("largesmall"));
    let Some(Outcome::Value(content)) = task.outcome() else {
        panic!("no value");
    };
    assert_eq!((content.bytes.len(), content.pieces.len()), (5, 1));
    wait_open(0);
    host.close(false);
}

#[test]
fn what_a_daemon_changes_a_little_comes_back_without_being_copied() {
    let (host, url) = local(Config::default());
    let mut worker = dial(&url, None);
    let mut large: Vec<u8> = (0..4_000_000u32).map(|i| (i / 7) as u8).collect();
    let task = submit(&host, body(b"ab", &[inset(1, &large)]), None);
    let got = next_finished(&mut worker);
    let memory = got.pieces[0].give().unwrap();
    large[12_345] = 0xff;
    // SAFETY: within the memory, which is ours.
    let segment = unsafe {
        memory.as_ptr().add(12_345).write(0xff);
        memory.segment().unwrap()
    };
    assert_eq!(segment.weight(), 2);
    let insets = [inset(0, b"<"), Inset { at: 1, segment }, inset(1, b">")];
    let parts = Parts {
        bytes: b"cd",
        insets: &insets,
        marks: &[],
    };
    assert!(worker.reply(got.seq, parts, false));
    let expected = [b"<c", &large[..], b">d"].concat();
    assert!(*outcome(&task) == value(expected));
    // Nor may it be copied once it is back.
    let Some(Outcome::Value(content)) = task.outcome() else {
        panic!("no value");
    };
    // SAFETY: nobody writes to it.
    let again = unsafe { content.pieces[1].memory().segment() };
    assert_eq!(again.unwrap().weight(), 2);
    drop((insets, memory, got, task));
    wait_open(0);
    host.close(false);
}

#[test]
fn values_with_and_without_segments_keep_their_order_at_full_speed() {
    let (host, url) = local(Config::default());
    let mut worker = dial(&url, None);
    let daemon = thread::spawn(move || {
        while let Next::Task(task) = worker.next(None, || false) {
            worker.finish();
            let insets: Vec<Inset> = (0..task.body[0] % 4)
                .map(|_| inset(task.body.len(), &task.body))
                .collect();
            let parts = Parts {
                bytes: &task.body,
                insets: &insets,
                marks: &[],
            };
            if !worker.reply(task.seq, parts, false) {
                break;
            }
        }
    });
    for round in 0..20 {
        let tasks: Vec<_> = (0..100u8)
            .map(|i| {
                let bytes = vec![i; 1 + round * usize::from(i) * 50];
                let insets: Vec<Inset> = (0..i % 3).map(|_| inset(0, b"ignored")).collect();
                submit(&host, Body::new(bytes.into(), insets), None)
            })
            .collect();
        for (i, task) in tasks.iter().enumerate() {
            let n = (1 + round * i * 50) * (1 + i % 4);
            assert_eq!(outcome(task), &value(vec![i as u8; n]));
        }
    }
    host.close(false);
    daemon.join().unwrap();
}

#[test]
fn constants_are_sent_once_and_mapped_by_each_task_for_itself() {
    let (host, url) = local(Config::default());
    let mut worker = dial(&url, None);
    let constants = host.constants(body(b"c", &[inset(1, b"common")]));
    let tasks: Vec<_> = (0..3)
        .map(|_| submit(&host, body(b"", &[]), Some(constants.clone())))
        .collect();
    drop(constants);
    for _ in 0..3 {
        let task = next_finished(&mut worker);
        let common = task.constants.expect("constants come before the task");
        assert_eq!(*common.bytes, b"c");
        let memory = common.pieces[0].give().expect("nobody else has it");
        // SAFETY: six bytes, and ours.
        let bytes = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), memory.len()) };
        assert_eq!(bytes, b"common");
        bytes.fill(b'X');
        // The host's own and the daemon's.
        assert_eq!(open(), 2);
        assert!(worker.reply(task.seq, b"", false));
    }
    tasks
        .iter()
        .for_each(|task| assert_eq!(outcome(task), &value("")));
    wait_open(1);
    // The daemon hears that it may forget them, before or after whatever else there is.
    let last = submit(&host, body(b"last", &[]), None);
    let task = next_finished(&mut worker);
    assert!(worker.reply(task.seq, &task.body, false));
    assert_eq!(outcome(&last), &value("last"));
    let daemon = thread::spawn(move || worker.next(None, || false));
    wait_open(0);
    host.close(false);
    assert!(matches!(daemon.join().unwrap(), Next::Lost { .. }));
}

#[test]
fn across_the_network_bytes_are_put_back_into_their_places() {
    let host = Host::new(Config::default());
    let url = listening(&any_port("tcp"), &host).0;
    assert!(!host.passes_memory());
    let mut worker = dial(&url, None);
    assert!(!worker.passes_memory());
    let task = submit(
        &host,
        body(b"abcd", &[inset(2, b"one"), inset(4, b"two")]),
        None,
    );
    let got = next_finished(&mut worker);
    assert_eq!(got.body, b"abonecdtwo");
    let insets = [inset(2, b"large")];
    let parts = Parts {
        bytes: b"small",
        insets: &insets,
        marks: &[],
    };
    assert!(worker.reply(got.seq, parts, false));
    assert_eq!(outcome(&task), &value("smlargeall"));
    host.close(false);
}

#[test]
fn a_task_that_is_retried_takes_its_segments_along() {
    let (host, url) = local(Config {
        retry: Retry::AFTER_CRASH,
        ..Config::default()
    });
    let mut crashing = dial(&url, None);
    let task = submit(&host, body(b"x", &[inset(1, b"kept")]), None);
    drop(next_finished(&mut crashing));
    drop(crashing);
    let mut worker = dial(&url, None);
    let got = next_finished(&mut worker);
    let whole = mirai_core::memory::plain(&got.body, &got.pieces).into_owned();
    assert_eq!(whole, b"xkept");
    assert!(worker.reply(got.seq, &whole, false));
    assert_eq!(outcome(&task), &value("xkept"));
    wait_open(0);
    host.close(false);
}

/// A daemon in the raw that has been sent a task.
fn impostor(host: &Host, url: &str) -> (UnixStream, UnixStream, Arc<Task>) {
    let mut stream = unix::connect(&url.parse().unwrap()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let (ours, theirs) = unix::control_pair().unwrap();
    let hello = ToHost::Hello {
        version: VERSION,
        pid: 0,
        tempdir: String::new(),
        slots: 1,
    };
    let head = encode_head_with(&hello, 0, &[]);
    unix::send_all(&stream, &head, &[], Some(theirs.as_fd())).unwrap();
    until(|| host.counts().connections == 1);
    let task = submit(host, body(b"", &[]), None);
    let mut welcome = [0; 16];
    stream.read_exact(&mut welcome).unwrap();
    (stream, ours, task)
}

fn unsealed(bytes: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::write(&fd, bytes).unwrap();
    fd
}

#[test]
fn a_daemon_that_passes_something_else_than_it_says_is_sent_away() {
    let (host, url) = local(Config::default());
    let good = inset(2, b"12345678");
    let short = inset(2, b"1234");
    let outside = inset(9, b"12345678");
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    let bare = unsealed(b"12345678");
    let fd = good.segment.descriptors().next().unwrap();
    let cases: [(&str, Vec<&Inset>, Vec<BorrowedFd<'_>>); 9] = [
        ("nothing", vec![&good], vec![]),
        ("one too few", vec![&good, &good], vec![fd]),
        ("one too many", vec![&good], vec![fd, fd]),
        ("one unasked", vec![], vec![fd]),
        (
            "a short one",
            vec![&good],
            vec![short.segment.descriptors().next().unwrap()],
        ),
        ("an unsealed one", vec![&good], vec![bare.as_fd()]),
        ("a pipe", vec![&good], vec![pipe.as_fd()]),
        ("a file", vec![&good], vec![file.as_fd()]),
        ("one out of place", vec![&outside], vec![fd]),
    ];
    let before = open();
    for (what, insets, pass) in cases {
        let (mut stream, _control, task) = impostor(&host, &url);
        let insets: Vec<Inset> = insets.into_iter().cloned().collect();
        let done = ToHost::Done {
            seq: 1,
            outcome: Done::Value,
            spent: 0,
            notes: 0,
            error: None,
        };
        let head = encode_head_with(&done, 4, &insets);
        unix::send_all_with(&stream, &head, b"body", &pass).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        let expected = match what {
            // The frame itself was in order.
            "one too many" => value("bo12345678dy"),
            "one unasked" => value("body"),
            _ => Outcome::Reset,
        };
        assert_eq!(outcome(&task), &expected, "{what}");
        until(|| host.counts().connections == 0);
        drop((insets, task));
        wait_open(before);
    }
    // And of one that leaves in the middle, nothing stays.
    let (stream, control, task) = impostor(&host, &url);
    let done = ToHost::Done {
        seq: 1,
        outcome: Done::Value,
        spent: 0,
        notes: 0,
        error: None,
    };
    let head = encode_head_with(&done, 4, std::slice::from_ref(&good));
    unix::send_all_with(&stream, &head, b"bo", &[fd]).unwrap();
    drop((stream, control));
    assert_eq!(outcome(&task), &Outcome::Reset);
    wait_open(before);
    host.close(false);
}

#[test]
fn a_host_that_passes_something_else_than_it_says_is_left() {
    let url = local_url();
    let listener = unix::listen(&url.parse().unwrap()).unwrap();
    let host = thread::spawn(move || {
        for round in 0..2 {
            let (stream, _) = listener.accept().unwrap();
            let welcome = encode_head_with(
                &ToDaemon::Welcome {
                    patience: 0,
                    spins: true,
                },
                0,
                &[],
            );
            unix::send_all(&stream, &welcome, &[], None).unwrap();
            let task = ToDaemon::Task {
                seq: 1,
                kind: Kind::Task,
                stream: None,
                constants: None,
                granted: 1,
                attached: 0,
                number: 0,
            };
            let good = inset(0, b"12345678");
            let head = encode_head_with(&task, 0, std::slice::from_ref(&good));
            let bare = unsealed(b"12345678");
            let pass = [bare.as_fd()];
            let pass = if round == 0 { &pass[..] } else { &[] };
            unix::send_all_with(&stream, &head, &[], pass).unwrap();
            let _ = (&stream).read_to_end(&mut Vec::new());
        }
    });
    for _ in 0..2 {
        let mut worker = dial(&url, None);
        let lost = worker.next(Some(Instant::now() + LONG), || false);
        assert!(matches!(lost, Next::Lost { .. }), "{lost:?}");
    }
    host.join().unwrap();
    wait_open(0);
}
