//! Linear layers and embeddings over packed weights, as operations on Burn tensors.
//!
//! On the CPU the weights are repacked once ([`PackedMatrix`]) and multiplied by the kernels of this crate.
//! On other devices they stay the blocks of the GGUF file, and formats of our own become records of rows:
//! neighboring matrices of one format share a buffer and a kernel call, and matrices that do not fit into one
//! buffer of the device are divided among several.

use crate::{
    Activations, Error, HostMatrices, LowRank, OutputTiles, PackedMatrix, QuantizedLinearOps, Result,
    adapter::Adapter,
    input_rotation::InputRotation,
    on_device::{self, DeviceMatrix, Rows},
    product, records,
};
use breakers_backend::device;
use breakers_cpu::pool;
use breakers_gguf::{Encoding, Format, Parts, QuantizedMatrix, SharedTensor, TensorView};
use burn::{
    backend::Dispatch,
    tensor::{Device, Tensor, TensorData},
};
use std::{borrow::Cow, sync::Arc};

/// The fewest rows of an embedding that a task of the pool decodes.
const TASK_ROWS: usize = 8;

/// A linear layer without bias, `x -> x wᵀ`, over one matrix or over several whose outputs are side by side
/// (such as query, key and value projections). Activations are quantized once for all of them. Clones share
/// the weights.
///
/// # Example
/// ```
/// use breakers_linear::{PackedMatrix, QuantizedLinear};
/// use burn::tensor::{Device, Tensor};
/// use std::sync::Arc;
///
/// # fn main() -> Result<(), breakers_linear::Error> {
/// let swap = Arc::new(PackedMatrix::from_f32(2, 2, &[0.0, 1.0, 1.0, 0.0])?);
/// let sum = Arc::new(PackedMatrix::from_f32(1, 2, &[1.0, 1.0])?);
/// let layer = QuantizedLinear::from_packed(vec![swap, sum])?;
/// let x = Tensor::<2>::from_data([[3.0f32, 4.0]], &Device::flex());
/// assert_eq!(layer.forward(x).into_data().try_to_vec::<f32>().unwrap(), [4.0, 3.0, 7.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct QuantizedLinear {
    n_cols: usize,
    n_outputs: usize,
    weights: Weights,
    /// The rotation that is applied to the inputs first.
    rotation: Option<Arc<InputRotation>>,
    adapters: Vec<Adapter>,
}

#[derive(Debug, Clone)]
enum Weights {
    Host(HostMatrices),
    Device { matrices: Arc<[DeviceMatrix]>, sources: Arc<[SharedTensor]> },
}

impl QuantizedLinear {
    /// Copies tensors `[out features, in features]` of a GGUF file to a device. The copied pages of the file
    /// leave resident memory.
    ///
    /// # Errors
    /// [`Error::NoMatrices`] without tensors, [`Error::Columns`] when their input features differ,
    /// [`Error::Backend`] for a device without kernels, [`Error::DeviceBuffer`] for a row that no buffer of
    /// the device holds, [`Error::OutOfMemory`].
    pub fn new(parts: Vec<TensorView<'_>>, device: &Device) -> Result<Self> {
        device::require(device)?;
        let n_cols = common_columns(parts.iter().map(|part| part.n_cols()))?;
        let n_outputs = parts.iter().map(|part| part.n_rows()).sum();
        let weights = if device::is_cpu(device) {
            let matrices: Result<Vec<_>> =
                parts.iter().map(|part| Ok(Arc::new(PackedMatrix::from_gguf(part)?))).collect();
            Weights::Host(matrices?.into())
        } else {
            let rows = parts.iter().map(|part| Rows {
                encoding: Encoding::Gguf(part.format()),
                n_rows: part.n_rows(),
                n_cols: part.n_cols(),
                bytes: part.bytes().into(),
            });
            let matrices = on_device::place(rows, device)?.into();
            parts.iter().for_each(TensorView::advise_done);
            Weights::Device { matrices, sources: parts.iter().map(|part| part.to_shared()).collect() }
        };
        Ok(Self { n_cols, n_outputs, weights, rotation: None, adapters: Vec::new() })
    }

