//! Frames that wait until their pipe takes them.

use std::collections::VecDeque;

use crate::protocol::Frame;
use crate::transport::Channel;

/// Bytes in one write: what is small goes together, and of a large body no more is copied at a time.
const WRITE: usize = 256 * 1024;

/// Frames, control messages first.
#[derive(Default)]
pub(super) struct Outbox {
    control: VecDeque<Frame>,
    data: VecDeque<Frame>,
    /// The frame under way, and the number of its bytes that were taken.
    current: Option<(Frame, usize)>,
    /// Bytes that go next, and the number of those that are sent.
    batch: Vec<u8>,
    sent: usize,
}

impl Outbox {
    pub(super) fn post(&mut self, channel: Channel, frame: Frame) {
        match channel {
            Channel::Data => self.data.push_back(frame),
            Channel::Control => self.control.push_back(frame),
        }
    }

    /// Bytes to send next; none if there are none.
    pub(super) fn next(&mut self) -> &[u8] {
        if self.sent == self.batch.len() {
            self.batch.clear();
            self.sent = 0;
            self.fill();
        }
        &self.batch[self.sent..]
    }

    pub(super) fn has_sent(&mut self, bytes: usize) {
        self.sent += bytes;
    }

    fn fill(&mut self) {
        while self.batch.len() < WRITE {
            if self.current.is_none() {
                let next = self.control.pop_front().or_else(|| self.data.pop_front());
                self.current = next.map(|frame| (frame.plain(), 0));
            }
            let Some((frame, taken)) = &mut self.current else {
                return;
            };
            let of_head = (*taken).min(frame.head.len());
            let of_body = *taken - of_head;
            for rest in [&frame.head[of_head..], &frame.body[of_body..]] {
                let now = rest.len().min(WRITE - self.batch.len());
                self.batch.extend_from_slice(&rest[..now]);
                *taken += now;
            }
            if *taken == frame.head.len() + frame.body.len() {
                self.current = None;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Outbox::default();
    }
}
