//! What links across the network cost, over loopback between two processes. Measurements take
//! turns, and medians are shown, as other processes come in between.
//!
//! - the round trip of a task of 512 bytes, against the ping-pong of a bare pair of NNG's
//!   sockets and of a bare Unix socket;
//! - 100 MB to a daemon, and from it;
//! - what 200 idle daemons cost their host.
//!
//! `cargo run --release -p mirai-core --example network`

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirai_core::dispatcher::{Config, Target};
use mirai_core::host::Host;
use mirai_core::protocol::Kind;
use mirai_core::sys::Bell;
use mirai_core::task::{Outcome, Patience, Payload, Task, next_task_id, wait_for};
use mirai_core::tls::Trust;
use mirai_core::transport::Address;
use mirai_core::worker::{AutoExit, Next, Options, Runtime, Worker};

const SIZE: usize = 512;
const LARGE: usize = 100_000_000;
const ROUNDS: u32 = 1000;
const RUNS: usize = 9;
const CROWD: u32 = 200;
const SCHEMES: [&str; 4] = ["tcp", "ws", "tls+tcp", "wss"];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["daemon", url] => daemon(url),
        ["crowd", url] => crowd(url),
        ["pair", url] => pair(url),
        ["unix"] => unix(),
        ["large", scheme] => large(&[scheme]),
        ["small", scheme] => small(&[scheme]),
        _ => {
            idle();
            small(&SCHEMES);
            large(&SCHEMES);
        }
    }
}

/// A host with a daemon in another process.
struct Link {
    host: Host,
    child: Child,
}

impl Link {
    fn new(scheme: &str, role: &str, daemons: u32) -> Link {
        let host = Host::new(Config::default());
        let path = if scheme.starts_with('w') { "/a" } else { "" };
        let addresses: [Address; 1] = [format!("{scheme}://127.0.0.1:0{path}").parse().unwrap()];
        let secure = addresses[0].is_secure();
        let identity = secure.then(|| Host::single_use_identity(&addresses).unwrap());
        host.listen_all(&addresses, identity.as_ref()).unwrap();
        let mut child = process(&[role, &host.urls()[0]], Stdio::piped());
        let pem = identity.as_ref().map(|i| i.for_daemons());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(pem.unwrap_or("").as_bytes()).unwrap();
        drop(stdin);
        let all = || host.counts().connections >= daemons as _;
        Bell::get().wait(None, || false, all);
        Link { host, child }
    }

    /// Has the daemon do what the first byte says; milliseconds.
    fn run(&self, body: Vec<u8>) -> f64 {
        let payload = Payload {
            constants: None,
            kind: Kind::Task,
            stream: None,
            body: body.into(),
        };
        let task = Arc::new(Task::new(next_task_id(), payload));
        let start = Instant::now();
        self.host.submit(task.clone(), None, Target::Any);
        wait_for([&*task].into_iter(), Patience::for_all(1), || false);
        assert!(matches!(task.outcome(), Some(Outcome::Value(_))));
        start.elapsed().as_secs_f64() * 1e3
    }

    fn end(mut self) {
        self.host.close(true);
        self.child.wait().unwrap();
    }
}

fn process(args: &[&str], stdin: Stdio) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command.args(args).stdin(stdin).spawn().unwrap()
}

struct NoRuntime;

impl Runtime for NoRuntime {
    fn interrupt(&self) {}
    fn forget_interrupt(&self) {}
    fn exit(&self) {}
    fn raise(&self, _: i32) {}
}

fn dial(url: &str, pem: &str) -> Worker {
    let options = Options {
        autoexit: AutoExit::AfterTask,
        trust: (!pem.is_empty()).then(|| Trust::from_pem(pem).unwrap()),
        ..Options::default()
    };
    let address = url.parse().unwrap();
    Worker::dial(&address, &options, Arc::new(NoRuntime), None, || false).unwrap()
}

fn from_stdin() -> String {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    text
}

/// Echoes what is small, swallows what is large, and sends what is large for an `o`.
fn daemon(url: &str) {
    let mut worker = dial(url, &from_stdin());
    let large = vec![7; LARGE];
    while let Next::Task(task) = worker.next(None, || false) {
        worker.finish();
        let value = match task.body[..] {
            [b'o', ..] => &large,
            ref body if body.len() > SIZE => &body[..1],
            ref body => body,
        };
        worker.reply(task.seq, value, false);
    }
}

