use std::fmt;
use std::sync::Arc;

use breakers_core::{Constraint, ConstraintError, SharedError, TokenId, TokenMask};
use llguidance::Matcher;

use crate::Warning;
use crate::check::{Checked, Tokens};
use crate::compiler::Compiled;
use crate::completion::{Engine as _, Ways};
use crate::state::State;

/// A text under a compiled grammar, token by token. Made by
/// [`Compiler::constraint`](crate::Compiler::constraint).
///
/// # Dead ends
/// Where a schema is enforced by checks, a text can come to a place after which nothing is valid, for
/// instance when the last of a few distinct items has been used. The mask is then
/// [`ConstraintError::DeadEnd`]. Roll back one token and ask for the mask again: it lacks the token that led
/// there. A decoder that keeps the end in reach ([`Constraint::completion`]) does not get there.
///
/// # Errors
/// [`ConstraintError::DeadEnd`] as above. [`ConstraintError::Failed`] once the engine has met a limit of its
/// own; it stays failed.
pub struct GrammarConstraint {
    state: State,
    /// The beginning of a text, to come back to from where the engine gives up.
    start: Matcher,
    warnings: Arc<[Warning]>,
    n_tokens: usize,
    advanced: Vec<TokenId>,
    ways: Ways,
    is_at_dead_end: bool,
    /// Tokens that led to a dead end, with the number of tokens before each.
    dead: Vec<(usize, TokenId)>,
}

impl GrammarConstraint {
    pub(crate) fn new(compiled: Compiled, tokens: Arc<Tokens>, n_tokens: usize) -> Self {
        let Compiled { matcher, is_json, check, words, warnings } = compiled;
        let start = matcher.clone();
        let checked = is_json.then(|| Checked::new(check, tokens));
        Self {
            state: State { matcher, checked, words },
            start,
            warnings,
            n_tokens,
            advanced: Vec::new(),
            ways: Ways::default(),
            is_at_dead_end: false,
            dead: Vec::new(),
        }
    }

    /// Whether the text may end here.
    ///
    /// # Errors
    /// [`ConstraintError::Failed`].
    pub fn may_end(&mut self) -> Result<bool, ConstraintError> {
        self.state.may_end().map_err(failed)
    }

    /// Parts of the schema that are not enforced; none if the schema is strict.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Whether more than the grammar is needed: values are looked at when they end.
    pub fn is_checked(&self) -> bool {
        self.state.checked.as_ref().is_some_and(Checked::has_check)
    }

    /// The engine does not go on from where its grammar ends nowhere: the text is fed to it again.
    fn dead_end(&mut self) -> Result<ConstraintError, ConstraintError> {
        let mut matcher = self.start.clone();
        matcher.consume_tokens(&self.advanced).map_err(failed)?;
        self.state.matcher = matcher;
        self.is_at_dead_end = true;
        Ok(ConstraintError::DeadEnd { n_tokens: self.advanced.len() })
    }
}

impl fmt::Debug for GrammarConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarConstraint")
            .field("n_advanced", &self.advanced.len())
            .field("is_checked", &self.is_checked())
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
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
        let mut found = match self.state.mask() {
            Ok(found) => found,
            Err(error) if error.contains("NoExtensionBias") => return Err(self.dead_end()?),
            Err(error) => return Err(failed(error)),
        };
        let n_before = self.advanced.len();
        let dead = self.dead.iter().filter(|(n, _)| *n == n_before);
        dead.for_each(|(_, token)| found.forbid(*token));
        if found.is_empty() {
            self.is_at_dead_end = true;
            return Err(ConstraintError::DeadEnd { n_tokens: n_before });
        }
        *mask = TokenMask::from_words(self.n_tokens.min(mask.n_tokens()), found.words().to_vec());
        Ok(())
    }

    fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        let is_known = (token as usize) < self.n_tokens;
        let is_dead = self.dead.contains(&(self.advanced.len(), token));
        if !is_known || is_dead || !self.state.advance(token).map_err(failed)? {
            return Err(ConstraintError::NotAllowed { token });
        }
        self.advanced.push(token);
        self.is_at_dead_end = false;
        Ok(())
    }

    fn rollback(&mut self, n_tokens: usize) -> Result<(), ConstraintError> {
        let available = self.advanced.len();
        let Some(left) = available.checked_sub(n_tokens) else {
            return Err(ConstraintError::Rollback { requested: n_tokens, available });
        };
        let taken_back = self.advanced.split_off(left);
        self.ways.back_to(left);
        self.dead.retain(|(n, _)| *n <= left);
        if self.is_at_dead_end && n_tokens == 1 {
            self.dead.extend(taken_back.first().map(|token| (left, *token)));
        }
        if n_tokens > 0 {
            self.is_at_dead_end = false;
        }
        self.state.rollback(n_tokens).map_err(failed)
    }

    /// What the characters determine, as the tokenizer spells it. Where the engine leaves it open how they
    /// are spelled, without what may yet merge with the characters that follow.
    fn forced(&mut self) -> Result<Vec<TokenId>, ConstraintError> {
        let matcher = &mut self.state.matcher;
        if matcher.is_stopped() {
            return Ok(Vec::new());
        }
        let mut tokens = matcher.compute_ff_tokens();
        if tokens.is_empty() {
            let bytes = matcher.compute_ff_bytes();
            if !bytes.is_empty() {
                tokens = matcher.tok_env().map_err(failed)?.tokenize_bytes(&bytes);
                tokens.pop();
            }
        }
        tokens.truncate(self.state.n_possible(&tokens));
        Ok(tokens)
    }

    fn completion(&mut self, within: usize) -> Result<Option<Vec<TokenId>>, ConstraintError> {
        if self.may_end()? {
            return Ok(Some(Vec::new()));
        }
        self.ways.find(&mut self.state, &self.advanced, within).map_err(failed)
    }
}
