//! Sending over a connection: frames wait in two lines, and a few at a time are handed to NNG.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::MutexGuard;
use smallvec::SmallVec;

use super::super::Channel;
use super::Connection;
use super::aio::{BATCH, Parcel, SMALL_FRAMES};
use crate::protocol::{Flat, Frame, websocket};

/// Bytes of payload in a WebSocket frame that we send. The peer sees a frame once it is whole, so
/// it should not be too long; nor too short, for what each costs.
const PAYLOAD: usize = 128 * 1024;

#[derive(Default)]
pub(super) struct Output {
    /// Whether what is sent is to be put into frames of WebSocket's.
    websocket: bool,
    /// To be sent next. NNG has it, and this is empty, while `sending`.
    parcel: Parcel,
    /// Bytes of the parcel's frames that are sent.
    done: usize,
    /// Bytes of the WebSocket frame that the parcel's prefix begins which are not yet sent.
    left: usize,
    /// To be sent before the next frame.
    pong: Option<SmallVec<[u8; 16]>>,
    control: VecDeque<Frame>,
    data: VecDeque<Frame>,
    /// NNG is sending, or somebody is making something ready for it.
    sending: bool,
    /// Nothing can be sent any more.
    over: bool,
}

impl Output {
    fn is_empty(&self) -> bool {
        !self.sending && self.control.is_empty() && self.data.is_empty() && self.parcel.is_empty()
    }

    /// What is left once nothing can be sent any more.
    fn over() -> Output {
        Output {
            over: true,
            ..Output::default()
        }
    }
}

impl Connection {
    /// Answers a request. From then on, WebSocket is spoken.
    pub(super) fn say_first(&self, text: &str) {
        let mut output = self.output.lock();
        output.parcel.prefix.extend_from_slice(text.as_bytes());
        output.websocket = true;
        self.send_next(&mut output);
    }

    /// Has a ping answered soon. Of several, the last counts.
    pub(super) fn pong(&self, payload: &[u8]) {
        let mut output = self.output.lock();
        output.pong = Some(websocket::pong(payload));
        if !output.sending {
            self.send_next(&mut output);
        }
    }

    /// Puts a frame in line.
    pub fn post(&self, channel: Channel, frame: Frame) {
        let mut output = self.output.lock();
        if output.over {
            return;
        }
        match channel {
            Channel::Data => output.data.push_back(frame),
            Channel::Control => output.control.push_back(frame),
        }
    }

    /// Has what is in line sent.
    pub fn flush(&self) {
        let mut output = self.output.lock();
        if !output.sending {
            self.send_next(&mut output);
        }
    }

    fn send_next(&self, output: &mut MutexGuard<'_, Output>) {
        if self.life.is_held() {
            output.sending = false;
            return;
        }
        if output.parcel.frames.is_empty() {
            take_next(output);
        }
        self.send_parcel(output);
    }

    fn send_parcel(&self, output: &mut Output) {
        if output.over {
            return;
        }
        let waiting = output.parcel.frame_bytes() - output.done;
        let prefix = &mut output.parcel.prefix;
        if output.websocket && prefix.is_empty() && output.left == 0 {
            let size = waiting.min(PAYLOAD);
            if let Some(pong) = output.pong.take() {
                prefix.extend_from_slice(&pong);
            }
            if size > 0 {
                prefix.extend_from_slice(&websocket::head(size));
                output.left = size;
            }
        }
        let most = match output.websocket {
            true => output.left.min(waiting),
            false => waiting,
        };
        output.sending = !prefix.is_empty() || most > 0;
        if !output.sending {
            return;
        }
        self.life.has_said();
        let parcel = std::mem::take(&mut output.parcel);
        if self.stream.send(parcel, output.done, most).is_err() {
            *output = Output::over();
            self.sent.notify_all();
        }
    }

    /// NNG has sent `result` bytes of the parcel, which comes back.
    pub(super) fn has_sent(
        self: &Arc<Self>,
        mut parcel: Parcel,
        result: Result<usize, nng::Error>,
    ) {
        let mut output = self.output.lock();
        match result {
            Ok(n) => {
                let of_prefix = n.min(parcel.prefix.len());
                parcel.prefix.drain(..of_prefix);
                let n = n - of_prefix;
                output.left = output.left.saturating_sub(n);
                output.done += n;
                while let Some(first) = parcel.frames.front() {
                    let whole = first.len();
                    if output.done < whole {
                        break;
                    }
                    output.done -= whole;
                    parcel.frames.pop_front();
                }
                output.parcel = parcel;
                self.send_next(&mut output);
            }
            Err(_) => {
                // Before anybody is told: see `send_all`.
                drop(parcel);
                *output = Output::over();
                drop(output);
                self.close();
            }
        }
        self.sent.notify_all();
    }

    /// Sends a frame whose body is the caller's, and waits until it is sent. When this returns, nobody holds the
    /// body any more.
    ///
    /// # Errors
    /// The connection is over.
    pub fn send_all(&self, frame: Frame) -> io::Result<()> {
        self.post(Channel::Data, frame);
        self.flush();
        self.wait_sent(None)
    }

    /// Waits until nothing is left in line.
    ///
    /// # Errors
    /// The connection is over, or `until` has passed.
    pub fn wait_sent(&self, until: Option<Instant>) -> io::Result<()> {
        let mut output = self.output.lock();
        while !output.is_empty() {
            match until {
                None => self.sent.wait(&mut output),
                Some(until) => {
                    if self.sent.wait_until(&mut output, until).timed_out() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
            }
        }
        if output.over {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

/// Takes frames out of their lines. Mapping their segments takes a while: not under the lock, as those who have
/// something to post hold the dispatcher's.
fn take_next(output: &mut MutexGuard<'_, Output>) {
    let next = &mut **output;
    let mut size = 0;
    let mut frames: SmallVec<[Frame; BATCH]> = SmallVec::new();
    for line in [&mut next.control, &mut next.data] {
        while let Some(frame) = line.front() {
            size += frame.size();
            if frames.len() >= BATCH && size > SMALL_FRAMES {
                break;
            }
            frames.extend(line.pop_front());
        }
    }
    next.done = 0;
    if frames.iter().all(|frame| frame.insets().is_empty()) {
        next.parcel
            .frames
            .extend(frames.into_iter().map(Flat::from));
        return;
    }
    next.sending = true;
    let flat: SmallVec<[Flat; BATCH]> =
        MutexGuard::unlocked(output, || frames.into_iter().map(Flat::from).collect());
    output.sending = false;
    if !output.over {
        output.parcel.frames.extend(flat);
    }
}
