//! Selection: finding which tokens are left without sorting them.
//!
//! Tokens are ordered by logit, the largest first, and by id among equal logits. A filter keeps the first
//! tokens of this order. [`gather`] collects all tokens above a bound that is certainly low enough, in
//! ascending order of id, and [`Tokens::keep_heaviest`] finds where to cut.

use super::exp::{LANES, widest};
use crate::TokenId;

/// Tokens in ascending order of id, with their logits.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    pub(super) ids: Vec<TokenId>,
    pub(super) logits: Vec<f32>,
    /// Weights, not normalized; empty until they are computed.
    pub(super) weights: Vec<f64>,
    /// See [`key`].
    keys: Vec<u32>,
    /// The indices that [`keep_heaviest`](Self::keep_heaviest) looks at in this round and in the next.
    members: [Vec<u32>; 2],
}

/// Buckets into which one round of a selection divides its tokens.
const BUCKETS: usize = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = 11;

impl Tokens {
    /// Collects all tokens of a row whose logit is at least `least`.
    pub(super) fn gather(&mut self, row: &[f32], least: f32) {
        self.weights.clear();
        gather(row, least, &mut self.ids, &mut self.logits);
    }

    /// Keeps the fewest tokens, first in order, whose weights sum to `target`; at least one. Weights are not
    /// negative; without `weigh` each counts as 1.
    ///
    /// The range of logits is divided into buckets of equal width. The bucket in which the sum reaches the
    /// target is divided again, and so on, until it holds only equal logits, of which the lowest ids are
    /// kept.
    pub(super) fn keep_heaviest(&mut self, target: f64, weigh: bool) {
        let Self { logits, weights, keys, members: [members, next], .. } = self;
        let (mut low, mut high) = fill_keys(logits, keys);
        let weight = |i: usize| if weigh { weights[i] } else { 1.0 };
        let range = |(low, high): (u32, u32), key: u32| (low.min(key), high.max(key));
        let mut sum = 0.0;
        // The first round looks at all tokens, later ones at members.
        members.clear();
        let mut is_first = true;
        while low < high {
            let shift = (u32::BITS - (high - low).leading_zeros()).saturating_sub(BUCKET_BITS);
            let mut sums = [0.0; BUCKETS];
            let mut add = |key: u32, weight: f64| sums[((key - low) >> shift) as usize % BUCKETS] += weight;
            match (is_first, weigh) {
                (true, true) => keys.iter().zip(&*weights).for_each(|(&key, &weight)| add(key, weight)),
                (true, false) => keys.iter().for_each(|&key| add(key, 1.0)),
                (false, _) => members.iter().for_each(|&i| add(keys[i as usize], weight(i as usize))),
            }
            // The highest bucket holds the highest key. The search ends at the lowest bucket even if rounding
            // has left the sum below the target.
            let mut bucket = (high - low) >> shift;
            while bucket > 0 && sum + sums[bucket as usize] < target {
                sum += sums[bucket as usize];
                bucket -= 1;
            }
            let first_key = low + (bucket << shift);
            let is_member = |key: u32| key >= first_key && (key - first_key) >> shift == 0;
            next.clear();
            if is_first {
                for (chunk, first) in keys.chunks(4 * LANES).zip((0..).step_by(4 * LANES)) {
                    // Most chunks hold no member.
                    if chunk.iter().fold(false, |any, &key| any | is_member(key)) {
                        next.extend((first..).zip(chunk).filter(|(_, key)| is_member(**key)).map(|(i, _)| i));
                    }
                }
            } else {
                next.extend(members.iter().copied().filter(|&i| is_member(keys[i as usize])));
            }
            std::mem::swap(members, next);
            is_first = false;
            (low, high) = members.iter().map(|&i| keys[i as usize]).fold((u32::MAX, 0), range);
        }
        // Only equal keys are left.
        if is_first {
            members.extend(0..keys.len() as u32);
        }
        let end = members.iter().find(|&&i| {
            sum += weight(i as usize);
            sum >= target
        });
        let (last_key, last_idx) = (low, end.or(members.last()).copied().unwrap_or(0) as usize);
        let keys = std::mem::take(&mut self.keys);
        self.retain(|i, _, _| (keys[i] > last_key) | ((keys[i] == last_key) & (i <= last_idx)));
        self.keys = keys;
    }

    /// Keeps the tokens for which `keep(index, logit, weight)` is true.
    pub(super) fn retain(&mut self, keep: impl Fn(usize, f32, f64) -> bool) {
        let Self { ids, logits, weights, .. } = self;
        // No branch depends on what is kept, since no processor could predict it.
        let mut n = 0;
        if weights.is_empty() {
            for i in 0..ids.len().min(logits.len()) {
                let logit = logits[i];
                (ids[n], logits[n]) = (ids[i], logit);
                n += usize::from(keep(i, logit, 1.0));
            }
        } else {
            for i in 0..ids.len().min(logits.len()).min(weights.len()) {
                let (logit, weight) = (logits[i], weights[i]);
                (ids[n], logits[n], weights[n]) = (ids[i], logit, weight);
                n += usize::from(keep(i, logit, weight));
            }
        }
        ids.truncate(n);
        logits.truncate(n);
        weights.truncate(n);
    }
}

