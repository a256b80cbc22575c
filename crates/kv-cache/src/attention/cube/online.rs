//! The online softmax of the GPU kernels (Milakov and Gimelshein 2018, arXiv 1805.02867): a cube goes over
//! chunks of keys, one key a unit, and keeps the largest score, the sum of weights relative to it, and the
//! weighted sum of values.

use breakers_backend::cube::row_of_cube;
use cubecl::prelude::*;

/// Units of a cube and keys of a chunk: each unit computes the score of one key.
pub(crate) const UNITS: usize = 64;
/// Below every score. It is finite, since shaders may assume that all numbers are.
pub(crate) const LOWEST: f32 = -1e30;

/// The query that a cube has: one head of one row.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) row: usize,
    /// Where the query begins, and also its result.
    pub(crate) query: usize,
    /// Where the key-value head begins in a token, and numbers from one token to the next.
    pub(crate) kv_start: usize,
    pub(crate) kv_stride: usize,
    /// The row and head, counted together.
    pub(crate) idx: usize,
}

/// The place of the cube's query among `n_rows` rows, of which the first is row `first_row` of the queries.
#[cube]
pub(crate) fn place_of_cube(
    first_row: usize,
    n_rows: usize,
    n_heads: usize,
    n_kv_heads: usize,
    #[comptime] head_dim: usize,
) -> Place {
    let idx = row_of_cube(n_rows * n_heads);
    let head = idx % n_heads;
    Place {
        row: first_row + idx / n_heads,
        query: (first_row * n_heads + idx) * head_dim,
        kv_start: head / (n_heads / n_kv_heads) * head_dim,
        kv_stride: n_kv_heads * head_dim,
        idx,
    }
}

/// What a cube holds of its query. All but the sums is shared memory; of the sums a unit has the coordinates
/// `unit`, `unit + 64` and so on.
#[derive(CubeType)]
pub(crate) struct Softmax {
    /// The query times the scale: `[head_dim]`.
    query: Shared<[f32]>,
    /// Scores of the chunk's keys: `[64]`.
    scores: Shared<[f32]>,
    /// Their weights.
    weights: Shared<[f32]>,
    /// Their places among the keys.
    slots: Shared<[u32]>,
    /// Weighted sums of values.
    pub(crate) sums: Array<f32>,
}

/// The state of the softmax over the keys so far, the same in all units.
#[derive(CubeType)]
pub(crate) struct Marks {
    /// The largest score.
    pub(crate) largest: f32,
    /// The weights' sum.
    pub(crate) total: f32,
}

/// Loads the query, with sums of zero. A barrier must come before the first score.
#[cube]
pub(crate) fn new_softmax(q: &Tensor<f32>, start: usize, scale: f32, #[comptime] head_dim: usize) -> Softmax {
    let unit = UNIT_POS as usize;
    let per_unit = comptime!(head_dim.div_ceil(UNITS));
    let mut softmax = Softmax {
        query: Shared::<[f32]>::new_slice(head_dim),
        scores: Shared::<[f32]>::new_slice(comptime!(UNITS)),
        weights: Shared::<[f32]>::new_slice(comptime!(UNITS)),
        slots: Shared::<[u32]>::new_slice(comptime!(UNITS)),
        sums: Array::<f32>::new(per_unit),
    };
    #[unroll]
    for i in 0..per_unit {
        let at = unit + comptime!(i * UNITS);
        if at < head_dim {
            softmax.query[at] = q[start + at] * scale;
        }
        softmax.sums[i] = 0.0f32;
    }
    softmax
}

/// The score of the unit's key, which is at `slot`: its product with the query.
#[cube]
pub(crate) fn score_of<F: Float>(
    softmax: &mut Softmax,
    k: &Tensor<F>,
    slot: usize,
    place: &Place,
    #[comptime] head_dim: usize,
) -> f32 {
    softmax.slots[UNIT_POS as usize] = slot as u32;
    let start = slot * place.kv_stride + place.kv_start;
    let mut score = 0.0f32.runtime();
    for i in 0..head_dim {
        score = fma(softmax.query[i], f32::cast_from(k[start + i]), score);
    }
    score
}

/// Continues over a chunk: `score` is that of the unit's key, or [`LOWEST`]; the chunk has the keys
/// `from..to`.
#[cube]
pub(crate) fn add_chunk<F: Float>(
    softmax: &mut Softmax,
    known: Marks,
    score: f32,
    v: &Tensor<F>,
    place: &Place,
    from: usize,
    to: usize,
    #[comptime] head_dim: usize,
) -> Marks {
    let unit = UNIT_POS as usize;
    let per_unit = comptime!(head_dim.div_ceil(UNITS));
    softmax.scores[unit] = score;
    sync_cube();

    // Every unit looks at all scores, so that all agree without another barrier.
    let mut largest = known.largest;
    for i in 0..comptime!(UNITS) {
        largest = max(largest, softmax.scores[i]);
    }
    softmax.weights[unit] = select(score > comptime!(LOWEST), (score - largest).exp(), 0.0f32);
    sync_cube();

    let decay = (known.largest - largest).exp();
    let mut total = known.total * decay;
    #[unroll]
    for i in 0..per_unit {
        softmax.sums[i] *= decay;
    }
    for i in from..to {
        let weight = softmax.weights[i];
        total += weight;
        let start = softmax.slots[i] as usize * place.kv_stride + place.kv_start;
        #[unroll]
        for j in 0..per_unit {
            let at = unit + comptime!(j * UNITS);
            if at < head_dim {
                softmax.sums[j] = fma(weight, f32::cast_from(v[start + at]), softmax.sums[j]);
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
    softmax: &Softmax,
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
            out[start + at] = softmax.sums[i] * inverse;
        }
    }
}
