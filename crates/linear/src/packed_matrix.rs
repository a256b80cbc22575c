//! Weights repacked for the CPU kernels, and their product with activations.

use crate::{
    Error, Result,
    kernels::{
        BLOCK, Codes, Layout, TILE, Tile, decode_block,
        group::{GroupLayout, with_group_codes},
        tile_bytes, with_codes,
    },
    product,
    repack::{pack_group_tile, pack_tile},
};
use breakers_cpu::{
    self as cpu,
    activations::QuantizedActivations,
    pool::{self, DisjointMut},
};
use breakers_gguf::{Encoding, Format, GroupMatrix, Parts, QuantizedMatrix, TensorView};
use memmap2::MmapMut;
use std::{ops::Range, sync::OnceLock};

/// Alignment of the parts of a matrix: a cache line, and the widest register.
const LINE: usize = 64;

/// The fewest bytes of packed weights that a task of the pool produces.
const TASK_BYTES: usize = 256 * 1024;

/// Bytes of a file that are repacked before its pages are freed, so that weights are not in memory twice.
const SLAB_BYTES: usize = 16 * 1024 * 1024;

/// A weight matrix in its own memory, laid out so that a product reads it once from front to back.
///
/// # Shapes
/// `[n_rows, n_cols]`: a row holds the weights of one output feature.
///
/// # Memory
/// As many bytes as in the GGUF file. Because six-bit scales are widened to bytes, Q4_K takes 2.8 %, Q5_K 2.3
/// % and Q3_K 3.6 % more. The number of rows is rounded up to a multiple of sixteen. Of our own formats, NF4
/// takes 4.25 bits per weight and NVFP4 4.56. In addition to their codes, integers of up to four bits take
/// half a bit per weight (one bit with offsets) in groups of 32, and less in groups of up to 128; larger
/// integers take half a bit or one bit in any group (and seven-bit codes are stored in eight).
///
/// # Example
/// ```
/// use breakers_linear::{Activations, PackedMatrix};
///
/// # fn main() -> Result<(), breakers_linear::Error> {
/// let weights = PackedMatrix::from_f32(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// let mut out = [0.0; 2];
/// weights.matmul(&Activations::new(&[1.0, 0.0, -1.0], 3)?, &mut out, 2)?;
/// assert_eq!(out, [-2.0, -2.0]);
/// # Ok(())
/// # }
/// ```
pub struct PackedMatrix {
    encoding: Encoding,
    layout: Layout,
    n_rows: usize,
    n_cols: usize,
    /// All tiles' codes (or floats), then all tiles' scales.
    storage: MmapMut,
    code_bytes: usize,
    scale_bytes: usize,
    scales_start: usize,
}

