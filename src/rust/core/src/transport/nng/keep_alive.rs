//! Keep-alive: which signs of life an end gives and has had.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::super::Channel;
use super::Connection;
use crate::protocol::Frame;
use crate::sys::io_thread;

/// How long a process that was suspended reads before it sends.
const SETTLE: Duration = Duration::from_millis(200);

/// Milliseconds since this was first asked, which fit an atomic.
fn now() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// When either end of a connection has given a sign of life. Times are in ms: see [`now`].
pub(super) struct SignsOfLife {
    /// When the peer was last heard.
    heard: AtomicU64,
    /// When sending to it last began.
    said: AtomicU64,
    /// When keep-alive last looked.
    looked: AtomicU64,
    /// How long after that it has looked again, unless this process was suspended (SIGSTOP, Ctrl-Z). 0 without
    /// keep-alive.
    look_within: AtomicU64,
    /// This process was suspended, and nothing is sent until something has been read.
    held: AtomicBool,
}

impl SignsOfLife {
    pub(super) fn new() -> SignsOfLife {
        SignsOfLife {
            heard: AtomicU64::new(now()),
            said: AtomicU64::new(now()),
            looked: AtomicU64::new(now()),
            look_within: AtomicU64::new(0),
            held: AtomicBool::new(false),
        }
    }

    pub(super) fn has_heard(&self) {
        self.heard.store(now(), Ordering::Relaxed);
    }

    pub(super) fn has_said(&self) {
        self.said.store(now(), Ordering::Relaxed);
    }

    /// Whether this process was suspended, and has not had [`SETTLE`] since to read from the peer. That may have given up
    /// this connection and said so: were anything sent to it, the system would answer with a reset, upon which
    /// NNG discards what it has not read.
    pub(super) fn is_held(&self) -> bool {
        let within = self.look_within.load(Ordering::Relaxed);
        let looked = self.looked.load(Ordering::Relaxed);
        if within > 0 && now().saturating_sub(looked) > within {
            self.held.store(true, Ordering::SeqCst);
        }
        self.held.load(Ordering::SeqCst)
    }
}

impl Connection {
    /// There was time to read what had come.
    fn release(&self) {
        if self.life.look_within.load(Ordering::Relaxed) == 0 {
            return;
        }
        if self.life.is_held() {
            self.life.looked.store(now(), Ordering::Relaxed);
            self.life.held.store(false, Ordering::SeqCst);
            self.flush();
        }
    }

    /// From now on, [`keep_alive`](Self::keep_alive) is called every quarter of `patience`.
    pub fn begin_keep_alive(&self, patience: Duration) {
        self.life.looked.store(now(), Ordering::Relaxed);
        let within = patience.as_millis() as u64 / 2;
        self.life.look_within.store(within, Ordering::Relaxed);
    }

    /// What keep-alive does every so often. Either end says something often enough for the
    /// other to know that it is there: unasked, as a question might be stuck behind a
    /// large task for longer than the other's patience lasts. False if the peer has not been heard
    /// for so long: it should be given up.
    ///
    /// To be called every quarter of the patience. If that is late, this process was suspended: what has come meanwhile
    /// is read first, for [`SETTLE`], and the peer's silence counts from now on.
    pub fn keep_alive(self: &Arc<Self>, patience: Duration, sign: impl FnOnce() -> Frame) -> bool {
        let (now, limit) = (now(), patience.as_millis() as u64);
        let age = |of: &AtomicU64| now.saturating_sub(of.load(Ordering::Relaxed));
        let late = age(&self.life.looked) > limit / 2;
        if late {
            self.life.held.store(true, Ordering::SeqCst);
            self.life.heard.store(now, Ordering::Relaxed);
        }
        self.life.looked.store(now, Ordering::Relaxed);
        if late {
            // A single read is no sign that all has been read: it may have been done before the suspension.
            let this = Arc::downgrade(self);
            io_thread::handle().spawn(async move {
                tokio::time::sleep(SETTLE).await;
                if let Some(this) = this.upgrade() {
                    this.release();
                }
            });
            return true;
        }
        if age(&self.life.heard) >= limit {
            return false;
        }
        self.release();
        if age(&self.life.said) >= limit / 8 {
            self.post(Channel::Control, sign());
            self.flush();
        }
        true
    }
}
