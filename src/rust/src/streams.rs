//! Random number streams of profiles, as values of R's `.Random.seed`.

use extendr_api::prelude::*;
use mirai_core::protocol::Stream;

use crate::error::Result;
use crate::functions::functions;
use crate::session::with_session;

/// The kind that R puts in front of an L'Ecuyer-CMRG state with its default
/// normal and sample generators: see `?RNGkind`.
const LECUYER: i32 = 10407;

/// A stream as a value of `.Random.seed`.
pub(crate) fn random_seed(stream: Stream) -> [i32; 7] {
    let [a, b, c, d, e, f] = stream;
    [LECUYER, a, b, c, d, e, f]
}

/// The profile's next stream, as a value of `.Random.seed`.
fn next_stream(name: &str) -> Result<Vec<i32>> {
    with_session(|session| {
        let next = match session.find(name) {
            Some(profile) => profile.next_stream(),
            None => session.next_stream(),
        };
        Ok(random_seed(next).to_vec())
    })
}

/// The stream that `next_stream()` would return.
fn peek_stream(name: &str) -> Result<Vec<i32>> {
    with_session(|session| Ok(random_seed(session.profile(name)?.peek_stream()).to_vec()))
}

/// The stream for the next task of a profile, or `NULL`.
fn task_stream(name: &str) -> Result<Robj> {
    with_session(|session| Ok(session.profile(name)?.task_stream())).map(or_null)
}

/// The stream for the next daemon of a profile, or `NULL`.
fn daemon_stream(name: &str) -> Result<Robj> {
    with_session(|session| Ok(session.profile(name)?.daemon_stream())).map(or_null)
}

/// A stream, or `NULL`, as an R object.
fn or_null(stream: Option<Stream>) -> Robj {
    stream.map_or_else(|| ().into(), |stream| random_seed(stream).to_vec().into())
}

functions! {
    fn next_stream(name);
    fn peek_stream(name);
    fn task_stream(name);
    fn daemon_stream(name);
}
