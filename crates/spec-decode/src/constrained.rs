use std::fmt;
use std::sync::Arc;

use breakers_core::{Constraint, ConstraintError, TokenId, TokenMask};

use crate::ending::{Ending, Leash};
use crate::{Draft, Result};

/// What may follow a row.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Any token.
    Free,
    /// One of these.
    Masked(Arc<TokenMask>),
    /// This one: nobody needs a model to say so.
    Only(TokenId),
    /// Nobody looks: the row's token cannot be accepted, or ends the text.
    Dropped,
}

impl Place {
    /// An end token that may stand here.
    pub(crate) fn end_among(&self, end_tokens: &[TokenId]) -> Option<TokenId> {
        end_tokens.iter().copied().find(|token| match self {
            Self::Free => true,
            Self::Masked(mask) => mask.is_allowed(*token),
            Self::Only(only) => only == token,
            Self::Dropped => false,
        })
    }
}

/// Tokens that follow one another, and what may follow each of them.
pub(crate) struct Run {
    pub(crate) tokens: Vec<TokenId>,
    /// One more than tokens: what may follow the output is the first.
    pub(crate) places: Vec<Place>,
}

/// A constraint and how far it has followed the text.
pub(crate) struct Constrained {
    constraint: Box<dyn Constraint>,
    /// Filled anew for each place.
    mask: TokenMask,
    /// Tokens of the output that the constraint has followed.
    n_output: usize,
    /// Tokens advanced since then.
    n_ahead: usize,
    /// The way to the end.
    ending: Ending,
}

impl Constrained {
    /// With a leash, the text is led to an end before its tokens run out.
    pub(crate) fn new(constraint: Box<dyn Constraint>, vocab_size: usize, leash: Leash) -> Self {
        let mask = TokenMask::none(vocab_size);
        Self { constraint, mask, n_output: 0, n_ahead: 0, ending: Ending::new(leash) }
    }

    /// Follows `token`, for now.
    fn advance(&mut self, token: TokenId) -> Result<()> {
        self.constraint.advance(token)?;
        self.n_ahead += 1;
        self.ending.advanced(self.n_ahead, token);
        Ok(())
    }

    /// Goes back to where only `n_ahead` tokens follow the output.
    pub(crate) fn back_to(&mut self, n_ahead: usize) -> Result<()> {
        if self.n_ahead > n_ahead {
            self.constraint.rollback(self.n_ahead - n_ahead)?;
            self.n_ahead = n_ahead;
            self.ending.back_to(n_ahead);
        }
        Ok(())
    }

    /// Follows tokens that come after the output, of which it may have followed a beginning.
    pub(crate) fn follow(&mut self, tokens: impl ExactSizeIterator<Item = TokenId>) -> Result<()> {
        self.back_to(tokens.len())?;
        tokens.skip(self.n_ahead).try_for_each(|token| self.advance(token))
    }

    /// Makes what was advanced part of the output.
    pub(crate) fn keep(&mut self) {
        self.ending.keep(self.n_ahead);
        self.n_output += std::mem::take(&mut self.n_ahead);
    }

    /// Makes sure that the text can end within `left` tokens, its end token among them.
    ///
    /// # Errors
    /// [`Error::TooFewTokens`](crate::Error::TooFewTokens) if no text of the constraint is that short, before
    /// the first token.
    pub(crate) fn begin(&mut self, left: usize) -> Result<()> {
        self.ending.begin(&mut *self.constraint, self.n_output, left)
    }

    /// What may follow, of the last `left` tokens.
    pub(crate) fn place(&mut self, left: usize, end_tokens: &[TokenId]) -> Result<Place> {
        if let Some(token) = self.ending.next_of_tight(self.n_ahead, left) {
            return Ok(match token {
                Some(token) => Place::Only(token),
                None => self.masked()?.end_among(end_tokens).map_or(Place::Dropped, Place::Only),
            });
        }
        self.masked()
    }

    fn masked(&mut self) -> Result<Place> {
        self.constraint.allowed(&mut self.mask)?;
        if self.mask.is_empty() {
            return Err(ConstraintError::DeadEnd { n_tokens: self.n_output + self.n_ahead }.into());
        }
        Ok(match self.mask.only() {
            Some(token) => Place::Only(token),
            None => Place::Masked(Arc::new(self.mask.clone())),
        })
    }

    /// What comes next for certain: at most `limit` tokens, of which each is the only one of its place. The
    /// constraint has followed them then. `left`: as for [`place`](Self::place).
    pub(crate) fn certain(&mut self, limit: usize, left: usize, end_tokens: &[TokenId]) -> Result<Run> {
        let mut run = Run { tokens: Vec::new(), places: vec![self.place(left, end_tokens)?] };
        while run.tokens.len() < limit
            && let Some(&Place::Only(token)) = run.places.last()
            && !end_tokens.contains(&token)
        {
            self.advance(token)?;
            match self.place(left.saturating_sub(run.tokens.len() + 1), end_tokens) {
                Ok(place) => run.places.push(place),
                // The text fails where it gets there.
                Err(_) => {
                    self.back_to(self.n_ahead - 1)?;
                    break;
                }
            }
            run.tokens.push(token);
        }
        Ok(run)
    }

