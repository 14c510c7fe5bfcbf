//! Compute profiles: each a name for a host with its daemons, or for synchronous
//! evaluation. They belong to the session, that is, to one process: a process
//! forked from it (by `parallel::mclapply()`, say) shares its sockets but not its
//! threads and is told so.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use extendr_api::prelude::*;
use extendr_api::Result;
use extendr_ffi::{SEXP, VECTOR_ELT};
use mirai_core::dispatcher::{Config, Policy};
use mirai_core::host::Host;
use mirai_core::process::{self, Child, Owner, Program};
use mirai_core::protocol::Stream;
use mirai_core::relay::{self, Ended, Relay};
use mirai_core::stream;
use mirai_core::sys::{Bell, Waited};
use mirai_core::task::Task;
use mirai_core::tls::{Identity, TlsError, Trust};
use mirai_core::transport::{self, Address};
use mirai_core::worker::{AutoExit, DialError, Options, Worker};
use rustc_hash::FxHashMap;

use crate::events::Events;
use crate::{promises, r};

/// The kind that R puts in front of an L'Ecuyer-CMRG state with its default
/// normal and sample generators: see `?RNGkind`.
pub const LECUYER: i32 = 10407;

/// What a forked process is told.
pub static FORKED: &str = "mirai cannot be used in a process that was forked from an R session: \
                                    use it in the session itself";

pub struct Profile {
    evaluation: Evaluation,
    /// The next stream to hand out.
    stream: Cell<Stream>,
    /// Hand one to each task, rather than to each daemon.
    stream_per_task: bool,
    /// What `daemons()` has launched on this machine, until all are connected.
    children: RefCell<Vec<Arc<Child>>>,
    /// For secure URLs.
    identity: Option<Identity>,
}

enum Evaluation {
    Daemons(Host),
    /// In this process, at submission.
    Sync,
}

impl Profile {
    fn new(evaluation: Evaluation, seed: Option<i32>) -> Profile {
        Profile {
            evaluation,
            stream: Cell::new(seed.map_or_else(stream::from_entropy, stream::from_seed)),
            stream_per_task: seed.is_some(),
            children: RefCell::default(),
            identity: None,
        }
    }

    pub fn host(&self) -> Option<&Host> {
        match &self.evaluation {
            Evaluation::Daemons(host) => Some(host),
            Evaluation::Sync => None,
        }
    }

    fn next_stream(&self) -> Stream {
        let next = self.stream.get();
        self.stream.set(stream::next(next));
        next
    }

    /// The stream of the next task, if tasks have streams.
    pub fn task_stream(&self) -> Option<Stream> {
        self.stream_per_task.then(|| self.next_stream())
    }

    /// The stream of the next daemon, if daemons have streams: those of tasks are
    /// not to depend on how many daemons there are.
    fn daemon_stream(&self) -> Option<Stream> {
        (!self.stream_per_task).then(|| self.next_stream())
    }
}

struct Session {
    owner: Owner,
    current: String,
    profiles: FxHashMap<String, Profile>,
    /// For tasks without daemons: each has a process of its own.
    single_use: Option<Host>,
    /// What daemons are told upon connecting.
    configuration: Option<Bytes>,
    /// For `nextstream()` where no daemons are set.
    stream: Stream,
}

thread_local! {
    /// R's main thread is the only one that gets here.
    static SESSION: RefCell<Session> = RefCell::new(Session {
        owner: Owner::this(),
        current: "default".into(),
        profiles: FxHashMap::default(),
        single_use: None,
        configuration: None,
        stream: stream::from_entropy(),
    });
}

/// What a profile's name leads to.
pub enum Found {
    Host,
    Sync,
    Nothing,
    /// This process is not the one that owns the profiles.
    Forked,
}

impl Session {
    fn is_forked(&self) -> bool {
        self.owner.has_forked()
    }

    /// `name` is a string, or `NULL` for the current profile.
    unsafe fn get(&self, name: SEXP) -> Option<&Profile> {
        self.profiles.get(r::as_str(name).unwrap_or(&self.current))
    }
}

