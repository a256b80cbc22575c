//! An index of all substrings of a growing text.
//!
//! # Source
//! Blumer et al., "The smallest automaton recognizing the subwords of a text", Theoretical Computer Science
//! 40 (1985), sections 2 and 3 (on-line construction).
//!
//! # Cost
//! Amortized constant per token: at most 2n − 1 states and 3n − 4 edges for n tokens; edges copied by a split
//! are new and are never removed. Marking where a match was last seen follows at most [`MARKED`] suffix
//! links.
//!
//! # Memory
//! At most 2·20 + 3·12 bytes per token, and 12 bytes per edge in the hash index (over its load factor).

use std::collections::HashMap;

use breakers_core::TokenId;

/// How many suffix links a token marks as seen. The chain of links is longer than this only in periodic text
/// (one link per repetition), where an older occurrence continues in the same way as the latest one.
pub(crate) const MARKED: usize = 32;

const NONE: u32 = u32::MAX;
pub(crate) const ROOT: u32 = 0;

/// A set of substrings that end at the same places.
#[derive(Clone, Debug)]
struct State {
    /// Length of the longest of them.
    length: u32,
    /// The state of its longest suffix that ends at more places.
    link: u32,
    first_edge: u32,
    /// Where it last ended (the number of tokens up to there).
    latest: u32,
    /// How often it was seen.
    count: u32,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    token: TokenId,
    target: u32,
    next: u32,
}

/// The longest suffix of the text that also occurs earlier in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Match {
    /// Its state.
    pub(crate) state: u32,
    /// Its length in tokens, 0 if even the last token is new.
    pub(crate) length: usize,
    /// Where its latest earlier occurrence ends: the text goes on at this index.
    pub(crate) end: usize,
}

/// A possible continuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Continuation {
    pub(crate) token: TokenId,
    pub(crate) state: u32,
    pub(crate) count: u32,
    pub(crate) latest: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct SuffixAutomaton {
    text: Vec<TokenId>,
    states: Vec<State>,
    edges: Vec<Edge>,
    index: HashMap<(u32, TokenId), u32>,
    last: u32,
    matched: Match,
}

impl SuffixAutomaton {
    pub(crate) fn new() -> Self {
        let root = State { length: 0, link: NONE, first_edge: NONE, latest: 0, count: 0 };
        Self {
            text: Vec::new(),
            states: vec![root],
            edges: Vec::new(),
            index: HashMap::new(),
            last: ROOT,
            matched: Match::default(),
        }
    }

