use super::Neighbor;

/// The smallest `k` of the distances that were offered; of equal ones those of lower slots.
#[derive(Debug, Clone)]
pub struct TopK {
    k: usize,
    /// Ascending.
    entries: Vec<u64>,
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

impl TopK {
    /// Keeps the `k` nearest.
    pub fn new(k: usize) -> Self {
        Self { k, entries: Vec::with_capacity(k.min(1 << 16)) }
    }

    /// Offers a distance.
    #[inline]
    pub fn push(&mut self, slot: u32, distance: f32) {
        let entry = u64::from(order(distance)) << 32 | u64::from(slot);
        if self.entries.len() < self.k {
            let at = self.entries.partition_point(|&e| e < entry);
            self.entries.insert(at, entry);
        } else if self.entries.last().is_some_and(|&last| entry < last) {
            self.entries.pop();
            let at = self.entries.partition_point(|&e| e < entry);
            self.entries.insert(at, entry);
        }
    }

    /// The distance that another one must not exceed to matter; infinite until there are `k`.
    pub fn bound(&self) -> f32 {
        match self.entries.last() {
            Some(&last) if self.entries.len() == self.k => unorder((last >> 32) as u32),
            _ if self.k == 0 => f32::NEG_INFINITY,
            _ => f32::INFINITY,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was offered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Nearest first.
    pub fn into_neighbors(self) -> Vec<Neighbor> {
        let neighbor = |e| Neighbor { slot: e as u32, distance: unorder((e >> 32) as u32) };
        self.entries.into_iter().map(neighbor).collect()
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
}
