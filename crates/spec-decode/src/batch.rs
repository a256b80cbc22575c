use std::time::Instant;

use breakers_core::{LanguageModel, Step};

use crate::{Decoding, Drafter, Error, Pass, Result};

/// Names a text of a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TextId(pub u64);

/// The result of a pass for one text.
#[derive(Debug)]
#[non_exhaustive]
pub struct Progress {
    /// The text.
    pub text: TextId,
    /// The number of its new tokens, which are at the end of [`Decoding::output`], or the error that
    /// prevented them. After an error the text is as it was before the pass.
    pub n_tokens: Result<usize>,
}

/// Texts that share the passes of one model. They join and leave at any time, and each has settings of its
/// own.
///
/// Every text is the same as if it were generated alone, whatever else is in the batch. Only the number of
/// drafted tokens depends on the others: a pass filled by many texts has fewer cheap rows left.
///
/// # Example
/// ```
/// # mod toy { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/toy.rs")); }
/// # use toy::Toy;
/// use breakers_core::LanguageModel as _;
/// use breakers_spec_decode::{Batch, Config, Decoding, NgramDrafter};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut model = Toy::repetitive(64, 7);
/// let mut batch = Batch::new(128);
/// for prompt in [&[1, 2, 3][..], &[4, 5, 6, 7]] {
///     let sequence = model.open()?;
///     let config = Config { max_tokens: 100, ..Config::default() };
///     batch.join(Decoding::new(&model, sequence, prompt, &config)?, NgramDrafter::default());
/// }
/// while !batch.is_empty() {
///     for progress in batch.pass(&mut model)? {
///         progress.n_tokens?;
///         if batch.get(progress.text).is_some_and(|text| text.finish().is_some()) {
///             let (text, _drafter) = batch.leave(progress.text).unwrap();
///             model.close(text.sequence());
///             assert_eq!(text.output().len(), 100);
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Batch<D> {
    texts: Vec<Text<D>>,
    max_rows: usize,
    /// Rows of the last pass.
    n_rows: usize,
    n_joined: u64,
}

#[derive(Debug)]
struct Text<D> {
    id: TextId,
    decoding: Decoding,
    drafter: D,
    /// Rows of each text in the previous pass, as an estimate for texts that are planned later.
    rows: usize,
}

/// The steps of a pass, the texts that they belong to, and the texts whose planning failed.
#[derive(Default)]
struct Planned {
    steps: Vec<Step>,
    owners: Vec<usize>,
    done: Vec<Progress>,
}

impl<D: Drafter> Batch<D> {
    /// An empty batch whose passes have at most `max_rows` rows, or one per text if there are more texts.
    /// Texts that are being written come first; those that are read share the remaining rows, the oldest
    /// first.
    pub fn new(max_rows: usize) -> Self {
        Self { texts: Vec::new(), max_rows: max_rows.max(1), n_rows: 0, n_joined: 0 }
    }

    /// Sets how many rows a pass may have, from the next one on.
    pub fn set_max_rows(&mut self, max_rows: usize) {
        self.max_rows = max_rows.max(1);
    }

    /// Rows of the last pass.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Adds a text. Its drafter must not be used for another text at the same time.
    pub fn join(&mut self, decoding: Decoding, drafter: D) -> TextId {
        let id = TextId(self.n_joined);
        self.n_joined += 1;
        self.texts.push(Text { id, decoding, drafter, rows: 1 });
        id
    }

    /// Removes a text, whether or not it has ended. Its sequence stays open.
    pub fn leave(&mut self, text: TextId) -> Option<(Decoding, D)> {
        let at = self.texts.iter().position(|t| t.id == text)?;
        let Text { decoding, drafter, .. } = self.texts.remove(at);
        Some((decoding, drafter))
    }

    /// A text of the batch.
    pub fn get(&self, text: TextId) -> Option<&Decoding> {
        self.texts.iter().find(|t| t.id == text).map(|t| &t.decoding)
    }

    /// A text of the batch, mutably, to take its text or to end it.
    pub fn get_mut(&mut self, text: TextId) -> Option<&mut Decoding> {
        self.texts.iter_mut().find(|t| t.id == text).map(|t| &mut t.decoding)
    }

    /// The drafter of a text of the batch.
    pub(crate) fn drafter(&self, text: TextId) -> Option<&D> {
        self.texts.iter().find(|t| t.id == text).map(|t| &t.drafter)
    }

