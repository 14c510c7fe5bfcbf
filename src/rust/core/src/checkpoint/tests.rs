use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::{Checkpoint, Hasher, Key, OpenError, Stored, finish, log};
use crate::memory::Content;
use crate::protocol::Kind;
use crate::sys::files::{self, FileExt};
use crate::task::{Outcome, Payload, Task};

struct Owned(Content);

impl AsRef<Content> for Owned {
    fn as_ref(&self) -> &Content {
        &self.0
    }
}

fn open(path: &Path) -> Result<Checkpoint, OpenError> {
    Checkpoint::open(path, &|| false)
}

fn key(i: u64) -> Key {
    let mut hasher = Hasher::default();
    hasher.update(&i.to_le_bytes());
    hasher.finish()
}

fn store(checkpoint: &Checkpoint, i: u64, bytes: &[u8]) {
    checkpoint.store(key(i), Box::new(Owned(bytes.to_vec().into())));
}

fn bytes(stored: Option<Stored>) -> Option<Vec<u8>> {
    Some(stored?.content().unwrap().bytes.clone())
}

/// Drops a checkpoint and waits until it is closed.
fn close(checkpoint: Checkpoint) {
    drop(checkpoint);
    finish(Duration::from_secs(60));
}

fn new_path() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results");
    (dir, path)
}

/// A file with these results, numbered from 0.
fn file_with(values: &[Vec<u8>]) -> (TempDir, PathBuf) {
    let (dir, path) = new_path();
    let checkpoint = open(&path).unwrap();
    for (i, value) in values.iter().enumerate() {
        store(&checkpoint, i as u64, value);
    }
    close(checkpoint);
    (dir, path)
}

#[test]
fn what_was_stored_is_found_by_the_next_that_opens_the_file() {
    // The last ones are larger than what is gathered.
    let values = [vec![1], vec![2; 1000], vec![3; 1 << 20], vec![4; 5 << 20]];
    let (_dir, path) = file_with(&values);
    let checkpoint = open(&path).unwrap();
    for (i, value) in values.iter().enumerate() {
        assert_eq!(bytes(checkpoint.find(&key(i as u64))).as_ref(), Some(value));
    }
    assert!(checkpoint.find(&key(4)).is_none());
    // The later result of a key counts.
    store(&checkpoint, 0, b"new");
    close(checkpoint);
    let checkpoint = open(&path).unwrap();
    assert_eq!(bytes(checkpoint.find(&key(0))).unwrap(), b"new");
}

#[test]
fn notes_are_kept_beside_the_value() {
    let (_dir, path) = new_path();
    let checkpoint = open(&path).unwrap();
    let mut content = Content::from(b"valuenotes".to_vec());
    content.split_notes(5);
    checkpoint.store(key(0), Box::new(Owned(content)));
    close(checkpoint);
    let stored = open(&path).unwrap().find(&key(0)).unwrap();
    let content = stored.content().unwrap();
    assert_eq!(
        (&content.bytes[..], content.notes()),
        (&b"value"[..], Some(&b"notes"[..]))
    );
}

#[test]
fn the_same_process_shares_a_file_and_another_is_refused_until_it_is_closed() {
    let (_dir, path) = new_path();
    let first = open(&path).unwrap();
    let second = open(&path).unwrap();
    drop(first);
    store(&second, 1, b"one");
    // Another open file is what another process has.
    let other = fs::File::open(&path).unwrap();
    assert!(!files::try_lock(&other).unwrap());
    let found = |checkpoint: &Checkpoint| loop {
        if let Some(found) = checkpoint.find(&key(1)) {
            return found;
        }
        std::thread::yield_now();
    };
    let stored = found(&second);
    close(second);
    assert!(files::try_lock(&other).unwrap());
    assert!(matches!(open(&path), Err(OpenError::Locked(pid)) if pid == std::process::id()));
    // It needs no lock.
    assert_eq!(stored.content().unwrap().bytes, b"one");
}

