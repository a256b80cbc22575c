//! `C += ±PᵀQ`, divided among the threads of the pool.

use super::kernel::{Kernel, MR, MicroTile, NR, kernel};
use breakers_cpu::{
    self as cpu,
    pool::{self, DisjointMut},
};

/// Indices of the sum that are packed at a time: a panel of the right operand then fills most of a
/// first-level cache.
const SLAB: usize = 256;
/// Panels of the left operand in a task.
const TASK_LEFT: usize = 16;
/// Panels of the right operand in a task; both fill half of a usual second-level cache.
const TASK_RIGHT: usize = 8;

/// A k-major operand: row `k` begins at `k * stride`, and its first `n` values count.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) n: usize,
}

/// Which part of the result is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    All,
    /// Rows up to the column: the part below the diagonal is unspecified.
    Upper,
}

/// Adds `sign · PᵀQ` to `out`.
///
/// # Shapes
/// `left`: `[n_k, m]`, `right`: `[n_k, n]`, `out`: `[m, n]` with rows `out_stride` apart.
pub(crate) fn add_product(
    left: Operand<'_>,
    right: Operand<'_>,
    n_k: usize,
    sign: f32,
    out: &mut [f32],
    out_stride: usize,
    part: Part,
) {
    if left.n == 0 || right.n == 0 {
        return;
    }
    let (n_left, n_right) = (left.n.div_ceil(MR), right.n.div_ceil(NR));
    let kernel = kernel(cpu::isa());
    let mut panels = Panels { left: Vec::new(), right: Vec::new() };
    let out = DisjointMut::new(out);
    for from in (0..n_k).step_by(SLAB) {
        let ks = from..n_k.min(from + SLAB);
        panels.left.resize(n_left * ks.len(), [0.0; MR]);
        panels.right.resize(n_right * ks.len(), [0.0; NR]);
        pack(left, ks.clone(), sign, &mut panels.left);
        pack(right, ks.clone(), 1.0, &mut panels.right);
        let (rows, columns) = (n_left.div_ceil(TASK_LEFT), n_right.div_ceil(TASK_RIGHT));
        pool::parallel_for(rows * columns, |task| {
            let (row, column) = (task / columns, task % columns);
            let lefts = row * TASK_LEFT..n_left.min((row + 1) * TASK_LEFT);
            let rights = column * TASK_RIGHT..n_right.min((column + 1) * TASK_RIGHT);
            if part == Part::Upper && rights.end * NR <= lefts.start * MR {
                return;
            }
            for right_idx in rights {
                for left_idx in lefts.clone() {
                    if part == Part::Upper && (right_idx + 1) * NR <= left_idx * MR {
                        continue;
                    }
                    let m = MR.min(left.n - left_idx * MR);
                    let n = NR.min(right.n - right_idx * NR);
                    let at = left_idx * MR * out_stride + right_idx * NR;
                    multiply(kernel, &panels, ks.len(), (left_idx, right_idx), |i| {
                        // SAFETY: each tile of the result belongs to one task.
                        (i < m)
                            .then(|| unsafe { out.slice_mut(at + i * out_stride..at + i * out_stride + n) })
                    });
                }
            }
        });
    }
}

struct Panels {
    left: Vec<[f32; MR]>,
    right: Vec<[f32; NR]>,
}

#[inline]
fn multiply<'a>(
    kernel: Kernel,
    panels: &Panels,
    n_k: usize,
    (left, right): (usize, usize),
    mut row: impl FnMut(usize) -> Option<&'a mut [f32]>,
) {
    let mut tile: MicroTile = [[0.0; NR]; MR];
    for (i, line) in tile.iter_mut().enumerate() {
        if let Some(row) = row(i) {
            line[..row.len()].copy_from_slice(row);
        }
    }
    let (left, right) = (&panels.left[left * n_k..][..n_k], &panels.right[right * n_k..][..n_k]);
    // SAFETY: the kernel was chosen for a path that this CPU has.
    unsafe { kernel(left, right, &mut tile) };
    for (i, line) in tile.iter().enumerate() {
        if let Some(row) = row(i) {
            row.copy_from_slice(&line[..row.len()]);
        }
    }
}

/// Copies rows `ks` into panels of `W` columns; the last one is filled up with zeros.
fn pack<const W: usize>(
    operand: Operand<'_>,
    ks: std::ops::Range<usize>,
    sign: f32,
    panels: &mut [[f32; W]],
) {
    pool::parallel_chunks_mut(panels, ks.len() * 4, |start, panels| {
        for (i, panel) in panels.chunks_exact_mut(ks.len()).enumerate() {
            let column = (start / ks.len() + i) * W;
            let n = W.min(operand.n - column);
            for (k, line) in ks.clone().zip(panel) {
                let source = &operand.values[k * operand.stride + column..][..n];
                for (to, from) in line.iter_mut().zip(source) {
                    *to = sign * from;
                }
                line[n..].fill(0.0);
            }
        }
    });
}
