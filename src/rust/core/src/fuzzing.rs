//! Doors for the fuzzers of `core/fuzz` to what is private. Compiled by cargo-fuzz alone (`cfg(fuzzing)`).
//!
//! Each function takes bytes as a hostile peer would send them. It may refuse them in any way but a panic, a hang, or
//! memory that the bytes do not pay for.

use std::sync::OnceLock;

use crate::memory::Layout;
use crate::protocol::{FrameError, FrameReader, Limits, ToDaemon, ToHost, websocket};
use crate::tls::{Identity, Trust};

/// What a host reads of a daemon: a hello, then replies; and a daemon of its host. The first byte says in pieces of how
/// many bytes the rest arrives.
pub fn frames(data: &[u8]) {
    let Some((size, data)) = data.split_first() else {
        return;
    };
    let size = usize::from(*size).max(1);
    let mut hello = FrameReader::<ToHost>::new(Limits::HANDSHAKE);
    let mut at = 0;
    while at < data.len() {
        let piece = &data[at..data.len().min(at + size)];
        let Ok(fed) = hello.feed(piece) else {
            break;
        };
        at += fed;
        match hello.next() {
            Ok(None) => {}
            Ok(Some(_)) => {
                let link = hello.into_stage::<ToHost>(Limits::LINK);
                read_all(link, &data[at..], size, next_with_holes);
                break;
            }
            Err(_) => break,
        }
    }
    let link = || FrameReader::<ToDaemon>::new(Limits::LINK);
    read_all(link(), data, size, next_with_holes);
    read_all(link(), data, size, next_arrival);
}

/// Feeds a reader; `next` takes out what is whole, and says whether there was something.
fn read_all<M: serde::de::DeserializeOwned>(
    mut reader: FrameReader<M>,
    data: &[u8],
    size: usize,
    next: impl Fn(&mut FrameReader<M>) -> Result<bool, FrameError>,
) {
    let mut at = 0;
    while at < data.len() {
        let piece = &data[at..data.len().min(at + size)];
        let Ok(fed) = reader.feed(piece) else {
            return;
        };
        at += fed;
        loop {
            match next(&mut reader) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return,
            }
        }
    }
}

/// On a link that passes descriptors.
fn next_with_holes<M: serde::de::DeserializeOwned>(
    reader: &mut FrameReader<M>,
) -> Result<bool, FrameError> {
    let Some((_, body, holes)) = reader.next_with_holes()? else {
        return Ok(false);
    };
    assert!(holes.iter().all(|hole| hole.at <= body.len() as u64));
    // As a daemon looks for the values that are attached to a task.
    let places = holes
        .iter()
        .map(|hole| (hole.at as usize, hole.len as usize));
    let attached = body.first().map_or(0, |byte| u32::from(*byte) % 8);
    let _ = Layout::new(&body, places, attached);
    Ok(true)
}

/// Across the network, where large parts are among the bytes of a body.
fn next_arrival<M: serde::de::DeserializeOwned>(
    reader: &mut FrameReader<M>,
) -> Result<bool, FrameError> {
    let Some((_, arrival)) = reader.next_arrival()? else {
        return Ok(false);
    };
    let len = arrival.bytes.len();
    assert!(arrival.apart.iter().all(|(at, _)| *at <= len));
    Ok(true)
}

/// What a host reads at a WebSocket URL: a request for an upgrade, then a client's frames.
pub fn websocket(data: &[u8]) {
    websocket::fuzz(data);
}

/// What either end reads on a TLS connection.
pub fn tls(data: &[u8]) {
    static ENDS: OnceLock<(Identity, Trust)> = OnceLock::new();
    let (identity, trust) = ENDS.get_or_init(|| {
        let identity =
            Identity::single_use(&["127.0.0.1".into()]).expect("an identity can be made");
        let trust = Trust::from_pem(identity.for_daemons()).expect("and believed");
        (identity, trust)
    });
    crate::tls::engine::fuzz(data, identity, trust);
}

/// What a user, or a launch command from elsewhere, gives as URL and as certificates.
pub fn texts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(address) = text.parse::<crate::transport::Address>() {
        let again = address.to_string();
        assert_eq!(again.parse().ok(), Some(address), "{again}");
    }
    let _ = Trust::from_pem(text);
}
