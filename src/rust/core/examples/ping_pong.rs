//! The yardstick of `tools/bench`: a ping-pong between two processes, with nothing in between. Prints the median of several
//! runs, in microseconds a round trip.
//!
//! - `ping_pong` by a Unix socket;
//! - `ping_pong tcp` by a TCP connection on the loopback interface, without Nagle's delay;
//! - `ping_pong spin` by a Unix socket whose ends never sleep: they ask again until there is something to read.
//!
//! The ball has 512 bytes, or as many as a number after that says. With that, there is a second line: what the slowest of
//! [`LARGE_RUNS`] took.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

const SIZE: usize = 512;
const ROUNDS: u32 = 5_000;
const RUNS: usize = 5;
/// Of a ball of another size, each of one round.
const LARGE_RUNS: usize = 50;

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    let size = args.last().and_then(|arg| arg.parse().ok());
    if size.is_some() {
        args.pop();
    }
    match args[..] {
        [] => ping("unix", UnixStream::pair()?, size),
        ["spin"] => ping("spin", UnixStream::pair()?, size),
        ["tcp"] => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let theirs = TcpStream::connect(listener.local_addr()?)?;
            let ours = listener.accept()?.0;
            ours.set_nodelay(true)?;
            theirs.set_nodelay(true)?;
            ping("tcp", (ours, theirs), size)
        }
        ["pong", way] => pong(way, size.unwrap_or(SIZE)),
        _ => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "usage: ping_pong [tcp|spin] [BYTES]",
        )),
    }
}

/// One end of either kind of connection.
trait Stream: Read + Write + Into<OwnedFd> {
    fn never_sleep(&self) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn never_sleep(&self) -> io::Result<()> {
        self.set_nonblocking(true)
    }
}

impl Stream for TcpStream {
    fn never_sleep(&self) -> io::Result<()> {
        self.set_nonblocking(true)
    }
}

fn ping<S: Stream>(way: &str, (mut ours, theirs): (S, S), given: Option<usize>) -> io::Result<()> {
    let size = given.unwrap_or(SIZE);
    let mut child = Command::new(std::env::current_exe()?)
        .args(["pong", way, &size.to_string()])
        .stdin(Stdio::from(theirs.into()))
        .spawn()?;
    if way == "spin" {
        ours.never_sleep()?;
    }
    let (runs, rounds) = match given {
        None => (RUNS, ROUNDS),
        Some(_) => (LARGE_RUNS, 1),
    };
    let mut bytes = vec![1; size];
    let mut times: Vec<f64> = (0..runs)
        .map(|_| trips(&mut ours, &mut bytes, rounds))
        .collect::<io::Result<_>>()?;
    drop(ours);
    child.wait()?;
    times.sort_by(f64::total_cmp);
    println!("{:.3}", times[runs / 2]);
    if given.is_some() {
        println!("{:.3}", times[runs - 1]);
    }
    Ok(())
}

/// Microseconds a round trip.
fn trips(stream: &mut (impl Read + Write), bytes: &mut [u8], rounds: u32) -> io::Result<f64> {
    let start = Instant::now();
    for _ in 0..rounds {
        write(stream, bytes)?;
        read(stream, bytes)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds))
}

/// As `write_all`, also where nothing waits.
fn write(stream: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// As `read_exact`, also where nothing waits.
fn read(stream: &mut impl Read, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => bytes = &mut bytes[n..],
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The other process: its stdin is the connection.
fn pong(way: &str, size: usize) -> io::Result<()> {
    // SAFETY: stdin was given to this process for this and is used by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(0) };
    if way == "tcp" {
        return echo(&mut TcpStream::from(fd), size);
    }
    let mut stream = UnixStream::from(fd);
    if way == "spin" {
        stream.never_sleep()?;
    }
    echo(&mut stream, size)
}

/// Until the other end closes.
fn echo(stream: &mut (impl Read + Write), size: usize) -> io::Result<()> {
    let mut bytes = vec![0; size];
    while read(stream, &mut bytes).is_ok() {
        write(stream, &bytes)?;
    }
    Ok(())
}
