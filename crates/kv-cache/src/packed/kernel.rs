//! Attention over packed pages: a tile of query rows against one head's codes.
//!
//! As in [`crate::kernel`], each score is one chain of fused multiply-adds over the head's channels and each
//! output one over the slots in ascending order, so that neither depends on how rows and slots are put into
//! tiles. A channel's step goes into the query, its low end into a constant of the page; a slot's scale goes into
//! its score, or its weight: what [`accumulate`](super::accumulate) adds up are levels as they stand in the page.

use std::mem::MaybeUninit;

use breakers_backend::cpu::Isa;
use half::f16;

use super::accumulate::{Codes, ROWS, Sums, accumulate, tile_rows};
use super::layer::Next;
use super::{Levels, MAX_CODED, MAX_GROUPS, MAX_HEAD_DIM, PackedFormat, PackedPage, Place};
use super::{TABLE, WIDTH_BITS, place_code};
use crate::kernel::{Rows, Span, weigh};
use crate::page::{LANES, PAGE_BLOCKS, PAGE_TOKENS};
use crate::simd::{self, Kernel, Simd};

/// One head's region of a packed page, and what all tiles need of it.
#[derive(Clone, Copy)]
struct Head<'a> {
    format: &'a PackedFormat,
    words: *const u32,
    halves: *const f16,
    exact: &'a [f16],
    places: &'a [Place],
    /// The region that is read next.
    next: *const u32,
}

/// What a tile works with, `[ROWS, …]` each. Nothing is read that was not written before.
#[repr(align(64))]
struct Scratch {
    /// Queries as the scores need them, then weights times the slots' scales.
    factors: [f32; ROWS * MAX_CODED],
    /// What comes out of the codes: scores, then values.
    sums: [f32; ROWS * MAX_HEAD_DIM],
    /// Sums of the query over each group.
    group_sums: [f32; ROWS * MAX_GROUPS],
    /// Sums of the query times the channels' low ends.
    low: [f32; ROWS],
    /// Sums of the weights times the slots' scales.
    total: [f32; ROWS],
    /// Sums of the weights times the slots' offsets.
    offset: [f32; ROWS],
    /// What the sums so far are multiplied by.
    rescale: [f32; ROWS],
    /// Weights of the exact slots.
    exact: [f32; ROWS * PAGE_TOKENS],
}

/// Lets `spans.len()` rows attend to one head of a packed page, and fetches what is read next meanwhile.
///
/// `sketch` has the rows' projected queries, laid out as `rows.q`; it is read only where the format has them.
///
/// # Safety
/// - the processor has the instructions of `isa`
/// - the page is of the format and not evicted
/// - `rows` and `sketch` have as many rows as `spans`
pub(crate) unsafe fn attend_page(
    isa: Isa,
    format: &PackedFormat,
    (page, head): (&PackedPage, usize),
    next: Next,
    rows: Rows,
    sketch: *const f32,
    spans: &[Span],
) {
    let region = page.region(format, head);
    let mut adaptive = [const { MaybeUninit::<Place>::uninit() }; MAX_HEAD_DIM];
    let n_adaptive = if format.key_runs.is_empty() { format.keys.n_coded() } else { 0 };
    let widths: &[u16] = &bytemuck::cast_slice(region)[format.key_meta.widths..];
    let places = fill_places(&widths[..n_adaptive.div_ceil(16 / WIDTH_BITS)], &mut adaptive[..n_adaptive]);
    let words = region.as_ptr();
    let exact = page.exact(format, head);
    // Codes are fetched while those of this page are read.
    simd::dispatch(isa, Fetch { format, next });
    let mut head = Head { format, words, halves: words.cast(), exact, places, next: next.region };
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let mut start = 0;
    while start < spans.len() {
        let n_rows = tile_rows(isa, spans.len() - start);
        // SAFETY: the caller's promises; n_rows rows from `start` on exist.
        unsafe {
            let sketch = sketch.wrapping_add(start * rows.stride);
            let spans = &spans[start..start + n_rows];
            let tile = Tile { isa, head, rows: rows.skip(start), sketch, spans };
            tile.attend(scratch.as_mut_ptr());
        }
        start += n_rows;
        // One tile fetches ahead; the others would fetch the same again.
        head.next = words;
    }
}

