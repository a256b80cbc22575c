//! How much a cache changes a model's predictions: perplexity, and the divergence from the f16 cache.

use breakers_cli::{Bar, Result, runner_over};
use breakers_core::{LanguageModel, Output, SequenceId, Step, TokenId, Want};
use breakers_kv_cache::CacheKind;
use breakers_model::{Model, Runner};

/// Rows fed at a time: all caches process the same rows before the next ones, so only the logits of one pass
/// have to be kept.
const ROWS: usize = 128;

/// The measurements of one cache.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quality {
    /// Sum of negative log-likelihoods, in nats.
    nll: f64,
    /// Sum of divergences from the f16 cache, in nats.
    divergence: f64,
    /// Sum over places of whether the most likely token is the same.
    same_best: f64,
    n_tokens: usize,
    /// Sums over the places that count of bytes held, and of elements.
    bytes: f64,
    elements: f64,
    /// Bytes at the end of a window.
    pub(crate) bytes_at_end: usize,
}

impl Quality {
    pub(crate) fn perplexity(&self) -> f64 {
        (self.nll / self.n_tokens as f64).exp()
    }

    pub(crate) fn mean_divergence(&self) -> f64 {
        self.divergence / self.n_tokens as f64
    }

    pub(crate) fn same_best(&self) -> f64 {
        self.same_best / self.n_tokens as f64
    }

    /// Bits of an element, everything included, on average over the places that count.
    pub(crate) fn bits(&self) -> f64 {
        8.0 * self.bytes / self.elements
    }
}

/// Elements of keys and values of a token.
pub(crate) fn elements_per_token(model: &Model) -> usize {
    model.cache_shape().layers.iter().map(|layer| 2 * layer.n_kv_heads * layer.head_dim).sum()
}

struct Contestant {
    runner: Runner,
    sequence: SequenceId,
}

/// Feeds windows of `context` tokens, of which the second half counts, to each cache; the others are compared
/// with the first one.
pub(crate) fn measure(
    model: &Model,
    caches: &[CacheKind],
    tokens: &[TokenId],
    context: usize,
    n_windows: usize,
) -> Result<Vec<Quality>> {
    let mut found = vec![Quality::default(); caches.len()];
    let per_token = elements_per_token(model) as f64;
    let windows: Vec<&[TokenId]> = tokens.chunks_exact(context).take(n_windows).collect();
    let bar = Bar::new(windows.len() * context.div_ceil(ROWS), "passes");
    bar.doing("quality");
    let bos = if model.tokenizer().adds_bos() { model.tokenizer().bos() } else { None };
    for window in windows {
        let mut window = window.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        let mut contestants = Vec::new();
        for cache in caches {
            let mut runner = runner_over(cache, model)?;
            let sequence = runner.open()?;
            contestants.push(Contestant { runner, sequence });
        }
        for from in (0..context - 1).step_by(ROWS) {
            let to = (from + ROWS).min(context - 1);
            let first = (context / 2).clamp(from, to);
            let mut expected: Vec<Vec<f64>> = Vec::new();
            for (at, (contestant, found)) in contestants.iter_mut().zip(&mut found).enumerate() {
                let Contestant { runner, sequence } = contestant;
                let mut steps = [Step::each(*sequence, window[from..to].to_vec(), Want::Logits)];
                // `wants` belongs to the last rows.
                steps[0].wants.truncate(to - first);
                runner.forward(&mut steps)?;
                runner.commit(*sequence, to - from)?;
                let n_counted = (to - first) as f64;
                found.bytes += runner.cache_bytes() as f64 * n_counted;
                found.elements += per_token * to as f64 * n_counted;
                found.bytes_at_end = runner.cache_bytes();
                let mut row = 0;
                for (token, output) in window[from + 1..].iter().zip(&steps[0].outputs) {
                    let Output::Logits(logits) = &output.output else { continue };
                    let logs = log_softmax(logits);
                    found.nll -= logs[*token as usize];
                    found.n_tokens += 1;
                    if at == 0 {
                        found.same_best += 1.0;
                        expected.push(logs);
                        continue;
                    }
                    let expected = &expected[row];
                    row += 1;
                    found.divergence +=
                        expected.iter().zip(&logs).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
                    found.same_best += f64::from(u8::from(best(expected) == best(&logs)));
                }
            }
            bar.step();
        }
    }
    Ok(found)
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - most).exp()).sum();
    let shift = f64::from(most) + sum.ln();
    logits.iter().map(|x| f64::from(*x) - shift).collect()
}

fn best(logs: &[f64]) -> usize {
    logs.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(at, _)| at)
}
