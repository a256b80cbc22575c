use std::ops::ControlFlow;

use breakers_core::{LanguageModel, SequenceId, TokenId};

use crate::adaptive::OtherTexts;
use crate::{AdaptiveLength, Batch, Config, Decoding, Drafter, Error, Result, Speculated, TextId};

/// Generates several texts at a time: a [`Batch`] with the same settings for all, whose prompts are given in
/// one call.
///
/// Every text is the one that it would be alone. The number of drafted tokens for a text depends on the
/// others: a pass filled by many texts has fewer cheap rows left.
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
/// let go_on = |_text, _tokens: &[u32]| ControlFlow::Continue(());
/// let texts = speculator.generate(&mut model, &prompts, &config, go_on)?;
/// assert_eq!(texts.len(), 2);
/// assert!(texts.iter().all(|text| text.tokens.len() == 100));
/// # Ok(())
/// # }
/// ```
pub struct BatchSpeculator<D> {
    make_drafter: Box<dyn FnMut() -> Result<D>>,
    /// As many as the most texts that were generated at a time.
    drafters: Vec<D>,
    policy: AdaptiveLength,
}

impl<D> std::fmt::Debug for BatchSpeculator<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchSpeculator").field("drafters", &self.drafters.len()).finish_non_exhaustive()
    }
}

impl<D: Drafter> BatchSpeculator<D> {
    /// A speculator without any experience. Each text needs its own drafter; drafters are reused for later
    /// texts.
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

    /// Continues each prompt in a sequence of its own, which is closed afterwards. `on_tokens` receives the
    /// new tokens of a text, by its index, and can end that text after them.
    ///
    /// The times in a text's statistics are its share of the passes, by number of rows. Merged over all
    /// texts, they are the time of the whole batch.
    ///
    /// # Errors
    /// Those of [`Decoding::new`], of [`Batch::pass`] and of the function that makes drafters. An error in
    /// one text ends all of them; tokens handed out until then are valid.
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
        let mut batch = Batch::new(usize::MAX);
        let texts = sequences.iter().zip(prompts).map(|(&sequence, prompt)| {
            Ok(Decoding::new(model, sequence, prompt, config)?.with_policy(self.policy.clone()))
        });
        let texts = texts.collect::<Result<Vec<_>>>()?;
        let ids: Vec<TextId> = texts
            .into_iter()
            .zip(&mut self.drafters)
            .map(|(text, drafter)| batch.join(text, drafter))
            .collect();
        let result = loop {
            match pass(&mut batch, model, &ids, &mut on_tokens) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let texts: Vec<Decoding> = ids.iter().filter_map(|id| Some(batch.leave(*id)?.0)).collect();
        if let Some(longest) = texts.iter().max_by_key(|text| text.stats().steps) {
            self.policy = longest.policy().clone();
            self.policy.set_others(OtherTexts::default());
        }
        result?;
        Ok(texts.into_iter().map(Decoding::into_result).collect())
    }
}

/// One pass of all texts that have not ended. Returns whether there were any.
fn pass<M: LanguageModel + ?Sized, D: Drafter>(
    batch: &mut Batch<D>,
    model: &mut M,
    ids: &[TextId],
    on_tokens: &mut impl FnMut(usize, &[TokenId]) -> ControlFlow<()>,
) -> Result<bool> {
    let done = batch.pass(model)?;
    let any = !done.is_empty();
    for progress in done {
        let n_tokens = progress.n_tokens?;
        let (Some(i), Some(text)) =
            (ids.iter().position(|id| *id == progress.text), batch.get_mut(progress.text))
        else {
            continue;
        };
        let output = text.output();
        if n_tokens > 0 && on_tokens(i, &output[output.len() - n_tokens..]).is_break() {
            text.cancel();
        }
    }
    Ok(any)
}
