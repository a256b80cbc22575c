//! The other GPU kernels: one that joins splits and continues with plain tokens, and one for rotations.

// A condition at compile time stands by itself: joined with another one it would be one at run time.
#![allow(clippy::collapsible_if)]

use breakers_backend::cube::row_of_cube;
use cubecl::prelude::*;

use super::{MARKS, SPAN, at_least, at_most};
use crate::attention::cube::online::{
    LOWEST, Marks, UNITS, add_chunk, new_softmax, place_of_cube, score_of, write_mean,
};
use crate::pages::packed::device::words::SPLIT_PAGES;

/// Every vector times a matrix.
#[cube(launch_unchecked)]
pub(crate) fn turn_kernel(
    x: &Tensor<f32>,
    matrix: &Tensor<f32>,
    out: &mut Tensor<f32>,
    #[comptime] dim: usize,
    #[comptime] n_columns: usize,
) {
    let unit = UNIT_POS as usize;
    let place = row_of_cube(x.shape(0) * x.shape(1));
    let mut vector = Shared::<[f32]>::new_slice(dim);
    for i in range_stepped(unit, dim, comptime!(UNITS)) {
        vector[i] = x[place * dim + i];
    }
    sync_cube();
    for column in range_stepped(unit, n_columns, comptime!(UNITS)) {
        let mut sum = 0.0f32.runtime();
        for i in 0..dim {
            sum = fma(vector[i], matrix[i * n_columns + column], sum);
        }
        out[place * n_columns + column] = sum;
    }
}

/// Softmax over the parts of a row's splits, the exact slots among them, and its plain slots.
#[cube(launch_unchecked)]
pub(crate) fn join_kernel<F: Float>(
    q: &Tensor<f32>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    seen: &Tensor<i32>,
    parts: &Tensor<f32>,
    out: &mut Tensor<f32>,
    first_row: u32,
    n_rows: u32,
    first_split: u32,
    prefix: u32,
    base: u32,
    n_exact: u32,
    scale: f32,
    #[comptime] head_dim: usize,
    #[comptime] is_tree: bool,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS as usize;
    let (first_row, n_rows, first_split) = (first_row as usize, n_rows as usize, first_split as usize);
    let (prefix, base, n_exact) = (prefix as usize, base as usize, n_exact as usize);
    let n_heads = q.shape(1);
    let place = place_of_cube(first_row, n_rows, n_heads, k.shape(1), head_dim);
    let seen_start = place.row * seen.shape(1);
    let (first, packed) = (seen[seen_start] as usize, seen[seen_start + 1] as usize);
    let end = seen[seen_start + 2] as usize;
    let mut softmax = new_softmax(q, place.query, scale, head_dim);
    let mut largest = comptime!(LOWEST).runtime();
    let mut total = 0.0f32.runtime();

    // Packed pages, split by split.
    let size = comptime!(SPLIT_PAGES * UNITS);
    let mut split = first / size;
    while split * size < packed {
        let start = ((split - first_split) * n_rows * n_heads + place.idx) * comptime!(head_dim + MARKS);
        let most = max(largest, parts[start + head_dim]);
        let decay = (largest - most).exp();
        let factor = (parts[start + head_dim] - most).exp();
        total = fma(total, decay, parts[start + head_dim + 1] * factor);
        #[unroll]
        for i in 0..comptime!(head_dim.div_ceil(UNITS)) {
            let at = unit + comptime!(i * UNITS);
            if at < head_dim {
                softmax.sums[i] = fma(softmax.sums[i], decay, parts[start + at] * factor);
            }
        }
        largest = most;
        split += 1;
    }
    sync_cube();

    // Exact slots of packed pages are a chunk of their own; then come the plain pages.
    let exact_end = at_most(n_exact, packed);
    let tail = at_least(first, packed);
    let tail_chunk = tail / comptime!(UNITS) * comptime!(UNITS);
    let mut chunk = select(first < exact_end, 0usize, tail_chunk);
    while chunk < end {
        let is_exact = chunk < packed;
        let from = select(is_exact, first, at_least(tail, chunk));
        let to = select(is_exact, exact_end, at_most(end, chunk + comptime!(UNITS)));
        let key = chunk + unit;
        let mut score = comptime!(LOWEST).runtime();
        if key >= from && key < to {
            let mut slot = key;
            if comptime!(is_tree) {
                if key >= prefix {
                    slot = prefix + seen[seen_start + comptime!(SPAN) + key - prefix] as usize;
                }
            }
            if slot >= base {
                slot = n_exact + slot - base;
            }
            score = score_of(&mut softmax, k, slot, &place, head_dim);
        }
        let marks = add_chunk(
            &mut softmax,
            Marks { largest, total },
            score,
            v,
            &place,
            from - chunk,
            to - chunk,
            head_dim,
        );
        largest = marks.largest;
        total = marks.total;
        chunk = select(is_exact, tail_chunk, chunk + comptime!(UNITS));
    }
    write_mean(&softmax, total, out, place.query, head_dim);
}
