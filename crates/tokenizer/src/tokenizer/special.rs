//! Finding special tokens in text.
//!
//! # Source
//! The order is llama.cpp's: longer tokens first; each takes all of its occurrences, from left to right, in
//! the text that longer tokens have left. (Leftmost-longest matching, as in Hugging Face's tokenizers,
//! differs where a longer token starts within a shorter one.)

use std::{cmp::Ordering, ops::Range};

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use breakers_core::TokenId;
use memchr::memmem;

/// A token that is found in text before the text is split into words.
#[derive(Clone, Debug)]
pub(super) struct SpecialToken {
    pub(super) id: TokenId,
    pub(super) text: String,
    /// Recognized only if special tokens are parsed; the others are recognized in any text.
    pub(super) only_if_parsed: bool,
    /// Includes the spaces before it.
    pub(super) strip_left: bool,
    /// Includes the spaces after it.
    pub(super) strip_right: bool,
}

/// A stretch of text without special tokens, or one of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fragment {
    Text(Range<usize>),
    Token(TokenId),
}

/// All special tokens of a model.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    always: Searcher,
    parsed: Searcher,
}

impl SpecialTokens {
    pub(super) fn new(mut tokens: Vec<SpecialToken>) -> Self {
        tokens.retain(|token| !token.text.is_empty());
        tokens.sort_by_key(|token| (std::cmp::Reverse(token.text.len()), token.id));
        let always = tokens.iter().filter(|token| !token.only_if_parsed).cloned().collect();
        Self { always: Searcher::new(always), parsed: Searcher::new(tokens) }
    }

    /// The fragments of `text`, in order.
    pub(super) fn split(&self, text: &str, parse_special: bool) -> Vec<Fragment> {
        if parse_special { self.parsed.split(text) } else { self.always.split(text) }
    }

    /// The places, in ascending order and possibly overlapping, where the text spells a token that is
    /// recognized only if special tokens are parsed.
    pub(super) fn spelled_controls(&self, text: &str) -> Vec<usize> {
        self.parsed.spelled_controls(text)
    }
}

/// # Cost
/// O(n) in the length of the text for one pass, and O(n) more for each token that occurs in more than a 16th
/// of all places; there can only be a few of these.
#[derive(Debug)]
struct Searcher {
    /// Longest first.
    tokens: Vec<SpecialToken>,
    /// Finds the occurrences of all tokens in one pass. `None` if there are no tokens, or too many; then each
    /// is searched for separately.
    all: Option<AhoCorasick>,
}

/// Where a token occurs: its index and its first byte.
type Occurrence = (u32, u32);

impl Searcher {
    fn new(tokens: Vec<SpecialToken>) -> Self {
        let all = (!tokens.is_empty())
            .then(|| {
                AhoCorasick::builder()
                    .match_kind(MatchKind::Standard)
                    .kind(Some(AhoCorasickKind::ContiguousNFA))
                    .build(tokens.iter().map(|token| &token.text))
                    .ok()
            })
            .flatten();
        Self { tokens, all }
    }

    fn spelled_controls(&self, text: &str) -> Vec<usize> {
        let mut starts: Vec<usize> = match &self.all {
            Some(all) => {
                let hits = all.find_overlapping_iter(text);
                hits.filter(|hit| self.tokens[hit.pattern()].only_if_parsed).map(|hit| hit.start()).collect()
            }
            None => {
                let controls = self.tokens.iter().filter(|token| token.only_if_parsed);
                controls.flat_map(|token| text.match_indices(&token.text).map(|(start, _)| start)).collect()
            }
        };
        starts.sort_unstable();
        starts.dedup();
        starts
    }

    fn split(&self, text: &str) -> Vec<Fragment> {
        let (rare, frequent) = self.occurrences(text);
        if rare.is_empty() && frequent.is_empty() {
            return (!text.is_empty()).then_some(Fragment::Text(0..text.len())).into_iter().collect();
        }
        let mut claims = Claims::new(text);
        let mut rare = rare.into_iter().peekable();
        for (index, token) in self.tokens.iter().enumerate() {
            while let Some((_, start)) = rare.next_if(|&(other, _)| other as usize == index) {
                claims.claim(token, start as usize);
            }
            if frequent.contains(&index) {
                claims.claim_all(token);
            }
        }
        claims.into_fragments()
    }

    /// The places of rare tokens, in the order in which they must be claimed, and the tokens that occur so
    /// often that their places would take more memory than the text.
    fn occurrences(&self, text: &str) -> (Vec<Occurrence>, Vec<usize>) {
        let Some(all) = &self.all else { return (Vec::new(), (0..self.tokens.len()).collect()) };
        let limit = text.len() / 16 + 1024;
        let (mut rare, mut frequent) = (Vec::new(), Vec::new());
        let mut counts = Vec::new();
        for hit in all.find_overlapping_iter(text) {
            counts.resize(self.tokens.len(), 0);
            let index = hit.pattern().as_usize();
            counts[index] += 1;
            match counts[index].cmp(&limit) {
                Ordering::Less => rare.push((index as u32, hit.start() as u32)),
                Ordering::Equal => frequent.push(index),
                Ordering::Greater => {}
            }
        }
        rare.retain(|&(index, _)| counts[index as usize] < limit);
        rare.sort_unstable();
        (rare, frequent)
    }
}

