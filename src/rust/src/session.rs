//! The registry of compute profiles. Each is a name for a host with its daemons, or for synchronous
//! evaluation in this process.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use bytes::Bytes;
use extendr_ffi::SEXP;
use mirai_core::dispatcher::Config;
use mirai_core::host::{monitor, Host};
use mirai_core::process::Child;
use mirai_core::protocol::Stream;
use mirai_core::task::Task;
use mirai_core::tls::Identity;
use rustc_hash::FxHashMap;

use crate::error::{Error, Result};
use crate::functions::functions;
use crate::{forks, mrg32k3a, r};

/// A compute profile.
pub(crate) struct Profile {
    evaluation: Evaluation,
    /// The next random number stream to hand out.
    stream: Cell<Stream>,
    /// Each task gets a stream, rather than each daemon.
    stream_per_task: bool,
    /// Processes that `daemons()` has started on this machine, until all of them are connected.
    children: RefCell<Vec<Arc<Child>>>,
    /// What the host presents at secure URLs.
    identity: Option<Identity>,
    /// Its tasks have a function `when`: see R/retry.R.
    asks: bool,
}

enum Evaluation {
    Daemons(Host),
    /// In this process, at submission.
    Sync,
}

impl Profile {
    fn new(evaluation: Evaluation, seed: Option<i32>, identity: Option<Identity>) -> Profile {
        Profile {
            evaluation,
            stream: Cell::new(seed.map_or_else(mrg32k3a::from_entropy, mrg32k3a::from_seed)),
            stream_per_task: seed.is_some(),
            children: RefCell::default(),
            identity,
            asks: false,
        }
    }

    /// The same, whose tasks have a function `when` if `asks`.
    pub(crate) fn asking(self, asks: bool) -> Profile {
        Profile { asks, ..self }
    }

    /// A profile whose tasks daemons evaluate. With a seed, each task has a random number stream.
    pub(crate) fn with_host(host: Host, seed: Option<i32>, identity: Option<Identity>) -> Profile {
        Profile::new(Evaluation::Daemons(host), seed, identity)
    }

    /// A profile whose tasks this process evaluates.
    pub(crate) fn sync(seed: Option<i32>) -> Profile {
        Profile::new(Evaluation::Sync, seed, None)
    }

    /// The host; `None` if the profile is synchronous.
    pub(crate) fn host(&self) -> Option<&Host> {
        match &self.evaluation {
            Evaluation::Daemons(host) => Some(host),
            Evaluation::Sync => None,
        }
    }

    /// What the host presents at secure URLs, if it has any.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Processes that `daemons()` has started on this machine, until all of them are connected.
    pub(crate) fn children(&self) -> &RefCell<Vec<Arc<Child>>> {
        &self.children
    }

    /// The stream that [`next_stream`](Self::next_stream) will return.
    pub(crate) fn peek_stream(&self) -> Stream {
        self.stream.get()
    }

    /// Hands out the next stream.
    pub(crate) fn next_stream(&self) -> Stream {
        let next = self.stream.get();
        self.stream.set(mrg32k3a::next(next));
        next
    }

    /// The stream of the next task, if tasks have streams.
    pub(crate) fn task_stream(&self) -> Option<Stream> {
        self.stream_per_task.then(|| self.next_stream())
    }

    /// The stream of the next daemon, if daemons have streams. They have none where tasks have:
    /// the streams of tasks must not depend on the number of daemons.
    pub(crate) fn daemon_stream(&self) -> Option<Stream> {
        (!self.stream_per_task).then(|| self.next_stream())
    }
}

/// What this R session has set up.
pub(crate) struct Session {
    /// The name of the profile that `.compute = NULL` stands for.
    current: String,
    profiles: FxHashMap<String, Profile>,
    /// The host of tasks without daemons, each of which has a process of its own.
    single_use: Option<Host>,
    /// What a daemon is told when it connects: the serialization hooks.
    configuration: Option<Bytes>,
    /// The stream for `nextstream()` where no daemons are set.
    stream: Stream,
}

