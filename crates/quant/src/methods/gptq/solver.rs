//! Rounding with error feedback: each column compensates the errors of the columns rounded before it.
//!
//! With the Hessian H of the inputs the loss of a row of weights is eHeᵀ, e the difference to the rounded
//! ones. For H = UᵀU it is the sum of squares of Ueᵀ, whose element i is U_ii (e_i + Σ_{j>i} U_ij/U_ii e_j).
//! So columns are rounded from the last to the first, each to the value nearest to
//! `w_i + Σ_{j>i} U_ij/U_ii e_j`: the loss is then Σ U_ii² (rounding error)². Columns are permuted beforehand
//! so that the last is the one to be rounded first.
//!
//! This is what GPTQ computes with the Cholesky factor of H⁻¹, but it needs neither the inverse nor its
//! factor.
//!
//! # Cost
//! n³/6 multiplications for the factor, n²/2 a row of weights. Rows are independent, and 32 of them share a
//! register.
//!
//! # Memory
//! 4 n² bytes for the Hessian and its factor, then 2 n² for the coefficients.
//!
//! # Source
//! Frantar et al., "GPTQ", arXiv 2210.17323, section 3; the form without an inverse: LDLQ of Chee et al.,
//! "QuIP", arXiv 2307.13304, section 3.1, with theorem 6 on their equivalence.

use crate::{
    Error, Result,
    linalg::{MR, NR, cholesky, kernel, mirror},
    rounding::{Grid, LANES},
    statistics::Statistics,
};
use breakers_cpu::{
    self as cpu, Isa, per_isa,
    pool::{self, DisjointMut},
};
use std::sync::Mutex;

/// Columns between two uses of the blocked product.
pub(crate) const BLOCK: usize = 4 * MR;
/// The factor on the damping when a Hessian turns out to be indefinite, and how often it is applied.
const RAISE: f32 = 10.0;
const MOST_RAISES: usize = 6;

/// The order in which columns are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ColumnOrder {
    /// In natural order.
    Natural,
    /// Those with the largest mean square of their inputs first ("act-order").
    DescendingSquares,
}

/// A factored Hessian.
pub(crate) struct Feedback {
    n: usize,
    /// The column that is rounded at each time.
    order: Vec<usize>,
    /// For each block of times, its coefficients of all earlier times: panels of [`MR`] times,
    /// `[earlier][MR]`.
    panels: Vec<[f32; MR]>,
    /// For each block, the coefficients within: `[BLOCK][BLOCK]`, of (time, earlier time).
    inner: Vec<f32>,
    /// What a squared rounding error costs at each time.
    costs: Vec<f32>,
    /// The share of the mean diagonal that was added.
    pub(crate) damping: f32,
}

impl Feedback {
    /// Factors the Hessian of the statistics with `damping` times its mean diagonal added, and `shrinkage`
    /// times its own diagonal; more of the former, if it is indefinite.
    ///
    /// # Errors
    /// [`Error::NoStatistics`] without a Hessian, [`Error::TooFewRows`] without rows, [`Error::Indefinite`]
    /// when no damping helps.
    pub(crate) fn new(
        statistics: &Statistics,
        order: ColumnOrder,
        damping: f32,
        shrinkage: f32,
    ) -> Result<Self> {
        let n = statistics.n_cols();
        let squares = statistics.mean_square();
        let mut by_time: Vec<usize> = (0..n).collect();
        if order == ColumnOrder::DescendingSquares {
            by_time.sort_by(|&a, &b| squares[b].total_cmp(&squares[a]));
        }
        let reversed: Vec<usize> = by_time.iter().rev().copied().collect();
        let mut factor = statistics.gathered(&reversed)?;
        let mut diagonal: Vec<f32> = (0..n).map(|i| factor[i * n + i]).collect();
        let mean = diagonal.iter().map(|&x| f64::from(x)).sum::<f64>() / n.max(1) as f64;
        let mean = if mean > 0.0 { mean as f32 } else { 1.0 };
        // A column whose input is always zero is independent of the others, whatever the value here.
        diagonal.iter_mut().filter(|x| **x <= 0.0).for_each(|x| *x = mean);
        diagonal.iter_mut().for_each(|x| *x += shrinkage * *x);
        mirror(&mut factor, n, false);
        let mut damping = damping.max(0.0);
        let mut raises = 0;
        loop {
            for i in 0..n {
                factor[i * n + i] = diagonal[i] + damping * mean;
            }
            match cholesky(&mut factor, n) {
                Ok(()) => break,
                Err(_) if raises < MOST_RAISES => {
                    raises += 1;
                    damping = (damping * RAISE).max(1e-4);
                    mirror(&mut factor, n, true);
                }
                Err(at) => return Err(Error::Indefinite { column: reversed[at], damping }),
            }
        }
        Ok(Self::from_factor(&factor, by_time, damping))
    }

