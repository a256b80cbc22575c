use super::exp::{LANES, sum_of_few};
use crate::TokenId;

/// A probability distribution over tokens, sparse, in ascending order of id.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    entries: Vec<(TokenId, f64)>,
}

impl Distribution {
    /// A distribution from weights, which are normalized. Zero weights are dropped.
    ///
    /// Returns `None` when no weight is positive, one is negative or not finite, their sum overflows, or a
    /// token occurs twice.
    pub fn from_weights(weights: impl IntoIterator<Item = (TokenId, f64)>) -> Option<Self> {
        let mut entries: Vec<(TokenId, f64)> = weights.into_iter().filter(|e| e.1 != 0.0).collect();
        if entries.iter().any(|e| !e.1.is_finite() || e.1 < 0.0) || entries.is_empty() {
            return None;
        }
        entries.sort_unstable_by_key(|e| e.0);
        let total: f64 = entries.iter().map(|e| e.1).sum();
        if !total.is_finite() || entries.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return None;
        }
        entries.iter_mut().for_each(|e| e.1 /= total);
        Some(Self { entries })
    }

    /// A distribution with all of its probability on one token.
    pub fn certain(token: TokenId) -> Self {
        Self { entries: vec![(token, 1.0)] }
    }

    /// From probabilities that sum to 1, in ascending order of id; at least one is positive.
    pub(super) fn from_probabilities(ids: &[TokenId], probabilities: &[f64]) -> Self {
        Self { entries: ids.iter().copied().zip(probabilities.iter().copied()).collect() }
    }

    /// Tokens of positive probability, in ascending order of id.
    pub fn entries(&self) -> &[(TokenId, f64)] {
        &self.entries
    }

    /// Probability of a token, 0 if it is excluded.
    pub fn probability(&self, token: TokenId) -> f64 {
        self.entries.binary_search_by_key(&token, |e| e.0).map_or(0.0, |i| self.entries[i].1)
    }

    /// The token at cumulative probability `u`, for `u` in `[0, 1)`.
    pub fn at(&self, u: f64) -> TokenId {
        self.entries[index_at(self.entries.len(), |i| self.entries[i].1, u)].0
    }
}

/// The index at cumulative probability `u` of `n` probabilities; the last one beyond their sum, which
/// rounding can leave just below 1.
pub(super) fn index_at(n: usize, probability: impl Fn(usize) -> f64, u: f64) -> usize {
    let mut below = 0.0;
    let mut first = 0;
    // Whole blocks are skipped by their sums, whose additions do not have to wait for each other.
    let mut block = [0.0; 4 * LANES];
    while first + block.len() <= n {
        for (i, p) in block.iter_mut().enumerate() {
            *p = probability(first + i);
        }
        let through = below + sum_of_few(&block);
        if u < through {
            break;
        }
        below = through;
        first += block.len();
    }
    for i in first..n {
        below += probability(i);
        if u < below {
            return i;
        }
    }
    n.saturating_sub(1)
}
