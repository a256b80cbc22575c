use std::time::Duration;

use breakers_core::{Distribution, SamplingConfig, TokenId};

use crate::{AdaptiveLength, Chance, Error, Result};

/// A method that guesses how a text continues.
///
/// A wrong guess costs time but never correctness: whatever is proposed, verification produces exactly what
/// the target model would have produced.
pub trait Drafter {
    /// The method's name, for reports.
    fn name(&self) -> &str;

    /// Begins a new text. `prompt` holds all of its tokens so far.
    ///
    /// # Errors
    /// The method's own.
    fn start(&mut self, prompt: &[TokenId]) -> Result<()>;

    /// Proposes up to `request.max_tokens` tokens to follow `request.context`; it may propose none. The
    /// context of a text only grows from call to call.
    ///
    /// # Errors
    /// The method's own.
    fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft>;

    /// Receives the outcome of the last proposal.
    fn observe(&mut self, outcome: &Outcome<'_>) {
        let _ = outcome;
    }

    /// Whether the method calls [`DraftRequest::pays`] before each further token, so that it need not be
    /// given a tight limit.
    fn stops_itself(&self) -> bool {
        false
    }
}

impl<D: Drafter + ?Sized> Drafter for &mut D {
    fn name(&self) -> &str {
        (**self).name()
    }
    fn start(&mut self, prompt: &[TokenId]) -> Result<()> {
        (**self).start(prompt)
    }
    fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft> {
        (**self).propose(request)
    }
    fn observe(&mut self, outcome: &Outcome<'_>) {
        (**self).observe(outcome)
    }
    fn stops_itself(&self) -> bool {
        (**self).stops_itself()
    }
}

impl<D: Drafter + ?Sized> Drafter for Box<D> {
    fn name(&self) -> &str {
        (**self).name()
    }
    fn start(&mut self, prompt: &[TokenId]) -> Result<()> {
        (**self).start(prompt)
    }
    fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft> {
        (**self).propose(request)
    }
    fn observe(&mut self, outcome: &Outcome<'_>) {
        (**self).observe(outcome)
    }
    fn stops_itself(&self) -> bool {
        (**self).stops_itself()
    }
}

/// A request to a drafter.
pub struct DraftRequest<'a> {
    /// The text so far, including the prompt. Its last token has not been fed to the target yet.
    pub context: &'a [TokenId],
    /// The most tokens that may be proposed, over all branches of a tree.
    pub max_tokens: usize,
    /// Size of the target's vocabulary; ids below it are valid.
    pub vocab_size: usize,
    /// Tokens after which nothing needs to be drafted.
    pub end_tokens: &'a [TokenId],
    /// How the target's tokens are chosen.
    pub sampling: &'a SamplingConfig,
    /// The source of random choices for a drafter that samples. Verification continues the same stream, so
    /// the choices of the two are independent.
    pub chance: &'a mut dyn Chance,
    pub(crate) policy: Option<&'a AdaptiveLength>,
}

impl<'a> DraftRequest<'a> {
    /// A request without end tokens and without a limit on ids.
    pub fn new(
        context: &'a [TokenId],
        max_tokens: usize,
        sampling: &'a SamplingConfig,
        chance: &'a mut dyn Chance,
    ) -> Self {
        Self { context, max_tokens, vocab_size: usize::MAX, end_tokens: &[], sampling, chance, policy: None }
    }

    /// Whether the draft length depends on costs and acceptance, so that confidences are useful.
    pub fn is_adaptive(&self) -> bool {
        self.policy.is_some()
    }

    /// Whether it pays to draft one more token after tokens with these confidences.
    ///
    /// Always true if the length is fixed. A drafter that samples may let this decide whether to draft the
    /// *next* token, but must not drop one that it has drawn: which tokens are verified may depend on their
    /// predecessors only, or the result is no longer the target's distribution.
    pub fn pays(&self, confidences: &[f32]) -> bool {
        self.policy.is_none_or(|policy| policy.pays(confidences))
    }
}

/// The outcome of a proposal.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Outcome<'a> {
    /// The text after the step.
    pub context: &'a [TokenId],
    /// Tokens that were verified; fewer than proposed if the rest was not worth it.
    pub n_drafted: usize,
    /// How many of them the target agreed with.
    pub n_accepted: usize,
}

/// A proposal: a chain of tokens, or a tree of them.
///
/// # Source
/// Trees: SpecInfer (arXiv 2305.09781), section 4; EAGLE-2 (arXiv 2406.16858), section 4.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    tokens: Vec<TokenId>,
    parents: Option<Vec<Option<usize>>>,
    proposals: Option<Vec<Distribution>>,
    confidences: Option<Vec<f32>>,
    catch_up: Duration,
}

impl Draft {
    /// No proposal.
    pub fn none() -> Self {
        Self::default()
    }

    /// Tokens that follow one another.
    pub fn chain(tokens: Vec<TokenId>) -> Self {
        Self { tokens, ..Self::default() }
    }

