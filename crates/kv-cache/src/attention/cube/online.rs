//! The online softmax of the GPU kernels (Milakov and Gimelshein 2018, arXiv 1805.02867): a cube goes over chunks of keys, one key a
//! unit, and keeps the largest score, the sum of weights relative to it, and the weighted sum of values.

use cubecl::prelude::*;

/// Units of a cube and keys of a chunk: each unit computes the score of one key.
pub(crate) const UNITS: usize = 64;
/// Below every score. Finite, since shaders may assume that numbers are.
pub(crate) const LOWEST: f32 = -1e30;

/// What is known of the keys so far.
#[derive(CubeType)]
pub(crate) struct Marks {
    /// The largest score.
    pub(crate) largest: f32,
    /// The weights' sum.
    pub(crate) total: f32,
}

/// The product of the query with a key.
#[cube]
pub(crate) fn score_of<F: Float>(
    query: &Shared<[f32]>,
    k: &Tensor<F>,
    start: usize,
    #[comptime] head_dim: usize,
) -> f32 {
    let mut score = 0.0f32.runtime();
    for i in 0..head_dim {
        score = fma(query[i], f32::cast_from(k[start + i]), score);
    }
    score
}

/// Goes on over a chunk: `score` is that of the unit's key, or [`LOWEST`]; keys `from..to` of the chunk are there, and `slots` has
/// their places. Each unit sums every 64th coordinate of the values.
#[cube]
pub(crate) fn add_chunk<F: Float>(
    known: Marks,
    score: f32,
    scores: &mut Shared<[f32]>,
    weights: &mut Shared<[f32]>,
    slots: &Shared<[u32]>,
    sums: &mut Array<f32>,
    v: &Tensor<F>,
    kv_start: usize,
    kv_stride: usize,
    from: usize,
    to: usize,
    #[comptime] head_dim: usize,
) -> Marks {
    let unit = UNIT_POS as usize;
    let per_unit = comptime!(head_dim.div_ceil(UNITS));
    scores[unit] = score;
    sync_cube();

    // Every unit looks at all scores, so that all agree without another barrier.
    let mut largest = known.largest;
    for i in 0..comptime!(UNITS) {
        largest = max(largest, scores[i]);
    }
    weights[unit] = select(score > comptime!(LOWEST), (score - largest).exp(), 0.0f32);
    sync_cube();

    let decay = (known.largest - largest).exp();
    let mut total = known.total * decay;
    #[unroll]
    for i in 0..per_unit {
        sums[i] *= decay;
    }
    for i in from..to {
        let weight = weights[i];
        total += weight;
        let start = slots[i] as usize * kv_stride + kv_start;
        #[unroll]
        for j in 0..per_unit {
            let at = unit + comptime!(j * UNITS);
            if at < head_dim {
                sums[j] = fma(weight, f32::cast_from(v[start + at]), sums[j]);
            }
        }
    }
    // The next chunk overwrites what this one reads.
    sync_cube();
    Marks { largest, total }
}

/// Writes the weighted mean; a row that sees nothing has the sum zero.
#[cube]
pub(crate) fn write_mean(
    sums: &Array<f32>,
    total: f32,
    out: &mut Tensor<f32>,
    start: usize,
    #[comptime] head_dim: usize,
) {
    let unit = UNIT_POS as usize;
    let inverse = select(total > 0.0f32, 1.0f32 / total, 0.0f32);
    #[unroll]
    for i in 0..comptime!(head_dim.div_ceil(UNITS)) {
        let at = unit + comptime!(i * UNITS);
        if at < head_dim {
            out[start + at] = sums[i] * inverse;
        }
    }
}
