//! A needle in a haystack: a fact that is hidden at some depth in a long text and asked for at the end.
//!
//! # Source
//! Kamradt, "Needle in a haystack", 2023 (github.com/gkamradt/LLMTest_NeedleInAHaystack). Deviations: facts
//! are numbers of five digits, and the score is the share of the answer's tokens that are the model's most
//! likely ones, each given those before it; no other model judges.

use breakers_core::{BoxError, LanguageModel, SequenceId, Step, TokenId, Want};

use crate::{BootstrapConfig, Error, Estimate, Result, stats};

/// The result for one length of text with the needle at one depth.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Needle {
    /// Tokens of the text, including needle, question and answer.
    pub length: usize,
    /// Where the needle is, in percent of the length.
    pub depth: usize,
    /// For each contestant and fact: the share of the answer's tokens that are the model's most likely ones.
    pub found: Vec<Vec<f64>>,
}

impl Needle {
    /// The mean over all facts of what a contestant found; 0 for a contestant that does not exist.
    pub fn part(&self, contestant: usize) -> f64 {
        let found = self.found.get(contestant).map_or(&[][..], Vec::as_slice);
        found.iter().sum::<f64>() / found.len().max(1) as f64
    }
}

/// By how many percentage points a contestant finds more than another one, needle by needle, with a bootstrap
/// interval.
///
/// # Errors
/// Those of [`stats::bootstrap`].
pub fn advantage(needles: &[Needle], contestant: usize, other: usize) -> Result<Estimate> {
    let of = |needle: &Needle, which: usize| needle.found.get(which).cloned().unwrap_or_default();
    let both = needles.iter().flat_map(|needle| of(needle, contestant).into_iter().zip(of(needle, other)));
    let differences: Vec<f64> = both.map(|(a, b)| 100.0 * (a - b)).collect();
    let mean = |values: &mut [f64]| values.iter().sum::<f64>() / values.len() as f64;
    stats::bootstrap(&differences, mean, &BootstrapConfig::default())
}

/// Places and their secret numbers.
const FACTS: [(&str, &str); 6] = [
    ("lighthouse", "48213"),
    ("railway", "90574"),
    ("harbor", "37618"),
    ("archive", "65029"),
    ("bakery", "12846"),
    ("museum", "83951"),
];

/// Which needles to hide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedleConfig {
    /// Lengths of texts, in tokens.
    pub lengths: Vec<usize>,
    /// Where the needle is, in percent of the length.
    pub depths: Vec<usize>,
    /// How many facts to try at each depth, one per text: 1 to 6.
    pub n_facts: usize,
}

impl NeedleConfig {
    /// How many texts are read in total.
    pub fn n_texts(&self) -> usize {
        self.lengths.len() * self.depths.len() * self.facts().len()
    }

    fn facts(&self) -> &'static [(&'static str, &'static str)] {
        &FACTS[..self.n_facts.clamp(1, FACTS.len())]
    }
}

