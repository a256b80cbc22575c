//! The second half of a step, after the forward pass: which tokens the target agrees with, and how likely
//! they were.

use breakers_core::{Distribution, Output, Sampler, Step, TokenId, TokenLogprob, TokenMask, token_score};

use crate::constrained::{Constrained, Place};
use crate::verify::{self, Verdict};
use crate::{Config, Decoding, Draft, Error, Result, TokenScore};

impl Decoding {
    /// Finds what the target agrees with, and its own next token. The constraint, if there is one, may have
    /// followed the accepted tokens then.
    pub(super) fn verify(&mut self, step: &Step) -> Result<Verdict> {
        let left = self.n_left();
        let mut target = Target {
            step,
            draft: &self.draft,
            places: &self.places,
            first: step.tokens.len() - 1 - self.n_fed,
            n_context: self.context.len(),
            history: std::mem::take(&mut self.context),
            n_choices: self.vocab_size,
            left,
            config: &self.config,
            end_tokens: &self.end_tokens,
            constrained: self.constrained.as_mut(),
        };
        let sampler = &mut self.sampler;
        let verdict = match self.draft.proposals() {
            Some(proposals) => {
                let distribution = |path: &[usize]| target.distribution(path);
                let verdict = verify::by_rejection(&self.draft, proposals, distribution, sampler);
                verdict.and_then(|verdict| target.keep_end_in_reach(verdict))
            }
            None => verify::by_draw(&self.draft, |path| target.choose(path, sampler)),
        };
        let Target { mut history, n_context, .. } = target;
        history.truncate(n_context);
        self.context = history;
        verdict
    }

    /// Makes the constraint follow the produced tokens, except for an end token.
    pub(super) fn follow(&mut self, emitted: &[TokenId]) -> Result<()> {
        let Some(constrained) = &mut self.constrained else { return Ok(()) };
        let n = emitted.iter().take_while(|token| !self.end_tokens.contains(token)).count();
        constrained.follow(emitted[..n].iter().copied())
    }

    /// How likely the produced tokens were.
    pub(super) fn score(
        &self,
        step: &Step,
        verdict: &Verdict,
        emitted: &[TokenId],
    ) -> Result<Vec<TokenScore>> {
        let Some(n_top) = self.config.top_logprobs else { return Ok(Vec::new()) };
        let rows = step.tokens.len();
        let first = rows - 1 - self.n_fed;
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

/// What the target says behind the paths through a draft.
struct Target<'a> {
    step: &'a Step,
    draft: &'a Draft,
    /// What may follow each row from the first one on.
    places: &'a [Place],
    /// The step's row before the draft's first one.
    first: usize,
    /// The text before the draft, followed by the tokens of a path: accepted tokens are part of the history
    /// of later ones.
    history: Vec<TokenId>,
    n_context: usize,
    /// Ids below this may be chosen.
    n_choices: usize,
    /// Tokens that may come behind the context, an end token among them.
    left: usize,
    config: &'a Config,
    end_tokens: &'a [TokenId],
    constrained: Option<&'a mut Constrained>,
}

impl Target<'_> {
    /// The target's choice.
    fn choose(&mut self, path: &[usize], sampler: &mut Sampler) -> Result<TokenId> {
        let watched = self.watches(path)?;
        if let Some(token) = self.certain(path, watched) {
            // Plain decoding draws here, too.
            if !self.config.sampling.is_greedy() {
                sampler.uniform();
            }
            return Ok(token);
        }
        let row = self.row(path);
        let token = match self.output(row) {
            Some(Output::Logits(_)) => {
                let (logits, history, mask) = self.logits(path)?;
                sampler.sample_within(logits, history, mask)?
            }
            Some(output) if self.config.sampling.is_plain_argmax() => {
                let token = output.best().ok_or_else(|| self.missing(row))?;
                match self.place(path) {
                    Place::Masked(mask) if !mask.is_allowed(token) => {
                        return Err(Error::OutsideMask { row, token });
                    }
                    _ => token,
                }
            }
            _ => return Err(self.missing(row)),
        };
        if watched { self.try_token(path, token) } else { Ok(token) }
    }

