//! The inner loops over packed pages: codes become numbers in registers, once for a tile of query rows.
//!
//! As in [`crate::kernel`], each score is one chain of fused multiply-adds over the head's channels and each
//! output one over the slots in ascending order, so that neither depends on how rows and slots are put into
//! tiles. A channel's step goes into the query, its low end into a constant of the page; a slot's scale goes into
//! its score, or its weight.

use breakers_backend::cpu::Isa;
use half::f16;

use super::{Levels, MAX_CODED, MAX_GROUPS, PackedFormat, PackedPage, Place, WIDTH_BITS, place_codes};
use crate::kernel::{Rows, Span, weigh};
use crate::page::{LANES, PAGE_BLOCKS, PAGE_TOKENS};
use crate::simd::{self, Kernel, Simd};

/// One head's region of a packed page, and what all tiles need of it.
struct Head<'a> {
    format: &'a PackedFormat,
    words: *const u32,
    halves: *const f16,
    exact: &'a [f16],
    places: &'a [Place],
}

/// Lets `spans.len()` rows attend to one head of a packed page.
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
    rows: Rows,
    sketch: *const f32,
    spans: &[Span],
) {
    // A call for each page: inlined into the plain kernels, it would be compiled for each of these.
    simd::dispatch(isa, AttendPage { format, page, head, rows, sketch, spans });
}

/// The arguments of [`attend_page`].
struct AttendPage<'a> {
    format: &'a PackedFormat,
    page: &'a PackedPage,
    head: usize,
    rows: Rows,
    sketch: *const f32,
    spans: &'a [Span],
}

impl Kernel for AttendPage<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { format, page, head, rows, sketch, spans } = self;
        // SAFETY: the caller's promises, which were those of `attend_page`.
        unsafe { attend_as::<S>(format, page, head, rows, sketch, spans) }
    }
}

/// # Safety
/// As [`attend_page`], with `S`'s instructions.
#[inline(always)]
unsafe fn attend_as<S: Simd>(
    format: &PackedFormat,
    page: &PackedPage,
    head: usize,
    rows: Rows,
    sketch: *const f32,
    spans: &[Span],
) {
    let region = page.region(format, head);
    let mut adaptive = [Place::default(); MAX_CODED];
    let places = if format.places.is_empty() {
        let n = format.keys.n_coded();
        let halves: &[u16] = &bytemuck::cast_slice(region)[format.key_meta.widths..];
        let widths = (0..n).map(|channel| {
            let per_half = 16 / WIDTH_BITS;
            (halves[channel / per_half] >> (channel % per_half * WIDTH_BITS)) as u8 & 0xF
        });
        place_codes(widths, &mut adaptive[..n]);
        &adaptive[..n]
    } else {
        &format.places
    };
    let head = Head {
        format,
        words: region.as_ptr(),
        halves: region.as_ptr().cast(),
        exact: page.exact(format, head),
        places,
    };
    let mut start = 0;
    while start < spans.len() {
        let left = (spans.len() - start).min(S::TILE_ROWS);
        // SAFETY: the caller's promises; rows from start on exist, and R is at most their number.
        unsafe {
            let sketch = sketch.wrapping_add(start * rows.stride);
            let (rows, spans) = (rows.skip(start), &spans[start..]);
            start += match left {
                1 => attend_tile::<S, 1>(&head, rows, sketch, &spans[..1]),
                2 => attend_tile::<S, 2>(&head, rows, sketch, &spans[..2]),
                3 => attend_tile::<S, 3>(&head, rows, sketch, &spans[..3]),
                4 | 5 => attend_tile::<S, 4>(&head, rows, sketch, &spans[..4]),
                _ => attend_tile::<S, 6>(&head, rows, sketch, &spans[..6]),
            };
        }
    }
}

/// Queries as the scores need them.
struct Queries<const R: usize> {
    /// Times the channels' steps, if there are any.
    scaled: [[f32; MAX_CODED]; R],
    /// Sum of the query times the channels' low ends.
    low: [f32; R],
    /// Sums of the query over each group.
    sums: [[f32; MAX_GROUPS]; R],
}