    /// What the constraint holds for likely here, at most `limit` tokens.
    pub(crate) fn likely(&mut self, limit: usize) -> Result<Vec<TokenId>> {
        let mut tokens = if limit == 0 { Vec::new() } else { self.constraint.forced()? };
        tokens.truncate(limit);
        tokens.truncate(tokens.iter().take_while(|&&token| (token as usize) < self.mask.n_tokens()).count());
        Ok(tokens)
    }

    /// Which rows of a draft may follow their predecessors.
    pub(crate) fn fitting(&mut self, draft: &Draft, end_tokens: &[TokenId]) -> Result<Vec<bool>> {
        self.walk(draft, end_tokens, |_, _| Ok(true))
    }

    /// What may follow each row of a draft, `None` after one that cannot be accepted. `left`: as for
    /// [`place`](Self::place), before the draft.
    pub(crate) fn places(
        &mut self,
        draft: &Draft,
        left: usize,
        end_tokens: &[TokenId],
    ) -> Result<Vec<Option<Place>>> {
        let mut places = vec![None; draft.len()];
        let start = self.n_ahead;
        let fits = self.walk(draft, end_tokens, |constrained, row| {
            let left = left.saturating_sub(constrained.n_ahead - start);
            match constrained.place(left, end_tokens) {
                Ok(place) => places[row] = Some(place),
                // The text fails where it gets there.
                Err(crate::Error::Constraint(ConstraintError::DeadEnd { .. })) => return Ok(false),
                Err(error) => return Err(error),
            }
            Ok(true)
        })?;
        for (row, place) in places.iter_mut().enumerate() {
            if fits[row] && end_tokens.contains(&draft.tokens()[row]) {
                *place = Some(Place::Dropped);
            }
        }
        Ok(places)
    }

    /// Follows each row of a draft that fits its predecessors, and asks `visit` whether it really does. End
    /// tokens are not followed. Gives the rows that fit.
    fn walk(
        &mut self,
        draft: &Draft,
        end_tokens: &[TokenId],
        mut visit: impl FnMut(&mut Self, usize) -> Result<bool>,
    ) -> Result<Vec<bool>> {
        let (start, tokens) = (self.n_ahead, draft.tokens());
        let mut fits = vec![false; draft.len()];
        // Rows that the constraint has followed, the last one last.
        let mut path: Vec<usize> = Vec::new();
        for (row, &token) in tokens.iter().enumerate() {
            let parent = draft.parent(row);
            if parent.is_some_and(|parent| !fits[parent] || end_tokens.contains(&tokens[parent])) {
                continue;
            }
            let mut ancestors: Vec<usize> = std::iter::successors(parent, |&row| draft.parent(row)).collect();
            ancestors.reverse();
            let common = path.iter().zip(&ancestors).take_while(|(a, b)| a == b).count();
            self.back_to(start + common)?;
            path.truncate(common);
            for &row in &ancestors[common..] {
                self.advance(tokens[row])?;
                path.push(row);
            }
            if end_tokens.contains(&token) {
                self.constraint.allowed(&mut self.mask)?;
                fits[row] = self.mask.is_allowed(token);
                continue;
            }
            match self.constraint.advance(token) {
                Ok(()) => {
                    self.n_ahead += 1;
                    self.ending.advanced(self.n_ahead, token);
                    path.push(row);
                    fits[row] = visit(self, row)?;
                }
                Err(ConstraintError::NotAllowed { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.back_to(start)?;
        Ok(fits)
    }

    /// Follows the tokens on a path behind the output, as far as it has not, if the way to the end has to be
    /// watched there: whether it has. `left`: as for [`place`](Self::place), behind the path.
    pub(crate) fn watches(
        &mut self,
        path: impl ExactSizeIterator<Item = TokenId>,
        left: usize,
    ) -> Result<bool> {
        if !self.ending.watches(left) {
            return Ok(false);
        }
        self.follow(path)?;
        self.ending.find(&mut *self.constraint, self.n_ahead, left)
    }

    /// The token that has to come next so that the text ends in time, where there is no choice left:
    /// `Some(None)` stands for the end. Only where the constraint [`watches`](Self::watches).
    pub(crate) fn tight(&self, left: usize) -> Option<Option<TokenId>> {
        self.ending.next_of_tight(self.n_ahead, left)
    }

    /// Follows `token`, if an end is in reach behind it. Otherwise gives the token that has to come instead,
    /// `None` for an end. Only where the constraint [`watches`](Self::watches).
    pub(crate) fn try_token(
        &mut self,
        token: TokenId,
        left: usize,
    ) -> Result<std::result::Result<(), Option<TokenId>>> {
        self.advance(token)?;
        if let Some(within) = left.checked_sub(2)
            && self.ending.reaches(&mut *self.constraint, self.n_ahead, within)?
        {
            return Ok(Ok(()));
        }
        self.back_to(self.n_ahead - 1)?;
        Ok(Err(self.ending.next(self.n_ahead)))
    }
}

impl fmt::Debug for Constrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constrained").field("n_output", &self.n_output).finish_non_exhaustive()
    }
}
