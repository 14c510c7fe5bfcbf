//! Lists of peers in which one is found, added and removed at a cost that does not depend on how many there are.

use std::collections::VecDeque;

use super::peer::MOST_AHEAD;
use super::{PeerId, Time};

/// Gaps that [`Idle`] leaves before it closes them, if they are also more than its peers.
const SLACK: usize = 64;

/// Where a peer stands in [`Idle`], or in [`Holders`]. The peer keeps it.
pub(super) type Place = usize;

/// Peers with a free slot, the one that became idle last at the end.
#[derive(Default)]
pub(super) struct Idle {
    /// `None`: that peer has been removed. The last one is there.
    rows: Vec<Option<PeerId>>,
    len: usize,
}

impl Idle {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn last(&self) -> Option<PeerId> {
        self.rows.last().copied().flatten()
    }

    /// Returns the peer's place. `moved` is told the new places of others, if gaps are closed.
    pub(super) fn push(&mut self, peer: PeerId, mut moved: impl FnMut(PeerId, Place)) -> Place {
        if self.rows.len() > 2 * self.len + SLACK {
            self.rows.retain(Option::is_some);
            for (place, peer) in self.rows.iter().enumerate() {
                moved(peer.expect("gaps are closed"), place);
            }
        }
        self.rows.push(Some(peer));
        self.len += 1;
        self.rows.len() - 1
    }

    pub(super) fn remove(&mut self, place: Place) {
        self.rows[place] = None;
        self.len -= 1;
        while matches!(self.rows.last(), Some(None)) {
            self.rows.pop();
        }
    }
}

/// Peers that hold tasks which they have not begun and have not been asked for, by the number of tasks they hold.
pub(super) struct Holders {
    /// By the number of tasks; the last list is for all larger numbers.
    by_tasks: [Vec<PeerId>; MOST_AHEAD + 1],
    /// Which of the lists are not empty, as bits.
    occupied: u128,
}

const _: () = assert!(MOST_AHEAD < u128::BITS as usize);

impl Default for Holders {
    fn default() -> Holders {
        Holders {
            by_tasks: [const { Vec::new() }; MOST_AHEAD + 1],
            occupied: 0,
        }
    }
}

impl Holders {
    pub(super) fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    /// The list for peers with this number of tasks.
    pub(super) fn list(tasks: usize) -> usize {
        tasks.min(MOST_AHEAD)
    }

    /// One of those that hold most tasks.
    pub(super) fn most(&self) -> Option<PeerId> {
        let list = self.occupied.checked_ilog2()?;
        self.by_tasks[list as usize].last().copied()
    }

    /// Returns the peer's place in the list.
    pub(super) fn add(&mut self, peer: PeerId, list: usize) -> Place {
        self.occupied |= 1 << list;
        self.by_tasks[list].push(peer);
        self.by_tasks[list].len() - 1
    }

    /// Returns the peer that has taken this place, if one has.
    pub(super) fn remove(&mut self, list: usize, place: Place) -> Option<PeerId> {
        let peers = &mut self.by_tasks[list];
        peers.swap_remove(place);
        if peers.is_empty() {
            self.occupied &= !(1 << list);
        }
        peers.get(place).copied()
    }
}

/// Since when holders may have been at work on their first task, the earliest first. Entries whose peer has replied since
/// are stale.
#[derive(Default)]
pub(super) struct Since(VecDeque<(Time, PeerId)>);

impl Since {
    pub(super) fn first(&self) -> Option<(Time, PeerId)> {
        self.0.front().copied()
    }

    pub(super) fn remove_first(&mut self) {
        self.0.pop_front();
    }

    pub(super) fn add(&mut self, since: Time, peer: PeerId) {
        // Nearly always the end: a daemon that has replied is sent more in the same event.
        let at = match self.0.back() {
            Some((last, _)) if *last > since => self.0.partition_point(|(time, _)| *time <= since),
            _ => self.0.len(),
        };
        self.0.insert(at, (since, peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn idle_is_a_stack_from_which_any_may_go(
            steps in prop::collection::vec(prop::option::weighted(0.45, 0usize..300), 0..2000),
        ) {
            let (mut idle, mut model) = (Idle::default(), Vec::<PeerId>::new());
            let mut places = BTreeMap::new();
            for (peer, step) in (1..).zip(steps) {
                match step.and_then(|n| n.checked_rem(model.len())) {
                    Some(at) => {
                        let gone = model.remove(at);
                        idle.remove(places.remove(&gone).unwrap());
                    }
                    None => {
                        let place = idle.push(peer, |peer, place| {
                            places.insert(peer, place);
                        });
                        places.insert(peer, place);
                        model.push(peer);
                    }
                }
                prop_assert_eq!(idle.last(), model.last().copied());
                prop_assert_eq!(idle.is_empty(), model.is_empty());
                prop_assert!(idle.rows.len() <= 2 * idle.len + SLACK + 1 || step.is_some());
            }
        }

        #[test]
        fn one_that_holds_most_is_found(
            steps in prop::collection::vec((0u32..40, prop::option::of(0usize..2 * MOST_AHEAD)), 0..1000),
        ) {
            let mut holders = Holders::default();
            let mut model = BTreeMap::<PeerId, (usize, Place)>::new();
            for (peer, tasks) in steps {
                if let Some((list, place)) = model.remove(&peer) {
                    if let Some(moved) = holders.remove(list, place) {
                        model.get_mut(&moved).unwrap().1 = place;
                    }
                }
                if let Some(tasks) = tasks {
                    let list = Holders::list(tasks);
                    model.insert(peer, (list, holders.add(peer, list)));
                }
                let most = model.values().map(|(list, _)| *list).max();
                prop_assert_eq!(holders.most().map(|peer| model[&peer].0), most);
                prop_assert_eq!(holders.is_empty(), most.is_none());
            }
        }
    }

    #[test]
    fn what_comes_late_stands_where_its_time_is() {
        let mut since = Since::default();
        for (time, peer) in [(1, 1), (3, 2), (2, 3), (3, 4), (0, 5)] {
            since.add(Duration::from_secs(time), peer);
        }
        let mut order = Vec::new();
        while let Some((_, peer)) = since.first() {
            order.push(peer);
            since.remove_first();
        }
        assert_eq!(order, [5, 1, 3, 2, 4]);
    }
}
