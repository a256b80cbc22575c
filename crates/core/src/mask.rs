use std::fmt;
use std::ops::{BitAndAssign, BitOrAssign};

use crate::TokenId;

/// A set of tokens, with one bit for each id of a vocabulary: for example, what a
/// [`Constraint`](crate::Constraint) allows next.
///
/// Ids from [`n_tokens`](Self::n_tokens) on are never in the set, so the rows that pad a model's vocabulary
/// are never chosen.
///
/// # Memory
/// 1 bit per token: 19 kB for a vocabulary of 151,936.
///
/// # Example
/// ```
/// use breakers_core::TokenMask;
///
/// let mut mask = TokenMask::none(100);
/// mask.allow(7);
/// mask.allow(42);
/// assert!(mask.is_allowed(7) && !mask.is_allowed(8));
/// assert_eq!(mask.iter().collect::<Vec<_>>(), [7, 42]);
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TokenMask {
    n_tokens: usize,
    /// Bit `id % 32` of word `id / 32`; bits from `n_tokens` on are 0.
    words: Vec<u32>,
}

/// Bits of a word.
const BITS: usize = u32::BITS as usize;

impl TokenMask {
    /// The empty set for a vocabulary of `n_tokens`.
    pub fn none(n_tokens: usize) -> Self {
        Self { n_tokens, words: vec![0; n_tokens.div_ceil(BITS)] }
    }

    /// The set of all tokens of a vocabulary of `n_tokens`.
    pub fn all(n_tokens: usize) -> Self {
        let mut mask = Self::none(n_tokens);
        mask.allow_all();
        mask
    }

    /// A set of the given tokens; ids outside of the vocabulary are ignored.
    pub fn of(n_tokens: usize, tokens: impl IntoIterator<Item = TokenId>) -> Self {
        let mut mask = Self::none(n_tokens);
        tokens.into_iter().for_each(|token| mask.allow(token));
        mask
    }

    /// A set from its words: bit `id % 32` of word `id / 32`. Missing words are 0; bits from `n_tokens` on
    /// are dropped.
    pub fn from_words(n_tokens: usize, mut words: Vec<u32>) -> Self {
        words.resize(n_tokens.div_ceil(BITS), 0);
        let mut mask = Self { n_tokens, words };
        mask.drop_tail();
        mask
    }

    /// Size of the vocabulary; ids below it may be in the set.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// The words: bit `id % 32` of word `id / 32`.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether a token is in the set.
    #[inline]
    pub fn is_allowed(&self, token: TokenId) -> bool {
        let word = self.words.get(token as usize / BITS).copied().unwrap_or(0);
        word >> (token as usize % BITS) & 1 == 1
    }

    /// Puts a token into the set; nothing happens if it is outside of the vocabulary.
    pub fn allow(&mut self, token: TokenId) {
        if (token as usize) < self.n_tokens {
            self.words[token as usize / BITS] |= 1 << (token as usize % BITS);
        }
    }

    /// Takes a token out of the set.
    pub fn forbid(&mut self, token: TokenId) {
        if (token as usize) < self.n_tokens {
            self.words[token as usize / BITS] &= !(1 << (token as usize % BITS));
        }
    }

    /// Puts every token into the set.
    pub fn allow_all(&mut self) {
        self.words.fill(u32::MAX);
        self.drop_tail();
    }

    /// Takes every token out of the set.
    pub fn forbid_all(&mut self) {
        self.words.fill(0);
    }

    /// Number of tokens in the set.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether no token is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The token, if there is exactly one.
    pub fn only(&self) -> Option<TokenId> {
        let mut tokens = self.iter();
        tokens.next().filter(|_| tokens.next().is_none())
    }

