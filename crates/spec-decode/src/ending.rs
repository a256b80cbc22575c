//! Keeping the end of a constrained text in reach of its limit.
//!
//! Behind every token a way to the end is known that fits into the tokens that are left. A token behind which
//! none is found is not taken: the first one of the known way takes its place. So the text ends where its
//! constraint lets it, and never for want of tokens. Once the known way fills the limit, all that is left to
//! come is certain, and costs no logits.
//!
//! Which tokens that concerns depends on the text and on the limit, not on how the text was drafted.

use breakers_core::{Constraint, TokenId};

use crate::{Error, Result};

/// Tokens before the limit from which on the end is watched. No constraint in use is more than this many
/// tokens from its end, so that nothing needs to be done before.
const HORIZON: usize = 4096;

/// Whether a text is led to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leash {
    On,
    Off,
}

/// Ways to the end of a text.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    leash: Leash,
    /// `ways[i]`: the way from behind the output and `i` tokens more, where it was looked for.
    ways: Vec<Option<Vec<TokenId>>>,
}

impl Ending {
    pub(crate) fn new(leash: Leash) -> Self {
        Self { leash, ways: Vec::new() }
    }

    /// Whether the end has to be watched where `left` tokens may come, the end token among them.
    pub(crate) fn watches(&self, left: usize) -> bool {
        self.leash == Leash::On && left <= HORIZON
    }

    /// Finds the way from behind the output. Before the first token, a limit that none fits into is an error.
    pub(crate) fn begin(
        &mut self,
        constraint: &mut dyn Constraint,
        n_output: usize,
        left: usize,
    ) -> Result<()> {
        if self.leash == Leash::Off || (n_output > 0 && !self.watches(left)) {
            return Ok(());
        }
        if n_output == 0 && self.way(0).is_none() {
            let Some(shortest) = constraint.completion(HORIZON)? else {
                self.leash = Leash::Off;
                return Ok(());
            };
            let minimum = shortest.len() + 1;
            if minimum > left {
                return Err(Error::TooFewTokens { minimum, limit: left });
            }
            self.put(0, shortest);
        }
        if self.watches(left) {
            self.find(constraint, 0, left)?;
        }
        Ok(())
    }

    /// Makes sure that the way from behind `n_ahead` tokens is known; whether it is.
    pub(crate) fn find(
        &mut self,
        constraint: &mut dyn Constraint,
        n_ahead: usize,
        left: usize,
    ) -> Result<bool> {
        if self.leash == Leash::On && self.way(n_ahead).is_none() {
            match constraint.completion(left.saturating_sub(1))? {
                Some(way) if way.len() < left => self.put(n_ahead, way),
                // It is too late, or nobody knows.
                _ => self.leash = Leash::Off,
            }
        }
        Ok(self.leash == Leash::On)
    }

    /// Whether an end is within reach behind `n_ahead` tokens.
    pub(crate) fn reaches(
        &mut self,
        constraint: &mut dyn Constraint,
        n_ahead: usize,
        within: usize,
    ) -> Result<bool> {
        if self.way(n_ahead).is_some_and(|way| way.len() <= within) {
            return Ok(true);
        }
        match constraint.completion(within)? {
            Some(way) if way.len() <= within => {
                self.put(n_ahead, way);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The next token of the way from behind `n_ahead` tokens; `None` at its end.
    pub(crate) fn next(&self, n_ahead: usize) -> Option<TokenId> {
        self.way(n_ahead)?.first().copied()
    }

    /// That token, if the way fills what is left.
    pub(crate) fn next_of_tight(&self, n_ahead: usize, left: usize) -> Option<Option<TokenId>> {
        let way = self.way(n_ahead).filter(|_| self.watches(left))?;
        (way.len() + 1 >= left).then(|| way.first().copied())
    }

    /// Notes that a token was advanced, `n_ahead` tokens standing behind the output with it.
    pub(crate) fn advanced(&mut self, n_ahead: usize, token: TokenId) {
        let before = n_ahead.checked_sub(1).and_then(|before| self.way(before));
        if let Some([first, rest @ ..]) = before.map(Vec::as_slice)
            && *first == token
        {
            let rest = rest.to_vec();
            self.put(n_ahead, rest);
        }
    }

    /// Forgets what lies behind `n_ahead` tokens.
    pub(crate) fn back_to(&mut self, n_ahead: usize) {
        self.ways.truncate(n_ahead + 1);
    }

    /// Makes the first `n_ahead` tokens part of the output.
    pub(crate) fn keep(&mut self, n_ahead: usize) {
        self.ways.drain(..n_ahead.min(self.ways.len()));
    }

    fn way(&self, n_ahead: usize) -> Option<&Vec<TokenId>> {
        self.ways.get(n_ahead)?.as_ref()
    }

    fn put(&mut self, n_ahead: usize, way: Vec<TokenId>) {
        if self.ways.len() <= n_ahead {
            self.ways.resize(n_ahead + 1, None);
        }
        self.ways[n_ahead] = Some(way);
    }
}