impl PackedMatrix {
    /// Repacks a tensor of a GGUF file, on all threads of the pool. The file's pages leave resident memory
    /// once they are copied; see [`TensorView::advise_done`].
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes).
    pub fn from_gguf(view: &TensorView<'_>) -> Result<Self> {
        let done = |range| view.advise_done_with(range);
        Self::pack(view.format(), view.n_rows(), view.n_cols(), view.bytes(), done)
    }

    /// Repacks rows of GGUF blocks, on all threads of the pool.
    ///
    /// # Errors
    /// [`Error::Gguf`] when a row is not whole blocks, [`Error::Length`] when the number of bytes does not
    /// match the rows, [`Error::OutOfMemory`] when the system has no memory for the matrix.
    pub fn from_bytes(format: Format, n_rows: usize, n_cols: usize, bytes: &[u8]) -> Result<Self> {
        Self::pack(format, n_rows, n_cols, bytes, |_| ())
    }

    /// `done` is called with the bytes that are no longer needed.
    fn pack(
        format: Format,
        n_rows: usize,
        n_cols: usize,
        bytes: &[u8],
        done: impl Fn(Range<usize>),
    ) -> Result<Self> {
        let row_bytes = format.row_bytes(n_cols)?;
        let expected = row_bytes.checked_mul(n_rows);
        if expected != Some(bytes.len()) {
            return Err(Error::Length {
                what: "bytes of a matrix",
                expected: expected.unwrap_or(usize::MAX),
                found: bytes.len(),
            });
        }
        let mut matrix = Self::zeroed(Encoding::Gguf(format), Layout::Gguf(format), n_rows, n_cols)?;
        let slab_rows = (SLAB_BYTES / row_bytes.max(1)).max(1).next_multiple_of(TILE);
        for first_row in (0..n_rows).step_by(slab_rows) {
            let range = first_row * row_bytes..n_rows.min(first_row + slab_rows) * row_bytes;
            matrix.pack_rows(format, first_row / TILE, &bytes[range.clone()], row_bytes);
            done(range);
        }
        Ok(matrix)
    }

    /// Packs rows of plain numbers, without quantizing them.
    ///
    /// # Errors
    /// [`Error::Length`] when `values` holds more or fewer than the rows, [`Error::OutOfMemory`].
    pub fn from_f32(n_rows: usize, n_cols: usize, values: &[f32]) -> Result<Self> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::from_bytes(Format::F32, n_rows, n_cols, &bytes)
    }

    /// Packs the stored weights of a quantized matrix. They apply to inputs that were divided by
    /// [`QuantizedMatrix::input_scales`] and then rotated by [`QuantizedMatrix::rotation`], if there are any.
    ///
    /// # Errors
    /// [`Error::NoProduct`] for groups that are not whole blocks of 32 columns, [`Error::OutOfMemory`].
    pub fn from_quantized(matrix: &QuantizedMatrix) -> Result<Self> {
        match matrix.parts() {
            Parts::Blocks(format, bytes) => Self::from_bytes(format, matrix.n_rows(), matrix.n_cols(), bytes),
            Parts::Groups(groups) => Self::from_groups(groups),
        }
    }

    /// Packs a matrix of one of our own formats.
    fn from_groups(groups: &GroupMatrix) -> Result<Self> {
        let (n_rows, n_cols) = (groups.n_rows(), groups.n_cols());
        let layout = GroupLayout::of(groups.format(), n_cols)?;
        let encoding = Encoding::Groups(groups.format());
        let mut matrix = Self::zeroed(encoding, Layout::Group(layout), n_rows, n_cols)?;
        let (code_bytes, scale_bytes) = (matrix.code_bytes, matrix.scale_bytes);
        let (codes, scales) = matrix.storage.split_at_mut(matrix.scales_start);
        let (codes, scales) = (DisjointMut::new(codes), DisjointMut::new(scales));
        pool::parallel_for(n_rows.div_ceil(TILE), |tile| {
            // SAFETY: tiles do not overlap, and each belongs to one task.
            let (codes, scales) = unsafe {
                (
                    codes.slice_mut(tile * code_bytes..(tile + 1) * code_bytes),
                    scales.slice_mut(tile * scale_bytes..(tile + 1) * scale_bytes),
                )
            };
            pack_group_tile(layout, groups, tile * TILE, codes, scales);
        });
        Ok(matrix)
    }

    fn zeroed(encoding: Encoding, layout: Layout, n_rows: usize, n_cols: usize) -> Result<Self> {
        let n_tiles = n_rows.div_ceil(TILE);
        let (code_bytes, scale_bytes) = tile_bytes(layout, n_cols);
        let total = code_bytes.checked_mul(n_tiles).and_then(|codes| {
            let scales_start = codes.checked_next_multiple_of(LINE)?;
            Some((scales_start, scales_start.checked_add(scale_bytes.checked_mul(n_tiles)?)?))
        });
        let too_much = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        let (scales_start, n_bytes) =
            total.ok_or_else(|| Error::OutOfMemory { n_bytes: usize::MAX, source: too_much() })?;
        // Fresh pages are zero, so the padding rows of the last tile are zero.
        let storage =
            MmapMut::map_anon(n_bytes.max(1)).map_err(|source| Error::OutOfMemory { n_bytes, source })?;
        #[cfg(target_os = "linux")]
        if let Err(error) = storage.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "weights do without huge pages");
        }
        Ok(Self { encoding, layout, n_rows, n_cols, storage, code_bytes, scale_bytes, scales_start })
    }

    /// Packs whole rows into tiles from the `first_tile`-th on.
    fn pack_rows(&mut self, format: Format, first_tile: usize, bytes: &[u8], row_bytes: usize) {
        let (code_bytes, scale_bytes) = (self.code_bytes, self.scale_bytes);
        let n_rows = bytes.len().checked_div(row_bytes).unwrap_or(0);
        let (isa, n_tiles) = (cpu::isa(), n_rows.div_ceil(TILE));
        let tiles_per_task = (TASK_BYTES / (code_bytes + scale_bytes).max(1)).max(1);
        let (codes, scales) = self.storage.split_at_mut(self.scales_start);
        let codes = DisjointMut::new(&mut codes[first_tile * code_bytes..]);
        let scales = DisjointMut::new(&mut scales[first_tile * scale_bytes..]);
        pool::parallel_for(n_tiles.div_ceil(tiles_per_task), |task| {
            for tile in task * tiles_per_task..n_tiles.min((task + 1) * tiles_per_task) {
                let rows = &bytes[tile * TILE * row_bytes..bytes.len().min((tile + 1) * TILE * row_bytes)];
                // SAFETY: tiles do not overlap, and each belongs to one task.
                let (codes, scales) = unsafe {
                    (
                        codes.slice_mut(tile * code_bytes..(tile + 1) * code_bytes),
                        scales.slice_mut(tile * scale_bytes..(tile + 1) * scale_bytes),
                    )
                };
                pack_tile(format, isa, rows, row_bytes, codes, scales);
            }
        });
    }

    /// Output features.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Input features.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The original format of the weights.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Bytes of memory that the weights take; a product reads all of them once.
    pub fn bytes(&self) -> usize {
        self.storage.len()
    }

    pub(crate) fn n_tiles(&self) -> usize {
        self.n_rows.div_ceil(TILE)
    }

    /// A tile; see [`Tile::is_cold`].
    pub(crate) fn tile(&self, tile_idx: usize, is_cold: bool) -> Tile<'_> {
        let codes = &self.storage[tile_idx * self.code_bytes..][..self.code_bytes];
        let scales = &self.storage[self.scales_start + tile_idx * self.scale_bytes..][..self.scale_bytes];
        Tile { codes, scales, is_cold }
    }

    /// Decodes one row, with the bits that [`Format::decode_row`] gives for the row it was packed from.
    /// (NF4's levels are rounded to 127ths, as in the product.)
    ///
    /// # Errors
    /// [`Error::RowIndex`] when there is no such row, [`Error::Length`] when `out` is not `n_cols` long.
    pub fn decode_row(&self, row_idx: usize, out: &mut [f32]) -> Result<()> {
        if row_idx >= self.n_rows {
            return Err(Error::RowIndex { n_rows: self.n_rows, found: row_idx });
        }
        if out.len() != self.n_cols {
            let (expected, found) = (self.n_cols, out.len());
            return Err(Error::Length { what: "values of a row", expected, found });
        }
        let (tile, lane) = (self.tile(row_idx / TILE, false), row_idx % TILE);
        let format = match self.layout {
            Layout::Gguf(format) => format,
            Layout::Group(layout) => {
                with_group_codes!(layout, C => decode_blocks::<C>(tile, lane, out));
                return Ok(());
            }
        };
        with_codes!(
            format,
            C => decode_blocks::<C>(tile, lane, out),
            else {
                let width = format.block_bytes();
                for (line, out) in tile.codes.chunks_exact(TILE * width).zip(out) {
                    let number = &line[lane * width..][..width];
                    format.decode_row(number, std::slice::from_mut(out))?;
                }
            }
        );
        Ok(())
    }

    /// Multiplies rows of activations with the matrix:
    /// `out[r * out_stride + o] = sum over k of x[r, k] * w[o, k]`.
    ///
    /// For integer formats activations are quantized to signed bytes with a scale per block of 32; for
    /// floating-point formats they are used unchanged. A result does not depend on the number of rows in the
    /// call, on the number of threads or on the instruction set.
    ///
    /// # Shapes
    /// `x`: `[n_x, n_cols]`; `out`: `n_x` rows of `n_rows` results, `out_stride` apart.
    ///
    /// # Errors
    /// [`Error::Columns`] when `x` does not have `n_cols` columns, [`Error::Length`] when `out` is too short
    /// or `out_stride` less than a row.
    pub fn matmul(&self, x: &Activations<'_>, out: &mut [f32], out_stride: usize) -> Result<()> {
        product::multiply(&[self], x, product::as_uninit(out), out_stride)
    }
}

