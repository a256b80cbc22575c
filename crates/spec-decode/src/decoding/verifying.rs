//! The half of a step that follows the forward pass: what the target agrees with, and how likely it was.

use breakers_core::{Output, Step, TokenId, TokenLogprob, TokenMask, token_score};

use crate::constrained::Constrained;
use crate::verify::{self, Verdict};
use crate::{Decoding, Draft, Error, Result, TokenScore};

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
        let mut places = Places {
            step,
            draft: &self.draft,
            first,
            n_context: self.context.len(),
            history: std::mem::take(&mut self.context),
            n_choices: self.vocab_size,
            end_tokens: &self.end_tokens,
            constrained: self.constrained.as_mut(),
        };
        let (sampling, sampler) = (&self.config.sampling, &mut self.sampler);
        let verdict = match self.draft.proposals() {
            Some(proposals) => {
                let target = |path: &[usize]| {
                    let (logits, history, mask) = places.at(path)?;
                    Ok(sampling.distribution_within(logits, history, mask)?)
                };
                verify::by_rejection(&self.draft, proposals, target, sampler)
            }
            None => verify::by_draw(&self.draft, |path| {
                let (logits, history, mask) = places.at(path)?;
                Ok(sampler.sample_within(logits, history, mask)?)
            }),
        };
        let Places { mut history, n_context, .. } = places;
        history.truncate(n_context);
        self.context = history;
        verdict
    }

    /// Makes the constraint follow the tokens that are handed out; an end token is not followed.
    pub(super) fn follow(&mut self, emitted: &[TokenId]) -> Result<()> {
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
        emitted: &[TokenId],
    ) -> Result<Vec<TokenScore>> {
        let Some(n_top) = self.config.top_logprobs else { return Ok(Vec::new()) };
        let rows = step.tokens.len();
        let first = rows - 1 - self.draft.len();
        let score = |(i, &token): (usize, &TokenId)| {
            let row = first + i.checked_sub(1).map_or(0, |i| verdict.path[i] + 1);
            let missing = || Error::MissingOutput { row, rows, want: step.want(row) };
            match step.outputs.get(row).map(|o| &o.output) {
                Some(Output::Logits(logits)) => Ok(token_score(logits, token, n_top)?),
                Some(Output::TopK(best)) => {
                    let chosen = |best: &&TokenLogprob| best.token == token;
                    let logprob = best.iter().find(chosen).ok_or_else(missing)?.logprob;
                    Ok(TokenScore::new(logprob, best[..best.len().min(n_top)].to_vec()))
                }
                _ => Err(missing()),
            }
        };
        emitted.iter().enumerate().map(score).collect()
    }
}

/// What tokens are chosen by, behind the paths through a draft.
struct Places<'a> {
    step: &'a Step,
    draft: &'a Draft,
    /// The step's row before the draft's first one.
    first: usize,
    /// The text before the draft, and then the tokens of a path: accepted tokens are history
    /// to those after them.
    history: Vec<TokenId>,
    n_context: usize,
    /// Ids below this may be chosen.
    n_choices: usize,
    end_tokens: &'a [TokenId],
    constrained: Option<&'a mut Constrained>,
}

impl Places<'_> {
    /// Logits, history and mask of the token behind a path.
    fn at(&mut self, path: &[usize]) -> Result<(&[f32], &[TokenId], Option<&TokenMask>)> {
        let row = self.first + path.last().map_or(0, |row| row + 1);
        let logits = match self.step.outputs.get(row).map(|o| &o.output) {
            Some(Output::Logits(logits)) => &logits[..logits.len().min(self.n_choices)],
            _ => {
                let (rows, want) = (self.step.tokens.len(), self.step.want(row));
                return Err(Error::MissingOutput { row, rows, want });
            }
        };
        let tokens = self.draft.tokens();
        self.history.truncate(self.n_context);
        self.history.extend(path.iter().map(|&row| tokens[row]));
        // What follows an end token is dropped, whatever it is.
        let ended = path.iter().any(|&row| self.end_tokens.contains(&tokens[row]));
        let mut mask = None;
        if let Some(constrained) = self.constrained.as_mut().filter(|_| !ended) {
            // From call to call the path grows by one token.
            while constrained.n_ahead() < path.len() {
                constrained.advance(tokens[path[constrained.n_ahead()]])?;
            }
            mask = Some(constrained.mask()?);
        }
        Ok((logits, &self.history, mask))
    }
}
