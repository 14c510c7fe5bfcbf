//! The least host and the least worker: `cargo run --example hello`.
//!
//! The host starts this program again as its worker, sends it one task, and prints the answer.
//! The bytes of a task and of its answer mean nothing to `mirai_core`; here they are text.

use std::process::Command;
use std::sync::{Arc, mpsc};

use mirai_core::dispatcher::{Config, Target};
use mirai_core::host::Host;
use mirai_core::protocol::Kind;
use mirai_core::task::{Outcome, Payload, Task};
use mirai_core::transport::{Address, local_url};
use mirai_core::worker::{Next, Options, Runtime, Worker};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

fn main() -> Result {
    match std::env::args().nth(1) {
        None => host(),
        Some(url) => worker(&url.parse()?),
    }
}

fn host() -> Result {
    let host = Host::new(Config::default());
    let url = local_url();
    host.listen(&url.parse()?)?;
    let mut child = Command::new(std::env::current_exe()?).arg(&url).spawn()?;

    let payload = Payload {
        kind: Kind::Task,
        stream: None,
        constants: None,
        body: "world".into(),
    };
    let task = Arc::new(Task::new(1, payload));
    host.submit(task.clone(), None, Target::Any);

    // The callback runs on the I/O thread, so it only tells this one.
    let (tell, told) = mpsc::channel();
    task.on_resolved(Box::new(move |_| tell.send(()).unwrap_or_default()));
    told.recv()?;
    match task.outcome() {
        Some(Outcome::Value(value)) => println!("{}", std::str::from_utf8(&value.plain())?),
        other => println!("no answer: {other:?}"),
    }
    host.close(true); // tells the worker to leave
    child.wait()?;
    Ok(())
}

fn worker(address: &Address) -> Result {
    let mut worker = Worker::dial(address, &Options::default(), Arc::new(Plain), None, || {
        false
    })?;
    // Anything but a task means here that the host has gone.
    while let Next::Task(task) = worker.next(None, || false) {
        let answer = format!("hello, {}", String::from_utf8(task.body)?);
        worker.finish(); // from here on a cancellation comes too late
        worker.reply(task.seq, &answer, false);
    }
    Ok(())
}

/// A language runtime that cannot be interrupted: see [`Runtime`].
struct Plain;

impl Runtime for Plain {
    fn interrupt(&self) {}
    fn forget_interrupt(&self) {}
    fn exit(&self) {}
    fn raise(&self, _: i32) {}
}
