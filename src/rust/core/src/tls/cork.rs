//! Where one message ends in the bytes that NNG gives to be sent.
//!
//! NNG hands a message over in pieces (its length, its header, its body), one
//! call each, and a TLS connection that sends every piece at once makes of it
//! three records, three system calls and as many wake-ups of the peer. A
//! [`Cork`] follows the framing of NNG's two transports over TLS and knows
//! whether the rest of a message is sure to come, so that its beginning may wait.

/// Follows what is sent over one connection.
#[derive(Debug, Default)]
pub(crate) struct Cork {
    framing: Framing,
    /// Bytes of the current message's or frame's own header so far.
    header: [u8; 14],
    have: usize,
    /// Bytes of it that come after the header and have not come yet.
    rest: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// Nothing has been sent yet.
    #[default]
    Unknown,
    /// Scalability Protocols over TCP: after a greeting, each message follows its
    /// length in 8 bytes.
    Sp,
    /// WebSocket, RFC 6455, after a request or response of HTTP.
    WebSocket,
    /// Anything else is sent as it comes.
    Raw,
}

impl Cork {
    /// Takes note that `piece` is sent next. False if the rest of its message is
    /// sure to follow; true if nothing may follow for a while.
    pub(crate) fn ends_message(&mut self, piece: &[u8]) -> bool {
        match self.framing {
            Framing::Raw => true,
            Framing::Unknown => {
                self.framing = Framing::of_greeting(piece);
                true
            }
            Framing::Sp | Framing::WebSocket => {
                self.follow(piece);
                self.have == 0 && self.rest == 0
            }
        }
    }

    /// Whether whoever receives over this connection asks for no more bytes than
    /// are sure to come. So it is in `tls+tcp`, where each message follows its length.
    pub(crate) fn reads_are_exact(&self) -> bool {
        self.framing == Framing::Sp
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
            if let Some(payload) = self.framing.payload(&self.header[..self.have]) {
                self.rest = payload;
                self.have = 0;
            }
        }
    }
}

impl Framing {
    fn of_greeting(piece: &[u8]) -> Self {
        let http = piece.starts_with(b"GET ") || piece.starts_with(b"HTTP/1.1 101 ");
        if piece.len() == 8 && piece.starts_with(b"\0SP\0") {
            Framing::Sp
        } else if http && piece.ends_with(b"\r\n\r\n") {
            Framing::WebSocket
        } else {
            Framing::Raw
        }
    }

    /// The number of bytes after `header`, once it is complete.
    fn payload(self, header: &[u8]) -> Option<u64> {
        let (size, masked) = match self {
            Framing::Sp => (8, false),
            _ => {
                let size = match *header.get(1)? & 0x7f {
                    126 => 4,
                    127 => 10,
                    _ => 2,
                };
                (size, header[1] & 0x80 != 0)
            }
        };
        if header.len() < size + if masked { 4 } else { 0 } {
            return None;
        }
        let big_endian = |bytes: &[u8]| bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b));
        Some(match (self, size) {
            (Framing::Sp, _) => big_endian(&header[..8]),
            (_, 2) => u64::from(header[1] & 0x7f),
            _ => big_endian(&header[2..size]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_over_tcp_ends_with_its_body() {
        let mut cork = Cork::default();
        assert!(cork.ends_message(b"\0SP\0\0\x11\0\0"));
        assert!(cork.reads_are_exact());
        for _ in 0..2 {
            assert!(!cork.ends_message(&10u64.to_be_bytes()));
            assert!(!cork.ends_message(b"head"));
            assert!(!cork.ends_message(b"bod"));
            assert!(cork.ends_message(b"y.."));
        }
        assert!(cork.ends_message(&0u64.to_be_bytes()), "an empty message");
        let mut two = 1u64.to_be_bytes().to_vec();
        two.extend_from_slice(b"x\0\0\0");
        assert!(!cork.ends_message(&two), "into the next one's length");
        assert!(!cork.ends_message(&[0, 0, 0, 0, 2]));
        assert!(cork.ends_message(b"xy"));
    }

    #[test]
    fn a_frame_over_websocket_ends_with_its_payload() {
        let mut cork = Cork::default();
        assert!(cork.ends_message(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(!cork.reads_are_exact());
        assert!(!cork.ends_message(&[0x82, 0x83, 1, 2, 3, 4]));
        assert!(cork.ends_message(b"abc"));
        assert!(!cork.ends_message(&[0x82, 126, 1, 0]));
        assert!(cork.ends_message(&[7; 256]));
        assert!(!cork.ends_message(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]));
        assert!(cork.ends_message(&vec![7; 65536]));
        assert!(cork.ends_message(&[0x89, 0]), "a ping without payload");
    }

    #[test]
    fn what_is_not_known_is_never_held_back() {
        for greeting in [&b"hello"[..], b"\0SP\0", b"HTTP/1.1 404 Not Found\r\n\r\n"] {
            let mut cork = Cork::default();
            assert!(cork.ends_message(greeting));
            assert!(cork.ends_message(&10u64.to_be_bytes()));
            assert!(cork.ends_message(b"a"));
        }
    }
}
