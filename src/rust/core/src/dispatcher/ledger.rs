//! Entries by ids that grow.
//!
//! What a hash table would be for, with a queue of tasks in mind: they come in order and mostly go in
//! order, so an entry and its neighbours are next to each other in memory, and a million of them are not a
//! million cache misses. While the ids have no gaps, the place of an entry follows from its id;
//! else it is found by bisection.

use std::collections::VecDeque;

/// Rows of removed entries are dropped once there are `SLACK` more of them than entries that are left.
const SLACK: usize = 1024;

pub(super) struct Ledger<T> {
    /// In order of ids. `None`: it has been removed. The first and the last are there.
    rows: VecDeque<(u64, Option<T>)>,
    len: usize,
}

impl<T> Ledger<T> {
    pub(super) fn new() -> Ledger<T> {
        Ledger {
            rows: VecDeque::new(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// There is none with this id. It takes longer if it is not the largest.
    pub(super) fn insert(&mut self, id: u64, entry: T) {
        let row = (id, Some(entry));
        if self.rows.back().is_none_or(|(last, _)| *last < id) {
            self.rows.push_back(row);
        } else {
            match self.rows.binary_search_by_key(&id, |(id, _)| *id) {
                Ok(at) => self.rows[at] = row,
                Err(at) => self.rows.insert(at, row),
            }
        }
        self.len += 1;
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.get(id).is_some()
    }

    pub(super) fn get(&self, id: u64) -> Option<&T> {
        self.rows[self.place(id)?].1.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let at = self.place(id)?;
        self.rows[at].1.as_mut()
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        let at = self.place(id)?;
        let entry = self.rows[at].1.take()?;
        self.len -= 1;
        while matches!(self.rows.front(), Some((_, None))) {
            self.rows.pop_front();
        }
        while matches!(self.rows.back(), Some((_, None))) {
            self.rows.pop_back();
        }
        if self.rows.len() > 2 * self.len + SLACK {
            self.rows.retain(|(_, entry)| entry.is_some());
        }
        if self.rows.is_empty() && self.rows.capacity() > SLACK {
            self.rows = VecDeque::new();
        }
        Some(entry)
    }

    /// In order of ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> + '_ {
        self.rows
            .iter()
            .filter_map(|(id, entry)| Some((*id, entry.as_ref()?)))
    }

    /// Those with larger ids, in order of ids; all if there is none to be larger than.
    pub(super) fn iter_after(&self, id: Option<u64>) -> impl Iterator<Item = (u64, &T)> + '_ {
        let from = id.map_or(0, |id| self.rows.partition_point(|(other, _)| *other <= id));
        self.rows
            .range(from..)
            .filter_map(|(id, entry)| Some((*id, entry.as_ref()?)))
    }

    /// In order.
    pub(super) fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.iter().map(|(id, _)| id)
    }

    fn place(&self, id: u64) -> Option<usize> {
        let (first, _) = self.rows.front()?;
        let most = usize::try_from(id.checked_sub(*first)?).ok()?;
        match self.rows.get(most) {
            Some((found, _)) if *found == id => Some(most),
            // Every gap moves it to the front.
            _ => self.rows.binary_search_by_key(&id, |(id, _)| *id).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn it_holds_what_a_map_would(
            steps in prop::collection::vec((0u64..4, prop::option::of(0usize..40)), 0..4000),
        ) {
            let (mut ledger, mut map) = (Ledger::new(), BTreeMap::new());
            let mut id = 0;
            for (gap, remove) in steps {
                match remove {
                    None if gap == 0 => {
                        // One that comes late.
                        if let Some(late) = (0..id).rev().take(50).find(|i| !map.contains_key(i)) {
                            ledger.insert(late, late * 2);
                            map.insert(late, late * 2);
                        }
                    }
                    None => {
                        id += gap;
                        ledger.insert(id, id * 2);
                        map.insert(id, id * 2);
                    }
                    Some(nth) => {
                        // Mostly the first ones, some that are not there.
                        let key = map.keys().nth(nth).map_or(gap, |key| key + gap / 3);
                        prop_assert_eq!(ledger.remove(key), map.remove(&key));
                    }
                }
                prop_assert_eq!(ledger.len(), map.len());
                prop_assert!(ledger.rows.len() <= 2 * map.len() + SLACK);
            }
            prop_assert!(ledger.ids().eq(map.keys().copied()));
            for key in 0..id + 2 {
                prop_assert_eq!(ledger.get(key), map.get(&key));
                prop_assert_eq!(ledger.contains(key), map.contains_key(&key));
            }
        }
    }

    #[test]
    fn what_has_been_removed_leaves_no_more_than_its_place() {
        let mut ledger = Ledger::new();
        for id in 0..100_000 {
            ledger.insert(id, ());
        }
        for id in 1..100_000 {
            ledger.remove(id);
        }
        assert!(ledger.rows.len() <= 2 + SLACK && ledger.contains(0));
        ledger.remove(0);
        assert!(ledger.rows.capacity() <= SLACK);
    }
}