    /// A tree: for each token the index of its parent in `tokens`, `None` if it follows the context.
    /// Parents come before their children.
    pub fn tree(tokens: Vec<TokenId>, parents: Vec<Option<usize>>) -> Self {
        Self { tokens, parents: Some(parents), ..Self::default() }
    }

    /// The distribution that each token was drawn from. Siblings of a tree are independent draws from one
    /// distribution. Without this, tokens are taken to be chosen deterministically.
    pub fn with_proposals(mut self, proposals: Vec<Distribution>) -> Self {
        self.proposals = Some(proposals);
        self
    }

    /// How sure the drafter is of each token given the tokens before it, 0 to 1. The adaptive length learns
    /// what acceptance a confidence implies, so any scale will do.
    pub fn with_confidences(mut self, confidences: Vec<f32>) -> Self {
        self.confidences = Some(confidences);
        self
    }

    /// Time spent on tokens from earlier steps without a draft; it is counted separately from the usual cost
    /// of drafting.
    pub fn with_catch_up(mut self, time: Duration) -> Self {
        self.catch_up = time;
        self
    }

    /// The tokens.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Parents of a tree's tokens, `None` for a chain.
    pub fn parents(&self) -> Option<&[Option<usize>]> {
        self.parents.as_deref()
    }

    /// The distributions that the tokens were drawn from, `None` if they were chosen deterministically.
    pub fn proposals(&self) -> Option<&[Distribution]> {
        self.proposals.as_deref()
    }

    /// How sure the drafter is of each token.
    pub fn confidences(&self) -> Option<&[f32]> {
        self.confidences.as_deref()
    }

    /// Time spent on tokens of earlier steps.
    pub fn catch_up(&self) -> Duration {
        self.catch_up
    }

