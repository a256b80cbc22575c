//! Tokens drawn at random: what every press has to beat.

use super::{LayerView, Press};
use breakers_cpu::random::SplitMix64;

/// Keeps tokens at random.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RandomPress {
    /// Seed of the draw.
    pub seed: u64,
}

impl Press for RandomPress {
    fn name(&self) -> String {
        "random".to_owned()
    }

    fn scores(&self, layer: &LayerView<'_>) -> Vec<Vec<f32>> {
        let score = |(head, view): (usize, &super::HeadView)| {
            let score = |position: &usize| {
                let seed = self.seed ^ (*position as u64) << 20 ^ (head as u64) << 8;
                SplitMix64::new(seed).next_unit() as f32
            };
            view.positions.iter().map(score).collect()
        };
        layer.heads.iter().enumerate().map(score).collect()
    }
}
