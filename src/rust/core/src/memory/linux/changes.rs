//! What a segment has changed since its memfd was made: runs of bytes, in a memfd of their own.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::segment::{Draft, Held, refused};

/// Changes are sent only if they are at most 1 in `FEW` bytes of the segment, and at most `MOST_RUNS` runs.
pub(super) const FEW: usize = 8;
pub(super) const MOST_RUNS: usize = 4096;

/// Where a segment differs from its memfd. A second memfd holds the table of runs (start and end of each as `u64`,
/// closed by two zeros), and then the bytes of all runs.
pub(super) struct Changes {
    pub(super) held: Held,
    /// In order, and without overlap.
    runs: Vec<Range<usize>>,
}

/// Bytes of a run's beginning and end.
const RUN: usize = 16;

impl Changes {
    /// Copies these runs of a mapping's memory.
    pub(super) fn copy_of(memory: &[u8], runs: Vec<Range<usize>>) -> Option<Changes> {
        let mut draft = Draft::new()?;
        let number = |n: usize| (n as u64).to_le_bytes();
        let table = runs
            .iter()
            .flat_map(|run| [run.start, run.end])
            .chain([0, 0]);
        let table: Vec<u8> = table.flat_map(number).collect();
        draft.write(&table).ok()?;
        for run in &runs {
            draft.write(&memory[run.clone()]).ok()?;
        }
        let held = draft.sealed()?;
        Some(Changes { held, runs })
    }

    /// Checks changes that a peer has passed for a segment of `len` bytes.
    pub(super) fn receive(fd: OwnedFd, len: usize) -> io::Result<Changes> {
        let misfit = || refused("changes that do not fit a segment");
        let held = Held::receive(fd, usize::MAX)?;
        let mut table = vec![0; held.len.min((MOST_RUNS + 1) * RUN)];
        File::from(held.fd.try_clone()?).read_exact_at(&mut table, 0)?;
        let number = |bytes: &[u8]| {
            let bytes = bytes.try_into().expect("half of a run");
            usize::try_from(u64::from_le_bytes(bytes))
        };
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut size = RUN;
        let mut table = table.chunks_exact(RUN);
        loop {
            let Some(run) = table.next() else {
                return misfit();
            };
            let (start, end) = run.split_at(RUN / 2);
            let (Ok(start), Ok(end)) = (number(start), number(end)) else {
                return misfit();
            };
            if end == 0 {
                break;
            }
            let after = runs.last().map_or(0, |run| run.end);
            if start < after || end <= start || end > len {
                return misfit();
            }
            size += RUN + (end - start);
            runs.push(start..end);
        }
        if size != held.len {
            return misfit();
        }
        Ok(Changes { held, runs })
    }

    pub(super) fn apply(&self, memory: &mut [u8]) -> io::Result<()> {
        let file = self.held.fd.as_fd();
        let mut from = ((self.runs.len() + 1) * RUN) as u64;
        for run in &self.runs {
            let mut rest = &mut memory[run.clone()];
            while !rest.is_empty() {
                match rustix::io::pread(file, &mut *rest, from) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => {
                        from += n as u64;
                        rest = &mut rest[n..];
                    }
                    Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Segment;
    use super::super::segment::tests::{content, large};
    use super::*;

    #[test]
    fn changes_that_do_not_fit_are_refused() {
        let (_, segment) = large();
        let attempt = |runs: &[(u64, u64)], bytes: usize| {
            let mut table: Vec<u8> = runs
                .iter()
                .flat_map(|r| [r.0, r.1])
                .flat_map(u64::to_le_bytes)
                .collect();
            table.resize(table.len() + bytes, 0);
            let changes = Segment::copy_of(&table).unwrap();
            let fd = |segment: &Segment| segment.base.fd.try_clone().unwrap();
            Segment::receive(fd(&segment), segment.len(), Some(fd(&changes)))
                .map(|s| content(&s).len())
        };
        let end = segment.len() as u64;
        assert_eq!(
            attempt(&[(0, 4), (end - 4, end), (0, 0)], 8).unwrap(),
            segment.len()
        );
        for (runs, bytes) in [
            (&[(0, 4), (0, 0)][..], 5),
            (&[(0, 4), (0, 0)], 3),
            (&[(end - 4, end + 1), (0, 0)], 5),
            (&[(4, 8), (0, 4), (0, 0)], 8),
            (&[(0, 8), (4, 12), (0, 0)], 16),
            (&[(8, 4), (0, 0)], 4),
            (&[(u64::MAX - 3, u64::MAX), (0, 0)], 3),
            (&[(0, 4)], 0),
            (&[(0, 4)], 4),
        ] {
            assert!(attempt(runs, bytes).is_err(), "{runs:?} {bytes}");
        }
        let many: Vec<_> = (0..=MOST_RUNS as u64)
            .map(|i| (2 * i, 2 * i + 1))
            .chain([(0, 0)])
            .collect();
        assert!(attempt(&many, many.len() - 1).is_err());
    }
}