thread_local! {
    /// Only R's main thread uses it.
    static SESSION: RefCell<Session> = {
        forks::claim_session();
        RefCell::new(Session {
            current: "default".into(),
            profiles: FxHashMap::default(),
            single_use: None,
            configuration: None,
            stream: mrg32k3a::from_entropy(),
        })
    };
}

impl Session {
    /// `name` is a string, or `NULL` for the current profile.
    unsafe fn get(&self, name: SEXP) -> Option<&Profile> {
        // SAFETY: `name` is an R object, by the caller's word, and outlives the look-up.
        unsafe { self.profiles.get(r::as_str(name).unwrap_or(&self.current)) }
    }

    fn hosts(&self) -> impl Iterator<Item = &Host> {
        let hosts = self.profiles.values().filter_map(Profile::host);
        hosts.chain(&self.single_use)
    }

    /// What a daemon is told when it connects.
    pub(crate) fn configuration(&self) -> Option<Bytes> {
        self.configuration.clone()
    }

    /// Sets a profile, in place of one of that name.
    pub(crate) fn open(&mut self, name: &str, profile: Profile) {
        self.close(name, false);
        if let Some(host) = profile.host() {
            monitor::watch(name, host);
        }
        self.profiles.insert(name.into(), profile);
    }

    /// Ends a profile, if there is one; with `end`, also daemons that would outlive it.
    pub(crate) fn close(&mut self, name: &str, end: bool) {
        if let Some(host) = self.profiles.remove(name).as_ref().and_then(Profile::host) {
            monitor::forget(name);
            host.close(end);
        }
    }

    /// Ends all profiles: the session is over.
    pub(crate) fn close_all(&mut self) {
        // First: what monitors see last is the session at work.
        monitor::close();
        self.hosts().for_each(|host| host.close(false));
        self.profiles.clear();
        self.single_use = None;
    }

    /// A profile, if it is set.
    pub(crate) fn find(&self, name: &str) -> Option<&Profile> {
        self.profiles.get(name)
    }

    /// A profile.
    ///
    /// # Errors
    /// It is not set.
    pub(crate) fn profile(&self, name: &str) -> Result<&Profile> {
        self.find(name)
            .ok_or_else(|| Error::no_daemons(format!("no daemons set for profile '{name}'")))
    }

    /// The host of a profile.
    ///
    /// # Errors
    /// The profile is not set, or it is synchronous.
    pub(crate) fn host(&self, name: &str) -> Result<&Host> {
        let host = self.profile(name)?.host();
        host.ok_or_else(|| {
            Error::no_daemons(format!(
                "profile '{name}' is synchronous: it has no daemons"
            ))
        })
    }

    /// The host of tasks without daemons, made when it is first needed. Panics if the system has no
    /// thread or descriptors for it.
    pub(crate) fn single_use_host(&mut self) -> &Host {
        let configuration = self.configuration();
        self.single_use.get_or_insert_with(|| {
            let host = Host::new(Config::default());
            host.configure(configuration);
            host
        })
    }

    /// Hands out the next stream of the session itself.
    pub(crate) fn next_stream(&mut self) -> Stream {
        let next = self.stream;
        self.stream = mrg32k3a::next(next);
        next
    }
}

/// What a profile's name leads to.
pub(crate) enum Found {
    /// A host. `asks`: its tasks have a function `when`.
    Host { asks: bool },
    /// Evaluation in this process.
    Sync,
    /// The profile is not set.
    Nothing,
    /// This process was forked from the session, which owns the profiles.
    Forked,
}

