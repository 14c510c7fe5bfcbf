//! Why a daemon was lost: told by whoever knows, kept for the tasks that were lost with it.

#[cfg_attr(not(target_os = "linux"), path = "loss/no_words.rs")]
mod words;

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

pub(crate) use words::LastWords;

/// Time to wait for the status of a process that the host has started and whose connection has ended. It is known
/// within milliseconds, unless the process lives on without its connection.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

/// A name of a machine is at most this long, in bytes. What a daemon says beyond that is dropped.
const MOST_OF_A_NAME: usize = 255;

/// Of what a daemon wrote last, this many lines are told, and this many bytes.
const MOST_LINES: usize = 20;
const MOST_OF_WORDS: usize = 2000;

/// The reason, as long as there is none.
const UNKNOWN: &str = "was lost: its connection ended";

/// A daemon, as far as it is known, and why it was lost.
#[derive(Debug, Default)]
pub struct Loss {
    state: Mutex<State>,
    told: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Number of its connection; 0 if it never connected.
    number: u32,
    /// It was not even started.
    not_launched: bool,
    /// All of the sentence, by a relay whose daemon it was.
    sentence: String,
    /// Its machine and its process there; empty and 0 if it has not said so.
    host: String,
    pid: u32,
    /// The first reason that was given, such as "was killed by signal 9".
    reason: Option<String>,
    /// The host has started the process, and will hear how it ends.
    awaited: bool,
    /// Where its last words will be read.
    pipes: Option<LastWords>,
    /// Its last words.
    words: String,
}

impl Loss {
    pub(crate) fn new(number: u32, host: String, pid: u32) -> Loss {
        let state = State {
            number,
            host,
            pid,
            ..State::default()
        };
        Loss {
            state: Mutex::new(state),
            told: Condvar::new(),
        }
    }

    /// A daemon elsewhere that was not launched.
    pub(crate) fn of_launch() -> Loss {
        let state = State {
            not_launched: true,
            ..State::default()
        };
        Loss {
            state: Mutex::new(state),
            told: Condvar::new(),
        }
    }

    /// A daemon of a relay, which says this of it. It may say anything; `None` if it says nothing.
    pub(crate) fn behind_relay(said: &[u8]) -> Option<Loss> {
        let sentence = last_lines(said);
        (!sentence.is_empty()).then(|| {
            let state = State {
                sentence,
                ..State::default()
            };
            Loss {
                state: Mutex::new(state),
                told: Condvar::new(),
            }
        })
    }

    /// A daemon across the network says where it is. It may say anything.
    pub(crate) fn is_at(&self, host: &str, pid: u32) {
        let mut name = String::new();
        for c in host.chars().filter(|c| !c.is_control()) {
            if name.len() + c.len_utf8() > MOST_OF_A_NAME {
                break;
            }
            name.push(c);
        }
        let mut state = self.state.lock();
        (state.host, state.pid) = (name, pid);
    }

    /// The host has started the process, and will [`tell`](Self::tell) how it ended.
    pub(crate) fn will_be_told(&self) {
        self.state.lock().awaited = true;
    }

    /// Where the daemon's last words are to be read.
    pub(crate) fn will_say(&self, words: LastWords) {
        self.state.lock().pipes = Some(words);
    }

    /// The daemon is lost: reads its last words.
    pub(crate) fn hear_last_words(&self) {
        let mut state = self.state.lock();
        if let Some(pipes) = state.pipes.take() {
            state.words = pipes.read();
        }
    }

    /// The process has ended, having written this to the stderr that the host reads.
    pub(crate) fn has_written(&self, said: &str) {
        let said = words::of_stderr(said);
        let words = &mut self.state.lock().words;
        if words.is_empty() {
            *words = said;
        }
    }

    /// What has happened to the daemon, as the rest of a sentence. The first call counts.
    pub(crate) fn tell(&self, reason: impl Into<String>) {
        let mut state = self.state.lock();
        state.awaited = false;
        state.reason.get_or_insert_with(|| reason.into());
        self.told.notify_all();
    }

    /// What follows from it, to be read after the reason.
    pub(crate) fn add(&self, consequence: &str) {
        let mut state = self.state.lock();
        let reason = state.reason.get_or_insert_with(|| UNKNOWN.into());
        reason.push_str(consequence);
    }

