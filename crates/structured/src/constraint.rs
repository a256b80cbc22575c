use std::fmt;
use std::sync::Arc;

use breakers_core::{Constraint, ConstraintError, SharedError, TokenId, TokenMask};
use llguidance::Matcher;

use crate::completion::Ways;

/// A text under a compiled grammar, token by token. Made by
/// [`Compiler::constraint`](crate::Compiler::constraint).
///
/// # Errors
/// [`ConstraintError::Failed`] once the engine has met a limit of its own; it stays failed.
pub struct GrammarConstraint {
    matcher: Matcher,
    n_tokens: usize,
    advanced: Vec<TokenId>,
    ways: Ways,
}

impl GrammarConstraint {
    pub(crate) fn new(matcher: Matcher, n_tokens: usize) -> Self {
        Self { matcher, n_tokens, advanced: Vec::new(), ways: Ways::default() }
    }

    /// Whether the text may end here.
    ///
    /// # Errors
    /// [`ConstraintError::Failed`].
    pub fn may_end(&mut self) -> Result<bool, ConstraintError> {
        Ok(self.matcher.is_stopped() || self.matcher.is_accepting().map_err(failed)?)
    }
}

impl fmt::Debug for GrammarConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarConstraint").field("n_advanced", &self.advanced.len()).finish_non_exhaustive()
    }
}

/// What the engine says.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct EngineError(String);

fn failed(error: impl fmt::Display) -> ConstraintError {
    ConstraintError::Failed(Arc::new(EngineError(error.to_string())) as SharedError)
}

impl Constraint for GrammarConstraint {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        let found = self.matcher.compute_mask_or_eos().map_err(failed)?;
        *mask = TokenMask::from_words(self.n_tokens.min(mask.n_tokens()), found.as_slice().to_vec());
        Ok(())
    }

    fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        if let Some(error) = self.matcher.get_error() {
            return Err(failed(error));
        }
        let is_known = (token as usize) < self.n_tokens;
        if !is_known
            || self.matcher.is_stopped()
            || self.matcher.try_consume_tokens(&[token]).map_err(failed)? == 0
        {
            return Err(ConstraintError::NotAllowed { token });
        }
        self.advanced.push(token);
        Ok(())
    }

    fn rollback(&mut self, n_tokens: usize) -> Result<(), ConstraintError> {
        let available = self.advanced.len();
        let left = available.checked_sub(n_tokens);
        let left = left.ok_or(ConstraintError::Rollback { requested: n_tokens, available })?;
        self.advanced.truncate(left);
        self.ways.back_to(left);
        self.matcher.rollback(n_tokens).map_err(failed)
    }

    /// What the characters determine, as the tokenizer spells it. Where the engine leaves it open how they are
    /// spelled, without what may yet merge with the characters that follow.
    fn forced(&mut self) -> Result<Vec<TokenId>, ConstraintError> {
        if self.matcher.is_stopped() {
            return Ok(Vec::new());
        }
        let tokens = self.matcher.compute_ff_tokens();
        if !tokens.is_empty() {
            return Ok(tokens);
        }
        let bytes = self.matcher.compute_ff_bytes();
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let environment = self.matcher.tok_env().map_err(failed)?;
        let mut tokens = environment.tokenize_bytes(&bytes);
        tokens.pop();
        Ok(tokens)
    }

    fn completion(&mut self, within: usize) -> Result<Option<Vec<TokenId>>, ConstraintError> {
        if self.may_end()? {
            return Ok(Some(Vec::new()));
        }
        self.ways.find(&mut self.matcher, &self.advanced, within).map_err(failed)
    }
}