/// Looks up a profile.
///
/// # Safety
/// On R's main thread. `name` is an R object: a string, or `NULL` for the current profile.
pub(crate) unsafe fn find(name: SEXP) -> Found {
    // SAFETY: as this function demands.
    unsafe {
        SESSION.with_borrow(|session| match session.get(name) {
            _ if forks::is_forked() => Found::Forked,
            None => Found::Nothing,
            Some(profile) if profile.host().is_some() => Found::Host { asks: profile.asks },
            Some(_) => Found::Sync,
        })
    }
}

/// Calls `f`, which must not call R, with a profile, or with `None` if it is not set.
///
/// # Safety
/// As [`find`].
pub(crate) unsafe fn with_profile<T>(name: SEXP, f: impl FnOnce(Option<&Profile>) -> T) -> T {
    // SAFETY: as this function demands.
    unsafe { SESSION.with_borrow(|session| f(session.get(name))) }
}

/// Whether daemons of a profile may be on this machine, so that large vectors should go through shared
/// memory. A daemon that is started for a single task is.
///
/// # Safety
/// As [`find`].
pub(crate) unsafe fn passes_memory(name: SEXP) -> bool {
    // SAFETY: as this function demands.
    unsafe {
        with_profile(name, |profile| {
            profile.is_none_or(|p| p.host().is_some_and(Host::passes_memory))
        })
    }
}

/// Calls `f` with the session. `f` must not call R, not even to make an object: R may then run a
/// finalizer, and that may use mirai.
///
/// # Errors
/// This process was forked from the session, or `f` fails.
pub(crate) fn with_session<T>(f: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
    unless_forked(f).unwrap_or_else(|| Err(forks::error()))
}

/// Calls `f` as [`with_session`] does; `None` if this process was forked from the session.
pub(crate) fn unless_forked<T>(f: impl FnOnce(&mut Session) -> T) -> Option<T> {
    SESSION.with_borrow_mut(|session| (!forks::is_forked()).then(|| f(session)))
}

/// Sets what all daemons are told, present and future ones.
pub(crate) fn configure(configuration: Bytes) {
    unless_forked(|session| {
        session.configuration = Some(configuration);
        for host in session.hosts() {
            host.configure(session.configuration());
        }
    });
}

/// Cancels a task, wherever it is, and what nobody else has needed. False if it is too late.
pub(crate) fn cancel(task: &Task) -> bool {
    SESSION
        .with_borrow(|session| !forks::is_forked() && session.hosts().any(|host| host.cancel(task)))
}

/// The name of the profile in which a task waits and no daemon is, nor one of those that this session has started on its
/// way.
pub(crate) fn deserted_profile(task: &Task) -> Option<String> {
    SESSION.with_borrow(|session| {
        let deserted =
            |profile: &Profile| profile.host().is_some_and(|host| host.is_deserted(task));
        let mut profiles = session.profiles.iter();
        profiles
            .find(|(_, profile)| deserted(profile))
            .map(|(name, _)| name.to_string())
    })
}

/// The name of this profile, if it has no daemons, nor one of those that this session has started on its way.
///
/// # Safety
/// As [`find`].
pub(crate) unsafe fn deserted(name: SEXP) -> Option<String> {
    // SAFETY: as this function demands.
    SESSION.with_borrow(|session| unsafe {
        let profile = session.get(name)?;
        profile.host()?.lacks_daemons().then_some(())?;
        let mut profiles = session.profiles.iter();
        profiles
            .find(|(_, other)| std::ptr::eq(*other, profile))
            .map(|(name, _)| name.to_string())
    })
}

/// The name of the profile that `.compute = NULL` stands for.
fn current_profile() -> Result<String> {
    Ok(SESSION.with_borrow(|session| session.current.clone()))
}

/// Makes a profile current and returns the name of the one before.
fn set_current_profile(name: &str) -> Result<String> {
    Ok(SESSION.with_borrow_mut(|session| std::mem::replace(&mut session.current, name.into())))
}

functions! {
    fn current_profile();
    fn set_current_profile(name);
}
