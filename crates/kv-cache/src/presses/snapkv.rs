//! SnapKV: the last queries of a prompt show what the answer will attend to.
//!
//! # Source
//! Li et al. 2024, arXiv 2404.14469, section 4 and listing 1. Scores of the query heads that share a
//! key-value head are averaged, as kvpress does. Pooled by means over a kernel of 5.

use super::{LayerView, Press, keep_last};

/// Settings of SnapKV.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapKvConfig {
    /// Last queries that vote; their tokens stay.
    pub window: usize,
    /// Neighboring tokens that share their votes, an odd number.
    pub kernel: usize,
}

impl Default for SnapKvConfig {
    /// 32 queries and a kernel of 5, as in the paper's LongBench runs.
    fn default() -> Self {
        Self { window: 32, kernel: 5 }
    }
}

/// Keeps the tokens that the last queries attend to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SnapKv(pub SnapKvConfig);

impl Press for SnapKv {
    fn name(&self) -> String {
        "SnapKV".to_owned()
    }

    fn n_queries(&self) -> usize {
        self.0.window
    }

    fn window(&self) -> usize {
        self.0.window
    }

    fn scores(&self, layer: &LayerView<'_>) -> Vec<Vec<f32>> {
        (0..layer.heads.len()).map(|head| votes(layer, head, &self.0)).collect()
    }
}

/// Scores of one head.
pub(super) fn votes(layer: &LayerView<'_>, head: usize, config: &SnapKvConfig) -> Vec<f32> {
    let n = layer.heads[head].positions.len();
    let mut votes = vec![0.0f32; n];
    layer.attention(head, config.window, |_, weights| {
        votes.iter_mut().zip(weights).for_each(|(vote, weight)| *vote += weight);
    });
    // Only what stands before the window is voted on, and pooled.
    let prefix = n.saturating_sub(config.window);
    let reach = config.kernel / 2;
    let mut scores: Vec<f32> = (0..prefix)
        .map(|at| {
            let around = &votes[at.saturating_sub(reach)..prefix.min(at + reach + 1)];
            around.iter().sum::<f32>() / config.kernel as f32
        })
        .collect();
    scores.resize(n, f32::INFINITY);
    keep_last(&mut scores, config.window);
    scores
}
