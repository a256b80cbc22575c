//! KeyDiff: keys that point in a different direction from the others are the ones that attention singles out.
//!
//! # Source
//! Park et al. 2025, arXiv 2504.15364, section 3: minus the cosine between a key and the mean
//! of all normalized keys.

use super::{LayerView, Press, dot};

/// Keeps keys that are unlike the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyDiff;

impl Press for KeyDiff {
    fn name(&self) -> String {
        "KeyDiff".to_owned()
    }

    fn scores(&self, layer: &LayerView<'_>) -> Vec<Vec<f32>> {
        let length = |x: &[f32]| dot(x, x).sqrt().max(f32::MIN_POSITIVE);
        let score = |head: &super::HeadView| {
            let mut anchor = vec![0.0f32; layer.head_dim];
            for key in head.keys.chunks_exact(layer.head_dim) {
                let factor = 1.0 / length(key);
                anchor.iter_mut().zip(key).for_each(|(a, k)| *a += factor * k);
            }
            let size = length(&anchor);
            let cosine = |key: &[f32]| dot(key, &anchor) / (length(key) * size);
            head.keys.chunks_exact(layer.head_dim).map(|key| -cosine(key)).collect()
        };
        layer.heads.iter().map(score).collect()
    }
}
