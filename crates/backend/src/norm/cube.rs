//! The GPU kernels: one cube a row, whose units sum every 64th element and then halve the sums.

use super::NormOps;
use burn::{
    backend::{TensorMetadata, cubecl::dtype_to_storage_type},
    tensor::Shape,
};
use burn_cubecl::{
    CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor,
};
use cubecl::prelude::*;

/// Units of a cube, a power of two. It fixes the order of summation, so it is the same on every device.
const UNITS: u32 = 64;
/// Cubes along one axis that every device accepts.
const MAX_CUBES: usize = 65_535;

#[cube(launch)]
fn rms_norm_kernel<F: Float>(
    x: &Tensor<F>,
    weight: &Tensor<F>,
    out: &mut Tensor<F>,
    offset: f32,
    epsilon: f32,
    #[comptime] units: u32,
    #[define(F)] _dtype: ElemType,
) {
    let width = x.shape(1);
    let start = row_of_cube(x.shape(0)) * width;
    let unit = UNIT_POS as usize;
    let stride = units as usize;

    let mut squares = f32::new(0.0_f32);
    let mut i = unit;
    while i < width {
        let value = f32::cast_from(x[start + i]);
        squares += value * value;
        i += stride;
    }
    let mean_square = sum_of_units(squares, units) / f32::cast_from(width as u32);
    let scale = f32::new(1.0_f32) / (mean_square + epsilon).sqrt();

    let mut i = unit;
    while i < width {
        let value = f32::cast_from(x[start + i]) * scale * (f32::cast_from(weight[i]) + offset);
        out[start + i] = F::cast_from(value);
        i += stride;
    }
}

#[cube(launch)]
fn layer_norm_kernel<F: Float>(
    x: &Tensor<F>,
    weight: &Tensor<F>,
    bias: &Tensor<F>,
    out: &mut Tensor<F>,
    epsilon: f32,
    #[comptime] units: u32,
    #[define(F)] _dtype: ElemType,
) {
    let width = x.shape(1);
    let start = row_of_cube(x.shape(0)) * width;
    let unit = UNIT_POS as usize;
    let stride = units as usize;
    let count = f32::cast_from(width as u32);

    let mut total = f32::new(0.0_f32);
    let mut i = unit;
    while i < width {
        total += f32::cast_from(x[start + i]);
        i += stride;
    }
    let mean = sum_of_units(total, units) / count;

    let mut squares = f32::new(0.0_f32);
    let mut i = unit;
    while i < width {
        let value = f32::cast_from(x[start + i]) - mean;
        squares += value * value;
        i += stride;
    }
    let scale = f32::new(1.0_f32) / (sum_of_units(squares, units) / count + epsilon).sqrt();

    let mut i = unit;
    while i < width {
        let value = (f32::cast_from(x[start + i]) - mean) * scale;
        out[start + i] = F::cast_from(value * f32::cast_from(weight[i]) + f32::cast_from(bias[i]));
        i += stride;
    }
}

/// The row that this cube computes; cubes beyond the last row repeat it, so that all reach the barriers.
#[cube]
fn row_of_cube(n_rows: usize) -> usize {
    let row = CUBE_POS as usize;
    let last = n_rows - 1;
    if row < last { row } else { last }
}

/// The sum of one value of each unit, given to all of them.
#[cube]
fn sum_of_units(value: f32, #[comptime] units: u32) -> f32 {
    let unit = UNIT_POS as usize;
    let mut sums = Shared::<[f32]>::new_slice(units as usize);
    sums[unit] = value;
    sync_cube();
    let mut half = (units / 2) as usize;
    while half > 0 {
        if unit < half {
            let other = sums[unit + half];
            sums[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    sums[0]
}

fn cubes(n_rows: usize) -> CubeCount {
    CubeCount::Static(n_rows.min(MAX_CUBES) as u32, n_rows.div_ceil(MAX_CUBES) as u32, 1)
}

fn empty_like(x: &CubeTensor) -> CubeTensor {
    let shape = Shape::new([x.shape()[0], x.shape()[1]]);
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, x.dtype)
}

impl NormOps for CubeBackend {
    fn rms_norm(x: CubeTensor, weight: CubeTensor, offset: f32, epsilon: f32) -> CubeTensor {
        if x.shape().num_elements() == 0 {
            return x;
        }
        let (x, weight) = (into_contiguous(x), into_contiguous(weight));
        let out = empty_like(&x);
        let dtype = dtype_to_storage_type(x.dtype);
        rms_norm_kernel::launch(
            &out.client,
            cubes(x.shape()[0]),
            CubeDim::new_1d(UNITS),
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            offset,
            epsilon,
            UNITS,
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
        let dtype = dtype_to_storage_type(x.dtype);
        layer_norm_kernel::launch(
            &out.client,
            cubes(x.shape()[0]),
            CubeDim::new_1d(UNITS),
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            epsilon,
            UNITS,
            dtype,
        );
        out
    }
}