#[test]
fn what_is_no_checkpoint_is_refused_and_left_as_it_is() {
    let (dir, path) = new_path();
    for text in [
        &b"x"[..],
        b"miraickX",
        b"a file that has nothing to do with it",
    ] {
        fs::write(&path, text).unwrap();
        assert!(matches!(open(&path), Err(OpenError::Foreign)));
        assert_eq!(fs::read(&path).unwrap(), text);
    }
    let mut other = log::MAGIC.to_vec();
    other.extend_from_slice(&[99, 0, 0, 0, 0, 0, 0, 0]);
    fs::write(&path, &other).unwrap();
    assert!(matches!(open(&path), Err(OpenError::Version(99))));
    assert_eq!(fs::read(&path).unwrap(), other);
    assert!(matches!(open(dir.path()), Err(OpenError::Foreign)));
    assert!(matches!(
        open(&dir.path().join("no/file")),
        Err(OpenError::Io(_))
    ));
    // What a loss of power leaves of a file that was just made.
    for begun in [&b""[..], b"mir", &[0; 16], &[0; 4]] {
        fs::write(&path, begun).unwrap();
        let checkpoint = open(&path).unwrap();
        store(&checkpoint, 0, b"x");
        close(checkpoint);
        assert_eq!(bytes(open(&path).unwrap().find(&key(0))).unwrap(), b"x");
        finish(Duration::from_secs(60));
    }
}

#[test]
fn a_result_that_is_changed_after_opening_is_not_read() {
    let (_dir, path) = file_with(&[vec![7; 100]]);
    let stored = open(&path).unwrap().find(&key(0)).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"x", log::HEADER + log::HEAD as u64 + 50)
        .unwrap();
    assert!(
        stored
            .content()
            .unwrap_err()
            .to_string()
            .contains("changed")
    );
}

#[test]
fn opening_can_be_stopped_and_changes_nothing() {
    let (_dir, path) = file_with(&[vec![7; 100]]);
    let before = fs::read(&path).unwrap();
    let stopped = Checkpoint::open(&path, &|| true);
    assert!(matches!(stopped, Err(OpenError::Stopped)));
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(open(&path).unwrap().find(&key(0)).is_some());
}

#[test]
fn tasks_leave_their_values_but_no_failures() {
    let (_dir, path) = new_path();
    let checkpoint = open(&path).unwrap();
    let payload = || Payload {
        kind: Kind::Map,
        stream: None,
        constants: None,
        body: Default::default(),
    };
    let value = |text: &[u8]| Content::from(text.to_vec());
    let outcomes = [
        Outcome::Value(value(b"good")),
        Outcome::Error(value(b"bad")),
        Outcome::Reset,
        // Nothing: the daemon had no memory for it.
        Outcome::Value(value(b"")),
    ];
    for (i, outcome) in (0..).zip(outcomes) {
        let task = Arc::new(Task::new(i, payload()));
        task.keep_in(checkpoint.clone(), key(i));
        task.resolve(outcome);
    }
    close(checkpoint);
    let checkpoint = open(&path).unwrap();
    let task = Task::stored(9, checkpoint.find(&key(0)).unwrap());
    assert!(task.is_resolved() && !task.has_failed());
    assert!((1..4).all(|i| checkpoint.find(&key(i)).is_none()));
}

#[cfg(unix)]
#[test]
fn where_nothing_more_can_be_written_the_checkpoint_stops_and_keeps_what_it_has() {
    let (_dir, path) = new_path();
    let checkpoint = open(&path).unwrap();
    // In this process, which runs no other test.
    let limit = libc::rlimit {
        rlim_cur: 10_000,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a valid structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
    // It is sent to the process there, and not only to the thread that writes, which blocks it.
    #[cfg(target_os = "macos")]
    // SAFETY: no handler.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN)
    };
    let status = checkpoint.status();
    for i in 0..20 {
        store(&checkpoint, i, &[1; 1000]);
        while !status.is_written() {
            std::thread::yield_now();
        }
    }
    assert!(status.failure().unwrap().contains("too large"));
    close(checkpoint);
    let checkpoint = open(&path).unwrap();
    let kept = (0..20)
        .filter(|i| checkpoint.find(&key(*i)).is_some())
        .count();
    assert_eq!(kept, 9);
    assert!(checkpoint.status().failure().is_none());
}

#[cfg(target_os = "linux")]
#[test]
fn memory_that_is_being_stored_is_given_to_nobody_until_it_is_written() {
    use crate::memory::{Arrival, Inset, Segment};
    let (_dir, path) = new_path();
    let checkpoint = open(&path).unwrap();
    let segment = Segment::copy_of(&[5; 100_000]).unwrap();
    let arrival = Arrival {
        bytes: b"abcd".to_vec(),
        insets: vec![Inset { at: 2, segment }],
        apart: Vec::new(),
    };
    let task = Arc::new(Task::new(1, None));
    task.keep_in(checkpoint.clone(), key(0));
    assert!(task.settle(Outcome::Value(arrival.into())));
    let Some(Outcome::Value(content)) = task.outcome() else {
        unreachable!()
    };
    assert!(content.pieces[0].give().is_none());
    task.announce();
    close(checkpoint);
    assert!(content.pieces[0].give().is_some());
    let stored = bytes(open(&path).unwrap().find(&key(0))).unwrap();
    assert_eq!(stored, &content.plain()[..]);
}

