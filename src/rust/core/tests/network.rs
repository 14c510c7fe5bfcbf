//! Host and daemons across the network (loopback), in one process. As in `host_worker.rs`,
//! mostly one thread plays both.

mod common;

use std::time::Instant;

use common::*;
use mirai_core::dispatcher::{Config, Policy};
use mirai_core::host::Host;
use mirai_core::sys::Waited;
use mirai_core::task::{Outcome, Patience, Task, wait_for};
use mirai_core::worker::{Assignment, Next, Worker};

fn next_task(worker: &mut Worker) -> Assignment {
    match worker.next(Some(Instant::now() + LONG), || false) {
        Next::Task(task) => task,
        other => panic!("a task expected, not {other:?}"),
    }
}

/// Waits as a host's main thread does, unlike [`outcome`].
fn wait(task: &Task) -> &Outcome {
    let patience = Patience {
        timeout: Some(LONG),
        ..Patience::for_all(1)
    };
    assert_eq!(
        wait_for([task].into_iter(), patience, || false),
        Waited::Ready
    );
    task.outcome().unwrap()
}

#[test]
fn tasks_go_and_values_come_back_by_every_scheme() {
    for scheme in SCHEMES {
        let host = Host::new(Config::default());
        let (url, trust, _) = listening(&any_port(scheme), &host);
        let mut worker = dial(&url, trust);
        until(|| host.counts().connections == 1);
        for size in [0, 1, 1000, 20_000, 70_000, 5_000_000] {
            let body: Vec<u8> = (0..size).map(|i: u32| (i * 7) as u8).collect();
            let task = submit(&host, body.clone());
            let got = next_task(&mut worker);
            assert!(got.body == body, "{scheme} {size}");
            let sending = std::thread::scope(|scope| {
                let sent = scope.spawn(|| worker.reply(got.seq, &got.body, false));
                assert!(*wait(&task) == value(body.clone()), "{scheme} {size}");
                sent.join().unwrap()
            });
            assert!(sending);
        }
        worker.leave();
        until(|| host.counts().connections == 0);
        host.close(false);
    }
}

#[test]
fn what_a_daemon_holds_ahead_of_a_long_task_is_done_by_others_at_once() {
    for scheme in SCHEMES {
        let host = Host::new(Config::default());
        let (url, trust, _) = listening(&any_port(scheme), &host);
        let mut slow = dial(&url, trust.clone());
        until(|| host.counts().connections == 1);
        let mut tasks: Vec<_> = (0..100u8).map(|i| submit(&host, vec![i])).collect();
        // Tiny tasks until it is sent some ahead, which depends on how busy this machine is.
        let mut at = 0;
        while host.counts().executing < 3 {
            let task = next_task(&mut slow);
            assert!(slow.reply(task.seq, &task.body, false));
            let replied = Instant::now();
            wait(&tasks[at]);
            at += 1;
            tasks.push(submit(&host, vec![tasks.len() as u8]));
            // This thread plays both, and the host's time is not the daemon's.
            slow.exclude_from_task_time(replied.elapsed());
        }
        let long = next_task(&mut slow);
        let mut quick = dial(&url, trust);
        for _ in at + 1..tasks.len() {
            let task = next_task(&mut quick);
            assert!(quick.reply(task.seq, &task.body, false));
        }
        for (i, task) in tasks.iter().enumerate().skip(at + 1) {
            assert_eq!(*wait(task), value(vec![i as u8]), "{scheme}");
        }
        assert!(slow.reply(long.seq, &long.body, false));
        assert_eq!(*wait(&tasks[at]), value(vec![at as u8]));
        host.close(true);
    }
}

#[test]
fn many_daemons_share_a_url_and_leave_when_told() {
    for scheme in SCHEMES {
        let host = Host::new(Config {
            policy: Policy::RoundRobin,
            ..Config::default()
        });
        let (url, trust, _) = listening(&any_port(scheme), &host);
        let mut workers: Vec<Worker> = (0..4).map(|_| dial(&url, trust.clone())).collect();
        until(|| host.counts().connections == 4);
        let tasks: Vec<_> = (0..40u8).map(|i| submit(&host, vec![i])).collect();
        for worker in &mut workers {
            for _ in 0..10 {
                let task = next_task(worker);
                assert!(worker.reply(task.seq, &task.body, false));
            }
        }
        for (i, task) in tasks.iter().enumerate() {
            assert_eq!(*wait(task), value(vec![i as u8]));
        }
        host.close(true);
        for mut worker in workers {
            match worker.next(Some(Instant::now() + LONG), || false) {
                Next::Lost { end } => assert!(end, "{scheme}"),
                other => panic!("the end expected, not {other:?}"),
            }
        }
    }
}

#[test]
fn what_is_for_every_daemon_is_one_decision() {
    let host = Host::new(Config::default());
    let (url, trust, _) = listening(&any_port("tcp"), &host);
    let mut workers: Vec<Worker> = (0..2).map(|_| dial(&url, trust.clone())).collect();
    until(|| host.counts().connections == 2);
    // More have connected than the caller has thought of: none of it happens.
    assert_eq!(host.submit_to_each(1, |_| None), Err(2));
    assert_eq!(host.counts().executing, 0);
    let mut made = Vec::new();
    let mut make = |n: usize| {
        let tasks: Vec<_> = (0..n).map(|i| task(vec![i as u8])).collect();
        made.clone_from(&tasks);
        Some(tasks)
    };
    assert_eq!(host.submit_to_each(3, &mut make), Ok(()));
    let all = made.clone();
    assert_eq!(all.len(), 3);
    // One leaves before it has begun, the other works, and one is yet to come.
    workers.pop().unwrap().leave();
    let setup = next_task(&mut workers[0]);
    assert!(workers[0].reply(setup.seq, &setup.body, false));
    assert_eq!(
        *wait(&all[setup.body[0] as usize]),
        value(setup.body.clone())
    );
    let gone = usize::from(setup.body[0] == 0);
    assert_eq!(*wait(&all[gone]), Outcome::Reset);
    assert!(all[2].outcome().is_none());
    let mut third = dial(&url, trust);
    let setup = next_task(&mut third);
    assert!(third.reply(setup.seq, &setup.body, false));
    assert_eq!(*wait(&all[2]), value([2]));
    // Those that leave are not counted: nobody waits for them.
    workers.pop().unwrap().leave();
    until(|| host.counts().connections == 1);
    let mut n = 0;
    let counted = host.submit_to_each(1, |needed| {
        n = needed;
        None
    });
    assert_eq!((counted, n), (Err(1), 1));
    host.close(true);
}
