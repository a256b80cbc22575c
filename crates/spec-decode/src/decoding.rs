use std::time::Instant;

use breakers_core::{
    FinishReason, LanguageModel, Sampler, SamplingConfig, SequenceId, Step, StepError, TokenId, Want,
};

use crate::verify::{self, Verdict};
use crate::{AdaptiveLength, Draft, DraftRequest, Drafter, Error, Outcome, Result, Stats};

/// How many tokens are drafted in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DraftLength {
    /// As many as the drafter has, up to this. Runs are repeatable in every respect but their times.
    Fixed(usize),
    /// As many as pay off by the costs measured, 0 included. As they follow the clock, statistics differ
    /// from run to run; tokens do not, except those sampled with a drafter that samples itself, whose
    /// distribution stays the same.
    Adaptive {
        /// Draft tokens at most.
        max: usize,
    },
}

impl DraftLength {
    /// Draft tokens at most.
    pub fn max(self) -> usize {
        match self {
            DraftLength::Fixed(n) | DraftLength::Adaptive { max: n } => n,
        }
    }
}

/// Settings of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// New tokens at most.
    pub max_tokens: usize,
    /// How the target's tokens are chosen.
    pub sampling: SamplingConfig,
    /// Seed of all random choices.
    pub seed: u64,
    /// Tokens that end the text, and are part of it. `None`: those of the target's
    /// [`ModelInfo`](breakers_core::ModelInfo).
    pub end_tokens: Option<Vec<TokenId>>,
    /// How many tokens are drafted.
    pub draft_length: DraftLength,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampling: SamplingConfig::greedy(),
            seed: 0,
            end_tokens: None,
            draft_length: DraftLength::Adaptive { max: 16 },
        }
    }
}

impl Config {
    /// The published setting for a draft model: a fixed length of 4.
    ///
    /// # Source
    /// Chen et al. (arXiv 2302.01318), table 1.
    pub fn paper() -> Self {
        Self { draft_length: DraftLength::Fixed(4), ..Self::default() }
    }
}

/// A finished continuation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Speculated {
    /// Tokens produced, end token included.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub finish: FinishReason,
    /// What it took.
    pub stats: Stats,
}

/// The state of one text that is being generated, apart from the model that generates it.
///
/// A step has two halves: [`plan`](Self::plan) asks the drafter and says what to feed,
/// [`absorb`](Self::absorb) verifies the model's answers. Between them stands one forward pass of the
/// caller, so that the steps of many texts can share it. [`Speculator`](crate::Speculator) drives a single one.
///
/// After each step the sequence holds the prompt and the output without its last token, all final, exactly
/// as plain decoding would leave it. After an error it is back at the state before the step, and the step can
/// be repeated.
#[derive(Clone, Debug)]
pub struct Decoding {
    sequence: SequenceId,
    /// Prompt and output.
    context: Vec<TokenId>,
    n_prompt: usize,
    /// Tokens that the sequence holds, all final.
    held: usize,
    config: Config,
    end_tokens: Vec<TokenId>,
    vocab_size: usize,
    max_context: usize,
    sampler: Sampler,
    policy: AdaptiveLength,
    /// What the planned step verifies.
    draft: Draft,
    shadow: Option<Shadow>,
    drafter_started: bool,
    stats: Stats,
    finish: Option<FinishReason>,
}

impl Decoding {
    /// Prepares to continue `prompt`: all tokens of the text, of which `sequence` may hold a beginning.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`]; [`Error::NothingToFeed`] if the sequence holds the whole prompt;
    /// [`Error::ProvisionalTokens`]; [`Error::Sampling`] for parameters out of range; [`Error::Target`] for
    /// an unknown sequence and for a prompt that exceeds the context.
    pub fn new<M: LanguageModel + ?Sized>(
        model: &M,
        sequence: SequenceId,
        prompt: &[TokenId],
        config: &Config,
    ) -> Result<Self> {
        config.sampling.validate()?;
        let held = model.len(sequence).map_err(Error::Target)?;
        let committed = model.committed(sequence).map_err(Error::Target)?;
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if committed != held {
            return Err(Error::ProvisionalTokens { committed, held });
        }
        if held >= prompt.len() {
            return Err(Error::NothingToFeed { held, prompt: prompt.len() });
        }
        let info = model.info();
        if prompt.len() > info.max_context {
            let full = StepError::ContextFull { needed: prompt.len(), limit: info.max_context }.into();
            return Err(Error::Target(full));
        }
        Ok(Self {
            sequence,
            context: prompt.to_vec(),
            n_prompt: prompt.len(),
            held,
            end_tokens: config.end_tokens.clone().unwrap_or_else(|| info.end_tokens.clone()),
            vocab_size: info.vocab_size,
            max_context: info.max_context,
            sampler: Sampler::new(config.sampling.clone(), config.seed),
            policy: AdaptiveLength::new(),
            draft: Draft::none(),
            shadow: None,
            drafter_started: false,
            stats: Stats::default(),
            finish: (config.max_tokens == 0).then_some(FinishReason::Length),
            config: config.clone(),
        })
    }

