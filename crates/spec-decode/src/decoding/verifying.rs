//! The half of a step that follows the forward pass: what the target agrees with, and how likely it was.

use breakers_core::{Output, Step, TokenLogprob, log_sum_exp, top_k};

use crate::verify::{self, Verdict};
use crate::{Decoding, Error, Result, TokenScore};

impl Decoding {
    /// Finds what the target agrees with, and its own next token. The constraint, if there is one, has
    /// followed the accepted tokens then.
    pub(super) fn verify(&mut self, step: &Step) -> Result<Verdict> {
        let rows = step.tokens.len();
        let missing = |row: usize| Error::MissingOutput { row, rows, want: step.want(row) };
        let first = rows - 1 - self.draft.len();
        let row_of = |path: &[usize]| first + path.last().map_or(0, |row| row + 1);
        if self.is_plain_argmax() {
            return verify::by_draw(&self.draft, |path| {
                let row = row_of(path);
                step.outputs.get(row).and_then(|o| o.output.best()).ok_or_else(|| missing(row))
            });
        }
        // Accepted tokens are history to those after them.
        let n_context = self.context.len();
        let mut history = std::mem::take(&mut self.context);
        let (sampling, end_tokens, n_choices) = (&self.config.sampling, &self.end_tokens, self.vocab_size);
        let tokens = self.draft.tokens();
        let constrained = &mut self.constrained;
        let mut masked: Vec<f32> = Vec::new();
        let mut distribution = |path: &[usize]| {
            let row = row_of(path);
            let logits = match step.outputs.get(row).map(|o| &o.output) {
                Some(Output::Logits(logits)) => logits,
                _ => return Err(missing(row)),
            };
            let mut logits = &logits[..logits.len().min(n_choices)];
            history.truncate(n_context);
            history.extend(path.iter().map(|&row| tokens[row]));
            // What follows an end token is dropped, whatever it is.
            let ended = path.iter().any(|&row| end_tokens.contains(&tokens[row]));
            if let Some(constrained) = constrained.as_mut().filter(|_| !ended) {
                // From call to call the path grows by one token.
                while constrained.n_ahead() < path.len() {
                    constrained.advance(tokens[path[constrained.n_ahead()]])?;
                }
                masked.clear();
                masked.extend_from_slice(logits);
                constrained.mask()?.apply(&mut masked);
                logits = &masked;
            }
            Ok(sampling.distribution(logits, &history)?)
        };
        let sampler = &mut self.sampler;
        let verdict = match self.draft.proposals() {
            Some(proposals) => verify::by_rejection(&self.draft, proposals, distribution, sampler),
            None => verify::by_draw(&self.draft, |path| Ok(sampler.draw(&distribution(path)?))),
        };
        history.truncate(n_context);
        self.context = history;
        verdict
    }

    /// Makes the constraint follow the tokens that are handed out; an end token is not followed.
    pub(super) fn follow(&mut self, emitted: &[breakers_core::TokenId]) -> Result<()> {
        let Some(constrained) = &mut self.constrained else { return Ok(()) };
        let n = emitted.iter().take_while(|token| !self.end_tokens.contains(token)).count();
        constrained.back_to(n)?;
        emitted[..n].iter().skip(constrained.n_ahead()).try_for_each(|&token| constrained.advance(token))
    }

    /// How likely the tokens were that are handed out.
    pub(super) fn score(
        &self,
        step: &Step,
        verdict: &Verdict,
        emitted: &[breakers_core::TokenId],
    ) -> Result<Vec<TokenScore>> {
        let Some(n_top) = self.config.top_logprobs else { return Ok(Vec::new()) };
        let rows = step.tokens.len();
        let first = rows - 1 - self.draft.len();
        let score = |(i, &token): (usize, &breakers_core::TokenId)| {
            let row = first + i.checked_sub(1).map_or(0, |i| verdict.path[i] + 1);
            let missing = || Error::MissingOutput { row, rows, want: step.want(row) };
            match step.outputs.get(row).map(|o| &o.output) {
                Some(Output::Logits(logits)) => {
                    let logit = *logits.get(token as usize).ok_or_else(missing)?;
                    let logprob = (f64::from(logit) - log_sum_exp(logits)) as f32;
                    Ok(TokenScore { logprob, top: top_k(logits, n_top)? })
                }
                Some(Output::TopK(best)) => {
                    let chosen = |best: &&TokenLogprob| best.token == token;
                    let logprob = best.iter().find(chosen).ok_or_else(missing)?.logprob;
                    Ok(TokenScore { logprob, top: best[..best.len().min(n_top)].to_vec() })
                }
                _ => Err(missing()),
            }
        };
        emitted.iter().enumerate().map(score).collect()
    }
}
