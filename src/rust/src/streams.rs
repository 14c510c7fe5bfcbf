//! Random number streams of profiles, as values of R's `.Random.seed`.

use extendr_api::prelude::*;
use mirai_core::protocol::Stream;

use crate::error::Result;
use crate::functions::functions;
use crate::mrg32k3a;
use crate::session::with_session;

/// The kind that R puts in front of an L'Ecuyer-CMRG state with its default
/// normal and sample generators: see `?RNGkind`.
const LECUYER: i32 = 10407;

/// The stream that a value of `.Random.seed` is; `None` if it is one of another generator.
pub(crate) fn as_stream(seed: &[i32]) -> Option<Stream> {
    let (kind, stream) = seed.split_first()?;
    Stream::try_from(stream).ok().filter(|_| *kind == LECUYER)
}

/// A stream as a value of `.Random.seed`.
pub(crate) fn random_seed(stream: Stream) -> [i32; 7] {
    let [a, b, c, d, e, f] = stream;
    [LECUYER, a, b, c, d, e, f]
}

/// The code that starts a daemon which has been started `before` times, from the code for the first time: its stream, the
/// last argument, is another part of that. Otherwise it would draw the numbers of its predecessor again.
pub(crate) fn with_part(code: &str, before: u32) -> String {
    const ARGUMENT: &str = "rs=c(";
    let known = || {
        let at = code.rfind(ARGUMENT)? + ARGUMENT.len();
        let length = code[at..].find(')')?;
        let numbers = code[at..at + length].split(',');
        let seed: Vec<i32> = numbers.map(|n| n.parse().ok()).collect::<Option<_>>()?;
        Some((at, length, Stream::try_from(seed.get(1..)?).ok()?))
    };
    match known() {
        // With a seed, tasks have streams and daemons have none.
        None => code.into(),
        Some((at, length, first)) => {
            let stream = (0..before).fold(first, |stream, _| mrg32k3a::next_part(stream));
            let seed = random_seed(stream).map(|n| n.to_string()).join(",");
            format!("{}{seed}{}", &code[..at], &code[at + length..])
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_is_started_again_has_another_part_of_its_stream() {
        let code = "mirai::daemon(\"abstract://rs=c(1)\",rs=c(10407,1,2,3,4,5,6))";
        assert_eq!(with_part(code, 0), code);
        let [a, b, ..] = mrg32k3a::next_part([1, 2, 3, 4, 5, 6]);
        let start = format!("mirai::daemon(\"abstract://rs=c(1)\",rs=c(10407,{a},{b},");
        assert!(with_part(code, 1).starts_with(&start));
        assert_ne!(with_part(code, 1), with_part(code, 2));
        for none in ["mirai::daemon(\"rs=c(\")", "mirai::daemon(\"rs=c(1,2)\")"] {
            assert_eq!(with_part(none, 1), none);
        }
    }
}
