//! The log of tasks and daemons, what is noted beside values, reports, and why daemons were lost.

mod common;

use std::thread;

use common::*;
use mirai_core::dispatcher::{Config, PeerState, TaskState};
use mirai_core::host::Host;
use mirai_core::protocol::Done;
use mirai_core::task::{MOST_REPORTS, Outcome};
use mirai_core::tls::Trust;
use mirai_core::transport::local_url;

/// What is to be seen at a host without daemons, on each kind of link.
fn on_each_link(story: impl Fn(&Host, &str, Option<Trust>) + Sync) {
    let urls = SCHEMES.into_iter().map(any_port).chain([local_url()]);
    thread::scope(|scope| {
        for url in urls {
            scope.spawn(|| {
                let (url, host) = (url, Host::new(Config::default()));
                let (url, trust, _) = listening(&url, &host);
                story(&host, &url, trust);
                host.close(true);
            });
        }
    });
}

#[test]
fn notes_errors_and_reports_come_with_values_on_every_link() {
    on_each_link(|host, url, trust| {
        let mut worker = dial(url, trust);
        let tasks: Vec<_> = (0..3).map(|i| submit(host, vec![i])).collect();
        let task = next(&mut worker);
        for i in 0..3 {
            assert!(worker.report(task.seq, &[i]));
        }
        // What is no task of its any more, or never was one, is nothing.
        assert!(worker.report(task.seq + 100, &[9]));
        assert!(worker.reply_noted(task.seq, b"valuenotes", Done::Value, 5, None));
        let Outcome::Value(content) = outcome(&tasks[0]) else {
            panic!("a value expected");
        };
        assert_eq!(
            (&content.bytes[..], content.notes()),
            (&b"value"[..], Some(&b"notes"[..]))
        );
        let reports = tasks[0].reports();
        let kept: Vec<_> = reports.kept.iter().map(|c| c.bytes.clone()).collect();
        assert_eq!(
            (kept, reports.dropped),
            (vec![vec![0], vec![1], vec![2]], 0)
        );

        let task = next(&mut worker);
        let long = "\u{e9}".repeat(1000);
        assert!(worker.reply_noted(task.seq, b"error", Done::Error, 0, Some(&long)));
        assert_eq!(
            *outcome(&tasks[1]),
            Outcome::Error(b"error".to_vec().into())
        );
        next(&mut worker);
        until(|| {
            let rows = host.task_log(1).rows;
            rows.len() == 1 && rows[0].state == TaskState::Running
        });
        drop(worker);
        assert_eq!(*outcome(&tasks[2]), Outcome::Reset);

        let log = host.task_log(usize::MAX);
        let states: Vec<_> = log.rows.iter().map(|row| row.state).collect();
        assert_eq!(
            states,
            [TaskState::Done, TaskState::Failed, TaskState::Lost]
        );
        let row = &log.rows[0];
        assert_eq!((row.bytes_in, row.bytes_out, row.attempts), (1, Some(5), 1));
        assert!(row.submitted <= row.started.unwrap() && row.started <= row.ended);
        assert!(row.ended.unwrap() <= log.now);
        let error = log.rows[1].error.as_deref().unwrap();
        assert!(long.starts_with(error) && error.len() == 256);

        until(|| host.counts().connections == 0);
        let daemons = host.daemon_log().rows;
        let daemon = &daemons[0];
        assert_eq!(daemons.len(), 1);
        assert_eq!((daemon.row.state, daemon.row.tasks), (PeerState::Lost, 2));
        assert_eq!(
            (daemon.pid, daemon.host.is_empty()),
            (std::process::id(), false)
        );
        assert_eq!(daemon.url, url);
        let loss = tasks[2].loss().unwrap().to_string();
        let me = std::process::id();
        assert!(
            loss.starts_with(&format!("daemon 1 (pid {me} on ")),
            "{loss}"
        );
        assert!(loss.ends_with("its connection ended"), "{loss}");
        assert!(tasks[0].loss().is_none());
    });
}

#[test]
fn more_reports_than_are_kept_drop_the_oldest() {
    on_each_link(|host, url, trust| {
        let mut worker = dial(url, trust);
        let task = submit(host, b"");
        let seq = next(&mut worker).seq;
        let n = MOST_REPORTS + 100;
        for i in 0..n {
            assert!(worker.report(seq, &i.to_le_bytes()));
        }
        assert!(worker.reply(seq, b"", false));
        outcome(&task);
        let reports = task.reports();
        assert_eq!((reports.kept.len(), reports.dropped), (MOST_REPORTS, 100));
        assert_eq!(reports.kept.back().unwrap().bytes, (n - 1).to_le_bytes());
    });
}

#[cfg(unix)]
/// A process that is given a task of its own and ends without a word to the host.
fn alone(script: &str) -> String {
    let host = Host::new(Config::default());
    let program = mirai_core::process::Program {
        path: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        ..mirai_core::process::Program::default()
    };
    let task = task(b"");
    let address = local_url().parse().unwrap();
    host.submit_to_new(task.clone(), None, &address, &program)
        .unwrap();
    assert_eq!(*outcome(&task), Outcome::Reset);
    let said = task.loss().unwrap().to_string();
    host.close(true);
    said
}

#[cfg(unix)]
#[test]
fn a_process_that_ends_before_it_connects_says_why() {
    let said = alone("echo no such thing >&2; exit 3");
    assert!(said.starts_with("its process (pid "), "{said}");
    assert!(
        said.ends_with(" exited with status 3 and said:\nno such thing"),
        "{said}"
    );
    let said = alone("kill -9 $$");
    assert!(said.ends_with(" was killed by signal 9"), "{said}");
}

#[test]
fn a_log_that_is_made_while_tasks_end_has_each_task_once() {
    let host = Host::new(Config::default());
    let address = local_url();
    host.listen(&address.parse().unwrap()).unwrap();
    let daemons: Vec<_> = (0..2).map(|_| echoing(dial(&address, None))).collect();
    let mut tasks = Vec::new();
    for _ in 0..30 {
        tasks.extend((0..500).map(|_| submit(&host, b"x")));
        let rows = host.task_log(usize::MAX).rows;
        assert!(
            rows.iter()
                .map(|row| row.id)
                .eq(tasks.iter().map(|task| task.id()))
        );
    }
    for task in &tasks {
        outcome(task);
    }
    let rows = host.task_log(usize::MAX).rows;
    assert!(rows.iter().all(|row| row.state == TaskState::Done));
    assert_eq!(host.task_log(7).rows, rows[rows.len() - 7..]);
    host.close(true);
    for daemon in daemons {
        daemon.join().unwrap();
    }
}