    /// Goes on with the experience of earlier texts of the same model and drafter.
    pub fn with_policy(mut self, policy: AdaptiveLength) -> Self {
        self.policy = policy;
        self
    }

    /// The experience gathered, for the next text.
    pub fn policy(&self) -> &AdaptiveLength {
        &self.policy
    }

    pub(crate) fn policy_mut(&mut self) -> &mut AdaptiveLength {
        &mut self.policy
    }

    pub(crate) fn into_result(mut self, finish: FinishReason) -> Speculated {
        Speculated { tokens: self.context.split_off(self.n_prompt), finish, stats: self.stats }
    }

    /// The sequence that is extended.
    pub fn sequence(&self) -> SequenceId {
        self.sequence
    }

    /// The tokens produced so far.
    pub fn output(&self) -> &[TokenId] {
        &self.context[self.n_prompt..]
    }

    /// Why the text ended, once it has.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// What it took so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Ends the text here, if it has not ended yet.
    pub fn cancel(&mut self) {
        self.finish.get_or_insert(FinishReason::Cancelled);
    }

    /// What to feed next; `None` when the text has ended.
    ///
    /// The first step is the prompt, without a draft.
    ///
    /// # Errors
    /// Those of the drafter, and of [`Draft::validate`] for what it proposes.
    pub fn plan<D: Drafter + ?Sized>(&mut self, drafter: &mut D) -> Result<Option<Step>> {
        if self.finish.is_some() {
            return Ok(None);
        }
        let want = if self.config.sampling.is_plain_argmax() { Want::ArgMax } else { Want::Logits };
        self.draft = Draft::none();
        if self.in_prompt() {
            return Ok(Some(Step::last(self.sequence, self.context[self.held..].to_vec(), want)));
        }
        self.draft(drafter)?;
        let mut tokens = vec![self.context[self.held]];
        tokens.extend_from_slice(self.draft.tokens());
        let mut step = Step::each(self.sequence, tokens, want);
        step.parents = self.draft.parents().map(|parents| {
            // Row 0 is the last token of the context.
            std::iter::once(None).chain(parents.iter().map(|p| Some(p.map_or(0, |p| p + 1)))).collect()
        });
        Ok(Some(step))
    }

    /// Verifies what the model answered to the planned step, brings the sequence into order, and returns the
    /// new tokens. `seconds` is what the forward pass took; of a pass shared by several texts, what this one
    /// is to be charged.
    ///
    /// # Errors
    /// [`Error::MissingOutput`], [`Error::Sampling`], [`Error::ImpossibleProposal`], [`Error::Target`].
    pub fn absorb<M, D>(
        &mut self,
        model: &mut M,
        drafter: &mut D,
        step: &Step,
        seconds: f64,
    ) -> Result<&[TokenId]>
    where
        M: LanguageModel + ?Sized,
        D: Drafter + ?Sized,
    {
        let settled = self.absorb_shared(model, drafter, step, seconds)?;
        self.record_pass(settled.rows, settled.seconds, settled.tokens);
        Ok(&self.context[self.context.len() - settled.tokens..])
    }

    /// As [`absorb`](Self::absorb), for a pass that several texts share: what it cost all of them together is told
    /// by [`record_pass`](Self::record_pass), once it is known.
    pub(crate) fn absorb_shared<M, D>(
        &mut self,
        model: &mut M,
        drafter: &mut D,
        step: &Step,
        seconds: f64,
    ) -> Result<Pass>
    where
        M: LanguageModel + ?Sized,
        D: Drafter + ?Sized,
    {
        self.settle(model, drafter, step, seconds).inspect_err(|_| self.abandon(model))
    }