/// Fetches the numbers beside a region's codes.
struct Fetch<'a> {
    format: &'a PackedFormat,
    next: Next,
}

impl Kernel for Fetch<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let numbers = self.format.numbers();
        // SAFETY: the caller has the instructions; addresses need not be valid.
        unsafe {
            S::prefetch(self.next.page.cast());
            for word in numbers.step_by(LANES) {
                S::prefetch(self.next.region.wrapping_add(word).cast());
            }
        }
    }
}

/// Places of codes whose widths stand in a page.
fn fill_places<'a>(widths: &[u16], places: &'a mut [MaybeUninit<Place>]) -> &'a [Place] {
    let mut bit = 0;
    for (widths, places) in widths.iter().zip(places.chunks_mut(16 / WIDTH_BITS)) {
        for (at, place) in places.iter_mut().enumerate() {
            let width = widths >> (at * WIDTH_BITS) & 0xF;
            place.write(place_code(&mut bit, width.into()));
        }
    }
    // SAFETY: there are as many widths as places, rounded up to whole numbers of 16 bits.
    unsafe { std::slice::from_raw_parts(places.as_ptr().cast(), places.len()) }
}

/// Some rows against one head's region.
#[derive(Clone, Copy)]
struct Tile<'a> {
    isa: Isa,
    head: Head<'a>,
    rows: Rows,
    sketch: *const f32,
    spans: &'a [Span],
}

impl Tile<'_> {
    /// # Safety
    /// As [`attend_page`]; there are at most [`tile_rows`] rows.
    unsafe fn attend(self, scratch: *mut Scratch) {
        if self.spans.iter().all(|span| span.from.max(0) >= span.to.min(PAGE_TOKENS as i32)) {
            return;
        }
        // SAFETY: the caller's promises.
        unsafe {
            self.score(scratch);
            simd::dispatch(self.isa, Weigh { tile: self, scratch });
            self.sum_values(scratch);
        }
    }

    /// Scores, into the rows' weights.
    ///
    /// # Safety
    /// As [`Self::attend`].
    unsafe fn score(self, scratch: *mut Scratch) {
        let Head { format, words, next, places, .. } = self.head;
        let keys = &format.keys;
        let n_sets = keys.n_sets().max(1);
        let n_blocks = PAGE_BLOCKS / n_sets;
        let stride = format.key_words * LANES;
        for set in 0..n_sets {
            // SAFETY: the caller's promises; runs lie in the lanes, a block's lanes in the region, and behind it
            // there is another line.
            unsafe {
                let (factors, factor_stride) = if keys.takes_queries_as_they_are() {
                    (self.rows.q, self.rows.stride)
                } else {
                    simd::dispatch(self.isa, Prepare { tile: self, set, scratch });
                    ((&raw const (*scratch).factors).cast(), MAX_CODED)
                };
                let first = set * n_blocks;
                let sums = Sums {
                    words: words.add(first * stride),
                    stride,
                    n_blocks,
                    factors,
                    factor_stride,
                    out: (&raw mut (*scratch).sums).cast(),
                    out_stride: PAGE_TOKENS,
                    is_new: true,
                    next: next.wrapping_add(first * stride),
                };
                let n_rows = self.spans.len();
                if !places.is_empty() {
                    accumulate(self.isa, n_rows, sums, Codes::Places(places));
                }
                for (g, group) in keys.groups.iter().enumerate() {
                    let runs =
                        format.key_runs.iter().filter(|run| (group.from..group.to).contains(&run.from));
                    for (at, run) in runs.enumerate() {
                        let sums = Sums { is_new: at == 0, ..sums };
                        accumulate(self.isa, n_rows, sums, Codes::Run(run, keys.tables()));
                    }
                    simd::dispatch(self.isa, Combine { tile: self, set, group: g, scratch });
                }
            }
        }
    }

    /// Adds the weighted values to the rows' sums.
    ///
    /// # Safety
    /// As [`Self::attend`], behind [`Weigh`].
    unsafe fn sum_values(self, scratch: *mut Scratch) {
        let Head { format, words, next, .. } = self.head;
        let values = &format.values;
        let mut runs = format.value_runs.iter();
        for (g, group) in values.groups.iter().enumerate() {
            // SAFETY: the caller's promises; each element's run lies in the region.
            unsafe {
                simd::dispatch(self.isa, ScaleWeights { tile: self, group: g, scratch });
                let mut dim = group.from;
                for (n_blocks, run) in runs.by_ref() {
                    let sums = Sums {
                        words,
                        stride: run.n_words() * LANES,
                        n_blocks: *n_blocks,
                        factors: (&raw const (*scratch).factors).cast(),
                        factor_stride: PAGE_TOKENS,
                        out: (&raw mut (*scratch).sums).cast::<f32>().add(dim),
                        out_stride: MAX_HEAD_DIM,
                        is_new: true,
                        next,
                    };
                    accumulate(self.isa, self.spans.len(), sums, Codes::Run(run, values.tables()));
                    dim += n_blocks * LANES;
                    if dim == group.to {
                        break;
                    }
                }
                simd::dispatch(self.isa, AddValues { tile: self, group: g, scratch });
            }
        }
    }
}

