//! The GPU kernels: attention over packed pages and the plain tail, and rotations.
//!
//! A row's softmax is computed for each [`SPLIT_PAGES`] packed pages by itself, page by page (Milakov and Gimelshein
//! 2018, arXiv 1805.02867), so that a long context keeps a whole GPU busy; then another kernel joins these parts in
//! ascending order and goes on with the keys that the row sees plain, in chunks of a page. Where splits and chunks
//! begin depends on positions alone, so a row's bits depend on nothing but what it sees.
//!
//! In a cube each of 64 units computes one slot's scores, then one channel's sums (or several), for all queries of a
//! tile: several heads that share keys and values, and rows. Codes become numbers in registers, once for the tile;
//! neighboring units read neighboring words.

// A condition at compile time stands by itself: joined with another one it would be one at run time.
#![allow(clippy::collapsible_if)]

pub(crate) mod join;
pub(crate) mod launch;

use cubecl::prelude::*;

use crate::attention::cube::online::{LOWEST, UNITS};
use crate::pages::packed::TABLE;
use crate::pages::packed::device::format::{LANE_WORDS, RUN_WORDS, Spec};
use crate::pages::packed::device::words::SPLIT_PAGES;
use crate::pages::page::PAGE_TOKENS;

// A cube's units are as many as a page has slots.
const _: () = assert!(UNITS == PAGE_TOKENS);
/// Most queries of a tile.
pub(crate) const MAX_TILE: usize = 8;
/// Units that share the sums over a tile's query.
pub(crate) const PART: usize = UNITS / MAX_TILE;
/// Numbers before a row's path in the table of what it sees: its first slot, the one behind the last that it sees
/// packed, and the one behind its last.
pub(crate) const SPAN: usize = 3;
/// Numbers behind a part's sums: the largest score and the sum of weights.
pub(crate) const MARKS: usize = 2;

/// The number that the low 16 bits stand for in half precision; finite.
#[cube]
fn half(bits: u32) -> f32 {
    // Exponent and fraction in their new places, where the exponent's bias is greater by 112.
    let magnitude = (bits & 0x7FFFu32) << 13u32;
    let normal = f32::reinterpret(magnitude + 0x3800_0000u32);
    // Without an exponent: a fraction behind a one, which is taken off again.
    let small = f32::reinterpret(magnitude + 0x3880_0000u32) - f32::reinterpret(0x3880_0000u32.runtime());
    let value = select(magnitude < 0x0080_0000u32, small, normal);
    select((bits & 0x8000u32) == 0u32, value, -value)
}

/// A code at the bits above `shift`, of a word and the one behind it.
#[cube]
fn code_at(word: u32, next: u32, shift: u32, width: u32) -> u32 {
    // In two steps, since a shift by 32 is not defined.
    let high = (next << 1u32) << (31u32 - shift);
    ((word >> shift) | high) & ((1u32 << width) - 1u32)
}

#[cube]
pub(crate) fn at_most(number: usize, limit: usize) -> usize {
    select(number < limit, number, limit)
}

#[cube]
pub(crate) fn at_least(number: usize, limit: usize) -> usize {
    select(number > limit, number, limit)
}

