//! The GPU kernels: one cube per row, whose units sum every 64th element and then add up their sums. Without
//! shared memory every unit sums the whole row instead.

use super::NormOps;
use crate::cube::{cube_per_row, empty_like, has_shared_memory, row_of_cube, sum_of_units};
use burn::backend::{TensorMetadata, cubecl::dtype_to_storage_type};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units of a cube, a power of two. It fixes the order of summation, so it is the same on every device.
const UNITS: usize = 64;

#[cube(launch)]
fn rms_norm_kernel<F: Float>(
    x: &Tensor<F>,
    weight: &Tensor<F>,
    out: &mut Tensor<F>,
    offset: f32,
    epsilon: f32,
    #[comptime] units: usize,
    #[comptime] together: bool,
    #[define(F)] _dtype: ElemType,
) {
    let width = x.shape(1);
    let start = row_of_cube(x.shape(0)) * width;

    let squares = sum::<F>(x, start, f32::new(0.0_f32), true, units, together);
    let scale = f32::new(1.0_f32) / (squares / f32::cast_from(width as u32) + epsilon).sqrt();
    for i in range_stepped(UNIT_POS as usize, width, units) {
        let value = f32::cast_from(x[start + i]) * scale * (f32::cast_from(weight[i]) + offset);
        out[start + i] = F::cast_from(value);
    }
}

#[cube(launch)]
fn layer_norm_kernel<F: Float>(
    x: &Tensor<F>,
    weight: &Tensor<F>,
    bias: &Tensor<F>,
    out: &mut Tensor<F>,
    epsilon: f32,
    #[comptime] units: usize,
    #[comptime] together: bool,
    #[define(F)] _dtype: ElemType,
) {
    let width = x.shape(1);
    let start = row_of_cube(x.shape(0)) * width;
    let count = f32::cast_from(width as u32);

    let mean = sum::<F>(x, start, f32::new(0.0_f32), false, units, together) / count;
    let squares = sum::<F>(x, start, mean, true, units, together);
    let scale = f32::new(1.0_f32) / (squares / count + epsilon).sqrt();
    for i in range_stepped(UNIT_POS as usize, width, units) {
        let value = (f32::cast_from(x[start + i]) - mean) * scale;
        out[start + i] = F::cast_from(value * f32::cast_from(weight[i]) + f32::cast_from(bias[i]));
    }
}

/// The sum over the row at `start` of x − shift, or of its square, computed by all units of the cube
/// `together` or by each unit on its own.
#[cube]
fn sum<F: Float>(
    x: &Tensor<F>,
    start: usize,
    shift: f32,
    #[comptime] squared: bool,
    #[comptime] units: usize,
    #[comptime] together: bool,
) -> f32 {
    let mut sum = f32::new(0.0_f32);
    let first = if comptime!(together) { UNIT_POS as usize } else { 0usize.runtime() };
    let stride = comptime!(if together { units } else { 1 });
    for i in range_stepped(first, x.shape(1), stride) {
        let value = f32::cast_from(x[start + i]) - shift;
        if comptime!(squared) {
            sum += value * value;
        } else {
            sum += value;
        }
    }
    if comptime!(together) { sum_of_units(sum, units) } else { sum }
}

impl NormOps for CubeBackend {
    fn rms_norm(x: CubeTensor, weight: CubeTensor, offset: f32, epsilon: f32) -> CubeTensor {
        if x.shape().num_elements() == 0 {
            return x;
        }
        let (x, weight) = (into_contiguous(x), into_contiguous(weight));
        let out = empty_like(&x);
        let (together, dtype) = (has_shared_memory(&x), dtype_to_storage_type(x.dtype));
        rms_norm_kernel::launch(
            &out.client,
            cube_per_row(x.shape()[0]),
            CubeDim::new_1d(UNITS as u32),
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            offset,
            epsilon,
            UNITS,
            together,
            dtype,
        );
        out
    }

    fn layer_norm(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, epsilon: f32) -> CubeTensor {
        if x.shape().num_elements() == 0 {
            return x;
        }
        let (x, weight, bias) = (into_contiguous(x), into_contiguous(weight), into_contiguous(bias));
        let out = empty_like(&x);
        let (together, dtype) = (has_shared_memory(&x), dtype_to_storage_type(x.dtype));
        layer_norm_kernel::launch(
            &out.client,
            cube_per_row(x.shape()[0]),
            CubeDim::new_1d(UNITS as u32),
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            epsilon,
            UNITS,
            together,
            dtype,
        );
        out
    }
}