    /// Its machine; empty if it has not said so.
    pub fn host(&self) -> String {
        self.state.lock().host.clone()
    }

    /// Its process there; 0 if it has not said so.
    pub fn pid(&self) -> u32 {
        self.state.lock().pid
    }

    /// Why it was lost, or that this is not known.
    pub(crate) fn reason_or_unknown(&self) -> String {
        self.reason().unwrap_or_else(|| UNKNOWN.into())
    }

    /// Why it was lost, as far as that is known now.
    pub fn reason(&self) -> Option<String> {
        self.state.lock().reason.clone()
    }
}

/// A sentence: `daemon 2 (pid 4711 on node) was killed by signal 9`. Waits for half a second at most until the status
/// of a process that the host has started is known.
impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let until = Instant::now() + STATUS_TIMEOUT;
        let mut state = self.state.lock();
        while state.awaited {
            // Once is enough: many tasks may have been lost with it.
            if self.told.wait_until(&mut state, until).timed_out() {
                state.awaited = false;
            }
        }
        if !state.sentence.is_empty() {
            return write!(f, "behind a relay, {}", state.sentence);
        }
        match state.number {
            0 if state.not_launched => f.write_str("the last launch of a daemon")?,
            0 => f.write_str("its process")?,
            number => write!(f, "daemon {number}")?,
        }
        match (state.pid, state.host.as_str()) {
            (0, _) => {}
            (pid, "") => write!(f, " (pid {pid})")?,
            (pid, host) => write!(f, " (pid {pid} on {host})")?,
        }
        let reason = state.reason.as_deref();
        write!(f, " {}", reason.unwrap_or(UNKNOWN))?;
        match state.words.trim() {
            "" => Ok(()),
            _ => write!(f, ". The last that it wrote:\n{}", state.words),
        }
    }
}

/// The end of what was written, as far as it is told. What would disturb a terminal is left out.
fn last_lines(written: &[u8]) -> String {
    let end = written.len().saturating_sub(MOST_OF_WORDS);
    let text = String::from_utf8_lossy(&written[end..]);
    let text: String = text
        .chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect();
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(MOST_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn it_says_who_was_lost_and_why() {
        let loss = Loss::new(2, String::new(), 0);
        assert_eq!(loss.to_string(), "daemon 2 was lost: its connection ended");
        loss.is_at("a\u{1b}b\n", 7);
        assert_eq!(loss.host(), "ab");
        loss.tell("was killed by signal 9");
        loss.tell("was lost");
        assert_eq!(
            loss.to_string(),
            "daemon 2 (pid 7 on ab) was killed by signal 9"
        );
        loss.add("; no more");
        assert!(loss.to_string().ends_with("signal 9; no more"));
        loss.is_at(&"\u{e9}".repeat(1000), 7);
        assert!(loss.host().len() <= MOST_OF_A_NAME);
        let loss = Loss::of_launch();
        loss.tell("has failed");
        assert_eq!(loss.to_string(), "the last launch of a daemon has failed");
        let loss = Loss::behind_relay(b"daemon 1 was\x1b lost").unwrap();
        assert_eq!(loss.to_string(), "behind a relay, daemon 1 was lost");
        assert!(Loss::behind_relay(b"\n\x07").is_none());
        let loss = Loss::behind_relay(&[b'x'; 1 << 20]).unwrap();
        assert!(loss.to_string().len() < 2 * MOST_OF_WORDS);
    }

    #[test]
    fn a_status_that_is_on_its_way_is_waited_for_but_not_for_ever() {
        let loss = Arc::new(Loss::new(1, "here".into(), 7));
        loss.will_be_told();
        let other = loss.clone();
        let reader = std::thread::spawn(move || other.to_string());
        loss.tell("exited with status 3");
        assert_eq!(
            reader.join().unwrap(),
            "daemon 1 (pid 7 on here) exited with status 3"
        );
        let silent = Loss::new(1, "here".into(), 7);
        silent.will_be_told();
        assert!(silent.to_string().ends_with("its connection ended"));
        assert!(!silent.state.lock().awaited, "it is waited for once");
    }
}