    /// Number of tokens, over all branches.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing is proposed.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Indices of the tokens that follow token `parent`, or the context for `None`.
    pub fn children(&self, parent: Option<usize>) -> impl Iterator<Item = usize> + '_ {
        let first = parent.map_or(0, |p| p + 1);
        // In a chain only the very next token follows.
        let last = if self.parents.is_some() { self.len() } else { self.len().min(first + 1) };
        (first..last).filter(move |&row| match &self.parents {
            Some(parents) => parents.get(row).is_some_and(|p| *p == parent),
            None => true,
        })
    }

    /// The token that token `row` follows; `None` if it follows the context.
    pub fn parent(&self, row: usize) -> Option<usize> {
        match &self.parents {
            Some(parents) => parents.get(row).copied().flatten(),
            None => row.checked_sub(1),
        }
    }

    /// The same draft behind a chain of tokens that are certain.
    pub(crate) fn behind(self, certain: &[TokenId]) -> Self {
        let n = certain.len();
        if n == 0 {
            return self;
        }
        let before = |row: usize| row.checked_sub(1);
        let parents = self.parents.map(|parents| {
            let own = parents.into_iter().map(|parent| parent.map_or(before(n), |parent| Some(parent + n)));
            (0..n).map(before).chain(own).collect()
        });
        let sure = certain.iter().map(|&token| Distribution::certain(token));
        Self {
            parents,
            proposals: self.proposals.map(|own| sure.chain(own).collect()),
            confidences: self.confidences.map(|own| [vec![1.0; n], own].concat()),
            tokens: [certain, &self.tokens].concat(),
            catch_up: self.catch_up,
        }
    }

    /// Keeps the tokens at the given indices, which ascend; a token whose parent is dropped
    /// must be dropped, too.
    pub(crate) fn select(&mut self, rows: &[usize]) {
        fn pick<T: Clone>(values: &mut Vec<T>, rows: &[usize]) {
            *values = rows.iter().map(|&row| values[row].clone()).collect();
        }
        pick(&mut self.tokens, rows);
        if let Some(parents) = &mut self.parents {
            pick(parents, rows);
            for parent in parents.iter_mut().flatten() {
                *parent = rows.partition_point(|row| row < parent);
            }
        }
        if let Some(proposals) = &mut self.proposals {
            pick(proposals, rows);
        }
        if let Some(confidences) = &mut self.confidences {
            pick(confidences, rows);
        }
    }

    /// Drops all tokens from index `n` on.
    pub fn truncate(&mut self, n: usize) {
        self.tokens.truncate(n);
        if let Some(parents) = &mut self.parents {
            parents.truncate(n);
        }
        if let Some(proposals) = &mut self.proposals {
            proposals.truncate(n);
        }
        if let Some(confidences) = &mut self.confidences {
            confidences.truncate(n);
        }
    }

    /// Checks everything that a target relies on.
    ///
    /// # Errors
    /// [`Error::DraftTooLong`], [`Error::DraftToken`], [`Error::DraftShape`], [`Error::DraftParent`].
    pub fn validate(&self, max_tokens: usize, vocab_size: usize) -> Result<()> {
        let n = self.len();
        if n > max_tokens {
            return Err(Error::DraftTooLong { expected: max_tokens, found: n });
        }
        if let Some(&token) = self.tokens.iter().find(|&&t| t as usize >= vocab_size) {
            return Err(Error::DraftToken { token, vocab_size });
        }
        let shapes = [
            ("parents", self.parents.as_ref().map(Vec::len)),
            ("proposals", self.proposals.as_ref().map(Vec::len)),
            ("confidences", self.confidences.as_ref().map(Vec::len)),
        ];
        for (what, found) in shapes {
            if let Some(found) = found
                && found != n
            {
                return Err(Error::DraftShape { what, expected: n, found });
            }
        }
        for (row, parent) in self.parents.iter().flatten().enumerate() {
            if let Some(parent) = *parent
                && parent >= row
            {
                return Err(Error::DraftParent { row, parent });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_of_chains_and_trees() {
        let check = |draft: &Draft, expected: &[(Option<usize>, &[usize])]| {
            for (parent, children) in expected {
                assert_eq!(draft.children(*parent).collect::<Vec<_>>(), *children, "of {parent:?}");
            }
        };
        check(&Draft::none(), &[(None, &[])]);
        check(&Draft::chain(vec![7, 8]), &[(None, &[0]), (Some(0), &[1]), (Some(1), &[])]);
        let tree = Draft::tree(vec![1, 2, 3, 4, 5], vec![None, Some(0), None, Some(0), Some(2)]);
        check(&tree, &[(None, &[0, 2]), (Some(0), &[1, 3]), (Some(2), &[4]), (Some(4), &[])]);
    }

    #[test]
    fn a_malformed_draft_is_refused() {
        let certain = |n| vec![Distribution::certain(0); n];
        let cases: Vec<(&str, Draft)> = vec![
            ("DraftTooLong", Draft::chain(vec![0; 5])),
            ("DraftToken", Draft::chain(vec![0, 10])),
            ("DraftShape", Draft::chain(vec![0, 1]).with_proposals(certain(1))),
            ("DraftShape", Draft::chain(vec![0, 1]).with_confidences(vec![0.5; 3])),
            ("DraftShape", Draft::tree(vec![0, 1], vec![None])),
            ("DraftParent", Draft::tree(vec![0, 1], vec![None, Some(1)])),
            ("DraftParent", Draft::tree(vec![0, 1], vec![Some(1), None])),
        ];
        for (expected, draft) in cases {
            let found = format!("{:?}", draft.validate(4, 10).unwrap_err());
            assert!(found.starts_with(expected), "{draft:?} gave {found}");
        }
        Draft::tree(vec![0, 1], vec![None, Some(0)]).with_proposals(certain(2)).validate(2, 2).unwrap();
    }

    #[test]
    fn selected_tokens_keep_their_parents() {
        let tree = Draft::tree(vec![1, 2, 3, 4, 5], vec![None, Some(0), None, Some(2), Some(3)]);
        let mut draft = tree.with_confidences(vec![0.1, 0.2, 0.3, 0.4, 0.5]);
        draft.select(&[0, 2, 3]);
        draft.validate(3, 9).unwrap();
        assert_eq!((draft.tokens(), draft.parents()), (&[1, 3, 4][..], Some(&[None, None, Some(1)][..])));
        assert_eq!(draft.confidences(), Some(&[0.1, 0.3, 0.4][..]));
        assert_eq!((draft.parent(2), draft.parent(1)), (Some(1), None));
        assert_eq!((Draft::chain(vec![7, 8]).parent(1), Draft::chain(vec![7]).parent(0)), (Some(0), None));
    }

    #[test]
    fn certain_tokens_come_first() {
        let tree = Draft::tree(vec![1, 2, 3], vec![None, Some(0), None])
            .with_proposals(vec![Distribution::certain(1); 3])
            .with_confidences(vec![0.5; 3]);
        let draft = tree.clone().behind(&[8, 9]);
        draft.validate(5, 10).unwrap();
        assert_eq!(draft.tokens(), [8, 9, 1, 2, 3]);
        assert_eq!(draft.parents().unwrap(), [None, Some(0), Some(1), Some(2), Some(1)]);
        assert_eq!(draft.confidences().unwrap(), [1.0, 1.0, 0.5, 0.5, 0.5]);
        assert_eq!(draft.proposals().unwrap()[1].probability(9), 1.0);
        assert_eq!(tree.clone().behind(&[]), tree);
        assert_eq!(Draft::chain(vec![1]).behind(&[7]), Draft::chain(vec![7, 1]));
    }

    #[test]
    fn truncation_shortens_every_vector() {
        let mut draft = Draft::tree(vec![1, 2, 3], vec![None, Some(0), Some(1)])
            .with_proposals(vec![Distribution::certain(1); 3])
            .with_confidences(vec![0.5; 3]);
        draft.truncate(1);
        draft.validate(1, 9).unwrap();
        assert_eq!((draft.len(), draft.confidences().map(<[f32]>::len)), (1, Some(1)));
    }
}
