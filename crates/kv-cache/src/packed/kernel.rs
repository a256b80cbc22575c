//! Attention over packed pages: a tile of query rows against one head's codes.
//!
//! Queries and weights become integers, row by row ([`factors`](super::factors)), so that sums over codes are exact; what
//! is made of these, and the softmax, is a row's own as well. So neither depends on how rows and slots are put into
//! tiles. A channel's step goes into the query, its low end into a constant of the page; a slot's scale goes into its
//! score, or its weight: what [`accumulate`](super::accumulate) adds up are bytes as they stand in the page.

use std::mem::MaybeUninit;

use breakers_backend::cpu::Isa;
use half::f16;

use super::accumulate::{Codes, ROWS, Sums, accumulate, tile_rows};
use super::factors::{self, Rounded};
use super::layer::Next;
use super::queries::Queries;
use super::run::{Place, QUAD};
use super::{
    Group, MAX_CODED, MAX_GROUPS, MAX_HEAD_DIM, PackedFormat, PackedPage, ValueRun, WIDTH_BITS, places_of,
};
use crate::kernel::{Rows, Span};
use crate::page::{LANES, PAGE_BLOCKS, PAGE_TOKENS};
use crate::simd::{self, Kernel, LARGEST, Quad, Simd};

/// One head's region of a packed page, and what all tiles need of it.
#[derive(Clone, Copy)]
struct Head<'a> {
    format: &'a PackedFormat,
    words: *const u32,
    halves: *const f16,
    exact: &'a [f16],
    /// Of an adaptive format: the channels in their order, and where their quads stand.
    order: &'a [u8],
    places: &'a [Place],
    values: &'a Values,
    /// The region that is read next.
    next: *const u32,
}

/// What a tile works with, `[ROWS, …]` each. Nothing is read that was not written before.
#[repr(align(64))]
struct Scratch {
    /// Queries' elements times the channels' steps.
    factors: [f32; ROWS * MAX_CODED],
    /// Factors as integers.
    quads: [Quad; ROWS * MAX_CODED / QUAD],
    /// What comes out of the codes: scores, then values.
    sums: [i32; ROWS * MAX_HEAD_DIM],
    /// What the integers of a query stand for, of each group of channels.
    rounded: [Rounded; ROWS * MAX_GROUPS],
    /// Sums of the query times the channels' low ends.
    low: [f32; ROWS],
    /// What the integers of the weights stand for.
    weights: [Rounded; ROWS],
    /// Sums of the weights times the slots' offsets.
    offset: [f32; ROWS],
    /// What this page's sums are multiplied by.
    share: [f32; ROWS],
    /// What the sums so far are multiplied by.
    rescale: [f32; ROWS],
    /// Weights of the exact slots.
    exact: [f32; ROWS * PAGE_TOKENS],
}

/// What all rows need of the values' scales.
struct Values {
    /// For each group of channels, the slots' scales as shares of the largest one, times [`LARGEST`].
    factors: [f32; MAX_GROUPS * PAGE_TOKENS],
    /// What one of these stands for.
    steps: [f32; MAX_GROUPS],
}

/// Lets `spans.len()` rows attend to one head of a packed page, and fetches what is read next meanwhile.
///
/// `queries` are read only where the format does not change them from page to page.
///
/// # Safety
/// - the processor has the instructions of `isa`
/// - the page is of the format and not evicted
/// - `rows` and `queries` have as many rows as `spans`
pub(crate) unsafe fn attend_page(
    isa: Isa,
    format: &PackedFormat,
    (page, head): (&PackedPage, usize),
    next: Next,
    rows: Rows,
    queries: Queries,
    spans: &[Span],
) {
    let region = page.region(format, head);
    let mut places = [const { MaybeUninit::<Place>::uninit() }; MAX_HEAD_DIM / QUAD];
    let n_adaptive = if format.key_runs.is_empty() { format.keys.n_coded() } else { 0 };
    let at = format.key_meta.widths * size_of::<f16>();
    let (order, rest) = bytemuck::cast_slice::<u32, u8>(region)[at..].split_at(n_adaptive);
    let places =
        fill_places(&rest[..(n_adaptive / QUAD).div_ceil(8 / WIDTH_BITS)], &mut places[..n_adaptive / QUAD]);
    let words = region.as_ptr();
    let exact = page.exact(format, head);
    // Codes are fetched while those of this page are read.
    simd::dispatch(isa, Fetch { format, next });
    let mut values = MaybeUninit::<Values>::uninit();
    // SAFETY: the region is one of the format.
    let values = unsafe {
        simd::dispatch(isa, PrepareValues { format, halves: words.cast(), to: values.as_mut_ptr() });
        &*values.as_ptr()
    };
    let mut head =
        Head { format, words, halves: words.cast(), exact, order, places, values, next: next.region };
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let mut start = 0;
    while start < spans.len() {
        let n_rows = tile_rows(isa, spans.len() - start);
        // SAFETY: the caller's promises; n_rows rows from `start` on exist.
        unsafe {
            let spans = &spans[start..start + n_rows];
            let tile = Tile { isa, head, rows: rows.skip(start), queries: queries.skip(start), spans };
            tile.attend(scratch.as_mut_ptr());
        }
        start += n_rows;
        // One tile fetches ahead; the others would fetch the same again.
        head.next = words;
    }
}

