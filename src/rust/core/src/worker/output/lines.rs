//! Lines that name the task that has written them: bytes go in as they come, whole lines come out, each after the name.

use std::time::{Duration, Instant};

/// A line that is not complete is shown after this time, so that a question or a progress bar is seen.
const PATIENCE: Duration = Duration::from_millis(100);

/// At most this many bytes are shown at once, unless the first line is longer. Into a pipe, that many are written as one,
/// and lines of several daemons do not mix (POSIX has 512 as the least `PIPE_BUF`; Linux has 4096).
const AT_ONCE: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

/// What was written to one stream, cut into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// What each line begins with.
    name: String,
    /// The line that is not complete, but for what was shown of it.
    held: Vec<u8>,
    /// When its first byte came.
    since: Option<Instant>,
    /// The beginning of the line was shown, and no end of line after it.
    open: bool,
    /// The last that was shown is a carriage return.
    returned: bool,
    /// What is to be shown next.
    ready: Vec<u8>,
}

impl Lines {
    /// Lines from now on are those of the task with this number; 0: of none.
    pub(super) fn belong_to(&mut self, number: u32) {
        self.name = match number {
            0 => String::new(),
            _ => format!("[task {number}] "),
        };
    }

    /// Takes bytes, and shows the lines that they complete.
    pub(super) fn add(&mut self, bytes: &[u8], now: Instant, mut show: impl FnMut(&[u8])) {
        for part in bytes.split_inclusive(|b| is_end(*b)) {
            self.held.extend_from_slice(part);
            self.since.get_or_insert(now);
            if self.held.ends_with(b"\n")
                || self.held.ends_with(b"\r")
                || self.held.len() >= AT_ONCE
            {
                self.make_ready(&mut show);
            }
        }
        self.show_ready(&mut show);
    }

    /// When [`show_held`](Self::show_held) shall be called, unless the line is complete before.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + PATIENCE)
    }

    /// Whether nothing is held, and no line is open.
    pub(super) fn are_over(&self) -> bool {
        self.held.is_empty() && !self.open
    }

    /// Shows what there is of a line that is not complete.
    pub(super) fn show_held(&mut self, mut show: impl FnMut(&[u8])) {
        self.make_ready(&mut show);
        self.show_ready(&mut show);
    }

    /// Whoever has written this is done: its last line ends here.
    pub(super) fn finish(&mut self, mut show: impl FnMut(&[u8])) {
        self.make_ready(&mut show);
        if self.open {
            self.held.push(b'\n');
            self.make_ready(&mut show);
        }
        self.show_ready(&mut show);
    }

    fn make_ready(&mut self, show: &mut impl FnMut(&[u8])) {
        self.since = None;
        let Some(last) = self.held.last().copied() else {
            return;
        };
        // A carriage return alone, and what ends the line that it has ended, are no lines.
        let alone = self.held == b"\r" || self.held == b"\n" && self.returned;
        let name = if self.open || alone { "" } else { &*self.name };
        if self.ready.len() + name.len() + self.held.len() > AT_ONCE {
            show_all(&mut self.ready, show);
        }
        self.ready.extend_from_slice(name.as_bytes());
        self.ready.append(&mut self.held);
        self.open = !is_end(last);
        self.returned = last == b'\r';
    }

    fn show_ready(&mut self, show: &mut impl FnMut(&[u8])) {
        show_all(&mut self.ready, show);
    }
}

fn show_all(ready: &mut Vec<u8>, show: &mut impl FnMut(&[u8])) {
    if !ready.is_empty() {
        show(ready);
        ready.clear();
    }
}

fn is_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a task, what was shown of them so far, and a clock that stands still.
    struct Shown {
        lines: Lines,
        all: Vec<Vec<u8>>,
        now: Instant,
    }

    impl Shown {
        fn of(number: u32) -> Shown {
            let mut lines = Lines::default();
            lines.belong_to(number);
            Shown {
                lines,
                all: Vec::new(),
                now: Instant::now(),
            }
        }

        fn add(&mut self, text: &str) -> &mut Shown {
            let all = &mut self.all;
            self.lines
                .add(text.as_bytes(), self.now, |bytes| all.push(bytes.into()));
            self
        }

        fn wait(&mut self) -> &mut Shown {
            let all = &mut self.all;
            self.lines.show_held(|bytes| all.push(bytes.into()));
            self
        }

        fn finish(&mut self) -> &mut Shown {
            let all = &mut self.all;
            self.lines.finish(|bytes| all.push(bytes.into()));
            self
        }

        fn take(&mut self) -> String {
            String::from_utf8(std::mem::take(&mut self.all).concat()).unwrap()
        }
    }

    #[test]
    fn each_line_begins_with_the_name_of_its_task() {
        let mut shown = Shown::of(12);
        assert_eq!(
            shown.add("one\ntwo\n\nthree").take(),
            "[task 12] one\n[task 12] two\n[task 12] \n"
        );
        assert_eq!(shown.lines.due(), Some(shown.now + PATIENCE));
        assert_eq!(
            shown.add(" and four\n").take(),
            "[task 12] three and four\n"
        );
        assert_eq!(shown.lines.due(), None);
        assert_eq!(Shown::of(0).add("nobody's\n").take(), "nobody's\n");
    }

    #[test]
    fn a_line_that_is_not_complete_is_shown_after_a_while_and_named_once() {
        let mut shown = Shown::of(1);
        assert_eq!(shown.add("how").wait().take(), "[task 1] how");
        assert_eq!(shown.lines.due(), None);
        assert_eq!(shown.add(" many").wait().add("? 5\n6").take(), " many? 5\n");
        assert_eq!(shown.finish().take(), "[task 1] 6\n");
        assert_eq!(shown.finish().take(), "");
        shown.add("7").wait().lines.belong_to(2);
        assert_eq!(shown.finish().take(), "[task 1] 7\n");
        assert_eq!(shown.add("8\n").take(), "[task 2] 8\n");
    }

    #[test]
    fn a_progress_bar_that_returns_to_the_start_of_its_line_is_named_each_time() {
        let mut shown = Shown::of(1);
        assert_eq!(shown.add("\r10 %").wait().take(), "\r[task 1] 10 %");
        assert_eq!(shown.add("\r20 %").wait().take(), "\r[task 1] 20 %");
        assert_eq!(
            shown.add("\n30 %\r40 %\r\n").take(),
            "\n[task 1] 30 %\r[task 1] 40 %\r\n"
        );
    }

    #[test]
    fn lines_are_shown_together_as_far_as_they_stay_together() {
        let mut shown = Shown::of(1);
        let line = "x".repeat(AT_ONCE / 4) + "\n";
        shown.add(&line.repeat(9));
        assert!(
            shown
                .all
                .iter()
                .all(|part| part.len() <= AT_ONCE && part.ends_with(b"\n"))
        );
        assert_eq!(shown.all.len(), 3);
        let mut shown = Shown::of(1);
        shown.add(&"y".repeat(10 * AT_ONCE));
        assert!(shown.lines.held.len() < 10 * AT_ONCE);
        assert_eq!(
            shown.finish().take(),
            format!("[task 1] {}\n", "y".repeat(10 * AT_ONCE))
        );
    }
}
