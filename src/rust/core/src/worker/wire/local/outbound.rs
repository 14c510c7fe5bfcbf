//! What a daemon sends to a host on its own machine: by the socket, and on Linux small messages by a ring, where they cost
//! no system call.
//!
//! A message that was written to the ring is the host's, whatever becomes of this process. The host is woken for it
//! unless it looks by itself. While it does not wait for a single result, and the daemon has the next task already, up
//! to `MOST_GATHERED` results are gathered before it is woken, for no longer than `GATHER_TIME`: a timer, which the
//! watcher hears of, sees to that while the main thread evaluates.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::memory::Parts;
use crate::protocol::ToHost;
use crate::protocol::frame::{encode_head, encode_head_with};
use crate::sys::board::Attends;
use crate::transport::unix::{self, Taken};

/// Limit of results that are gathered. It is well below the number of tasks that a daemon may hold
/// (`dispatcher::MOST_AHEAD`), so that the host sends more before there are none left.
const MOST_GATHERED: u32 = 16;
/// Limit of the time that a result waits while others are gathered.
const GATHER_TIME: Duration = Duration::from_millis(1);
/// Larger messages go by the socket, which takes more at once, and whose memory is given back.
const MOST_BY_RING: usize = 16 * 1024;
/// Room that is kept in the ring for [`ToHost::BySocket`].
const RESERVE: usize = 64;

/// Sends messages, for one thread at a time.
pub(super) struct Outbound {
    data: UnixStream,
    ring: Option<ByRing>,
}

struct ByRing {
    taken: Taken,
    /// Whether the host expects the next message here.
    current: bool,
    /// Results for which the host was not woken, and when the first of them was written.
    gathered: u32,
    since: Instant,
    timer: Arc<OwnedFd>,
    /// Whether the timer runs.
    timed: bool,
}

impl Outbound {
    pub(super) fn new(data: UnixStream, taken: Option<Taken>) -> Outbound {
        let ring = taken.and_then(|taken| ByRing::new(taken).ok());
        Outbound { data, ring }
    }

    /// Sends a message. `more`: the next task is there already. An error: the link is over.
    pub(super) fn send(&mut self, message: &ToHost, body: Parts<'_>, more: bool) -> io::Result<()> {
        let Some(ring) = &mut self.ring else {
            return unix::send_message(&self.data, message, body);
        };
        let head = encode_head_with(message, body.bytes.len(), body.insets);
        let len = head.len() + body.bytes.len();
        if !body.is_plain() || len > MOST_BY_RING || ring.taken.ring.room() < len + RESERVE {
            ring.leave();
            return unix::send_message(&self.data, message, body);
        }
        ring.taken.ring.write(&[&head, body.bytes]);
        if ring.taken.ring.is_closed() {
            // The host may not have seen it.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !ring.current {
            ring.current = true;
            return say(&self.data, &ToHost::ByRing);
        }
        let gathers = more && matches!(message, ToHost::Done { .. });
        match ring.taken.notice.post() {
            // It will look before it does anything else.
            Attends::Looks => {
                ring.gathered = 0;
                Ok(())
            }
            Attends::Later if gathers && ring.gathered + 1 < MOST_GATHERED => {
                ring.gather(&self.data)
            }
            _ => ring.wake(&self.data),
        }
    }

    /// Nothing is sent for a while: wakes the host for what was gathered.
    pub(super) fn hand_over(&mut self) -> io::Result<()> {
        match &mut self.ring {
            Some(ring) => ring.hand_over(&self.data),
            None => Ok(()),
        }
    }

    /// What is readable when [`tick`](Self::tick) is to be called.
    pub(super) fn timer(&self) -> Option<Arc<OwnedFd>> {
        self.ring.as_ref().map(|ring| ring.timer.clone())
    }

