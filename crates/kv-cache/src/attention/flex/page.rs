//! The inner loops: a tile of query rows against one page.
//!
//! A tile is up to [`TILE_ROWS`] rows. Its scores against 16 to 64 keys stay in registers during the loop
//! over the head's elements, and so do its outputs during the loop over the keys. Each score is one chain of
//! fused multiply-adds over the head's elements, and each output one over the keys in ascending order, so
//! neither depends on how rows and keys are grouped into tiles.
//!
//! # Source
//! Online softmax: Milakov and Gimelshein 2018, arXiv 1805.02867; over tiles: Dao et al. 2022,
//! arXiv 2205.14135. Deviations: powers of 2 instead of e (the query carries log₂ e), and sums over chunks
//! at fixed token indices, merged in ascending order.

use bytemuck::{Pod, Zeroable};

use crate::pages::page::{LANES, PAGE_BLOCKS, PAGE_TOKENS, PANEL, PageLayout};
use breakers_cpu::Isa;
use breakers_cpu::simd::{self, Simd, Stored};

/// The most query rows that are processed together, on the instruction set with the most registers. It is
/// seven because in some models (Qwen2.5-0.5B) seven heads share keys and values.
pub(crate) const TILE_ROWS: usize = 7;

/// The same for each instruction set, limited by its registers.
const fn tile_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => TILE_ROWS,
        Isa::Avx2 | Isa::Neon => 6,
        _ => 4,
    }
}

/// Bytes that one prefetch brings.
const CACHE_LINE: usize = 64;

/// Running softmax of some query rows: pointers into a task's scratch memory.
///
/// Row r has its query at `q + r · stride`, its weighted values at `acc + r · stride`, the largest score so
/// far at `max + r`, and the sum of its weights, in [`LANES`] parts, at `sum + r · LANES`.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// Elements from one row to the next of `q` and `acc`: `head_dim` rounded up to [`LANES`].
    pub(crate) stride: usize,
    /// Queries, times the scale and log₂ e.
    pub(crate) q: *const f32,
    pub(crate) acc: *mut f32,
    pub(crate) max: *mut f32,
    pub(crate) sum: *mut f32,
    /// Room for `TILE_ROWS · PAGE_TOKENS` weights.
    pub(crate) weights: *mut f32,
}

impl Rows {
    /// The same from row `n` on.
    ///
    /// # Safety
    /// There are more than `n` rows.
    #[inline(always)]
    pub(crate) unsafe fn skip(self, n: usize) -> Self {
        // SAFETY: row n exists.
        unsafe {
            Self {
                q: self.q.add(n * self.stride),
                acc: self.acc.add(n * self.stride),
                max: self.max.add(n),
                sum: self.sum.add(n * LANES),
                ..self
            }
        }
    }

    /// Sets `n_rows` rows to the softmax over nothing.
    ///
    /// # Safety
    /// There are `n_rows` rows.
    #[inline(always)]
    pub(crate) unsafe fn reset(self, n_rows: usize) {
        // SAFETY: the arrays hold n_rows rows.
        unsafe {
            std::slice::from_raw_parts_mut(self.max, n_rows).fill(f32::NEG_INFINITY);
            std::slice::from_raw_parts_mut(self.sum, n_rows * LANES).fill(0.0);
            std::slice::from_raw_parts_mut(self.acc, n_rows * self.stride).fill(0.0);
        }
    }
}

/// Slots that a row sees, relative to the page: may reach beyond it on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Span {
    pub(crate) from: i32,
    pub(crate) to: i32,
}

