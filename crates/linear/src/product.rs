//! The product of activations with one or several matrices: checks, and and the division of the work into
//! tasks.

use crate::{
    Activations, Error, PackedMatrix, Result,
    kernels::{CodesKernel, FloatKernel, Outputs, TILE, codes_kernel, float_kernel},
};
use breakers_cpu::{
    self as cpu, Isa,
    activations::{PANEL_ROWS, QuantizedActivations},
    pool::{self, DisjointMut},
};
use std::{borrow::Borrow, mem::MaybeUninit};

/// A slice of numbers as a write-only slice.
pub(crate) fn as_uninit(values: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the layout is the same, and `multiply` writes nothing but numbers.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}

/// Bytes of activations that are multiplied with one tile after the other: half of a typical second-level
/// cache.
const GROUP_BYTES: usize = 512 * 1024;
/// Bytes of quantized activations per column.
const BYTES_PER_VALUE: f32 = 52.0 / 32.0;
/// Tasks per thread: several, so that a slow or late thread leaves work to the others.
const TASKS_PER_THREAD: usize = 8;

/// Multiplies activations with each of `parts`; the results of the parts stand side by side
/// in a row of `out`.
///
/// If it returns `Ok`, it has written all of each row, except for the gaps that `out_stride` leaves between
/// rows.
pub(crate) fn multiply<M: Borrow<PackedMatrix>>(
    parts: &[M],
    x: &Activations<'_>,
    out: &mut [MaybeUninit<f32>],
    out_stride: usize,
) -> Result<()> {
    multiply_tiles(parts, x, None, out, out_stride)
}

/// [`multiply`] for some tiles only, in ascending order and counted through all parts; `None`: for all.
/// Nothing is written where the others' results would be. Tiles beyond the last are left out.
pub(crate) fn multiply_tiles<M: Borrow<PackedMatrix>>(
    parts: &[M],
    x: &Activations<'_>,
    tiles: Option<&[u32]>,
    out: &mut [MaybeUninit<f32>],
    out_stride: usize,
) -> Result<()> {
    let parts: Vec<&PackedMatrix> = parts.iter().map(|part| part.borrow()).collect();
    let width: usize = parts.iter().map(|part| part.n_rows()).sum();
    for part in &parts {
        if part.n_cols() != x.n_cols() {
            return Err(Error::Columns { expected: part.n_cols(), found: x.n_cols() });
        }
    }
    if out_stride < width {
        return Err(Error::Length {
            what: "values between rows of results",
            expected: width,
            found: out_stride,
        });
    }
    let needed = match x.n_rows() {
        0 => return Ok(()),
        n_rows => (n_rows - 1).checked_mul(out_stride).and_then(|values| values.checked_add(width)),
    };
    if needed.is_none_or(|needed| needed > out.len()) {
        let expected = needed.unwrap_or(usize::MAX);
        return Err(Error::Length { what: "results", expected, found: out.len() });
    }
    if x.n_cols() == 0 {
        for row in out.chunks_mut(out_stride.max(1)).take(x.n_rows()) {
            row[..width].fill(MaybeUninit::new(0.0));
        }
        return Ok(());
    }
    let isa = cpu::isa();
    let is_float = |part: &&PackedMatrix| codes_kernel(part.layout(), isa, 1).is_none();
    let quantized = if parts.iter().all(is_float) { None } else { Some(x.quantized()?) };

    let mut column = 0;
    let parts: Vec<Part<'_>> = parts
        .into_iter()
        .map(|matrix| {
            let part = Part { matrix, column, kernels: Kernels::choose(matrix, isa, x.n_rows()) };
            column += matrix.n_rows();
            part
        })
        .collect();
    let n_tiles: usize = parts.iter().map(|part| part.matrix.n_tiles()).sum();
    let tiles = tiles.map(|tiles| &tiles[..tiles.partition_point(|tile| (*tile as usize) < n_tiles)]);
    Product { parts, x, quantized, tiles, out: DisjointMut::new(out), out_stride }.run();
    Ok(())
}

struct Part<'a> {
    matrix: &'a PackedMatrix,
    /// First column of its results.
    column: usize,
    kernels: Kernels,
}

/// The kernel of full panels, and that of the last one.
#[derive(Clone, Copy)]
enum Kernels {
    Codes(CodesKernel, CodesKernel),
    Float(FloatKernel, FloatKernel),
}

impl Kernels {
    fn choose(matrix: &PackedMatrix, isa: Isa, n_rows: usize) -> Self {
        let last = (n_rows - 1) % PANEL_ROWS + 1;
        let layout = matrix.layout();
        let float = |n_rows| layout.format().and_then(|format| float_kernel(format, isa, n_rows));
        let codes = |n_rows| codes_kernel(layout, isa, n_rows);
        match (codes(PANEL_ROWS), codes(last), float(PANEL_ROWS), float(last)) {
            (Some(full), Some(last), _, _) => Kernels::Codes(full, last),
            (_, _, Some(full), Some(last)) => Kernels::Float(full, last),
            _ => unreachable!("every format is made of codes or of floats"),
        }
    }
}

