mod planning;
mod unverified;
mod verifying;

use std::sync::Arc;
use std::time::Instant;

use breakers_core::{
    Constraint, FinishReason, LanguageModel, Sampler, SequenceId, Step, StepError, TokenId, TokenMask, Usage,
    Vocabulary,
};

use self::unverified::UnverifiedDraft;
use crate::adaptive::OtherTexts;
use crate::constrained::{Constrained, Place};
use crate::ending::Leash;
use crate::text::TextOutput;
use crate::{
    AdaptiveLength, AtLimit, Config, Draft, Drafter, Error, Outcome, Result, Speculated, Stats, TokenScore,
    Verdict,
};

/// The state of one text that is being generated, separate from the model that generates it.
///
/// A step has two halves: [`plan`](Self::plan) asks the drafter and returns what to feed, and
/// [`absorb`](Self::absorb) verifies the model's answers. Between them the caller runs one forward pass,
/// which the steps of many texts can share. [`Speculator`](crate::Speculator) drives a single one,
/// [`Batch`](crate::Batch) many that join and leave. Plain decoding is decoding with
/// [`NoDrafter`](crate::NoDrafter).
///
/// With a vocabulary ([`with_text`](Self::with_text)) the tokens become text as they come, and stop strings
/// end it. With a constraint ([`with_constraint`](Self::with_constraint)) every token is drawn under its
/// mask, which comes before temperature and filters, and an end token only where the constraint lets the text
/// end. A token that is the only one of its place is drafted without asking anybody and costs no logits; the
/// drafter goes on behind it. The text ends in time, [`Config::at_limit`] permitting.
///
/// After each step the sequence holds the prompt and the output without its last token, all final, exactly as
/// plain decoding would leave it. After an error the state is that before the step, and the step can be
/// repeated.
#[derive(Debug)]
pub struct Decoding {
    sequence: SequenceId,
    /// Prompt and output.
    context: Vec<TokenId>,
    n_prompt: usize,
    /// Tokens of the prompt that the sequence already held.
    n_cached: usize,
    /// Tokens that the sequence holds, all final.
    held: usize,
    config: Config,
    end_tokens: Vec<TokenId>,
    /// Ids below this may be chosen.
    vocab_size: usize,
    /// The ids that may be chosen, if the model has logits for others.
    known: Option<Arc<TokenMask>>,
    /// Whether the model finds the most likely token of a mask.
    has_masked_argmax: bool,
    max_context: usize,
    sampler: Sampler,
    policy: AdaptiveLength,
    constrained: Option<Constrained>,
    text: Option<TextOutput>,
    scores: Vec<TokenScore>,
    /// The draft that the planned step verifies.
    draft: Draft,
    /// Its tokens at the front that are certain, because the constraint leaves no other.
    n_certain: usize,
    /// Whether the constraint holds the rest for likely, and not the drafter.
    is_hint: bool,
    /// Its tokens that are fed. A drawn token that the constraint forbids is not, and nothing behind it.
    n_fed: usize,
    /// What may follow the context and each token that is fed; empty without a constraint.
    places: Vec<Place>,
    unverified: Option<UnverifiedDraft>,
    drafter_started: bool,
    stats: Stats,
    finish: Option<FinishReason>,
}

