//! A task there and back: host, link and worker, over real sockets, without R. Host and daemon are
//! threads of one process, which spares no part of the way but the switch of address space.

use std::sync::Arc;
use std::thread;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mirai_core::dispatcher::{Config, Target};
use mirai_core::host::Host;
use mirai_core::protocol::Kind;
use mirai_core::task::{Patience, Payload, Task, next_task_id, wait_for};
use mirai_core::transport::{Address, local_url};
use mirai_core::worker::{Next, Options, Runtime, Worker};

/// Nobody interrupts anybody here.
struct Undisturbed;

impl Runtime for Undisturbed {
    fn interrupt(&self) {}
    fn forget_interrupt(&self) {}
    fn exit(&self) {}
    fn raise(&self, _: i32) {}
}

/// A daemon that returns what it is sent, until the host goes.
fn echo(address: &Address) {
    let options = Options::default();
    let mut worker = Worker::dial(address, &options, Arc::new(Undisturbed), None, || false)
        .expect("the host listens");
    while let Next::Task(task) = worker.next(None, || false) {
        worker.finish();
        if !worker.reply(task.seq, &task.body, false) {
            break;
        }
    }
}

fn submit(host: &Host, body: &[u8]) -> Arc<Task> {
    let payload = Payload {
        constants: None,
        kind: Kind::Task,
        stream: None,
        body: body.to_vec().into(),
    };
    let task = Arc::new(Task::new(next_task_id(), payload));
    host.submit(task.clone(), None, Target::Any);
    task
}

fn wait(tasks: &[Arc<Task>]) {
    let all = Patience::for_all(tasks.len());
    wait_for(tasks.iter().map(Arc::as_ref), all, || false);
}

fn with_daemon(url: &str, bench: impl FnOnce(&Host)) {
    let host = Host::new(Config::default());
    let address: Address = url.parse().expect("a URL");
    host.listen(&address).expect("a free address");
    let address = host.status().endpoints[0].url.parse().expect("a URL");
    let daemon = thread::spawn(move || echo(&address));
    wait(&[submit(&host, b"ready?")]);
    bench(&host);
    host.close(false);
    daemon.join().expect("the daemon ends in peace");
}

fn round_trip(c: &mut Criterion) {
    let mut group = c.benchmark_group("round trip, by bytes of body");
    for (scheme, url) in [
        ("unix", local_url()),
        ("tcp", "tcp://127.0.0.1:0".to_owned()),
    ] {
        with_daemon(&url, |host| {
            for size in [100, 10_000, 1_000_000, 10_000_000] {
                let body = vec![7; size];
                group.throughput(Throughput::Bytes(2 * size as u64));
                group.sample_size(if size > 100_000 { 20 } else { 100 });
                group.bench_function(BenchmarkId::new(scheme, size), |b| {
                    b.iter(|| wait(&[submit(host, &body)]));
                });
            }
        });
    }
    group.finish();
}

/// Many tasks at once: what the daemon does not wait for.
fn throughput(c: &mut Criterion) {
    const TASKS: usize = 1_000;
    let mut group = c.benchmark_group("tasks of 100 bytes, queued together");
    group.throughput(Throughput::Elements(TASKS as u64));
    group.sample_size(20);
    with_daemon(&local_url(), |host| {
        group.bench_function(BenchmarkId::from_parameter(TASKS), |b| {
            b.iter(|| {
                let tasks: Vec<_> = (0..TASKS).map(|_| submit(host, &[7; 100])).collect();
                wait(&tasks);
            });
        });
    });
    group.finish();
}

criterion_group!(benches, round_trip, throughput);
criterion_main!(benches);
