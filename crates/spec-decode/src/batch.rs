use std::ops::ControlFlow;
use std::time::Instant;

use breakers_core::{LanguageModel, SequenceId, TokenId};

use crate::adaptive::Others;
use crate::decoding::Pass;
use crate::{AdaptiveLength, Config, Decoding, Drafter, Error, Result, Speculated};

/// Generates several texts at a time: their steps, drafts included, share each forward pass.
///
/// Every text is the one that it would be alone. How many tokens are drafted for a text depends on the others: a
/// pass that many texts fill has fewer rows left that cost little.
///
/// # Example
/// ```
/// # mod toy { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/toy.rs")); }
/// # use toy::Toy;
/// use std::ops::ControlFlow;
/// use breakers_spec_decode::{BatchSpeculator, Config, NgramDrafter};
///
/// # fn main() -> Result<(), breakers_spec_decode::Error> {
/// let mut model = Toy::repetitive(64, 7);
/// let prompts: [&[u32]; 2] = [&[1, 2, 3], &[4, 5, 6, 7]];
/// let config = Config { max_tokens: 100, ..Config::default() };
///
/// let mut speculator = BatchSpeculator::new(|| Ok(NgramDrafter::default()));
/// let texts = speculator.generate(&mut model, &prompts, &config, |_text, _tokens| ControlFlow::Continue(()))?;
/// assert_eq!(texts.len(), 2);
/// assert!(texts.iter().all(|text| text.tokens.len() == 100));
/// # Ok(())
/// # }
/// ```
pub struct BatchSpeculator<D> {
    make_drafter: Box<dyn FnMut() -> Result<D>>,
    /// One for each text that was generated at a time so far.
    drafters: Vec<D>,
    policy: AdaptiveLength,
}

impl<D> std::fmt::Debug for BatchSpeculator<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchSpeculator").field("drafters", &self.drafters.len()).finish_non_exhaustive()
    }
}

impl<D: Drafter> BatchSpeculator<D> {
    /// Without any experience. Each text needs a drafter of its own; they are kept for later texts.
    pub fn new(make_drafter: impl FnMut() -> Result<D> + 'static) -> Self {
        Self { make_drafter: Box::new(make_drafter), drafters: Vec::new(), policy: AdaptiveLength::new() }
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

    /// Continues each prompt in a sequence of its own, which is closed afterwards. `on_tokens` receives the new tokens
    /// of a text, by its index, and can end that text after them.
    ///
    /// The times in a text's statistics are its share of the passes, by rows; merged, those of all texts are the time
    /// that the batch took.
    ///
    /// # Errors
    /// Those of [`Decoding::new`], [`Decoding::plan`], [`Decoding::absorb`], of the model and of the function that makes
    /// drafters. One text's error ends all of them; tokens handed out until then are valid.
    pub fn generate<M: LanguageModel + ?Sized>(
        &mut self,
        model: &mut M,
        prompts: &[&[TokenId]],
        config: &Config,
        on_tokens: impl FnMut(usize, &[TokenId]) -> ControlFlow<()>,
    ) -> Result<Vec<Speculated>> {
        while self.drafters.len() < prompts.len() {
            self.drafters.push((self.make_drafter)()?);
        }
        let mut sequences: Vec<SequenceId> = Vec::with_capacity(prompts.len());
        let opened = prompts.iter().try_for_each(|_| {
            sequences.push(model.open().map_err(Error::Target)?);
            Ok(())
        });
        let result = opened.and_then(|()| self.run(model, &sequences, prompts, config, on_tokens));
        for sequence in sequences {
            model.close(sequence);
        }
        result
    }

    fn run<M: LanguageModel + ?Sized>(
        &mut self,
        model: &mut M,
        sequences: &[SequenceId],
        prompts: &[&[TokenId]],
        config: &Config,
        mut on_tokens: impl FnMut(usize, &[TokenId]) -> ControlFlow<()>,
    ) -> Result<Vec<Speculated>> {
        let mut texts = sequences
            .iter()
            .zip(prompts)
            .map(|(&sequence, prompt)| {
                Ok(Decoding::new(model, sequence, prompt, config)?.with_policy(self.policy.clone()))
            })
            .collect::<Result<Vec<_>>>()?;
        // Rows of each text in the pass before: what to expect of those that are planned later.
        let mut rows = vec![1; texts.len()];
        let result = loop {
            match self.advance(model, &mut texts, &mut rows, &mut on_tokens) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let Some(longest) = texts.iter().max_by_key(|text| text.stats().steps) {
            self.policy = longest.policy().clone();
            self.policy.set_others(Others::default());
        }
        result?;
        let finished = |text: Decoding| text.finish().map(|finish| text.into_result(finish));
        Ok(texts.into_iter().filter_map(finished).collect())
    }

    /// One pass of all texts that have not ended; whether there was any.
    fn advance<M: LanguageModel + ?Sized>(
        &mut self,
        model: &mut M,
        texts: &mut [Decoding],
        rows: &mut [usize],
        on_tokens: &mut impl FnMut(usize, &[TokenId]) -> ControlFlow<()>,
    ) -> Result<bool> {
        let active: Vec<usize> = (0..texts.len()).filter(|&i| texts[i].finish().is_none()).collect();
        let (mut steps, mut owners) = (Vec::new(), Vec::new());
        for &i in &active {
            let others = active.iter().filter(|&&other| other != i).map(|&other| rows[other]).sum();
            texts[i].policy_mut().set_others(Others { texts: active.len() - 1, rows: others });
            if let Some(step) = texts[i].plan(&mut self.drafters[i])? {
                rows[i] = if texts[i].output().is_empty() { 1 } else { step.tokens.len() };
                steps.push(step);
                owners.push(i);
            }
        }
        if steps.is_empty() {
            return Ok(false);
        }
        let begun = Instant::now();
        model.forward(&mut steps).map_err(Error::Target)?;
        let seconds = begun.elapsed().as_secs_f64();

        let n_rows: usize = steps.iter().map(|step| step.tokens.len()).sum();
        let mut pass = Pass { rows: 0, seconds: 0.0, tokens: 0 };
        for (at, (step, &i)) in steps.iter().zip(&owners).enumerate() {
            let share = seconds * step.tokens.len() as f64 / n_rows as f64;
            let settled = match texts[i].absorb_shared(model, &mut self.drafters[i], step, share) {
                Ok(settled) => settled,
                Err(error) => {
                    owners[at..].iter().for_each(|&i| texts[i].abandon(model));
                    return Err(error);
                }
            };
            pass.rows += settled.rows;
            pass.seconds += settled.seconds;
            pass.tokens += settled.tokens;
            let output = texts[i].output();
            if on_tokens(i, &output[output.len() - settled.tokens..]).is_break() {
                texts[i].cancel();
            }
        }
        for &i in &owners {
            texts[i].record_pass(pass.rows, pass.seconds, pass.tokens);
        }
        Ok(true)
    }
}