/// The process that has loaded the package.
static LOADED: std::sync::OnceLock<Owner> = std::sync::OnceLock::new();

/// To be called when the package is loaded.
pub fn loaded() {
    LOADED.get_or_init(Owner::this);
}

/// Whether this process is forked from one that had loaded the package. So are those that the fork server
/// makes, which do not count.
pub fn is_forked_from_session() -> bool {
    LOADED.get().is_some_and(|owner| owner.has_forked())
}

/// Whether this process is forked from the session, whose threads it does not have.
pub fn is_forked() -> bool {
    SESSION.with_borrow(Session::is_forked)
}

/// # Safety
/// `name` is an R object.
pub unsafe fn find(name: SEXP) -> Found {
    SESSION.with_borrow(|session| match session.get(name) {
        _ if session.is_forked() => Found::Forked,
        None => Found::Nothing,
        Some(profile) if profile.host().is_some() => Found::Host,
        Some(_) => Found::Sync,
    })
}

/// Runs `f`, which may not call R, with a profile.
///
/// # Safety
/// `name` is an R object.
pub unsafe fn with_current<T>(name: SEXP, f: impl FnOnce(Option<&Profile>) -> T) -> T {
    SESSION.with_borrow(|session| f(session.get(name)))
}

/// Whether daemons of a profile may be on this machine: large vectors had better be shared with
/// them. So it is with those that are started for a single task.
///
/// # Safety
/// `name` is an R object.
pub unsafe fn passes_memory(name: SEXP) -> bool {
    with_current(name, |profile| {
        profile.is_none_or(|p| p.host().is_some_and(Host::passes_memory))
    })
}

/// Tells all daemons, present and future, what they should know.
pub fn configure(configuration: Bytes) {
    SESSION.with_borrow_mut(|session| {
        if session.is_forked() {
            return;
        }
        session.configuration = Some(configuration);
        let hosts = session.profiles.values().filter_map(Profile::host);
        for host in hosts.chain(&session.single_use) {
            host.configure(session.configuration.clone());
        }
    });
}

/// Cancels a task, wherever it is.
pub fn cancel(task: &Task) -> bool {
    SESSION.with_borrow(|session| {
        let hosts = session.profiles.values().filter_map(Profile::host);
        !session.is_forked()
            && hosts
                .chain(&session.single_use)
                .any(|host| host.cancel(task))
    })
}

/// Starts a process for one task. `launch` is what `single_use()` returns: the
/// program, its arguments, the URL that it will dial, and the code for a fork, or `NULL`.
///
/// # Safety
/// `launch` is a list of character vectors, of which the last may be `NULL`.
pub unsafe fn submit_to_new(
    task: Arc<Task>,
    timeout: Option<Duration>,
    launch: SEXP,
) -> std::result::Result<(), String> {
    let text = |i| r::as_str(VECTOR_ELT(launch, i)).unwrap_or_default();
    let args = VECTOR_ELT(launch, 1);
    let args = (0..extendr_ffi::Rf_xlength(args)).map(|i| {
        std::ffi::CStr::from_ptr(extendr_ffi::R_CHAR(extendr_ffi::STRING_ELT(args, i)))
            .to_string_lossy()
            .into_owned()
    });
    let code = r::as_str(VECTOR_ELT(launch, 3));
    let program = program(text(0), args, false, code);
    let address: Address = text(2).parse().map_err(|e| format!("{e}"))?;
    let failed =
        |e: &dyn std::fmt::Display| format!("a process for the task cannot be started: {e}");
    SESSION.with_borrow_mut(|session| {
        if session.single_use.is_none() {
            // The first thread and descriptors of ours, which may not be had. extendr
            // catches panics, but it is not what has called us.
            let host = std::panic::catch_unwind(|| Host::new(Config::default()))
                .map_err(|panic| failed(&panic.downcast_ref::<String>().map_or("", |x| x)))?;
            host.configure(session.configuration.clone());
            session.single_use = Some(host);
        }
        let host = session.single_use.as_ref().expect("set above");
        host.submit_to_new(task, timeout, &address, &program)
            .map_err(|e| failed(&e))
    })
}