    /// Notes what a pass cost all texts in it together, and the tokens that it gave them. Prompts do not count.
    pub(crate) fn record_pass(&mut self, rows: usize, seconds: f64, tokens: usize) {
        if rows > 0 {
            self.policy.record_step(rows, seconds, tokens);
        }
    }

    /// Takes back the provisional tokens of a step that is not going to be absorbed. A failed
    /// [`absorb`](Self::absorb) does so itself, and a failed forward pass leaves none.
    pub fn abandon<M: LanguageModel + ?Sized>(&self, model: &mut M) {
        let held = model.len(self.sequence).unwrap_or(self.held);
        if held > self.held
            && let Err(error) = model.truncate(self.sequence, self.held)
        {
            tracing::warn!(%error, held, expected = self.held, "provisional tokens could not be taken back");
        }
    }

    /// Verifies a step.
    fn settle<M, D>(&mut self, model: &mut M, drafter: &mut D, step: &Step, seconds: f64) -> Result<Pass>
    where
        M: LanguageModel + ?Sized,
        D: Drafter + ?Sized,
    {
        let begun = Instant::now();
        let in_prompt = self.in_prompt();
        let n_rows = step.tokens.len();
        let verdict = self.verify(step)?;
        let mut emitted: Vec<TokenId> = verdict.path.iter().map(|&row| self.draft.tokens()[row]).collect();
        emitted.push(verdict.next);
        let left = self.config.max_tokens - self.output().len();
        let end = emitted.iter().position(|t| self.end_tokens.contains(t));
        emitted.truncate(left.min(end.map_or(usize::MAX, |end| end + 1)));

        // Of a draft, the sequence keeps what stands before the last token of the output.
        let keep = if in_prompt { n_rows } else { emitted.len() };
        if self.draft.parents().is_some() {
            let rows: Vec<usize> =
                std::iter::once(0).chain(verdict.path.iter().map(|row| row + 1)).take(keep).collect();
            model.retain(self.sequence, &rows).map_err(Error::Target)?;
        } else if keep < n_rows {
            model.truncate(self.sequence, self.held + keep).map_err(Error::Target)?;
        }
        model.commit(self.sequence, keep).map_err(Error::Target)?;
        self.held += keep;
        self.context.extend_from_slice(&emitted);
        self.finish = if end.is_some_and(|end| end < emitted.len()) {
            Some(FinishReason::EndOfText)
        } else if self.output().len() == self.config.max_tokens {
            Some(FinishReason::Length)
        } else if self.held == self.max_context {
            Some(FinishReason::ContextFull)
        } else {
            None
        };

        let seconds = seconds + begun.elapsed().as_secs_f64();
        self.stats.emitted += emitted.len();
        if in_prompt {
            self.stats.prompts += 1;
            self.stats.prompt_tokens += n_rows;
            self.stats.prefill_seconds += seconds;
        } else {
            self.learn(&verdict);
            let n_accepted = verdict.path.len().min(emitted.len());
            self.stats.record_step(self.draft.len(), n_accepted, seconds);
            if !self.draft.is_empty() {
                drafter.observe(&Outcome { context: &self.context, n_drafted: self.draft.len(), n_accepted });
            }
        }
        Ok(Pass { rows: if in_prompt { 0 } else { n_rows }, seconds, tokens: emitted.len() })
    }

    /// Whether the next step is the prompt's.
    fn in_prompt(&self) -> bool {
        self.context.len() == self.n_prompt
    }

