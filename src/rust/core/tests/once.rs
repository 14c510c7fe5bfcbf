//! Exactly once, across the network: a reply may be lost with its daemon, after which that has begun other tasks.

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use mirai_core::dispatcher::{Config, MOST_AHEAD, Policy, Retry};
use mirai_core::protocol::frame::encode_head;
use mirai_core::protocol::{Control, Done, FrameReader, Kind, Limits, Seq, ToDaemon, ToHost};
use mirai_core::task::Outcome;
use mirai_core::worker::{Next, Worker};

/// What a daemon that dies had been sent and granted, in order.
#[derive(Default)]
struct Sent {
    tasks: Vec<(Seq, Vec<u8>)>,
    granted: Seq,
}

impl Sent {
    fn note(&mut self, message: Option<(ToDaemon, Vec<u8>)>) {
        match message {
            Some((ToDaemon::Task { seq, granted, .. }, body)) => {
                self.tasks.push((seq, body));
                self.granted = self.granted.max(granted);
            }
            Some((ToDaemon::Control(Control::Grant { to }), _)) => {
                self.granted = self.granted.max(to);
            }
            Some(_) => {}
            None => panic!("the host is there"),
        }
    }
}

fn done(seq: Seq) -> ToHost {
    ToHost::Done {
        seq,
        outcome: Done::Value,
        spent: 10,
        notes: 0,
        error: None,
    }
}

/// A daemon replies to some tiny tasks, so that more of them are granted at once; then it begins all that it may,
/// whose replies are lost with it.
fn replies_are_lost(scheme: &'static str, policy: Policy, retry: bool) {
    let config = Config {
        policy,
        retry: if retry {
            Retry::AFTER_CRASH
        } else {
            Retry::default()
        },
        ..Config::default()
    };
    let place = Place::with(scheme, config);
    let mut dies = place.stranger(place.last_depth());
    dies.join(place.trust.as_ref());
    until(|| place.host.counts().connections == 1);
    let tasks: Vec<_> = (0..100u8).map(|i| submit(&place.host, vec![i])).collect();
    let mut sent = Sent::default();
    for (replied, task) in tasks[..5].iter().enumerate() {
        while sent.tasks.len() <= replied || sent.granted < sent.tasks[replied].0 {
            sent.note(dies.hear());
        }
        let (seq, body) = sent.tasks[replied].clone();
        dies.tell(&done(seq), &body).unwrap();
        assert_eq!(*outcome(task), value(body));
    }
    while sent.granted <= 5 || sent.tasks.last().unwrap().0 < sent.granted {
        sent.note(dies.hear());
    }
    let begun = sent.tasks.iter().filter(|(seq, _)| *seq <= sent.granted);
    let begun: BTreeSet<u8> = begun.map(|(_, body)| body[0]).collect();
    drop(dies);
    until(|| place.host.counts().connections == 0);
    let other = echoing(dial(&place.url, place.trust.clone()));
    let mut over = 0;
    for (i, task) in tasks.iter().enumerate() {
        match outcome(task) {
            Outcome::Reset => over += 1,
            result => {
                assert_eq!(*result, value(vec![i as u8]));
                // It has run elsewhere.
                assert!(retry || i < 5 || !begun.contains(&(i as u8)), "{i}");
            }
        }
    }
    assert!(over == 0 || !retry);
    assert!(over <= MOST_AHEAD);
    place.host.close(true);
    let elsewhere = other.join().unwrap();
    assert_eq!(elsewhere + over + 5, tasks.len());
}

#[test]
fn what_a_daemon_may_have_begun_does_not_run_again() {
    for scheme in SCHEMES {
        for policy in [Policy::Queue, Policy::RoundRobin] {
            replies_are_lost(scheme, policy, false);
            replies_are_lost(scheme, policy, true);
        }
    }
}

#[test]
fn of_tasks_that_are_not_known_to_be_tiny_one_is_granted_at_a_time() {
    let config = Config {
        policy: Policy::RoundRobin,
        ..Config::default()
    };
    let place = Place::with("tcp", config);
    let mut slow = place.stranger(place.last_depth());
    slow.join(None);
    until(|| place.host.counts().connections == 1);
    let tasks: Vec<_> = (0..16u8).map(|i| submit(&place.host, vec![i])).collect();
    let mut sent = Sent::default();
    while sent.tasks.len() < tasks.len() {
        sent.note(slow.hear());
    }
    assert_eq!(sent.granted, 1);
    for seq in 1..4 {
        let done = ToHost::Done {
            seq,
            outcome: Done::Value,
            spent: 2000,
            notes: 0,
            error: None,
        };
        slow.tell(&done, &[]).unwrap();
        sent.note(slow.hear());
        assert_eq!(sent.granted, seq + 1, "at each reply");
    }
    drop(slow);
    assert_eq!(*outcome(&tasks[3]), Outcome::Reset);
    let other = echoing(dial(&place.url, None));
    for (i, task) in tasks.iter().enumerate().skip(4) {
        assert_eq!(*outcome(task), value(vec![i as u8]));
    }
    place.host.close(true);
    other.join().unwrap();
}

