//! ExpectedAttention: if future queries are distributed like the last ones, attention to a key has a closed
//! form.
//!
//! For a normal query with mean μ and covariance Σ, E exp(s·q·k) = exp(s·μ·k + s²·kᵀΣk/2). Normalized over
//! tokens, this is the expected attention. It is multiplied by the length of the value, which gives the
//! token's contribution.
//!
//! # Source
//! Devoto et al. 2025, arXiv 2510.00636, section 3. Deviation: the distribution is that of the last queries
//! with their rotary embeddings applied; the paper takes all queries without them, and rotates their mean
//! over future positions.

use super::{LayerView, Press, dot};

/// Keeps the tokens that are expected to be attended to.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedAttention {
    /// Last queries that tell the distribution.
    pub window: usize,
    /// First tokens that stay.
    pub n_sinks: usize,
    /// Added to the expected attention before it is multiplied by the value's length, so that the length
    /// matters even for tokens without attention.
    pub epsilon: f32,
}

impl Default for ExpectedAttention {
    fn default() -> Self {
        Self { window: 128, n_sinks: 4, epsilon: 1e-2 }
    }
}

impl Press for ExpectedAttention {
    fn name(&self) -> String {
        "ExpectedAttention".to_owned()
    }

    fn n_queries(&self) -> usize {
        self.window
    }

    fn scores(&self, layer: &LayerView<'_>) -> Vec<Vec<f32>> {
        let (dim, group) = (layer.head_dim, layer.n_heads / layer.heads.len());
        let n_queries = layer.n_queries();
        let score = |(at, head): (usize, &super::HeadView)| {
            let mut sums = vec![0.0f32; head.positions.len()];
            for member in 0..group {
                let rows =
                    |n: usize| &layer.queries[(n * layer.n_heads + at * group + member) * dim..][..dim];
                let mut mean = vec![0.0f32; dim];
                for n in 0..n_queries {
                    mean.iter_mut().zip(rows(n)).for_each(|(m, q)| *m += q / n_queries as f32);
                }
                let logits: Vec<f32> = head
                    .keys
                    .chunks_exact(dim)
                    .map(|key| {
                        // kᵀΣk is the variance of the products with the queries.
                        let product = dot(&mean, key);
                        let squares: f32 =
                            (0..n_queries).map(|n| (dot(rows(n), key) - product).powi(2)).sum();
                        let variance = squares / n_queries.max(1) as f32;
                        layer.scale * product + 0.5 * layer.scale * layer.scale * variance
                    })
                    .collect();
                let most = logits.iter().copied().fold(f32::MIN, f32::max);
                let total: f32 = logits.iter().map(|x| (x - most).exp()).sum();
                for (sum, x) in sums.iter_mut().zip(&logits) {
                    *sum += (x - most).exp() / (total * group as f32);
                }
            }
            for ((sum, value), position) in
                sums.iter_mut().zip(head.values.chunks_exact(dim)).zip(&head.positions)
            {
                *sum = (*sum + self.epsilon) * dot(value, value).sqrt();
                if *position < self.n_sinks {
                    *sum = f32::INFINITY;
                }
            }
            sums
        };
        layer.heads.iter().enumerate().map(score).collect()
    }
}