fn program(
    path: &str,
    args: impl Iterator<Item = String>,
    output: bool,
    code: Option<&str>,
) -> Program {
    // Set by R CMD check; it names a file in a directory that need not be the child's.
    let env = vec![(OsString::from("R_TESTS"), None)];
    Program {
        path: path.into(),
        args: args.map(OsString::from).collect(),
        env,
        output,
        code: code.map(String::from),
        attached: true,
    }
}

/// Runs `f` on the session, unless this process is forked from its owner. `f` may not
/// call R, not even to make an object: R may then run a finalizer, and that use mirai.
fn with_session<T>(f: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
    SESSION.with_borrow_mut(|session| {
        if session.is_forked() {
            return Err(forked());
        }
        f(session)
    })
}

/// [`FORKED`], for functions that return their errors.
pub fn forked() -> Error {
    r::error(FORKED)
}

fn other(text: impl std::fmt::Display) -> Error {
    r::error(text)
}

impl Session {
    fn open(&mut self, name: &str, profile: Profile) {
        self.close(name, false);
        self.profiles.insert(name.into(), profile);
    }

    fn close(&mut self, name: &str, end: bool) {
        if let Some(host) = self.profiles.remove(name).as_ref().and_then(Profile::host) {
            host.close(end);
        }
    }

    fn profile(&self, name: &str) -> Result<&Profile> {
        self.profiles
            .get(name)
            .ok_or_else(|| other(format!("no daemons set for profile '{name}'")))
    }

    fn host(&self, name: &str) -> Result<&Host> {
        let host = self.profile(name)?.host();
        host.ok_or_else(|| {
            other(format!(
                "profile '{name}' is synchronous: it has no daemons"
            ))
        })
    }
}

fn addresses(urls: &[String]) -> Result<Vec<Address>> {
    urls.iter()
        .map(|url| url.parse::<Address>().map_err(other))
        .collect()
}

