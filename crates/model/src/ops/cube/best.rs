use breakers_backend::cube::{cube_per_row, row_of_cube, sum_of_units};
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::prelude::*;

use crate::ops::best::BestOps;

/// Units of a cube, a power of two; a cube computes one row. It fixes the order of the sum.
const UNITS: usize = 256;
/// Stands for no id.
const NONE: u32 = u32::MAX;

impl BestOps for CubeBackend {
    fn best(logits: CubeTensor, k: usize) -> CubeTensor {
        let (n_rows, vocab) = (logits.shape()[0], logits.shape()[1]);
        let (client, device) = (logits.client.clone(), logits.device.clone());
        let shape = Shape::new([n_rows, 2 * k]);
        if n_rows * vocab * k == 0 {
            return zeros_client(client, device, shape, DType::F32);
        }
        let logits =
            into_contiguous(if logits.dtype == DType::F32 { logits } else { cast(logits, DType::F32) });
        let out = empty_device_contiguous_dtype(client.clone(), device, shape, DType::F32);
        best_kernel::launch(
            &client,
            cube_per_row(n_rows),
            CubeDim::new_1d(UNITS as u32),
            logits.into_tensor_arg(),
            out.clone().into_tensor_arg(),
        );
        out
    }
}

/// Each round finds the next best id after that of the previous round, in descending order of logits and
/// ascending order of ids.
#[cube(launch)]
fn best_kernel(logits: &Tensor<f32>, out: &mut Tensor<f32>) {
    let vocab = logits.shape(1);
    let k = out.shape(1) / 2;
    let unit = UNIT_POS as usize;
    let row = row_of_cube(logits.shape(0));
    let (start, out_start) = (row * vocab, row * 2 * k);
    let mut values = Shared::<[f32]>::new_slice(comptime!(UNITS));
    let mut ids = Shared::<[u32]>::new_slice(comptime!(UNITS));

    let mut n_nan = 0.0f32.runtime();
    let mut largest = 0.0f32.runtime();
    let mut last_value = 0.0f32.runtime();
    let mut last_id = comptime!(NONE).runtime();
    for round in 0..k {
        let mut value = 0.0f32.runtime();
        let mut id = comptime!(NONE).runtime();
        for at in range_stepped(unit, vocab, comptime!(UNITS)) {
            let logit = logits[start + at];
            let behind = round == 0 || logit < last_value || (logit == last_value && at as u32 > last_id);
            if behind && (id == comptime!(NONE) || logit > value) {
                value = logit;
                id = at as u32;
            }
            // Checked by its bits, because shaders may assume that a number equals itself.
            if u32::reinterpret(logit) & 0x7FFF_FFFFu32 > 0x7F80_0000u32 {
                n_nan += 1.0f32;
            }
        }
        values[unit] = value;
        ids[unit] = id;
        sync_cube();
        #[unroll]
        for step in 0..comptime!(UNITS.ilog2() as usize) {
            let half = comptime!(UNITS >> (step + 1));
            if unit < half {
                let (value, id) = (values[unit + half], ids[unit + half]);
                let before = value > values[unit] || (value == values[unit] && id < ids[unit]);
                if id != comptime!(NONE) && (ids[unit] == comptime!(NONE) || before) {
                    values[unit] = value;
                    ids[unit] = id;
                }
            }
            sync_cube();
        }
        last_value = values[0];
        last_id = ids[0];
        if round == 0 {
            largest = last_value;
        }
        if unit == 0 {
            out[out_start + round] = f32::cast_from(last_id);
            out[out_start + k + round] = last_value;
        }
        sync_cube();
    }

    let mut sum = 0.0f32.runtime();
    for at in range_stepped(unit, vocab, comptime!(UNITS)) {
        sum += (logits[start + at] - largest).exp();
    }
    let sum = sum_of_units(sum, comptime!(UNITS));
    let n_nan = sum_of_units(n_nan, comptime!(UNITS));
    if unit == 0 {
        let log_sum = sum.ln();
        for round in 0..k {
            out[out_start + k + round] = last_logprob(out[out_start + k + round], largest, log_sum);
        }
        if n_nan > 0.0f32 {
            out[out_start] = -1.0f32;
        }
    }
}

#[cube]
fn last_logprob(logit: f32, largest: f32, log_sum: f32) -> f32 {
    logit - largest - log_sum
}
