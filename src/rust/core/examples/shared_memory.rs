//! What `tools/bench` holds its rows of large vectors against: the least that has to be done for
//! 100 MB by sealed memory, or for as many bytes as the argument says, in one process and with nothing else. Prints
//! milliseconds (the medians of several runs) for a vector that is sent and summed, for one that is made and sent, and for one
//! that is sent, changed a little, and sent back.

#[cfg(target_os = "linux")]
mod linux {
    use std::hint::black_box;
    use std::io;
    use std::time::Instant;

    const SIZE: usize = 100_000_000;
    const RUNS: usize = 5;

    pub(super) fn main() -> io::Result<()> {
        let size = std::env::args().nth(1).and_then(|arg| arg.parse().ok());
        let numbers: Vec<f64> = (0..size.unwrap_or(SIZE) / 8).map(|i| i as f64).collect();
        // SAFETY: as many bytes, and any bytes are.
        let bytes = unsafe {
            std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(&numbers[..]))
        };
        for what in [sent_and_summed, made_and_sent, changed] {
            let mut times = (0..RUNS)
                .map(|_| {
                    let start = Instant::now();
                    what(bytes)?;
                    Ok(start.elapsed().as_secs_f64() * 1e3)
                })
                .collect::<io::Result<Vec<f64>>>()?;
            times.sort_by(f64::total_cmp);
            println!("{:.1}", times[RUNS / 2]);
        }
        Ok(())
    }

    fn sent_and_summed(bytes: &[u8]) -> io::Result<()> {
        let memory = Mapping::of(bytes)?;
        // SAFETY: so many numbers are mapped, as long as `memory` is.
        let numbers = unsafe { std::slice::from_raw_parts(memory.0.cast::<f64>(), memory.1 / 8) };
        black_box(numbers.iter().sum::<f64>());
        Ok(())
    }

    fn made_and_sent(bytes: &[u8]) -> io::Result<()> {
        let mut made = Vec::with_capacity(bytes.len());
        made.resize(black_box(bytes.len()), black_box(0u8));
        Mapping::of(&made).map(drop)
    }

    fn changed(bytes: &[u8]) -> io::Result<()> {
        let memory = Mapping::of(bytes)?;
        // SAFETY: it is mapped, for writing, too.
        unsafe { memory.0.write(1) };
        Ok(())
    }

    struct Mapping(*mut u8, usize);

    impl Mapping {
        /// Of a new memfd with these bytes, which is closed.
        fn of(mut bytes: &[u8]) -> io::Result<Mapping> {
            use rustix::mm::{MapFlags, ProtFlags, mmap};
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let fd = rustix::fs::memfd_create(c"floor", flags)?;
            let size = bytes.len();
            while !bytes.is_empty() {
                let n = rustix::io::write(&fd, bytes)?;
                bytes = &bytes[n..];
            }
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping, where the system likes it.
            let start = unsafe {
                mmap(
                    std::ptr::null_mut(),
                    size,
                    access,
                    MapFlags::PRIVATE,
                    &fd,
                    0,
                )?
            };
            Ok(Mapping(start.cast(), size))
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: it is ours, and nobody uses it any more.
            let _ = unsafe { rustix::mm::munmap(self.0.cast(), self.1) };
        }
    }
}

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
