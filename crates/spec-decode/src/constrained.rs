use std::fmt;

use breakers_core::{Constraint, ConstraintError, TokenId, TokenMask};

use crate::{Draft, Result};

/// A constraint and how far it has followed the text.
pub(crate) struct Constrained {
    constraint: Box<dyn Constraint>,
    mask: TokenMask,
    /// Tokens of the output that it has followed for good.
    n_output: usize,
    /// Tokens advanced since then.
    n_ahead: usize,
}

impl Constrained {
    pub(crate) fn new(constraint: Box<dyn Constraint>, vocab_size: usize) -> Self {
        Self { constraint, mask: TokenMask::none(vocab_size), n_output: 0, n_ahead: 0 }
    }

    /// Follows `token`, for now.
    pub(crate) fn advance(&mut self, token: TokenId) -> Result<()> {
        self.constraint.advance(token)?;
        self.n_ahead += 1;
        Ok(())
    }

    /// Goes back to where only `n_ahead` tokens follow the output.
    pub(crate) fn back_to(&mut self, n_ahead: usize) -> Result<()> {
        if self.n_ahead > n_ahead {
            self.constraint.rollback(self.n_ahead - n_ahead)?;
            self.n_ahead = n_ahead;
        }
        Ok(())
    }

    /// Makes what was advanced part of the output.
    pub(crate) fn keep(&mut self) {
        self.n_output += std::mem::take(&mut self.n_ahead);
    }

    /// Number of tokens advanced that are not part of the output yet.
    pub(crate) fn n_ahead(&self) -> usize {
        self.n_ahead
    }

    /// The tokens that may come next.
    pub(crate) fn mask(&mut self) -> Result<&TokenMask> {
        self.constraint.allowed(&mut self.mask)?;
        if self.mask.is_empty() {
            return Err(ConstraintError::DeadEnd { n_tokens: self.n_output + self.n_ahead }.into());
        }
        Ok(&self.mask)
    }

    /// A draft of what the constraint determines, at most `limit` tokens.
    pub(crate) fn forced(&mut self, limit: usize) -> Result<Draft> {
        if limit == 0 {
            return Ok(Draft::none());
        }
        let mut tokens = self.constraint.forced()?;
        tokens.truncate(limit);
        tokens.truncate(tokens.iter().take_while(|&&token| (token as usize) < self.mask.n_tokens()).count());
        Ok(Draft::chain(tokens))
    }

    /// The rows of a draft that the constraint allows after their predecessors, in ascending order.
    pub(crate) fn fitting(&mut self, draft: &Draft, end_tokens: &[TokenId]) -> Result<Vec<usize>> {
        let start = self.n_ahead;
        let mut fits = vec![false; draft.len()];
        // Rows that the constraint has followed, the last one last.
        let mut path: Vec<usize> = Vec::new();
        for (row, &token) in draft.tokens().iter().enumerate() {
            let parent = draft.parent(row);
            if parent.is_some_and(|parent| !fits[parent] || end_tokens.contains(&draft.tokens()[parent])) {
                continue;
            }
            let mut ancestors: Vec<usize> = std::iter::successors(parent, |&row| draft.parent(row)).collect();
            ancestors.reverse();
            let common = path.iter().zip(&ancestors).take_while(|(a, b)| a == b).count();
            self.back_to(start + common)?;
            path.truncate(common);
            for &row in &ancestors[common..] {
                self.advance(draft.tokens()[row])?;
                path.push(row);
            }
            fits[row] = match end_tokens.contains(&token) {
                true => self.mask()?.is_allowed(token),
                false => match self.constraint.advance(token) {
                    Ok(()) => {
                        self.n_ahead += 1;
                        path.push(row);
                        true
                    }
                    Err(ConstraintError::NotAllowed { .. }) => false,
                    Err(error) => return Err(error.into()),
                },
            };
        }
        self.back_to(start)?;
        Ok((0..draft.len()).filter(|&row| fits[row]).collect())
    }
}

impl fmt::Debug for Constrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constrained").field("n_output", &self.n_output).finish_non_exhaustive()
    }
}
