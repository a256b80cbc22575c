//! Exact search on a device: the device finds the nearest of each block, over 16-bit floats, and the host
//! joins the results.
//!
//! A device sums in an order of its own. If two vectors are almost equally near, its k-th nearest may
//! therefore not be the one that the CPU's arithmetic finds. But the error of its sums has a known bound:
//! vectors that are within this bound of the k-th are compared again on the host, and a block that may hold
//! more of them is scanned there. So the result is that of a plain scan over the same 16-bit values, in this
//! crate's arithmetic.
//!
//! # Memory
//! 2 bytes a coordinate on the device and on the host, and 4 a vector.

#[cfg(feature = "cube")]
mod cube;
mod ops;
#[cfg(test)]
mod tests;

use super::{MAX_SLOTS, Neighbor, TopK};
use crate::{
    Error, MAX_MAGNITUDE, Metric, Result,
    distance::norm_squared,
    metric::{check_dimension, check_length},
};
use breakers_backend::device;
use burn::{
    backend::Dispatch,
    tensor::{DType, Device, Tensor, TensorData},
};
use half::{f16, slice::HalfFloatSliceExt as _};
use ops::BLOCK;
pub use ops::NearestOps;

/// The value of places that hold no vector: farther than any vector.
const NOWHERE: f32 = 1e37;
/// Candidates of a block beyond the `k` wanted: with them, nearly equal distances seldom make another scan
/// necessary.
const SPARE: usize = 4;
/// Queries that go to the device at a time.
const BATCH: usize = 64;

/// Vectors in 16-bit floats on a device.
#[derive(Debug)]
pub struct DeviceScan {
    metric: Metric,
    dimension: usize,
    /// `[n, dimension]`
    rows: Vec<f16>,
    n: usize,
    /// The greatest length of a vector.
    longest: f32,
    pieces: Vec<Piece>,
    device: Device,
}

/// As many blocks as one buffer of the device takes.
#[derive(Debug)]
struct Piece {
    first_block: usize,
    base: Tensor<3>,
    offsets: Tensor<2>,
}