    /// The tokens, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some((i * BITS) as TokenId + bit)
            })
        })
    }

    /// Appends the logits `[vocab]` to `row`, with −∞ for all tokens that are not in the set. Where none of
    /// 32 neighbors is in the set, their logits are not even read.
    pub(crate) fn append_allowed(&self, logits: &[f32], row: &mut Vec<f32>) {
        let mut words = self.words.iter();
        for chunk in logits.chunks(BITS) {
            match words.next().copied().unwrap_or(0) {
                u32::MAX => row.extend_from_slice(chunk),
                0 => row.resize(row.len() + chunk.len(), f32::NEG_INFINITY),
                word => row.extend(chunk.iter().enumerate().map(|(i, logit)| match word >> i & 1 {
                    0 => f32::NEG_INFINITY,
                    _ => *logit,
                })),
            }
        }
    }

    /// Sets the logits `[vocab]` of all tokens that are not in the set to −∞.
    pub fn apply(&self, logits: &mut [f32]) {
        let mut words = self.words.iter();
        for chunk in logits.chunks_mut(BITS) {
            match words.next().copied().unwrap_or(0) {
                u32::MAX => {}
                0 => chunk.fill(f32::NEG_INFINITY),
                word => {
                    for (i, logit) in chunk.iter_mut().enumerate() {
                        if word >> i & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }

    fn drop_tail(&mut self) {
        let used = self.n_tokens % BITS;
        if used > 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
    }
}

impl fmt::Debug for TokenMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenMask({} of {})", self.count(), self.n_tokens)
    }
}

impl BitAndAssign<&TokenMask> for TokenMask {
    /// Keeps the tokens that are in both sets.
    fn bitand_assign(&mut self, other: &TokenMask) {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        self.words.iter_mut().zip(others).for_each(|(word, other)| *word &= other);
    }
}

impl BitOrAssign<&TokenMask> for TokenMask {
    /// Adds the tokens of the other set that are within this one's vocabulary.
    fn bitor_assign(&mut self, other: &TokenMask) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
        self.drop_tail();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn tokens(mask: &TokenMask) -> Vec<TokenId> {
        mask.iter().collect()
    }

    proptest! {
        #[test]
        fn a_mask_is_a_set_of_ids(n in 0usize..100, a in prop::collection::vec(0u32..110, 0..60),
                                  b in prop::collection::vec(0u32..110, 0..60), m in 0usize..100) {
            let set = |n: usize, ids: &[u32]| -> BTreeSet<u32> {
                ids.iter().copied().filter(|&id| (id as usize) < n).collect()
            };
            let (mask, other) = (TokenMask::of(n, a.iter().copied()), TokenMask::of(m, b.iter().copied()));
            let (left, right) = (set(n, &a), set(m, &b));
            prop_assert_eq!(tokens(&mask), left.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((mask.count(), mask.is_empty()), (left.len(), left.is_empty()));
            prop_assert_eq!(mask.only(), (left.len() == 1).then(|| *left.first().unwrap()));
            prop_assert!((0..120).all(|id| mask.is_allowed(id) == left.contains(&id)));
            let (mut and, mut or) = (mask.clone(), mask.clone());
            and &= &other;
            or |= &other;
            prop_assert_eq!(tokens(&and), left.intersection(&right).copied().collect::<Vec<_>>());
            prop_assert_eq!(tokens(&or), set(n, &left.union(&right).copied().collect::<Vec<_>>()).into_iter().collect::<Vec<_>>());
            prop_assert_eq!(&TokenMask::from_words(n, mask.words().to_vec()), &mask);
            let mut without = mask.clone();
            b.iter().for_each(|&id| without.forbid(id));
            prop_assert!((0..120).all(|id| without.is_allowed(id) == (left.contains(&id) && !b.contains(&id))));
            // Logits beyond the mask's vocabulary are excluded, too.
            let mut logits = vec![1.0f32; m];
            let mut copy = vec![7.0];
            mask.append_allowed(&logits, &mut copy);
            mask.apply(&mut logits);
            prop_assert_eq!(&copy[1..], &logits[..]);
            prop_assert!((0..m as u32).all(|id| (logits[id as usize] == 1.0) == left.contains(&id)));
        }
    }

    #[test]
    fn nothing_is_set_beyond_the_vocabulary() {
        for n in [0, 1, 31, 32, 33, 64] {
            assert_eq!(TokenMask::all(n).count(), n);
            assert_eq!(TokenMask::from_words(n, vec![u32::MAX; 9]), TokenMask::all(n));
            let mut mask = TokenMask::none(n);
            mask |= &TokenMask::all(100);
            assert_eq!(mask, TokenMask::all(n));
            mask.forbid_all();
            assert!(mask.is_empty());
        }
    }
}
