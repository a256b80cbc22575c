//! The half of a step that comes before the forward pass: which tokens are fed, and what is wanted of them.

use std::sync::Arc;
use std::time::Instant;

use breakers_core::{Step, TokenId, TokenMask, Want};

use super::unverified::UnverifiedDraft;
use crate::constrained::{Place, Run};
use crate::{Decoding, Draft, DraftLength, DraftRequest, Drafter, Result};

impl Decoding {
    /// Tokens that may come yet, an end token among them.
    pub(super) fn n_left(&self) -> usize {
        let by_context = (self.max_context + 1).saturating_sub(self.context.len());
        (self.config.max_tokens - self.output().len()).min(by_context)
    }

    /// What is wanted of a row, and what of that matters.
    fn want(&self, place: &Place) -> (Want, Option<Arc<TokenMask>>) {
        let logprobs = self.config.top_logprobs;
        let mask = match place {
            Place::Dropped => return (Want::Nothing, None),
            Place::Only(_) if logprobs.is_none() => return (Want::Nothing, None),
            Place::Only(_) => return (Want::Logits, None),
            Place::Masked(mask) => Some(mask),
            Place::Free => self.known.as_ref(),
        };
        match (self.config.sampling.is_plain_argmax(), logprobs, mask) {
            (true, None, None) => (Want::ArgMax, None),
            (true, Some(n), None) => (Want::TopK(n.max(1)), None),
            (true, None, Some(mask)) if self.has_masked_argmax => (Want::ArgMax, Some(mask.clone())),
            // Log-probabilities are of the whole vocabulary.
            (_, Some(_), _) => (Want::Logits, None),
            (_, None, mask) => (Want::Logits, mask.cloned()),
        }
    }

    /// Says of each row of a step what is wanted of it, where tokens are chosen behind the last ones.
    fn ask(&self, step: &mut Step) {
        let (n_rows, n_places) = (step.tokens.len(), self.n_fed + 1);
        let rows = (0..n_places).map(|i| self.want(self.places.get(i).unwrap_or(&Place::Free)));
        let (wants, masks): (Vec<Want>, Vec<_>) = rows.unzip();
        step.wants = wants;
        if masks.iter().any(Option::is_some) {
            step.masks = masks;
        }
        debug_assert!(n_places <= n_rows);
    }

    /// What to feed next, in a step of at most `max_rows` rows (and one at least); `None` when the text has
    /// ended.
    ///
    /// The first steps are the prompt, in as many chunks as it takes, without a draft.
    ///
    /// # Errors
    /// [`Error::TooFewTokens`](crate::Error::TooFewTokens) before anything is fed, if no text of the
    /// constraint fits into the limit. Those of the drafter and of the constraint, and of [`Draft::validate`]
    /// for what the drafter proposes.
    pub fn plan<D: Drafter + ?Sized>(&mut self, drafter: &mut D, max_rows: usize) -> Result<Option<Step>> {
        if self.finish.is_some() {
            return Ok(None);
        }
        let planned = self.plan_step(drafter, max_rows.max(1));
        // The constraint may have been following a draft.
        if let Some(constrained) = &mut self.constrained {
            constrained.back_to(0)?;
        }
        if planned.is_err() {
            self.set_draft(Draft::none(), 0, Vec::new());
        }
        planned.map(Some)
    }

    fn plan_step<D: Drafter + ?Sized>(&mut self, drafter: &mut D, max_rows: usize) -> Result<Step> {
        self.set_draft(Draft::none(), 0, Vec::new());
        let left = self.n_left();
        if let Some(constrained) = &mut self.constrained {
            constrained.begin(left)?;
        }
        if self.is_in_prompt() {
            let chunk = &self.context[self.held..];
            if chunk.len() > max_rows {
                return Ok(Step::last(self.sequence, chunk[..max_rows].to_vec(), Want::Nothing));
            }
            let mut step = Step::last(self.sequence, chunk.to_vec(), Want::Nothing);
            if let Some(constrained) = &mut self.constrained {
                self.places = vec![constrained.place(left, &self.end_tokens)?];
            }
            self.ask(&mut step);
            return Ok(step);
        }
        if self.is_reading() {
            let chunk = &self.context[self.held..self.context.len() - 1];
            let chunk = chunk[..chunk.len().min(max_rows)].to_vec();
            return Ok(Step::last(self.sequence, chunk, Want::Nothing));
        }
        self.draft(drafter, max_rows - 1)?;
        let mut tokens = vec![self.context[self.held]];
        tokens.extend_from_slice(&self.draft.tokens()[..self.n_fed]);
        let mut step = Step::last(self.sequence, tokens, Want::Nothing);
        step.parents = self.draft.parents().map(|parents| {
            // Row 0 is the last token of the context.
            std::iter::once(None).chain(parents.iter().map(|p| Some(p.map_or(0, |p| p + 1)))).collect()
        });
        self.ask(&mut step);
        Ok(step)
    }

    fn set_draft(&mut self, draft: Draft, n_certain: usize, places: Vec<Place>) {
        self.n_fed = draft.len();
        (self.draft, self.n_certain, self.is_hint, self.places) = (draft, n_certain, false, places);
    }

