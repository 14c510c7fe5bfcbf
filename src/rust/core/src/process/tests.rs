use super::*;
use std::time::Duration;

fn shell(script: &str) -> Program {
    Program {
        path: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("GIVEN".into(), Some("value".into()))],
        output: false,
        code: None,
        attached: true,
        ..Program::default()
    }
}

#[test]
fn a_process_says_why_it_died() {
    let (tell, told) = std::sync::mpsc::channel();
    let program = shell("echo oh $GIVEN >&2; exit 3");
    let child = start(&program, move |c| tell.send(c.stderr()).unwrap()).unwrap();
    let said = told.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(said, "oh value\n");
    assert_eq!(child.exit().unwrap().to_string(), "exit status 3");
}

#[test]
fn only_the_end_of_a_long_complaint_is_kept() {
    let (tell, told) = std::sync::mpsc::channel();
    let program = shell("yes | head -c 100000 >&2; echo last >&2; kill -9 $$");
    let child = start(&program, move |c| tell.send(c.stderr()).unwrap()).unwrap();
    let said = told.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(said.ends_with("y\nlast\n"));
    assert_eq!(said.len(), KEPT);
    assert_eq!(child.exit().unwrap().to_string(), "killed by signal 9");
}

#[test]
fn a_forked_process_is_not_the_owner() {
    let owner = Owner::this();
    // SAFETY: the child calls only what may be called after a fork.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as above.
        unsafe { libc::_exit(i32::from(!owner.has_forked() || Owner::this().has_forked())) };
    }
    let mut status = -1;
    // SAFETY: `status` is valid for writing.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert_eq!(status, 0);
    assert!(!owner.has_forked());
}

#[test]
fn a_missing_program_is_an_error() {
    let mut program = shell("");
    program.path = "/nowhere/to/be/found".into();
    assert!(start(&program, |_| {}).is_err());
}
