//! The values that each weight may take, once the scales have been chosen.

use crate::linalg::NR;
use breakers_cpu::pool::{self, DisjointMut};
use breakers_gguf::{GroupFormat, GroupScales, Levels};

/// Rows that are rounded together.
pub(crate) const LANES: usize = NR;

/// 1/scale, or 0 where that is not finite.
#[inline(always)]
pub(crate) fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.abs() <= f32::MAX { inverse } else { 0.0 }
}

/// The values `scale · level + offset` of each row and group of columns.
#[derive(Debug, Clone)]
pub(crate) struct Grid {
    pub(crate) levels: Levels,
    /// Columns that share scale and offset.
    pub(crate) group: usize,
    n_rows: usize,
    n_cols: usize,
    /// Rows rounded up to whole [`LANES`].
    padded: usize,
    /// `[group][padded row]`
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

impl Grid {
    /// A grid whose scales and offsets are given for each (row, group) by `of`, called for 32 rows in each
    /// task.
    pub(crate) fn new(
        levels: Levels,
        group: usize,
        n_rows: usize,
        n_cols: usize,
        of: impl Fn(usize, &mut dyn FnMut(usize, f32, f32)) + Sync,
    ) -> Self {
        let padded = n_rows.next_multiple_of(LANES);
        let n_groups = n_cols.div_ceil(group.max(1));
        let mut scales = vec![0.0; padded * n_groups];
        let mut offsets = vec![0.0; padded * n_groups];
        let (shared_scales, shared_offsets) = (DisjointMut::new(&mut scales), DisjointMut::new(&mut offsets));
        pool::parallel_for(padded / LANES, |chunk| {
            for row in chunk * LANES..n_rows.min((chunk + 1) * LANES) {
                of(row, &mut |group_idx, scale, offset| {
                    let at = group_idx * padded + row;
                    // SAFETY: each row belongs to one task.
                    unsafe {
                        shared_scales.write(at, scale);
                        shared_offsets.write(at, offset);
                    }
                });
            }
        });
        Self { levels, group, n_rows, n_cols, padded, scales, offsets }
    }

    /// The values that the scales of a format of groups allow.
    pub(crate) fn of_groups(format: GroupFormat, n_rows: usize, n_cols: usize, scales: &GroupScales) -> Self {
        let groups = n_cols / format.group();
        Self::new(format.levels(), format.group(), n_rows, n_cols, |row, put| {
            for i in 0..groups {
                let (scale, offset) = scales.value(row * groups + i);
                put(i, scale, offset);
            }
        })
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(crate) fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Rounds the targets of [`LANES`] rows from `first_row` on to the values of column `col`.
    #[inline(always)]
    pub(crate) fn round(
        &self,
        first_row: usize,
        col: usize,
        targets: &[f32; LANES],
        codes: &mut [u8; LANES],
        values: &mut [f32; LANES],
    ) {
        let at = col / self.group * self.padded + first_row;
        let (scales, offsets) = (&self.scales[at..at + LANES], &self.offsets[at..at + LANES]);
        let mut x = [0.0f32; LANES];
        for i in 0..LANES {
            x[i] = (targets[i] - offsets[i]) * inverse(scales[i]);
        }
        let mut levels = [0.0f32; LANES];
        self.levels.nearest(&x, codes, &mut levels);
        for i in 0..LANES {
            values[i] = scales[i] * levels[i] + offsets[i];
        }
    }

    /// The value of a code.
    pub(crate) fn value(&self, row: usize, col: usize, code: u8) -> f32 {
        let at = col / self.group * self.padded + row;
        self.scales[at] * self.levels.level(code) + self.offsets[at]
    }

    /// The nearest codes of all weights, `[n_rows, n_cols]`.
    pub(crate) fn nearest(&self, weights: &[f32]) -> Vec<u8> {
        let (n_cols, isa) = (self.n_cols, breakers_cpu::isa());
        let mut codes = vec![0u8; weights.len()];
        pool::parallel_chunks_mut(&mut codes, (LANES * n_cols).max(1), |start, codes| {
            breakers_cpu::per_isa!(isa, || self.nearest_rows(
                &weights[start..],
                start / n_cols.max(1),
                codes
            ));
        });
        codes
    }

    #[inline(always)]
    fn nearest_rows(&self, weights: &[f32], first_row: usize, codes: &mut [u8]) {
        let n_rows = codes.len() / self.n_cols;
        let (mut targets, mut found, mut values) = ([0.0; LANES], [0; LANES], [0.0; LANES]);
        for col in 0..self.n_cols {
            for row in 0..n_rows {
                targets[row] = weights[row * self.n_cols + col];
            }
            self.round(first_row, col, &targets, &mut found, &mut values);
            for row in 0..n_rows {
                codes[row * self.n_cols + col] = found[row];
            }
        }
    }

    /// The values of codes `[n_rows, n_cols]`.
    pub(crate) fn values(&self, codes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; codes.len()];
        pool::parallel_chunks_mut(&mut out, (LANES * self.n_cols).max(1), |start, out| {
            for (i, (out, &code)) in out.iter_mut().zip(&codes[start..]).enumerate() {
                *out = self.value((start + i) / self.n_cols, (start + i) % self.n_cols, code);
            }
        });
        out
    }
}
