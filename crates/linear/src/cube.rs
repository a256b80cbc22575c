//! The product on GPUs: blocks of the GGUF file, and records of our own formats, are decoded in registers;
//! the decoded matrix never exists in memory.
//!
//! Up to [`FEW_ROWS`] rows use a kernel whose order of summation depends only on the format and the number of
//! columns, so a row's bits do not depend on the other rows. More rows share tiles of decoded weights.

mod decode;
mod decode_groups;
mod few_rows;
mod many_rows;

use crate::{
    ops::{MatrixSpec, QuantizedLinearOps, linear_on_device_reference},
    records,
};
use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::{
    CubeBackend,
    kernel::{cast, into_contiguous},
    ops::numeric::{empty_device_contiguous_dtype, zeros_client},
    tensor::CubeTensor,
};
use cubecl::prelude::*;

/// The most rows of activations for which a row's bits do not depend on the others: more than the
/// verification of a draft of sixteen tokens needs.
const FEW_ROWS: usize = 32;
/// Cubes along one axis that every device accepts.
const MAX_CUBES: usize = 65_535;

impl QuantizedLinearOps for CubeBackend {
    fn quantized_linear_on_device(x: CubeTensor, words: CubeTensor, spec: MatrixSpec) -> CubeTensor {
        let (n_x, n_cols) = (x.shape()[0], x.shape()[1]);
        let out_shape = Shape::new([n_x, spec.n_rows]);
        if n_x * n_cols * spec.n_rows == 0 {
            return zeros_client(x.client.clone(), x.device.clone(), out_shape, DType::F32);
        }
        assert_eq!(n_cols, spec.n_cols, "columns of the activations and of the matrix");
        let row_bytes = records::row_bytes(spec.encoding, n_cols).expect("rows are whole blocks");
        let n_bytes = row_bytes.checked_mul(spec.n_rows).expect("the matrix fits memory");
        assert!(words.shape()[0] >= n_bytes.div_ceil(4), "the words hold the matrix");
        // The kernels compute offsets in 32 bits.
        let positions = [n_bytes, n_x * n_cols, n_x * spec.n_rows];
        if positions.iter().any(|&n| u32::try_from(n).is_err()) {
            return linear_on_device_reference::<Self>(x, words, spec);
        }
        let x = into_contiguous(if x.dtype == DType::F32 { x } else { cast(x, DType::F32) });
        let words = into_contiguous(words);
        let out = empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), out_shape, DType::F32);
        if n_x <= FEW_ROWS {
            few_rows::launch(x, words, out.clone(), spec);
        } else {
            many_rows::launch(x, words, out.clone(), spec);
        }
        out
    }
}

/// A grid over tiles of output features (first and third axis) and of rows (second axis).
fn grid(feature_tiles: usize, row_tiles: usize) -> CubeCount {
    let (x, z) = (feature_tiles.min(MAX_CUBES), feature_tiles.div_ceil(MAX_CUBES));
    CubeCount::Static(x as u32, row_tiles as u32, z as u32)
}

/// The tile of output features that this cube of a [`grid`] computes.
#[cube]
fn feature_tile() -> usize {
    (CUBE_POS_X + CUBE_POS_Z * CUBE_COUNT_X) as usize
}

/// The smaller number.
#[cube]
fn at_most(number: usize, limit: usize) -> usize {
    select(number < limit, number, limit)
}
