use super::tail::TAIL;
use super::*;
use std::process::Command;

/// As a program does it: the test harness captures `print!`.
fn say(text: &str) {
    write(stdout(), text.as_bytes()).unwrap();
}

#[test]
fn a_task_gets_what_it_has_written_and_nothing_else() {
    let output = Output::begin(Keep::Tasks).unwrap();
    say("before");
    output.task_begins(1);
    say("out\n");
    write(stderr(), b"err\n").unwrap();
    let child = Command::new("sh")
        .args(["-c", "echo child; echo more >&2"])
        .status();
    assert!(child.unwrap().success());
    say("\u{e9}\n");
    write(stdout(), b"\xff").unwrap();
    assert_eq!(output.take(), "out\nerr\nchild\nmore\n\u{e9}\n\u{fffd}");
    say("between");
    output.task_begins(1);
    assert_eq!(output.take(), "");
}

/// The streams of this process go to these files while `f` runs.
fn with_streams_at(out: &OwnedFd, err: &OwnedFd, f: impl FnOnce()) {
    let saved = Saved::now();
    dup2_stdout(out).unwrap();
    dup2_stderr(err).unwrap();
    f();
    drop(saved);
}

/// All that is in a pipe, which nobody waits for.
fn contents(pipe: &OwnedFd) -> String {
    fcntl_setfl(pipe, OFlags::NONBLOCK).unwrap();
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(n @ 1..) = read(pipe, &mut bytes) {
        all.extend_from_slice(&bytes[..n]);
    }
    String::from_utf8(all).unwrap()
}

#[test]
fn what_is_shown_is_there_when_its_task_is_over_and_bears_its_number() {
    let (shown, to) = pipe().unwrap();
    with_streams_at(&to, &to, || {
        let output = Output::begin(Keep::Shown).unwrap();
        say("before\n");
        for i in 1..100 {
            output.task_begins(i);
            say("out\n");
            write(stderr(), b"err\n").unwrap();
            say("the end");
            assert_eq!(output.take(), "");
            let before = if i == 1 { "before\n" } else { "" };
            let lines = ["out", "err", "the end"].map(|line| format!("[task {i}] {line}\n"));
            assert_eq!(contents(&shown), before.to_owned() + &lines.concat());
        }
        say("between\n");
        output.task_begins(0);
        assert_eq!(contents(&shown), "between\n");
        say("a task without a number\n");
        drop(output);
        say("after\n");
    });
    assert_eq!(contents(&shown), "a task without a number\nafter\n");
}

#[test]
fn two_streams_are_shown_apart_and_half_a_line_after_a_while() {
    let (out, to_out) = pipe().unwrap();
    let (err, to_err) = pipe().unwrap();
    with_streams_at(&to_out, &to_err, || {
        let output = Output::begin(Keep::Shown).unwrap();
        output.task_begins(7);
        say("how many? ");
        write(stderr(), b"to stderr\n").unwrap();
        // It comes while the task goes on.
        poll(&mut [PollFd::new(&out, PollFlags::IN)], None).unwrap();
        assert_eq!(contents(&out), "[task 7] how many? ");
        say("5\n");
        output.take();
        assert_eq!(contents(&out), "5\n");
        assert_eq!(contents(&err), "[task 7] to stderr\n");
    });
}

#[test]
fn a_task_goes_on_writing_though_nobody_reads_where_it_is_shown() {
    let (shown, to) = pipe().unwrap();
    with_streams_at(&to, &to, || {
        let output = Output::begin(Keep::Shown).unwrap();
        output.task_begins(1);
        drop(shown);
        say(&"a line\n".repeat(64 * 1024));
        output.take();
    });
}