/// A host by hand, at plain TCP.
struct ByHand {
    stream: TcpStream,
    reader: FrameReader<ToHost>,
}

impl ByHand {
    /// With a daemon.
    fn new() -> (ByHand, Worker) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("tcp://{}", listener.local_addr().unwrap());
        let dialling = thread::spawn(move || dial(&url, None));
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let reader = FrameReader::new(Limits::LINK);
        let mut host = ByHand { stream, reader };
        assert!(matches!(host.hear(), ToHost::Hello { .. }));
        host.tell(
            &ToDaemon::Welcome {
                patience: 0,
                spins: true,
            },
            b"",
        );
        // A socket that is closed with something unread resets the connection.
        assert!(matches!(host.hear(), ToHost::About { .. }));
        (host, dialling.join().unwrap())
    }

    fn tell(&mut self, message: &ToDaemon, body: &[u8]) {
        let mut bytes = encode_head(message, body.len()).to_vec();
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes).unwrap();
    }

    fn task(&mut self, seq: Seq, granted: Seq) {
        let task = ToDaemon::Task {
            seq,
            kind: Kind::Task,
            stream: None,
            constants: None,
            granted,
            attached: 0,
            number: 0,
        };
        self.tell(&task, &[seq as u8]);
    }

    fn control(&mut self, message: Control) {
        self.tell(&ToDaemon::Control(message), b"");
    }

    fn hear(&mut self) -> ToHost {
        loop {
            if let Some((message, _)) = self.reader.next().unwrap() {
                return message;
            }
            let mut bytes = [0; 4096];
            let n = self.stream.read(&mut bytes).unwrap();
            assert!(n > 0, "the daemon is there");
            assert_eq!(self.reader.feed(&bytes[..n]).unwrap(), n);
        }
    }
}

fn begins(worker: &mut Worker, seq: Seq) {
    match worker.next(Some(Instant::now() + LONG), || false) {
        Next::Task(task) => assert_eq!(task.seq, seq),
        other => panic!("task {seq} expected, not {other:?}"),
    }
}

fn begins_nothing(worker: &mut Worker) {
    let soon = Instant::now() + Duration::from_millis(50);
    let next = worker.next(Some(soon), || false);
    assert!(matches!(next, Next::TimedOut), "{next:?}");
}

#[test]
fn a_daemon_begins_only_what_has_been_granted() {
    let (mut host, mut worker) = ByHand::new();
    for seq in 1..=6 {
        host.task(seq, 1);
    }
    begins(&mut worker, 1);
    worker.finish();
    assert!(worker.reply(1, b"", false));
    assert!(matches!(host.hear(), ToHost::Done { seq: 1, .. }));
    begins_nothing(&mut worker);
    // By a message of its own, or with another task; and an older number takes nothing back.
    host.control(Control::Grant { to: 2 });
    begins(&mut worker, 2);
    assert!(worker.reply(2, b"", false));
    assert!(matches!(host.hear(), ToHost::Done { seq: 2, .. }));
    host.task(7, 3);
    host.control(Control::Grant { to: 1 });
    begins(&mut worker, 3);
    assert!(worker.reply(3, b"", false));
    assert!(matches!(host.hear(), ToHost::Done { seq: 3, .. }));
    // What waits to be granted can be cancelled and recalled.
    host.control(Control::Cancel { seq: 4 });
    host.control(Control::Recall { from: 5, to: 6 });
    assert_eq!(host.hear(), ToHost::Returned { from: 5, to: 6 });
    begins_nothing(&mut worker);
    host.control(Control::Grant { to: 7 });
    begins(&mut worker, 7);
    let skipped = host.hear();
    let is_skipped = matches!(
        skipped,
        ToHost::Done {
            seq: 4,
            outcome: Done::Skipped,
            ..
        }
    );
    assert!(is_skipped, "{skipped:?}");
}

#[test]
fn a_daemon_that_waits_for_a_grant_sees_its_host_go_and_end() {
    for end in [false, true] {
        let (mut host, mut worker) = ByHand::new();
        host.task(1, 0);
        begins_nothing(&mut worker);
        let waiting = thread::spawn(move || worker.next(None, || false));
        if end {
            host.control(Control::End);
        }
        drop(host);
        match waiting.join().unwrap() {
            Next::Lost { end: told } => assert_eq!(told, end),
            other => panic!("the end expected, not {other:?}"),
        }
    }
}

#[test]
fn a_daemon_that_leaves_gives_back_what_waits_to_be_granted() {
    let (mut host, mut worker) = ByHand::new();
    for seq in 1..=3 {
        host.task(seq, 1);
    }
    begins(&mut worker, 1);
    assert!(worker.reply(1, b"", false));
    let leaving = thread::spawn(move || worker.leave());
    assert!(matches!(host.hear(), ToHost::Done { seq: 1, .. }));
    assert_eq!(host.hear(), ToHost::Leaving { begun: 1 });
    drop(host);
    leaving.join().unwrap();
}