    /// A layer on the CPU over packed matrices.
    ///
    /// # Errors
    /// [`Error::NoMatrices`] without matrices, [`Error::Columns`] when their columns differ.
    pub fn from_packed(parts: Vec<Arc<PackedMatrix>>) -> Result<Self> {
        let n_cols = common_columns(parts.iter().map(|part| part.n_cols()))?;
        let n_outputs = parts.iter().map(|part| part.n_rows()).sum();
        let weights = Weights::Host(parts.into());
        Ok(Self { n_cols, n_outputs, weights, rotation: None, adapters: Vec::new() })
    }

    /// A layer on a device over quantized matrices, each in its own format. If they are for rotated inputs,
    /// the layer rotates its inputs, once for all matrices.
    ///
    /// # Errors
    /// [`Error::InputBasis`] for matrices for divided inputs, or for inputs that are rotated in different
    /// ways; [`Error::NoProduct`] for groups that are not whole blocks of 32 columns, and as
    /// [`new`](Self::new).
    pub fn from_quantized(parts: &[QuantizedMatrix], device: &Device) -> Result<Self> {
        device::require(device)?;
        let n_cols = common_columns(parts.iter().map(QuantizedMatrix::n_cols))?;
        let seed = parts.iter().find_map(QuantizedMatrix::rotation_seed);
        let differs = |part: &QuantizedMatrix| part.input_scales().is_some() || part.rotation_seed() != seed;
        if parts.iter().any(differs) {
            return Err(Error::InputBasis);
        }
        let rotation = parts.iter().find_map(QuantizedMatrix::rotation);
        let rotation = rotation.map(|found| InputRotation::new(found, device)).transpose()?.map(Arc::new);
        if device::is_cpu(device) {
            let packed: Result<Vec<_>> =
                parts.iter().map(|part| Ok(Arc::new(PackedMatrix::from_quantized(part)?))).collect();
            return Ok(Self { rotation, ..Self::from_packed(packed?)? });
        }
        let rows = parts.iter().map(|part| {
            let bytes = match part.parts() {
                Parts::Blocks(_, bytes) => Cow::Borrowed(bytes),
                Parts::Groups(groups) => Cow::Owned(records::from_groups(groups)?),
            };
            Ok(Rows { encoding: part.encoding(), n_rows: part.n_rows(), n_cols, bytes })
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let matrices = on_device::place(rows.into_iter(), device)?.into();
        let n_outputs = parts.iter().map(QuantizedMatrix::n_rows).sum();
        let weights = Weights::Device { matrices, sources: [].into() };
        Ok(Self { n_cols, n_outputs, weights, rotation, adapters: Vec::new() })
    }

    /// A layer on a device over one matrix of plain numbers, which are not quantized.
    ///
    /// # Shapes
    /// `values`: `[n_rows, n_cols]`: a row holds the weights of one output feature.
    ///
    /// # Errors
    /// [`Error::Length`] when the number of `values` does not match the rows, and as [`new`](Self::new).
    pub fn from_f32(n_rows: usize, n_cols: usize, values: &[f32], device: &Device) -> Result<Self> {
        device::require(device)?;
        if device::is_cpu(device) {
            return Self::from_packed(vec![Arc::new(PackedMatrix::from_f32(n_rows, n_cols, values)?)]);
        }
        let expected = n_rows.saturating_mul(n_cols);
        if values.len() != expected {
            return Err(Error::Length { what: "values of a matrix", expected, found: values.len() });
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let rows = Rows { encoding: Encoding::Gguf(Format::F32), n_rows, n_cols, bytes: bytes.into() };
        let matrices = on_device::place([rows].into_iter(), device)?.into();
        let weights = Weights::Device { matrices, sources: [].into() };
        Ok(Self { n_cols, n_outputs: n_rows, weights, rotation: None, adapters: Vec::new() })
    }

    /// The layer with one more low-rank addition. Existing clones do not change.
    ///
    /// # Errors
    /// [`Error::Length`] for matrices that do not match the rank or the layer's inputs,
    /// [`Error::AdapterOutputs`] for outputs that the layer does not have, and as
    /// [`from_f32`](Self::from_f32).
    ///
    /// # Example
    /// ```
    /// use breakers_linear::{LowRank, QuantizedLinear};
    /// use burn::tensor::{Device, Tensor};
    ///
    /// # fn main() -> Result<(), breakers_linear::Error> {
    /// let device = Device::flex();
    /// let layer = QuantizedLinear::from_f32(2, 2, &[1.0, 0.0, 0.0, 1.0], &device)?;
    /// // The second output gains half the sum of the inputs.
    /// let adapter = LowRank { first_output: 1, rank: 1, down: &[1.0, 1.0], up: &[1.0], scale: 0.5 };
    /// let layer = layer.with_adapter(adapter)?;
    /// let x = Tensor::<2>::from_data([[3.0f32, 5.0]], &device);
    /// assert_eq!(layer.forward(x).into_data().try_to_vec::<f32>().unwrap(), [3.0, 9.0]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_adapter(mut self, adapter: LowRank<'_>) -> Result<Self> {
        let device = match &self.weights {
            Weights::Host(_) => Device::flex(),
            Weights::Device { matrices, .. } => matrices.first().ok_or(Error::NoMatrices)?.device(),
        };
        self.adapters.push(Adapter::new(adapter, self.n_cols, self.n_outputs, &device)?);
        Ok(self)
    }

    /// Multiplies activations with the weights.
    ///
    /// # Shapes
    /// `x`: `[n_rows, n_inputs]`; the result: `[n_rows, n_outputs]`.
    ///
    /// # Panics
    /// If `x` does not have [`n_inputs`](Self::n_inputs) columns, or is on another kind of device than the
    /// weights.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let [n_rows, n_cols] = x.dims();
        assert_eq!(n_cols, self.n_cols, "columns of the activations and inputs of the layer");
        if n_rows == 0 {
            return Tensor::zeros([0, self.n_outputs], &x.device());
        }
        let out = self.product(x.clone());
        self.adapters.iter().fold(out, |out, adapter| adapter.add(x.clone(), out))
    }

    /// Multiplies activations with the weights of some outputs. Their results have the same bits as those of
    /// [`forward`](Self::forward); all others are −∞.
    ///
    /// It reads the weights of these outputs only. Where it would save nothing (weights on a GPU, adapters)
    /// it is `forward`, with results for all outputs.
    ///
    /// # Shapes
    /// `x`: `[n_rows, n_inputs]`; the result: `[n_rows, n_outputs]`.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    ///
    /// # Example
    /// ```
    /// use breakers_linear::{OutputTiles, QuantizedLinear};
    /// use burn::tensor::{Device, Tensor};
    ///
    /// # fn main() -> Result<(), breakers_linear::Error> {
    /// let device = Device::flex();
    /// // Forty outputs, each its own number times the input.
    /// let weights: Vec<f32> = (0..40u8).map(f32::from).collect();
    /// let layer = QuantizedLinear::from_f32(40, 1, &weights, &device)?;
    /// let x = Tensor::<2>::from_data([[2.0f32]], &device);
    /// let out = layer.forward_tiles(x, &OutputTiles::from_words([1 << 20])).into_data();
    /// let out = out.try_to_vec::<f32>().unwrap();
    /// assert_eq!((out[20], out[0]), (40.0, f32::NEG_INFINITY));
    /// # Ok(())
    /// # }
    /// ```
    pub fn forward_tiles(&self, x: Tensor<2>, tiles: &OutputTiles) -> Tensor<2> {
        let [n_rows, n_cols] = x.dims();
        assert_eq!(n_cols, self.n_cols, "columns of the activations and inputs of the layer");
        let (Weights::Host(matrices), true, true) = (&self.weights, self.adapters.is_empty(), n_rows > 0)
        else {
            return self.forward(x);
        };
        let device = x.device();
        let x = match &self.rotation {
            Some(rotation) => rotation.forward(x),
            None => x,
        };
        let x = x.into_data().try_into_vec::<f32>().expect("activations on the CPU are floats");
        let mut out = vec![f32::NEG_INFINITY; n_rows * self.n_outputs];
        Activations::new(&x, n_cols)
            .and_then(|x| {
                let (tiles, out) = (Some(tiles.tiles()), product::as_uninit(&mut out));
                product::multiply_tiles(matrices, &x, tiles, out, self.n_outputs)
            })
            .expect("activations have as many columns as the matrices");
        Tensor::from_data(TensorData::new(out, [n_rows, self.n_outputs]), &device)
    }

    /// The product with the layer's own weights.
    fn product(&self, x: Tensor<2>) -> Tensor<2> {
        let x = match &self.rotation {
            Some(rotation) => rotation.forward(x),
            None => x,
        };
        match &self.weights {
            Weights::Host(matrices) => {
                Tensor::from_dispatch(Dispatch::quantized_linear(x.into_dispatch(), matrices.clone()))
            }
            Weights::Device { matrices, .. } => {
                let mut parts: Vec<_> = matrices.iter().map(|matrix| matrix.forward(x.clone())).collect();
                if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 1) }
            }
        }
    }

    /// Input features.
    pub fn n_inputs(&self) -> usize {
        self.n_cols
    }

    /// Output features of all matrices together.
    pub fn n_outputs(&self) -> usize {
        self.n_outputs
    }

    /// Bytes of weights and adapters, all of which a product reads once.
    pub fn bytes(&self) -> usize {
        let weights: usize = match &self.weights {
            Weights::Host(matrices) => matrices.iter().map(|matrix| matrix.bytes()).sum(),
            Weights::Device { matrices, .. } => matrices.iter().map(DeviceMatrix::bytes).sum(),
        };
        weights + self.adapters.iter().map(Adapter::bytes).sum::<usize>()
    }

    /// The packed matrices without adapters, if the weights are in the host's memory.
    pub fn matrices(&self) -> Option<&[Arc<PackedMatrix>]> {
        match &self.weights {
            Weights::Host(matrices) => Some(matrices),
            Weights::Device { .. } => None,
        }
    }
}