    /// `factor`: U in the upper triangle, its rows in the reverse order of time.
    fn from_factor(factor: &[f32], order: Vec<usize>, damping: f32) -> Self {
        let n = order.len();
        let n_blocks = n.div_ceil(BLOCK);
        let starts: Vec<usize> = (0..=n_blocks).map(panels_before).collect();
        let mut panels = vec![[0.0f32; MR]; starts[n_blocks]];
        let mut inner = vec![0.0f32; n_blocks * BLOCK * BLOCK];
        let costs: Vec<f32> = (0..n).map(|t| factor[(n - 1 - t) * n + n - 1 - t].powi(2)).collect();
        let (shared_panels, shared_inner) = (DisjointMut::new(&mut panels), DisjointMut::new(&mut inner));
        pool::parallel_for(n_blocks, |task| {
            // The last blocks are the largest.
            let block = n_blocks - 1 - task;
            let first = block * BLOCK;
            // SAFETY: each block belongs to one task.
            let (panels, inner) = unsafe {
                (
                    shared_panels.slice_mut(starts[block]..starts[block + 1]),
                    shared_inner.slice_mut(block * BLOCK * BLOCK..(block + 1) * BLOCK * BLOCK),
                )
            };
            for time in first..n.min(first + BLOCK) {
                let row = n - 1 - time;
                let coefficients = &factor[row * n..(row + 1) * n];
                let pivot = coefficients[row];
                // Earlier time s stands in column n - 1 - s.
                let within = time - first;
                if first > 0 {
                    let panel = &mut panels[within / MR * first..][..first];
                    for (earlier, line) in panel.iter_mut().enumerate() {
                        line[within % MR] = coefficients[n - 1 - earlier] / pivot;
                    }
                }
                for earlier in first..time {
                    inner[within * BLOCK + earlier - first] = coefficients[n - 1 - earlier] / pivot;
                }
            }
        });
        Self { n, order, panels, inner, costs, damping }
    }

    /// Columns of the weights that it is for.
    pub(crate) fn n_cols(&self) -> usize {
        self.n
    }

