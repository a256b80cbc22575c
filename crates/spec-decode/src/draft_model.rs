use std::time::{Duration, Instant};

use breakers_core::{Distribution, LanguageModel, Output, SequenceId, Step, StepError, TokenId, Want};

use crate::{Draft, DraftRequest, Drafter, Error, Result, TokenizerFingerprint};

/// How a draft model chooses its tokens if the target samples. For a greedy target, drafts always consist of
/// the most likely tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Proposal {
    /// Drawn from the draft model's distribution under the target's sampling settings, verified by
    /// rejection: accepted with probability Σ min(p, q).
    #[default]
    Sampled,
    /// The most likely token: accepted with probability p(token), which is less, but the text is that of
    /// plain sampling with the same seed, however many tokens are drafted.
    MostLikely,
}

/// Settings of a [`ModelDrafter`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModelDraftConfig {
    /// How tokens are chosen if the target samples.
    pub proposal: Proposal,
    /// Drafting ends after a token that is less likely than this under the draft model. 0: never, so that
    /// only the adaptive length decides.
    pub min_probability: f32,
}

/// A small model with the same tokenizer that runs ahead of the target.
///
/// It keeps a sequence of its own. Rejected tokens are removed at the next proposal, and new tokens (usually
/// one or two, more after steps without a draft) are fed in one pass.
///
/// # Cost
/// One single-row pass of the draft model per token.
///
/// # Memory
/// The draft model's cache for one sequence.
///
/// # Source
/// Leviathan et al. (arXiv 2211.17192), algorithm 1; Chen et al. (arXiv 2302.01318), algorithm 2.
/// Stopping when the draft gets unsure: SpecDec++ (arXiv 2405.19715), section 4, here by the measured
/// costs of [`DraftRequest::pays`] instead of a trained head.
#[derive(Debug)]
pub struct ModelDrafter<M: LanguageModel> {
    model: M,
    config: ModelDraftConfig,
    name: String,
    sequence: Option<SequenceId>,
    /// Tokens that the sequence holds.
    held: Vec<TokenId>,
    /// How many of them are known to be part of the text.
    agreed: usize,
}

impl<M: LanguageModel> ModelDrafter<M> {
    /// Wraps a draft model, after a check that its tokenizer is the target's.
    ///
    /// The numbers of logits may differ: padding ids are never proposed.
    ///
    /// # Errors
    /// [`Error::TokenizerMismatch`].
    pub fn new(
        model: M,
        draft_tokenizer: TokenizerFingerprint,
        target_tokenizer: TokenizerFingerprint,
        config: ModelDraftConfig,
    ) -> Result<Self> {
        if draft_tokenizer != target_tokenizer {
            return Err(Error::TokenizerMismatch { expected: target_tokenizer, found: draft_tokenizer });
        }
        let name = format!("draft model {}", model.info().name);
        Ok(Self { model, config, name, sequence: None, held: Vec::new(), agreed: 0 })
    }

    /// Whether a context fits into the draft model, with room for one more token.
    fn fits(&self, context: &[TokenId]) -> bool {
        let info = self.model.info();
        context.len() <= info.max_context && context.iter().all(|&t| (t as usize) < info.vocab_size)
    }

    /// Rewinds the sequence so that it holds a beginning of `context` without at least the last `leave`
    /// tokens, and returns how many tokens it holds.
    fn rewind(&mut self, context: &[TokenId], leave: usize) -> Result<(SequenceId, usize)> {
        let from = self.agreed.min(context.len());
        let equal = self.held[from..].iter().zip(&context[from..]).take_while(|(a, b)| a == b).count();
        let keep = (from + equal).min(context.len().saturating_sub(leave));
        if let Some(sequence) = self.sequence {
            let truncated = match self.held.len() > keep {
                true => self.model.truncate(sequence, keep),
                false => Ok(()),
            };
            match truncated {
                Ok(()) => {
                    self.held.truncate(keep);
                    self.agreed = keep;
                    // They are a permanent part of the text.
                    let committed = self.model.committed(sequence).map_err(Error::Draft)?;
                    if keep > committed {
                        self.model.commit(sequence, keep - committed).map_err(Error::Draft)?;
                    }
                    return Ok((sequence, keep));
                }
                // A new text that shares a compressed prefix: start over.
                Err(breakers_core::Error::Step(StepError::TruncateEvicted { .. })) => self.close(),
                Err(error) => return Err(Error::Draft(error)),
            }
        }
        let sequence = self.model.open().map_err(Error::Draft)?;
        self.sequence = Some(sequence);
        Ok((sequence, 0))
    }