/// Puts the steps of one set of channels into the queries.
struct Prepare<'a> {
    tile: Tile<'a>,
    set: usize,
    scratch: *mut Scratch,
}

impl Kernel for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Tile { head, rows, sketch, spans, .. } = self.tile;
        let (format, keys) = (head.format, &head.format.keys);
        let n = keys.n_coded();
        // SAFETY: the caller's promises; groups begin and end at multiples of LANES.
        unsafe {
            let scratch = &mut *self.scratch;
            for r in 0..spans.len() {
                let factors = scratch.factors.as_mut_ptr().add(r * MAX_CODED);
                for (g, group) in keys.groups.iter().enumerate() {
                    // The sketch has its own query, from its first element on.
                    let query = match group.sketch {
                        true => sketch.add(r * rows.stride).wrapping_sub(group.from),
                        false => rows.q.add(r * rows.stride),
                    };
                    let mut sum = S::splat(0.0);
                    for channel in (group.from..group.to).step_by(LANES) {
                        let q = S::load(query.wrapping_add(channel));
                        sum = S::add(sum, q);
                        S::store(factors.add(channel), q);
                    }
                    if keys.needs_group_sums() {
                        scratch.group_sums[r * MAX_GROUPS + g] = S::reduce_add(sum);
                    }
                }
                if keys.channel_slots.is_some() {
                    let steps = head.halves.add(format.key_meta.steps + self.set * n);
                    let lows = head.halves.add(format.key_meta.lows + self.set * n);
                    let mut low = S::splat(0.0);
                    for channel in (0..n).step_by(LANES) {
                        let at = factors.add(channel);
                        let q = S::load(at);
                        low = S::fma(q, S::widen(lows.add(channel)), low);
                        S::store(at, S::mul(q, S::widen(steps.add(channel))));
                    }
                    scratch.low[r] = S::reduce_add(low);
                }
            }
        }
    }
}

