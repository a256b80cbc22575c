//! Where a text stands: in its grammar, and in the checks that some schemas need beside it.

use std::sync::Arc;

use breakers_core::{TokenId, TokenMask};
use llguidance::Matcher;
use llguidance::toktrie::TokEnv;

use crate::check::Checked;
use crate::completion::Engine;
use crate::words::Words;

/// A grammar's engine, and what looks at values when they end.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) matcher: Matcher,
    pub(crate) checked: Option<Checked>,
    pub(crate) words: Arc<Words>,
}

impl State {
    /// Follows a token, unless the text could not become valid after it.
    ///
    /// # Errors
    /// What the engine says.
    pub(crate) fn advance(&mut self, token: TokenId) -> Result<bool, String> {
        if let Some(error) = self.matcher.get_error() {
            return Err(error);
        }
        if self.matcher.is_stopped() || self.matcher.try_consume_tokens(&[token]).map_err(text)? == 0 {
            return Ok(false);
        }
        let mut is_possible = self.checked.as_mut().is_none_or(|checked| checked.advance(token));
        if is_possible && !self.may_go_on()? {
            if let Some(checked) = &mut self.checked {
                checked.rollback(1);
            }
            is_possible = false;
        }
        if !is_possible {
            self.matcher.rollback(1).map_err(text)?;
        }
        Ok(is_possible)
    }

    /// A zero below zero has to go on with a point, which it may not as an integer.
    fn may_go_on(&mut self) -> Result<bool, String> {
        if !self.checked.as_ref().is_some_and(Checked::is_below_zero) {
            return Ok(true);
        }
        let environment = self.environment()?;
        let Some(point) = environment.tok_trie().token_id(b".") else { return Ok(true) };
        Ok(self.matcher.validate_tokens(&[point]).map_err(text)? == 1)
    }

    /// Takes tokens back.
    ///
    /// # Errors
    /// What the engine says.
    pub(crate) fn rollback(&mut self, n_tokens: usize) -> Result<(), String> {
        if let Some(checked) = &mut self.checked {
            checked.rollback(n_tokens);
        }
        self.matcher.rollback(n_tokens).map_err(text)
    }

    /// How many of these tokens the checks let through, one after the other. The state stays as it is.
    pub(crate) fn n_possible(&mut self, tokens: &[TokenId]) -> usize {
        let Some(checked) = &mut self.checked else { return tokens.len() };
        let n = tokens.iter().take_while(|&&token| checked.advance(token)).count();
        checked.rollback(n);
        n
    }
}

impl Engine for State {
    fn environment(&self) -> Result<TokEnv, String> {
        self.matcher.tok_env().map_err(text)
    }

    fn may_end(&mut self) -> Result<bool, String> {
        if let Some(error) = self.matcher.get_error() {
            return Err(error);
        }
        let may_end = self.matcher.is_stopped() || self.matcher.is_accepting().map_err(text)?;
        Ok(may_end && self.checked.as_mut().is_none_or(Checked::is_valid))
    }

    fn mask(&mut self) -> Result<TokenMask, String> {
        let found = self.matcher.compute_mask_or_eos().map_err(text)?;
        let mut mask = TokenMask::from_words(found.len(), found.as_slice().to_vec());
        let Some(checked) = &mut self.checked else { return Ok(mask) };
        checked.restrict(&mut mask);
        for token in checked.zeros(&mask) {
            match self.advance(token)? {
                true => self.rollback(1)?,
                false => mask.forbid(token),
            }
        }
        Ok(mask)
    }

    fn back(&mut self) -> Result<(), String> {
        self.rollback(1)
    }

    fn follow(&mut self, token: TokenId) -> Result<(), String> {
        match self.advance(token)? {
            true => Ok(()),
            false => Err(format!("token {token} may not come next")),
        }
    }

    fn forced(&mut self) -> Option<TokenId> {
        self.matcher.compute_ff_tokens().first().copied()
    }

    fn fits(&mut self, tokens: &[TokenId]) -> Result<bool, String> {
        let fits = self.matcher.validate_tokens(tokens).map_err(text)? == tokens.len();
        Ok(fits && self.n_possible(tokens) == tokens.len())
    }

    fn is_slow(&self) -> bool {
        self.checked.as_ref().is_some_and(Checked::has_check)
    }

    fn words(&self) -> Arc<Words> {
        self.words.clone()
    }

    fn leads_to_end(&mut self, way: &[TokenId]) -> Result<bool, String> {
        let end = self.environment()?.tok_trie().eos_token();
        let whole = [way, &[end]].concat();
        if self.matcher.validate_tokens(&whole).map_err(text)? < whole.len() {
            return Ok(false);
        }
        let Some(checked) = &mut self.checked else { return Ok(true) };
        let n = way.iter().take_while(|&&token| checked.advance(token)).count();
        let is_valid = n == way.len() && checked.is_valid();
        checked.rollback(n);
        Ok(is_valid)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
