//! When to launch another daemon elsewhere, and when to stop: a state machine without I/O, clocks or threads.
//!
//! Each of the host's first URLs is a slot, for one daemon at a time. A launch is *in flight* from its beginning until
//! a daemon connects at the slot's URL, the launch fails, or it is given up. Launches in flight count like daemons. So
//! a task that waits asks for one launch, however long that takes, and there are never more daemons and launches than
//! slots.
//!
//! # Failures
//!
//! These are failures: a launch command that fails, a launch that is given up after the patience of the rules, and a
//! daemon that is lost without a goodbye before it has finished a task. A launch remembers the number of failures that
//! came one after another before it. If it fails in turn, that is one more. So ten daemons that are lost together are
//! one failure: none of them was launched because another had failed.
//!
//! After a failure there is a pause, which doubles with each failure that follows. After [`MOST_FAILURES`] of them,
//! nothing is launched any more. Launching begins anew when a daemon leaves with a goodbye, or is lost after it has
//! finished a task, or when a daemon connects which these launches have not brought.

use std::time::Duration;

use rustc_hash::FxHashSet;

use crate::dispatcher::{PeerId, Time};

/// Failures one after another after which nothing is launched any more.
pub const MOST_FAILURES: u32 = 5;
/// The same in words.
const _: () = assert!(MOST_FAILURES == 5);
pub(super) const FAILURES: &str = "5 failures one after another";

/// The pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Names a launch; unique in a fleet.
pub(super) type LaunchId = u64;

/// Index of a slot, which is that of its URL, too.
pub(super) type SlotId = usize;

/// A launch to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Launch {
    pub(super) id: LaunchId,
    pub(super) slot: SlotId,
    /// Launches at this slot before.
    pub(super) before: u32,
}

/// How a daemon has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// With a goodbye, or after it had finished a task.
    Well,
    /// Without either.
    Failed,
    /// The host has sent it away.
    SentAway,
}

/// The number of failures before a launch.
#[derive(Clone, Copy, Debug)]
struct Depth {
    failures: u32,
    /// The successes at that time: failures before a success do not count after it.
    successes: u64,
}

#[derive(Debug)]
enum Occupant {
    Nobody,
    InFlight {
        id: LaunchId,
        due: Time,
        depth: Depth,
    },
    /// Its daemon is joining, and may be given a task any moment. Counts as in flight until it has that.
    Arriving {
        peer: PeerId,
        depth: Depth,
    },
    Daemon {
        peer: PeerId,
        depth: Depth,
    },
}

#[derive(Debug)]
struct Slot {
    occupant: Occupant,
    /// Launches so far.
    launches: u32,
    /// Launches that were given up, and may still bring a daemon.
    late: u32,
    /// Its URL has changed, and nobody knows yet how to launch a daemon for the new one.
    closed: bool,
}

impl Slot {
    fn is_free(&self) -> bool {
        matches!(self.occupant, Occupant::Nobody) && !self.closed
    }
}

/// See the [module documentation](self).
#[derive(Debug)]
pub(super) struct Rules {
    /// A launch is given up after this time.
    patience: Duration,
    slots: Vec<Slot>,
    in_flight: usize,
    /// Daemons in slots.
    daemons: usize,
    /// Daemons that came otherwise, wherever they are connected.
    others: FxHashSet<PeerId>,
    last: LaunchId,
    /// Failures one after another.
    failures: u32,
    successes: u64,
    /// The end of the pause after the last failure.
    pause: Time,
    /// A launch is wanted at the end of the pause.
    pausing: bool,
}

impl Rules {
    /// For `most` daemons. A launch is given up after `patience`.
    pub(super) fn new(most: usize, patience: Duration) -> Rules {
        let slot = || Slot {
            occupant: Occupant::Nobody,
            launches: 0,
            late: 0,
            closed: false,
        };
        Rules {
            patience,
            slots: (0..most).map(|_| slot()).collect(),
            in_flight: 0,
            daemons: 0,
            others: FxHashSet::default(),
            last: 0,
            failures: 0,
            successes: 0,
            pause: Time::ZERO,
            pausing: false,
        }
    }