struct Product<'a> {
    parts: Vec<Part<'a>>,
    x: &'a Activations<'a>,
    quantized: Option<&'a QuantizedActivations>,
    /// Those to multiply, ascending; `None`: all.
    tiles: Option<&'a [u32]>,
    out: DisjointMut<'a, MaybeUninit<f32>>,
    out_stride: usize,
}

impl Product<'_> {
    fn run(&self) {
        let n_all = || self.parts.iter().map(|part| part.matrix.n_tiles()).sum::<usize>();
        let n_tiles: usize = self.tiles.map_or_else(n_all, <[u32]>::len);
        let n_panels = self.x.n_rows().div_ceil(PANEL_ROWS);
        let panel_bytes = (PANEL_ROWS * self.x.n_cols()) as f32 * BYTES_PER_VALUE;
        let panels_per_group = ((GROUP_BYTES as f32 / panel_bytes) as usize).max(2);
        let n_groups = n_panels.div_ceil(panels_per_group);
        let n_chunks = match pool::threads() {
            1 => 1,
            threads => (threads * TASKS_PER_THREAD).div_ceil(n_groups),
        };
        let tiles_per_chunk = n_tiles.div_ceil(n_chunks).max(1);
        let n_chunks = n_tiles.div_ceil(tiles_per_chunk);
        pool::parallel_for(n_groups * n_chunks, |task| {
            let (group, chunk) = (task / n_chunks, task % n_chunks);
            let panels = group * panels_per_group..n_panels.min((group + 1) * panels_per_group);
            let tiles = chunk * tiles_per_chunk..n_tiles.min((chunk + 1) * tiles_per_chunk);
            self.run_task(panels, tiles);
        });
    }

    /// Multiplies some panels with some tiles of those that are to be multiplied.
    fn run_task(&self, panels: std::ops::Range<usize>, tiles: std::ops::Range<usize>) {
        let mut first = 0;
        for part in &self.parts {
            let end = first + part.matrix.n_tiles();
            let multiply = |tile: usize| {
                for panel in panels.clone() {
                    self.multiply_tile(part, tile - first, panel, panel == panels.start);
                }
            };
            match self.tiles {
                None => (tiles.start.max(first)..tiles.end.min(end)).for_each(multiply),
                Some(selected) => {
                    let of_part = |tile: &usize| (first..end).contains(tile);
                    selected[tiles.clone()]
                        .iter()
                        .map(|&tile| tile as usize)
                        .filter(of_part)
                        .for_each(multiply);
                }
            }
            first = end;
        }
    }

    #[inline]
    fn multiply_tile(&self, part: &Part<'_>, tile_idx: usize, panel_idx: usize, is_cold: bool) {
        let first_row = panel_idx * PANEL_ROWS;
        let n_rows = PANEL_ROWS.min(self.x.n_rows() - first_row);
        let is_full = n_rows == PANEL_ROWS;
        let tile = part.matrix.tile(tile_idx, is_cold);
        let mut outputs: Outputs = [[0.0; TILE]; PANEL_ROWS];
        match (part.kernels, self.quantized) {
            (Kernels::Codes(full, last), Some(quantized)) => {
                let kernel = if is_full { full } else { last };
                // SAFETY: the kernels were chosen for a path that this CPU has, for the matrix's format and
                // for the two numbers of rows that panels have; matrix and activations have the same columns.
                unsafe { kernel(tile, quantized.panel(panel_idx), &mut outputs) };
            }
            (Kernels::Float(full, last), _) => {
                let kernel = if is_full { full } else { last };
                let n_cols = self.x.n_cols();
                let inputs = &self.x.values()[first_row * n_cols..][..n_rows * n_cols];
                // SAFETY: as above.
                unsafe { kernel(tile, inputs, n_cols, &mut outputs) };
            }
            (Kernels::Codes(..), None) => unreachable!("activations are quantized for codes"),
        }
        let n_outputs = TILE.min(part.matrix.n_rows() - tile_idx * TILE);
        for (row, outputs) in outputs[..n_rows].iter().enumerate() {
            let at = (first_row + row) * self.out_stride + part.column + tile_idx * TILE;
            // SAFETY: each pair of tile and panel belongs to one task, and its results to it alone.
            let results = unsafe { self.out.slice_mut(at..at + n_outputs) };
            results.write_copy_of_slice(&outputs[..n_outputs]);
        }
    }
}
