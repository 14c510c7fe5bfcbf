//! The codec of WebSocket (RFC 6455): a client's request for an upgrade, the answer, and frames.
//! No I/O. The host's end uses it (`transport::nng`), and `tls::cork` follows the frames that either end sends.

use std::io;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ring::digest;
use smallvec::SmallVec;

/// Bytes that a request may have.
const REQUEST: usize = 8 * 1024;

/// What comes of the bytes that begin a connection.
pub(crate) enum Request {
    /// There is more to come.
    Partial,
    /// A complete request: its length in bytes, and the answer to send.
    Whole { length: usize, answer: Answer },
}

pub(crate) enum Answer {
    /// [`switching`] is the text to send, if the path is there.
    Upgrade {
        path: String,
        key: String,
    },
    Refused(&'static str),
}

pub(crate) const NOT_FOUND: &str =
    "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const BAD: &str = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Reads a request.
///
/// # Errors
/// It is too long.
pub(crate) fn request(bytes: &[u8]) -> io::Result<Request> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
    let Some(end) = end.filter(|end| *end < REQUEST) else {
        return if bytes.len() < REQUEST {
            Ok(Request::Partial)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        };
    };
    let answer = match std::str::from_utf8(&bytes[..end]) {
        Ok(text) => answer(text),
        Err(_) => Answer::Refused(BAD),
    };
    Ok(Request::Whole {
        length: end + 4,
        answer,
    })
}

fn answer(text: &str) -> Answer {
    let mut lines = text.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (Some("GET"), Some(path), Some("HTTP/1.1"), None) =
        (first.next(), first.next(), first.next(), first.next())
    else {
        return Answer::Refused(BAD);
    };
    let (mut upgrade, mut connection, mut version, mut key) = (false, false, false, None);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            return Answer::Refused(BAD);
        };
        let value = value.trim();
        let lists = |word: &str| {
            value
                .split(',')
                .any(|v| v.trim().eq_ignore_ascii_case(word))
        };
        match name.to_ascii_lowercase().as_str() {
            "upgrade" => upgrade |= lists("websocket"),
            "connection" => connection |= lists("upgrade"),
            "sec-websocket-version" => version |= value == "13",
            "sec-websocket-key" => key = Some(value),
            // A web page in the user's browser, which may reach what others cannot.
            "origin" => return Answer::Refused(FORBIDDEN),
            _ => {}
        }
    }
    match key {
        Some(key) if upgrade && connection && version => Answer::Upgrade {
            path: path.to_owned(),
            key: key.to_owned(),
        },
        _ => Answer::Refused(BAD),
    }
}

/// The answer to a request that is granted.
pub(crate) fn switching(key: &str) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = BASE64_STANDARD.encode(hash.finish());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

const CONTINUED: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// The longest payload of a control frame.
const CONTROL: usize = 125;

/// The head of a frame that we send.
pub(crate) fn head(length: usize) -> SmallVec<[u8; 16]> {
    frame_head(BINARY, length)
}

/// What the head of a frame says of the bytes after it.
pub(crate) struct Follows {
    /// Bytes of payload.
    pub(crate) payload: u64,
    /// With what the payload is masked: a client's is, a server's is not.
    pub(crate) mask: Option<[u8; 4]>,
}

/// Reads the head of a frame, from either end. `None`: it goes on after `bytes`, which must not hold more than it.
pub(crate) fn read_head(bytes: &[u8]) -> Option<Follows> {
    let [_, second, rest @ ..] = bytes else {
        return None;
    };
    let short = second & 0x7f;
    let extended = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let masked = second & 0x80 != 0;
    if rest.len() < extended + if masked { 4 } else { 0 } {
        return None;
    }
    let (length, mask) = rest.split_at(extended);
    Some(Follows {
        payload: match extended {
            0 => u64::from(short),
            _ => length.iter().fold(0, |n, b| n << 8 | u64::from(*b)),
        },
        mask: masked.then(|| [mask[0], mask[1], mask[2], mask[3]]),
    })
}

/// The answer to a ping.
pub(crate) fn pong(payload: &[u8]) -> SmallVec<[u8; 16]> {
    let mut frame = frame_head(PONG, payload.len());
    frame.extend_from_slice(payload);
    frame
}