fn common_columns(mut columns: impl Iterator<Item = usize>) -> Result<usize> {
    let expected = columns.next().ok_or(Error::NoMatrices)?;
    match columns.find(|&found| found != expected) {
        Some(found) => Err(Error::Columns { expected, found }),
        None => Ok(expected),
    }
}

/// Multiplies rows of activations with matrices whose outputs are side by side, as [`QuantizedLinear`] does
/// on the CPU, but on slices.
///
/// # Shapes
/// `x`: `[n_x, n_cols]`; `out`: `n_x` rows of the matrices' rows together, `out_stride` apart.
///
/// # Errors
/// As [`PackedMatrix::matmul`].
pub fn matmul_parts(
    parts: &[Arc<PackedMatrix>],
    x: &Activations<'_>,
    out: &mut [f32],
    out_stride: usize,
) -> Result<()> {
    product::multiply(parts, x, product::as_uninit(out), out_stride)
}

/// A table of embeddings, whose rows are decoded on demand. Clones share the table.
///
/// # Example
/// ```
/// use breakers_gguf::{Format, QuantizedMatrix};
/// use breakers_linear::QuantizedEmbedding;
/// use burn::tensor::Device;
///
/// # fn main() -> Result<(), breakers_linear::Error> {
/// // Two embeddings of 32 values in Q8_0: a scale of 1 in half precision, then signed bytes.
/// let row = |value: i8| [&[0x00, 0x3c][..], &[value as u8; 32]].concat();
/// let table = QuantizedMatrix::from_bytes(Format::Q8_0, 2, 32, [row(1), row(-2)].concat())?;
/// let embedding = QuantizedEmbedding::from_quantized(&table)?;
/// assert_eq!((embedding.n_rows(), embedding.n_cols()), (2, 32));
/// assert_eq!(embedding.lookup(&[1, 1, 0], &Device::flex())?.dims(), [3, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct QuantizedEmbedding {
    table: Table,
}

