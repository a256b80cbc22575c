//! Weights and values of a tile of rows: what comes before the loop over the values' codes, and after it.

use half::f16;

use super::factors::Rounded;
use super::tile::{Scratch, Tile};
use crate::pages::packed::run::QUAD;
use crate::pages::packed::{Group, MAX_CODED, MAX_GROUPS, MAX_HEAD_DIM, PackedFormat};
use crate::pages::page::{LANES, PAGE_BLOCKS, PAGE_TOKENS};
use breakers_cpu::simd::{self, Kernel, LARGEST, Simd};

/// What all rows need of the values' scales.
pub(super) struct Values {
    /// For each group of channels, the slots' scales as shares of the largest one, times [`LARGEST`].
    pub(super) factors: [f32; MAX_GROUPS * PAGE_TOKENS],
    /// What one of these stands for.
    pub(super) steps: [f32; MAX_GROUPS],
}

/// Makes [`Values`] of a region.
pub(super) struct PrepareValues<'a> {
    pub(super) format: &'a PackedFormat,
    pub(super) halves: *const f16,
    pub(super) to: *mut Values,
}

impl Kernel for PrepareValues<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for group in 0..self.format.values.groups.len() {
            // SAFETY: the caller's promises; values have a scale for each slot and group.
            unsafe {
                let scales = self.halves.add(self.format.value_meta.scales + group * PAGE_TOKENS);
                let to = (&raw mut (*self.to).factors).cast::<f32>().add(group * PAGE_TOKENS);
                let mut largest = S::splat(0.0);
                for slot in (0..PAGE_TOKENS).step_by(LANES) {
                    let scale = S::widen(scales.add(slot));
                    largest = S::max(largest, S::max(scale, S::sub(S::splat(0.0), scale)));
                }
                let largest = S::reduce_max(largest);
                // 16-bit floats are zero or far from where this would overflow.
                let inverse = S::splat(if largest > 0.0 { LARGEST / largest } else { 0.0 });
                for slot in (0..PAGE_TOKENS).step_by(LANES) {
                    S::store(to.add(slot), S::mul(S::widen(scales.add(slot)), inverse));
                }
                (&raw mut (*self.to).steps).cast::<f32>().add(group).write(largest / LARGEST);
            }
        }
    }
}

/// Scores of the exact slots, in place of those of their codes; then weights, as shares of
/// the page's largest.
pub(super) struct Weigh<'a> {
    pub(super) tile: Tile<'a>,
    pub(super) scratch: *mut Scratch,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Tile { head, rows, spans, .. } = self.tile;
        let dim = head.format.head_dim;
        let n_exact = head.exact.len() / (2 * dim);
        // SAFETY: the caller's promises; an exact slot has a key and a value of `dim` elements.
        unsafe {
            let scratch = &mut *self.scratch;
            for (r, span) in spans.iter().enumerate() {
                let weights = rows.weights.add(r * PAGE_TOKENS);
                for (slot, exact) in head.exact.chunks_exact(2 * dim).enumerate() {
                    let q = rows.q.add(r * rows.stride);
                    let mut sum = S::splat(0.0);
                    for channel in (0..dim).step_by(LANES) {
                        sum = S::fma(S::load(q.add(channel)), S::widen(exact.as_ptr().add(channel)), sum);
                    }
                    *weights.add(slot) = S::reduce_add(sum);
                }
                if span.from > 0 || span.to < PAGE_TOKENS as i32 {
                    for lane in (0..PAGE_TOKENS).step_by(LANES) {
                        let (at, first) = (weights.add(lane), lane as i32);
                        S::store(at, S::mask(S::load(at), span.from - first, span.to - first));
                    }
                }
                let mut parts = [S::splat(0.0); PAGE_BLOCKS];
                for block in 0..PAGE_BLOCKS {
                    parts[block] = S::load(weights.add(block * LANES));
                }
                let largest = S::max(S::max(parts[0], parts[1]), S::max(parts[2], parts[3]));
                let (page, before) = (S::reduce_max(largest), *rows.max.add(r));
                // Either the page or what came before it has the largest score of both: that
                // one keeps its weights.
                let (rescale, share) = match () {
                    () if page == f32::NEG_INFINITY => (1.0, 0.0),
                    () if page > before => (simd::exp2(before - page), 1.0),
                    () => (1.0, simd::exp2(page - before)),
                };
                *rows.max.add(r) = if page > before { page } else { before };
                // A row that sees nothing here: any reference makes its weights zero.
                let reference = S::splat(if page == f32::NEG_INFINITY { 0.0 } else { page });
                for block in 0..PAGE_BLOCKS {
                    parts[block] = S::exp2(S::sub(parts[block], reference));
                    S::store(weights.add(block * LANES), parts[block]);
                }
                let page_sum = S::add(S::add(parts[0], parts[1]), S::add(parts[2], parts[3]));
                let sum = rows.sum.add(r * LANES);
                let page_sum = S::mul(page_sum, S::splat(share));
                S::store(sum, S::fma(S::load(sum), S::splat(rescale), page_sum));
                (scratch.rescale[r], scratch.share[r]) = (rescale, share);
                for slot in 0..n_exact {
                    scratch.exact[r * PAGE_TOKENS + slot] = *weights.add(slot) * share;
                    *weights.add(slot) = 0.0;
                }
            }
        }
    }
}

