// Texts of random tokens that end within a limit. Included by the tests and by the bench.

use breakers_core::{Constraint as _, ConstraintError, TokenId, TokenMask, Vocabulary};
use breakers_structured::GrammarConstraint;

/// A source of choices that a seed determines.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    /// Any token of a mask.
    pub(crate) fn token(&mut self, mask: &TokenMask) -> TokenId {
        let n = self.below(mask.count());
        mask.iter().nth(n).unwrap_or_default()
    }
}

/// What has come of a random text.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It ended, and these are its tokens without the end.
    Ended(Vec<TokenId>),
    /// The limit came first, or no token was allowed.
    Unfinished(Vec<TokenId>),
}

/// A text of random tokens that ends within `limit` tokens, its end token among them, as a decoder leads it:
/// behind every token a way to the end is known. One token in `shy` is that of the way.
///
/// # Errors
/// What the constraint says.
pub(crate) fn random_text(
    mut constraint: GrammarConstraint,
    vocabulary: &dyn Vocabulary,
    limit: usize,
    shy: usize,
    chance: &mut Chance,
) -> Result<Outcome, ConstraintError> {
    let mut mask = TokenMask::none(vocabulary.n_tokens());
    let is_end = |token: TokenId| vocabulary.end_tokens().contains(&token);
    let closes = |bytes: &[u8]| matches!(bytes.first(), Some(b']' | b'}'));
    let mut tokens = Vec::new();
    let Some(mut way) = constraint.completion(limit.saturating_sub(1))? else {
        return Ok(Outcome::Unfinished(tokens));
    };
    for left in (1..=limit).rev() {
        let first = way.first().copied();
        constraint.allowed(&mut mask)?;
        let token = match first {
            None if way.len() + 1 == left => vocabulary.end_tokens()[0],
            Some(first) if way.len() + 1 == left || chance.below(shy) == 0 => first,
            // Brackets do not close at once, or most texts would be empty.
            _ => (0..3)
                .map(|_| chance.token(&mask))
                .find(|&token| !is_end(token) && !vocabulary.token_bytes(token).is_some_and(closes))
                .unwrap_or_else(|| chance.token(&mask)),
        };
        assert!(mask.is_allowed(token), "the mask lacks the way's token {token}");
        if is_end(token) {
            return Ok(Outcome::Ended(tokens));
        }
        constraint.advance(token)?;
        tokens.push(token);
        if first == Some(token) {
            way.remove(0);
            continue;
        }
        let found = left.checked_sub(2).map(|within| constraint.completion(within)).transpose()?.flatten();
        match (found, first) {
            (Some(found), _) => way = found,
            (None, Some(first)) => {
                constraint.rollback(1)?;
                tokens.pop();
                constraint.advance(first)?;
                tokens.push(first);
                way.remove(0);
            }
            (None, None) => {
                constraint.rollback(1)?;
                tokens.pop();
                return Ok(Outcome::Ended(tokens));
            }
        }
    }
    Ok(Outcome::Unfinished(tokens))
}
