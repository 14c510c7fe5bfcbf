//! The queue alone: what an event costs, and whether that depends on how much waits.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mirai_core::dispatcher::{
    Action, Config, Dispatcher, Endpoint, Event, Label, PeerId, Replies, Reply, Target,
};
use mirai_core::protocol::Seq;

/// From one event to the next.
const STEP: Duration = Duration::from_nanos(500);
const DAEMONS: [PeerId; 4] = [1, 10, 1_000, 10_000];
const LENGTHS: [u64; 5] = [100, 1_000, 10_000, 100_000, 1_000_000];

/// A dispatcher with its daemons and tasks, of which it keeps the jobs' numbers.
struct Scene {
    dispatcher: Dispatcher<u64>,
    actions: Vec<Action<u64>>,
    now: Duration,
    last: u64,
    endpoint: Endpoint,
    last_peer: PeerId,
    /// Tasks on daemons, and a number from which the next to be answered is made.
    running: Vec<(PeerId, Seq)>,
    random: u64,
}

impl Scene {
    fn new(peers: PeerId, tasks: u64) -> Scene {
        let mut dispatcher = Dispatcher::new(Config::default());
        let endpoint = dispatcher.add_endpoint();
        let mut scene = Scene {
            dispatcher,
            actions: Vec::new(),
            now: Duration::ZERO,
            last: 0,
            endpoint,
            last_peer: 0,
            running: Vec::new(),
            random: 1,
        };
        for _ in 0..peers {
            scene.join();
        }
        for _ in 0..tasks {
            scene.submit();
        }
        scene
    }

    fn handle(&mut self, event: Event<u64>) {
        self.now += STEP;
        self.dispatcher.handle(self.now, event, &mut self.actions);
        if self
            .dispatcher
            .next_deadline()
            .is_some_and(|at| at <= self.now)
        {
            self.dispatcher
                .handle(self.now, Event::Tick, &mut self.actions);
        }
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

    fn join(&mut self) {
        self.last_peer += 1;
        self.handle(Event::Joined {
            peer: self.last_peer,
            endpoint: self.endpoint,
            slots: 1,
            replies: Replies::Sure,
        });
    }

    /// A daemon is done, and gets its next task.
    fn reply(&mut self) {
        let at = self.running.len() - 1;
        self.reply_to(at);
    }

    /// The same of any task that runs.
    fn reply_of_any(&mut self) {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let at = (self.random >> 33) as usize % self.running.len();
        self.reply_to(at);
    }

    fn reply_to(&mut self, at: usize) {
        let (peer, seq) = self.running.swap_remove(at);
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
    for peers in DAEMONS {
        let mut scene = Scene::new(peers, 100_000);
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            b.iter(|| scene.turn());
        });
    }
    group.finish();
}

/// A daemon that is idle gets a task and replies to it, while most others are idle.
fn idle(c: &mut Criterion) {
    let mut group = c.benchmark_group("submit and reply, by idle daemons");
    group.throughput(Throughput::Elements(2));
    for peers in DAEMONS {
        let mut scene = Scene::new(peers, 0);
        // They became idle in an order of their own.
        for _ in 0..peers {
            scene.submit();
        }
        while !scene.running.is_empty() {
            scene.reply_of_any();
        }
        // A tenth of them are at work, so that it is not always the same that is next.
        for _ in 0..peers.div_ceil(10) {
            scene.submit();
        }
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            b.iter(|| {
                scene.submit();
                scene.reply_of_any();
            });
        });
    }
    group.finish();
}

/// The queue is empty, all daemons hold tasks ahead, and one that falls idle has them given back.
fn recall(c: &mut Criterion) {
    let mut group = c.benchmark_group("recall for an idle daemon, by daemons that hold tasks");
    for peers in DAEMONS {
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            b.iter_batched_ref(
                || {
                    let mut scene = Scene::new(peers, 8 * u64::from(peers));
                    while scene.dispatcher.unserved() > 0 {
                        scene.reply_of_any();
                    }
                    scene
                },
                |scene| scene.join(),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// A daemon connects and another one leaves.
fn come_and_go(c: &mut Criterion) {
    let mut group = c.benchmark_group("join and lose, by daemons");
    group.throughput(Throughput::Elements(2));
    for peers in DAEMONS {
        let mut scene = Scene::new(peers, 0);
        let mut oldest = 0;
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            b.iter(|| {
                scene.join();
                oldest += 1;
                let lost = Event::Lost {
                    peer: oldest,
                    heard_out: true,
                };
                scene.handle(lost);
            });
        });
    }
    group.finish();
}

/// A process for a single task has ended, while tasks wait.
fn one_off(c: &mut Criterion) {
    let mut group = c.benchmark_group("a process for one task ends, by tasks waiting");
    for length in LENGTHS {
        let mut scene = Scene::new(4, length);
        group.bench_function(BenchmarkId::from_parameter(length), |b| {
            b.iter(|| {
                let endpoint = scene.dispatcher.add_endpoint();
                black_box(scene.dispatcher.is_awaited(endpoint));
                scene.handle(Event::Abandoned { endpoint });
                scene.dispatcher.release_endpoint(endpoint);
            });
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

criterion_group!(
    benches,
    queue_length,
    daemons,
    idle,
    recall,
    come_and_go,
    one_off,
    cancel
);
criterion_main!(benches);
