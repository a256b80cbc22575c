//! How far a model's predictions are from those of another with the same vocabulary.

use breakers_core::{LanguageModel, Result, StepError, TokenId, log_sum_exp};
use breakers_cpu::pool::{self, DisjointMut};

use crate::score::{WINDOW_ROWS, visit, with_sequence};

/// Predictions of a candidate beside those of a reference, over the same places of a text.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Divergence {
    /// Kullback-Leibler divergence of the candidate's prediction from the reference's, KL(reference ‖ candidate), in nats,
    /// of each place.
    pub kl: Vec<f64>,
    /// Places where both have the same most likely token.
    pub same_top: usize,
    /// Mean negative log-likelihood of the text under the reference, in nats a token.
    pub reference_nll: f64,
    /// The same under the candidate.
    pub nll: f64,
}

impl Divergence {
    /// The mean of the divergences.
    pub fn mean_kl(&self) -> f64 {
        self.kl.iter().sum::<f64>() / self.kl.len().max(1) as f64
    }

    /// The divergence that a share of `q` of the places does not exceed.
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

/// Compares predictions over windows of a text that do not overlap, over the places that count in
/// [`perplexity`](crate::score::perplexity): those of the second half of each window.
///
/// `progress` is told (windows done, windows in all).
///
/// # Memory
/// Half a window of the reference's logits: 2 · context · vocabulary bytes.
///
/// # Errors
/// [`StepError::OutOfRange`] if the vocabularies differ, the text is shorter than one window, or the window shorter than 4
/// tokens, and those of [`LanguageModel::forward`].
pub fn divergence(
    reference: &mut impl LanguageModel,
    candidate: &mut impl LanguageModel,
    tokens: &[TokenId],
    context: usize,
    bos: Option<TokenId>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Divergence> {
    let vocab = reference.info().vocab_size;
    let checks = [
        ("tokens in a window (4 at least)", context, 4),
        ("tokens of text for one window", tokens.len(), context),
        ("tokens of the candidate's vocabulary", candidate.info().vocab_size, vocab),
        ("tokens of the reference's vocabulary", vocab, candidate.info().vocab_size),
    ];
    for (what, available, requested) in checks {
        if available < requested {
            return Err(StepError::OutOfRange { what, requested, available }.into());
        }
    }
    let n_windows = tokens.len() / context;
    let mut found = Divergence { kl: Vec::new(), same_top: 0, reference_nll: 0.0, nll: 0.0 };
    let mut rows: Vec<f32> = Vec::new();
    for (i, window) in tokens.chunks_exact(context).enumerate() {
        let mut window = window.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        rows.clear();
        with_sequence(reference, |model, sequence| {
            visit(model, sequence, &window, context / 2, WINDOW_ROWS, |token, logits| {
                found.reference_nll += log_sum_exp(logits) - f64::from(logits[token as usize]);
                rows.extend_from_slice(logits);
                Ok(())
            })
        })?;
        let mut expected = rows.chunks_exact(vocab);
        with_sequence(candidate, |model, sequence| {
            visit(model, sequence, &window, context / 2, WINDOW_ROWS, |token, logits| {
                found.nll += log_sum_exp(logits) - f64::from(logits[token as usize]);
                if let Some(expected) = expected.next() {
                    found.kl.push(kullback_leibler(expected, logits));
                    found.same_top += usize::from(top(expected) == top(logits));
                }
                Ok(())
            })
        })?;
        progress(i + 1, n_windows);
    }
    let n = found.kl.len().max(1) as f64;
    found.reference_nll /= n;
    found.nll /= n;
    Ok(found)
}

/// The index of the largest, the first of equals.
fn top(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best
}

/// Logits that a task sums up.
const TASK: usize = 8192;

/// KL(p ‖ q) of the softmaxes of two rows of logits, in nats; never below zero.
pub fn kullback_leibler(p: &[f32], q: &[f32]) -> f64 {
    let (zp, zq) = (log_sum_exp(p), log_sum_exp(q));
    let n_tasks = p.len().div_ceil(TASK);
    let mut sums = vec![0.0f64; n_tasks];
    let shared = DisjointMut::new(&mut sums);
    pool::parallel_for(n_tasks, |task| {
        let range = task * TASK..p.len().min((task + 1) * TASK);
        let mut sum = 0.0;
        for (&p, &q) in p[range.clone()].iter().zip(&q[range]) {
            let log_p = f64::from(p) - zp;
            // What is beyond the reach of a float's exponent adds nothing.
            if log_p > -80.0 {
                sum += log_p.exp() * (log_p - (f64::from(q) - zq));
            }
        }
        // SAFETY: each sum belongs to one task.
        unsafe { shared.write(task, sum) };
    });
    sums.iter().sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_are_those_of_the_formula() {
        let p = [0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()];
        let q = [0.25f32.ln() + 3.0, 0.5f32.ln() + 3.0, 0.25f32.ln() + 3.0];
        let expected = 0.5 * 2f64.ln() - 0.25 * 2f64.ln();
        assert!((kullback_leibler(&p, &q) - expected).abs() < 1e-6);
        assert_eq!(kullback_leibler(&p, &p), 0.0);
        // Far more logits than a task takes: uniform against one that has half of its mass on one token.
        let n = 30_000;
        let mut q = vec![0.0f32; n];
        q[7] = ((n - 1) as f32).ln();
        let expected = -(0.5 * n as f64).ln() / n as f64
            + (n - 1) as f64 / n as f64 * (2.0 * (n - 1) as f64 / n as f64).ln();
        assert!((kullback_leibler(&vec![0.0; n], &q) - expected).abs() < 1e-4);
    }

    #[test]
    fn quantiles_and_shares() {
        let kl: Vec<f64> = (0..101).rev().map(f64::from).collect();
        let found = Divergence { kl, same_top: 50, reference_nll: 1.0, nll: 2.0 };
        assert_eq!((found.mean_kl(), found.quantile(0.99), found.quantile(1.0)), (50.0, 99.0, 100.0));
        assert_eq!((found.top_agreement(), found.perplexity()), (50.0 / 101.0, 2f64.exp()));
    }
}