    /// The timer's time is over.
    pub(super) fn tick(&mut self) -> io::Result<()> {
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        let _ = rustix::io::read(&*ring.timer, &mut [0; 8]);
        ring.timed = false;
        if ring.gathered == 0 {
            return Ok(());
        }
        let left = GATHER_TIME.saturating_sub(ring.since.elapsed());
        if left.is_zero() {
            ring.hand_over(&self.data)
        } else {
            ring.set_timer(left, &self.data)
        }
    }
}

impl ByRing {
    fn new(taken: Taken) -> io::Result<ByRing> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(ByRing {
            taken,
            current: false,
            gathered: 0,
            since: Instant::now(),
            timer: Arc::new(timerfd_create(TimerfdClockId::Monotonic, flags)?),
            timed: false,
        })
    }

    /// The next message goes by the socket. It wakes the host.
    fn leave(&mut self) {
        if std::mem::take(&mut self.current) {
            let head = encode_head(&ToHost::BySocket, 0);
            self.taken.ring.write(&[&head]);
        }
        self.gathered = 0;
    }

    fn gather(&mut self, data: &UnixStream) -> io::Result<()> {
        self.gathered += 1;
        if self.gathered == 1 {
            self.since = Instant::now();
            if !self.timed {
                return self.set_timer(GATHER_TIME, data);
            }
        }
        Ok(())
    }

    /// Has the timer run for `time`, which is less than a second.
    fn set_timer(&mut self, time: Duration, data: &UnixStream) -> io::Result<()> {
        let when = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: 0,
                tv_nsec: time.subsec_nanos().into(),
            },
        };
        let set = timerfd_settime(&*self.timer, TimerfdTimerFlags::empty(), &when);
        self.timed = set.is_ok();
        if self.timed { Ok(()) } else { self.wake(data) }
    }

    /// Wakes the host for what was gathered, unless it looks by itself.
    fn hand_over(&mut self, data: &UnixStream) -> io::Result<()> {
        if self.gathered == 0 {
            return Ok(());
        }
        if self.taken.notice.host() == Attends::Looks {
            self.gathered = 0;
            return Ok(());
        }
        self.wake(data)
    }

    fn wake(&mut self, data: &UnixStream) -> io::Result<()> {
        self.gathered = 0;
        if self.taken.ring.must_wake() {
            say(data, &ToHost::Look)?;
        }
        Ok(())
    }
}