#[derive(Debug, Clone)]
enum Table {
    /// Shared with the head.
    Packed(Arc<PackedMatrix>),
    /// In the mapped file.
    Mapped(SharedTensor),
}

impl QuantizedEmbedding {
    /// A separate table, which stays in the mapped file; only rows that are used become resident.
    ///
    /// # Errors
    /// [`Error::Backend`] for a device without kernels.
    pub fn new(view: TensorView<'_>, device: &Device) -> Result<Self> {
        device::require(device)?;
        Ok(Self { table: Table::Mapped(view.to_shared()) })
    }

    /// The table that a tied head shares.
    ///
    /// # Errors
    /// [`Error::ManyMatrices`] when the layer is over several matrices, or on a GPU over none from a file.
    pub fn from_linear(head: &QuantizedLinear) -> Result<Self> {
        let table = match &head.weights {
            Weights::Host(matrices) => only(matrices).cloned().map(Table::Packed),
            Weights::Device { sources, .. } => only(sources).cloned().map(Table::Mapped),
        };
        Ok(Self { table: table? })
    }

    /// Number of embeddings.
    pub fn n_rows(&self) -> usize {
        match &self.table {
            Table::Packed(matrix) => matrix.n_rows(),
            Table::Mapped(tensor) => tensor.view().n_rows(),
        }
    }