fn frame_head(op: u8, length: usize) -> SmallVec<[u8; 16]> {
    let mut head = SmallVec::new();
    head.push(0x80 | op);
    match length {
        n @ ..126 => head.push(n as u8),
        n @ ..65536 => {
            head.push(126);
            head.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            head.push(127);
            head.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    head
}

/// Takes the payload out of a client's frames, as it comes.
#[derive(Default)]
pub(crate) struct Decoder {
    /// Of the frame whose head is under way.
    head: SmallVec<[u8; 14]>,
    op: u8,
    mask: [u8; 4],
    /// Bytes of payload that are still to come.
    left: u64,
    /// Of a control frame.
    control: SmallVec<[u8; 16]>,
}

/// A control frame that calls for something.
pub(crate) enum Heard {
    Ping(SmallVec<[u8; 16]>),
    Close,
}

impl Decoder {
    /// Unmasks `bytes` where they are, hands the payload to `take` piece by piece, and stops
    /// after a control frame that calls for something. Returns the bytes that are done.
    ///
    /// # Errors
    /// It is not what a client may send, or `take`'s.
    pub(crate) fn decode(
        &mut self,
        bytes: &mut [u8],
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<(usize, Option<Heard>)> {
        let mut at = 0;
        while at < bytes.len() {
            if self.left == 0 {
                self.head.push(bytes[at]);
                at += 1;
                if self.begins()? && self.left == 0 {
                    if let Some(heard) = self.control_over() {
                        return Ok((at, Some(heard)));
                    }
                }
                continue;
            }
            let n = (bytes.len() - at).min(usize::try_from(self.left).unwrap_or(usize::MAX));
            let piece = &mut bytes[at..at + n];
            unmask(piece, self.mask);
            self.mask.rotate_left(n % 4);
            self.left -= n as u64;
            at += n;
            if self.op < CLOSE {
                take(piece)?;
            } else {
                self.control.extend_from_slice(piece);
                if self.left == 0 {
                    if let Some(heard) = self.control_over() {
                        return Ok((at, Some(heard)));
                    }
                }
            }
        }
        Ok((at, None))
    }

    /// Whether the head is whole, which is then taken note of.
    fn begins(&mut self) -> io::Result<bool> {
        let [first, second, ..] = self.head[..] else {
            return Ok(false);
        };
        let op = first & 0x0f;
        let known = matches!(op, CONTINUED | BINARY | CLOSE | PING | PONG);
        let whole = first & 0x80 != 0 && usize::from(second & 0x7f) <= CONTROL;
        if first & 0x70 != 0 || second & 0x80 == 0 || !known || (op >= CLOSE && !whole) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(Follows { payload, mask }) = read_head(&self.head) else {
            return Ok(false);
        };
        self.left = payload;
        self.mask = mask.unwrap_or_default();
        self.op = op;
        self.head.clear();
        self.control.clear();
        Ok(true)
    }

    fn control_over(&mut self) -> Option<Heard> {
        match self.op {
            CLOSE => Some(Heard::Close),
            PING => Some(Heard::Ping(std::mem::take(&mut self.control))),
            _ => None,
        }
    }
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        let value = u64::from_ne_bytes([
            word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
        ]);
        word.copy_from_slice(&(value ^ wide).to_ne_bytes());
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// For the fuzzer: a request and frames as a client sends them.
#[cfg(fuzzing)]
pub(crate) fn fuzz(data: &[u8]) {
    let frames = match request(data) {
        Ok(Request::Whole { length, .. }) => &data[length..],
        Ok(Request::Partial) | Err(_) => data,
    };
    // The same bytes whole and one by one give the same payload, or neither is accepted.
    let decode = |size: usize| {
        let mut decoder = Decoder::default();
        let mut payload = Vec::new();
        for piece in frames.chunks(size) {
            let mut piece = piece.to_vec();
            let mut at = 0;
            while at < piece.len() {
                let take = |bytes: &[u8]| {
                    payload.extend_from_slice(bytes);
                    Ok(())
                };
                match decoder.decode(&mut piece[at..], take) {
                    Ok((n, _)) => at += n,
                    Err(_) => return None,
                }
            }
        }
        Some(payload)
    };
    assert_eq!(decode(1), decode(usize::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(op: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut out = frame_head(op, payload.len()).to_vec();
        out[1] |= 0x80;
        out.extend_from_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        out
    }

    #[test]
    fn the_key_of_the_rfc_is_answered_as_there() {
        let text = switching("dGhlIHNhbXBsZSBub25jZQ==");
        assert!(text.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    }

    const ASKED: &str = "GET /a HTTP/1.1\r\nHost: x\r\nupgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\n\r\n";

    #[test]
    fn requests_are_granted_refused_and_limited() {
        let whole = |text: &str| match request(text.as_bytes()) {
            Ok(Request::Whole { length, answer }) => (length, answer),
            _ => panic!("not whole"),
        };
        let (length, granted) = whole(&format!("{ASKED}more"));
        assert_eq!(length, ASKED.len());
        assert!(matches!(granted, Answer::Upgrade { path, key } if path == "/a" && key == "k"));
        for cut in 0..ASKED.len() {
            let part = request(&ASKED.as_bytes()[..cut]);
            assert!(matches!(part, Ok(Request::Partial)));
        }
        for (from, to) in [
            ("GET", "PUT"),
            ("1.1", "1.0"),
            ("13", "12"),
            ("WebSocket", "h2c"),
            (", Upgrade", ""),
            ("Sec-WebSocket-Key: k\r\n", ""),
            ("Host:", "Host"),
        ] {
            let refused = whole(&ASKED.replace(from, to)).1;
            assert!(matches!(refused, Answer::Refused(BAD)), "{from}");
        }
        let page = whole(&ASKED.replace("Host: x", "Origin: https://x")).1;
        assert!(matches!(page, Answer::Refused(FORBIDDEN)));
        let long = ASKED.replace("Host: x", &format!("Host: {}", "x".repeat(REQUEST)));
        assert!(request(long.as_bytes()).is_err());
        assert!(request(&[b'x'; REQUEST]).is_err());
    }

    #[test]
    fn what_a_client_may_not_send_is_refused() {
        let refused = |bytes: &[u8]| Decoder::default().decode(&mut bytes.to_vec(), |_| Ok(()));
        let right = masked(BINARY, b"abc", [1, 2, 3, 4]);
        assert!(refused(&right).is_ok());
        let with = |at: usize, byte: u8| {
            let mut bytes = right.clone();
            bytes[at] = byte;
            refused(&bytes).is_err()
        };
        assert!(with(0, 0x81), "text");
        assert!(with(0, 0x83), "unknown");
        assert!(with(0, 0xc2), "an extension's bit");
        assert!(with(0, 0x09), "a ping in parts");
        assert!(with(1, 3), "without a mask");
        assert!(refused(&[0x89, 0xfe, 1, 0]).is_err(), "a long ping");
    }

    proptest! {
        #[test]
        fn frames_are_taken_apart_however_they_come(
            frames in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 0..6),
            mask in any::<[u8; 4]>(),
            pieces in prop::collection::vec(1usize..100, 1..5),
        ) {
            let (mut bytes, mut data, mut pings) = (Vec::new(), Vec::new(), Vec::new());
            for (ping, payload) in &frames {
                if *ping {
                    let short = &payload[..payload.len().min(CONTROL)];
                    bytes.extend(masked(PING, short, mask));
                    pings.push(short.to_vec());
                } else {
                    bytes.extend(masked(BINARY, payload, mask));
                    data.extend_from_slice(payload);
                }
            }
            let (mut got, mut heard) = (Vec::new(), Vec::new());
            let mut decoder = Decoder::default();
            let mut rest = &mut bytes[..];
            for piece in pieces.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (mut now, later) = rest.split_at_mut((*piece).min(rest.len()));
                while !now.is_empty() {
                    let taken = decoder.decode(now, |b| { got.extend_from_slice(b); Ok(()) }).unwrap();
                    if let Some(Heard::Ping(payload)) = taken.1 {
                        heard.push(payload.to_vec());
                    }
                    now = &mut now[taken.0..];
                }
                rest = later;
            }
            prop_assert_eq!(got, data);
            prop_assert_eq!(heard, pings);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = bytes;
            let _ = request(&bytes);
            let _ = Decoder::default().decode(&mut bytes, |_| Ok(()));
        }
    }
}