/// Makes [`Values`] of a region.
struct PrepareValues<'a> {
    format: &'a PackedFormat,
    halves: *const f16,
    to: *mut Values,
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

/// Places of quads whose widths, two to a byte, stand in a page; of those that have one.
fn fill_places<'a>(widths: &[u8], places: &'a mut [MaybeUninit<Place>]) -> &'a [Place] {
    let widths =
        widths.iter().flat_map(|byte| [byte & 0xF, byte >> WIDTH_BITS]).take_while(|&width| width > 0);
    let mut n = 0;
    for (to, place) in places.iter_mut().zip(places_of(widths)) {
        to.write(place);
        n += 1;
    }
    // SAFETY: the first n were written.
    unsafe { std::slice::from_raw_parts(places.as_ptr().cast(), n) }
}

/// Some rows against one head's region.
#[derive(Clone, Copy)]
struct Tile<'a> {
    isa: Isa,
    head: Head<'a>,
    rows: Rows,
    queries: Queries,
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
            // SAFETY: the caller's promises; runs lie in the lanes, a block's lanes in the region, and behind them
            // the values' ones.
            unsafe {
                let (factors, factor_stride) = if self.queries.exist() {
                    self.queries.quads()
                } else {
                    self.prepare(set, scratch);
                    ((&raw const (*scratch).quads).cast(), MAX_CODED / QUAD)
                };
                let first = set * n_blocks;
                let sums = Sums {
                    words: words.add(first * stride),
                    stride,
                    n_blocks,
                    factors,
                    factor_stride,
                    planes: keys.query_planes(),
                    out: (&raw mut (*scratch).sums).cast(),
                    out_stride: PAGE_TOKENS,
                    is_new: true,
                    next: next.wrapping_add(first * stride),
                };
                let n_rows = self.spans.len();
                for (g, group) in keys.groups.iter().enumerate() {
                    if format.key_runs.is_empty() {
                        accumulate(self.isa, n_rows, sums, Codes::numbers(places));
                    }
                    let runs =
                        format.key_runs.iter().filter(|run| (group.from..group.to).contains(&run.from));
                    for (at, run) in runs.enumerate() {
                        let sums =
                            Sums { is_new: at == 0, factors: sums.factors.add(run.from / QUAD), ..sums };
                        accumulate(self.isa, n_rows, sums, Codes::of(run, &keys.tables));
                    }
                    simd::dispatch(self.isa, Combine { tile: self, set, group: g, scratch });
                }
            }
        }
    }

    /// Queries of one set of channels' steps.
    ///
    /// # Safety
    /// As [`Self::attend`].
    unsafe fn prepare(self, set: usize, scratch: *mut Scratch) {
        let tile = self;
        match self.spans.len() {
            1 => simd::dispatch(self.isa, Prepare::<1> { tile, set, scratch }),
            2 => simd::dispatch(self.isa, Prepare::<2> { tile, set, scratch }),
            3 => simd::dispatch(self.isa, Prepare::<3> { tile, set, scratch }),
            4 => simd::dispatch(self.isa, Prepare::<4> { tile, set, scratch }),
            _ => simd::dispatch(self.isa, Prepare::<ROWS> { tile, set, scratch }),
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
            // SAFETY: the caller's promises; each element's run lies in the region, and behind all of them scales.
            unsafe {
                simd::dispatch(self.isa, ScaleWeights { tile: self, group: g, scratch });
                let mut dim = group.from;
                for ValueRun { n_blocks, first, n_words, run } in runs.by_ref() {
                    let sums = Sums {
                        words: words.add(*first),
                        stride: n_words * LANES,
                        n_blocks: *n_blocks,
                        factors: (&raw const (*scratch).quads).cast(),
                        factor_stride: MAX_CODED / QUAD,
                        planes: 2,
                        out: (&raw mut (*scratch).sums).cast::<i32>().add(dim),
                        out_stride: MAX_HEAD_DIM,
                        is_new: true,
                        next: next.wrapping_add(*first),
                    };
                    accumulate(self.isa, self.spans.len(), sums, Codes::of(run, &values.tables));
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

/// Puts the steps of one set of channels into the queries, and makes integers of them.
struct Prepare<'a, const R: usize> {
    tile: Tile<'a>,
    set: usize,
    scratch: *mut Scratch,
}

impl<const R: usize> Kernel for Prepare<'_, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Tile { head, rows, .. } = self.tile;
        let (format, keys) = (head.format, &head.format.keys);
        let n = keys.n_coded();
        // SAFETY: the caller's promises; groups begin and end at multiples of LANES, and an adaptive format has one.
        unsafe {
            let scratch = &mut *self.scratch;
            let steps = head.halves.add(format.key_meta.steps + self.set * n);
            let lows = head.halves.add(format.key_meta.lows + self.set * n);
            let zero = S::splat(0.0);
            let mut low = [zero; R];
            for channel in (0..n).step_by(LANES) {
                let (step, low_end) = (S::widen(steps.add(channel)), S::widen(lows.add(channel)));
                let order = head.order.get(channel..channel + LANES).map(|order| S::indices(order.as_ptr()));
                for r in 0..R {
                    let query = rows.q.add(r * rows.stride);
                    let q = match order {
                        Some(order) => S::pick(query, n, order),
                        None => S::load(query.add(channel)),
                    };
                    low[r] = S::fma(q, low_end, low[r]);
                    S::store(scratch.factors.as_mut_ptr().add(r * MAX_CODED + channel), S::mul(q, step));
                }
            }
            for r in 0..R {
                scratch.low[r] = S::reduce_add(low[r]);
                for (g, group) in keys.groups.iter().enumerate() {
                    let (at, n) = (r * MAX_CODED + group.from, group.to - group.from);
                    let from = scratch.factors.as_ptr().add(at);
                    let to = scratch.quads.as_mut_ptr().add(at / QUAD);
                    scratch.rounded[r * MAX_GROUPS + g] =
                        factors::round::<S>(keys.query_planes(), from, n, to, keys.needs_sums());
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
        let Self { tile: Tile { head, rows, spans, queries, .. }, set, group, .. } = self;
        let (meta, keys) = (&head.format.key_meta, &head.format.keys);
        let n_blocks = PAGE_BLOCKS / keys.n_sets().max(1);
        // Low ends are those of all groups: they come with the last one.
        let has_low = keys.channel_slots.is_some() && group + 1 == keys.groups.len();
        // SAFETY: the caller's promises.
        unsafe {
            let scratch = &*self.scratch;
            for r in 0..spans.len() {
                let rounded = if queries.exist() {
                    *queries.rounded(r).add(group)
                } else {
                    scratch.rounded[r * MAX_GROUPS + group]
                };
                let low = if has_low { scratch.low[r] } else { 0.0 };
                let Group { step, offset, .. } = keys.groups[group];
                let (step, offset) = (rounded.step * step, rounded.sum.mul_add(offset, low));
                let (step, offset) = (S::splat(step), S::splat(offset));
                for b in 0..n_blocks {
                    let slot = (set * n_blocks + b) * LANES;
                    let at = rows.weights.add(r * PAGE_TOKENS + slot);
                    let sum = S::words(scratch.sums.as_ptr().add(r * PAGE_TOKENS + b * LANES).cast());
                    let mut score = S::fma(S::float(sum), step, offset);
                    if keys.scales {
                        let scale = head.halves.add(meta.scales + group * PAGE_TOKENS + slot);
                        score = S::mul(score, S::widen(scale));
                    }
                    if keys.offsets {
                        let offset = S::widen(head.halves.add(meta.offsets + group * PAGE_TOKENS + slot));
                        score = S::fma(offset, S::splat(rounded.sum), score);
                    }
                    if group > 0 {
                        score = S::add(score, S::load(at));
                    }
                    S::store(at, score);
                }
            }
        }
    }
}

/// Scores of the exact slots, in place of those of their codes; then weights, as shares of the page's largest.
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
                // Either the page or what came before it has the largest score of both: that one keeps its weights.
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

const _: () = assert!(PAGE_TOKENS <= MAX_HEAD_DIM && MAX_CODED <= 512);