impl Decoding {
    /// Prepares to continue `prompt`, which holds all tokens of the text. `sequence` may already hold its
    /// first tokens.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`]; [`Error::NothingToFeed`] if the sequence holds the whole prompt;
    /// [`Error::ProvisionalTokens`]; [`Error::Sampling`] for parameters out of range; [`Error::Target`] for
    /// an unknown sequence, for ids outside of the vocabulary and for a prompt that exceeds the context.
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
        let vocab_size = info.vocab_size;
        if let Some(&token) = prompt.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(Error::Target(breakers_core::Error::InvalidToken { token, vocab_size }));
        }
        if prompt.len() > info.max_context {
            let full = StepError::ContextFull { needed: prompt.len(), limit: info.max_context }.into();
            return Err(Error::Target(full));
        }
        Ok(Self {
            sequence,
            context: prompt.to_vec(),
            n_prompt: prompt.len(),
            n_cached: held,
            held,
            end_tokens: config.end_tokens.clone().unwrap_or_else(|| info.end_tokens.clone()),
            vocab_size,
            known: None,
            has_masked_argmax: info.masked_argmax,
            max_context: info.max_context,
            sampler: Sampler::new(config.sampling.clone(), config.seed),
            policy: AdaptiveLength::new(),
            constrained: None,
            text: None,
            scores: Vec::new(),
            draft: Draft::none(),
            n_certain: 0,
            is_hint: false,
            n_fed: 0,
            places: Vec::new(),
            unverified: None,
            drafter_started: false,
            stats: Stats::default(),
            finish: (config.max_tokens == 0).then_some(FinishReason::Length),
            config: config.clone(),
        })
    }

    /// Uses the experience from earlier texts with the same model and drafter.
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

    /// Sets how many other texts are in the next pass, and how many rows they are expected to have. A pass
    /// that they fill has fewer cheap rows left, so less is drafted.
    pub fn set_others(&mut self, n_texts: usize, n_rows: usize) {
        self.policy.set_others(OtherTexts { texts: n_texts, rows: n_rows });
    }

    /// Turns the tokens into text, which [`take_text`](Self::take_text) returns, and ends it before any of
    /// the stop strings. Ids outside of the vocabulary are never chosen. Call this before the first step.
    pub fn with_text<S: AsRef<str>>(mut self, vocabulary: Arc<dyn Vocabulary>, stop: &[S]) -> Self {
        let n_known = vocabulary.n_tokens();
        self.known = (n_known < self.vocab_size).then(|| Arc::new(TokenMask::all(n_known)));
        self.vocab_size = self.vocab_size.min(n_known);
        let mut text = TextOutput::new(vocabulary, stop);
        if self.finish.is_some() {
            text.finish();
        }
        self.text = Some(text);
        self
    }

    /// Spells control tokens in the text, except those that end it, for whoever reads calls of functions out
    /// of it. Call this after [`with_text`](Self::with_text).
    pub fn with_controls(mut self) -> Self {
        self.text = self.text.map(TextOutput::with_controls);
        self
    }

    /// Lets the constraint decide which tokens may be chosen, from the first token of the output on. To be
    /// called before the first step, and after [`with_text`](Self::with_text).
    ///
    /// If the constraint knows ways to its end ([`Constraint::completion`]), the text ends within the limit
    /// of its tokens, unless [`Config::at_limit`] has it cut.
    pub fn with_constraint(mut self, constraint: Box<dyn Constraint>) -> Self {
        let leash = match self.config.at_limit {
            AtLimit::Complete => Leash::On,
            AtLimit::Cut => Leash::Off,
        };
        self.constrained = Some(Constrained::new(constraint, self.vocab_size, leash));
        self
    }

    /// The result. If the text has not ended, its finish reason is [`FinishReason::Cancelled`].
    pub fn into_result(mut self) -> Speculated {
        Speculated {
            finish: self.finish.unwrap_or(FinishReason::Cancelled),
            tokens: self.context.split_off(self.n_prompt),
            scores: self.scores,
            stats: self.stats,
        }
    }

    /// The sequence that is extended.
    pub fn sequence(&self) -> SequenceId {
        self.sequence
    }

    /// All tokens of the text so far: the prompt, and the tokens produced.
    pub fn tokens(&self) -> &[TokenId] {
        &self.context
    }

    /// Tokens that the sequence holds: those of the text but for what was not fed yet.
    pub fn held(&self) -> &[TokenId] {
        &self.context[..self.held]
    }

    /// The tokens produced so far.
    pub fn output(&self) -> &[TokenId] {
        &self.context[self.n_prompt..]
    }

    /// How likely the tokens produced so far were; empty unless [`Config::top_logprobs`] asks for it.
    pub fn scores(&self) -> &[TokenScore] {
        &self.scores
    }

    /// The text that has become certain since the last call. It consists of whole characters, and text that
    /// may be the beginning of a stop string is held back. Empty without [`with_text`](Self::with_text).
    pub fn take_text(&mut self) -> String {
        self.text.as_mut().map(TextOutput::take).unwrap_or_default()
    }

    /// Whether a part of the prompt has not been fed yet.
    pub fn is_in_prompt(&self) -> bool {
        self.context.len() == self.n_prompt
    }

    /// Tokens of the prompt that have not been fed yet.
    pub fn n_unread(&self) -> usize {
        self.n_prompt.saturating_sub(self.held)
    }

    /// Whether the next step only reads: a part of the prompt, or of a text that goes on in another sequence.
    pub fn is_reading(&self) -> bool {
        self.is_in_prompt() || self.held + 1 < self.context.len()
    }

    /// Goes on in another sequence, as if it had been this one from the beginning: what it does not hold of
    /// the text is fed to it first. So a text can leave a batch, give up its sequence, and come back.
    ///
    /// The model must be able to share sequences ([`LanguageModel::is_shareable`]); otherwise the text may be
    /// another one from here on.
    ///
    /// # Errors
    /// [`Error::NothingToFeed`] if the sequence holds the whole text; [`Error::ProvisionalTokens`];
    /// [`Error::Target`] for an unknown sequence.
    pub fn move_to<M: LanguageModel + ?Sized>(&mut self, model: &M, sequence: SequenceId) -> Result<()> {
        let held = model.len(sequence).map_err(Error::Target)?;
        let committed = model.committed(sequence).map_err(Error::Target)?;
        if committed != held {
            return Err(Error::ProvisionalTokens { committed, held });
        }
        if held >= self.context.len() {
            return Err(Error::NothingToFeed { held, prompt: self.context.len() });
        }
        (self.sequence, self.held) = (sequence, held);
        Ok(())
    }

    /// The text's settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tokens used so far.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::new(self.n_prompt as u64, self.output().len() as u64);
        usage.cached_prompt = self.n_cached as u64;
        usage.drafted = self.stats.drafted as u64;
        usage.accepted = self.stats.accepted as u64;
        usage
    }

    /// Why the text ended, once it has.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Statistics so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Ends the text here, if it has not ended yet.
    pub fn cancel(&mut self) {
        self.finish.get_or_insert(FinishReason::Cancelled);
    }

    /// Verifies what the model answered to the planned step, brings the sequence into order, and returns the
    /// new tokens, none for a chunk of a prompt but its last. `seconds` is what the forward pass took; of a
    /// pass shared by several texts, what this one is to be charged.
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
        self.record_pass(&settled);
        Ok(&self.context[self.context.len() - settled.tokens..])
    }

    /// As [`absorb`](Self::absorb), for a pass that several texts share. Call
    /// [`record_pass`](Self::record_pass) with its total cost once it is known.
    ///
    /// # Errors
    /// As [`absorb`](Self::absorb).
    pub fn absorb_shared<M, D>(
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
        let position = self.sampler.position();
        let settled = self.settle(model, drafter, step, seconds);
        if settled.is_err() {
            // If the step is repeated, it makes the same random choices.
            self.sampler.rewind(position);
        }
        settled.inspect_err(|_| self.abandon(model))
    }

    /// Notes the total cost and the total tokens of a shared pass: the sum of what
    /// [`absorb_shared`](Self::absorb_shared) returned for each text.
    pub fn record_pass(&mut self, pass: &Pass) {
        if pass.rows > 0 {
            self.policy.record_step(pass.rows, pass.seconds, pass.tokens);
        }
    }

    /// Takes back the provisional tokens of a step that will not be absorbed. A failed
    /// [`absorb`](Self::absorb) does this itself, and a failed forward pass leaves none.
    pub fn abandon<M: LanguageModel + ?Sized>(&mut self, model: &mut M) {
        if let Some(constrained) = &mut self.constrained
            && let Err(error) = constrained.back_to(0)
        {
            tracing::warn!(%error, "the constraint could not be taken back");
        }
        let held = model.len(self.sequence).unwrap_or(self.held);
        if held > self.held
            && let Err(error) = model.truncate(self.sequence, self.held)
        {
            tracing::warn!(%error, held, expected = self.held, "provisional tokens could not be taken back");
        }
    }

    /// Processes a chunk of what is only read, behind which no token is chosen.
    fn settle_chunk<M: LanguageModel + ?Sized>(
        &mut self,
        model: &mut M,
        n_rows: usize,
        seconds: f64,
    ) -> Result<Pass> {
        model.commit(self.sequence, n_rows).map_err(Error::Target)?;
        self.held += n_rows;
        self.stats.prompt_tokens += n_rows;
        self.stats.prefill_seconds += seconds;
        Ok(Pass { rows: 0, seconds, tokens: 0 })
    }

    /// Verifies a step.
    fn settle<M, D>(&mut self, model: &mut M, drafter: &mut D, step: &Step, seconds: f64) -> Result<Pass>
    where
        M: LanguageModel + ?Sized,
        D: Drafter + ?Sized,
    {
        let begun = Instant::now();
        let in_prompt = self.is_in_prompt();
        let n_rows = step.tokens.len();
        let has_more = if in_prompt { self.held + n_rows < self.n_prompt } else { self.is_reading() };
        if has_more {
            return self.settle_chunk(model, n_rows, seconds);
        }
        let verdict = self.verify(step)?;
        let mut emitted: Vec<TokenId> = verdict.path.iter().map(|&row| self.draft.tokens()[row]).collect();
        emitted.push(verdict.next);
        let left = self.config.max_tokens - self.output().len();
        let end = emitted.iter().position(|t| self.end_tokens.contains(t));
        emitted.truncate(left.min(end.map_or(usize::MAX, |end| end + 1)));
        let mut text = self.text.clone();
        let stopped = text.as_mut().and_then(|text| {
            emitted.iter().position(|token| !self.end_tokens.contains(token) && text.push(*token))
        });
        if let Some(last) = stopped {
            emitted.truncate(last + 1);
        }
        let scores = self.score(step, &verdict, &emitted)?;
        self.follow(&emitted)?;

        // The sequence keeps the draft's tokens that come before the last token of the output.
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
        self.scores.extend(scores);
        if let Some(constrained) = &mut self.constrained {
            constrained.keep();
        }
        self.finish = if stopped.is_some() {
            Some(FinishReason::Stop)
        } else if end.is_some_and(|end| end < emitted.len()) {
            Some(FinishReason::EndOfText)
        } else if self.output().len() == self.config.max_tokens {
            Some(FinishReason::Length)
        } else if self.held == self.max_context {
            Some(FinishReason::ContextFull)
        } else {
            None
        };
        if let (Some(text), Some(finish)) = (&mut text, self.finish)
            && finish != FinishReason::Stop
            && text.finish()
        {
            self.finish = Some(FinishReason::Stop);
        }
        self.text = text;

        let seconds = seconds + begun.elapsed().as_secs_f64();
        self.stats.emitted += emitted.len();
        if in_prompt {
            self.stats.prompts += 1;
            self.stats.prompt_tokens += n_rows;
            self.stats.prefill_seconds += seconds;
        } else {
            self.learn(&verdict);
            let n_accepted = verdict.path.len().min(emitted.len());
            self.stats.record_step(self.n_fed, n_accepted, seconds);
            self.stats.certain += self.n_certain;
            let n_drafted = self.draft.len() - self.n_certain;
            if n_drafted > 0 && !self.is_hint {
                let n_accepted = n_accepted.saturating_sub(self.n_certain);
                drafter.observe(&Outcome { context: &self.context, n_drafted, n_accepted });
            }
        }
        Ok(Pass { rows: if in_prompt { 0 } else { n_rows }, seconds, tokens: emitted.len() })
    }

    /// Notes which tokens of a draft were accepted.
    fn learn(&mut self, verdict: &Verdict) {
        let refused = self.draft.children(verdict.path.last().copied()).next();
        let judged =
            verdict.path.iter().copied().map(|row| (row, true)).chain(refused.map(|row| (row, false)));
        for (position, (row, accepted)) in judged.enumerate() {
            self.stats.record_position(position, accepted);
            // What is certain says nothing about who drafts behind it.
            let Some(behind) = position.checked_sub(self.n_certain) else { continue };
            match self.is_hint {
                true => self.policy.record_likely(behind, accepted),
                false => {
                    let confidence = self.draft.confidences().map(|c| c[row]);
                    self.policy.record_acceptance(behind, confidence, accepted);
                }
            }
        }
        if let Some(mut unverified) = self.unverified.take() {
            for (position, accepted) in unverified.judge(&self.context) {
                let confidence = unverified.draft.confidences().map(|c| c[position]);
                self.policy.record_acceptance(position, confidence, accepted);
            }
            self.unverified = unverified.open.then_some(unverified);
        }
    }
}

/// The cost and the result of a forward pass, or of a text's share of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Pass {
    /// Rows, not counting those of prompts.
    pub rows: usize,
    /// Wall-clock time, including verification.
    pub seconds: f64,
    /// Tokens produced.
    pub tokens: usize,
}

impl std::ops::AddAssign for Pass {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.seconds += other.seconds;
        self.tokens += other.tokens;
    }
}
