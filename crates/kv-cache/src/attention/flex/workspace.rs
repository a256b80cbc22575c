//! A task's scratch memory.

use bytemuck::Zeroable;

use crate::attention::flex::page::{Rows, Span, TILE_ROWS};
use crate::pages::page::{LANES, Line, PAGE_TOKENS, PageLayout};
use breakers_cpu::simd::Stored;

/// Makes `buffer` hold at least `len` elements.
pub(super) fn grow<T: Zeroable + Copy>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::zeroed());
    }
}

/// A task's scratch memory, cut into its arrays.
pub(super) struct Workspace<'a, E> {
    pub(super) q: &'a mut [f32],
    pub(super) acc: &'a mut [f32],
    pub(super) total: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    pub(super) weights: &'a mut [f32],
    pub(super) max: &'a mut [f32],
    pub(super) total_max: &'a mut [f32],
    pub(super) total_sum: &'a mut [f32],
    /// Queries for packed pages, or nothing.
    pub(super) prepared: &'a mut [f32],
    pub(super) page_spans: &'a mut [Span],
    pub(super) page: *mut E,
    stride: usize,
}

impl<'a, E: Stored> Workspace<'a, E> {
    pub(super) fn new(
        scratch: &'a mut Vec<Line>,
        n_rows: usize,
        layout: &PageLayout,
        n_prepared: usize,
    ) -> Self {
        let stride = layout.padded_dim;
        let wide = n_rows * stride;
        let narrow = n_rows.next_multiple_of(LANES);
        let n_prepared = n_prepared.next_multiple_of(LANES);
        let n_floats = 3 * wide + n_prepared + n_rows * LANES + TILE_ROWS * PAGE_TOKENS + 5 * narrow;
        let n_lines = n_floats / LANES;
        let page_lines = (layout.region_elements() * size_of::<E>()).div_ceil(size_of::<Line>());
        grow(scratch, n_lines + page_lines);
        let (floats, page) = scratch.split_at_mut(n_lines);
        let mut rest: &mut [f32] = bytemuck::cast_slice_mut(floats);
        let mut take = |n: usize| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(n);
            rest = tail;
            head
        };
        Self {
            q: take(wide),
            acc: take(wide),
            total: take(wide),
            sum: take(n_rows * LANES),
            weights: take(TILE_ROWS * PAGE_TOKENS),
            max: take(narrow),
            total_max: take(narrow),
            total_sum: take(narrow),
            prepared: take(n_prepared),
            page_spans: &mut bytemuck::cast_slice_mut(take(2 * narrow))[..n_rows],
            page: page.as_mut_ptr().cast(),
            stride,
        }
    }

    pub(super) fn rows(&mut self) -> Rows {
        Rows {
            stride: self.stride,
            q: self.q.as_ptr(),
            acc: self.acc.as_mut_ptr(),
            max: self.max.as_mut_ptr(),
            sum: self.sum.as_mut_ptr(),
            weights: self.weights.as_mut_ptr(),
        }
    }
}
