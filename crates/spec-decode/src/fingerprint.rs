use std::fmt;

use breakers_core::{TokenId, Vocabulary};

/// Identifies a tokenizer by its tokens, so that a draft model can be checked against its target.
///
/// Ids mean the same in two models exactly when their tokens have the same bytes in the same order.
/// Entries that only pad the embedding table are best left out: models of one family differ in them.
///
/// # Source
/// 128-bit FNV-1a (draft-eastlake-fnv) over the length and the bytes of each token. It guards against
/// mistakes, not against deliberately constructed collisions.
///
/// # Example
/// ```
/// use breakers_spec_decode::TokenizerFingerprint;
///
/// let target = TokenizerFingerprint::from_tokens(["a", "b", "ab"]);
/// assert_eq!(target, TokenizerFingerprint::from_tokens(["a", "b", "ab"]));
/// assert_ne!(target, TokenizerFingerprint::from_tokens(["a", "ba", "b"]));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenizerFingerprint {
    n_tokens: usize,
    hash: u128,
}

impl TokenizerFingerprint {
    /// The fingerprint of a vocabulary, given the bytes of its tokens in the order of their ids.
    pub fn from_tokens<T: AsRef<[u8]>>(tokens: impl IntoIterator<Item = T>) -> Self {
        const OFFSET: u128 = 0x6c62272e07bb014262b821756295c58d;
        const PRIME: u128 = 0x0000000001000000000000000000013b;
        let mut hash = OFFSET;
        let mut n_tokens = 0;
        for token in tokens {
            let bytes = token.as_ref();
            for &byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
                hash = (hash ^ byte as u128).wrapping_mul(PRIME);
            }
            n_tokens += 1;
        }
        Self { n_tokens, hash }
    }

    /// The fingerprint of a vocabulary. Unused ids at its end pad the embedding table and do not count.
    pub fn of(vocabulary: &(impl Vocabulary + ?Sized)) -> Self {
        let bytes = |token| vocabulary.token_bytes(token).unwrap_or_default();
        let unused = (0..vocabulary.n_tokens() as TokenId).rev().take_while(|&token| bytes(token).is_empty());
        let n_used = vocabulary.n_tokens() - unused.count();
        Self::from_tokens((0..n_used as TokenId).map(bytes))
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }
}

impl fmt::Display for TokenizerFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens ({:032x})", self.n_tokens, self.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_order_and_number_of_tokens_count() {
        let of = |tokens: &[&str]| TokenizerFingerprint::from_tokens(tokens);
        let all = [of(&[]), of(&[""]), of(&["ab"]), of(&["a", "b"]), of(&["b", "a"]), of(&["a", "b", ""])];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(a == b, i == j, "{a} and {b}");
            }
        }
        assert_eq!(of(&["a", "b"]).n_tokens(), 2);
    }
}
