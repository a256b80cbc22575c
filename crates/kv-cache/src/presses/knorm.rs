//! Knorm: keys that are short get more attention than long ones.
//!
//! # Source
//! Devoto et al. 2024, arXiv 2406.11430, section 4.

use super::{LayerView, Press, dot};

/// Keeps short keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Knorm;

impl Press for Knorm {
    fn name(&self) -> String {
        "Knorm".to_owned()
    }

    fn scores(&self, layer: &LayerView<'_>) -> Vec<Vec<f32>> {
        let score = |key: &[f32]| -dot(key, key).sqrt();
        layer.heads.iter().map(|head| head.keys.chunks_exact(layer.head_dim).map(score).collect()).collect()
    }
}
