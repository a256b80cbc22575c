use super::Neighbor;
use std::collections::BinaryHeap;

/// The smallest `k` of the distances offered; of equal ones, those of lower slots.
///
/// # Example
/// ```
/// use breakers_retrieval::index::TopK;
///
/// let mut top = TopK::new(2);
/// for (slot, distance) in [(0, 3.0), (1, 1.0), (2, 2.0)] {
///     top.push(slot, distance);
/// }
/// // Anything farther than the bound need not be looked at.
/// assert_eq!(top.bound(), 2.0);
/// assert_eq!(top.into_neighbors().iter().map(|near| near.slot).collect::<Vec<_>>(), [1, 2]);
/// ```
#[derive(Debug, Clone)]
pub struct TopK {
    k: usize,
    entries: Entries,
}

/// A distance's order and its slot, in one number.
#[derive(Debug, Clone)]
enum Entries {
    /// Ascending.
    Sorted(Vec<u64>),
    /// The farthest on top.
    Heap(BinaryHeap<u64>),
}

/// An unsigned number in the order of the floats; NaN does not occur.
#[inline(always)]
pub(crate) fn order(distance: f32) -> u32 {
    let bits = distance.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The float of an [`order`].
#[inline(always)]
pub(crate) fn unorder(order: u32) -> f32 {
    f32::from_bits(if order >> 31 == 1 { order & !(1 << 31) } else { !order })
}

/// Up to this many are kept sorted, which is fastest for few; more are kept in a heap.
const SORTED: usize = 256;

impl TopK {
    /// Keeps the `k` nearest.
    pub fn new(k: usize) -> Self {
        let entries = if k <= SORTED {
            Entries::Sorted(Vec::with_capacity(k))
        } else {
            Entries::Heap(BinaryHeap::new())
        };
        Self { k, entries }
    }

    /// Offers a distance.
    #[inline]
    pub fn push(&mut self, slot: u32, distance: f32) {
        let entry = u64::from(order(distance)) << 32 | u64::from(slot);
        match &mut self.entries {
            Entries::Sorted(entries) => {
                if entries.len() >= self.k {
                    if entries.last().is_none_or(|&last| entry >= last) {
                        return;
                    }
                    entries.pop();
                }
                let at = entries.partition_point(|&e| e < entry);
                entries.insert(at, entry);
            }
            Entries::Heap(entries) => {
                if entries.len() < self.k {
                    entries.push(entry);
                } else if let Some(mut last) = entries.peek_mut()
                    && entry < *last
                {
                    *last = entry;
                }
            }
        }
    }

    /// Distances above this bound no longer matter; infinite until there are `k`.
    pub fn bound(&self) -> f32 {
        let last = match &self.entries {
            Entries::Sorted(entries) => entries.last(),
            Entries::Heap(entries) => entries.peek(),
        };
        match last {
            Some(&last) if self.len() == self.k => unorder((last >> 32) as u32),
            _ if self.k == 0 => f32::NEG_INFINITY,
            _ => f32::INFINITY,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.entries {
            Entries::Sorted(entries) => entries.len(),
            Entries::Heap(entries) => entries.len(),
        }
    }

    /// Whether nothing was offered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Nearest first.
    pub fn into_neighbors(self) -> Vec<Neighbor> {
        let neighbor = |e| Neighbor { slot: e as u32, distance: unorder((e >> 32) as u32) };
        let entries = match self.entries {
            Entries::Sorted(entries) => entries,
            Entries::Heap(entries) => entries.into_sorted_vec(),
        };
        entries.into_iter().map(neighbor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_order_of_floats_is_kept(a in any::<f32>(), b in any::<f32>()) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(unorder(order(a)).to_bits(), a.to_bits());
            if a < b { prop_assert!(order(a) < order(b)) }
        }

        #[test]
        fn the_smallest_are_kept(distances in prop::collection::vec(-5i8..5, 0..60), k in 0usize..20) {
            let mut top = TopK::new(k);
            let mut all: Vec<_> = distances.iter().enumerate().map(|(i, &d)| (d, i as u32)).collect();
            all.iter().for_each(|&(d, slot)| top.push(slot, f32::from(d)));
            all.sort();
            all.truncate(k);
            let full = all.len() == k && k > 0;
            prop_assert_eq!(top.bound().is_finite(), full);
            let found: Vec<_> = top.into_neighbors().iter().map(|n| (n.distance as i8, n.slot)).collect();
            prop_assert_eq!(found, all);
        }
    }

    #[test]
    fn many_are_kept_as_few_are() {
        let distances: Vec<f32> =
            (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) % 977) as f32).collect();
        let mut all: Vec<_> = distances.iter().zip(0u32..).map(|(&d, slot)| (d as u32, slot)).collect();
        all.sort_unstable();
        for k in [1, SORTED, SORTED + 1, 1000, 4999, 5000, 6000] {
            let mut top = TopK::new(k);
            distances.iter().zip(0..).for_each(|(&d, slot)| top.push(slot, d));
            assert_eq!(top.bound() as u32, all.get(k - 1).map_or(u32::MAX, |&(d, _)| d), "{k}");
            let found: Vec<_> = top.into_neighbors().iter().map(|n| (n.distance as u32, n.slot)).collect();
            assert_eq!(found, all[..k.min(all.len())], "{k}");
        }
    }
}
