//! H2O: heavy hitters, the tokens that all queries so far attended to most.
//!
//! # Source
//! Zhang et al. 2023, arXiv 2306.14048, section 4. As in kvpress, a token's sum is divided by the number of
//! queries that saw it, and the newest tokens stay.

use super::{LayerView, Press, keep_last};

/// Keeps heavy hitters.
#[derive(Clone, Debug, PartialEq)]
pub struct H2o {
    /// Newest tokens that stay.
    pub window: usize,
}

impl Default for H2o {
    fn default() -> Self {
        Self { window: 32 }
    }
}

impl Press for H2o {
    fn name(&self) -> String {
        "H2O".to_owned()
    }

    fn n_queries(&self) -> usize {
        usize::MAX
    }

    fn window(&self) -> usize {
        self.window
    }

    fn scores(&self, layer: &LayerView<'_>) -> Vec<Vec<f32>> {
        let score = |head: usize| {
            let mut sums = vec![0.0f32; layer.heads[head].positions.len()];
            layer.attention(head, usize::MAX, |_, weights| {
                sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight);
            });
            let n_queries = layer.n_queries();
            for (sum, position) in sums.iter_mut().zip(&layer.heads[head].positions) {
                let n_seen = (layer.last_position + 1).saturating_sub(*position).clamp(1, n_queries.max(1));
                *sum /= n_seen as f32;
            }
            keep_last(&mut sums, self.window);
            sums
        };
        (0..layer.heads.len()).map(score).collect()
    }
}