fn decode_blocks<C: Codes>(tile: Tile<'_>, lane: usize, out: &mut [f32]) {
    for (block, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        decode_block::<C>(tile, block, lane, out);
    }
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedMatrix({} [{}, {}])", self.encoding.name(), self.n_rows, self.n_cols)
    }
}

/// Rows of activations, and their quantized form once a product needs it.
///
/// # Example
/// ```
/// use breakers_linear::Activations;
///
/// let x = Activations::new(&[0.5; 64], 32).unwrap();
/// assert_eq!((x.n_rows(), x.n_cols()), (2, 32));
/// ```
#[derive(Debug)]
pub struct Activations<'a> {
    values: &'a [f32],
    n_rows: usize,
    n_cols: usize,
    quantized: OnceLock<QuantizedActivations>,
}

impl<'a> Activations<'a> {
    /// # Shapes
    /// `values`: `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// [`Error::Length`] when `values` are not whole rows.
    pub fn new(values: &'a [f32], n_cols: usize) -> Result<Self> {
        let n_rows = values.len().checked_div(n_cols).unwrap_or(0);
        if n_rows * n_cols != values.len() {
            let (expected, found) = ((n_rows + 1) * n_cols, values.len());
            return Err(Error::Length { what: "activations", expected, found });
        }
        Ok(Self { values, n_rows, n_cols, quantized: OnceLock::new() })
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Values in a row.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The values as they were given.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// The quantized form, computed on the first call.
    ///
    /// # Errors
    /// [`Error::Backend`] when rows are not whole blocks of 32.
    pub fn quantized(&self) -> Result<&QuantizedActivations> {
        if let Some(quantized) = self.quantized.get() {
            return Ok(quantized);
        }
        let quantized = QuantizedActivations::quantize(self.values, self.n_cols)?;
        Ok(self.quantized.get_or_init(|| quantized))
    }
}