    /// Values of an embedding.
    pub fn n_cols(&self) -> usize {
        match &self.table {
            Table::Packed(matrix) => matrix.n_cols(),
            Table::Mapped(tensor) => tensor.view().n_cols(),
        }
    }

    /// A table from a quantized matrix, in its own memory.
    ///
    /// # Errors
    /// [`Error::InputBasis`] for a matrix for divided or rotated inputs, and as
    /// [`PackedMatrix::from_quantized`].
    pub fn from_quantized(table: &QuantizedMatrix) -> Result<Self> {
        if table.input_scales().is_some() || table.rotation_seed().is_some() {
            return Err(Error::InputBasis);
        }
        Ok(Self { table: Table::Packed(Arc::new(PackedMatrix::from_quantized(table)?)) })
    }

    /// The embeddings of `ids`, on a device.
    ///
    /// # Shapes
    /// `[ids.len(), n_cols]`
    ///
    /// # Errors
    /// [`Error::RowIndex`] when an id is beyond the table.
    pub fn lookup(&self, ids: &[u32], device: &Device) -> Result<Tensor<2>> {
        let (n_rows, n_cols) = (self.n_rows(), self.n_cols());
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= n_rows) {
            return Err(Error::RowIndex { n_rows, found: id as usize });
        }
        let mut values = vec![0.0; ids.len() * n_cols];
        pool::parallel_chunks_mut(&mut values, TASK_ROWS * n_cols, |start, rows| {
            for (row, &id) in rows.chunks_exact_mut(n_cols).zip(&ids[start / n_cols..]) {
                // The ids were checked, and the rows are `n_cols` long.
                let decoded = self.decode_row(id as usize, row);
                debug_assert!(decoded.is_ok(), "{decoded:?}");
            }
        });
        Ok(Tensor::from_data(TensorData::new(values, [ids.len(), n_cols]), device))
    }

    fn decode_row(&self, row_idx: usize, out: &mut [f32]) -> Result<()> {
        match &self.table {
            Table::Packed(matrix) => matrix.decode_row(row_idx, out),
            Table::Mapped(tensor) => {
                let view = tensor.view();
                let row = view
                    .row(row_idx)
                    .ok_or_else(|| Error::RowIndex { n_rows: view.n_rows(), found: row_idx })?;
                Ok(view.format().decode_row(row, out)?)
            }
        }
    }
}

fn only<T>(items: &[T]) -> Result<&T> {
    match items {
        [item] => Ok(item),
        _ => Err(Error::ManyMatrices { found: items.len() }),
    }
}
