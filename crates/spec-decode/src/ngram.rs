use breakers_core::TokenId;

use crate::suffix_automaton::{ROOT, SuffixAutomaton};
use crate::{Draft, DraftRequest, Drafter, Result};

/// Which earlier occurrence of a match to copy from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Continuation {
    /// The tokens that followed the most recent occurrence.
    #[default]
    MostRecent,
    /// The token that followed most often, chosen again after each token; the more recent one if they are
    /// equally frequent.
    MostFrequent,
}

/// Settings of an [`NgramDrafter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NgramConfig {
    /// Tokens that must match before anything is proposed.
    pub min_match: usize,
    /// Which occurrence to copy from.
    pub continuation: Continuation,
}

impl Default for NgramConfig {
    fn default() -> Self {
        // A short match is sometimes right. Where a few rows cost no more than one, that is worth a try;
        // where they cost more, the adaptive length takes care of it.
        Self { min_match: 1, continuation: Continuation::MostRecent }
    }
}

impl NgramConfig {
    /// Prompt lookup as published: a single matching token is enough.
    ///
    /// Deviations: it uses the longest match rather than one of at most three tokens, and its latest
    /// occurrence rather than the first.
    pub fn paper() -> Self {
        Self { min_match: 1, continuation: Continuation::MostRecent }
    }
}

/// Prompt lookup: finds the longest end of the text that occurs earlier in the prompt or in the output, and
/// proposes what followed it there.
///
/// A copy that reaches the end of the text continues within itself, so periodic text can be continued to any
/// length. A token's confidence is m/(m + 1) for a match of m tokens (including those proposed before it);
/// with [`Continuation::MostFrequent`] it is multiplied by the token's share of the continuations.
///
/// # Cost
/// Amortized constant time per token of the text; no model is run.
///
/// # Memory
/// About 150 bytes per token of the text.
///
/// # Source
/// A. Saxena, "Prompt Lookup Decoding" (2023, github.com/apoorvumang/prompt-lookup-decoding); the suffix
/// automaton as its index: SAM-Decoding (arXiv 2411.10666), section 3.1.
///
/// # Example
/// ```
/// use breakers_core::{Sampler, SamplingConfig};
/// use breakers_spec_decode::{DraftRequest, Drafter as _, NgramDrafter};
///
/// let mut drafter = NgramDrafter::default();
/// drafter.start(&[5, 6, 7, 8, 9, 5, 6])?;
/// let sampling = SamplingConfig::greedy();
/// let mut sampler = Sampler::new(sampling.clone(), 0);
/// let draft =
///     drafter.propose(&mut DraftRequest::new(&[5, 6, 7, 8, 9, 5, 6], 3, &sampling, &mut sampler))?;
/// assert_eq!(draft.tokens(), [7, 8, 9]);
/// # Ok::<(), breakers_spec_decode::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct NgramDrafter {
    config: NgramConfig,
    automaton: SuffixAutomaton,
}

impl Default for NgramDrafter {
    fn default() -> Self {
        Self::new(NgramConfig::default())
    }
}

impl NgramDrafter {
    /// A drafter that has seen nothing yet.
    pub fn new(config: NgramConfig) -> Self {
        Self { config, automaton: SuffixAutomaton::new() }
    }

    /// Appends the tokens that the automaton has not seen yet.
    fn extend(&mut self, context: &[TokenId]) {
        if context.len() < self.automaton.text().len() {
            self.automaton.clear();
        }
        for &token in &context[self.automaton.text().len()..] {
            self.automaton.push(token);
        }
    }

    fn most_recent(&self, max_tokens: usize) -> (Vec<TokenId>, Vec<f32>) {
        let matched = self.automaton.matched();
        let text = self.automaton.text();
        let mut tokens: Vec<TokenId> = Vec::with_capacity(max_tokens);
        let mut confidences = Vec::with_capacity(max_tokens);
        for i in 0..max_tokens {
            let at = matched.end + i;
            tokens.push(if at < text.len() { text[at] } else { tokens[at - text.len()] });
            confidences.push(confidence(matched.length + i));
        }
        (tokens, confidences)
    }

    fn most_frequent(&self, max_tokens: usize) -> (Vec<TokenId>, Vec<f32>) {
        let matched = self.automaton.matched();
        let (mut state, mut length) = (matched.state, matched.length);
        let (mut tokens, mut confidences) = (Vec::new(), Vec::new());
        while tokens.len() < max_tokens {
            let mut followers = 0u64;
            let best = self
                .automaton
                .continuations(state)
                .inspect(|c| followers += c.count as u64)
                .max_by_key(|c| (c.count, c.latest));
            match best {
                Some(best) => {
                    tokens.push(best.token);
                    confidences.push(confidence(length) * best.count as f32 / followers as f32);
                    state = best.state;
                    length += 1;
                }
                // The text ends here: continue from the longest shorter match that has a continuation.
                None => {
                    state = self.automaton.link(state).unwrap_or(ROOT);
                    length = self.automaton.length(state).min(length);
                    if length < self.config.min_match {
                        break;
                    }
                }
            }
        }
        (tokens, confidences)
    }
}