/// Lets `spans.len()` rows attend to one head's region of a page.
///
/// # Safety
/// - `S`'s instructions are there
/// - `region` points to a head's region of `layout` with elements of type `E`
/// - `rows` has as many rows as `spans`
///
/// `next` is the region that is read next; it is prefetched meanwhile.
#[inline(always)]
pub(crate) unsafe fn attend_page<S: Simd, E: Stored>(
    layout: &PageLayout,
    region: *const E,
    next: *const E,
    rows: Rows,
    spans: &[Span],
) {
    let n_tiles = spans.len().div_ceil(tile_rows(S::ISA));
    let mut start = 0;
    for tile in 0..n_tiles {
        let end = spans.len() * (tile + 1) / n_tiles;
        let spans = &spans[start..end];
        // SAFETY: the caller's promises; rows start..end exist, and R below is their number.
        unsafe {
            let rows = rows.skip(start);
            // One tile fetches ahead; the others would fetch the same again.
            let region = Region { start: region, next: if tile == 0 { next } else { region } };
            match spans.len() {
                1 => attend_tile::<S, E, 1>(layout, region, rows, spans),
                2 => attend_tile::<S, E, 2>(layout, region, rows, spans),
                3 => attend_tile::<S, E, 3>(layout, region, rows, spans),
                4 => attend_tile::<S, E, 4>(layout, region, rows, spans),
                5 => attend_tile::<S, E, 5>(layout, region, rows, spans),
                6 => attend_tile::<S, E, 6>(layout, region, rows, spans),
                _ => attend_tile::<S, E, TILE_ROWS>(layout, region, rows, spans),
            }
        }
        start = end;
    }
}

/// A head's region of a page, and the one that is read next.
#[derive(Clone, Copy)]
struct Region<E> {
    start: *const E,
    next: *const E,
}

/// # Safety
/// As [`attend_page`], with `R` rows.
#[inline(always)]
unsafe fn attend_tile<S: Simd, E: Stored, const R: usize>(
    layout: &PageLayout,
    region: Region<E>,
    rows: Rows,
    spans: &[Span],
) {
    debug_assert_eq!(spans.len(), R);
    let (mut from, mut to) = (PAGE_TOKENS as i32, 0);
    let mut masked = false;
    for span in spans {
        if span.from < span.to {
            from = from.min(span.from.max(0));
            to = to.max(span.to.min(PAGE_TOKENS as i32));
        }
    }
    if from >= to {
        return;
    }
    let (from, to) = (from as usize, to as usize);
    let (first, end) = (from / LANES, to.div_ceil(LANES));
    for span in spans {
        masked |= span.from > (first * LANES) as i32 || span.to < (end * LANES) as i32;
    }
    // SAFETY: the caller's promises; blocks first..end and keys from..to lie in the page.
    unsafe {
        let mut block = first;
        while block < end {
            let left = end - block;
            let scores = (layout, region, rows, spans, masked, block);
            block += if R * 4 <= S::ACCUMULATORS && left >= 4 {
                score::<S, E, R, 4>(scores)
            } else if R * 2 <= S::ACCUMULATORS && left >= 2 {
                score::<S, E, R, 2>(scores)
            } else {
                score::<S, E, R, 1>(scores)
            };
        }
        let rescale = weigh::<S, R>(rows, first, end);
        for panel in (0..layout.padded_dim).step_by(PANEL) {
            let width = PANEL.min(layout.padded_dim - panel);
            let values = layout.value_index(0, panel);
            let mut column = 0;
            while column < width {
                let left = (width - column) / LANES;
                let sums = (region, values + column, width, rows, panel + column, from..to, &rescale);
                column += if R * 4 <= S::ACCUMULATORS && left >= 4 {
                    sum_values::<S, E, R, 4>(sums)
                } else if R * 2 <= S::ACCUMULATORS && left >= 2 {
                    sum_values::<S, E, R, 2>(sums)
                } else {
                    sum_values::<S, E, R, 1>(sums)
                };
            }
        }
    }
}

/// Scores of `R` rows against `B` blocks of keys, into the rows' weights; returns `B`.
///
/// # Safety
/// As [`attend_page`], with `R` rows; blocks `first..first + B` lie in the page.
#[inline(always)]
unsafe fn score<S: Simd, E: Stored, const R: usize, const B: usize>(
    (layout, region, rows, spans, masked, first): (&PageLayout, Region<E>, Rows, &[Span], bool, usize),
) -> usize {
    // SAFETY: `key_index` lies in the region for slots of the page and elements of the head.
    unsafe {
        let keys = region.start.add(layout.key_index(first * LANES, 0));
        let next = region.next.wrapping_add(layout.key_index(first * LANES, 0)).cast::<u8>();
        let step = B * LANES * size_of::<E>();
        let block_stride = layout.head_dim * LANES;
        let mut scores = [[S::splat(0.0); B]; R];
        for dim in 0..layout.head_dim {
            let mut key = [S::splat(0.0); B];
            for b in 0..B {
                key[b] = S::widen(keys.add(b * block_stride + dim * LANES));
            }
            for line in (0..step).step_by(CACHE_LINE) {
                S::prefetch(next.wrapping_add(dim * step + line));
            }
            for r in 0..R {
                let q = S::splat(*rows.q.add(r * rows.stride + dim));
                for b in 0..B {
                    scores[r][b] = S::fma(q, key[b], scores[r][b]);
                }
            }
        }
        for r in 0..R {
            for b in 0..B {
                let mut score = scores[r][b];
                if masked {
                    let lane = ((first + b) * LANES) as i32;
                    score = S::mask(score, spans[r].from - lane, spans[r].to - lane);
                }
                S::store(rows.weights.add(r * PAGE_TOKENS + (first + b) * LANES), score);
            }
        }
    }
    B
}

