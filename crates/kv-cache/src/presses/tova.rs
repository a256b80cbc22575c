//! TOVA: keeps what the last query attends to, on average over all heads of the layer.
//!
//! # Source
//! Oren et al. 2024, arXiv 2401.06104, section 3.2.

use super::{LayerView, Press, keep_last};

/// Keeps what the last query attends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tova;

impl Press for Tova {
    fn name(&self) -> String {
        "TOVA".to_owned()
    }

    fn n_queries(&self) -> usize {
        1
    }

    fn window(&self) -> usize {
        1
    }

    fn scores(&self, layer: &LayerView<'_>) -> Vec<Vec<f32>> {
        // Heads may hold different tokens, so means are taken by position.
        let mut means = vec![0.0f32; layer.last_position + 1];
        for (head, view) in layer.heads.iter().enumerate() {
            layer.attention(head, 1, |_, weights| {
                for (position, weight) in view.positions.iter().zip(weights) {
                    means[*position] += weight;
                }
            });
        }
        let score = |view: &super::HeadView| {
            let mut scores: Vec<f32> = view.positions.iter().map(|p| means[*p]).collect();
            keep_last(&mut scores, 1);
            scores
        };
        layer.heads.iter().map(score).collect()
    }
}
