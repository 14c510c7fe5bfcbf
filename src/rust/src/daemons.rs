//! Opening and closing compute profiles, and what R shows of them.

use std::time::Duration;

use extendr_api::prelude::*;
use mirai_core::dispatcher::{Config, Policy};
use mirai_core::host::Host;
use mirai_core::tls::Identity;

use crate::error::{Error, Result};
use crate::functions::functions;
use crate::promises;
use crate::rules;
use crate::session::{unless_forked, with_session, Profile};
use crate::tls::identity;
use crate::urls::addresses;

/// Sets up a profile that listens at `urls`, in place of one of that name.
/// `memory` is in megabytes, `patience` in milliseconds; `retry` is a value of `retry_rules()`. Returns the URLs.
#[allow(clippy::too_many_arguments)] // those of `daemons()`
fn open_profile(
    name: &str,
    urls: Vec<String>,
    round_robin: bool,
    retry: List,
    memory: Nullable<f64>,
    seed: Nullable<i32>,
    patience: f64,
    tls: Nullable<Vec<String>>,
    pass: Nullable<String>,
) -> Result<Vec<String>> {
    let addresses = addresses(&urls).map_err(Error::connect)?;
    let identity = identity(&addresses, tls.into_option(), pass.into_option())?;
    let patience = Duration::from_secs_f64(patience / 1000.0);
    let numbers = retry.dollar("retry").and_then(Vec::<f64>::try_from)?;
    let asks = !retry.dollar("when")?.is_null();
    let retry = rules::retry(&numbers);
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
            ..Config::default()
        };
        let host = Host::with_patience(config, patience);
        host.configure(session.configuration());
        if let Err((address, e)) = host.listen_all(&addresses, identity.as_ref()) {
            host.close(false);
            return Err(Error::connect(format!("cannot listen at '{address}': {e}")));
        }
        let urls = host.urls();
        let profile = Profile::with_host(host, seed.into_option(), identity);
        session.open(name, profile.asking(asks));
        Ok(urls)
    })
}

/// Whether this process looks again for a moment before it sleeps, and the daemons that connect from now on.
fn allow_spinning(allowed: bool) -> Result<()> {
    mirai_core::sys::allow_spinning(allowed);
    Ok(())
}

/// The certificates by which daemons recognise a profile's host; `NULL` if it has no secure URL.
fn profile_tls(name: &str) -> Result<Nullable<String>> {
    with_session(|session| {
        let identity = session.find(name).and_then(Profile::identity);
        let text = identity.map(Identity::for_daemons);
        Ok(text.map_or(Nullable::Null, |text| Nullable::NotNull(text.into())))
    })
}

/// Has a profile listen at a fresh URL in place of its `i`th, from 1, and returns it. `NULL` if the URL
/// has no part that can be changed, or is in use and not `force`.
fn renew_url(name: &str, i: i32, force: bool) -> Result<Nullable<String>> {
    with_session(|session| {
        let host = session.host(name)?;
        let Some(endpoint) = usize::try_from(i).ok().and_then(|i| i.checked_sub(1)) else {
            return Ok(Nullable::Null);
        };
        let url = host
            .renew(endpoint, force)
            .map_err(|e| Error::connect(format!("a new URL cannot be listened at: {e}")))?;
        Ok(url.map_or(Nullable::Null, Nullable::NotNull))
    })
}

/// Sets up a profile that evaluates in this process.
fn open_sync(name: &str, seed: Nullable<i32>) -> Result<()> {
    with_session(|session| {
        session.open(name, Profile::sync(seed.into_option()));
        Ok(())
    })
}

/// Ends a profile; with `end`, also daemons that would outlive it.
fn close_profile(name: &str, end: bool) -> Result<()> {
    with_session(|session| {
        session.close(name, end);
        Ok(())
    })
}

/// At its end a session waits this long for checkpoints to be on disk.
const LAST_WRITES: std::time::Duration = std::time::Duration::from_secs(10);

/// Ends all profiles: the session is over.
fn close_session() -> Result<()> {
    unless_forked(|session| {
        promises::close();
        session.close_all();
    });
    if !crate::forks::is_forked() {
        mirai_core::checkpoint::finish(LAST_WRITES);
    }
    Ok(())
}

/// Why a profile has no daemon, as a sentence, if the last one was given up; otherwise `NULL`.
fn why_none_is_left(name: &str) -> Result<Nullable<String>> {
    with_session(|session| {
        let host = session.find(name).and_then(Profile::host);
        let why = host.and_then(Host::why_none_is_left);
        Ok(why.map_or(Nullable::Null, Nullable::NotNull))
    })
}

/// The state of a profile, for `status()`; `NULL` if it is not set.
fn profile_status(name: &str) -> Result<Robj> {
    let found = with_session(|session| {
        let profile = session.find(name);
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

functions! {
    fn allow_spinning(allowed);
    fn open_profile(name, urls, round_robin, retry, memory, seed, patience, tls, pass);
    fn open_sync(name, seed);
    fn close_profile(name, end);
    fn close_session();
    fn profile_tls(name);
    fn renew_url(name, i, force);
    fn profile_status(name);
    fn why_none_is_left(name);
}