/// Turns the rows' scores in the blocks `first..end` into weights and adds these to their sums; returns what
/// the sums so far are to be multiplied by.
///
/// # Safety
/// `S`'s instructions are there, and `R` rows with scores in these blocks.
#[inline(always)]
pub(crate) unsafe fn weigh<S: Simd, const R: usize>(rows: Rows, first: usize, end: usize) -> [f32; R] {
    // Each step handles all rows: one row's chain of operations is long, and the chains of several rows
    // overlap.
    let mut rescale = [1.0; R];
    // SAFETY: the caller's promises.
    unsafe {
        for block in (0..first).chain(end..PAGE_BLOCKS) {
            for r in 0..R {
                S::store(rows.weights.add(r * PAGE_TOKENS + block * LANES), S::splat(f32::NEG_INFINITY));
            }
        }
        let mut reference = [S::splat(0.0); R];
        for r in 0..R {
            let score = |block: usize| S::load(rows.weights.add(r * PAGE_TOKENS + block * LANES));
            let page = S::reduce_max(S::max(S::max(score(0), score(1)), S::max(score(2), score(3))));
            let before = *rows.max.add(r);
            let after = if page > before { page } else { before };
            // A row that sees nothing, now and before: any reference makes its weights zero.
            reference[r] = S::splat(if after == f32::NEG_INFINITY { 0.0 } else { after });
            rescale[r] = if after == before { 1.0 } else { simd::exp2(before - after) };
            *rows.max.add(r) = after;
        }
        for r in 0..R {
            let mut parts = [S::splat(0.0); PAGE_BLOCKS];
            for block in 0..PAGE_BLOCKS {
                let at = rows.weights.add(r * PAGE_TOKENS + block * LANES);
                parts[block] = S::exp2(S::sub(S::load(at), reference[r]));
                S::store(at, parts[block]);
            }
            let page_sum = S::add(S::add(parts[0], parts[1]), S::add(parts[2], parts[3]));
            let sum = rows.sum.add(r * LANES);
            S::store(sum, S::fma(S::load(sum), S::splat(rescale[r]), page_sum));
        }
    }
    rescale
}

/// Adds the weighted values of the slots in `slots` to `R` rows' sums, `B` registers of the head's elements
/// from `dim` on; returns the number of elements.
///
/// # Safety
/// As [`attend_page`], with `R` rows; `first` is the index of slot 0's elements in a panel of the given
/// width, which has `B` registers from there on.
#[inline(always)]
unsafe fn sum_values<S: Simd, E: Stored, const R: usize, const B: usize>(
    (region, first, width, rows, dim, slots, rescale): (
        Region<E>,
        usize,
        usize,
        Rows,
        usize,
        std::ops::Range<usize>,
        &[f32; R],
    ),
) -> usize {
    // SAFETY: the caller's promises.
    unsafe {
        let (values, next) = (region.start.add(first), region.next.wrapping_add(first));
        let mut sums = [[S::splat(0.0); B]; R];
        for r in 0..R {
            let factor = S::splat(rescale[r]);
            for b in 0..B {
                sums[r][b] = S::mul(S::load(rows.acc.add(r * rows.stride + dim + b * LANES)), factor);
            }
        }
        for slot in slots {
            let mut value = [S::splat(0.0); B];
            for b in 0..B {
                value[b] = S::widen(values.add(slot * width + b * LANES));
            }
            for line in (0..B * LANES).step_by(CACHE_LINE / size_of::<E>()) {
                S::prefetch(next.wrapping_add(slot * width + line).cast());
            }
            for r in 0..R {
                let weight = S::splat(*rows.weights.add(r * PAGE_TOKENS + slot));
                for b in 0..B {
                    sums[r][b] = S::fma(weight, value[b], sums[r][b]);
                }
            }
        }
        for r in 0..R {
            for b in 0..B {
                S::store(rows.acc.add(r * rows.stride + dim + b * LANES), sums[r][b]);
            }
        }
    }
    B * LANES
}