/// Returns `R`.
///
/// # Safety
/// As [`attend_page`], with `R` rows.
#[inline(always)]
unsafe fn attend_tile<S: Simd, const R: usize>(
    head: &Head<'_>,
    rows: Rows,
    sketch: *const f32,
    spans: &[Span],
) -> usize {
    let (mut from, mut to) = (PAGE_TOKENS as i32, 0);
    for span in spans {
        if span.from < span.to {
            from = from.min(span.from.max(0));
            to = to.max(span.to.min(PAGE_TOKENS as i32));
        }
    }
    if from >= to {
        return R;
    }
    let masked = spans.iter().any(|span| span.from > 0 || span.to < PAGE_TOKENS as i32);
    let format = head.format;
    let keys = &format.keys;
    // SAFETY: the caller's promises.
    unsafe {
        let mut queries =
            Queries { scaled: [[0.0; MAX_CODED]; R], low: [0.0; R], sums: [[0.0; MAX_GROUPS]; R] };
        let needs_sums = keys.offsets || matches!(keys.levels, Levels::Uniform { offset } if offset != 0.0);
        let n_sets = keys.n_sets().max(1);
        let blocks_per_set = PAGE_BLOCKS / n_sets;
        for set in 0..n_sets {
            prepare::<S, R>(head, rows, sketch, set, needs_sums && set == 0, &mut queries);
            let mut block = set * blocks_per_set;
            let end = block + blocks_per_set;
            while block < end {
                let left = end - block;
                block += if R * 4 <= S::ACCUMULATORS && left >= 4 {
                    score::<S, R, 4>(head, rows, &queries, block)
                } else {
                    score::<S, R, 1>(head, rows, &queries, block)
                };
            }
        }
        if !head.exact.is_empty() {
            score_exact::<S, R>(head, rows);
        }
        if masked {
            for row in 0..R {
                for block in 0..PAGE_BLOCKS {
                    let lane = (block * LANES) as i32;
                    let at = rows.weights.add(row * PAGE_TOKENS + block * LANES);
                    S::store(at, S::mask(S::load(at), spans[row].from - lane, spans[row].to - lane));
                }
            }
        }
        let rescale = weigh::<S, R>(rows, 0, PAGE_BLOCKS);
        sum_values::<S, R>(head, rows, &rescale);
    }
    R
}

/// Puts the steps of one set of channels into the queries.
///
/// # Safety
/// As [`attend_page`], with `R` rows.
#[inline(always)]
unsafe fn prepare<S: Simd, const R: usize>(
    head: &Head<'_>,
    rows: Rows,
    sketch: *const f32,
    set: usize,
    needs_sums: bool,
    queries: &mut Queries<R>,
) {
    let (format, keys) = (head.format, &head.format.keys);
    let n = keys.n_coded();
    // SAFETY: the caller's promises; groups begin and end at multiples of LANES.
    unsafe {
        for r in 0..R {
            for (g, group) in keys.groups.iter().enumerate() {
                // The sketch has its own query, from its first element on.
                let query = match group.sketch {
                    true => sketch.add(r * rows.stride).wrapping_sub(group.from),
                    false => rows.q.add(r * rows.stride),
                };
                let mut sum = S::splat(0.0);
                for channel in (group.from..group.to).step_by(LANES) {
                    let q = S::load(query.wrapping_add(channel));
                    if needs_sums {
                        sum = S::add(sum, q);
                    }
                    S::store(queries.scaled[r].as_mut_ptr().add(channel), q);
                }
                if needs_sums {
                    queries.sums[r][g] = S::reduce_add(sum);
                }
            }
            if keys.channel_slots.is_some() {
                let mut low = S::splat(0.0);
                for channel in (0..n).step_by(LANES) {
                    let at = queries.scaled[r].as_mut_ptr().add(channel);
                    let q = S::load(at);
                    let meta = set * n + channel;
                    low = S::fma(q, S::widen(head.halves.add(format.key_meta.lows + meta)), low);
                    S::store(at, S::mul(q, S::widen(head.halves.add(format.key_meta.steps + meta))));
                }
                queries.low[r] = S::reduce_add(low);
            }
        }
    }
}