/// Many daemons that have nothing to do.
fn crowd(url: &str) {
    let pem = from_stdin();
    let mut workers: Vec<_> = (0..CROWD).map(|_| dial(url, &pem)).collect();
    while !matches!(workers[0].next(None, || false), Next::Lost { .. }) {}
}

fn pair(url: &str) {
    let socket = nng::Socket::new(nng::Protocol::Pair1).unwrap();
    socket.dial(url).unwrap();
    while let Ok(message) = socket.recv() {
        if message.is_empty() || socket.send(message).is_err() {
            return;
        }
    }
}

fn unix() {
    // SAFETY: stdin was given to us for this and is used by nobody else.
    let mut stream = unsafe { UnixStream::from_raw_fd(0) };
    let mut bytes = [0; SIZE];
    while stream.read_exact(&mut bytes).is_ok() {
        stream.write_all(&bytes).unwrap();
    }
}

/// Microseconds a round.
fn trips(mut one: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..ROUNDS {
        one();
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn small(schemes: &[&str]) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut unix = process(&["unix"], OwnedFd::from(theirs).into());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let url = format!("tcp://127.0.0.1:{}", port.unwrap().port());
    let socket = nng::Socket::new(nng::Protocol::Pair1).unwrap();
    socket.listen(&url).unwrap();
    let mut pair = process(&["pair", &url], Stdio::null());
    let links: Vec<_> = schemes.iter().map(|s| Link::new(s, "daemon", 1)).collect();

    let mut times = vec![Vec::new(); 2 + links.len()];
    for _ in 0..RUNS {
        let mut bytes = [1; SIZE];
        times[0].push(trips(|| {
            ours.write_all(&bytes).unwrap();
            ours.read_exact(&mut bytes).unwrap();
        }));
        times[1].push(trips(|| {
            socket.send(&bytes[..]).unwrap();
            socket.recv().unwrap();
        }));
        for (link, times) in links.iter().zip(&mut times[2..]) {
            times.push(trips(|| {
                link.run(vec![1; SIZE]);
            }));
        }
    }
    drop(ours);
    socket.send(&b""[..]).unwrap();
    unix.wait().unwrap();
    pair.wait().unwrap();
    let bare = median(times[1].clone());
    let names = ["Unix socket", "NNG pair, tcp"].iter().chain(schemes);
    println!("round trip of {SIZE} bytes, µs (x NNG pair)");
    for (name, times) in names.zip(times) {
        let time = median(times);
        println!("  {name:14}{time:>8.1}{:>8.2}", time / bare);
    }
    links.into_iter().for_each(Link::end);
}

fn large(schemes: &[&str]) {
    let links: Vec<_> = schemes.iter().map(|s| Link::new(s, "daemon", 1)).collect();
    let mut times = vec![(Vec::new(), Vec::new()); links.len()];
    for _ in 0..RUNS {
        for (link, times) in links.iter().zip(&mut times) {
            times.0.push(link.run(vec![1; LARGE]));
            times.1.push(link.run(vec![b'o']));
        }
    }
    println!("{} MB to a daemon, and from it, MB/s", LARGE / 1_000_000);
    for (scheme, times) in schemes.iter().zip(times) {
        let rate = |times| LARGE as f64 / 1e3 / median(times);
        println!("  {scheme:14}{:>8.0}{:>8.0}", rate(times.0), rate(times.1));
    }
    links.into_iter().for_each(Link::end);
}

fn idle() {
    println!("{CROWD} idle daemons: memory of the host in MB, its processor time in 5 s in ms");
    for scheme in SCHEMES {
        let before = memory();
        let link = Link::new(scheme, "crowd", CROWD);
        let (grown, worked) = (memory() - before, processor());
        std::thread::sleep(Duration::from_secs(5));
        let worked = processor() - worked;
        println!("  {scheme:14}{grown:>8.1}{:>8.1}", worked * 1e3);
        link.end();
    }
}

/// Of this process, in MB.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}

/// Seconds of this process.
fn processor() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` has room for what the call writes; all zeros is valid too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    time(usage.ru_utime) + time(usage.ru_stime)
}