    /// Feeds tokens and returns the output of the last one.
    fn feed(&mut self, sequence: SequenceId, tokens: &[TokenId], want: Want) -> Result<Output> {
        let mut steps = [Step::last(sequence, tokens.to_vec(), want)];
        self.model.forward(&mut steps).map_err(Error::Draft)?;
        self.held.extend_from_slice(tokens);
        let [step] = steps;
        Ok(step.outputs.into_iter().next_back().unwrap_or_default().output)
    }

    fn close(&mut self) {
        if let Some(sequence) = self.sequence.take() {
            self.model.close(sequence);
        }
        self.held.clear();
        self.agreed = 0;
    }

    /// Chooses a draft token. Returns the token, its probability if that was asked for, and the distribution
    /// that it was drawn from if it was drawn.
    fn choose(
        &self,
        output: Output,
        want: Want,
        history: &[TokenId],
        request: &mut DraftRequest<'_>,
    ) -> Result<(TokenId, Option<f32>, Option<Distribution>)> {
        let missing = Error::MissingOutput { row: 0, rows: 1, want };
        match output {
            Output::ArgMax(token) => Ok((token, None, None)),
            Output::TopK(best) => best.first().map(|b| (b.token, Some(b.logprob.exp()), None)).ok_or(missing),
            Output::Logits(mut logits) => {
                if request.vocab_size < usize::MAX {
                    // Tokens that the draft model lacks count as excluded.
                    logits.resize(request.vocab_size, f32::NEG_INFINITY);
                }
                let q = request.sampling.distribution(&logits, history)?;
                if self.samples(request) {
                    let token = request.chance.draw(&q);
                    return Ok((token, Some(q.probability(token) as f32), Some(q)));
                }
                let best = q.entries().iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a });
                best.map(|(token, probability)| (token, Some(probability as f32), None)).ok_or(missing)
            }
            _ => Err(missing),
        }
    }

    fn samples(&self, request: &DraftRequest<'_>) -> bool {
        self.config.proposal == Proposal::Sampled && !request.sampling.is_greedy()
    }
}

impl<M: LanguageModel> Drafter for ModelDrafter<M> {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(&mut self, prompt: &[TokenId]) -> Result<()> {
        self.agreed = 0;
        if !self.fits(prompt) {
            return Ok(());
        }
        let (sequence, keep) = self.rewind(prompt, 0)?;
        if keep < prompt.len() {
            self.feed(sequence, &prompt[keep..], Want::Nothing)?;
        }
        Ok(())
    }

    fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft> {
        let context = request.context;
        if request.max_tokens == 0 || context.is_empty() || !self.fits(context) {
            return Ok(Draft::none());
        }
        // Feeding the context leaves room for all drafted tokens but the last, which is never fed.
        let room = self.model.info().max_context - context.len() + 1;
        let max_tokens = request.max_tokens.min(room);
        let samples = self.samples(request);
        // The most likely token does not depend on the temperature; penalties and biases need the logits. Its
        // probability costs a pass over the vocabulary, which is skipped if nobody asks for it.
        let want = match samples || request.sampling.changes_logits() {
            true => Want::Logits,
            false if request.is_adaptive() || self.config.min_probability > 0.0 => Want::TopK(1),
            false => Want::ArgMax,
        };

        let (sequence, mut keep) = self.rewind(context, 1)?;
        let mut catch_up = Duration::ZERO;
        // After a fully accepted draft two tokens are missing; more mean that steps were skipped on purpose.
        if context.len() - keep > 2 {
            let begun = Instant::now();
            self.feed(sequence, &context[keep..context.len() - 1], Want::Nothing)?;
            keep = context.len() - 1;
            catch_up = begun.elapsed();
        }

        let mut history = context.to_vec();
        let (mut confidences, mut proposals) = (Vec::new(), Vec::new());
        let mut output = self.feed(sequence, &context[keep..], want)?;
        self.agreed = context.len();
        loop {
            let (token, probability, q) = self.choose(output, want, &history, request)?;
            if token as usize >= request.vocab_size {
                break;
            }
            history.push(token);
            confidences.extend(probability);
            proposals.extend(q);
            let n_tokens = history.len() - context.len();
            let done = n_tokens >= max_tokens
                || probability.is_some_and(|p| p < self.config.min_probability)
                || request.end_tokens.contains(&token)
                || !request.pays(&confidences);
            if done {
                break;
            }
            output = self.feed(sequence, &[token], want)?;
        }
        let tokens = history.split_off(context.len());
        let known = confidences.len() == tokens.len();
        let mut draft = Draft::chain(tokens).with_catch_up(catch_up);
        if known {
            draft = draft.with_confidences(confidences);
        }
        Ok(if samples { draft.with_proposals(proposals) } else { draft })
    }

    fn stops_itself(&self) -> bool {
        true
    }
}

impl<M: LanguageModel> Drop for ModelDrafter<M> {
    fn drop(&mut self) {
        self.close();
    }
}