/// Scores of `R` rows against `B` blocks of slots, into the rows' weights; returns `B`.
///
/// # Safety
/// As [`attend_page`], with `R` rows; blocks `first..first + B` lie in the page.
#[inline(always)]
unsafe fn score<S: Simd, const R: usize, const B: usize>(
    head: &Head<'_>,
    rows: Rows,
    queries: &Queries<R>,
    first: usize,
) -> usize {
    let (format, keys) = (head.format, &head.format.keys);
    let stride = format.key_words * LANES;
    // SAFETY: the caller's promises; a code's second word lies in the region or the line behind it.
    unsafe {
        let words = head.words.add(first * stride);
        let mut totals = [[S::splat(0.0); B]; R];
        for (g, group) in keys.groups.iter().enumerate() {
            let mut sums = [[S::splat(0.0); B]; R];
            let table = match &keys.levels {
                Levels::Uniform { .. } => None,
                Levels::Tables(tables, _) => Some(tables.as_ptr()),
            };
            for channel in group.from..group.to {
                let place = *head.places.get_unchecked(channel);
                let at = words.add(place.word as usize * LANES);
                let mut key = [S::splat(0.0); B];
                let (shift, mask) = (place.shift, place.mask);
                // Few codes go on in a second word.
                let within = u64::from(mask) << shift <= u64::from(u32::MAX);
                for b in 0..B {
                    let at = at.add(b * stride);
                    key[b] = match table.map(|tables| tables.add(place.table as usize).cast()) {
                        None if within => S::codes_within(at, shift, mask),
                        None => S::codes(at, at.add(LANES), shift, mask),
                        Some(table) if within => S::levels_within(at, shift, mask, table),
                        Some(table) => S::levels(at, at.add(LANES), shift, mask, table),
                    };
                }
                for r in 0..R {
                    let q = S::splat(*queries.scaled[r].get_unchecked(channel));
                    for b in 0..B {
                        sums[r][b] = S::fma(q, key[b], sums[r][b]);
                    }
                }
            }
            for b in 0..B {
                let at = g * PAGE_TOKENS + (first + b) * LANES;
                let scale = match keys.scales {
                    true => S::widen(head.halves.add(format.key_meta.scales + at)),
                    false => S::splat(1.0),
                };
                for r in 0..R {
                    let mut sum = sums[r][b];
                    if let Levels::Uniform { offset } = keys.levels {
                        sum = S::add(sum, S::splat(offset * queries.sums[r][g]));
                    }
                    totals[r][b] = S::fma(sum, scale, totals[r][b]);
                    if keys.offsets {
                        let offset = S::widen(head.halves.add(format.key_meta.offsets + at));
                        totals[r][b] = S::fma(offset, S::splat(queries.sums[r][g]), totals[r][b]);
                    }
                }
            }
        }
        for r in 0..R {
            for b in 0..B {
                let mut score = totals[r][b];
                if keys.channel_slots.is_some() {
                    let low = S::splat(queries.low[r]);
                    // A slot's scale applies to its low ends, too.
                    score = match keys.scales {
                        true => {
                            let at = format.key_meta.scales + (first + b) * LANES;
                            S::fma(low, S::widen(head.halves.add(at)), score)
                        }
                        false => S::add(score, low),
                    };
                }
                S::store(rows.weights.add(r * PAGE_TOKENS + (first + b) * LANES), score);
            }
        }
    }
    B
}

/// Scores of the exact slots, in place of those of their codes.
///
/// # Safety
/// As [`attend_page`], with `R` rows.
#[inline(always)]
unsafe fn score_exact<S: Simd, const R: usize>(head: &Head<'_>, rows: Rows) {
    let dim = head.format.head_dim;
    for (slot, exact) in head.exact.chunks_exact(2 * dim).enumerate() {
        for r in 0..R {
            // SAFETY: the caller's promises; an exact slot has a key and a value of `dim` elements.
            unsafe {
                let q = rows.q.add(r * rows.stride);
                let mut sum = S::splat(0.0);
                for channel in (0..dim).step_by(LANES) {
                    sum = S::fma(S::load(q.add(channel)), S::widen(exact.as_ptr().add(channel)), sum);
                }
                *rows.weights.add(r * PAGE_TOKENS + slot) = S::reduce_add(sum);
            }
        }
    }
}