    /// The texts, in the order in which they joined.
    pub fn texts(&self) -> impl Iterator<Item = (TextId, &Decoding)> {
        self.texts.iter().map(|t| (t.id, &t.decoding))
    }

    /// Number of texts, including those that have ended but not left.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether there are no texts.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Runs one forward pass for all texts that have not ended, and returns the result for each of them;
    /// empty if all have ended.
    ///
    /// A text whose step fails is left out, and the others continue. It is then as it was before the pass, so
    /// it can leave or try again in the next pass.
    ///
    /// # Errors
    /// [`Error::Target`] if the model fails and names no step as the cause. All texts are then unchanged.
    pub fn pass<M: LanguageModel + ?Sized>(&mut self, model: &mut M) -> Result<Vec<Progress>> {
        let Planned { mut steps, mut owners, mut done } = self.plan();
        let begun = Instant::now();
        while !steps.is_empty() {
            let Err(error) = model.forward(&mut steps) else { break };
            // The others can be carried out without the step at fault.
            let Some(at) = error.step().filter(|at| *at < steps.len()) else {
                owners.iter().for_each(|&i| self.texts[i].decoding.abandon(model));
                return Err(Error::Target(error));
            };
            steps.remove(at);
            let text = &mut self.texts[owners.remove(at)];
            text.decoding.abandon(model);
            done.push(Progress { text: text.id, n_tokens: Err(Error::Target(error)) });
        }
        let seconds = begun.elapsed().as_secs_f64();

        let n_rows: usize = steps.iter().map(|step| step.tokens.len()).sum();
        self.n_rows = n_rows;
        let mut pass = Pass::default();
        for (step, &i) in steps.iter().zip(&owners) {
            let share = seconds * step.tokens.len() as f64 / n_rows as f64;
            let Text { id, decoding, drafter, .. } = &mut self.texts[i];
            let settled = decoding.absorb_shared(model, drafter, step, share);
            done.push(Progress {
                text: *id,
                n_tokens: settled.map(|settled| {
                    pass += settled;
                    settled.tokens
                }),
            });
        }
        for &i in &owners {
            self.texts[i].decoding.record_pass(&pass);
        }
        Ok(done)
    }

    /// Plans the steps of a pass: first those of running texts, then prompts in the remaining rows.
    fn plan(&mut self) -> Planned {
        let goes_on = |i: &usize| self.texts[*i].decoding.finish().is_none();
        let (prompts, running): (Vec<usize>, Vec<usize>) =
            (0..self.texts.len()).filter(goes_on).partition(|&i| self.texts[i].decoding.is_reading());
        let mut planned = Planned::default();
        let mut left = self.max_rows;
        for (n_before, &i) in running.iter().enumerate() {
            // Each text leaves a row for those after it, and one for the oldest prompt, which must not
            // starve.
            let n_after = running.len() - n_before - 1 + usize::from(!prompts.is_empty());
            left = left.saturating_sub(self.plan_text(i, left.saturating_sub(n_after), &mut planned));
        }
        for (n_before, &i) in prompts.iter().enumerate() {
            // If there are more texts than rows, it gets one nevertheless.
            if left > 0 || n_before == 0 {
                left = left.saturating_sub(self.plan_text(i, left, &mut planned));
            }
        }
        planned
    }

    /// Plans the step of one text, and returns its number of rows.
    fn plan_text(&mut self, i: usize, max_rows: usize, planned: &mut Planned) -> usize {
        self.tell_others(i);
        let Text { id, decoding, drafter, rows } = &mut self.texts[i];
        match decoding.plan(drafter, max_rows) {
            Ok(Some(step)) => {
                let n_rows = step.tokens.len();
                *rows = if decoding.is_reading() { 1 } else { n_rows };
                planned.steps.push(step);
                planned.owners.push(i);
                n_rows
            }
            Ok(None) => 0,
            Err(error) => {
                planned.done.push(Progress { text: *id, n_tokens: Err(error) });
                0
            }
        }
    }

    fn tell_others(&mut self, i: usize) {
        let others =
            self.texts.iter().enumerate().filter(|(at, t)| *at != i && t.decoding.finish().is_none());
        let (n_texts, n_rows) = others.fold((0, 0), |(n, rows), (_, t)| (n + 1, rows + t.rows));
        self.texts[i].decoding.set_others(n_texts, n_rows);
    }
}
