//! Host and daemons across the network (loopback), in one process. As in `host_worker.rs`,
//! mostly one thread plays both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mirai_core::dispatcher::{Config, Policy, Target};
use mirai_core::host::{Host, next_task_id};
use mirai_core::protocol::Kind;
use mirai_core::task::{Outcome, Payload, Task};
use mirai_core::tls::{Identity, Trust};
use mirai_core::transport::Address;
use mirai_core::wait::{Bell, Patience, Waited, wait_for};
use mirai_core::worker::{Assignment, AutoExit, DialError, Next, Options, Runtime, Worker};

/// Beyond this something hangs.
const LONG: Duration = Duration::from_secs(20);

struct NoRuntime;

impl Runtime for NoRuntime {
    fn interrupt(&self) {}
    fn forget_interrupt(&self) {}
    fn exit(&self) {}
    fn raise(&self, _: i32) {}
}

fn options(trust: Option<Trust>) -> Options {
    Options {
        autoexit: AutoExit::Never,
        asyncdial: false,
        insist: false,
        tempdir: String::new(),
        interruptible: false,
        slots: 1,
        trust,
    }
}

fn dial(url: &str, trust: Option<Trust>) -> Result<Worker, DialError> {
    let address: Address = url.parse().unwrap();
    Worker::dial(&address, &options(trust), Arc::new(NoRuntime), None, || {
        false
    })
}

/// A host that listens at `url`, and the URL with its port; for a secure one, also what
/// its daemons trust.
fn listening(url: &str, config: Config) -> (Host, String, Option<Trust>) {
    let host = Host::new(config);
    let addresses: Vec<Address> = vec![url.parse().unwrap()];
    let identity: Option<Identity> = addresses[0]
        .is_secure()
        .then(|| Host::single_use_identity(&addresses).unwrap());
    host.listen_all(&addresses, identity.as_ref()).unwrap();
    let trust = identity.map(|i| Trust::from_pem(i.for_daemons()).unwrap());
    let url = host.urls().remove(0);
    (host, url, trust)
}

fn until(so: impl FnMut() -> bool) {
    let end = Bell::get().wait(Some(LONG), || false, so);
    assert_eq!(end, Waited::Ready);
}

fn submit(host: &Host, body: impl Into<Vec<u8>>) -> Arc<Task> {
    let payload = Payload {
        constants: None,
        kind: Kind::Task,
        stream: None,
        body: body.into().into(),
    };
    let task = Arc::new(Task::new(next_task_id(), payload));
    host.submit(task.clone(), None, Target::Any);
    task
}

fn next_task(worker: &mut Worker) -> Assignment {
    match worker.next(Some(Instant::now() + LONG), || false) {
        Next::Task(task) => task,
        other => panic!("a task expected, not {other:?}"),
    }
}

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

const SCHEMES: [&str; 4] = ["tcp", "ws", "tls+tcp", "wss"];

fn path(scheme: &str) -> &'static str {
    if scheme.ends_with("tcp") { "" } else { "/a" }
}

#[test]
fn tasks_go_and_values_come_back_by_every_scheme() {
    for scheme in SCHEMES {
        let given = format!("{scheme}://127.0.0.1:0{}", path(scheme));
        let (host, url, trust) = listening(&given, Config::default());
        let mut worker = dial(&url, trust).unwrap();
        until(|| host.counts().connections == 1);
        for size in [0, 1, 1000, 20_000, 70_000, 5_000_000] {
            let body: Vec<u8> = (0..size).map(|i: u32| (i * 7) as u8).collect();
            let task = submit(&host, body.clone());
            let got = next_task(&mut worker);
            assert!(got.body == body, "{scheme} {size}");
            let sending = std::thread::scope(|scope| {
                let sent = scope.spawn(|| worker.reply(got.seq, &got.body, false));
                assert!(
                    *wait(&task) == Outcome::Value(body.clone().into()),
                    "{scheme} {size}"
                );
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
        let given = format!("{scheme}://127.0.0.1:0{}", path(scheme));
        let (host, url, trust) = listening(&given, Config::default());
        let mut slow = dial(&url, trust.clone()).unwrap();
        until(|| host.counts().connections == 1);
        let mut tasks: Vec<_> = (0..100u8).map(|i| submit(&host, vec![i])).collect();
        // Tiny tasks until it is sent some ahead, which depends on how busy this machine is.
        let mut at = 0;
        while host.counts().executing < 3 {
            let task = next_task(&mut slow);
            assert!(slow.reply(task.seq, &task.body, false));
            wait(&tasks[at]);
            at += 1;
            tasks.push(submit(&host, vec![tasks.len() as u8]));
        }
        let long = next_task(&mut slow);
        let mut quick = dial(&url, trust).unwrap();
        for _ in at + 1..tasks.len() {
            let task = next_task(&mut quick);
            assert!(quick.reply(task.seq, &task.body, false));
        }
        for (i, task) in tasks.iter().enumerate().skip(at + 1) {
            assert_eq!(
                *wait(task),
                Outcome::Value(vec![i as u8].into()),
                "{scheme}"
            );
        }
        assert!(slow.reply(long.seq, &long.body, false));
        assert_eq!(*wait(&tasks[at]), Outcome::Value(vec![at as u8].into()));
        host.close(true);
    }
}

#[test]
fn many_daemons_share_a_url_and_leave_when_told() {
    for scheme in SCHEMES {
        let given = format!("{scheme}://127.0.0.1:0{}", path(scheme));
        let config = Config {
            policy: Policy::RoundRobin,
            ..Config::default()
        };
        let (host, url, trust) = listening(&given, config);
        let mut workers: Vec<Worker> = (0..4).map(|_| dial(&url, trust.clone()).unwrap()).collect();
        until(|| host.counts().connections == 4);
        let tasks: Vec<_> = (0..40u8).map(|i| submit(&host, vec![i])).collect();
        for worker in &mut workers {
            for _ in 0..10 {
                let task = next_task(worker);
                assert!(worker.reply(task.seq, &task.body, false));
            }
        }
        for (i, task) in tasks.iter().enumerate() {
            assert_eq!(*wait(task), Outcome::Value(vec![i as u8].into()));
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
