//! SentencePiece's byte-pair encoding.
//!
//! Spaces become `▁`, and the text is split into characters. Of all adjacent pairs whose concatenation is a
//! token, the one with the highest score (the leftmost among equal ones) becomes one token, until there is no
//! such pair. Characters that are not tokens are encoded as bytes.
//!
//! # Cost
//! O(n log n) in the length of a stretch of text between two places that no token spans.
//!
//! # Source
//! Kudo, Richardson, "SentencePiece" (2018), `bpe_model.cc`; ids as llama.cpp gives them, where any token can
//! be the result of a merge, even a control token.

use std::{cmp::Ordering, collections::BinaryHeap};

use breakers_core::TokenId;
use hashbrown::HashSet;

use super::vocab::TokenTable;
use crate::{Error, Result};

const NONE: u32 = u32::MAX;

/// What SentencePiece writes for a space.
pub(super) const SPACE: char = '▁';

#[derive(Debug)]
pub(super) struct SentencePiece {
    /// Tokens by their text.
    pub(super) tokens: TokenTable,
    pub(super) scores: Vec<f32>,
    /// The token of each byte.
    pub(super) byte_tokens: Box<[Option<TokenId>; 256]>,
    /// For bytes without a token.
    pub(super) unknown: Option<TokenId>,
    /// Bytes of the longest token.
    longest: usize,
    /// Characters that come before a `▁` within a token. Text can be cut before a `▁` that follows any other
    /// character.
    before_space: HashSet<char>,
}

impl SentencePiece {
    pub(super) fn new(
        tokens: TokenTable,
        scores: Vec<f32>,
        byte_tokens: Box<[Option<TokenId>; 256]>,
        unknown: Option<TokenId>,
    ) -> Self {
        let longest = tokens.texts().iter().map(str::len).max().unwrap_or(0);
        let mut before_space = HashSet::from([SPACE]);
        for text in tokens.texts().iter() {
            for (at, _) in text.match_indices(SPACE) {
                before_space.extend(text[..at].chars().next_back());
            }
        }
        Self { tokens, scores, byte_tokens, unknown, longest, before_space }
    }

    /// Appends the tokens of a text whose spaces are escaped.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<TokenId>) -> Result<()> {
        let mut scratch = Scratch::default();
        let (mut start, mut previous) = (0, None);
        for (at, c) in text.char_indices() {
            if c == SPACE && previous.is_some_and(|p| !self.before_space.contains(&p)) {
                self.encode_stretch(&text[start..at], &mut scratch, out)?;
                start = at;
            }
            previous = Some(c);
        }
        self.encode_stretch(&text[start..], &mut scratch, out)
    }

    fn encode_stretch(&self, text: &str, scratch: &mut Scratch, out: &mut Vec<TokenId>) -> Result<()> {
        let Scratch { symbols, heap } = scratch;
        symbols.clear();
        heap.clear();
        for (at, c) in text.char_indices() {
            let index = symbols.len() as u32;
            symbols.push(Symbol {
                start: at,
                len: c.len_utf8(),
                previous: index.wrapping_sub(1),
                next: index + 1,
            });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        for left in 1..symbols.len() {
            self.propose(text, symbols, left - 1, heap);
        }
        while let Some(candidate) = heap.pop() {
            let left = symbols[candidate.left as usize];
            // A symbol that was merged into another is empty; a pair that has grown has another length.
            if left.len == 0 || left.next == NONE {
                continue;
            }
            let right = symbols[left.next as usize];
            if left.len + right.len != candidate.len {
                continue;
            }
            symbols[left.next as usize].len = 0;
            let merged = &mut symbols[candidate.left as usize];
            merged.len = candidate.len;
            merged.next = right.next;
            if right.next != NONE {
                symbols[right.next as usize].previous = candidate.left;
            }
            if left.previous != NONE {
                self.propose(text, symbols, left.previous as usize, heap);
            }
            self.propose(text, symbols, candidate.left as usize, heap);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match self.tokens.get(piece) {
                Some(token) => out.push(token),
                None => self.spell(piece, out)?,
            }
        }
        Ok(())
    }

    /// Puts the pair that starts at symbol `left` on the heap if it makes a token.
    fn propose(&self, text: &str, symbols: &[Symbol], left: usize, heap: &mut BinaryHeap<Candidate>) {
        let first = symbols[left];
        if first.next == NONE {
            return;
        }
        let len = first.len + symbols[first.next as usize].len;
        if len > self.longest {
            return;
        }
        if let Some(token) = self.tokens.get(&text[first.start..first.start + len]) {
            heap.push(Candidate { score: self.scores[token as usize], left: left as u32, len });
        }
    }

    /// Appends the bytes of `piece`, each as a token.
    fn spell(&self, piece: &str, out: &mut Vec<TokenId>) -> Result<()> {
        for byte in piece.bytes() {
            let token = self.byte_tokens[byte as usize].or(self.unknown);
            out.push(token.ok_or(Error::MissingByte { byte })?);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Scratch {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate>,
}

#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    previous: u32,
    next: u32,
}

/// A pair of symbols that can be merged; the greatest goes first.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// Never NaN.
    score: f32,
    left: u32,
    len: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        // Positive and negative zero are equal scores, so `total_cmp` would be wrong.
        let by_score = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        by_score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}
