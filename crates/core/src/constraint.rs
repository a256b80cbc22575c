use crate::{SharedError, TokenId, TokenMask};

/// A restriction on what a text may be: a grammar, a schema, a set of texts. It follows a text token by token
/// and says which tokens may come next.
///
/// The code that draws tokens asks for the mask of allowed tokens, draws within it, and tells the constraint
/// what was drawn. A speculative decoder walks along a draft and takes back what the model rejects, so every
/// token advanced can be rolled back.
///
/// # Exactness
/// A text is constrained exactly if each token is the arg-max, or a draw, among the tokens allowed in its
/// place. Forced tokens are proposals like any others: code that uses [`forced`](Self::forced) must check
/// each against the mask.
///
/// # Ends
/// An end token is in the mask exactly where the text may end. Do not call `advance` with an end token: after
/// it, the text is over.
///
/// # Example
/// ```
/// use breakers_core::{Constraint, ConstraintError, TokenId, TokenMask};
///
/// /// The tokens 1 to 9 in ascending order, then the end token 0.
/// struct Ascending(Vec<TokenId>);
///
/// impl Constraint for Ascending {
///     fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
///         mask.forbid_all();
///         mask.allow(0);
///         (self.0.last().map_or(1, |last| last + 1)..10).for_each(|token| mask.allow(token));
///         Ok(())
///     }
///     fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError> {
///         if token == 0 || token > 9 || self.0.last().is_some_and(|last| token <= *last) {
///             return Err(ConstraintError::NotAllowed { token });
///         }
///         self.0.push(token);
///         Ok(())
///     }
///     fn rollback(&mut self, n_tokens: usize) -> Result<(), ConstraintError> {
///         let available = self.0.len();
///         let keep = available.checked_sub(n_tokens);
///         let keep = keep.ok_or(ConstraintError::Rollback { requested: n_tokens, available })?;
///         self.0.truncate(keep);
///         Ok(())
///     }
/// }
///
/// let mut mask = TokenMask::none(20);
/// let mut constraint = Ascending(Vec::new());
/// constraint.advance(7)?;
/// constraint.allowed(&mut mask)?;
/// assert_eq!(mask.iter().collect::<Vec<_>>(), [0, 8, 9]);
/// constraint.rollback(1)?;
/// # Ok::<(), ConstraintError>(())
/// ```
pub trait Constraint: Send {
    /// Replaces the contents of `mask` with the tokens that may come next. If the mask is larger than the
    /// constraint's vocabulary, the ids beyond that vocabulary are not allowed.
    ///
    /// # Errors
    /// [`ConstraintError::Failed`].
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError>;

    /// Tells the constraint which token comes next.
    ///
    /// # Errors
    /// [`ConstraintError::NotAllowed`], which leaves the state as it was; [`ConstraintError::Failed`].
    fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError>;

    /// Takes back the last `n_tokens` tokens.
    ///
    /// # Errors
    /// [`ConstraintError::Rollback`] if fewer were advanced; [`ConstraintError::Failed`].
    fn rollback(&mut self, n_tokens: usize) -> Result<(), ConstraintError>;

    /// Tokens that most likely come next because the text is determined for a while; empty if it is not, or
    /// if nobody looked. A hint for drafting only. Where masks of a single token say the same, nobody needs
    /// it; it is of use where the text is determined and its tokens are not.
    ///
    /// # Errors
    /// [`ConstraintError::Failed`].
    fn forced(&mut self) -> Result<Vec<TokenId>, ConstraintError> {
        Ok(Vec::new())
    }

    /// A short way to the end: at most `within` tokens, each in the mask of its place, after which the text
    /// may end; empty if it may end here. The end token is not among them. `None` if none is known, which
    /// need not mean that there is none. The state is left as it was.
    ///
    /// Whoever draws tokens keeps the end in reach with it: a token after which no way to the end fits into
    /// what is left of a limit is not taken. What is returned must depend only on the tokens advanced and on
    /// the calls made at earlier tokens of the same text, not on tokens that were taken back, or texts would
    /// depend on how they were drafted. After a way `a b c` has been returned and `a` was advanced, `b c`
    /// must be found again.
    ///
    /// # Errors
    /// [`ConstraintError::Failed`].
    fn completion(&mut self, within: usize) -> Result<Option<Vec<TokenId>>, ConstraintError> {
        let _ = within;
        Ok(None)
    }
}

impl<C: Constraint + ?Sized> Constraint for Box<C> {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        (**self).allowed(mask)
    }
    fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        (**self).advance(token)
    }
    fn rollback(&mut self, n_tokens: usize) -> Result<(), ConstraintError> {
        (**self).rollback(n_tokens)
    }
    fn forced(&mut self) -> Result<Vec<TokenId>, ConstraintError> {
        (**self).forced()
    }
    fn completion(&mut self, within: usize) -> Result<Option<Vec<TokenId>>, ConstraintError> {
        (**self).completion(within)
    }
}

/// What can go wrong with a [`Constraint`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The token may not come next.
    #[error("the constraint does not allow token {token} here")]
    NotAllowed {
        /// The token.
        token: TokenId,
    },
    /// No token may come next, not even an end.
    #[error("the constraint allows no token after {n_tokens} tokens")]
    DeadEnd {
        /// Tokens of the constrained text so far.
        n_tokens: usize,
    },
    /// The caller tried to take back more tokens than were advanced.
    #[error("{requested} tokens to be taken back, {available} were advanced")]
    Rollback {
        /// How many tokens were to be taken back.
        requested: usize,
        /// How many tokens had been advanced.
        available: usize,
    },
    /// The engine behind the constraint failed, for example because it reached a limit of its own.
    #[error("the constraint failed: {0}")]
    Failed(#[source] SharedError),
}
