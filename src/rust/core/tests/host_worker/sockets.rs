//! Strangers on the socket, and what the system shows of it.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use mirai_core::protocol::frame::encode_head;
use mirai_core::protocol::{FrameReader, Limits, ToDaemon, ToHost, VERSION};
use mirai_core::transport::unix;

use super::*;

fn connect(address: &Address) -> UnixStream {
    let stream = unix::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

fn hello(version: u16) -> ToHost {
    ToHost::Hello {
        version,
        pid: 0,
        tempdir: String::new(),
        slots: 1,
    }
}

fn done(seq: u64) -> ToHost {
    ToHost::Done {
        seq,
        outcome: mirai_core::protocol::Done::Value,
        spent: 0,
        notes: 0,
        error: None,
    }
}

/// A daemon's connection in the raw, and its end of the control channel.
fn introduce(address: &Address) -> (UnixStream, UnixStream) {
    let stream = connect(address);
    let (ours, theirs) = unix::control_pair().unwrap();
    let head = encode_head(&hello(VERSION), 0);
    unix::send_all(&stream, &head, &[], Some(theirs.as_fd())).unwrap();
    (stream, ours)
}

/// The host hangs up, at once or, on one that says too little, after some seconds.
fn assert_hung_up(mut stream: UnixStream) {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        // It had not read all that we sent.
        Err(e) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn strangers_are_turned_away_and_disturb_nobody() {
    let (host, address) = listening(Config::default());
    let mut worker = join(&host, &address);
    let running = submit(&host, "running");
    let assignment = next(&mut worker);

    drop(connect(&address));

    let mut babbling = connect(&address);
    let mut noise = [0; 10_000];
    mirai_core::sys::random(&mut noise);
    // It may have hung up already.
    let _ = babbling.write_all(&noise);
    assert_hung_up(babbling);

    let lengths: [(usize, &[u8]); 3] = [
        (4, &u32::MAX.to_le_bytes()),
        (8, &1u64.to_le_bytes()),
        (8, &u64::MAX.to_le_bytes()),
    ];
    for (at, length) in lengths {
        let mut boasting = connect(&address);
        let mut head = encode_head(&hello(VERSION), 0);
        head[at..at + length.len()].copy_from_slice(length);
        boasting.write_all(&head).unwrap();
        assert_hung_up(boasting);
    }

    let mut incomplete = connect(&address);
    incomplete
        .write_all(&encode_head(&hello(VERSION), 0))
        .unwrap();
    assert_hung_up(incomplete);

    let mut impolite = connect(&address);
    impolite.write_all(&encode_head(&done(1), 0)).unwrap();
    assert_hung_up(impolite);

    assert_eq!(host.counts().cumulative, 1);
    assert!(!worker.finish());
    worker.reply(assignment.seq, b"done", false);
    assert_eq!(outcome(&running), &value("done"));
    drop(worker);
    until(|| host.counts().connections == 0);
    assert_in_order(&host, &address);
    host.close(false);
}

#[test]
fn a_crowd_that_never_says_hello_is_shown_out() {
    let (host, address) = listening(Config::default());
    let crowd: Vec<_> = (0..80)
        .map(|i| {
            let mut stream = connect(&address);
            // Some begin to.
            let head = encode_head(&hello(VERSION), 0);
            stream.write_all(&head[..i % head.len()]).unwrap();
            stream
        })
        .collect();
    // One that says a byte whenever it is not answered.
    let mut slow = connect(&address);
    slow.set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let slow = thread::spawn(move || {
        let long = ToHost::Hello {
            version: VERSION,
            pid: 0,
            tempdir: "x".repeat(4000),
            slots: 1,
        };
        for byte in encode_head(&long, 0) {
            if slow.write_all(&[byte]).is_err() {
                return true;
            }
            match slow.read(&mut [0]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                _ => return true,
            }
        }
        false
    });
    assert_in_order(&host, &address);
    crowd.into_iter().for_each(assert_hung_up);
    assert!(slow.join().unwrap(), "it was left to finish");
    host.close(false);
}

#[test]
fn a_daemon_of_another_version_is_told_so() {
    let (host, address) = listening(Config::default());
    let stream = connect(&address);
    let (_control, theirs) = unix::control_pair().unwrap();
    let head = encode_head(&hello(VERSION + 1), 0);
    unix::send_all(&stream, &head, &[], Some(theirs.as_fd())).unwrap();
    let mut reader = FrameReader::<ToDaemon>::new(Limits::HANDSHAKE);
    let answer = loop {
        if let Some((answer, _)) = reader.next().unwrap() {
            break answer;
        }
        let (got, _) = reader
            .fill(|room| unix::recv(stream.as_fd(), room))
            .unwrap();
        assert!(got > 0, "hung up without a word");
    };
    match answer {
        ToDaemon::Refused { reason } => assert!(reason.contains("same version"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_hung_up(stream);
    assert_in_order(&host, &address);
    host.close(false);
}

#[test]
fn a_daemon_that_speaks_nonsense_is_lost_and_takes_only_its_task_along() {
    let (host, address) = listening(Config::default());
    for nonsense in [b"this is no frame at all".to_vec(), vec![0; 100_000], {
        let mut head = encode_head(&done(1), 0).to_vec();
        head[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        head
    }] {
        let (mut stream, _control) = introduce(&address);
        until(|| host.counts().connections == 1);
        let task = submit(&host, "x");
        let _ = stream.write_all(&nonsense);
        assert_eq!(outcome(&task), &Outcome::Reset);
        until(|| host.counts().connections == 0);
    }
    // Replies to what was never asked are overheard.
    let (mut stream, _control) = introduce(&address);
    until(|| host.counts().connections == 1);
    stream.write_all(&encode_head(&done(77), 0)).unwrap();
    let task = submit(&host, "x");
    stream.write_all(&encode_head(&done(1), 0)).unwrap();
    assert_eq!(outcome(&task), &value([]));
    drop(stream);
    until(|| host.counts().connections == 0);
    assert_in_order(&host, &address);
    host.close(false);
}

#[test]
fn a_socket_in_the_file_system_is_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let address: Address = format!("ipc://{}", path.display()).parse().unwrap();
    let host = Host::new(Config::default());
    host.listen(&address).unwrap();
    assert!(path.exists());
    let taken = host.listen(&address).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    assert_in_order(&host, &address);
    host.close(false);
    assert!(!path.exists());

    // What a host that was killed leaves behind is taken over.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let host = Host::new(Config::default());
    host.listen(&address).unwrap();
    assert_in_order(&host, &address);
    host.close(false);
    assert!(!path.exists());
}

#[test]
fn a_process_started_for_a_task_is_sent_away_if_that_is_no_longer_wanted() {
    // The process ends when the pipe does; in its stead, we connect.
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let program = Program {
        code: None,
        attached: true,
        surroundings: None,
        path: "/bin/cat".into(),
        args: vec![pipe.clone().into()],
        env: vec![],
        output: false,
    };
    let host = Host::new(Config::default());
    for wanted in [true, false] {
        let task = new_task("x");
        let address = local_url().parse().unwrap();
        host.submit_to_new(task.clone(), None, &address, &program)
            .unwrap();
        let process = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
        if !wanted {
            assert!(host.cancel(&task));
        }
        let mut worker = dial(&address);
        if wanted {
            evaluate(&mut worker, |body| body);
            assert_eq!(outcome(&task), &value("x"));
        } else {
            assert!(matches!(
                worker.next(None, || false),
                Next::Lost { end: false }
            ));
        }
        drop(worker);
        until(|| host.counts().connections == 0);
        drop(process);
    }
    host.close(false);
}

#[test]
fn a_daemon_that_crashes_within_its_reply_has_not_replied() {
    let (host, address) = listening(Config::default());
    let (mut stream, _control) = introduce(&address);
    until(|| host.counts().connections == 1);
    let task = submit(&host, "x");
    let head = encode_head(&done(1), 1000);
    stream.write_all(&head).unwrap();
    stream.write_all(&[7; 500]).unwrap();
    drop(stream);
    assert_eq!(outcome(&task), &Outcome::Reset);
    host.close(false);
}
