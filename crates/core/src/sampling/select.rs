//! Selection: which tokens are left, without sorting them.
//!
//! The order is that of a sampler: the larger logit first, of equal ones the smaller id. A filter keeps a
//! beginning of this order. [`gather`] collects all tokens above a bound that is certainly low enough, in
//! ascending order of id, and [`Tokens::keep_heaviest`] finds where the beginning ends.

use super::exp::LANES;
use crate::TokenId;

/// Tokens in ascending order of id, with their logits.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    pub(super) ids: Vec<TokenId>,
    pub(super) logits: Vec<f32>,
    /// Not normalized; empty while they are not known.
    pub(super) weights: Vec<f64>,
    /// What [`keep_heaviest`](Self::keep_heaviest) looks at, of one round and of the next.
    members: [Vec<u32>; 2],
}

/// Sums that one round of a selection divides its tokens into.
const BUCKETS: usize = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = 11;

impl Tokens {
    /// Collects all tokens of a row whose logit is at least `least`.
    pub(super) fn gather(&mut self, row: &[f32], least: f32) {
        let mut n = 0;
        self.weights.clear();
        for (chunk, first) in row.chunks(4 * LANES).zip((0..).step_by(4 * LANES)) {
            // Nearly all chunks hold none.
            if !chunk.iter().fold(false, |any, &l| any | (l >= least)) {
                continue;
            }
            if self.ids.len() < n + 4 * LANES {
                let len = 2 * n + 4 * LANES;
                self.ids.resize(len, 0);
                self.logits.resize(len, 0.0);
            }
            let (ids, logits) = (&mut self.ids[n..n + 4 * LANES], &mut self.logits[n..n + 4 * LANES]);
            let mut found = 0;
            for (id, &l) in (first..).zip(chunk) {
                (ids[found], logits[found]) = (id, l);
                found += usize::from(l >= least);
            }
            n += found;
        }
        self.ids.truncate(n);
        self.logits.truncate(n);
    }

    /// Keeps the smallest beginning of the order whose weights sum to `target`, at least one token. Weights are
    /// not negative; `None`: each weighs 1.
    ///
    /// Buckets of equal width over the range of logits are summed up, the one in which the sum reaches the
    /// target is divided again, and so on, until it holds equal logits only, of which the first ids are taken.
    pub(super) fn keep_heaviest(&mut self, target: f64, weigh: bool) {
        let Self { ids, logits, weights, members } = self;
        let weight = |i: usize| if weigh { weights[i] } else { 1.0 };
        let [members, next] = members;
        members.clear();
        members.extend(0..ids.len() as u32);
        let mut sum = 0.0;
        let (last_key, last_idx) = loop {
            let keys = members.iter().map(|&i| key(logits[i as usize]));
            let (low, high) = keys.fold((u32::MAX, 0), |(low, high), key| (low.min(key), high.max(key)));
            if low >= high {
                // Equal ones, or none at all.
                let end = members.iter().find(|&&i| {
                    sum += weight(i as usize);
                    sum >= target
                });
                break (low, end.or(members.last()).copied().unwrap_or(0));
            }
            let shift = (u32::BITS - (high - low).leading_zeros()).saturating_sub(BUCKET_BITS);
            let bucket = |i: u32| ((key(logits[i as usize]) - low) >> shift) as usize;
            let mut sums = [0.0; BUCKETS];
            let mut counts = [0u32; BUCKETS];
            for &i in members.iter() {
                sums[bucket(i)] += weight(i as usize);
                counts[bucket(i)] += 1;
            }
            let mut filled = (0..BUCKETS).rev().filter(|&b| counts[b] > 0).peekable();
            let mut reached = 0;
            while let Some(b) = filled.next() {
                reached = b;
                // The last bucket is reached at the latest: rounding may have left the sum below the target.
                if sum + sums[b] >= target || filled.peek().is_none() {
                    break;
                }
                sum += sums[b];
            }
            next.clear();
            next.extend(members.iter().copied().filter(|&i| bucket(i) == reached));
            std::mem::swap(members, next);
        };
        self.retain(|i, logit, _| {
            let key = key(logit);
            key > last_key || (key == last_key && i <= last_idx as usize)
        });
    }

    /// Keeps the tokens of which something is true: of their index, logit and weight.
    pub(super) fn retain(&mut self, keep: impl Fn(usize, f32, f64) -> bool) {
        let Self { ids, logits, weights, .. } = self;
        let mut n = 0;
        for i in 0..ids.len() {
            let weight = weights.get(i).copied();
            if keep(i, logits[i], weight.unwrap_or(1.0)) {
                (ids[n], logits[n]) = (ids[i], logits[i]);
                if let Some(weight) = weight {
                    weights[n] = weight;
                }
                n += 1;
            }
        }
        ids.truncate(n);
        logits.truncate(n);
        weights.truncate(n);
    }
}

/// A number for each logit that ascends with it. Both zeros have the same.
pub(super) fn key(logit: f32) -> u32 {
    // −0 + 0 is 0.
    let bits = (logit + 0.0).to_bits();
    bits ^ ((bits as i32 >> 31) as u32 | 1 << 31)
}

/// A bound that at least `k` logits of the row reach, near the `k`-th largest if `k` is small; −∞ if the row is
/// too short to say.
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
            // What an earlier row left must not matter.
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
