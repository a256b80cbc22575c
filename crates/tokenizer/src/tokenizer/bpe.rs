//! Byte-level byte-pair encoding.
//!
//! A word starts as its bytes; of all adjacent pairs that have a merge rule, the one with the earliest rule
//! (the leftmost among equal ones) becomes one token, until no pair has a rule.
//!
//! # Cost
//! O(n log n) in the length of a word: short words by repeated scans, long ones by a heap.
//!
//! # Source
//! Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016), on bytes
//! as in GPT-2.

use std::{cmp::Reverse, collections::BinaryHeap};

use breakers_core::TokenId;
use hashbrown::HashMap;

use super::pretokenize::PreTokenizer;

/// The first merges are the most frequent ones, so a smaller rank goes first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    pub(super) rank: u32,
    pub(super) token: TokenId,
}

/// Merge rules, by the pair of tokens that they join.
pub(super) type Merges = HashMap<(TokenId, TokenId), Merge>;

/// Words up to this many bytes are merged by scanning.
const SHORT: usize = 48;

/// No token, no rank, no neighbor.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct ByteLevelBpe {
    pub(super) pre_tokenizer: PreTokenizer,
    /// The token of each byte; bytes without one are dropped, as in llama.cpp.
    pub(super) byte_tokens: [Option<TokenId>; 256],
    pub(super) merges: Merges,
    /// Tokens by their bytes, for models that use a word as a whole, without merging, if it is a token.
    pub(super) whole_words: Option<HashMap<Box<[u8]>, TokenId>>,
}

impl ByteLevelBpe {
    pub(super) fn encode(&self, text: &str, out: &mut Vec<TokenId>) {
        let mut scratch = Scratch::default();
        self.pre_tokenizer.split(text, |word| self.encode_word(word.as_bytes(), &mut scratch, out));
    }

    fn encode_word(&self, word: &[u8], scratch: &mut Scratch, out: &mut Vec<TokenId>) {
        if let Some(&token) = self.whole_words.as_ref().and_then(|words| words.get(word)) {
            out.push(token);
            return;
        }
        let tokens = &mut scratch.tokens;
        tokens.clear();
        tokens.extend(word.iter().map(|&byte| self.byte_tokens[byte as usize].unwrap_or(NONE)));
        if tokens.len() <= SHORT {
            merge_short(&self.merges, tokens, &mut scratch.merges);
        } else {
            merge_long(&self.merges, tokens);
        }
        out.extend(tokens.iter().copied().filter(|&token| token != NONE));
    }
}

#[derive(Default)]
struct Scratch {
    tokens: Vec<TokenId>,
    merges: Vec<Merge>,
}

const NO_MERGE: Merge = Merge { rank: NONE, token: NONE };

fn lookup(merges: &Merges, left: TokenId, right: TokenId) -> Merge {
    merges.get(&(left, right)).copied().unwrap_or(NO_MERGE)
}

/// Merges in place. `found[i]` is the rule for `tokens[i]` and `tokens[i + 1]`.
fn merge_short(merges: &Merges, tokens: &mut Vec<TokenId>, found: &mut Vec<Merge>) {
    found.clear();
    found.extend(tokens.windows(2).map(|pair| lookup(merges, pair[0], pair[1])));
    loop {
        let mut best = (NONE, 0);
        for (at, merge) in found.iter().enumerate() {
            if merge.rank < best.0 {
                best = (merge.rank, at);
            }
        }
        let (rank, at) = best;
        if rank == NONE {
            return;
        }
        tokens[at] = found[at].token;
        tokens.remove(at + 1);
        found.remove(at);
        if at > 0 {
            found[at - 1] = lookup(merges, tokens[at - 1], tokens[at]);
        }
        if at < found.len() {
            found[at] = lookup(merges, tokens[at], tokens[at + 1]);
        }
    }
}

/// Merges in place, with a heap over a linked list of the remaining tokens.
fn merge_long(merges: &Merges, tokens: &mut Vec<TokenId>) {
    let n = tokens.len();
    let mut previous: Vec<u32> = (0..n as u32).map(|i| i.wrapping_sub(1)).collect();
    let mut next: Vec<u32> = (1..=n as u32).collect();
    next[n - 1] = NONE;
    let mut found: Vec<Merge> = tokens.windows(2).map(|pair| lookup(merges, pair[0], pair[1])).collect();
    found.push(NO_MERGE);
    // A heap entry is stale if the pair in its place now has another rule.
    let mut heap: BinaryHeap<Reverse<(u32, u32)>> =
        (0..n).filter(|&at| found[at].rank != NONE).map(|at| Reverse((found[at].rank, at as u32))).collect();
    while let Some(Reverse((rank, at))) = heap.pop() {
        let left = at as usize;
        if found[left].rank != rank {
            continue;
        }
        let right = next[left] as usize;
        tokens[left] = found[left].token;
        tokens[right] = NONE;
        found[right] = NO_MERGE;
        next[left] = next[right];
        if next[left] != NONE {
            previous[next[left] as usize] = at;
        }
        let mut renew = |at: usize| {
            found[at] = match next[at] {
                NONE => NO_MERGE,
                after => lookup(merges, tokens[at], tokens[after as usize]),
            };
            if found[at].rank != NONE {
                heap.push(Reverse((found[at].rank, at as u32)));
            }
        };
        renew(left);
        if previous[left] != NONE {
            renew(previous[left] as usize);
        }
    }
    tokens.retain(|&token| token != NONE);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Both ways of merging give the same result.
        #[test]
        fn short_and_long_agree(
            rules in prop::collection::vec((0u32..12, 0u32..12), 0..40),
            word in prop::collection::vec(0u32..4, 1..200),
        ) {
            let mut merges = Merges::new();
            for (rank, pair) in rules.into_iter().enumerate() {
                // The number of the new token is any function of the pair.
                let token = 4 + (pair.0 * 31 + pair.1) % 8;
                merges.entry(pair).or_insert(Merge { rank: rank as u32, token });
            }
            let (mut short, mut long) = (word.clone(), word);
            merge_short(&merges, &mut short, &mut Vec::new());
            merge_long(&merges, &mut long);
            prop_assert_eq!(short, long);
        }
    }
}