    /// Whether nothing is launched any more, and no launch is in flight.
    pub(super) fn is_over(&self) -> bool {
        self.has_stopped() && self.in_flight == 0
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.failures >= MOST_FAILURES
    }

    /// Begins the launches that `unserved` waiting tasks ask for: one for each, less those in flight. There is a pause
    /// after a failure.
    pub(super) fn ask(&mut self, now: Time, unserved: usize) -> Vec<Launch> {
        let wanted = self.wanted(unserved);
        self.pausing = wanted > 0 && now < self.pause;
        if wanted == 0 || self.pausing {
            return Vec::new();
        }
        let mut slots: Vec<_> = (0..self.slots.len())
            .filter(|i| self.slots[*i].is_free())
            .collect();
        // Where no other is to come, and then in turn.
        slots.sort_by_key(|i| (self.slots[*i].late, self.slots[*i].launches));
        slots.truncate(wanted);
        slots
            .into_iter()
            .filter_map(|slot| self.begin(now, slot))
            .collect()
    }

    fn wanted(&self, unserved: usize) -> usize {
        if self.has_stopped() {
            return 0;
        }
        let room = self.slots.len().saturating_sub(self.alive());
        unserved.saturating_sub(self.in_flight).min(room)
    }

    /// Daemons, and launches in flight.
    fn alive(&self) -> usize {
        self.in_flight + self.daemons + self.others.len()
    }

    /// Begins a launch at a slot, whatever the queue asks for. `None`: the slot is taken, or there is no such slot.
    pub(super) fn begin(&mut self, now: Time, slot: SlotId) -> Option<Launch> {
        let depth = self.depth();
        let place = self.slots.get_mut(slot)?;
        if !place.is_free() {
            return None;
        }
        self.last += 1;
        self.in_flight += 1;
        place.occupant = Occupant::InFlight {
            id: self.last,
            due: now + self.patience,
            depth,
        };
        place.launches += 1;
        Some(Launch {
            id: self.last,
            slot,
            before: place.launches - 1,
        })
    }

    fn depth(&self) -> Depth {
        Depth {
            failures: self.failures,
            successes: self.successes,
        }
    }

    /// Whether a daemon that is about to connect here comes too late: its launch was given up, and others have taken
    /// its place. If so, it has to be sent away, and is not [`connected`](Self::connected).
    pub(super) fn is_too_late(&mut self, slot: SlotId) -> bool {
        let full = self.alive() >= self.slots.len();
        let Some(slot) = self.slots.get_mut(slot) else {
            return false;
        };
        let expected = matches!(slot.occupant, Occupant::InFlight { .. });
        if expected || slot.late == 0 || !full {
            return false;
        }
        slot.late -= 1;
        true
    }

    /// A daemon is about to join at a URL, before it can be given a task: with its first task it may end, and its launch
    /// command with it, which is no failure of the launch any more. Returns the launch that has brought it, if it is one
    /// in flight.
    pub(super) fn arrives(&mut self, endpoint: SlotId, peer: PeerId) -> Option<LaunchId> {
        let slot = self.slots.get_mut(endpoint)?;
        let Occupant::InFlight { id, depth, .. } = slot.occupant else {
            return None;
        };
        slot.occupant = Occupant::Arriving { peer, depth };
        Some(id)
    }

    /// A daemon has joined at a URL, and has been given what it can take. Returns whether a launch has brought it.
    pub(super) fn connected(&mut self, endpoint: SlotId, peer: PeerId) -> bool {
        if let Some(slot) = self.slots.get_mut(endpoint) {
            match slot.occupant {
                Occupant::Arriving { peer: its, depth } if its == peer => {
                    slot.occupant = Occupant::Daemon { peer, depth };
                    self.in_flight -= 1;
                    self.daemons += 1;
                    return true;
                }
                _ => slot.late = slot.late.saturating_sub(1),
            }
        }
        self.others.insert(peer);
        // It came although no launch was in flight for it: another launch may succeed, too.
        self.succeed();
        false
    }