/// Which bytes of a text belong to special tokens.
struct Claims<'a> {
    text: &'a str,
    /// Empty until something is claimed.
    taken: Vec<bool>,
    /// Claimed bytes, including the spaces that belong to the token.
    claimed: Vec<(Range<usize>, TokenId)>,
}

impl<'a> Claims<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, taken: Vec::new(), claimed: Vec::new() }
    }

    fn is_taken(&self, at: usize) -> bool {
        self.taken.get(at).copied().unwrap_or(false)
    }

    /// Claims the place of a token that occurs at `start`, unless a byte of it is taken.
    fn claim(&mut self, token: &SpecialToken, start: usize) {
        let end = start + token.text.len();
        // Everything claimed so far is at least as long as the token, so it cannot be inside of it.
        if self.is_taken(start) || self.is_taken(end - 1) {
            return;
        }
        self.taken.resize(self.text.len(), false);
        let is_space =
            |at: &usize| matches!(self.text.as_bytes()[*at], b' ' | b'\t'..=b'\r') && !self.taken[*at];
        let before = if token.strip_left { (0..start).rev().take_while(is_space).count() } else { 0 };
        let after = if token.strip_right { (end..self.text.len()).take_while(is_space).count() } else { 0 };
        let range = start - before..end + after;
        self.taken[range.clone()].fill(true);
        self.claimed.push((range, token.id));
    }

    /// Claims all free places of a token, from left to right.
    fn claim_all(&mut self, token: &SpecialToken) {
        let finder = memmem::Finder::new(&token.text);
        let mut at = 0;
        while let Some(found) = self.text.as_bytes().get(at..).and_then(|rest| finder.find(rest)) {
            self.claim(token, at + found);
            at += found + 1;
        }
    }

    fn into_fragments(mut self) -> Vec<Fragment> {
        self.claimed.sort_unstable_by_key(|(range, _)| range.start);
        let mut fragments = Vec::with_capacity(2 * self.claimed.len() + 1);
        let mut at = 0;
        for (range, token) in self.claimed {
            if at < range.start {
                fragments.push(Fragment::Text(at..range.start));
            }
            fragments.push(Fragment::Token(token));
            at = range.end;
        }
        if at < self.text.len() {
            fragments.push(Fragment::Text(at..self.text.len()));
        }
        fragments
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(id: TokenId, text: &str) -> SpecialToken {
        SpecialToken {
            id,
            text: text.to_owned(),
            only_if_parsed: id < 10,
            strip_left: id == 8,
            strip_right: id == 9,
        }
    }

    fn check(text: &str, parse_special: bool, expected: &str) {
        let specials = SpecialTokens::new(vec![
            token(1, "<a>"),
            token(2, "<a><b>"),
            token(3, "b>c"),
            token(8, "<left>"),
            token(9, "<right>"),
            token(10, "\n"),
            token(11, "\n\n"),
            token(12, ""),
        ]);
        let shown: Vec<String> = specials
            .split(text, parse_special)
            .into_iter()
            .map(|fragment| match fragment {
                Fragment::Text(range) => format!("{:?}", &text[range]),
                Fragment::Token(id) => id.to_string(),
            })
            .collect();
        assert_eq!(shown.join(" "), expected, "{text:?}");
    }

    #[test]
    fn longer_tokens_go_first() {
        check("", true, "");
        check("x<a>y", true, r#""x" 1 "y""#);
        check("x<a>y", false, r#""x<a>y""#);
        check("<a><a><b>c", true, r#"1 2 "c""#);
        check("<b>c<b>c", true, r#""<" 3 "<" 3"#);
        check("\n\n\n x", false, r#"11 10 " x""#);
        check("a <left> b <right> \n\n c", true, r#""a" 8 " b " 9 "c""#);
    }

    /// A literal implementation of the definition: each token in turn takes its places in what is left.
    fn plain_split(tokens: &[SpecialToken], text: &str) -> Vec<Fragment> {
        let mut tokens: Vec<_> = tokens.iter().collect();
        tokens.sort_by_key(|token| (std::cmp::Reverse(token.text.len()), token.id));
        let mut fragments = vec![Fragment::Text(0..text.len())];
        for token in tokens {
            fragments = fragments
                .into_iter()
                .flat_map(|fragment| {
                    let Fragment::Text(range) = fragment else { return vec![fragment] };
                    let (mut at, mut out) = (range.start, Vec::new());
                    while let Some(found) = text[at..range.end].find(&token.text) {
                        out.push(Fragment::Text(at..at + found));
                        out.push(Fragment::Token(token.id));
                        at += found + token.text.len();
                    }
                    out.push(Fragment::Text(at..range.end));
                    out
                })
                .collect();
        }
        fragments.retain(|fragment| !matches!(fragment, Fragment::Text(range) if range.is_empty()));
        fragments
    }

    proptest! {
        #[test]
        fn one_pass_equals_many(
            texts in prop::collection::btree_set("[ab]{1,5}", 1..8),
            words in prop::collection::vec("[abc]{0,9}", 0..9),
            repeat in prop_oneof![4 => Just(1usize), 1 => Just(2000usize)],
        ) {
            let tokens: Vec<_> = texts.iter().zip(20..).map(|(text, id)| token(id, text)).collect();
            let text = words.concat().repeat(repeat);
            let expected = plain_split(&tokens, &text);
            prop_assert_eq!(SpecialTokens::new(tokens).split(&text, false), expected);
        }
    }
}