impl DeviceScan {
    /// Copies vectors to a device. If the device has no 16-bit floats, it stores the rounded values in 32
    /// bits.
    ///
    /// # Errors
    /// Those of [`Metric::prepare`] for the vectors, [`Error::NotFinite`] also for a number beyond the
    /// largest 16-bit float, 65,504; [`Error::DimensionRange`], [`Error::Full`], [`Error::Backend`] for a
    /// device that has no kernels.
    pub fn new<'a>(
        metric: Metric,
        dimension: usize,
        vectors: impl IntoIterator<Item = &'a [f32]>,
        device: &Device,
    ) -> Result<Self> {
        check_dimension(dimension)?;
        device::require(device)?;
        let (mut rows, mut prepared, mut longest) = (Vec::new(), Vec::new(), 0.0f32);
        for vector in vectors {
            check_length("the vector", vector, dimension)?;
            prepared.clear();
            prepared.extend_from_slice(vector);
            metric.prepare("the vector", &mut prepared)?;
            let limit = f16::MAX.to_f32();
            if let Some(index) = prepared.iter().position(|x| x.abs() > limit) {
                let value = prepared[index];
                return Err(Error::NotFinite { what: "the vector in 16 bits", index, value, max: limit });
            }
            // Devices may take subnormal numbers for zero.
            let normal = |x: f16| if x.is_normal() { x } else { f16::ZERO };
            rows.extend(prepared.iter().map(|&x| normal(f16::from_f32(x))));
            rows[rows.len() - dimension..].convert_to_f32_slice(&mut prepared);
            longest = longest.max(norm_squared(&prepared).sqrt());
        }
        let n = rows.len() / dimension;
        if n > MAX_SLOTS {
            return Err(Error::Full { max: MAX_SLOTS });
        }
        let (device, pieces) = (device.clone(), Vec::new());
        let mut scan = Self { metric, dimension, rows, n, longest, pieces, device };
        scan.upload();
        Ok(scan)
    }

    fn upload(&mut self) {
        let half = self.device.supports_dtype(DType::F16);
        let block_bytes = self.dimension * BLOCK * if half { 2 } else { 4 };
        // Positions of a piece, and of its results, are computed in 32 bits.
        let positions = (u32::MAX as usize / 2) / (self.dimension * BLOCK);
        let most = (device::max_buffer_bytes(&self.device) / block_bytes).min(positions).clamp(1, 1 << 14);
        let n_blocks = self.n.div_ceil(BLOCK);
        for first_block in (0..n_blocks).step_by(most) {
            let blocks = first_block..n_blocks.min(first_block + most);
            let n = blocks.len();
            let mut base = vec![f16::ZERO; n * self.dimension * BLOCK];
            let mut offsets = vec![NOWHERE; n * BLOCK];
            let mut row = vec![0.0; self.dimension];
            for slot in first_block * BLOCK..self.n.min(blocks.end * BLOCK) {
                let (block, column) = (slot / BLOCK - first_block, slot % BLOCK);
                let values = &self.rows[slot * self.dimension..][..self.dimension];
                for (i, &x) in values.iter().enumerate() {
                    base[(block * self.dimension + i) * BLOCK + column] = x;
                }
                values.convert_to_f32_slice(&mut row);
                offsets[block * BLOCK + column] = match self.metric {
                    Metric::L2 => norm_squared(&row) / 2.0,
                    _ => 0.0,
                };
            }
            let base = if half {
                let base = TensorData::new(base, [n, self.dimension, BLOCK]);
                Tensor::from_data(base, (&self.device, DType::F16))
            } else {
                let base = TensorData::new(base.to_f32_vec(), [n, self.dimension, BLOCK]);
                Tensor::from_data(base, (&self.device, DType::F32))
            };
            let offsets = Tensor::from_data(TensorData::new(offsets, [n, BLOCK]), (&self.device, DType::F32));
            self.pieces.push(Piece { first_block, base, offsets });
        }
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        let element = |tensor: &Tensor<3>| if tensor.dtype() == DType::F16 { 2 } else { 4 };
        let piece = |p: &Piece| {
            p.base.shape().num_elements() * element(&p.base) + p.offsets.shape().num_elements() * 4
        };
        self.pieces.iter().map(piece).sum()
    }

    /// The nearest `k` of each query by the 16-bit values, nearest first; of equally near ones those of lower
    /// slots. A vector's slot is its position in the order in which the vectors were given.
    ///
    /// # Shapes
    /// - `queries`: `[n_queries, dimension]`
    /// - result: `[n_queries]`, of `k` neighbors each, or all if there are fewer
    ///
    /// # Errors
    /// Those of [`Metric::prepare`] for the queries, and [`Error::Dimension`].
    pub fn search(&self, queries: &[&[f32]], k: usize) -> Result<Vec<Vec<Neighbor>>> {
        let mut prepared = Vec::with_capacity(queries.len() * self.dimension);
        for query in queries {
            check_length("the query", query, self.dimension)?;
            let start = prepared.len();
            prepared.extend_from_slice(query);
            self.metric.prepare("the query", &mut prepared[start..])?;
        }
        let (k, mut results) = (k.min(self.n), Vec::with_capacity(queries.len()));
        if k == 0 {
            return Ok(vec![Vec::new(); queries.len()]);
        }
        for batch in prepared.chunks(BATCH * self.dimension) {
            // More than a block holds is all of it.
            let wide = (k + SPARE).min(BLOCK);
            let n_queries = batch.len() / self.dimension;
            let tensor = TensorData::new(batch.to_vec(), [n_queries, self.dimension]);
            let tensor = Tensor::<2>::from_data(tensor, (&self.device, DType::F32));
            let mut found = Vec::with_capacity(self.pieces.len());
            for piece in &self.pieces {
                let (base, offsets) = (piece.base.clone(), piece.offsets.clone());
                found.push(device::read(nearest_of_blocks(base, offsets, tensor.clone(), wide))?);
            }
            for (at, query) in batch.chunks_exact(self.dimension).enumerate() {
                results.push(self.join(query, at, &found, k, wide));
            }
        }
        Ok(results)
    }

    /// The nearest of one query out of what the device found for each block,
    /// `[n_queries, n_blocks, wide, 2]` of each piece.
    fn join(&self, query: &[f32], at: usize, found: &[Vec<f32>], k: usize, wide: usize) -> Vec<Neighbor> {
        let blocks = || {
            self.pieces.iter().zip(found).flat_map(move |(piece, found)| {
                let n = piece.base.dims()[0];
                let lists = found[at * n * wide * 2..][..n * wide * 2].chunks_exact(wide * 2);
                (piece.first_block..).zip(lists.map(|list| list.as_chunks::<2>().0))
            })
        };
        let mut best = TopK::new(k);
        for (block, list) in blocks() {
            let here = list.iter().take_while(|[value, _]| *value < NOWHERE / 2.0);
            here.for_each(|[value, column]| best.push((block * BLOCK) as u32 + *column as u32, *value));
        }
        let bound = best.bound() + 2.0 * self.error(query);
        let (mut top, mut row) = (TopK::new(k), vec![0.0; self.dimension]);
        let mut compare = |slot: usize| {
            self.rows[slot * self.dimension..][..self.dimension].convert_to_f32_slice(&mut row);
            top.push(slot as u32, self.metric.distance(query, &row));
        };
        for (block, list) in blocks() {
            let end = self.n.min((block + 1) * BLOCK);
            // The whole list is within the bound, so there may be more in the block.
            if wide < BLOCK && list.last().is_some_and(|[value, _]| *value <= bound) {
                (block * BLOCK..end).for_each(&mut compare);
            } else {
                let open = list.iter().take_while(|[value, _]| *value <= bound);
                let slots = open.map(|[_, column]| block * BLOCK + *column as usize);
                slots.filter(|&slot| slot < end).for_each(&mut compare);
            }
        }
        top.into_neighbors()
    }

    /// How far a value of the device, and a distance of this crate, can each be off: a sum in any order of as
    /// many products as there are coordinates, and for L2 of squared differences.
    fn error(&self, query: &[f32]) -> f32 {
        let norm = norm_squared(query).sqrt();
        let lengths = match self.metric {
            Metric::L2 => (norm + self.longest) * (norm + self.longest),
            _ => norm * self.longest + 1.0,
        };
        2.0 * f32::EPSILON * (self.dimension as f32 + 16.0) * lengths.min(MAX_MAGNITUDE * MAX_MAGNITUDE)
    }
}

fn nearest_of_blocks(base: Tensor<3>, offsets: Tensor<2>, queries: Tensor<2>, k: usize) -> Tensor<4> {
    let (base, offsets, queries) = (base.into_dispatch(), offsets.into_dispatch(), queries.into_dispatch());
    Tensor::from_dispatch(<Dispatch as NearestOps>::nearest_of_blocks(base, offsets, queries, k))
}
