//! How far a model's predictions are from those of another model with the same vocabulary.

use breakers_core::{Error as CoreError, LanguageModel, StepError, TokenId, argmax, kullback_leibler};

use crate::Result;
use crate::feed::{WINDOW_ROWS, check_tokens, visit, windows, with_sequence};
use crate::score::surprise;

/// The predictions of a candidate compared with those of a reference, at the same places in a text.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Divergence {
    /// Kullback-Leibler divergence of the candidate's prediction from the reference's, KL(reference ‖
    /// candidate), in nats, at each place.
    pub kl: Vec<f64>,
    /// Number of places where both have the same most likely token.
    pub same_top: usize,
    /// Mean negative log-likelihood of the text under the reference, in nats per token.
    pub reference_nll: f64,
    /// The same under the candidate.
    pub nll: f64,
}

impl Divergence {
    /// The mean of the divergences.
    pub fn mean_kl(&self) -> f64 {
        self.kl.iter().sum::<f64>() / self.kl.len().max(1) as f64
    }

    /// The divergence that is not exceeded at a share `q` of the places.
    pub fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.kl.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (q.clamp(0.0, 1.0) * sorted.len().saturating_sub(1) as f64).round() as usize;
        sorted.get(at).copied().unwrap_or(0.0)
    }

    /// The share of places with the same most likely token.
    pub fn top_agreement(&self) -> f64 {
        self.same_top as f64 / self.kl.len().max(1) as f64
    }

    /// Perplexity of the text under the candidate.
    pub fn perplexity(&self) -> f64 {
        self.nll.exp()
    }

    /// Perplexity of the text under the reference.
    pub fn reference_perplexity(&self) -> f64 {
        self.reference_nll.exp()
    }
}

/// Compares predictions over non-overlapping windows of a text, at the places that count for
/// [`perplexity`](crate::score::perplexity): those in the second half of each window.
///
/// `progress` is called with (windows done, all windows).
///
/// # Memory
/// Half a window of the reference's logits: 2 · context · vocabulary bytes.
///
/// # Errors
/// [`StepError::OutOfRange`] if the vocabularies differ; and those of
/// [`perplexity`](crate::score::perplexity).
///
/// # Example
/// ```no_run
/// use breakers_core::{LanguageModel, TokenId};
/// use breakers_eval::divergence::divergence;
///
/// fn compare(
///     source: &mut impl LanguageModel,
///     quantized: &mut impl LanguageModel,
///     text: &[TokenId],
/// ) -> Result<(), breakers_eval::Error> {
///     let found = divergence(source, quantized, text, 512, None, |_, _| ())?;
///     println!("{:.4} nats, the same top token at {:.1} %", found.mean_kl(), 100.0 * found.top_agreement());
///     println!("perplexity {:.2} after {:.2}", found.perplexity(), found.reference_perplexity());
///     Ok(())
/// }
/// ```
pub fn divergence(
    reference: &mut impl LanguageModel,
    candidate: &mut impl LanguageModel,
    tokens: &[TokenId],
    context: usize,
    bos: Option<TokenId>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Divergence> {
    let (vocab, other) = (reference.info().vocab_size, candidate.info().vocab_size);
    for (what, available, requested) in [
        ("tokens of the candidate's vocabulary", other, vocab),
        ("tokens of the reference's vocabulary", vocab, other),
    ] {
        if available < requested {
            return Err(CoreError::from(StepError::OutOfRange { what, requested, available }).into());
        }
    }
    let windows = windows(tokens, context, bos)?;
    check_tokens(reference, windows.iter().flatten())?;
    let mut found = Divergence { kl: Vec::new(), same_top: 0, reference_nll: 0.0, nll: 0.0 };
    let mut rows: Vec<f32> = Vec::new();
    for (i, window) in windows.iter().enumerate() {
        rows.clear();
        with_sequence(reference, |model, sequence| {
            visit(model, sequence, window, context / 2, WINDOW_ROWS, |token, logits| {
                found.reference_nll += surprise(logits, token)?;
                rows.extend_from_slice(logits);
                Ok(())
            })
        })?;
        let mut expected = rows.chunks_exact(vocab);
        with_sequence(candidate, |model, sequence| {
            visit(model, sequence, window, context / 2, WINDOW_ROWS, |token, logits| {
                found.nll += surprise(logits, token)?;
                if let Some(expected) = expected.next() {
                    found.kl.push(kullback_leibler(expected, logits).map_err(CoreError::from)?);
                    let (a, b) = (argmax(expected), argmax(logits));
                    found.same_top += usize::from(a.map_err(CoreError::from)? == b.map_err(CoreError::from)?);
                }
                Ok(())
            })
        })?;
        progress(i + 1, windows.len());
    }
    let n = found.kl.len().max(1) as f64;
    found.reference_nll /= n;
    found.nll /= n;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_shares() {
        let kl: Vec<f64> = (0..101).rev().map(f64::from).collect();
        let found = Divergence { kl, same_top: 50, reference_nll: 1.0, nll: 2.0 };
        assert_eq!((found.mean_kl(), found.quantile(0.99), found.quantile(1.0)), (50.0, 99.0, 100.0));
        assert_eq!((found.top_agreement(), found.perplexity()), (50.0 / 101.0, 2f64.exp()));
    }
}