#[cube(launch_unchecked)]
pub(crate) fn packed_kernel(
    q: &Tensor<f32>,
    words: &Tensor<u32>,
    meta: &Tensor<u32>,
    tables: &Tensor<f32>,
    seen: &Tensor<i32>,
    parts: &mut Tensor<f32>,
    first_page: u32,
    split: u32,
    first_split: u32,
    first_row: u32,
    n_rows: u32,
    n_kv_heads: u32,
    n_exact: u32,
    scale: f32,
    #[comptime] tile: usize,
    #[comptime] spec: Spec,
) {
    let unit = UNIT_POS as usize;
    let (first_page, first_split) = (first_page as usize, first_split as usize);
    let (first_row, n_rows, n_kv_heads) = (first_row as usize, n_rows as usize, n_kv_heads as usize);
    let n_heads = q.shape(1);
    let group = n_heads / n_kv_heads;
    let n_queries = n_rows * group;
    let head = CUBE_POS_X as usize % n_kv_heads;
    let first_query = CUBE_POS_X as usize / n_kv_heads * tile;
    let split = split as usize + CUBE_POS_Y as usize;

    let n_coded = comptime!(spec.n_coded);
    let head_dim = comptime!(spec.head_dim);
    let per_unit = comptime!(spec.head_dim.div_ceil(UNITS));
    let mut queries = Shared::<[f32]>::new_slice(comptime!(tile * spec.n_coded));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(tile * UNITS));
    let mut marks = Shared::<[f32]>::new_slice(comptime!(UNITS));
    let mut levels = Shared::<[f32]>::new_slice(comptime!((spec.n_tables * TABLE).max(1)));
    let mut steps = Shared::<[f32]>::new_slice(comptime!((spec.n_sets * spec.n_coded).max(1)));
    let mut lows = Shared::<[f32]>::new_slice(comptime!((spec.n_sets * spec.n_coded).max(1)));
    let mut scales = Shared::<[f32]>::new_slice(comptime!(spec.value_groups.max(1) * UNITS));
    let offset_slots = comptime!(if spec.value_offsets { spec.value_groups.max(1) * UNITS } else { 1 });
    let mut offsets = Shared::<[f32]>::new_slice(offset_slots);

    for i in range_stepped(unit, comptime!(spec.n_tables * TABLE), comptime!(UNITS)) {
        levels[i] = tables[i];
    }
    let mut froms = Array::<u32>::new(tile);
    let mut tos = Array::<u32>::new(tile);
    let mut largest = Array::<f32>::new(tile);
    let mut totals = Array::<f32>::new(tile);
    let mut scores = Array::<f32>::new(tile);
    let mut group_sums = Array::<f32>::new(tile);
    let mut sums = Array::<f32>::new(comptime!(tile * per_unit));
    // Pages of the split that some row sees.
    let mut page = (split + 1) * comptime!(SPLIT_PAGES);
    let mut end = split * comptime!(SPLIT_PAGES);
    #[unroll]
    for j in 0..tile {
        let query = at_most(first_query + j, n_queries - 1);
        let row = first_row + query / group;
        let start = (row * n_heads + head * group + query % group) * n_coded;
        for i in range_stepped(unit, n_coded, comptime!(UNITS)) {
            queries[comptime!(j * spec.n_coded) + i] = q[start + i] * scale;
        }
        // The first ones are exact: they are not read here.
        let from = max(seen[row * seen.shape(1)] as u32, n_exact);
        let to = seen[row * seen.shape(1) + 1] as u32;
        froms[j] = from;
        tos[j] = to;
        page = at_most(page, from as usize / comptime!(UNITS));
        end = at_least(end, to as usize / comptime!(UNITS));
        largest[j] = comptime!(LOWEST).runtime();
        totals[j] = 0.0f32;
        #[unroll]
        for i in 0..per_unit {
            sums[comptime!(j * per_unit + i)] = 0.0f32;
        }
    }
    page = at_least(page, split * comptime!(SPLIT_PAGES));
    end = at_most(end, (split + 1) * comptime!(SPLIT_PAGES));

    while page < end {
        let region = ((page - first_page) * n_kv_heads + head) * comptime!(spec.region_words);
        if comptime!(spec.n_sets > 0) {
            for i in range_stepped(unit, comptime!(spec.n_sets * spec.n_coded), comptime!(UNITS)) {
                let pair = words[region + comptime!(spec.key_steps_at) + i];
                steps[i] = half(pair);
                lows[i] = half(pair >> 16u32);
            }
        }
        #[unroll]
        for g in 0..comptime!(spec.value_groups) {
            let at = comptime!(g * UNITS) + unit;
            if comptime!(spec.value_offsets) {
                let pair = words[region + comptime!(spec.value_scales_at) + at];
                scales[at] = half(pair);
                offsets[at] = half(pair >> 16u32);
            } else {
                let pair = words[region + comptime!(spec.value_scales_at) + at / 2];
                scales[at] = half(pair >> ((at % 2) * 16) as u32);
            }
        }
        sync_cube();

        // One slot's scores.
        #[unroll]
        for j in 0..tile {
            scores[j] = 0.0f32;
            group_sums[j] = 0.0f32;
        }
        let mut at = region + unit;
        let mut word = words[at];
        let mut next = words[at + comptime!(UNITS)];
        let mut shift = 0u32.runtime();
        let set = unit * comptime!(spec.n_sets) / comptime!(UNITS) * n_coded;
        for run in 0..comptime!(spec.n_runs) {
            let run = run * comptime!(RUN_WORDS);
            let (from, to) = (meta[run] as usize, meta[run + 1] as usize);
            let mut width = meta[run + 2];
            let table = meta[run + 3];
            let ends = meta[run + 4] as usize;
            for channel in from..to {
                let mut place = channel as u32;
                if comptime!(spec.is_adaptive) {
                    let order = words[region + comptime!(spec.order_at) + channel / 4];
                    place = (order >> ((channel % 4) * 8) as u32) & 255u32;
                    let widths = words[region + comptime!(spec.widths_at) + channel / 32];
                    width = (widths >> ((channel / 4 % 8) * 4) as u32) & 15u32;
                }
                let code = code_at(word, next, shift, width);
                shift += width;
                if shift >= 32u32 {
                    shift -= 32u32;
                    at += comptime!(UNITS);
                    word = next;
                    next = words[at + comptime!(UNITS)];
                }
                let mut level = if comptime!(spec.key_tables) {
                    levels[(table + code) as usize]
                } else {
                    f32::cast_from(code) + comptime!(spec.key_offset as f32)
                };
                if comptime!(spec.n_sets > 0) {
                    level = fma(steps[set + channel], level, lows[set + channel]);
                }
                #[unroll]
                for j in 0..tile {
                    group_sums[j] =
                        fma(queries[comptime!(j * spec.n_coded) + place as usize], level, group_sums[j]);
                }
            }
            if ends > 0 {
                let factor = if comptime!(spec.key_scales) {
                    let at = (ends - 1) * comptime!(UNITS) + unit;
                    let pair = words[region + comptime!(spec.key_scales_at) + at / 2];
                    half(pair >> ((at % 2) * 16) as u32)
                } else {
                    1.0f32.runtime()
                };
                #[unroll]
                for j in 0..tile {
                    scores[j] = fma(group_sums[j], factor, scores[j]);
                    group_sums[j] = 0.0f32;
                }
            }
        }
        let slot = (page * comptime!(UNITS) + unit) as u32;
        #[unroll]
        for j in 0..tile {
            if slot < froms[j] || slot >= tos[j] {
                scores[j] = comptime!(LOWEST).runtime();
            }
            weights[comptime!(j * UNITS) + unit] = scores[j];
        }
        sync_cube();

        // Eight units look for each query's largest score.
        let part = unit / comptime!(PART);
        if part < tile {
            let first = part * comptime!(UNITS) + unit % comptime!(PART) * comptime!(UNITS / PART);
            let mut most = weights[first];
            for i in 1..comptime!(UNITS / PART) {
                most = max(most, weights[first + i]);
            }
            marks[unit] = most;
        }
        sync_cube();
        #[unroll]
        for j in 0..tile {
            let mut most = largest[j];
            for i in 0..comptime!(PART) {
                most = max(most, marks[comptime!(j * PART) + i]);
            }
            // A page that the row does not see leaves everything as it is.
            let decay = select(most > largest[j], (largest[j] - most).exp(), 1.0f32);
            let weight = select(scores[j] > comptime!(LOWEST), (scores[j] - most).exp(), 0.0f32);
            largest[j] = most;
            totals[j] = fma(totals[j], decay, weight);
            weights[comptime!(j * UNITS) + unit] = weight;
            #[unroll]
            for i in 0..per_unit {
                sums[comptime!(j * per_unit + i)] *= decay;
            }
        }
        sync_cube();

        // One channel's sums, or several.
        #[unroll]
        for i in 0..per_unit {
            let channel = unit + comptime!(i * UNITS);
            if channel < head_dim {
                let lane = comptime!(spec.n_runs * RUN_WORDS) + channel * comptime!(LANE_WORDS);
                let mut at = region + meta[lane] as usize;
                let stride = meta[lane + 1] as usize;
                let width = meta[lane + 2];
                let table = meta[lane + 3];
                let group = meta[lane + 4] as usize * comptime!(UNITS);
                let pair = if comptime!(spec.value_steps) {
                    words[region + comptime!(spec.value_steps_at) + channel]
                } else {
                    0u32.runtime()
                };
                let (step, low) = (half(pair), half(pair >> 16u32));
                let mut word = words[at];
                let mut next = words[at + stride];
                let mut shift = 0u32.runtime();
                for slot in 0..comptime!(UNITS) {
                    let code = code_at(word, next, shift, width);
                    shift += width;
                    if shift >= 32u32 {
                        shift -= 32u32;
                        at += stride;
                        word = next;
                        next = words[at + stride];
                    }
                    let mut level = if comptime!(spec.value_tables) {
                        levels[(table + code) as usize]
                    } else {
                        f32::cast_from(code) + comptime!(spec.value_offset as f32)
                    };
                    if comptime!(spec.value_steps) {
                        level = fma(step, level, low);
                    }
                    if comptime!(spec.value_offsets) {
                        level = fma(scales[group + slot], level, offsets[group + slot]);
                    } else {
                        level *= scales[group + slot];
                    }
                    #[unroll]
                    for j in 0..tile {
                        let sum = comptime!(j * per_unit + i);
                        sums[sum] = fma(weights[comptime!(j * UNITS) + slot], level, sums[sum]);
                    }
                }
            }
        }
        page += 1;
        // The next page overwrites what this one reads.
        sync_cube();
    }

    #[unroll]
    for j in 0..tile {
        weights[comptime!(j * UNITS) + unit] = totals[j];
    }
    sync_cube();
    let part = unit / comptime!(PART);
    if part < tile {
        let first = part * comptime!(UNITS) + unit % comptime!(PART) * comptime!(UNITS / PART);
        let mut sum = weights[first];
        for i in 1..comptime!(UNITS / PART) {
            sum += weights[first + i];
        }
        marks[unit] = sum;
    }
    sync_cube();
    #[unroll]
    for j in 0..tile {
        let query = first_query + j;
        if query < n_queries {
            let mut total = marks[comptime!(j * PART)];
            for i in 1..comptime!(PART) {
                total += marks[comptime!(j * PART) + i];
            }
            let place =
                ((split - first_split) * n_rows + query / group) * n_heads + head * group + query % group;
            let start = place * comptime!(spec.head_dim + MARKS);
            #[unroll]
            for i in 0..per_unit {
                let channel = unit + comptime!(i * UNITS);
                if channel < head_dim {
                    parts[start + channel] = sums[comptime!(j * per_unit + i)];
                }
            }
            if unit == 0 {
                parts[start + head_dim] = largest[j];
                parts[start + head_dim + 1] = total;
            }
        }
    }
}
