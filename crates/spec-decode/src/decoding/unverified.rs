use breakers_core::TokenId;

use crate::Draft;

/// A proposal that was not fully verified and is compared with the text that follows.
#[derive(Clone, Debug)]
pub(super) struct UnverifiedDraft {
    pub(super) draft: Draft,
    /// The position in the context of its first token.
    pub(super) at: usize,
    /// How many of its tokens have been judged.
    pub(super) n_judged: usize,
    /// Whether the text has agreed with the proposal so far.
    pub(super) open: bool,
}

impl UnverifiedDraft {
    /// The positions that the text now decides, and whether their tokens were right.
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
        // Verified tokens are not judged again, and nothing can be learned after a rejected one.
        check(2, &[&[5, 6, 7]], &[(2, true)], true);
        check(2, &[&[5, 6]], &[], true);
        check(2, &[&[5, 9]], &[], false);
        check(2, &[&[5, 6, 1]], &[(2, false)], false);
    }
}