/// Adds the page's weighted values to `R` rows' sums.
///
/// # Safety
/// As [`attend_page`], with `R` rows, whose weights are there.
#[inline(always)]
unsafe fn sum_values<S: Simd, const R: usize>(head: &Head<'_>, rows: Rows, rescale: &[f32; R]) {
    let (format, side) = (head.format, &head.format.values);
    let n_exact = head.exact.len() / (2 * format.head_dim);
    // SAFETY: the caller's promises.
    unsafe {
        let mut exact_weights = [[0.0f32; PAGE_TOKENS]; R];
        let mut total = [0.0f32; R];
        for r in 0..R {
            let weights = rows.weights.add(r * PAGE_TOKENS);
            for slot in 0..n_exact {
                exact_weights[r][slot] = *weights.add(slot);
                *weights.add(slot) = 0.0;
            }
        }
        let mut scaled = [[0.0f32; PAGE_TOKENS]; R];
        for (g, group) in side.groups.iter().enumerate() {
            let mut offset = [0.0f32; R];
            for r in 0..R {
                let weights = rows.weights.add(r * PAGE_TOKENS);
                let (mut sum, mut offsets) = (S::splat(0.0), S::splat(0.0));
                for block in (0..PAGE_TOKENS).step_by(LANES) {
                    let mut weight = S::load(weights.add(block));
                    if side.offsets {
                        let at = format.value_meta.offsets + g * PAGE_TOKENS + block;
                        offsets = S::fma(weight, S::widen(head.halves.add(at)), offsets);
                    }
                    if side.scales {
                        let at = format.value_meta.scales + g * PAGE_TOKENS + block;
                        weight = S::mul(weight, S::widen(head.halves.add(at)));
                    }
                    sum = S::add(sum, weight);
                    S::store(scaled[r].as_mut_ptr().add(block), weight);
                }
                total[r] = S::reduce_add(sum);
                if side.offsets {
                    offset[r] = S::reduce_add(offsets);
                }
                if let Levels::Uniform { offset: each } = side.levels {
                    offset[r] = total[r].mul_add(each, offset[r]);
                }
            }
            let (mut block, end) = (group.from / LANES, group.to / LANES);
            while block < end {
                let same = |n: usize| {
                    end - block >= n
                        && (1..n).all(|b| format.value_blocks[block + b].0 == format.value_blocks[block].0)
                };
                let weighted = Weighted { weights: &scaled, total: &total, offset: &offset, rescale };
                block += if R * 4 <= S::ACCUMULATORS && same(4) {
                    sum_block::<S, R, 4>(head, rows, &weighted, block)
                } else {
                    sum_block::<S, R, 1>(head, rows, &weighted, block)
                };
            }
        }
        for (slot, exact) in head.exact.chunks_exact(2 * format.head_dim).enumerate() {
            for r in 0..R {
                let weight = S::splat(exact_weights[r][slot]);
                for dim in (0..format.head_dim).step_by(LANES) {
                    let at = rows.acc.add(r * rows.stride + dim);
                    let value = S::widen(exact.as_ptr().add(format.head_dim + dim));
                    S::store(at, S::fma(weight, value, S::load(at)));
                }
            }
        }
    }
}

/// Weights of a page's slots, for one group of channels.
struct Weighted<'a, const R: usize> {
    /// Times the slots' scales.
    weights: &'a [[f32; PAGE_TOKENS]; R],
    /// Their sums.
    total: &'a [f32; R],
    /// Sums of the weights times the slots' offsets.
    offset: &'a [f32; R],
    /// What the sums so far are multiplied by.
    rescale: &'a [f32; R],
}

/// Adds `B` registers of the head's elements from block `first` on; returns `B`.
///
/// # Safety
/// As [`attend_page`], with `R` rows; the blocks exist and have codes of one width.
#[inline(always)]
unsafe fn sum_block<S: Simd, const R: usize, const B: usize>(
    head: &Head<'_>,
    rows: Rows,
    weighted: &Weighted<'_, R>,
    first: usize,
) -> usize {
    let Weighted { weights, total, offset, rescale } = weighted;
    let (format, side) = (head.format, &head.format.values);
    let (width, start) = format.value_blocks[first];
    let stride = PAGE_TOKENS * width as usize / 32 * LANES;
    let mask = (1u32 << width) - 1;
    // SAFETY: the caller's promises; a code's second word lies in the region or the line behind it.
    unsafe {
        let words = head.words.add(start);
        let mut sums = [[S::splat(0.0); B]; R];
        let table = match &side.levels {
            Levels::Uniform { .. } => None,
            Levels::Tables(tables, of) => Some(tables.as_ptr().add(of[first * LANES].into()).cast::<f32>()),
        };
        for slot in 0..PAGE_TOKENS {
            let bit = slot as u32 * width;
            let at = words.add((bit / 32) as usize * LANES);
            let mut value = [S::splat(0.0); B];
            let shift = bit % 32;
            let within = shift + width <= 32;
            for b in 0..B {
                let at = at.add(b * stride);
                value[b] = match table {
                    None if within => S::codes_within(at, shift, mask),
                    None => S::codes(at, at.add(LANES), shift, mask),
                    Some(table) if within => S::levels_within(at, shift, mask, table),
                    Some(table) => S::levels(at, at.add(LANES), shift, mask, table),
                };
            }
            for r in 0..R {
                let weight = S::splat(weights[r][slot]);
                for b in 0..B {
                    sums[r][b] = S::fma(weight, value[b], sums[r][b]);
                }
            }
        }
        for r in 0..R {
            for b in 0..B {
                let dim = (first + b) * LANES;
                let mut sum = sums[r][b];
                if side.channel_slots.is_some() {
                    let low = S::widen(head.halves.add(format.value_meta.lows + dim));
                    let step = S::widen(head.halves.add(format.value_meta.steps + dim));
                    sum = S::fma(sum, step, S::mul(low, S::splat(total[r])));
                }
                sum = S::add(sum, S::splat(offset[r]));
                let at = rows.acc.add(r * rows.stride + dim);
                S::store(at, S::fma(S::load(at), S::splat(rescale[r]), sum));
            }
        }
    }
    B
}
