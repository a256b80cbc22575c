//! A tile of queries: its state so far, and the softmax stage.

// A condition at compile time stands by itself: joined with another one it would be one at run time.
#![allow(clippy::collapsible_if)]

use cubecl::prelude::*;

use super::{MARKS, PART, Place, at_most};
use crate::attention::cube::online::{LOWEST, UNITS};
use crate::pages::packed::device::format::Spec;

/// A tile of queries.
///
/// # Shapes
/// `n`: queries of the tile; a query's numbers stand together. Arrays are a unit's own: of `sums` it has the
/// channels `unit`, `unit + 64` and so on; `largest` is the same in all units; of `totals` each has its own
/// slots' share.
#[derive(CubeType)]
pub(super) struct Tile {
    /// Queries times the scale, as the codes of keys need them: `[n, n_coded]`, shared.
    pub(super) queries: Shared<[f32]>,
    /// Scores of the page's slots, then their weights: `[n, 64]`, shared.
    pub(super) weights: Shared<[f32]>,
    /// Largest scores or sums of each eighth of a query's slots: `[8, 8]`, shared.
    marks: Shared<[f32]>,
    /// The first slot that each query sees here: `[n]`.
    pub(super) froms: Array<u32>,
    /// The slot after the last one: `[n]`.
    pub(super) tos: Array<u32>,
    /// Scores of the unit's slot: `[n]`.
    pub(super) scores: Array<f32>,
    /// Largest scores: `[n]`.
    largest: Array<f32>,
    /// Sums of weights relative to these: `[n]`.
    totals: Array<f32>,
    /// Weighted sums of the unit's channels: `[n, channels of a unit]`.
    pub(super) sums: Array<f32>,
}

/// Loads a tile's queries. Shared memory is complete after the next barrier.
#[cube]
pub(super) fn new_tile(
    q: &Tensor<f32>,
    seen: &Tensor<i32>,
    place: &Place,
    n_exact: u32,
    scale: f32,
    #[comptime] n: usize,
    #[comptime] spec: Spec,
) -> Tile {
    let unit = UNIT_POS as usize;
    let n_coded = comptime!(spec.n_coded);
    let per_unit = comptime!(spec.head_dim.div_ceil(UNITS));
    let mut tile = Tile {
        queries: Shared::<[f32]>::new_slice(comptime!(n * spec.n_coded)),
        weights: Shared::<[f32]>::new_slice(comptime!(n * UNITS)),
        marks: Shared::<[f32]>::new_slice(comptime!(UNITS)),
        froms: Array::<u32>::new(n),
        tos: Array::<u32>::new(n),
        scores: Array::<f32>::new(n),
        largest: Array::<f32>::new(n),
        totals: Array::<f32>::new(n),
        sums: Array::<f32>::new(comptime!(n * per_unit)),
    };
    #[unroll]
    for j in 0..n {
        let query = at_most(place.first_query + j, place.n_queries - 1);
        let row = place.first_row + query / place.group;
        let head = place.head * place.group + query % place.group;
        let start = (row * place.n_heads + head) * n_coded;
        for i in range_stepped(unit, n_coded, comptime!(UNITS)) {
            tile.queries[comptime!(j * spec.n_coded) + i] = q[start + i] * scale;
        }
        // The first ones are exact: they are not read here.
        tile.froms[j] = max(seen[row * seen.shape(1)] as u32, n_exact);
        tile.tos[j] = seen[row * seen.shape(1) + 1] as u32;
        tile.largest[j] = comptime!(LOWEST).runtime();
        tile.totals[j] = 0.0f32;
        #[unroll]
        for i in 0..per_unit {
            tile.sums[comptime!(j * per_unit + i)] = 0.0f32;
        }
    }
    tile
}

/// Eight units go over the numbers of each query in `weights`, and leave what they find in `marks`: the
/// largest one, or the sum. There must be barriers before and after it.
#[cube]
fn reduce(tile: &mut Tile, #[comptime] n: usize, #[comptime] is_sum: bool) {
    let unit = UNIT_POS as usize;
    sync_cube();
    let query = unit / comptime!(PART);
    if query < n {
        let first = query * comptime!(UNITS) + unit % comptime!(PART) * comptime!(UNITS / PART);
        let mut found = tile.weights[first];
        for i in 1..comptime!(UNITS / PART) {
            let next = tile.weights[first + i];
            if comptime!(is_sum) {
                found += next;
            } else {
                found = max(found, next);
            }
        }
        tile.marks[unit] = found;
    }
    sync_cube();
}

/// Stage *softmax*: the scores of a page become weights relative to the largest score so far, which decays
/// what was summed before. `slot` is the unit's.
#[cube]
pub(super) fn softmax(tile: &mut Tile, slot: u32, #[comptime] n: usize, #[comptime] spec: Spec) {
    let unit = UNIT_POS as usize;
    let per_unit = comptime!(spec.head_dim.div_ceil(UNITS));
    #[unroll]
    for j in 0..n {
        if slot < tile.froms[j] || slot >= tile.tos[j] {
            tile.scores[j] = comptime!(LOWEST).runtime();
        }
        tile.weights[comptime!(j * UNITS) + unit] = tile.scores[j];
    }
    reduce(tile, n, false);
    #[unroll]
    for j in 0..n {
        let before = tile.largest[j];
        let mut most = before;
        for i in 0..comptime!(PART) {
            most = max(most, tile.marks[comptime!(j * PART) + i]);
        }
        // A page that the row does not see leaves everything as it is.
        let decay = select(most > before, (before - most).exp(), 1.0f32);
        let score = tile.scores[j];
        let weight = select(score > comptime!(LOWEST), (score - most).exp(), 0.0f32);
        tile.largest[j] = most;
        tile.totals[j] = fma(tile.totals[j], decay, weight);
        tile.weights[comptime!(j * UNITS) + unit] = weight;
        #[unroll]
        for i in 0..per_unit {
            tile.sums[comptime!(j * per_unit + i)] *= decay;
        }
    }
}

/// Writes what the split holds for each query: sums, largest score, sum of weights.
#[cube]
pub(super) fn write_parts(
    tile: &mut Tile,
    place: &Place,
    parts: &mut Tensor<f32>,
    #[comptime] n: usize,
    #[comptime] spec: Spec,
) {
    let unit = UNIT_POS as usize;
    let head_dim = comptime!(spec.head_dim);
    let per_unit = comptime!(spec.head_dim.div_ceil(UNITS));
    #[unroll]
    for j in 0..n {
        tile.weights[comptime!(j * UNITS) + unit] = tile.totals[j];
    }
    reduce(tile, n, true);
    #[unroll]
    for j in 0..n {
        let query = place.first_query + j;
        if query < place.n_queries {
            let mut total = tile.marks[comptime!(j * PART)];
            for i in 1..comptime!(PART) {
                total += tile.marks[comptime!(j * PART) + i];
            }
            let row = place.split * place.n_rows + query / place.group;
            let head = place.head * place.group + query % place.group;
            let start = (row * place.n_heads + head) * comptime!(spec.head_dim + MARKS);
            #[unroll]
            for i in 0..per_unit {
                let channel = unit + comptime!(i * UNITS);
                if channel < head_dim {
                    parts[start + channel] = tile.sums[comptime!(j * per_unit + i)];
                }
            }
            if unit == 0 {
                parts[start + head_dim] = tile.largest[j];
                parts[start + head_dim + 1] = total;
            }
        }
    }
}