fn texts(addresses: &[Address]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// One URL made into `n`.
#[extendr]
fn extend_url(url: &str, n: i32) -> Result<Vec<String>> {
    let address: Address = url.parse().map_err(other)?;
    let all = address.extend(n as usize).map_err(other)?;
    Ok(texts(&all))
}

/// URLs with a random part at the end of each one's path, if it has any.
#[extendr]
fn with_tokens(urls: Vec<String>) -> Result<Vec<String>> {
    let addresses = addresses(&urls)?;
    let with_token = |address: &Address| address.with_path(&mirai_core::sys::token());
    Ok(texts(&addresses.iter().map(with_token).collect::<Vec<_>>()))
}

/// What the host presents at secure URLs: from `tls`, a file or a certificate chain and a
/// key, or else made for these URLs.
fn identity(
    addresses: &[Address],
    tls: Option<Vec<String>>,
    pass: Option<String>,
) -> Result<Option<Identity>> {
    let pass = pass.as_deref();
    let given = |e| other(format!("'tls' cannot be used: {e}"));
    match tls.as_deref() {
        Some([file]) if !file.contains("-----BEGIN") => Identity::from_file(file.as_ref(), pass)
            .map(Some)
            .map_err(given),
        Some([both]) => Identity::from_pem(both, "", pass).map(Some).map_err(given),
        Some([chain, key, ..]) => Identity::from_pem(chain, key, pass)
            .map(Some)
            .map_err(given),
        _ if addresses.iter().any(Address::is_secure) => Host::single_use_identity(addresses)
            .map(Some)
            .map_err(|e| other(format!("a certificate cannot be made: {e}"))),
        _ => Ok(None),
    }
}

/// Sets up a profile that listens at `urls`, in place of what it was before.
/// `memory` is in megabytes, `patience` in milliseconds. Returns the URLs.
#[extendr]
#[allow(clippy::too_many_arguments)] // those of `daemons()`
fn open_profile(
    name: &str,
    urls: Vec<String>,
    round_robin: bool,
    retry: bool,
    memory: Nullable<f64>,
    seed: Nullable<i32>,
    patience: f64,
    tls: Nullable<Vec<String>>,
    pass: Nullable<String>,
) -> Result<Vec<String>> {
    let addresses = addresses(&urls)?;
    let identity = identity(&addresses, tls.into_option(), pass.into_option())?;
    let patience = Duration::from_secs_f64(patience / 1000.0);
    with_session(|session| {
        session.close(name, false);
        let config = Config {
            policy: if round_robin {
                Policy::RoundRobin
            } else {
                Policy::Queue
            },
            retry,
            capacity: memory.into_option().map(|mb| (mb * 1e6) as u64),
        };
        let host = Host::with_patience(config, patience);
        host.configure(session.configuration.clone());
        if let Err((address, e)) = host.listen_all(&addresses, identity.as_ref()) {
            host.close(false);
            return Err(other(format!("cannot listen at '{address}': {e}")));
        }
        let urls = host.urls();
        let profile = Profile {
            identity,
            ..Profile::new(Evaluation::Daemons(host), seed.into_option())
        };
        session.open(name, profile);
        Ok(urls)
    })
}

/// What daemons are given to know a profile's host by; `NULL` if there is no need.
#[extendr]
fn profile_tls(name: &str) -> Result<Nullable<String>> {
    with_session(|session| {
        let identity = session.profiles.get(name).and_then(|p| p.identity.as_ref());
        let text = identity.map(Identity::for_daemons);
        Ok(text.map_or(Nullable::Null, |text| Nullable::NotNull(text.into())))
    })
}

/// Has a profile listen at a fresh URL in place of its `i`th, from 1. `NULL` if it cannot be
/// changed, or shall not.
#[extendr]
fn renew_url(name: &str, i: i32, force: bool) -> Result<Nullable<String>> {
    with_session(|session| {
        let host = session.host(name)?;
        let Some(endpoint) = usize::try_from(i).ok().and_then(|i| i.checked_sub(1)) else {
            return Ok(Nullable::Null);
        };
        let url = host
            .renew(endpoint, force)
            .map_err(|e| other(format!("a new URL cannot be listened at: {e}")))?;
        Ok(url.map_or(Nullable::Null, Nullable::NotNull))
    })
}

/// Passes tasks of the host at `url` on to the daemons of a profile until that host is gone.
/// `tls` is how to know it. `FALSE` if interrupted.
#[extendr]
fn relay(name: &str, url: &str, tls: Nullable<String>, asyncdial: bool) -> Result<bool> {
    let below = with_session(|session| session.host(name).cloned())?;
    let address: Address = url.parse().map_err(other)?;
    let trust = tls.into_option().map(|text| trust(&text)).transpose();
    let trust = trust.map_err(|e| other(format!("'tls_host' cannot be used: {e}")))?;
    let options = Options {
        // It sees for itself that the host is gone.
        autoexit: AutoExit::AfterTask,
        asyncdial,
        insist: false,
        tempdir: String::new(),
        interruptible: true,
        slots: relay::SLOTS,
        trust,
    };
    let relay = Relay::new(below);
    let dialled = Worker::dial(&address, &options, relay.clone(), None, r::interrupted);
    let mut worker = match dialled {
        Ok(worker) => worker,
        Err(DialError::Interrupted) => return Ok(false),
        Err(e) => return Err(other(e)),
    };
    match relay.run(&mut worker, r::interrupted) {
        Ended::Lost { .. } => Ok(true),
        Ended::Interrupted => {
            worker.leave();
            Ok(false)
        }
    }
}

/// How a daemon knows its host: certificates, or the name of a file with them.
pub fn trust(text: &str) -> std::result::Result<Trust, TlsError> {
    if text.contains("-----BEGIN") {
        Trust::from_pem(text)
    } else {
        Trust::from_file(text.as_ref())
    }
}

/// The name of this machine.
#[extendr]
fn node_name() -> String {
    mirai_core::sys::node_name()
}

/// Sets up a profile that evaluates in this process.
#[extendr]
fn open_sync(name: &str, seed: Nullable<i32>) -> Result<()> {
    with_session(|session| {
        session.open(name, Profile::new(Evaluation::Sync, seed.into_option()));
        Ok(())
    })
}

/// Ends a profile; with `end`, also daemons that would outlive it.
#[extendr]
fn close_profile(name: &str, end: bool) -> Result<()> {
    with_session(|session| {
        session.close(name, end);
        Ok(())
    })
}

/// Ends all profiles: the session is over.
#[extendr]
fn close_session() {
    SESSION.with_borrow_mut(|session| {
        if !session.is_forked() {
            promises::close();
            for profile in session.profiles.values() {
                profile.host().inspect(|host| host.close(false));
            }
            session.profiles.clear();
            session.single_use.take().inspect(|host| host.close(false));
        }
    });
}

/// Starts the fork server, a program that calls `serve_forks` on its stdin. `FALSE` if that
/// cannot be done.
#[extendr]
fn start_fork_server(path: &str, args: Vec<String>) -> Result<bool> {
    with_session(|_| {
        #[cfg(target_os = "linux")]
        let started = {
            let program = program(path, args.into_iter(), false, None);
            process::fork::start_server(&program).is_ok()
        };
        #[cfg(not(target_os = "linux"))]
        let started = false;
        Ok(started)
    })
}

/// Whether there is a fork server.
#[extendr]
fn has_fork_server() -> bool {
    #[cfg(target_os = "linux")]
    return process::fork::is_running();
    #[cfg(not(target_os = "linux"))]
    return false;
}

/// Starts a program that will dial one of the profile's URLs, or another host's if no daemons are
/// set for the profile. `code` is for a fork; `NULL` if only the program itself will do. With
/// `awaited`, `wait_connected()` will see whether it fails.
#[extendr]
fn launch(
    name: &str,
    path: &str,
    args: Vec<String>,
    output: bool,
    code: Nullable<String>,
    awaited: bool,
) -> Result<()> {
    let program = program(
        path,
        args.into_iter(),
        output,
        code.into_option().as_deref(),
    );
    let failed = |e| other(format!("'{path}' cannot be started: {e}"));
    with_session(|session| {
        let Some(profile) = session.profiles.get(name) else {
            // A daemon of a host elsewhere may outlive this session, also before it has connected.
            let program = Program {
                attached: false,
                ..program
            };
            process::start(&program, |_| {}).map_err(failed)?;
            return Ok(());
        };
        let child = session.host(name)?.launch(&program).map_err(failed)?;
        if awaited {
            profile.children.borrow_mut().push(child);
        }
        Ok(())
    })
}

/// Waits until `n` daemons have connected since the profile was set up. `TRUE`
/// then, `FALSE` if R has something to do before: call `serve_events`. If one of the processes
/// launched has ended before, what there is to say about it.
#[extendr]
fn wait_connected(name: &str, n: i32) -> Result<Robj> {
    let waited = with_session(|session| {
        let profile = session.profile(name)?;
        let host = session.host(name)?;
        let children = profile.children.borrow();
        let connected = || host.counts().cumulative >= n as u64;
        let failed = || children.iter().position(|c| c.exit().is_some());
        let waited = Bell::get().wait(None, Events::new(), || connected() || failed().is_some());
        if waited == Waited::Interrupted {
            return Ok(std::result::Result::Ok(false));
        }
        if connected() {
            drop(children);
            profile.children.borrow_mut().clear();
            return Ok(std::result::Result::Ok(true));
        }
        let i = failed().unwrap_or_default();
        let how = children[i]
            .exit()
            .map(|exit| exit.to_string())
            .unwrap_or_default();
        let said = children[i].stderr();
        let said = if said.trim().is_empty() {
            "(it wrote nothing to stderr)"
        } else {
            said.trim()
        };
        Ok(Err(format!(
            "daemon {} could not start ({how}):\n{said}",
            i + 1
        )))
    })?;
    Ok(waited.map_or_else(Robj::from, Robj::from))
}

/// What there is to know of a profile; `NULL` if it is not set.
#[extendr]
fn profile_status(name: &str) -> Result<Robj> {
    let found = with_session(|session| {
        let profile = session.profiles.get(name);
        Ok(profile.map(|p| p.host().map(|h| (h.status(), h.config().policy))))
    })?;
    let (status, policy) = match found {
        None => return Ok(().into()),
        Some(None) => return Ok(list!(sync = true).into()),
        Some(Some(found)) => found,
    };
    let counts = status.counts;
    let column = |f: &dyn Fn(&mirai_core::dispatcher::EndpointCounts) -> i32| -> Vec<i32> {
        status.endpoints.iter().map(|e| f(&e.counts)).collect()
    };
    let urls: Vec<&str> = status.endpoints.iter().map(|e| e.url.as_str()).collect();
    Ok(list!(
        sync = false,
        round_robin = policy == Policy::RoundRobin,
        urls = urls,
        online = column(&|c| c.online as i32),
        instance = column(&|c| c.instance),
        assigned = column(&|c| c.assigned as i32),
        complete = column(&|c| c.complete as i32),
        connections = counts.connections as i32,
        cumulative = counts.cumulative as i32,
        tasks = [
            counts.awaiting as i32,
            counts.executing as i32,
            counts.completed as i32
        ],
        memory = [
            counts.queued as f64 / 1e6,
            counts.peak as f64 / 1e6,
            status.capacity.map_or(f64::INFINITY, |c| c as f64 / 1e6)
        ]
    )
    .into())
}

/// The profile's next stream, as a value of `.Random.seed`.
#[extendr]
fn next_stream(name: &str) -> Result<Vec<i32>> {
    with_session(|session| {
        let next = match session.profiles.get(name) {
            Some(profile) => profile.next_stream(),
            None => {
                let next = session.stream;
                session.stream = stream::next(next);
                next
            }
        };
        Ok(std::iter::once(LECUYER).chain(next).collect())
    })
}

/// The stream that `next_stream()` would return.
#[extendr]
fn peek_stream(name: &str) -> Result<Vec<i32>> {
    with_session(|session| {
        let next = session.profile(name)?.stream.get();
        Ok(std::iter::once(LECUYER).chain(next).collect())
    })
}

/// The stream for the next task of a profile, or `NULL`.
#[extendr]
fn task_stream(name: &str) -> Result<Robj> {
    with_session(|session| Ok(session.profile(name)?.task_stream())).map(random_seed)
}

/// The stream for the next daemon of a profile, or `NULL`.
#[extendr]
fn daemon_stream(name: &str) -> Result<Robj> {
    with_session(|session| Ok(session.profile(name)?.daemon_stream())).map(random_seed)
}

fn random_seed(stream: Option<Stream>) -> Robj {
    stream.map_or_else(
        || ().into(),
        |stream| {
            let seed: Vec<i32> = std::iter::once(LECUYER).chain(stream).collect();
            seed.into()
        },
    )
}

/// The name of the profile that `.compute = NULL` stands for.
#[extendr]
fn current_profile() -> String {
    SESSION.with_borrow(|session| session.current.clone())
}

/// Makes a profile current and returns the name of the one before.
#[extendr]
fn set_current_profile(name: &str) -> String {
    SESSION.with_borrow_mut(|session| std::mem::replace(&mut session.current, name.into()))
}

/// A fresh URL on this machine.
#[extendr]
fn fresh_local_url() -> String {
    transport::local_url()
}

extendr_module! {
    mod profiles;
    fn extend_url;
    fn with_tokens;
    fn profile_tls;
    fn renew_url;
    fn node_name;
    fn relay;
    fn open_profile;
    fn open_sync;
    fn close_profile;
    fn close_session;
    fn start_fork_server;
    fn has_fork_server;
    fn launch;
    fn wait_connected;
    fn profile_status;
    fn next_stream;
    fn peek_stream;
    fn task_stream;
    fn daemon_stream;
    fn current_profile;
    fn set_current_profile;
    fn fresh_local_url;
}
