//! The GPU kernel: one cube for each block and four queries, one unit for each vector of the block.
//!
//! Vectors are columns, so that neighboring units read neighboring numbers, and each number that is read
//! serves four queries. A unit then counts how many of the block's values come before its own. If the count
//! is below `k`, it is the vector's place in the result. No heap, no second barrier.

use breakers_backend::cube::{cube_per_row, row_of_cube};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::ops::{BLOCK, NearestOps, nearest_of_blocks_generic};

/// Queries of a cube.
const QUERIES: usize = 4;

impl NearestOps for CubeBackend {
    fn nearest_of_blocks(base: CubeTensor, offsets: CubeTensor, queries: CubeTensor, k: usize) -> CubeTensor {
        let (n_blocks, dimension, n_queries) = (base.shape()[0], base.shape()[1], queries.shape()[0]);
        let shape = Shape::new([n_queries, n_blocks, k, 2]);
        let (client, device) = (base.client.clone(), base.device.clone());
        if n_blocks * n_queries * k == 0 {
            return zeros_client(client, device, shape, DType::F32);
        }
        // The kernel computes positions in 32 bits.
        let positions = [n_blocks * dimension * BLOCK, n_queries * n_blocks * k * 2, n_queries * dimension];
        if k > BLOCK || positions.iter().any(|&n| u32::try_from(n).is_err()) {
            return nearest_of_blocks_generic::<Self>(base, offsets, queries, k);
        }
        let [offsets, queries] = [offsets, queries].map(|tensor| {
            into_contiguous(if tensor.dtype == DType::F32 { tensor } else { cast(tensor, DType::F32) })
        });
        let base = into_contiguous(base);
        let dtype = dtype_to_storage_type(base.dtype);
        let out = empty_device_contiguous_dtype(client.clone(), device, shape, DType::F32);
        // SAFETY: `DeviceScan` and the tests make tensors of these shapes, and all positions are clamped to
        // them or compared with `k`. Loops end.
        unsafe {
            nearest_kernel::launch_unchecked(
                &client,
                cube_per_row(n_blocks * n_queries.div_ceil(QUERIES)),
                CubeDim::new_1d(BLOCK as u32),
                base.into_tensor_arg(),
                offsets.into_tensor_arg(),
                queries.into_tensor_arg(),
                out.clone().into_tensor_arg(),
                n_queries as u32,
                k as u32,
                dtype,
            );
        }
        out
    }
}

#[cube(launch_unchecked)]
fn nearest_kernel<F: Float>(
    base: &Tensor<F>,
    offsets: &Tensor<f32>,
    queries: &Tensor<f32>,
    out: &mut Tensor<f32>,
    n_queries: u32,
    k: u32,
    #[define(F)] _dtype: ElemType,
) {
    let (n_blocks, dimension) = (base.shape(0), base.shape(1));
    let (n_queries, k) = (n_queries as usize, k as usize);
    let unit = UNIT_POS as usize;
    let place = row_of_cube(n_blocks * n_queries.div_ceil(comptime!(QUERIES)));
    let (block, first) = (place % n_blocks, place / n_blocks * comptime!(QUERIES));
    let last = n_queries - 1;

    let mut sums = Array::<f32>::new(comptime!(QUERIES));
    let mut starts = Array::<usize>::new(comptime!(QUERIES));
    #[unroll]
    for i in 0..comptime!(QUERIES) {
        sums[i] = 0.0f32;
        // Beyond the last query the last one again.
        let query = first + i;
        starts[i] = select(query < last, query, last) * dimension;
    }
    for coordinate in 0..dimension {
        let x = f32::cast_from(base[(block * dimension + coordinate) * comptime!(BLOCK) + unit]);
        #[unroll]
        for i in 0..comptime!(QUERIES) {
            sums[i] = fma(queries[starts[i] + coordinate], x, sums[i]);
        }
    }
    let mut values = Shared::<[f32]>::new_slice(comptime!(QUERIES * BLOCK));
    let offset = offsets[block * comptime!(BLOCK) + unit];
    #[unroll]
    for i in 0..comptime!(QUERIES) {
        values[comptime!(i * BLOCK) + unit] = offset - sums[i];
    }
    sync_cube();
    #[unroll]
    for i in 0..comptime!(QUERIES) {
        let value = offset - sums[i];
        let mut rank = 0usize.runtime();
        for other in 0..comptime!(BLOCK) {
            let there = values[comptime!(i * BLOCK) + other];
            if there < value || (there == value && other < unit) {
                rank += 1;
            }
        }
        if rank < k && first + i < n_queries {
            let at = (((first + i) * n_blocks + block) * k + rank) * 2;
            out[at] = value;
            out[at + 1] = f32::cast_from(unit as u32);
        }
    }
}
