//! Where one frame of WebSocket's ends in the bytes that NNG gives to be sent.
//!
//! A frame is handed over in pieces (its head, and its payload in one or several), one call
//! each, and a TLS connection that sends every piece at once makes of them as many records,
//! system calls and wake-ups of the peer. A [`Cork`] follows the frames, NNG's of a daemon
//! and ours of the host, and knows whether the rest of one is sure to come, so that its
//! beginning may wait. What goes over `tls+tcp` is put together before it comes here, if it
//! is small: see [`transport::nng`](crate::transport::nng).

use crate::protocol::websocket::read_head;

/// Follows what is sent over one connection.
#[derive(Debug, Default)]
pub(crate) struct Cork {
    framing: Framing,
    /// Bytes of the current frame's header so far.
    header: [u8; 14],
    have: usize,
    /// Bytes of it that come after the header and have not come yet.
    rest: u64,
}

#[derive(Debug, Default)]
enum Framing {
    /// Nothing has been sent yet.
    #[default]
    Unknown,
    /// WebSocket, RFC 6455, after a request or response of HTTP.
    WebSocket,
    /// Anything else is sent as it comes.
    Raw,
}

impl Cork {
    /// Takes note that `piece` is sent next. False if the rest of its frame is
    /// sure to follow; true if nothing may follow for a while.
    pub(crate) fn ends_frame(&mut self, piece: &[u8]) -> bool {
        match self.framing {
            Framing::Raw => true,
            Framing::Unknown => {
                self.framing = Framing::of_greeting(piece);
                true
            }
            Framing::WebSocket => {
                self.follow(piece);
                self.have == 0 && self.rest == 0
            }
        }
    }

    fn follow(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            if self.rest > 0 {
                let n = self.rest.min(piece.len() as u64);
                self.rest -= n;
                piece = &piece[n as usize..];
                continue;
            }
            self.header[self.have] = piece[0];
            self.have += 1;
            piece = &piece[1..];
            if let Some(follows) = read_head(&self.header[..self.have]) {
                self.rest = follows.payload;
                self.have = 0;
            }
        }
    }
}

impl Framing {
    fn of_greeting(piece: &[u8]) -> Self {
        let http = piece.starts_with(b"GET ") || piece.starts_with(b"HTTP/1.1 101 ");
        if http && piece.ends_with(b"\r\n\r\n") {
            Framing::WebSocket
        } else {
            Framing::Raw
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_over_websocket_ends_with_its_payload() {
        let mut cork = Cork::default();
        assert!(cork.ends_frame(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(!cork.ends_frame(&[0x82, 0x83, 1, 2, 3, 4]));
        assert!(cork.ends_frame(b"abc"));
        assert!(!cork.ends_frame(&[0x82, 126, 1, 0]));
        assert!(cork.ends_frame(&[7; 256]));
        assert!(!cork.ends_frame(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]));
        assert!(cork.ends_frame(&vec![7; 65536]));
        assert!(cork.ends_frame(&[0x89, 0]), "a ping without payload");
    }

    #[test]
    fn what_is_not_known_is_never_held_back() {
        for greeting in [&b"hello"[..], b"mira", b"HTTP/1.1 404 Not Found\r\n\r\n"] {
            let mut cork = Cork::default();
            assert!(cork.ends_frame(greeting));
            assert!(cork.ends_frame(&10u64.to_be_bytes()));
            assert!(cork.ends_frame(b"a"));
        }
    }
}