    /// A daemon that was [`connected`](Self::connected) is gone. Returns whether that is the failure after which
    /// nothing is launched any more.
    pub(super) fn gone(
        &mut self,
        now: Time,
        endpoint: SlotId,
        peer: PeerId,
        how: Departure,
    ) -> bool {
        let depth = self
            .slots
            .get_mut(endpoint)
            .and_then(|slot| match slot.occupant {
                Occupant::Daemon { peer: its, depth } if its == peer => {
                    slot.occupant = Occupant::Nobody;
                    Some(depth)
                }
                _ => None,
            });
        match depth {
            Some(_) => self.daemons -= 1,
            None if self.others.remove(&peer) => {}
            // It was sent away as it came.
            None => return false,
        }
        match (how, depth) {
            (Departure::Well, _) => {
                self.succeed();
                false
            }
            (Departure::Failed, Some(depth)) => self.count_failure(now, depth),
            (Departure::Failed, None) | (Departure::SentAway, _) => false,
        }
    }

    /// A launch has failed. Returns `None` if it was not in flight any more, otherwise whether that is the failure
    /// after which nothing is launched any more.
    pub(super) fn failed(&mut self, now: Time, launch: LaunchId) -> Option<bool> {
        let (_, depth) = self.land(launch)?;
        Some(self.count_failure(now, depth))
    }

    /// The URL of a slot has changed: a launch in flight will not connect, and none begins before the slot is
    /// [`reopened`](Self::reopened). Returns the launch.
    pub(super) fn moved(&mut self, slot: SlotId) -> Option<LaunchId> {
        let place = self.slots.get_mut(slot)?;
        place.closed = true;
        place.late = 0;
        let Occupant::InFlight { id, .. } = place.occupant else {
            return None;
        };
        self.land(id).map(|_| id)
    }

    /// Launches may begin at a slot whose URL has changed.
    pub(super) fn reopened(&mut self, slot: SlotId) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.closed = false;
        }
    }

    /// Gives up launches whose time is over. Returns them, and whether one is the failure after which nothing is
    /// launched any more.
    pub(super) fn tick(&mut self, now: Time) -> (Vec<LaunchId>, bool) {
        let overdue: Vec<_> = self
            .in_flight()
            .filter(|(_, due)| *due <= now)
            .map(|(id, _)| id)
            .collect();
        let mut stops = false;
        for id in &overdue {
            if let Some((slot, depth)) = self.land(*id) {
                self.slots[slot].late += 1;
                stops |= self.count_failure(now, depth);
            }
        }
        (overdue, stops)
    }

    /// When to [`tick`](Self::tick) and [`ask`](Self::ask) next.
    pub(super) fn deadline(&self) -> Option<Time> {
        let due = match self.in_flight {
            0 => None,
            _ => self.in_flight().map(|(_, due)| due).min(),
        };
        let pause = self.pausing.then_some(self.pause);
        [due, pause].into_iter().flatten().min()
    }

    fn in_flight(&self) -> impl Iterator<Item = (LaunchId, Time)> + '_ {
        self.slots.iter().filter_map(|slot| match slot.occupant {
            Occupant::InFlight { id, due, .. } => Some((id, due)),
            _ => None,
        })
    }

    /// Takes a launch out of its slot.
    fn land(&mut self, launch: LaunchId) -> Option<(SlotId, Depth)> {
        let mut slots = self.slots.iter_mut().enumerate();
        let (slot, depth) = slots.find_map(|(i, slot)| match slot.occupant {
            Occupant::InFlight { id, depth, .. } if id == launch => {
                slot.occupant = Occupant::Nobody;
                Some((i, depth))
            }
            _ => None,
        })?;
        self.in_flight -= 1;
        Some((slot, depth))
    }

    fn succeed(&mut self) {
        self.failures = 0;
        self.successes += 1;
        self.pause = Time::ZERO;
    }

    fn count_failure(&mut self, now: Time, depth: Depth) -> bool {
        let before = if depth.successes == self.successes {
            depth.failures
        } else {
            0
        };
        let had_stopped = self.has_stopped();
        self.failures = self.failures.max(before + 1);
        self.pause = now + FIRST_PAUSE * 2u32.pow(self.failures.min(MOST_FAILURES) - 1);
        self.has_stopped() && !had_stopped
    }
}

#[cfg(test)]
mod tests;
