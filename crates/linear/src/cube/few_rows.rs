//! Few rows: reading the weights takes most of the time, so each is read once for up to eight rows.

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

/// Units that share the columns. It fixes the order of summation, so it is the same on every device.
const UNITS: usize = 32;
/// Teams of units in a cube.
const TEAMS: usize = 4;
/// Output features of a team, which share what it reads of the activations.
const FEATURES: usize = 2;
/// Most rows of a cube.
const MAX_ROWS: usize = 8;

pub(super) fn launch(x: CubeTensor, words: CubeTensor, out: CubeTensor, spec: MatrixSpec) {
    let n_x = x.shape()[0];
    let rows = n_x.next_power_of_two().min(MAX_ROWS);
    let client = out.client.clone();
    // SAFETY: the caller checked that the words hold the matrix and that its columns are the activations';
    // the kernel limits every row and column to existing ones, and its loops end.
    unsafe {
        few_rows_kernel::launch_unchecked(
            &client,
            grid(spec.n_rows.div_ceil(TEAMS * FEATURES), n_x.div_ceil(rows)),
            CubeDim::new_2d(UNITS as u32, TEAMS as u32),
            x.into_tensor_arg(),
            words.into_tensor_arg(),
            out.into_tensor_arg(),
            rows,
            spec.encoding,
        );
    }
}

#[cube(launch_unchecked)]
fn few_rows_kernel(
    x: &Tensor<f32>,
    words: &Tensor<u32>,
    out: &mut Tensor<f32>,
    #[comptime] rows: usize,
    #[comptime] encoding: Encoding,
) {
    let (n_x, n_cols) = (x.shape(0), x.shape(1));
    let n_outputs = out.shape(1);
    let (unit, team) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let first_feature = (feature_tile() * comptime!(TEAMS) + team) * comptime!(FEATURES);
    let first_row = CUBE_POS_Y as usize * rows;

    let n_granules = granules(n_cols);
    let row_bytes = row_bytes(n_cols, encoding);
    let mut weights = Array::<f32>::new(comptime!(FEATURES * GRANULE));
    let mut sums = Array::<f32>::new(comptime!(FEATURES * rows));
    #[unroll]
    for i in 0..comptime!(FEATURES * rows) {
        sums[i] = 0.0f32;
    }
    let mut granule = unit;
    while granule < n_granules {
        #[unroll]
        for f in 0..comptime!(FEATURES) {
            let row = at_most(first_feature + f, n_outputs - 1) * row_bytes;
            decode(words, row, granule, n_cols, &mut weights, comptime!(f * GRANULE), encoding);
        }
        let column = first_column(granule, encoding);
        #[unroll]
        for r in 0..rows {
            let start = at_most(first_row + r, n_x - 1) * n_cols;
            #[unroll]
            for v in 0..comptime!(GRANULE) {
                let value = activation(x, start, column, n_cols, v, encoding);
                #[unroll]
                for f in 0..comptime!(FEATURES) {
                    let sum = comptime!(r * FEATURES + f);
                    sums[sum] = fma(weights[comptime!(f * GRANULE + v)], value, sums[sum]);
                }
            }
        }
        granule += comptime!(UNITS);
    }

    // One more than the units, so that neighboring sums lie in different banks.
    let mut shared = Shared::<[f32]>::new_slice(comptime!(TEAMS * FEATURES * rows * (UNITS + 1)));
    let team_start = team * comptime!(FEATURES * rows);
    #[unroll]
    for i in 0..comptime!(FEATURES * rows) {
        shared[(team_start + i) * comptime!(UNITS + 1) + unit] = sums[i];
    }
    sync_cube();
    if unit < comptime!(FEATURES * rows) {
        let start = (team_start + unit) * comptime!(UNITS + 1);
        let mut sum = shared[start];
        for i in 1..comptime!(UNITS) {
            sum += shared[start + i];
        }
        let row = first_row + unit / comptime!(FEATURES);
        let feature = first_feature + unit % comptime!(FEATURES);
        if row < n_x && feature < n_outputs {
            out[row * n_outputs + feature] = sum;
        }
    }
}
