//! Which of a draft's tokens the target would have produced itself.
//!
//! Both rules give exactly the target's text: [`by_draw`] token by token, [`by_rejection`] in distribution.
//! They do not use a model: the caller supplies the target's choice, or its distribution, after a path of
//! accepted tokens, and is called only as long as tokens are accepted.
//!
//! # Source
//! Leviathan et al. (arXiv 2211.17192), section 2.3 and appendix A.1; Chen et al. (arXiv 2302.01318),
//! section 2 and theorem 1. Siblings of a tree: SpecInfer (arXiv 2305.09781), algorithm 2.

use breakers_core::{Distribution, Sampler, TokenId};

use crate::{Draft, Error, Result};

/// A source of random choices.
///
/// Use [`Sampler`]. This is a trait so that tests can go through all outcomes and add up their probabilities.
pub trait Chance {
    /// True with the given probability (0 to 1).
    fn accept(&mut self, probability: f64) -> bool;
    /// A token drawn from a distribution.
    fn draw(&mut self, distribution: &Distribution) -> TokenId;
}

impl Chance for Sampler {
    fn accept(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }
    fn draw(&mut self, distribution: &Distribution) -> TokenId {
        Sampler::draw(self, distribution)
    }
}

/// The result of verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Indices of the draft's accepted tokens, from the root on.
    pub path: Vec<usize>,
    /// The token after them: the target's own token instead of a rejected one, or one more token after the
    /// last.
    pub next: TokenId,
}

/// Verifies tokens that were chosen deterministically: the target makes its own choice, and the draft is
/// followed as long as it contains that choice.
///
/// With the arg-max as the choice this is greedy verification. With a draw from the target's distribution it
/// is lossless sampling: a token is accepted with its probability under the target, as with the
/// accept/residual rule for a deterministic drafter. Since the draws are those of plain sampling, the tokens
/// are those of plain sampling with the same seed.
///
/// `choose(path)` is the target's choice after the context and the draft tokens on `path`.
///
/// # Errors
/// Those of `choose`.
///
/// # Example
/// ```
/// use breakers_spec_decode::{Draft, verify};
///
/// // The target counts upwards from 10; the draft gets the first two right.
/// let draft = Draft::chain(vec![10, 11, 99]);
/// let verdict = verify::by_draw(&draft, |path| Ok(10 + path.len() as u32))?;
/// assert_eq!((verdict.path.len(), verdict.next), (2, 12));
/// # Ok::<(), breakers_spec_decode::Error>(())
/// ```
pub fn by_draw(draft: &Draft, mut choose: impl FnMut(&[usize]) -> Result<TokenId>) -> Result<Verdict> {
    let mut path: Vec<usize> = Vec::new();
    loop {
        let next = choose(&path)?;
        match draft.children(path.last().copied()).find(|&row| draft.tokens()[row] == next) {
            Some(row) => path.push(row),
            None => return Ok(Verdict { path, next }),
        }
    }
}

/// Verifies tokens that were drawn from known distributions: x ~ q is accepted with probability min(1,
/// p(x)/q(x)); after a rejection the normalized residual (p − q)₊ replaces p. If the whole draft is accepted,
/// one more token is drawn from p.
///
/// Siblings must be independent draws from the same q. They are tried in turn, each against the residual that
/// the previous one has left.
///
/// `target(path)` is the target's distribution after the context and the draft tokens on `path`.
///
/// # Errors
/// Those of `target`; [`Error::ImpossibleProposal`] for a token that its proposal excludes.
///
/// # Source
/// Leviathan et al. (arXiv 2211.17192), algorithm 1.
///
/// # Example
/// ```
/// use breakers_core::{Distribution, Sampler, SamplingConfig};
/// use breakers_spec_decode::{Draft, verify};
///
/// let p = Distribution::from_weights([(0, 0.5), (1, 0.5)]).unwrap();
/// let draft = Draft::chain(vec![1]);
/// let q = [Distribution::certain(1)];
/// let mut sampler = Sampler::new(SamplingConfig::temperature(1.0), 7);
/// let verdict = verify::by_rejection(&draft, &q, |_| Ok(p.clone()), &mut sampler)?;
/// // Accepted half of the time; rejected, the residual leaves token 0 only.
/// assert!(verdict.path == [0] || verdict.next == 0);
/// # Ok::<(), breakers_spec_decode::Error>(())
/// ```
pub fn by_rejection(
    draft: &Draft,
    proposals: &[Distribution],
    mut target: impl FnMut(&[usize]) -> Result<Distribution>,
    chance: &mut (impl Chance + ?Sized),
) -> Result<Verdict> {
    if proposals.len() != draft.len() {
        return Err(Error::DraftShape { what: "proposals", expected: draft.len(), found: proposals.len() });
    }
    let mut path: Vec<usize> = Vec::new();
    loop {
        let mut p = target(&path)?;
        let mut accepted = None;
        for row in draft.children(path.last().copied()) {
            let (token, q) = (draft.tokens()[row], &proposals[row]);
            let proposed = q.probability(token);
            if proposed <= 0.0 {
                return Err(Error::ImpossibleProposal { row, token });
            }
            if chance.accept((p.probability(token) / proposed).min(1.0)) {
                accepted = Some(row);
                break;
            }
            // Without a residual p equals q, and only rounding can have led here.
            p = residual(&p, q).unwrap_or(p);
        }
        match accepted {
            Some(row) => path.push(row),
            None => return Ok(Verdict { path, next: chance.draw(&p) }),
        }
    }
}

/// (p − q)₊, normalized: the distribution that replaces a rejected draft token. `None` if nothing is left.
pub fn residual(p: &Distribution, q: &Distribution) -> Option<Distribution> {
    Distribution::from_weights(
        p.entries().iter().map(|&(token, weight)| (token, (weight - q.probability(token)).max(0.0))),
    )
}

/// α = Σ min(p, q): the probability that a token drawn from `q` is accepted.
///
/// # Source
/// Leviathan et al. (arXiv 2211.17192), corollary 3.6.
pub fn acceptance(p: &Distribution, q: &Distribution) -> f64 {
    p.entries().iter().map(|&(token, weight)| weight.min(q.probability(token))).sum()
}