/// A finished or growing softmax of one row: the largest score, the sum of weights, the weighted values.
#[derive(Clone, Copy)]
pub(crate) struct Partial {
    pub(crate) max: f32,
    pub(crate) sum: f32,
    pub(crate) values: *mut f32,
}

/// Joins the softmax of a later chunk to that of the chunks before it.
///
/// # Safety
/// `S`'s instructions are there; the values of both are `stride` elements, a multiple of [`LANES`].
#[inline(always)]
pub(crate) unsafe fn merge<S: Simd>(total: &mut Partial, chunk: &Partial, stride: usize) {
    if chunk.max == f32::NEG_INFINITY {
        return;
    }
    // SAFETY: the caller's promises.
    unsafe {
        if total.max == f32::NEG_INFINITY {
            for dim in (0..stride).step_by(LANES) {
                S::store(total.values.add(dim), S::load(chunk.values.add(dim)));
            }
            (total.max, total.sum) = (chunk.max, chunk.sum);
            return;
        }
        let max = if chunk.max > total.max { chunk.max } else { total.max };
        let (a, b) = (simd::exp2(total.max - max), simd::exp2(chunk.max - max));
        let (a_lanes, b_lanes) = (S::splat(a), S::splat(b));
        for dim in (0..stride).step_by(LANES) {
            let later = S::mul(S::load(chunk.values.add(dim)), b_lanes);
            S::store(total.values.add(dim), S::fma(S::load(total.values.add(dim)), a_lanes, later));
        }
        total.max = max;
        total.sum = total.sum.mul_add(a, chunk.sum * b);
    }
}

/// Writes the row's result, `len` elements: its weighted values divided by the sum of weights; zeros if it
/// saw nothing.
///
/// # Safety
/// `S`'s instructions are there; `total` has `len` values, rounded up to [`LANES`]; `out` is valid for `len`.
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd>(total: &Partial, out: *mut f32, len: usize) {
    // SAFETY: the caller's promises; what is left of the last register goes through an array.
    unsafe {
        let empty = total.max == f32::NEG_INFINITY;
        let sum = S::splat(total.sum);
        for dim in (0..len).step_by(LANES) {
            // Adding zero turns −0 into 0; the sign would depend on how many weights were zero.
            let quotient = if empty {
                S::splat(0.0)
            } else {
                S::add(S::div(S::load(total.values.add(dim)), sum), S::splat(0.0))
            };
            if len - dim >= LANES {
                S::store(out.add(dim), quotient);
            } else {
                let mut last = [0.0; LANES];
                S::store(last.as_mut_ptr(), quotient);
                out.add(dim).copy_from_nonoverlapping(last.as_ptr(), len - dim);
            }
        }
    }
}

/// Writes a head's query, times `scale`, to `q`, and returns whether all elements were finite.
///
/// # Safety
/// `S`'s instructions are there; `q` is valid for `from.len()` elements, rounded up to [`LANES`].
#[inline(always)]
pub(crate) unsafe fn scale_query<S: Simd>(from: &[f32], scale: f32, q: *mut f32) -> bool {
    // SAFETY: the caller's promises.
    unsafe {
        let (zero, scale) = (S::splat(0.0), S::splat(scale));
        // Zero times a finite number is zero; otherwise it is NaN.
        let mut check = zero;
        for dim in (0..from.len()).step_by(LANES) {
            let left = from.len() - dim;
            let x = if left >= LANES {
                S::load(from.as_ptr().add(dim))
            } else {
                let mut last = [0.0f32; LANES];
                last[..left].copy_from_slice(&from[dim..]);
                S::load(last.as_ptr())
            };
            check = S::fma(x, zero, check);
            S::store(q.add(dim), S::mul(x, scale));
        }
        S::reduce_add(check) == 0.0
    }
}
