//! The Cholesky factorization of a symmetric positive definite matrix.

use super::{Operand, Part, add_product};
use breakers_cpu::{
    self as cpu, Isa, per_isa,
    pool::{self, DisjointMut},
};

/// Rows that are factored before the rest is updated.
const BLOCK: usize = 128;
/// Columns of a block of rows that a task solves at a time.
const TASK_COLUMNS: usize = 256;
/// A pivot below this share of its original diagonal element is only rounding error.
const SMALLEST_PIVOT: f32 = 1e-6;

/// Factors `A = UᵀU` in place. `A` is read from, and `U` written to, the upper triangle of `[n, n]` and the
/// diagonal; the part below is not changed.
///
/// # Errors
/// The row whose pivot is not positive, or not finite, or only rounding error: `A` is not positive definite.
/// The upper triangle is then unspecified.
pub(crate) fn cholesky(a: &mut [f32], n: usize) -> Result<(), usize> {
    debug_assert_eq!(a.len(), n * n);
    let isa = cpu::isa();
    let diagonal: Vec<f32> = (0..n).map(|i| a[i * n + i]).collect();
    for from in (0..n).step_by(BLOCK) {
        let to = n.min(from + BLOCK);
        per_isa!(isa, || factor_block(a, n, from..to, &diagonal))?;
        let (top, bottom) = a.split_at_mut(to * n);
        let rows = &mut top[from * n..];
        solve(isa, rows, n, from..to);
        if to < n {
            let columns = Operand { values: &rows[to..], stride: n, n: n - to };
            // Row `to` of the rest begins at its own diagonal element.
            add_product(columns, columns, to - from, -1.0, &mut bottom[to..], n, Part::Upper);
        }
    }
    Ok(())
}

/// Factors a block on the diagonal.
#[inline(always)]
fn factor_block(
    a: &mut [f32],
    n: usize,
    block: std::ops::Range<usize>,
    diagonal: &[f32],
) -> Result<(), usize> {
    for i in block.clone() {
        let pivot = a[i * n + i];
        if !(pivot.is_finite() && pivot > SMALLEST_PIVOT * diagonal[i] && pivot > 0.0) {
            return Err(i);
        }
        let root = pivot.sqrt();
        a[i * n + i] = root;
        for j in i + 1..block.end {
            a[i * n + j] /= root;
        }
        let (above, below) = a.split_at_mut((i + 1) * n);
        let row = &above[i * n..];
        for j in i + 1..block.end {
            let factor = -row[j];
            let target = &mut below[(j - i - 1) * n..][j..block.end];
            for (target, x) in target.iter_mut().zip(&row[j..block.end]) {
                *target = factor.mul_add(*x, *target);
            }
        }
    }
    Ok(())
}

/// Solves `U₁₁ᵀ U₁₂ = A₁₂` in place for the columns right of the block. `rows` are the block's.
fn solve(isa: Isa, rows: &mut [f32], n: usize, block: std::ops::Range<usize>) {
    let (from, to) = (block.start, block.end);
    let size = to - from;
    let factor: Vec<f32> = (0..size * size).map(|at| rows[at / size * n + from + at % size]).collect();
    let shared = DisjointMut::new(rows);
    pool::parallel_for((n - to).div_ceil(TASK_COLUMNS), |task| {
        let first = to + task * TASK_COLUMNS;
        let width = TASK_COLUMNS.min(n - first);
        let mut lines = vec![[0.0f32; TASK_COLUMNS]; size];
        for (i, line) in lines.iter_mut().enumerate() {
            // SAFETY: each column belongs to one task.
            line[..width].copy_from_slice(unsafe { shared.slice_mut(i * n + first..i * n + first + width) });
        }
        per_isa!(isa, || solve_lines(&factor, size, &mut lines));
        for (i, line) in lines.iter().enumerate() {
            // SAFETY: as above.
            unsafe { shared.slice_mut(i * n + first..i * n + first + width) }.copy_from_slice(&line[..width]);
        }
    });
}

#[inline(always)]
fn solve_lines(factor: &[f32], size: usize, lines: &mut [[f32; TASK_COLUMNS]]) {
    for i in 0..size {
        let (done, rest) = lines.split_at_mut(i);
        let line = &mut rest[0];
        for (j, other) in done.iter().enumerate() {
            let factor = -factor[j * size + i];
            for (x, y) in line.iter_mut().zip(other) {
                *x = factor.mul_add(*y, *x);
            }
        }
        let pivot = factor[i * size + i];
        line.iter_mut().for_each(|x| *x /= pivot);
    }
}

/// Copies the lower triangle to the upper one (`to_upper`), or the other way round.
pub(crate) fn mirror(a: &mut [f32], n: usize, to_upper: bool) {
    const TILE: usize = 32;
    let shared = DisjointMut::new(a);
    let n_tiles = n.div_ceil(TILE);
    pool::parallel_for(n_tiles, |row| {
        for column in row..n_tiles {
            for i in row * TILE..n.min((row + 1) * TILE) {
                for j in (column * TILE).max(i + 1)..n.min((column + 1) * TILE) {
                    // SAFETY: a pair of elements (i, j), (j, i) belongs to the task of the upper one's tile.
                    unsafe {
                        let (upper, lower) = (i * n + j, j * n + i);
                        let (from, to) = if to_upper { (lower, upper) } else { (upper, lower) };
                        shared.write(to, shared.slice_mut(from..from + 1)[0]);
                    }
                }
            }
        }
    });
}
