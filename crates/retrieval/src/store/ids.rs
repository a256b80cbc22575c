//! Which point each slot holds, and which slot each point has.

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};
use std::hash::BuildHasher as _;

/// Points and slots: 8 bytes for a slot and about 8 for a point. The hash table holds only slots, whose ids
/// are looked up.
#[derive(Debug, Default)]
pub(super) struct Ids {
    of_slots: Vec<u64>,
    slots: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Ids {
    /// With room for `n` points, if there is enough memory.
    pub(super) fn expecting(n: usize) -> Self {
        let mut ids = Self::default();
        let Self { of_slots, slots, hasher } = &mut ids;
        // Without it, the tables are moved as they grow.
        let hash = |&slot: &u32| hasher.hash_one(of_slots[slot as usize]);
        let _ = slots.try_reserve(n, hash);
        let _ = of_slots.try_reserve_exact(n);
        ids
    }

    /// Grows to at least `n` slots; new ones hold no point.
    pub(super) fn grow(&mut self, n_slots: usize) {
        if self.of_slots.len() < n_slots {
            self.of_slots.resize(n_slots, 0);
        }
    }

    /// Points.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The ids of all slots; those of slots that hold no point are undefined.
    pub(super) fn of_slots(&self) -> &[u64] {
        &self.of_slots
    }

    /// The slot of a point.
    pub(super) fn slot(&self, id: u64) -> Option<u32> {
        self.slots.find(self.hasher.hash_one(id), |&slot| self.of_slots[slot as usize] == id).copied()
    }

    /// Puts a point into an existing slot that holds none. Returns the slot that it had before.
    pub(super) fn insert(&mut self, id: u64, slot: u32) -> Option<u32> {
        let Self { of_slots, slots, hasher } = self;
        let old = {
            let is_id = |&slot: &u32| of_slots[slot as usize] == id;
            let hash = |&slot: &u32| hasher.hash_one(of_slots[slot as usize]);
            match slots.entry(hasher.hash_one(id), is_id, hash) {
                Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), slot)),
                Entry::Vacant(entry) => {
                    entry.insert(slot);
                    None
                }
            }
        };
        of_slots[slot as usize] = id;
        old
    }

    /// Removes a point. Returns the slot that it had.
    pub(super) fn remove(&mut self, id: u64) -> Option<u32> {
        let Self { of_slots, slots, hasher } = self;
        let found = slots.find_entry(hasher.hash_one(id), |&slot| of_slots[slot as usize] == id);
        found.ok().map(|entry| entry.remove().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_table_of_slots_is_a_map() {
        let (mut ids, mut model) = (Ids::expecting(3), HashMap::new());
        let mut state = 1u64;
        for slot in 0..3000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = [state >> 56, u64::MAX - (state >> 58)][slot as usize % 2];
            if state >> 40 & 3 == 0 {
                assert_eq!(ids.remove(id), model.remove(&id));
            } else {
                ids.grow(slot as usize + 1);
                assert_eq!(ids.insert(id, slot), model.insert(id, slot));
            }
            assert_eq!((ids.slot(id), ids.len()), (model.get(&id).copied(), model.len()));
        }
        assert!(model.len() > 100 && model.iter().all(|(&id, &slot)| ids.slot(id) == Some(slot)));
        assert!(model.iter().all(|(&id, &slot)| ids.of_slots()[slot as usize] == id));
        Ids::expecting(usize::MAX).grow(1);
    }
}