    /// What the target draws from.
    fn distribution(&mut self, path: &[usize]) -> Result<Distribution> {
        if let Some(token) = self.certain(path, false) {
            return Ok(Distribution::certain(token));
        }
        let sampling = &self.config.sampling;
        let (logits, history, mask) = self.logits(path)?;
        Ok(sampling.distribution_within(logits, history, mask)?)
    }

    /// What was drawn, up to where an end would get out of reach.
    fn keep_end_in_reach(&mut self, verdict: Verdict) -> Result<Verdict> {
        let Verdict { path, next } = verdict;
        for (i, token) in path.iter().map(|&row| self.draft.tokens()[row]).chain([next]).enumerate() {
            if !self.watches(&path[..i])? || matches!(self.place(&path[..i]), Place::Dropped) {
                continue;
            }
            let kept = match self.certain(&path[..i], true) {
                Some(certain) => certain,
                None => self.try_token(&path[..i], token)?,
            };
            if kept != token {
                return Ok(Verdict { path: path[..i].to_vec(), next: kept });
            }
        }
        Ok(Verdict { path, next })
    }

    fn row(&self, path: &[usize]) -> usize {
        self.first + path.last().map_or(0, |row| row + 1)
    }

    fn place(&self, path: &[usize]) -> &Place {
        self.places.get(path.last().map_or(0, |row| row + 1)).unwrap_or(&Place::Free)
    }

    fn output(&self, row: usize) -> Option<&Output> {
        self.step.outputs.get(row).map(|o| &o.output)
    }

    fn missing(&self, row: usize) -> Error {
        Error::MissingOutput { row, rows: self.step.tokens.len(), want: self.step.want(row) }
    }

    /// Whether the way to the end has to be watched behind a path.
    fn watches(&mut self, path: &[usize]) -> Result<bool> {
        // Nothing is behind an end.
        if matches!(self.place(path), Place::Dropped) {
            return Ok(false);
        }
        let (left, tokens) = (self.left - path.len().min(self.left), self.draft.tokens());
        match &mut self.constrained {
            Some(constrained) => constrained.watches(path.iter().map(|&row| tokens[row]), left),
            None => Ok(false),
        }
    }

    /// The token behind a path, where it takes no model to know it.
    fn certain(&self, path: &[usize], watched: bool) -> Option<TokenId> {
        let place = self.place(path);
        if let Some(constrained) = self.constrained.as_ref().filter(|_| watched)
            && let Some(next) = constrained.tight(self.left - path.len())
            && let Some(token) = next.or_else(|| place.end_among(self.end_tokens))
        {
            return Some(token);
        }
        match place {
            Place::Only(token) => Some(*token),
            // What follows an end token is dropped, whatever it is.
            Place::Dropped => Some(self.end_tokens.first().copied().unwrap_or(0)),
            _ => None,
        }
    }

    /// A token, or what has to stand in its place so that an end stays in reach.
    fn try_token(&mut self, path: &[usize], token: TokenId) -> Result<TokenId> {
        let left = self.left - path.len();
        let end = self.place(path).end_among(self.end_tokens);
        match &mut self.constrained {
            Some(constrained) if !self.end_tokens.contains(&token) => {
                let tried = constrained.try_token(token, left)?;
                // Without an end here the way would have a token.
                Ok(tried.map_or_else(|next| next.or(end).unwrap_or(token), |()| token))
            }
            _ => Ok(token),
        }
    }

    /// Logits, history and mask of the token behind a path.
    fn logits(&mut self, path: &[usize]) -> Result<(&[f32], &[TokenId], Option<&TokenMask>)> {
        let tokens = self.draft.tokens();
        self.history.truncate(self.n_context);
        self.history.extend(path.iter().map(|&row| tokens[row]));
        let row = self.row(path);
        let Some(Output::Logits(logits)) = self.output(row) else { return Err(self.missing(row)) };
        let mask = match self.place(path) {
            Place::Masked(mask) => Some(&**mask),
            _ => None,
        };
        Ok((&logits[..logits.len().min(self.n_choices)], &self.history, mask))
    }
}