/// Turns one group's sums over a set's slots into scores, or adds them to those of the groups before.
struct Combine<'a> {
    tile: Tile<'a>,
    set: usize,
    group: usize,
    scratch: *mut Scratch,
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { tile: Tile { head, rows, spans, .. }, set, group, .. } = self;
        let (meta, keys) = (&head.format.key_meta, &head.format.keys);
        let n_blocks = PAGE_BLOCKS / keys.n_sets().max(1);
        let is_last = group + 1 == keys.groups.len();
        // SAFETY: the caller's promises.
        unsafe {
            let scratch = &*self.scratch;
            for r in 0..spans.len() {
                let group_sum = || scratch.group_sums[r * MAX_GROUPS + group];
                for b in 0..n_blocks {
                    let slot = (set * n_blocks + b) * LANES;
                    let at = rows.weights.add(r * PAGE_TOKENS + slot);
                    let mut sum = S::load(scratch.sums.as_ptr().add(r * PAGE_TOKENS + b * LANES));
                    if let Levels::Uniform { offset } = keys.levels
                        && offset != 0.0
                    {
                        sum = S::add(sum, S::splat(offset * group_sum()));
                    }
                    let scale = match keys.scales {
                        true => S::widen(head.halves.add(meta.scales + group * PAGE_TOKENS + slot)),
                        false => S::splat(1.0),
                    };
                    let before = if group == 0 { S::splat(0.0) } else { S::load(at) };
                    let mut score = S::fma(sum, scale, before);
                    if keys.offsets {
                        let offset = S::widen(head.halves.add(meta.offsets + group * PAGE_TOKENS + slot));
                        score = S::fma(offset, S::splat(group_sum()), score);
                    }
                    if is_last && keys.channel_slots.is_some() {
                        // A slot's scale applies to its low ends, too.
                        score = S::fma(S::splat(scratch.low[r]), scale, score);
                    }
                    S::store(at, score);
                }
            }
        }
    }
}

/// Scores of the exact slots, in place of those of their codes; then weights.
struct Weigh<'a> {
    tile: Tile<'a>,
    scratch: *mut Scratch,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Tile { head, rows, spans, .. } = self.tile;
        let dim = head.format.head_dim;
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
                let row = Rows { weights, ..rows.skip(r) };
                [scratch.rescale[r]] = weigh::<S, 1>(row, 0, PAGE_BLOCKS);
                for slot in 0..head.exact.len() / (2 * dim) {
                    scratch.exact[r * PAGE_TOKENS + slot] = *weights.add(slot);
                    *weights.add(slot) = 0.0;
                }
            }
        }
    }
}

/// Puts the slots' scales for one group of channels into the weights.
struct ScaleWeights<'a> {
    tile: Tile<'a>,
    group: usize,
    scratch: *mut Scratch,
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
            let scales = head.halves.add(meta.scales + group * PAGE_TOKENS);
            for r in 0..spans.len() {
                let (mut sum, mut offsets) = (S::splat(0.0), S::splat(0.0));
                for slot in (0..PAGE_TOKENS).step_by(LANES) {
                    let mut weight = S::load(rows.weights.add(r * PAGE_TOKENS + slot));
                    if side.offsets {
                        let at = meta.offsets + group * PAGE_TOKENS + slot;
                        offsets = S::fma(weight, S::widen(head.halves.add(at)), offsets);
                    }
                    if side.scales {
                        weight = S::mul(weight, S::widen(scales.add(slot)));
                    }
                    sum = S::add(sum, weight);
                    S::store(scratch.factors.as_mut_ptr().add(r * PAGE_TOKENS + slot), weight);
                }
                let total = S::reduce_add(sum);
                let mut offset = if side.offsets { S::reduce_add(offsets) } else { 0.0 };
                if let Levels::Uniform { offset: each } = side.levels {
                    offset = total.mul_add(each, offset);
                }
                (scratch.total[r], scratch.offset[r]) = (total, offset);
            }
        }
    }
}

/// Adds one group's sums of values to the rows' own; behind the last one those of the exact slots.
struct AddValues<'a> {
    tile: Tile<'a>,
    group: usize,
    scratch: *mut Scratch,
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
                let (total, offset) = (S::splat(scratch.total[r]), S::splat(scratch.offset[r]));
                let rescale = S::splat(scratch.rescale[r]);
                for dim in (side.groups[group].from..side.groups[group].to).step_by(LANES) {
                    let mut sum = S::load(scratch.sums.as_ptr().add(r * MAX_HEAD_DIM + dim));
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

const _: () = assert!(PAGE_TOKENS <= MAX_HEAD_DIM && TABLE.is_power_of_two());
