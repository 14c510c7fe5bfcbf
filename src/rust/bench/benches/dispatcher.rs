//! The queue alone: what an event costs, and whether that depends on how much waits.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mirai_core::dispatcher::{
    Action, Config, Dispatcher, Event, Label, PeerId, Replies, Reply, Target,
};
use mirai_core::protocol::Seq;

const NOW: Duration = Duration::ZERO;
const LENGTHS: [u64; 5] = [100, 1_000, 10_000, 100_000, 1_000_000];

/// A dispatcher with its daemons and tasks, of which it keeps the jobs' numbers.
struct Scene {
    dispatcher: Dispatcher<u64>,
    actions: Vec<Action<u64>>,
    last: u64,
    /// Tasks on daemons.
    running: Vec<(PeerId, Seq)>,
}

impl Scene {
    fn new(peers: PeerId, tasks: u64) -> Scene {
        let mut dispatcher = Dispatcher::new(Config::default());
        let endpoint = dispatcher.add_endpoint();
        let mut scene = Scene {
            dispatcher,
            actions: Vec::new(),
            last: 0,
            running: Vec::new(),
        };
        for peer in 1..=peers {
            scene.handle(Event::Joined {
                peer,
                endpoint,
                slots: 1,
                replies: Replies::Sure,
            });
        }
        for _ in 0..tasks {
            scene.submit();
        }
        scene
    }

    fn handle(&mut self, event: Event<u64>) {
        self.dispatcher.handle(NOW, event, &mut self.actions);
        for action in self.actions.drain(..) {
            if let Action::Send { peer, seq, .. } = black_box(action) {
                self.running.push((peer, seq));
            }
        }
    }

    fn submit(&mut self) {
        self.last += 1;
        self.handle(Event::Submit {
            id: self.last,
            job: self.last,
            bytes: 100,
            deadline: None,
            target: Target::Any,
            label: Label::default(),
            rules: None,
            waits: false,
        });
    }

    /// A daemon is done, and gets its next task.
    fn reply(&mut self) {
        let (peer, seq) = self.running.pop().expect("a task runs");
        self.handle(Event::Replied {
            peer,
            seq,
            spent: Duration::from_micros(5),
            reply: Reply::default(),
        });
    }

    /// One task comes and one goes, so the queue stays as long as it is.
    fn turn(&mut self) {
        self.submit();
        self.reply();
    }
}

fn queue_length(c: &mut Criterion) {
    let mut group = c.benchmark_group("submit and reply, by tasks waiting");
    group.throughput(Throughput::Elements(2));
    for length in LENGTHS {
        let mut scene = Scene::new(4, length);
        group.bench_function(BenchmarkId::from_parameter(length), |b| {
            b.iter(|| scene.turn());
        });
    }
    group.finish();
}

fn daemons(c: &mut Criterion) {
    let mut group = c.benchmark_group("submit and reply, by daemons");
    group.throughput(Throughput::Elements(2));
    for peers in [1, 2, 8, 64, 512] {
        let mut scene = Scene::new(peers, 10_000);
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            b.iter(|| scene.turn());
        });
    }
    group.finish();
}

fn cancel(c: &mut Criterion) {
    let mut group = c.benchmark_group("submit and cancel, by tasks waiting");
    group.throughput(Throughput::Elements(2));
    for length in LENGTHS {
        let mut scene = Scene::new(4, length);
        group.bench_function(BenchmarkId::from_parameter(length), |b| {
            b.iter(|| {
                scene.submit();
                let id = scene.last;
                scene.handle(Event::Cancel { id });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, queue_length, daemons, cancel);
criterion_main!(benches);
