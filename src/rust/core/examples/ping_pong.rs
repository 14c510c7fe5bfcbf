//! The yardstick of `tools/bench`: a 512-byte ping-pong between two processes over a
//! Unix socket, with nothing in between. Prints the median of several runs, in
//! microseconds a round trip.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

const SIZE: usize = 512;
const ROUNDS: u32 = 5_000;
const RUNS: usize = 5;

fn main() -> io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("pong") {
        return pong();
    }
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("pong")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .spawn()?;
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| ping(&mut ours))
        .collect::<io::Result<_>>()?;
    drop(ours);
    child.wait()?;
    times.sort_by(f64::total_cmp);
    println!("{:.3}", times[RUNS / 2]);
    Ok(())
}

fn ping(stream: &mut UnixStream) -> io::Result<f64> {
    let mut bytes = [1; SIZE];
    let start = Instant::now();
    for _ in 0..ROUNDS {
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS))
}

/// The other process: its stdin is the socket.
fn pong() -> io::Result<()> {
    // SAFETY: stdin was given to us for this and is used by nobody else.
    let mut stream = unsafe { UnixStream::from_raw_fd(io::stdin().as_raw_fd()) };
    let mut bytes = [0; SIZE];
    while stream.read_exact(&mut bytes).is_ok() {
        stream.write_all(&bytes)?;
    }
    Ok(())
}
