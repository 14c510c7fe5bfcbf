//! What `tools/bench` holds its rows of large vectors against: the least that has to be done for
//! 100 MB by sealed memory, in one process and with nothing else. Prints milliseconds (the medians of
//! several runs) for a vector that is sent and summed, for one that is made and sent, and for one that
//! is sent, changed a little, and sent back.

#[cfg(target_os = "linux")]
mod linux {
    use std::hint::black_box;
    use std::io;
    use std::time::Instant;

    const NUMBERS: usize = 12_500_000;
    const SIZE: usize = 8 * NUMBERS;
    const RUNS: usize = 5;

    pub(super) fn main() -> io::Result<()> {
        let numbers: Vec<f64> = (0..NUMBERS).map(|i| i as f64).collect();
        // SAFETY: as many bytes, and any bytes are.
        let bytes = unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), SIZE) };
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
        let numbers = unsafe { std::slice::from_raw_parts(memory.0.cast::<f64>(), NUMBERS) };
        black_box(numbers.iter().sum::<f64>());
        Ok(())
    }

    fn made_and_sent(_: &[u8]) -> io::Result<()> {
        let mut made = Vec::with_capacity(SIZE);
        made.resize(black_box(SIZE), black_box(0u8));
        Mapping::of(&made).map(drop)
    }

    fn changed(bytes: &[u8]) -> io::Result<()> {
        let memory = Mapping::of(bytes)?;
        // SAFETY: it is mapped, for writing, too.
        unsafe { memory.0.write(1) };
        Ok(())
    }

    struct Mapping(*mut u8);

    impl Mapping {
        /// Of a new memfd with these bytes, which is closed.
        fn of(mut bytes: &[u8]) -> io::Result<Mapping> {
            use rustix::mm::{MapFlags, ProtFlags, mmap};
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let fd = rustix::fs::memfd_create(c"floor", flags)?;
            while !bytes.is_empty() {
                let n = rustix::io::write(&fd, bytes)?;
                bytes = &bytes[n..];
            }
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping, where the system likes it.
            let start = unsafe {
                mmap(
                    std::ptr::null_mut(),
                    SIZE,
                    access,
                    MapFlags::PRIVATE,
                    &fd,
                    0,
                )?
            };
            Ok(Mapping(start.cast()))
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: it is ours, and nobody uses it any more.
            let _ = unsafe { rustix::mm::munmap(self.0.cast(), SIZE) };
        }
    }
}

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