/// Hides a number in a text at each depth and asks for it.
///
/// `haystack`: the tokens of a text, repeated if it is too short. `encode`: turns a piece of text into
/// tokens, without special tokens around it. `answers(prompt, answer)`: for each contestant, the share of
/// `answer` that it produces after `prompt`, as [`found_by`] computes it. `progress` is called with the
/// length and the depth before each text.
///
/// # Errors
/// [`Error::Parameter`] for a depth above 100 %, [`Error::Length`] for an empty haystack, and
/// those of the closures.
///
/// # Example
/// ```no_run
/// use breakers_core::{BoxError, LanguageModel, TokenId};
/// use breakers_eval::needle::{NeedleConfig, found_by, needles};
///
/// fn measure(
///     model: &mut impl LanguageModel,
///     haystack: &[TokenId],
///     encode: impl Fn(&str) -> Result<Vec<TokenId>, BoxError>,
/// ) -> Result<(), breakers_eval::Error> {
///     let config = NeedleConfig { lengths: vec![1024], depths: vec![0, 50, 100], n_facts: 2 };
///     let answers = |prompt: &[TokenId], answer: &[TokenId]| {
///         found_by(model, prompt, answer).map(|found| vec![found])
///     };
///     for needle in needles(&config, haystack, encode, answers, |_, _| ())? {
///         println!("at {} %: {:.0} % found", needle.depth, 100.0 * needle.part(0));
///     }
///     Ok(())
/// }
/// ```
pub fn needles<E: From<Error>>(
    config: &NeedleConfig,
    haystack: &[TokenId],
    encode: impl Fn(&str) -> Result<Vec<TokenId>, BoxError>,
    mut answers: impl FnMut(&[TokenId], &[TokenId]) -> Result<Vec<f64>, E>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<Needle>, E> {
    if let Some(&depth) = config.depths.iter().find(|depth| **depth > 100) {
        let found = depth as f64;
        return Err(Error::Parameter { name: "depth", found, expected: "0 to 100 percent" }.into());
    }
    if haystack.is_empty() {
        return Err(Error::TooFewValues { what: "a haystack", expected: 1, found: 0 }.into());
    }
    let encode = |text: String| encode(&text).map_err(Error::Tokenizer);
    let mut needles = Vec::new();
    for &length in &config.lengths {
        for &depth in &config.depths {
            let mut found: Vec<Vec<f64>> = Vec::new();
            for (at, (place, number)) in config.facts().iter().enumerate() {
                progress(length, depth);
                let needle = encode(format!("\n\nThe secret number of the {place} is {number}.\n\n"))?;
                let question = encode(format!(
                    "\n\nQuestion: What is the secret number of the {place}?\nAnswer: The secret number of the {place} is"
                ))?;
                let answer = encode(format!(" {number}"))?;
                let n_text = length.saturating_sub(needle.len() + question.len() + answer.len());
                // A different stretch of the haystack for each fact.
                let text: Vec<TokenId> =
                    haystack.iter().cycle().skip(at * 331 % haystack.len()).take(n_text).copied().collect();
                let (before, after) = text.split_at(n_text * depth / 100);
                let prompt = [before, &needle, after, &question].concat();
                let parts = answers(&prompt, &answer)?;
                found.resize(found.len().max(parts.len()), Vec::new());
                parts.into_iter().zip(&mut found).for_each(|(part, found)| found.push(part));
            }
            needles.push(Needle { length, depth, found });
        }
    }
    Ok(needles)
}

/// The share of `answer` that a model produces after `prompt`, token by token.
///
/// All of the prompt but its last token is read and made final before the answer, so that a cache that evicts
/// tokens has done so by then.
///
/// # Errors
/// [`StepError::Empty`](breakers_core::StepError::Empty) for a prompt of less than two tokens, and those of
/// [`LanguageModel::forward`].
pub fn found_by(model: &mut impl LanguageModel, prompt: &[TokenId], answer: &[TokenId]) -> Result<f64> {
    let (prompt, question) = prompt.split_at(prompt.len().saturating_sub(1));
    crate::feed::with_sequence(model, |model, sequence| {
        model.forward(&mut [Step::last(sequence, prompt.to_vec(), Want::Nothing)])?;
        model.commit(sequence, prompt.len())?;
        said(model, sequence, question, answer)
    })
}

/// The share of `answer` that a model would produce in an open sequence, each token given `question` and the
/// answer's tokens before it. The tokens stay in the sequence.
///
/// # Errors
/// Those of [`LanguageModel::forward`].
pub fn said(
    model: &mut impl LanguageModel,
    sequence: SequenceId,
    question: &[TokenId],
    answer: &[TokenId],
) -> Result<f64> {
    let mut n_right = 0;
    for (next, token) in question.iter().chain(answer).zip(answer) {
        let mut steps = [Step::last(sequence, vec![*next], Want::ArgMax)];
        model.forward(&mut steps)?;
        let best = steps[0].outputs.last().and_then(|row| row.output.best());
        n_right += usize::from(best == Some(*token));
    }
    Ok(n_right as f64 / answer.len().max(1) as f64)
}