#[test]
fn somebody_else_who_floods_the_streams_does_not_keep_a_task_from_its_end() {
    let null = OwnedFd::from(File::options().write(true).open("/dev/null").unwrap());
    for keep in [Keep::Shown, Keep::Tasks] {
        with_streams_at(&null, &null, || {
            let output = Output::begin(keep).unwrap();
            output.task_begins(1);
            let mut child = Command::new("yes").spawn().unwrap();
            for _ in 0..20 {
                output.take();
                output.task_begins(2);
            }
            child.kill().unwrap();
            child.wait().unwrap();
        });
    }
}

#[test]
fn a_flood_is_kept_in_part_and_does_not_stop_the_task_that_writes_it() {
    let output = Output::begin(Keep::Tasks).unwrap();
    output.task_begins(1);
    let line = "x".repeat(1023) + "\n";
    say("first\n");
    for _ in 0..64 * 1024 {
        say(&line);
    }
    say("last\n");
    let text = output.take();
    assert!(text.starts_with("first\nxxx"));
    assert!(text.ends_with("xxx\nlast\n"));
    let dropped = 64 * 1024 * 1024 + 11 - 2 * HALF;
    assert!(text.contains(&format!("\n[... {dropped} bytes are left out here ...]\n")));
    assert!(text.len() < 2 * HALF + 100);
}

#[test]
fn a_task_that_redirects_its_streams_does_so_for_itself_only() {
    let output = Output::begin(Keep::Tasks).unwrap();
    output.task_begins(1);
    say("something");
    let null = File::options().write(true).open("/dev/null").unwrap();
    dup2_stdout(&null).unwrap();
    say("gone");
    assert_eq!(output.take(), "something");
    output.task_begins(1);
    say("again");
    assert_eq!(output.take(), "again");
}

#[test]
#[cfg(target_os = "linux")]
fn of_what_is_discarded_the_end_can_be_read_by_others() {
    let output = Output::begin(Keep::LastWords).unwrap();
    let words = || {
        // The thread stands still, as after the end of this process.
        let _stopped = output.shared.sink.lock();
        let mut all = Vec::new();
        for fd in output.last_words() {
            let path = format!("/proc/self/fd/{fd}");
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            let pipe = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
            let mut bytes = [0; 64 * 1024];
            while let Ok(n @ 1..) = read(&pipe, &mut bytes) {
                all.extend_from_slice(&bytes[..n]);
            }
        }
        String::from_utf8(all).unwrap()
    };
    output.task_begins(1);
    say("not this");
    write(stderr(), b"this").unwrap();
    assert_eq!(words(), "this");
    let both = output.capacity + capacity(&output.shared.tail.writer).unwrap();
    let lines = both / 5;
    for i in 0..=lines {
        write(stderr(), format!("line {i}\n").as_bytes()).unwrap();
    }
    let end = words();
    assert!(end.ends_with(&format!("line {}\nline {lines}\n", lines - 1)));
    assert!(end.len() >= TAIL / 2, "{}", end.len());
    assert!(end.len() <= both);
    assert_eq!(output.take(), "");
    // The next task begins anew.
    write(stderr(), b"old").unwrap();
    output.begin_anew(0);
    assert_eq!(words(), "");
}

#[test]
fn it_ends_though_somebody_else_reads_the_pipe() {
    for _ in 0..100 {
        let output = Output::begin(Keep::LastWords).unwrap();
        // As the host does when the daemon has left.
        let reader = rustix::io::fcntl_dupfd_cloexec(&output.shared.readers[0], 0).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let other = {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let _ = read(&reader, &mut [0; 64]);
                }
            })
        };
        drop(output);
        stop.store(true, Ordering::SeqCst);
        other.join().unwrap();
    }
}

#[test]
fn the_streams_are_put_back_while_others_still_hold_the_pipe() {
    let before = fstat(stdout()).unwrap().st_ino;
    let output = Output::begin(Keep::Tasks).unwrap();
    assert_ne!(fstat(stdout()).unwrap().st_ino, before);
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    drop(output);
    assert_eq!(fstat(stdout()).unwrap().st_ino, before);
    child.kill().unwrap();
    child.wait().unwrap();
}
