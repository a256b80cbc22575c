//! Sequences of texts that have ended, from which texts with the same beginning continue.

use std::sync::Arc;

use breakers_core::{LanguageModel, SequenceId, TokenId};

use super::saved::FileId;

/// Tokens that a text waits for while another one reads them: below that, computing them again is cheaper.
pub(super) const WORTH_WAITING: usize = 64;

/// A sequence, what it holds, and whose it is.
pub(super) struct Holder<'a> {
    pub(super) tenant: &'a str,
    pub(super) sequence: SequenceId,
    /// Its final tokens.
    pub(super) tokens: &'a [TokenId],
    /// Tokens that it will hold soon, those above included.
    pub(super) soon: &'a [TokenId],
}

/// What a new text can begin with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// With nothing.
    Empty,
    /// With so many tokens of a sequence.
    From(SequenceId, usize),
    /// With so many tokens of a file.
    Saved(FileId, usize),
    /// With nothing yet: another text is reading what this one begins with.
    Soon,
}

/// What is best for a prompt. At least one token is left to feed, because a text needs the logits behind it.
pub(super) fn start_of<'a>(
    tenant: &str,
    prompt: &[TokenId],
    holders: impl Iterator<Item = Holder<'a>>,
) -> Start {
    let most = prompt.len().saturating_sub(1);
    let (mut best, mut from, mut soon) = (0, None, 0);
    for holder in holders.filter(|holder| holder.tenant == tenant) {
        let now = common(prompt, holder.tokens).min(most);
        if now > best {
            (best, from) = (now, Some(holder.sequence));
        }
        soon = soon.max(common(prompt, holder.soon).min(most));
    }
    match from {
        _ if soon >= best + WORTH_WAITING => Start::Soon,
        Some(sequence) => Start::From(sequence, best),
        None => Start::Empty,
    }
}

/// How many tokens two texts have in common at their beginning.
pub(super) fn common(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Sequences of texts that have ended.
#[derive(Default)]
pub(super) struct Prefixes {
    /// The one used last comes last.
    kept: Vec<Kept>,
    /// How many were given up for room.
    n_evicted: u64,
}

struct Kept {
    tenant: Arc<str>,
    sequence: SequenceId,
    tokens: Vec<TokenId>,
}

impl Prefixes {
    pub(super) fn holders(&self) -> impl Iterator<Item = Holder<'_>> {
        self.kept.iter().map(|kept| {
            let tokens = &kept.tokens[..];
            Holder { tenant: &kept.tenant, sequence: kept.sequence, tokens, soon: tokens }
        })
    }

    /// Notes that a sequence was used.
    pub(super) fn touch(&mut self, sequence: SequenceId) {
        if let Some(at) = self.kept.iter().position(|kept| kept.sequence == sequence) {
            self.kept[at..].rotate_left(1);
        }
    }

    /// Keeps a sequence with its final tokens. Of two sequences of which one begins with the other, only the
    /// longer one is kept.
    pub(super) fn keep<M: LanguageModel>(
        &mut self,
        model: &mut M,
        tenant: &Arc<str>,
        sequence: SequenceId,
        tokens: Vec<TokenId>,
    ) {
        let of_tenant = |kept: &Kept| kept.tenant == *tenant;
        let longer = self.kept.iter().find(|kept| of_tenant(kept) && kept.tokens.starts_with(&tokens));
        if let Some(longer) = longer.map(|kept| kept.sequence) {
            model.close(sequence);
            return self.touch(longer);
        }
        self.kept.retain(|kept| {
            let is_shorter = of_tenant(kept) && tokens.starts_with(&kept.tokens);
            if is_shorter {
                model.close(kept.sequence);
            }
            !is_shorter
        });
        self.kept.push(Kept { tenant: tenant.clone(), sequence, tokens });
    }

    /// Gives up the sequence that was not used for longest; false if there is none.
    pub(super) fn evict<M: LanguageModel>(&mut self, model: &mut M) -> bool {
        if self.kept.is_empty() {
            return false;
        }
        model.close(self.kept.remove(0).sequence);
        self.n_evicted += 1;
        true
    }

    /// How many there are, and how many were given up for room.
    pub(super) fn counts(&self) -> (usize, u64) {
        (self.kept.len(), self.n_evicted)
    }

    /// Gives up all.
    pub(super) fn clear<M: LanguageModel>(&mut self, model: &mut M) {
        while self.evict(model) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_beginning_wins_and_what_is_being_read_is_waited_for() {
        let long: Vec<TokenId> = (0..200).collect();
        let holder = |tenant, id, tokens, soon| Holder { tenant, sequence: SequenceId(id), tokens, soon };
        let start = |holders: Vec<Holder<'_>>| start_of("a", &long, holders.into_iter());
        assert_eq!(start(Vec::new()), Start::Empty);
        let ended = |tenant, id, n| holder(tenant, id, &long[..n], &long[..n]);
        assert_eq!(start(vec![ended("a", 1, 5), ended("a", 2, 9), ended("b", 3, 100)]), {
            Start::From(SequenceId(2), 9)
        });
        // One token has to be fed.
        assert_eq!(start(vec![ended("a", 1, 200)]), Start::From(SequenceId(1), 199));
        assert_eq!(start(vec![holder("a", 1, &long[..9], &long[..72])]), Start::From(SequenceId(1), 9));
        assert_eq!(start(vec![holder("a", 1, &long[..9], &long[..73])]), Start::Soon);
        assert_eq!(start(vec![holder("b", 1, &long[..9], &long)]), Start::Empty);
    }
}