    /// Asks the drafter for the tokens to verify in the next step.
    fn draft<D: Drafter + ?Sized>(&mut self, drafter: &mut D) -> Result<()> {
        let max = self.config.draft_length.max();
        if max == 0 {
            return Ok(());
        }
        if !self.drafter_started {
            let begun = Instant::now();
            drafter.start(&self.context[..self.n_prompt])?;
            self.drafter_started = true;
            self.stats.draft_prefill_seconds += begun.elapsed().as_secs_f64();
        }
        // A step hands out one token more than it verifies, and its rows need room in the context.
        let left = self.config.max_tokens - self.output().len();
        let limit = max.min(left - 1).min(self.max_context - self.held - 1);
        let adaptive = matches!(self.config.draft_length, DraftLength::Adaptive { .. });
        let budget = if adaptive { self.policy.budget(limit, drafter.stops_itself()) } else { limit };
        if budget == 0 {
            return Ok(());
        }
        let begun = Instant::now();
        let mut draft = drafter.propose(&mut DraftRequest {
            context: &self.context,
            max_tokens: budget,
            vocab_size: self.vocab_size,
            end_tokens: &self.end_tokens,
            sampling: &self.config.sampling,
            chance: &mut self.sampler,
            policy: adaptive.then_some(&self.policy),
        })?;
        let seconds = begun.elapsed().as_secs_f64();
        let catch_up = draft.catch_up().as_secs_f64().min(seconds);
        self.stats.draft_seconds += seconds;
        self.stats.catch_up_seconds += catch_up;
        draft.validate(budget, self.vocab_size)?;
        if adaptive {
            self.policy.record_draft(draft.len(), seconds - catch_up, catch_up);
            // Tokens that were drawn must all be verified; see `DraftRequest::pays`.
            if draft.proposals().is_none() && draft.parents().is_none() {
                let keep = self.policy.keep(draft.len(), draft.confidences());
                if keep < draft.len() {
                    let at = self.context.len();
                    self.shadow = Some(Shadow { draft: draft.clone(), at, n_judged: keep, open: true });
                    draft.truncate(keep);
                }
            }
        }
        self.draft = draft;
        Ok(())
    }

    /// Finds what the target agrees with, and its own next token.
    fn verify(&mut self, step: &Step) -> Result<Verdict> {
        let rows = step.tokens.len();
        let missing = |row: usize| Error::MissingOutput { row, rows, want: step.want(row) };
        let first = rows - 1 - self.draft.len();
        let row_of = |path: &[usize]| first + path.last().map_or(0, |row| row + 1);
        if self.config.sampling.is_plain_argmax() {
            return verify::by_draw(&self.draft, |path| {
                let row = row_of(path);
                step.outputs.get(row).and_then(|o| o.output.best()).ok_or_else(|| missing(row))
            });
        }
        // Accepted tokens are history to those after them.
        let n_context = self.context.len();
        let mut history = std::mem::take(&mut self.context);
        let sampling = &self.config.sampling;
        let tokens = self.draft.tokens();
        let mut distribution = |path: &[usize]| {
            let row = row_of(path);
            let logits = match step.outputs.get(row).map(|o| &o.output) {
                Some(breakers_core::Output::Logits(logits)) => logits,
                _ => return Err(missing(row)),
            };
            history.truncate(n_context);
            history.extend(path.iter().map(|&row| tokens[row]));
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

    /// Notes which tokens of a draft were accepted.
    fn learn(&mut self, verdict: &Verdict) {
        let refused = self.draft.children(verdict.path.last().copied()).next();
        let judged =
            verdict.path.iter().copied().map(|row| (row, true)).chain(refused.map(|row| (row, false)));
        for (position, (row, accepted)) in judged.enumerate() {
            let confidence = self.draft.confidences().map(|c| c[row]);
            self.policy.record_acceptance(position, confidence, accepted);
            self.stats.record_position(position, accepted);
        }
        if let Some(mut shadow) = self.shadow.take() {
            for (position, accepted) in shadow.judge(&self.context) {
                let confidence = shadow.draft.confidences().map(|c| c[position]);
                self.policy.record_acceptance(position, confidence, accepted);
            }
            self.shadow = shadow.open.then_some(shadow);
        }
    }
}

/// What a forward pass, or a text's part of it, took and gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    /// Rows, those of prompts not counted.
    pub(crate) rows: usize,
    pub(crate) seconds: f64,
    pub(crate) tokens: usize,
}

/// A proposal that was not verified to its end, to be compared with the text as it comes.
#[derive(Clone, Debug)]
struct Shadow {
    draft: Draft,
    /// Where in the context its first token would stand.
    at: usize,
    /// Tokens that were judged already.
    n_judged: usize,
    /// Whether the text may still go on like the proposal.
    open: bool,
}

impl Shadow {
    /// Positions that the text decides for the first time, and whether their tokens were right.
    fn judge(&mut self, context: &[TokenId]) -> impl Iterator<Item = (usize, bool)> + use<> {
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
            let mut shadow = Shadow { draft, at: 2, n_judged, open: true };
            let found: Vec<_> =
                texts.iter().flat_map(|text| shadow.judge(&[&[1, 2], *text].concat())).collect();
            assert_eq!((&found[..], shadow.open), (expected, open), "{n_judged} judged, {texts:?}");
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