/// A daemon on this machine that is killed loses the one task which it has begun and not wholly replied to: replies
/// before that are read to their end, though tasks lie unread with it, and so are the segments that belong to them.
#[cfg(target_os = "linux")]
#[test]
fn on_one_machine_what_has_been_written_is_heard() {
    use std::os::fd::AsFd;

    use mirai_core::host::Host;
    use mirai_core::memory::{Inset, Parts, Segment};
    use mirai_core::protocol::VERSION;
    use mirai_core::protocol::frame::encode_head_with;
    use mirai_core::transport::{Address, local_url, unix};

    let config = Config {
        policy: Policy::RoundRobin,
        ..Config::default()
    };
    // In the middle of a head, of a body, and of the bytes around a segment.
    for (part, with_segment) in [(5, false), (60, false), (5, true), (25, true)] {
        let host = Host::new(config);
        let address: Address = local_url().parse().unwrap();
        host.listen(&address).unwrap();
        let stream = unix::connect(&address).unwrap();
        let (_control, theirs) = unix::control_pair().unwrap();
        let hello = ToHost::Hello {
            version: VERSION,
            pid: 0,
            tempdir: String::new(),
            slots: 1,
        };
        let hello = encode_head(&hello, 0);
        unix::send_all(&stream, &hello, &[], Some(theirs.as_fd())).unwrap();
        drop(theirs);
        until(|| host.counts().connections == 1);
        let tasks: Vec<_> = (0..20u8).map(|i| submit(&host, vec![i])).collect();
        // Each of its replies is whole before it begins the next task, the fourth.
        let segment = [Inset {
            at: 2,
            segment: Segment::copy_of(&[9; 5000]).unwrap(),
        }];
        for seq in 1..4 {
            let with = seq % 2 == 0 || with_segment;
            let parts = Parts {
                bytes: &[seq as u8; 4],
                insets: if with { &segment } else { &[] },
                marks: &[],
            };
            unix::send_message(&stream, &done(seq), parts).unwrap();
        }
        let insets = if with_segment { &segment[..] } else { &[] };
        let mut bytes = encode_head_with(&done(4), 100, insets).to_vec();
        bytes.extend_from_slice(&[0; 100]);
        unix::send_all(&stream, &bytes[..part], &[], None).unwrap();
        drop(stream);
        for (i, task) in tasks[..3].iter().enumerate() {
            let Outcome::Value(value) = outcome(task) else {
                panic!("{:?}", outcome(task));
            };
            assert_eq!(value.plain()[..2], [i as u8 + 1; 2]);
        }
        assert_eq!(*outcome(&tasks[3]), Outcome::Reset);
        let url = host.urls().remove(0);
        let other = echoing(dial(&url, None));
        for (i, task) in tasks.iter().enumerate().skip(4) {
            assert_eq!(*outcome(task), value(vec![i as u8]));
        }
        host.close(true);
        assert_eq!(other.join().unwrap(), 16);
    }
}

/// Should the host end such a link by itself, there may be replies that it has not read.
#[cfg(target_os = "linux")]
#[test]
fn what_a_link_held_that_the_host_has_ended_does_not_run_again() {
    use std::os::fd::AsFd;

    use mirai_core::host::Host;
    use mirai_core::protocol::VERSION;
    use mirai_core::transport::{Address, local_url, unix};

    let config = Config {
        policy: Policy::RoundRobin,
        ..Config::default()
    };
    let host = Host::new(config);
    let address: Address = local_url().parse().unwrap();
    host.listen(&address).unwrap();
    let stream = unix::connect(&address).unwrap();
    let (_control, theirs) = unix::control_pair().unwrap();
    let hello = ToHost::Hello {
        version: VERSION,
        pid: 0,
        tempdir: String::new(),
        slots: 1,
    };
    let hello = encode_head(&hello, 0);
    unix::send_all(&stream, &hello, &[], Some(theirs.as_fd())).unwrap();
    until(|| host.counts().connections == 1);
    let tasks: Vec<_> = (0..20u8).map(|i| submit(&host, vec![i])).collect();
    // What the host cannot read comes before the replies to tasks that have run.
    let mut bytes = vec![7; 16];
    for seq in 1..4 {
        bytes.extend_from_slice(&encode_head(&done(seq), 0));
    }
    unix::send_all(&stream, &bytes, &[], None).unwrap();
    until(|| host.counts().connections == 0);
    let other = echoing(dial(&host.urls()[0], None));
    let lost = tasks.iter().filter(|t| *outcome(t) == Outcome::Reset);
    assert_eq!(lost.count(), 16, "all that it held");
    host.close(true);
    assert_eq!(other.join().unwrap(), 4);
}