impl Drafter for NgramDrafter {
    fn name(&self) -> &str {
        "n-gram"
    }

    fn start(&mut self, prompt: &[TokenId]) -> Result<()> {
        self.automaton.clear();
        self.extend(prompt);
        Ok(())
    }

    fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft> {
        self.extend(request.context);
        if self.automaton.matched().length < self.config.min_match.max(1) {
            return Ok(Draft::none());
        }
        let (mut tokens, mut confidences) = match self.config.continuation {
            Continuation::MostRecent => self.most_recent(request.max_tokens),
            Continuation::MostFrequent => self.most_frequent(request.max_tokens),
        };
        if let Some(end) = tokens.iter().position(|t| request.end_tokens.contains(t)) {
            tokens.truncate(end + 1);
            confidences.truncate(end + 1);
        }
        Ok(Draft::chain(tokens).with_confidences(confidences))
    }
}

fn confidence(matched: usize) -> f32 {
    matched as f32 / (matched + 1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakers_core::{Sampler, SamplingConfig};

    fn propose(drafter: &mut NgramDrafter, context: &[TokenId], max_tokens: usize) -> Draft {
        let sampling = SamplingConfig::greedy();
        let mut sampler = Sampler::new(sampling.clone(), 0);
        let mut request = DraftRequest::new(context, max_tokens, &sampling, &mut sampler);
        request.end_tokens = &[99];
        drafter.propose(&mut request).unwrap()
    }

    #[test]
    fn proposals() {
        use Continuation::{MostFrequent, MostRecent};
        let check = |continuation, min_match, context: &[TokenId], max_tokens, expected: &[TokenId]| {
            let mut drafter = NgramDrafter::new(NgramConfig { min_match, continuation });
            drafter.start(&context[..context.len() / 2]).unwrap();
            let draft = propose(&mut drafter, context, max_tokens);
            assert_eq!(draft.tokens(), expected, "{continuation:?}, {context:?}");
            assert_eq!(draft.confidences().map_or(0, <[f32]>::len), expected.len());
        };
        // Nothing repeats; one token repeats but two must; one will do.
        check(MostRecent, 1, &[1, 2, 3], 4, &[]);
        check(MostRecent, 2, &[1, 2, 3, 1], 4, &[]);
        check(MostRecent, 1, &[1, 2, 3, 1], 2, &[2, 3]);
        // The copy continues within itself.
        check(MostRecent, 2, &[1, 2, 1, 2], 5, &[1, 2, 1, 2, 1]);
        check(MostRecent, 1, &[7, 7], 4, &[7, 7, 7, 7]);
        check(MostFrequent, 1, &[7, 7, 7, 7], 4, &[7, 7, 7, 7]);
        // The longest match is preferred to later, shorter ones.
        check(MostRecent, 1, &[1, 2, 3, 50, 3, 60, 2, 3, 70, 1, 2, 3], 1, &[50]);
        // 1 2 was followed by 3, 3, 4.
        let often = [1, 2, 3, 8, 1, 2, 3, 9, 1, 2, 4, 5, 1, 2];
        check(MostRecent, 2, &often, 3, &[4, 5, 1]);
        check(MostFrequent, 2, &often, 1, &[3]);
        // Nothing is proposed beyond an end token.
        check(MostRecent, 2, &[1, 2, 99, 4, 1, 2], 4, &[99]);
        check(MostRecent, 2, &[1, 2, 1, 2], 0, &[]);
    }

    #[test]
    fn confidence_grows_with_the_match_and_shrinks_with_rivals() {
        let mut drafter = NgramDrafter::default();
        drafter.start(&[1, 2, 3, 4, 1, 2]).unwrap();
        let draft = propose(&mut drafter, &[1, 2, 3, 4, 1, 2], 2);
        assert_eq!(draft.confidences(), Some(&[2.0 / 3.0, 3.0 / 4.0][..]));
        let mut drafter =
            NgramDrafter::new(NgramConfig { min_match: 1, continuation: Continuation::MostFrequent });
        drafter.start(&[]).unwrap();
        let draft = propose(&mut drafter, &[1, 2, 1, 2, 1, 3, 1], 1);
        assert_eq!((draft.tokens(), draft.confidences()), (&[2][..], Some(&[0.5f32 * 2.0 / 3.0][..])));
    }

    #[test]
    fn a_new_text_forgets_the_old_one() {
        let mut drafter = NgramDrafter::default();
        drafter.start(&[1, 2, 3, 1, 2]).unwrap();
        drafter.start(&[1, 2]).unwrap();
        assert!(propose(&mut drafter, &[1, 2], 4).is_empty());
        // Even without a call of `start`, a shorter context than before is a new text.
        assert!(propose(&mut drafter, &[2], 4).is_empty());
    }
}
