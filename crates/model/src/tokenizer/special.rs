//! Finding special tokens in text.
//!
//! # Source
//! The order is llama.cpp's: longer tokens first; each takes all of its occurrences, from left to right, in
//! the text that longer ones have left. (Leftmost-longest matching, as in Hugging Face's tokenizers, differs
//! where a longer token starts within a shorter one.)

use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use breakers_core::TokenId;
use memchr::memmem;

/// A token that is found in text before the text is split into words.
#[derive(Clone, Debug)]
pub(super) struct SpecialToken {
    pub(super) id: TokenId,
    pub(super) text: String,
    /// Found only if special tokens are parsed; the others are found in any text.
    pub(super) only_if_parsed: bool,
    /// Takes the spaces before it along.
    pub(super) strip_left: bool,
    /// Takes the spaces after it along.
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
}

#[derive(Debug)]
struct Searcher {
    /// Longest first.
    tokens: Vec<SpecialToken>,
    /// Tells which of the tokens occur at all, so that the others cost nothing. `None` without tokens, and
    /// where they are too many for it: every token is searched for then.
    any: Option<AhoCorasick>,
}

impl Searcher {
    fn new(tokens: Vec<SpecialToken>) -> Self {
        let any = (!tokens.is_empty())
            .then(|| {
                AhoCorasick::builder()
                    .match_kind(MatchKind::Standard)
                    .kind(Some(AhoCorasickKind::ContiguousNFA))
                    .build(tokens.iter().map(|token| &token.text))
                    .ok()
            })
            .flatten();
        Self { tokens, any }
    }

    fn split(&self, text: &str) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        if !text.is_empty() {
            fragments.push(Fragment::Text(0..text.len()));
        }
        for index in self.occurring(text) {
            let token = &self.tokens[index];
            let finder = memmem::Finder::new(&token.text);
            let mut split = Vec::with_capacity(fragments.len());
            for fragment in fragments {
                match fragment {
                    Fragment::Text(range) => split_at(text, range, token, &finder, &mut split),
                    done => split.push(done),
                }
            }
            fragments = split;
        }
        fragments
    }

    /// Tokens that may occur in `text`, longest first.
    fn occurring(&self, text: &str) -> Vec<usize> {
        let Some(any) = &self.any else { return (0..self.tokens.len()).collect() };
        let mut seen = vec![false; self.tokens.len()];
        let mut found = Vec::new();
        for hit in any.find_overlapping_iter(text) {
            let index = hit.pattern().as_usize();
            if !std::mem::replace(&mut seen[index], true) {
                found.push(index);
            }
        }
        found.sort_unstable();
        found
    }
}

/// Splits one stretch of text at every occurrence of one token.
fn split_at(
    text: &str,
    range: Range<usize>,
    token: &SpecialToken,
    finder: &memmem::Finder<'_>,
    out: &mut Vec<Fragment>,
) {
    let is_space = |c: char| matches!(c, ' ' | '\t'..='\r');
    let (mut start, end) = (range.start, range.end);
    while let Some(at) = finder.find(&text.as_bytes()[start..end]) {
        let before = &text[start..start + at];
        let kept = if token.strip_left { before.trim_end_matches(is_space) } else { before };
        if !kept.is_empty() {
            out.push(Fragment::Text(start..start + kept.len()));
        }
        out.push(Fragment::Token(token.id));
        start += at + token.text.len();
        if token.strip_right {
            let rest = &text[start..end];
            start += rest.len() - rest.trim_start_matches(is_space).len();
        }
    }
    if start < end {
        out.push(Fragment::Text(start..end));
    }
}

#[cfg(test)]
mod tests {
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
}