/// Puts the slots' scales for one group of channels into the weights, and makes integers of them.
pub(super) struct ScaleWeights<'a> {
    pub(super) tile: Tile<'a>,
    pub(super) group: usize,
    pub(super) scratch: *mut Scratch,
}

impl Kernel for ScaleWeights<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { tile: Tile { head, rows, spans, .. }, group, .. } = self;
        let (meta, side) = (&head.format.value_meta, &head.format.values);
        // SAFETY: the caller's promises.
        unsafe {
            let scratch = &mut *self.scratch;
            let factors = head.values.factors.as_ptr().add(group * PAGE_TOKENS);
            for r in 0..spans.len() {
                let weights = rows.weights.add(r * PAGE_TOKENS);
                let quads = scratch.quads.as_mut_ptr().add(r * MAX_CODED / QUAD);
                let (mut sum, mut offsets) = (S::splat(0.0), S::splat(0.0));
                for slot in (0..PAGE_TOKENS).step_by(LANES) {
                    let weight = S::load(weights.add(slot));
                    if side.offsets {
                        let at = meta.offsets + group * PAGE_TOKENS + slot;
                        offsets = S::fma(weight, S::widen(head.halves.add(at)), offsets);
                    }
                    let integers = S::round(S::mul(weight, S::load(factors.add(slot))));
                    sum = S::add(sum, integers);
                    S::pack::<2>(integers, quads.add(slot / QUAD));
                }
                let share = scratch.share[r];
                let step = head.values.steps[group] * share;
                scratch.weights[r] = Rounded { step, sum: step * S::reduce_add(sum) };
                scratch.offset[r] = if side.offsets { S::reduce_add(offsets) * share } else { 0.0 };
            }
        }
    }
}

/// Adds one group's sums of values to the rows' own; after the last one those of the exact slots.
pub(super) struct AddValues<'a> {
    pub(super) tile: Tile<'a>,
    pub(super) group: usize,
    pub(super) scratch: *mut Scratch,
}

impl Kernel for AddValues<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { tile: Tile { head, rows, spans, .. }, group, .. } = self;
        let (meta, side) = (&head.format.value_meta, &head.format.values);
        let head_dim = head.format.head_dim;
        // SAFETY: the caller's promises.
        unsafe {
            let scratch = &*self.scratch;
            for r in 0..spans.len() {
                let acc = rows.acc.add(r * rows.stride);
                let Rounded { step, sum: total } = scratch.weights[r];
                let Group { step: level, offset: level_offset, .. } = side.groups[group];
                let (step, level_offset) = (S::splat(step * level), S::splat(total * level_offset));
                let (total, offset) = (S::splat(total), S::splat(scratch.offset[r]));
                let rescale = S::splat(scratch.rescale[r]);
                for dim in (side.groups[group].from..side.groups[group].to).step_by(LANES) {
                    let sum = S::words(scratch.sums.as_ptr().add(r * MAX_HEAD_DIM + dim).cast());
                    let mut sum = S::fma(S::float(sum), step, level_offset);
                    if side.channel_slots.is_some() {
                        let low = S::widen(head.halves.add(meta.lows + dim));
                        let step = S::widen(head.halves.add(meta.steps + dim));
                        sum = S::fma(sum, step, S::mul(low, total));
                    }
                    sum = S::fma(S::load(acc.add(dim)), rescale, S::add(sum, offset));
                    S::store(acc.add(dim), sum);
                }
                if group + 1 < side.groups.len() {
                    continue;
                }
                for (slot, exact) in head.exact.chunks_exact(2 * head_dim).enumerate() {
                    let weight = S::splat(scratch.exact[r * PAGE_TOKENS + slot]);
                    for dim in (0..head_dim).step_by(LANES) {
                        let value = S::widen(exact.as_ptr().add(head_dim + dim));
                        S::store(acc.add(dim), S::fma(weight, value, S::load(acc.add(dim))));
                    }
                }
            }
        }
    }
}
