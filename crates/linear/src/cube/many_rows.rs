//! Many rows: cubes decode a tile of weights once for a tile of rows.

use super::{
    at_most,
    decode::{GRANULE, activation, decode, first_column, granules, row_bytes},
    feature_tile, grid,
};
use crate::MatrixSpec;
use breakers_gguf::Encoding;
use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Rows and output features of a cube.
const TILE: usize = 64;
/// Granules of each row in a tile; with two tiles of 8 KiB every device has memory enough.
const DEPTH: usize = 4;
/// Units along the output features, each with every 16th of them.
const UNITS_X: usize = 16;
/// Units along the rows, each with every 8th of them.
const UNITS_Y: usize = 8;
/// Output features of a unit.
const FEATURES: usize = TILE / UNITS_X;
/// Rows of a unit.
const ROWS: usize = TILE / UNITS_Y;
/// Granules that a unit brings into a tile.
const LOADS: usize = TILE * DEPTH / (UNITS_X * UNITS_Y);

pub(super) fn launch(x: CubeTensor, words: CubeTensor, out: CubeTensor, spec: MatrixSpec) {
    let n_x = x.shape()[0];
    let client = out.client.clone();
    // SAFETY: as for few rows.
    unsafe {
        many_rows_kernel::launch_unchecked(
            &client,
            grid(spec.n_rows.div_ceil(TILE), n_x.div_ceil(TILE)),
            CubeDim::new_1d((UNITS_X * UNITS_Y) as u32),
            x.into_tensor_arg(),
            words.into_tensor_arg(),
            out.into_tensor_arg(),
            spec.encoding,
        );
    }
}

#[cube(launch_unchecked)]
fn many_rows_kernel(
    x: &Tensor<f32>,
    words: &Tensor<u32>,
    out: &mut Tensor<f32>,
    #[comptime] encoding: Encoding,
) {
    let (n_x, n_cols) = (x.shape(0), x.shape(1));
    let n_outputs = out.shape(1);
    let unit = UNIT_POS as usize;
    let (unit_x, unit_y) = (unit % comptime!(UNITS_X), unit / comptime!(UNITS_X));
    let (first_feature, first_row) =
        (feature_tile() * comptime!(TILE), CUBE_POS_Y as usize * comptime!(TILE));

    let n_granules = granules(n_cols);
    let row_bytes = row_bytes(n_cols, encoding);
    let mut weight_tile = Shared::<[f32]>::new_slice(comptime!(DEPTH * GRANULE * TILE));
    let mut x_tile = Shared::<[f32]>::new_slice(comptime!(DEPTH * GRANULE * TILE));
    let mut weights = Array::<f32>::new(comptime!(GRANULE));
    let mut features = Array::<f32>::new(comptime!(FEATURES));
    let mut sums = Array::<f32>::new(comptime!(FEATURES * ROWS));
    #[unroll]
    for i in 0..comptime!(FEATURES * ROWS) {
        sums[i] = 0.0f32;
    }

    let mut base = 0usize.runtime();
    while base < n_granules {
        // Neighboring units read neighboring words of a row.
        #[unroll]
        for load in 0..comptime!(LOADS) {
            let item = unit + comptime!(load * UNITS_X * UNITS_Y);
            let (depth, line) = (item % comptime!(DEPTH), item / comptime!(DEPTH));
            let there = base + depth < n_granules;
            let granule = at_most(base + depth, n_granules - 1);
            let row = at_most(first_feature + line, n_outputs - 1) * row_bytes;
            decode(words, row, granule, n_cols, &mut weights, 0usize, encoding);
            let column = first_column(granule, encoding);
            let start = at_most(first_row + line, n_x - 1) * n_cols;
            #[unroll]
            for v in 0..comptime!(GRANULE) {
                let place = (depth * comptime!(GRANULE) + v) * comptime!(TILE) + turned(line, depth);
                let value = activation(x, start, column, n_cols, v, encoding);
                weight_tile[place] = select(there, weights[v], 0.0f32);
                x_tile[place] = select(there, value, 0.0f32);
            }
        }
        sync_cube();
        for depth in 0..comptime!(DEPTH) {
            #[unroll]
            for v in 0..comptime!(GRANULE) {
                let line = (depth * comptime!(GRANULE) + v) * comptime!(TILE);
                #[unroll]
                for f in 0..comptime!(FEATURES) {
                    features[f] = weight_tile[line + turned(unit_x + comptime!(f * UNITS_X), depth)];
                }
                #[unroll]
                for r in 0..comptime!(ROWS) {
                    let value = x_tile[line + turned(unit_y + comptime!(r * UNITS_Y), depth)];
                    #[unroll]
                    for f in 0..comptime!(FEATURES) {
                        let sum = comptime!(r * FEATURES + f);
                        sums[sum] = fma(features[f], value, sums[sum]);
                    }
                }
            }
        }
        sync_cube();
        base += comptime!(DEPTH);
    }

    #[unroll]
    for r in 0..comptime!(ROWS) {
        let row = first_row + unit_y + comptime!(r * UNITS_Y);
        #[unroll]
        for f in 0..comptime!(FEATURES) {
            let feature = first_feature + unit_x + comptime!(f * UNITS_X);
            if row < n_x && feature < n_outputs {
                out[row * n_outputs + feature] = sums[comptime!(r * FEATURES + f)];
            }
        }
    }
}

/// Where a tile keeps element `line` of its lines at `depth`: turned by eight for each step, so that units
/// that write different depths at a time meet different banks.
#[cube]
fn turned(line: usize, depth: usize) -> usize {
    (line + depth * 8) % comptime!(TILE)
}