    /// Finds the tokens to verify in the next step: those that are certain, then those that the constraint
    /// holds for likely, or else what the drafter says.
    fn draft<D: Drafter + ?Sized>(&mut self, drafter: &mut D, max_rows: usize) -> Result<()> {
        let max = self.config.draft_length.max().min(max_rows);
        if max > 0 && !self.drafter_started {
            let begun = Instant::now();
            drafter.start(&self.context[..self.n_prompt])?;
            self.drafter_started = true;
            self.stats.draft_prefill_seconds += begun.elapsed().as_secs_f64();
        }
        // A step hands out one token more than it verifies, and its rows need room in the context.
        let left = self.n_left();
        let limit = max.min(left - 1);
        let adaptive = matches!(self.config.draft_length, DraftLength::Adaptive { .. });
        self.policy.set_ahead(0);
        let Some(constrained) = &mut self.constrained else {
            let draft = self.ask_drafter(drafter, limit, &[])?;
            self.set_draft(draft, 0, Vec::new());
            return Ok(());
        };
        let Run { tokens: mut certain, mut places } = constrained.certain(limit, left, &self.end_tokens)?;
        let n_certain = if adaptive { self.policy.keep_certain(certain.len()) } else { certain.len() };
        let is_whole = n_certain == certain.len();
        certain.truncate(n_certain);
        places.truncate(n_certain + 1);
        self.policy.set_ahead(n_certain);
        let room = limit - n_certain;
        let mut draft = Draft::none();
        let mut is_hint = false;
        // A certain token that has no successor but an end, or that does not pay, is the last.
        if room > 0 && is_whole && matches!(places.last(), Some(Place::Masked(_))) {
            let mut likely = constrained.likely(room)?;
            if adaptive {
                likely.truncate(self.policy.keep_likely(likely.len()));
            }
            is_hint = !likely.is_empty();
            draft = match is_hint {
                true => Draft::chain(likely),
                false => self.ask_drafter(drafter, room, &certain)?,
            };
        }
        self.add_places(draft, certain, places, left)?;
        self.is_hint = is_hint;
        Ok(())
    }

    /// Makes a draft behind certain tokens the one to verify, as far as the constraint allows it.
    fn add_places(
        &mut self,
        mut draft: Draft,
        certain: Vec<TokenId>,
        mut places: Vec<Place>,
        left: usize,
    ) -> Result<()> {
        let Some(constrained) = &mut self.constrained else { return Ok(()) };
        let mut found = constrained.places(&draft, left - certain.len(), &self.end_tokens)?;
        let mut n_fed = draft.len();
        if draft.proposals().is_none() {
            let fitting: Vec<usize> = (0..draft.len()).filter(|&row| found[row].is_some()).collect();
            draft.select(&fitting);
            found.retain(Option::is_some);
            n_fed = draft.len();
        } else if draft.parents().is_none() {
            // A token that was drawn must be verified, or what replaces it would not have the target's
            // distribution. That takes no row of its own where it is certain to be refused.
            n_fed = found.iter().take_while(|place| place.is_some()).count();
            draft.truncate(n_fed + 1);
            found.truncate(n_fed);
        }
        places.extend(found.into_iter().map(|place| place.unwrap_or(Place::Dropped)));
        let n_certain = certain.len();
        self.set_draft(draft.behind(&certain), n_certain, places);
        self.n_fed = n_certain + n_fed;
        Ok(())
    }

    /// What the drafter says behind the context and tokens that are certain to follow it, as far as the
    /// constraint and the costs allow it.
    fn ask_drafter<D: Drafter + ?Sized>(
        &mut self,
        drafter: &mut D,
        limit: usize,
        certain: &[TokenId],
    ) -> Result<Draft> {
        let adaptive = matches!(self.config.draft_length, DraftLength::Adaptive { .. });
        let budget = match limit {
            0 => 0,
            _ if adaptive => self.policy.budget(limit, drafter.stops_itself()),
            _ => limit,
        };
        if budget == 0 {
            return Ok(Draft::none());
        }
        let begun = Instant::now();
        // What is certain counts as text, though it has not been fed.
        let n_context = self.context.len();
        self.context.extend_from_slice(certain);
        let draft = drafter.propose(&mut DraftRequest {
            context: &self.context,
            max_tokens: budget,
            vocab_size: self.vocab_size,
            end_tokens: &self.end_tokens,
            sampling: &self.config.sampling,
            chance: &mut self.sampler,
            policy: adaptive.then_some(&self.policy),
        });
        self.context.truncate(n_context);
        let mut draft = draft?;
        let seconds = begun.elapsed().as_secs_f64();
        let catch_up = draft.catch_up().as_secs_f64().min(seconds);
        self.stats.draft_seconds += seconds;
        self.stats.catch_up_seconds += catch_up;
        draft.validate(budget, self.vocab_size)?;
        let n_proposed = draft.len();
        // The model need not look at what the constraint forbids.
        if let Some(constrained) = self.constrained.as_mut().filter(|_| draft.proposals().is_none()) {
            let fits = constrained.fitting(&draft, &self.end_tokens)?;
            if fits.contains(&false) {
                draft.select(&(0..draft.len()).filter(|&row| fits[row]).collect::<Vec<_>>());
            }
        }
        if adaptive {
            self.policy.record_draft(n_proposed, seconds - catch_up, catch_up);
            if draft.proposals().is_none() && draft.parents().is_none() {
                let keep = self.policy.keep(draft.len(), draft.confidences());
                if keep < draft.len() {
                    let at = n_context + certain.len();
                    self.unverified =
                        Some(UnverifiedDraft { draft: draft.clone(), at, n_judged: keep, open: true });
                    draft.truncate(keep);
                }
            }
        }
        Ok(draft)
    }
}
