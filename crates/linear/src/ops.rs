//! The operation that Burn dispatches to a device.

use crate::{Activations, PackedMatrix, product, records};
use breakers_backend::flex;
use breakers_gguf::Encoding;
use burn::{
    backend::{
        Backend, TensorMetadata, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{TensorData, try_read_sync},
};
use burn_flex::{Flex, FlexTensor};
use std::sync::Arc;

/// Matrices in the host's memory, with the same number of columns.
pub type HostMatrices = Arc<[Arc<PackedMatrix>]>;

/// The contents of a buffer of packed rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixSpec {
    /// The format of the rows.
    pub encoding: Encoding,
    /// Output features.
    pub n_rows: usize,
    /// Input features.
    pub n_cols: usize,
}

/// The product of activations with matrices whose outputs are side by side.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait QuantizedLinearOps: Backend {
    /// Weights in the host's memory. The default body decodes them and serves as the reference.
    ///
    /// # Shapes
    /// `x`: `[n_rows, n_cols]`; the result: `[n_rows, sum of the matrices' rows]`.
    fn quantized_linear(x: FloatTensor<Self>, matrices: HostMatrices) -> FloatTensor<Self> {
        linear_reference::<Self>(x, matrices)
    }

    /// One matrix on the device: the bytes of its GGUF blocks, or of the records of a format of our own, as
    /// little-endian 32-bit words, padded with zeros, and a description of them. The default body reads them
    /// back and decodes them.
    ///
    /// # Shapes
    /// `x`: `[n_rows, n_cols]`; `words`: `[n_words]`; the result: `[n_rows, spec.n_rows]`.
    fn quantized_linear_on_device(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        spec: MatrixSpec,
    ) -> FloatTensor<Self> {
        linear_on_device_reference::<Self>(x, words, spec)
    }
}

/// [`QuantizedLinearOps::quantized_linear`] in Burn's own operations, on decoded weights.
pub fn linear_reference<B: Backend>(x: FloatTensor<B>, matrices: HostMatrices) -> FloatTensor<B> {
    let parts = matrices
        .iter()
        .map(|matrix| {
            let (n_rows, n_cols) = (matrix.n_rows(), matrix.n_cols());
            let mut values = vec![0.0; n_rows * n_cols];
            for (row_idx, row) in values.chunks_exact_mut(n_cols.max(1)).enumerate() {
                let decoded = matrix.decode_row(row_idx, row);
                debug_assert!(decoded.is_ok(), "{decoded:?}");
            }
            product_with::<B>(x.clone(), values, n_rows, n_cols)
        })
        .collect();
    B::float_cat(parts, 1)
}

/// [`QuantizedLinearOps::quantized_linear_on_device`] in Burn's own operations, on decoded weights.
///
/// # Panics
/// If the words cannot be read back from the device, or are not blocks as the specification says.
pub fn linear_on_device_reference<B: Backend>(
    x: FloatTensor<B>,
    words: IntTensor<B>,
    MatrixSpec { encoding, n_rows, n_cols }: MatrixSpec,
) -> FloatTensor<B> {
    let data = try_read_sync(B::int_into_data(words))
        .expect("the device reads synchronously")
        .expect("the device gives the words back");
    let mut bytes: Vec<u8> = data.iter::<i32>().flat_map(i32::to_le_bytes).collect();
    let mut values = vec![0.0; n_rows * n_cols];
    bytes.truncate(records::row_bytes(encoding, n_cols).expect("rows are whole blocks") * n_rows);
    records::decode_rows(encoding, n_cols, &bytes, &mut values).expect("the words hold the rows");
    product_with::<B>(x, values, n_rows, n_cols)
}

fn product_with<B: Backend>(
    x: FloatTensor<B>,
    weights: Vec<f32>,
    n_rows: usize,
    n_cols: usize,
) -> FloatTensor<B> {
    let weights = B::float_from_data(TensorData::new(weights, [n_rows, n_cols]), &x.device());
    B::float_matmul(x, B::float_transpose(weights))
}

impl QuantizedLinearOps for Flex {
    fn quantized_linear(x: FlexTensor, matrices: HostMatrices) -> FlexTensor {
        let x = flex::contiguous_f32(x);
        let shape = x.layout().shape();
        let (n_rows, n_cols) = (shape[0], shape[1]);
        let width = matrices.iter().map(|matrix| matrix.n_rows()).sum();
        if n_cols == 0 {
            return flex::from_vec(vec![0.0; n_rows * width], [n_rows, width]);
        }
        let mut out = Vec::with_capacity(n_rows * width);
        Activations::new(flex::as_slice(&x), n_cols)
            .and_then(|x| product::multiply(&matrices, &x, out.spare_capacity_mut(), width))
            .expect("activations have as many columns as the matrices");
        // SAFETY: the capacity is that large, and the product wrote all rows, without gaps between them.
        unsafe { out.set_len(n_rows * width) };
        flex::from_vec(out, [n_rows, width])
    }
}