widest! {
    /// Replaces `ids` and `logits` with those of a row that are at least `least`.
    fn gather(row: &[f32], least: f32, ids: &mut Vec<TokenId>, logits: &mut Vec<f32>) -> () {
        let mut n = 0;
        for (chunk, first) in row.chunks(4 * LANES).zip((0..).step_by(4 * LANES)) {
            // Nearly all chunks hold none, or, if the logits are flat, nothing but such tokens.
            let count = chunk.iter().fold(0, |count, &l| count + u32::from(l >= least));
            if count == 0 {
                continue;
            }
            if ids.len() < n + 4 * LANES {
                let len = 2 * n + 4 * LANES;
                ids.resize(len, 0);
                logits.resize(len, 0.0);
            }
            let (ids, logits) = (&mut ids[n..n + 4 * LANES], &mut logits[n..n + 4 * LANES]);
            if count as usize == chunk.len() {
                ids.iter_mut().zip(first..).for_each(|(to, id)| *to = id);
                logits[..chunk.len()].copy_from_slice(chunk);
            } else {
                let mut found = 0;
                for (id, &l) in (first..).zip(chunk) {
                    (ids[found], logits[found]) = (id, l);
                    found += usize::from(l >= least);
                }
            }
            n += count as usize;
        }
        ids.truncate(n);
        logits.truncate(n);
    }
}

widest! {
    /// Fills `keys` with the keys of the logits, and returns the smallest and the largest.
    fn fill_keys(logits: &[f32], keys: &mut Vec<u32>) -> (u32, u32) {
        keys.clear();
        keys.extend(logits.iter().map(|&logit| key(logit)));
        keys.iter().fold((u32::MAX, 0), |(low, high), &key| (low.min(key), high.max(key)))
    }
}

/// An integer that orders as the logit does. −0 and 0 have the same key.
#[inline(always)]
pub(super) fn key(logit: f32) -> u32 {
    // −0 + 0 is 0.
    let bits = (logit + 0.0).to_bits();
    bits ^ ((bits as i32 >> 31) as u32 | 1 << 31)
}

/// A bound that at least `k` logits of the row reach, close to the `k`-th largest if `k` is small; −∞ if the
/// row is too short.
///
/// It is the `k`-th largest among the maxima of disjoint groups of 16 logits.
pub(super) fn bound_of_largest(row: &[f32], k: usize) -> f32 {
    let (blocks, _) = row.as_chunks::<{ LANES * LANES }>();
    if k == 0 || blocks.len() * LANES < k {
        return f32::NEG_INFINITY;
    }
    let mut maxima = Vec::with_capacity(blocks.len() * LANES);
    for block in blocks {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in block.as_chunks::<LANES>().0 {
            for (lane, &l) in lanes.iter_mut().zip(chunk) {
                *lane = if l > *lane { l } else { *lane };
            }
        }
        maxima.extend_from_slice(&lanes);
    }
    *maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Logits with ties, both zeros, and some far from the others.
    fn logit() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => -20f32..20.0,
            4 => (-8i32..8).prop_map(|l| l as f32 / 2.0),
            1 => Just(-0.0),
            1 => Just(f32::MIN),
            1 => Just(f32::MAX),
            1 => Just(1e-40),
            1 => (0u32..0x7f00_0000).prop_map(f32::from_bits),
        ]
    }

    fn by_order(logits: &[f32]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
        order
    }

    proptest! {
        #[test]
        fn tokens_above_a_bound_are_gathered(row in prop::collection::vec(logit(), 0..400), least in logit()) {
            let mut tokens = Tokens::default();
            // Leftovers of an earlier row must not matter.
            tokens.gather(&vec![1.0; 70], 0.0);
            tokens.gather(&row, least);
            let expected: Vec<TokenId> = (0..row.len() as u32).filter(|&i| row[i as usize] >= least).collect();
            prop_assert_eq!(&tokens.ids, &expected);
            prop_assert!(tokens.ids.iter().zip(&tokens.logits).all(|(&i, l)| row[i as usize].to_bits() == l.to_bits()));
        }

        #[test]
        fn the_heaviest_are_those_of_a_sort(
            row in prop::collection::vec((logit(), 0u32..1000), 1..600), part in 0f64..1.2, weigh: bool,
        ) {
            let logits: Vec<f32> = row.iter().map(|r| r.0).collect();
            // Whole numbers, so that sums are exact in every order.
            let weights: Vec<f64> = row.iter().map(|r| if weigh { f64::from(r.1) } else { 1.0 }).collect();
            let target = part * weights.iter().sum::<f64>();
            let order = by_order(&logits);
            let (mut sum, mut n) = (0.0, 0);
            while n < order.len() && (n == 0 || sum < target) {
                sum += weights[order[n]];
                n += 1;
            }
            let mut expected = order[..n].to_vec();
            expected.sort_unstable();
            let mut tokens = Tokens::default();
            tokens.gather(&logits, f32::NEG_INFINITY);
            if weigh {
                tokens.weights.clone_from(&weights);
            }
            tokens.keep_heaviest(target, weigh);
            let found: Vec<usize> = tokens.ids.iter().map(|&id| id as usize).collect();
            prop_assert_eq!(&found, &expected);
            if weigh {
                prop_assert!(found.iter().zip(&tokens.weights).all(|(&i, w)| weights[i] == *w));
            }
        }

        #[test]
        fn at_least_k_reach_the_bound(row in prop::collection::vec(logit(), 0..3000), k in 0usize..300) {
            let bound = bound_of_largest(&row, k);
            prop_assert!(row.iter().filter(|&&l| l >= bound).count() >= k.min(row.len()));
        }

        #[test]
        fn keys_ascend_with_logits(a in logit(), b in logit()) {
            prop_assert_eq!(key(a).cmp(&key(b)), a.partial_cmp(&b).unwrap());
            prop_assert_eq!(key(-a).cmp(&key(b)), (-a).partial_cmp(&b).unwrap());
        }
    }

    #[test]
    fn the_bound_is_near_the_kth_of_large_rows() {
        let row: Vec<f32> = (0..50_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32).collect();
        let bound = bound_of_largest(&row, 40);
        assert!((40..60).contains(&row.iter().filter(|&&l| l >= bound).count()));
    }
}
