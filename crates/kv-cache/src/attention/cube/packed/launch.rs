//! Calls of the GPU kernels.

use std::ops::Range;

use breakers_backend::cube::cube_per_row;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::IntTensorOps;
use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::prelude::{CubeCount, CubeDim};

use super::join::{join_kernel, turn_kernel};
use super::{MARKS, MAX_TILE, PART, SPAN, packed_kernel};
use crate::attention::cube::online::UNITS;
use crate::pages::packed::TABLE;
use crate::pages::packed::device::format::Spec;
use crate::pages::packed::device::words::SPLIT_PAGES;
use crate::pages::page::PAGE_TOKENS;
use crate::{Error, Result};

/// Bytes of shared memory that every device has.
const SHARED_BYTES: usize = 16 << 10;
/// The most numbers in all parts at once: with more, rows are processed in several launches.
const MAX_PARTS: usize = 8 << 20;

/// Cubes along one axis that every device accepts.
const MAX_CUBES: usize = 65_535;

/// Attention of some rows over one layer.
pub(crate) struct Job<'a> {
    pub(crate) spec: Spec,
    pub(crate) n_kv_heads: usize,
    pub(crate) meta: &'a Tensor<1, Int>,
    pub(crate) tables: &'a Tensor<1>,
    /// Pieces of packed pages: the first one's number, the one after the last, and the words.
    pub(crate) pieces: Vec<(usize, usize, &'a Tensor<1, Int>)>,
    /// Keys and values of the plain slots.
    pub(crate) tail: &'a [Tensor<3>; 2],
    pub(crate) base: usize,
    pub(crate) n_exact: usize,
    /// `[n_rows, n_heads, head_dim]`
    pub(crate) q: Tensor<3>,
    /// Queries as the codes of keys need them, `[n_rows, n_heads, n_coded]`.
    pub(crate) coded: Tensor<3>,
    /// For each row its first slot, the one after the last that it sees packed, and the one after its last.
    pub(crate) rows: &'a [[usize; SPAN]],
    /// In a tree, the slot of the step's first row and the rows' paths.
    pub(crate) paths: Option<(usize, &'a [Vec<usize>])>,
    pub(crate) scale: f32,
}

/// The tensor on its GPU.
fn primitive(name: &'static str, tensor: Tensor<3>) -> Result<CubeTensor> {
    let device = tensor.device();
    tensor.try_into_primitive::<CubeBackend>().map_err(|_| wrong_device(name, &device))
}

fn words(tensor: Tensor<1, Int>) -> Result<CubeTensor> {
    let device = tensor.device();
    tensor.try_into_primitive::<CubeBackend>().map_err(|_| wrong_device("words", &device))
}

fn wrong_device(tensor: &'static str, device: &Device) -> Error {
    Error::Device { tensor, expected: "a GPU".to_owned(), found: format!("{device:?}") }
}

fn floats(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(if tensor.dtype == DType::F32 { tensor } else { cast(tensor, DType::F32) })
}

/// Every vector of `[n_rows, n_heads, dim]` times a matrix `[dim, n_columns]`.
pub(crate) fn turn(x: Tensor<3>, matrix: &Tensor<2>) -> Result<Tensor<3>> {
    let ([n_rows, n_heads, dim], [_, n_columns]) = (x.dims(), matrix.dims());
    let device = x.device();
    let x = floats(primitive("x", x)?);
    let matrix = matrix.clone().try_into_primitive::<CubeBackend>();
    let matrix = matrix.map_err(|_| wrong_device("matrix", &device))?;
    let client = x.client.clone();
    let shape = Shape::new([n_rows, n_heads, n_columns]);
    let out = empty_device_contiguous_dtype(client.clone(), x.device.clone(), shape, DType::F32);
    // SAFETY: the matrix has as many rows as a vector has elements; the kernel limits all
    // positions to the shapes.
    unsafe {
        turn_kernel::launch_unchecked(
            &client,
            cube_per_row(n_rows * n_heads),
            CubeDim::new_1d(UNITS as u32),
            x.into_tensor_arg(),
            matrix.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            dim,
            n_columns,
        );
    }
    Ok(Tensor::from_primitive::<CubeBackend>(out))
}

impl Spec {
    /// 32-bit numbers of shared memory that a cube needs for a tile of this many queries.
    fn shared(&self, tile: usize) -> usize {
        let scales = self.value_groups * PAGE_TOKENS * if self.value_offsets { 2 } else { 1 };
        let steps = 2 * self.n_sets * self.n_coded;
        tile * (self.n_coded + UNITS) + MAX_TILE * PART + self.n_tables * TABLE + steps + scales
    }

    /// Queries of a tile, so that `n` of them fill all tiles about evenly.
    fn tile(&self, n: usize) -> usize {
        let fits = |tile: &usize| self.shared(*tile) * size_of::<f32>() <= SHARED_BYTES;
        let most = (1..=MAX_TILE).rev().find(fits).unwrap_or(1);
        n.div_ceil(n.div_ceil(most))
    }
}

impl Job<'_> {
    /// The result, `[n_rows, n_heads * head_dim]`.
    pub(crate) fn run(self) -> Result<Tensor<2>> {
        let [n_rows, n_heads, head_dim] = self.q.dims();
        let (q, coded) = (primitive("q", self.q.clone())?, primitive("q", self.coded.clone())?);
        let (client, device) = (q.client.clone(), q.device.clone());
        let [k, v] = self.tail.clone().map(|tensor| primitive("k", tensor).map(into_contiguous));
        let (k, v) = (k?, v?);
        let (q, coded) = (floats(q), floats(coded));
        let dtype = dtype_to_storage_type(k.dtype);
        let table = self.seen();
        let seen = CubeBackend::int_from_data(table, &device);
        let shape = Shape::new([n_rows, n_heads * head_dim]);
        let out = empty_device_contiguous_dtype(client.clone(), device.clone(), shape, DType::F32);
        let (prefix, is_tree) = self.paths.map_or((0, false), |paths| (paths.0, true));

        let splits = |rows: &[[usize; SPAN]]| {
            let size = SPLIT_PAGES * PAGE_TOKENS;
            let first = rows.iter().map(|row| row[0]).min().unwrap_or(0) / size;
            first..rows.iter().map(|row| row[1]).max().unwrap_or(0).div_ceil(size).max(first)
        };
        let part = n_heads * (head_dim + MARKS);
        let fit = MAX_PARTS / (splits(self.rows).len().max(1) * part);
        let per_turn = fit.min(MAX_CUBES / n_heads).max(1);
        for first_row in (0..n_rows).step_by(per_turn) {
            let rows = first_row..n_rows.min(first_row + per_turn);
            let splits = splits(&self.rows[rows.clone()]);
            let n = (splits.len() * rows.len() * part).max(1);
            let parts =
                empty_device_contiguous_dtype(client.clone(), device.clone(), Shape::new([n]), DType::F32);
            self.launch_packed(&coded, &seen, &parts, first_row, rows.len(), splits.clone())?;
            // SAFETY: slots are limited by the spans, which end where the tail does; parts were written for
            // all rows and splits that a row sees. Loops end.
            unsafe {
                join_kernel::launch_unchecked(
                    &client,
                    cube_per_row(rows.len() * n_heads),
                    CubeDim::new_1d(UNITS as u32),
                    q.clone().into_tensor_arg(),
                    k.clone().into_tensor_arg(),
                    v.clone().into_tensor_arg(),
                    seen.clone().into_tensor_arg(),
                    parts.into_tensor_arg(),
                    out.clone().into_tensor_arg(),
                    first_row as u32,
                    rows.len() as u32,
                    splits.start as u32,
                    prefix as u32,
                    self.base as u32,
                    self.n_exact as u32,
                    self.scale,
                    head_dim,
                    is_tree,
                    dtype,
                );
            }
        }
        Ok(Tensor::from_primitive::<CubeBackend>(out))
    }

    /// Computes the parts of `n_rows` rows, `[n_splits, n_rows, n_heads, head_dim + 2]`.
    fn launch_packed(
        &self,
        coded: &CubeTensor,
        seen: &CubeTensor,
        parts: &CubeTensor,
        first_row: usize,
        n_rows: usize,
        splits: Range<usize>,
    ) -> Result<()> {
        let group = self.q.dims()[1] / self.n_kv_heads;
        let tile = self.spec.tile(n_rows * group);
        let n_tiles = (n_rows * group).div_ceil(tile);
        let meta = words(self.meta.clone())?;
        let tables = self.tables.clone().try_into_primitive::<CubeBackend>();
        let tables = tables.map_err(|_| wrong_device("tables", &self.q.device()))?;
        for (first_page, end_page, piece) in &self.pieces {
            let from = splits.start.max(first_page / SPLIT_PAGES);
            let to = splits.end.min(end_page.div_ceil(SPLIT_PAGES));
            if from >= to {
                continue;
            }
            // SAFETY: the packed pages that rows see exist, in pieces that exist; a region's places are those
            // of the format, and after a piece there are words for units that look too far. Loops end.
            unsafe {
                packed_kernel::launch_unchecked(
                    &coded.client,
                    CubeCount::Static((n_tiles * self.n_kv_heads) as u32, (to - from) as u32, 1),
                    CubeDim::new_1d(UNITS as u32),
                    coded.clone().into_tensor_arg(),
                    words((*piece).clone())?.into_tensor_arg(),
                    meta.clone().into_tensor_arg(),
                    tables.clone().into_tensor_arg(),
                    seen.clone().into_tensor_arg(),
                    parts.clone().into_tensor_arg(),
                    *first_page as u32,
                    from as u32,
                    splits.start as u32,
                    first_row as u32,
                    n_rows as u32,
                    self.n_kv_heads as u32,
                    self.n_exact as u32,
                    self.scale,
                    tile,
                    self.spec,
                );
            }
        }
        Ok(())
    }

    /// For each row what it sees, and in a tree its path: `[n_rows, 3 + length of the longest path]`.
    fn seen(&self) -> TensorData {
        let paths = self.paths.map(|(_, paths)| paths);
        let longest = paths.map_or(0, |paths| paths.iter().map(Vec::len).max().unwrap_or(0));
        let width = SPAN + longest;
        let mut table = Vec::with_capacity(self.rows.len() * width);
        for (row, span) in self.rows.iter().enumerate() {
            table.extend(span.map(|slot| slot as i32));
            table.extend(paths.iter().flat_map(|paths| &paths[row]).map(|&at| at as i32));
            table.resize((row + 1) * width, 0);
        }
        TensorData::new(table, [self.rows.len(), width])
    }
}
