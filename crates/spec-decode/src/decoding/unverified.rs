use breakers_core::TokenId;

use crate::Draft;

/// A proposal that was not verified to its end, to be compared with the text as it comes.
#[derive(Clone, Debug)]
pub(super) struct UnverifiedDraft {
    pub(super) draft: Draft,
    /// Where in the context its first token would be.
    pub(super) at: usize,
    /// Tokens that were judged already.
    pub(super) n_judged: usize,
    /// Whether the text may still go on like the proposal.
    pub(super) open: bool,
}

impl UnverifiedDraft {
    /// Positions that the text decides for the first time, and whether their tokens were right.
    pub(super) fn judge(&mut self, context: &[TokenId]) -> impl Iterator<Item = (usize, bool)> + use<> {
        let text = &context[self.at.min(context.len())..];
        let n = text.len().min(self.draft.len());
        let n_equal = text.iter().zip(self.draft.tokens()).take_while(|(a, b)| a == b).count();
        let decided = self.n_judged..n.min(n_equal + 1);
        self.n_judged = self.n_judged.max(decided.end);
        self.open = n_equal == n && n < self.draft.len();
        decided.map(move |position| (position, position < n_equal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_that_was_not_verified_is_judged_by_the_text() {
        // The draft 5 6 7 8 after a context of two tokens, of which `n_judged` were verified.
        let check = |n_judged, texts: &[&[TokenId]], expected: &[(usize, bool)], open| {
            let draft = Draft::chain(vec![5, 6, 7, 8]);
            let mut unverified = UnverifiedDraft { draft, at: 2, n_judged, open: true };
            let found: Vec<_> =
                texts.iter().flat_map(|text| unverified.judge(&[&[1, 2], *text].concat())).collect();
            assert_eq!((&found[..], unverified.open), (expected, open), "{n_judged} judged, {texts:?}");
        };
        check(0, &[&[5]], &[(0, true)], true);
        check(0, &[&[5], &[5, 6], &[5, 6, 9]], &[(0, true), (1, true), (2, false)], false);
        check(0, &[&[9, 6]], &[(0, false)], false);
        check(0, &[&[5, 6, 7, 8, 9]], &[(0, true), (1, true), (2, true), (3, true)], false);
        // Verified tokens are not judged again, and nothing follows from one that was refused.
        check(2, &[&[5, 6, 7]], &[(2, true)], true);
        check(2, &[&[5, 6]], &[], true);
        check(2, &[&[5, 9]], &[], false);
        check(2, &[&[5, 6, 1]], &[(2, false)], false);
    }
}
