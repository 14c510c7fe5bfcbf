//! The yardstick of `tools/bench`: a 512-byte ping-pong between two processes, with nothing in between. Prints the
//! median of several runs, in microseconds a round trip.
//!
//! - `ping_pong` by a Unix socket;
//! - `ping_pong tcp` by a TCP connection on the loopback interface, without Nagle's delay;
//! - `ping_pong spin` by a Unix socket whose ends never sleep: they ask again until there is something to read.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

const SIZE: usize = 512;
const ROUNDS: u32 = 5_000;
const RUNS: usize = 5;

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => ping("unix", UnixStream::pair()?),
        ["spin"] => ping("spin", UnixStream::pair()?),
        ["tcp"] => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let theirs = TcpStream::connect(listener.local_addr()?)?;
            let ours = listener.accept()?.0;
            ours.set_nodelay(true)?;
            theirs.set_nodelay(true)?;
            ping("tcp", (ours, theirs))
        }
        ["pong", way] => pong(way),
        _ => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "usage: ping_pong [tcp|spin]",
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

fn ping<S: Stream>(way: &str, (mut ours, theirs): (S, S)) -> io::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["pong", way])
        .stdin(Stdio::from(theirs.into()))
        .spawn()?;
    if way == "spin" {
        ours.never_sleep()?;
    }
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| trip(&mut ours))
        .collect::<io::Result<_>>()?;
    drop(ours);
    child.wait()?;
    times.sort_by(f64::total_cmp);
    println!("{:.3}", times[RUNS / 2]);
    Ok(())
}

/// Microseconds a round trip.
fn trip(stream: &mut (impl Read + Write)) -> io::Result<f64> {
    let mut bytes = [1; SIZE];
    let start = Instant::now();
    for _ in 0..ROUNDS {
        stream.write_all(&bytes)?;
        read(stream, &mut bytes)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS))
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
fn pong(way: &str) -> io::Result<()> {
    // SAFETY: stdin was given to this process for this and is used by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(0) };
    if way == "tcp" {
        return echo(&mut TcpStream::from(fd));
    }
    let mut stream = UnixStream::from(fd);
    if way == "spin" {
        stream.never_sleep()?;
    }
    echo(&mut stream)
}

/// Until the other end closes.
fn echo(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut bytes = [0; SIZE];
    while read(stream, &mut bytes).is_ok() {
        stream.write_all(&bytes)?;
    }
    Ok(())
}
