//! The operation of a device scan on each backend: the nearest of each block.
//!
//! - `base`: `[n_blocks, dimension, BLOCK]`, 16- or 32-bit floats; a vector is a column
//! - `offsets`: `[n_blocks, BLOCK]`, 32-bit floats
//! - `queries`: `[n_queries, dimension]`, 32-bit floats
//! - result: `[n_queries, n_blocks, k, 2]`, 32-bit floats: of the `k` smallest `offset − ⟨query, vector⟩` of
//!   a block, in ascending order, the value and the column; of equal ones the lower column first

use breakers_backend::flex;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, IntDType, Shape, Slice};
use burn_flex::{Flex, FlexTensor};
use half::f16;
use half::slice::HalfFloatSliceExt as _;

/// Vectors of a block.
pub(super) const BLOCK: usize = 256;

/// The operation on a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait NearestOps: Backend {
    /// See the module.
    fn nearest_of_blocks(
        base: FloatTensor<Self>,
        offsets: FloatTensor<Self>,
        queries: FloatTensor<Self>,
        k: usize,
    ) -> FloatTensor<Self> {
        nearest_of_blocks_generic::<Self>(base, offsets, queries, k)
    }
}

/// In tensor operations: the reference.
pub(super) fn nearest_of_blocks_generic<B: Backend>(
    base: FloatTensor<B>,
    offsets: FloatTensor<B>,
    queries: FloatTensor<B>,
    k: usize,
) -> FloatTensor<B> {
    let (n_blocks, dimension, n_queries) = (base.shape()[0], base.shape()[1], queries.shape()[0]);
    let base = B::float_cast(base, FloatDType::F32);
    let queries = B::float_reshape(queries, Shape::new([1, n_queries, dimension]));
    let queries = B::float_expand(queries, Shape::new([n_blocks, n_queries, dimension]));
    let products = B::float_matmul(queries, base);
    let offsets = B::float_reshape(offsets, Shape::new([n_blocks, 1, BLOCK]));
    let offsets = B::float_expand(offsets, Shape::new([n_blocks, n_queries, BLOCK]));
    let values = B::float_sub(offsets, products);
    let (values, columns) = B::float_sort_with_indices(values, 2, false, IntDType::I32);
    let columns = B::int_into_float(columns, FloatDType::F32);
    let first = [values, columns].map(|tensor| {
        let all = [n_blocks, n_queries].map(|n| Slice::new(0, Some(n as isize), 1));
        let first = B::float_slice(tensor, &[all[0], all[1], Slice::new(0, Some(k as isize), 1)]);
        let by_query = B::float_permute(first, &[1, 0, 2]);
        B::float_reshape(by_query, Shape::new([n_queries, n_blocks, k, 1]))
    });
    B::float_cat(first.into(), 3)
}

impl NearestOps for Flex {
    fn nearest_of_blocks(base: FlexTensor, offsets: FlexTensor, queries: FlexTensor, k: usize) -> FlexTensor {
        let (n_blocks, dimension) = (base.layout().shape()[0], base.layout().shape()[1]);
        let n_queries = queries.layout().shape()[0];
        let (offsets, queries) = (flex::contiguous_f32(offsets), flex::contiguous_f32(queries));
        let (offsets, queries) = (flex::as_slice(&offsets), flex::as_slice(&queries));
        let is_half = base.dtype() == burn::tensor::DType::F16;
        let base = if is_half { flex::contiguous(base) } else { flex::contiguous_f32(base) };
        let mut out = vec![0.0; n_queries * n_blocks * k * 2];
        let (mut block, mut order) = (vec![0.0; dimension * BLOCK], Vec::with_capacity(BLOCK));
        for at in 0..n_blocks {
            let columns = at * block.len()..(at + 1) * block.len();
            if is_half {
                flex::typed_slice::<f16>(&base)[columns].convert_to_f32_slice(&mut block);
            } else {
                block.copy_from_slice(&flex::as_slice(&base)[columns]);
            }
            for query in 0..n_queries {
                let mut products = [0.0f32; BLOCK];
                let numbers = &queries[query * dimension..][..dimension];
                for (&q, row) in numbers.iter().zip(block.as_chunks::<BLOCK>().0) {
                    products.iter_mut().zip(row).for_each(|(sum, &x)| *sum = q.mul_add(x, *sum));
                }
                order.clear();
                order.extend(offsets[at * BLOCK..].iter().zip(&products).map(|(o, p)| o - p).zip(0..));
                order.sort_unstable_by(|a: &(f32, u32), b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                let out = &mut out[(query * n_blocks + at) * k * 2..][..k * 2];
                for (pair, &(value, column)) in out.as_chunks_mut::<2>().0.iter_mut().zip(&order) {
                    *pair = [value, column as f32];
                }
            }
        }
        flex::from_vec(out, [n_queries, n_blocks, k, 2])
    }
}