    /// Forgets the text and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.states.truncate(1);
        self.states[0].first_edge = NONE;
        self.edges.clear();
        self.index.clear();
        self.last = ROOT;
        self.matched = Match::default();
    }

    pub(crate) fn text(&self) -> &[TokenId] {
        &self.text
    }

    pub(crate) fn matched(&self) -> Match {
        self.matched
    }

    /// Length of the longest string of a state.
    pub(crate) fn length(&self, state: u32) -> usize {
        self.states[state as usize].length as usize
    }

    /// The state of the longest suffix that ends at more places; `None` for the root.
    pub(crate) fn link(&self, state: u32) -> Option<u32> {
        Some(self.states[state as usize].link).filter(|&link| link != NONE)
    }

    /// The tokens that followed the strings of a state.
    pub(crate) fn continuations(&self, state: u32) -> impl Iterator<Item = Continuation> + '_ {
        let mut edge = self.states[state as usize].first_edge;
        std::iter::from_fn(move || {
            let Edge { token, target, next } = *self.edges.get(edge as usize)?;
            edge = next;
            let State { count, latest, .. } = self.states[target as usize];
            Some(Continuation { token, state: target, count, latest })
        })
    }

    /// Appends a token.
    pub(crate) fn push(&mut self, token: TokenId) {
        self.text.push(token);
        let end = self.text.len() as u32;
        let current =
            self.add_state(State { length: end, link: ROOT, first_edge: NONE, latest: end, count: 1 });
        let mut state = self.last;
        while state != NONE && !self.index.contains_key(&(state, token)) {
            self.add_edge(state, token, current);
            state = self.states[state as usize].link;
        }
        if state != NONE {
            self.states[current as usize].link = self.suffix_state(state, token);
        }
        self.last = current;
        let link = self.states[current as usize].link;
        let State { length, latest, .. } = self.states[link as usize];
        self.matched = Match { state: link, length: length as usize, end: latest as usize };
        self.mark(link, end);
    }

    /// The state of the longest string of `state` followed by `token`, split off if it shares a state with
    /// longer strings that have not been seen now.
    fn suffix_state(&mut self, mut state: u32, token: TokenId) -> u32 {
        let target = self.edges[self.index[&(state, token)] as usize].target;
        let length = self.states[state as usize].length + 1;
        if self.states[target as usize].length == length {
            return target;
        }
        let shared = self.states[target as usize].clone();
        let split = self.add_state(State { length, first_edge: NONE, ..shared });
        let mut edge = shared.first_edge;
        while edge != NONE {
            let Edge { token, target, next } = self.edges[edge as usize];
            self.add_edge(split, token, target);
            edge = next;
        }
        self.states[target as usize].link = split;
        while state != NONE {
            let Some(&edge) = self.index.get(&(state, token)) else { break };
            let edge = &mut self.edges[edge as usize];
            if edge.target != target {
                break;
            }
            edge.target = split;
            state = self.states[state as usize].link;
        }
        split
    }

    fn mark(&mut self, mut state: u32, end: u32) {
        for _ in 0..MARKED {
            if state == ROOT {
                break;
            }
            let seen = &mut self.states[state as usize];
            seen.latest = end;
            seen.count += 1;
            state = seen.link;
        }
    }

    fn add_state(&mut self, state: State) -> u32 {
        self.states.push(state);
        self.states.len() as u32 - 1
    }

    fn add_edge(&mut self, state: u32, token: TokenId, target: u32) {
        let edge = self.edges.len() as u32;
        let next = std::mem::replace(&mut self.states[state as usize].first_edge, edge);
        self.edges.push(Edge { token, target, next });
        self.index.insert((state, token), edge);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &[TokenId]) -> SuffixAutomaton {
        let mut automaton = SuffixAutomaton::new();
        text.iter().for_each(|&t| automaton.push(t));
        automaton
    }

    /// Length and latest end of the longest suffix that occurs earlier, found by trying all of them.
    fn longest_repeated_suffix(text: &[TokenId]) -> (usize, usize) {
        let n = text.len();
        for length in (1..n).rev() {
            let suffix = &text[n - length..];
            if let Some(start) = (0..n - length).rev().find(|&s| &text[s..s + length] == suffix) {
                return (length, start + length);
            }
        }
        (0, 0)
    }

    fn occurrences(text: &[TokenId], pattern: &[TokenId]) -> u32 {
        text.windows(pattern.len()).filter(|w| *w == pattern).count() as u32
    }

    #[test]
    fn size_stays_linear_in_the_text() {
        // a b b b …: the most states; a b a a b b …: many edges.
        let worst: Vec<TokenId> = std::iter::once(0).chain(std::iter::repeat_n(1, 4999)).collect();
        let random: Vec<TokenId> = (0..5000u32).map(|i| i.wrapping_mul(2654435761) >> 27).collect();
        for text in [worst, random] {
            let automaton = of(&text);
            assert!(automaton.states.len() < 2 * text.len(), "{} states", automaton.states.len());
            assert!(automaton.edges.len() < 3 * text.len(), "{} edges", automaton.edges.len());
        }
    }

    #[test]
    fn clear_forgets_everything() {
        let mut automaton = of(&[1, 2, 1, 2]);
        automaton.clear();
        assert_eq!(automaton.continuations(ROOT).count(), 0);
        automaton.push(2);
        assert_eq!(automaton.matched(), Match::default());
        automaton.push(2);
        assert_eq!((automaton.matched().length, automaton.matched().end), (1, 1));
    }

    proptest! {
        /// Texts that are so short that no chain of links is cut off.
        #[test]
        fn finds_the_latest_longest_match(text in prop::collection::vec(0u32..4, 1..=MARKED)) {
            let mut automaton = SuffixAutomaton::new();
            for n in 1..=text.len() {
                automaton.push(text[n - 1]);
                let Match { length, end, .. } = automaton.matched();
                let (expected, latest) = longest_repeated_suffix(&text[..n]);
                prop_assert_eq!(length, expected);
                if length > 0 {
                    prop_assert_eq!(end, latest);
                }
            }
        }

        #[test]
        fn counts_what_followed(text in prop::collection::vec(0u32..3, 1..=MARKED)) {
            let automaton = of(&text);
            let Match { state, length, .. } = automaton.matched();
            prop_assume!(length > 0);
            let suffix = &text[text.len() - length..];
            let followed: Vec<Continuation> = automaton.continuations(state).collect();
            for token in 0..3 {
                let mut pattern = suffix.to_vec();
                pattern.push(token);
                let found = followed.iter().find(|c| c.token == token).map_or(0, |c| c.count);
                prop_assert_eq!(found, occurrences(&text, &pattern), "{:?} in {:?}", pattern, text);
            }
        }

        /// Whatever the period, a match is a true earlier occurrence of the longest suffix.
        #[test]
        fn a_match_in_periodic_text_is_an_occurrence(
            period in prop::collection::vec(0u32..3, 1..6), repetitions in 1usize..120, tail in prop::collection::vec(0u32..3, 0..4),
        ) {
            let mut text: Vec<TokenId> = period.iter().copied().cycle().take(period.len() * repetitions).collect();
            text.extend(tail);
            let Match { length, end, .. } = of(&text).matched();
            prop_assert_eq!(length, longest_repeated_suffix(&text).0);
            prop_assert!(end < text.len());
            prop_assert_eq!(&text[end - length..end], &text[text.len() - length..]);
        }
    }
}