/// Sends a message without a body by the socket.
fn say(data: &UnixStream, message: &ToHost) -> io::Result<()> {
    unix::send_message(data, message, (&[]).into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

    use super::*;
    use crate::memory::{Inset, Segment};
    use crate::protocol::{Done, Frame, FrameReader, Limits, Seq, ToDaemon};
    use crate::sys::io_thread;
    use crate::transport::Link;
    use crate::transport::unix::{UnixLink, take_ring};

    const LONG: Duration = Duration::from_secs(20);
    /// Long enough for what must not come to have come.
    const SHORT: Duration = Duration::from_millis(50);

    /// What the host hears: the numbers of results with their sizes, and last the end of the link.
    type Heard = Receiver<Result<(Seq, u64), io::Result<()>>>;

    struct Pair {
        link: Arc<UnixLink>,
        heard: Heard,
        outbound: Outbound,
        data: UnixStream,
        _control: UnixStream,
    }

    /// A link with a ring, or one whose daemon does not take it.
    fn pair(takes: bool) -> Pair {
        let (host, daemon) = UnixStream::pair().unwrap();
        let (host_control, control) = UnixStream::pair().unwrap();
        let _inside = io_thread::handle().enter();
        let link = UnixLink::new(host.into(), host_control.into()).unwrap();
        link.offer_ring();
        let mut reader = FrameReader::new(Limits::HANDSHAKE);
        let (taken, first) = take_ring(&control, &mut reader).unwrap();
        assert!(taken.is_some());
        assert_eq!(first, None);
        let (tell, heard) = channel();
        let served = link.clone();
        io_thread::handle().spawn(async move {
            let told = tell.clone();
            let reader = FrameReader::new(Limits::LINK);
            let serving = served.serve(reader, move |message, body| {
                let body = crate::memory::Content::from(body);
                if let ToHost::Done { seq, .. } = message {
                    let _ = told.send(Ok((seq, body.size())));
                }
            });
            let end = serving.await;
            let _ = tell.send(Err(end));
        });
        let data = daemon.try_clone().unwrap();
        Pair {
            link,
            heard,
            outbound: Outbound::new(daemon, taken.filter(|_| takes)),
            data,
            _control: control,
        }
    }

    fn done(seq: Seq) -> ToHost {
        ToHost::Done {
            seq,
            outcome: Done::Value,
            spent: 0,
            notes: 0,
            error: None,
        }
    }

    impl Pair {
        /// Sends a result of this size.
        fn send(&mut self, seq: Seq, size: usize, more: bool) -> io::Result<()> {
            let body = vec![0; size];
            self.outbound.send(&done(seq), (&body[..]).into(), more)
        }

        fn hears(&self, seq: Seq, size: u64) {
            let heard = self.heard.recv_timeout(LONG).unwrap();
            assert_eq!(heard.unwrap(), (seq, size));
        }

        fn hears_nothing(&self) {
            let heard = self.heard.recv_timeout(SHORT);
            assert_eq!(heard.unwrap_err(), RecvTimeoutError::Timeout);
        }

        fn hears_the_end(&self) -> io::Result<()> {
            self.heard.recv_timeout(LONG).unwrap().unwrap_err()
        }
    }

    #[test]
    fn what_goes_two_ways_arrives_in_order() {
        for takes in [true, false] {
            let mut pair = pair(takes);
            let segment = Inset {
                at: 0,
                segment: Segment::copy_of(&[9; 5000]).unwrap(),
            };
            let mut expected = Vec::new();
            for seq in 1..=3000 {
                let size = match seq % 17 {
                    0 => 40_000,
                    1..=3 => MOST_BY_RING - 60,
                    _ => seq as usize % 101,
                };
                if seq % 13 == 0 {
                    let parts = Parts {
                        bytes: &[],
                        insets: std::slice::from_ref(&segment),
                        marks: &[],
                    };
                    pair.outbound.send(&done(seq), parts, seq % 3 > 0).unwrap();
                    expected.push((seq, 5000));
                } else {
                    pair.send(seq, size, seq % 3 > 0).unwrap();
                    expected.push((seq, size as u64));
                }
            }
            pair.outbound.hand_over().unwrap();
            for (seq, size) in expected {
                pair.hears(seq, size);
            }
        }
    }

    #[test]
    fn results_are_gathered_while_there_is_more_to_do() {
        let mut pair = pair(true);
        // The first one says that the others come by the ring.
        pair.send(1, 10, true).unwrap();
        pair.hears(1, 10);
        for seq in 2..=MOST_GATHERED.into() {
            pair.send(seq, 10, true).unwrap();
        }
        pair.hears_nothing();
        pair.send(100, 10, true).unwrap();
        for seq in (2..=MOST_GATHERED.into()).chain([100]) {
            pair.hears(seq, 10);
        }
        // One after which there is nothing to do is not kept.
        pair.send(101, 10, false).unwrap();
        pair.hears(101, 10);
        pair.send(102, 10, true).unwrap();
        pair.hears_nothing();
        pair.outbound.hand_over().unwrap();
        pair.hears(102, 10);
    }

    #[test]
    fn a_result_is_not_kept_while_the_next_task_runs() {
        let mut pair = pair(true);
        pair.send(1, 10, true).unwrap();
        pair.send(2, 10, true).unwrap();
        let timer = pair.outbound.timer().unwrap();
        let wait = Some(LONG);
        for seq in 3..6 {
            let polled =
                crate::sys::signals::poll_in(std::os::fd::AsFd::as_fd(&*timer), wait, &|| false);
            assert_eq!(polled, crate::sys::Polled::Readable);
            pair.outbound.tick().unwrap();
            if seq == 3 {
                pair.hears(1, 10);
            }
            pair.hears(seq - 1, 10);
            pair.send(seq, 10, true).unwrap();
        }
    }

    #[test]
    fn what_a_daemon_has_written_is_heard_after_its_end() {
        for round in 0..50 {
            let mut pair = pair(true);
            for seq in 1..=10 {
                pair.send(seq, 100, true).unwrap();
            }
            // Unread tasks make the end another for the host: `ECONNRESET`.
            if round % 2 == 0 {
                pair.link.post(Frame::bare(&ToDaemon::Ping));
                pair.link.flush();
            }
            // As by a kill: nobody hands over.
            let Pair {
                heard,
                outbound,
                data,
                link: _,
                _control: control,
            } = pair;
            let ring = outbound.ring;
            drop((outbound.data, data, control));
            for seq in 1..=10 {
                let next = heard.recv_timeout(LONG).unwrap();
                assert_eq!(next.unwrap(), (seq, 100));
            }
            assert!(heard.recv_timeout(LONG).unwrap().unwrap_err().is_ok());
            drop(ring);
        }
    }

    #[test]
    fn what_is_written_to_a_link_that_the_host_has_ended_is_heard_or_fails() {
        for round in 0..200 {
            let mut pair = pair(true);
            pair.send(1, 10, true).unwrap();
            if round % 2 == 0 {
                pair.hears(1, 10);
            }
            let closing = {
                let link = pair.link.clone();
                std::thread::spawn(move || link.close())
            };
            let mut sent = 1;
            for seq in 2..=1000 {
                if pair.send(seq, 10, true).is_err() {
                    break;
                }
                sent = seq;
            }
            closing.join().unwrap();
            let heard_before = if round % 2 == 0 { 1 } else { 0 };
            let heard = pair.heard.iter().map_while(Result::ok).last();
            let last = heard.map_or(heard_before, |(seq, _)| seq);
            assert!(last >= sent, "{sent} were sent, and {last} were heard");
        }
    }

    #[test]
    fn a_message_that_comes_the_wrong_way_ends_the_link() {
        let by_socket = |pair: &mut Pair, messages: &[ToHost]| {
            for message in messages {
                pair.data.write_all(&encode_head(message, 0)).unwrap();
            }
        };
        let mut all = Vec::new();
        let mut pair_ = pair(true);
        by_socket(&mut pair_, &[ToHost::BySocket]);
        all.push(pair_);
        let mut pair_ = pair(true);
        by_socket(&mut pair_, &[ToHost::ByRing, ToHost::ByRing]);
        all.push(pair_);
        let mut pair_ = pair(true);
        by_socket(&mut pair_, &[ToHost::ByRing, done(1)]);
        all.push(pair_);
        for message in [ToHost::ByRing, ToHost::Look] {
            let mut pair_ = pair(true);
            by_socket(&mut pair_, &[ToHost::ByRing]);
            let ring = pair_.outbound.ring.as_mut().unwrap();
            ring.taken.ring.write(&[&encode_head(&message, 0)]);
            by_socket(&mut pair_, &[ToHost::Look]);
            all.push(pair_);
        }
        let mut pair_ = pair(true);
        by_socket(&mut pair_, &[ToHost::ByRing]);
        let ring = pair_.outbound.ring.as_mut().unwrap();
        ring.taken.ring.write(&[b"this is no frame"]);
        by_socket(&mut pair_, &[ToHost::Look]);
        all.push(pair_);
        for pair in all {
            let end = pair.hears_the_end().unwrap_err();
            assert_eq!(end.kind(), io::ErrorKind::InvalidData);
        }
    }
}
