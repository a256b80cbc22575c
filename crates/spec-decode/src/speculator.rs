use std::ops::ControlFlow;
use std::time::Instant;

use breakers_core::{LanguageModel, SequenceId, TokenId};

use crate::{AdaptiveLength, Config, Decoding, Drafter, Error, Result, Speculated};

/// Generates texts with a model and a drafter, and remembers from text to text which draft lengths pay off.
///
/// # Example
/// See the [crate's page](crate).
#[derive(Clone, Debug)]
pub struct Speculator<D> {
    drafter: D,
    policy: AdaptiveLength,
}

impl<D: Drafter> Speculator<D> {
    /// A speculator without any experience.
    pub fn new(drafter: D) -> Self {
        Self { drafter, policy: AdaptiveLength::new() }
    }

    /// The drafter.
    pub fn drafter(&self) -> &D {
        &self.drafter
    }

    /// Measures what forward passes cost; see [`AdaptiveLength::calibrate`].
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::Target`].
    pub fn calibrate<M: LanguageModel + ?Sized>(
        &mut self,
        model: &mut M,
        prompt: &[TokenId],
        max_rows: usize,
    ) -> Result<()> {
        self.policy.calibrate(model, prompt, max_rows)
    }

    /// The experience gathered so far.
    pub fn policy(&self) -> &AdaptiveLength {
        &self.policy
    }

    /// Continues `prompt` in a sequence of its own, which is closed afterwards.
    ///
    /// # Errors
    /// As [`continue_sequence`](Self::continue_sequence).
    pub fn generate<M: LanguageModel + ?Sized>(
        &mut self,
        model: &mut M,
        prompt: &[TokenId],
        config: &Config,
        on_tokens: impl FnMut(&[TokenId]) -> ControlFlow<()>,
    ) -> Result<Speculated> {
        let sequence = model.open().map_err(Error::Target)?;
        let result = self.continue_sequence(model, sequence, prompt, config, on_tokens);
        model.close(sequence);
        result
    }

    /// Continues `prompt`, which holds all tokens of the text; `sequence` may already hold its first tokens.
    /// `on_tokens` receives the new tokens of each step and can end the text after them.
    ///
    /// Afterwards the sequence holds the prompt and the output without its last token, all final.
    ///
    /// # Errors
    /// Those of [`Decoding::new`], [`Decoding::plan`], [`Decoding::absorb`] and of the model's forward pass;
    /// tokens handed out until then are valid.
    pub fn continue_sequence<M: LanguageModel + ?Sized>(
        &mut self,
        model: &mut M,
        sequence: SequenceId,
        prompt: &[TokenId],
        config: &Config,
        mut on_tokens: impl FnMut(&[TokenId]) -> ControlFlow<()>,
    ) -> Result<Speculated> {
        let mut decoding = Decoding::new(model, sequence, prompt, config)?;
        self.drive(model, &mut decoding, |decoding, n| {
            on_tokens(&decoding.output()[decoding.output().len() - n..])
        })?;
        Ok(decoding.into_result())
    }

    /// Runs a text to its end, using the experience from earlier ones. After each step `on_step` receives the
    /// text and the number of its new tokens, and can end it.
    ///
    /// # Errors
    /// As [`continue_sequence`](Self::continue_sequence).
    pub fn drive<M: LanguageModel + ?Sized>(
        &mut self,
        model: &mut M,
        decoding: &mut Decoding,
        mut on_step: impl FnMut(&mut Decoding, usize) -> ControlFlow<()>,
    ) -> Result<()> {
        std::mem::swap(decoding.policy_mut(), &mut self.policy);
        let result = loop {
            match advance(decoding, model, &mut self.drafter, &mut on_step) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => {
                    decoding.abandon(model);
                    break Err(error);
                }
            }
        };
        std::mem::swap(decoding.policy_mut(), &mut self.policy);
        result
    }
}

/// Runs one step of a single text. Returns whether there was one.
fn advance<M: LanguageModel + ?Sized, D: Drafter + ?Sized>(
    decoding: &mut Decoding,
    model: &mut M,
    drafter: &mut D,
    on_step: &mut impl FnMut(&mut Decoding, usize) -> ControlFlow<()>,
) -> Result<bool> {
    let Some(step) = decoding.plan(drafter, usize::MAX)? else { return Ok(false) };
    let begun = Instant::now();
    let mut steps = [step];
    model.forward(&mut steps).map_err(Error::Target)?;
    let seconds = begun.elapsed().as_secs_f64();
    let [step] = steps;
    let n_tokens = decoding.absorb(model, drafter, &step, seconds)?.len();
    if on_step(decoding, n_tokens).is_break() {
        decoding.cancel();
    }
    Ok(true)
}

/// Continues a prompt with a drafter that is used for this one text; see
/// [`Speculator::continue_sequence`].
///
/// # Errors
/// As [`Speculator::continue_sequence`].
pub fn speculate<M: LanguageModel + ?Sized, D: Drafter + ?Sized>(
    model: &mut M,
    sequence: SequenceId,
    prompt: &[TokenId],
    drafter: &mut D,
    config: &Config,
    on_tokens: impl FnMut(&[TokenId]) -> ControlFlow<()>,
) -> Result<Speculated> {
    Speculator::new(drafter).continue_sequence(model, sequence, prompt, config, on_tokens)
}
