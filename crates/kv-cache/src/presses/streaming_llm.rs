//! StreamingLLM: keeps the first tokens, which always get much attention, and the last ones.
//!
//! # Source
//! Xiao et al. 2023, arXiv 2309.17453, section 3.2. Deviation: tokens keep the positions they had in the
//! text, as in kvpress; the paper renumbers the tokens that are kept.

use super::{LayerView, Press};

/// Keeps the beginning and the end.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamingLlm {
    /// First tokens that stay.
    pub n_sinks: usize,
}

impl Default for StreamingLlm {
    /// Four, as in the paper.
    fn default() -> Self {
        Self { n_sinks: 4 }
    }
}

impl Press for StreamingLlm {
    fn name(&self) -> String {
        "StreamingLLM".to_owned()
    }

    fn scores(&self, layer: &LayerView<'_>) -> Vec<Vec<f32>> {
        let score = |p: &usize| if *p < self.n_sinks { f32::INFINITY } else { *p as f32 };
        layer.heads.iter().map(|head| head.positions.iter().map(score).collect()).collect()
    }
}