/// The results in a file.
fn results(path: &Path, n: u64) -> Result<BTreeMap<u64, Vec<u8>>, OpenError> {
    let checkpoint = open(path)?;
    let found = (0..n).filter_map(|i| Some((i, bytes(checkpoint.find(&key(i)))?)));
    let found = found.collect();
    close(checkpoint);
    Ok(found)
}

#[test]
fn a_file_that_is_cut_at_any_byte_has_the_results_before() {
    let values = [vec![1; 5], vec![2; 8]];
    let (_dir, path) = file_with(&values);
    let whole = fs::read(&path).unwrap();
    let mut ends = Vec::new();
    let mut end = log::HEADER as usize;
    for value in &values {
        end += log::HEAD + value.len() + log::TAIL;
        ends.push(end);
    }
    assert_eq!(end, whole.len());
    for cut in 0..=whole.len() {
        let kept: Vec<_> = (0u64..)
            .zip(&values)
            .zip(&ends)
            .filter(|(_, end)| **end <= cut)
            .map(|(result, _)| result)
            .collect();
        // What is left of a block that was not written is often zeros.
        for tail in [&[][..], [&[0][..], &[0; 100], &[0xff; 100]][cut % 3]] {
            // A header that is cut, with something else behind, is no header.
            if cut < log::HEADER as usize && !tail.is_empty() {
                continue;
            }
            fs::write(&path, [&whole[..cut], tail].concat()).unwrap();
            let found = results(&path, 2).unwrap();
            assert!(
                found.iter().map(|(i, v)| (*i, v)).eq(kept.iter().copied()),
                "{cut}"
            );
            assert_eq!(
                fs::metadata(&path).unwrap().len() as usize,
                match kept.len() {
                    0 => log::HEADER as usize,
                    n => ends[n - 1],
                }
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_file_that_is_cut_has_the_results_before(
        sizes in prop::collection::vec(1usize..5000, 1..12),
        cut in 0.0f64..1.0,
    ) {
        let values: Vec<_> = (0..).zip(&sizes).map(|(i, n)| vec![i; *n]).collect();
        let n = values.len() as u64;
        let (_dir, path) = file_with(&values);
        let whole = fs::read(&path).unwrap();
        let cut = (whole.len() as f64 * cut) as usize;
        fs::write(&path, &whole[..cut]).unwrap();
        let kept = results(&path, n).unwrap();
        // As many as end before the cut.
        let ends = values.iter().scan(log::HEADER as usize, |at, value| {
            *at += log::HEAD + value.len() + log::TAIL;
            Some(*at)
        });
        prop_assert_eq!(kept.len(), ends.filter(|end| *end <= cut).count());
        prop_assert!(kept.iter().all(|(i, value)| values[*i as usize] == *value));
        prop_assert!(kept.keys().copied().eq(0..kept.len() as u64));
        // What is stored then is kept, too.
        let checkpoint = open(&path).unwrap();
        store(&checkpoint, n, b"more");
        close(checkpoint);
        prop_assert_eq!(results(&path, n + 1).unwrap().len(), kept.len() + 1);
    }

    #[test]
    fn damage_loses_what_it_hits_and_perhaps_what_follows(
        sizes in prop::collection::vec(1usize..3000, 1..12),
        at in 0.0f64..1.0,
        damage in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        let values: Vec<_> = (0..).zip(&sizes).map(|(i, n)| vec![i; *n]).collect();
        let (_dir, path) = file_with(&values);
        let mut whole = fs::read(&path).unwrap();
        let header = log::HEADER as usize;
        let at = header + ((whole.len() - header) as f64 * at) as usize;
        for (byte, damage) in whole[at..].iter_mut().zip(&damage) {
            *byte = *damage;
        }
        fs::write(&path, &whole).unwrap();
        let kept = results(&path, values.len() as u64).unwrap();
        prop_assert!(kept.iter().all(|(i, value)| values[*i as usize] == *value));
        let mut end = header;
        for (i, value) in (0..).zip(&values) {
            end += log::HEAD + value.len() + log::TAIL;
            prop_assert!(end > at || kept.contains_key(&i));
        }
    }
}