    /// The cost of a squared rounding error in each column, after compensation by later columns: U_ii².
    pub(crate) fn conditional_squares(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n];
        for (&column, &cost) in self.order.iter().zip(&self.costs) {
            out[column] = cost;
        }
        out
    }

    /// Rounds weights `[n_rows, n]` to the grid: the codes, and the loss summed over the rows (the mean
    /// squared error of the outputs, damping included).
    pub(crate) fn round(&self, weights: &[f32], grid: &Grid) -> (Vec<u8>, f64) {
        let n = self.n;
        debug_assert!(grid.n_cols() == n && weights.len() == grid.n_rows() * n);
        let isa = cpu::isa();
        let mut codes = vec![0u8; weights.len()];
        let losses = Mutex::new(vec![0.0f64; grid.n_rows().div_ceil(LANES)]);
        pool::parallel_chunks_mut(&mut codes, LANES * n.max(1), |start, codes| {
            let loss = self.round_rows(isa, &weights[start..start + codes.len()], start / n, grid, codes);
            if let Ok(mut losses) = losses.lock() {
                losses[start / n / LANES] = loss;
            }
        });
        // Summed in order, so that the sum does not depend on the threads.
        let loss = losses.into_inner().map_or(0.0, |losses| losses.iter().sum());
        (codes, loss)
    }

    /// Rounds up to [`LANES`] rows.
    fn round_rows(&self, isa: Isa, weights: &[f32], first_row: usize, grid: &Grid, codes: &mut [u8]) -> f64 {
        let mut errors = vec![[0.0f32; LANES]; self.n];
        let mut round =
            |time: usize, target: &[f32; LANES], found: &mut [u8; LANES], values: &mut [f32; LANES]| {
                grid.round(first_row, self.order[time], target, found, values);
            };
        let mut loss = 0.0;
        for first in (0..self.n).step_by(BLOCK) {
            loss +=
                per_isa!(isa, || self.block(isa, weights, first, &mut errors, Some(&mut *codes), &mut round));
        }
        loss
    }

    /// Rounds weights `[n_rows, n]` in the order of the columns, where each group of `group` columns gets its
    /// scale from the updated weights when its turn comes. `choose` receives these, `[rows, group]`, with the
    /// index of the first row and of the group, and returns the values that may be chosen; column 0 is the
    /// group's first. Returns the codes. `group` must be a multiple of [`BLOCK`] and divide a row.
    pub(crate) fn round_by_groups(
        &self,
        weights: &[f32],
        group: usize,
        choose: impl Fn(&[f32], usize, usize) -> Grid + Sync,
    ) -> Vec<u8> {
        let n = self.n;
        debug_assert!(group.is_multiple_of(BLOCK) && n.is_multiple_of(group));
        let isa = cpu::isa();
        let mut codes = vec![0u8; weights.len()];
        pool::parallel_chunks_mut(&mut codes, LANES * n, |start, codes| {
            let weights = &weights[start..start + codes.len()];
            let n_rows = weights.len() / n;
            let mut errors = vec![[0.0f32; LANES]; n];
            for first in (0..n).step_by(group) {
                // A pass without rounding gives the updated weights, given the errors so far.
                let mut remains = vec![0.0; n_rows * group];
                let mut keep =
                    |time: usize, target: &[f32; LANES], _: &mut [u8; LANES], values: &mut [f32; LANES]| {
                        *values = *target;
                        (0..n_rows).for_each(|row| remains[row * group + time - first] = target[row]);
                    };
                for block in (first..first + group).step_by(BLOCK) {
                    self.block(isa, weights, block, &mut errors, None, &mut keep);
                }
                let grid = choose(&remains, start / n, first / group);
                let mut round = |time: usize,
                                 target: &[f32; LANES],
                                 found: &mut [u8; LANES],
                                 values: &mut [f32; LANES]| {
                    grid.round(0, time - first, target, found, values);
                };
                for block in (first..first + group).step_by(BLOCK) {
                    per_isa!(isa, || self.block(
                        isa,
                        weights,
                        block,
                        &mut errors,
                        Some(&mut *codes),
                        &mut round
                    ));
                }
            }
        });
        codes
    }

    /// Rounds the columns from time `first` on, [`BLOCK`] at most: their errors and codes, and the loss.
    #[inline(always)]
    fn block(
        &self,
        isa: Isa,
        weights: &[f32],
        first: usize,
        errors: &mut [[f32; LANES]],
        mut codes: Option<&mut [u8]>,
        round: &mut impl FnMut(usize, &[f32; LANES], &mut [u8; LANES], &mut [f32; LANES]),
    ) -> f64 {
        let (n, n_rows) = (self.n, weights.len() / self.n);
        let size = BLOCK.min(n - first);
        let (done, errors) = errors.split_at_mut(first);
        let mut targets = [[[0.0f32; NR]; MR]; BLOCK / MR];
        for within in 0..size {
            let column = self.order[first + within];
            let line = &mut targets[within / MR][within % MR];
            for row in 0..n_rows {
                line[row] = weights[row * n + column];
            }
        }
        if first > 0 {
            let kernel = kernel(isa);
            let panels = &self.panels[panels_before(first / BLOCK)..];
            for (tile, panel) in targets.iter_mut().zip(panels.chunks_exact(first)) {
                // SAFETY: the kernel was chosen for a path that this CPU has.
                unsafe { kernel(panel, done, tile) };
            }
        }
        let inner = &self.inner[first / BLOCK * BLOCK * BLOCK..][..BLOCK * BLOCK];
        let mut loss = 0.0f64;
        for within in 0..size {
            let mut target = targets[within / MR][within % MR];
            for (coefficient, error) in inner[within * BLOCK..][..within].iter().zip(&*errors) {
                for lane in 0..LANES {
                    target[lane] = coefficient.mul_add(error[lane], target[lane]);
                }
            }
            let (mut found, mut values) = ([0u8; LANES], [0.0f32; LANES]);
            round(first + within, &target, &mut found, &mut values);
            let column = self.order[first + within];
            let mut squares = 0.0f32;
            for row in 0..n_rows {
                errors[within][row] = weights[row * n + column] - values[row];
                squares += (target[row] - values[row]).powi(2);
            }
            if let Some(codes) = &mut codes {
                (0..n_rows).for_each(|row| codes[row * n + column] = found[row]);
            }
            loss += f64::from(squares) * f64::from(self.costs[first + within]);
        }
        loss
    }
}

/// Lines of panels before those of a block: block `b` has `BLOCK / MR` panels of `b * BLOCK` lines.
fn panels_before(block: usize) -> usize {
    BLOCK / MR * BLOCK * (block * block.saturating_sub(1) / 2)
}

#[cfg(test)]
mod tests;
