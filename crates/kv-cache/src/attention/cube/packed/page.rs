//! A packed page: the stages that read its words.

// A condition at compile time stands by itself: joined with another one it would be one at run time.
#![allow(clippy::collapsible_if)]

use cubecl::prelude::*;

use super::tile::Tile;
use crate::attention::cube::online::UNITS;
use crate::pages::packed::TABLE;
use crate::pages::packed::device::format::{LANE_WORDS, RUN_WORDS, Spec};

/// A cube's data about the page that it reads, in shared memory. Parts that the format lacks have a length of
/// one.
#[derive(CubeType)]
pub(super) struct Page {
    /// Levels of all tables, the same for all pages: `[n_tables, TABLE]`.
    levels: Shared<[f32]>,
    /// Steps of the keys' channels: `[n_sets, n_coded]`.
    steps: Shared<[f32]>,
    /// Their low ends, likewise.
    lows: Shared<[f32]>,
    /// Scales of the values' slots: `[n_groups, 64]`.
    scales: Shared<[f32]>,
    /// Their offsets, likewise.
    offsets: Shared<[f32]>,
}

/// The number that the low 16 bits stand for in half precision; finite.
#[cube]
fn half(bits: u32) -> f32 {
    // Exponent and fraction in their new places, where the exponent's bias is greater by 112.
    let magnitude = (bits & 0x7FFFu32) << 13u32;
    let normal = f32::reinterpret(magnitude + 0x3800_0000u32);
    // Without an exponent: a fraction after a one, which is taken off again.
    let small = f32::reinterpret(magnitude + 0x3880_0000u32) - f32::reinterpret(0x3880_0000u32.runtime());
    let value = select(magnitude < 0x0080_0000u32, small, normal);
    select((bits & 0x8000u32) == 0u32, value, -value)
}

/// A code at the bits above `shift`, of a word and the one after it.
#[cube]
fn code_at(word: u32, next: u32, shift: u32, width: u32) -> u32 {
    // In two steps, since a shift by 32 is not defined.
    let high = (next << 1u32) << (31u32 - shift);
    ((word >> shift) | high) & ((1u32 << width) - 1u32)
}

/// Room for a page, and the tables.
#[cube]
pub(super) fn new_page(tables: &Tensor<f32>, #[comptime] spec: Spec) -> Page {
    let n_offsets = comptime!(if spec.value_offsets { spec.value_groups.max(1) * UNITS } else { 1 });
    let mut page = Page {
        levels: Shared::<[f32]>::new_slice(comptime!((spec.n_tables * TABLE).max(1))),
        steps: Shared::<[f32]>::new_slice(comptime!((spec.n_sets * spec.n_coded).max(1))),
        lows: Shared::<[f32]>::new_slice(comptime!((spec.n_sets * spec.n_coded).max(1))),
        scales: Shared::<[f32]>::new_slice(comptime!(spec.value_groups.max(1) * UNITS)),
        offsets: Shared::<[f32]>::new_slice(n_offsets),
    };
    for i in range_stepped(UNIT_POS as usize, comptime!(spec.n_tables * TABLE), comptime!(UNITS)) {
        page.levels[i] = tables[i];
    }
    page
}

/// Stage *load*: each unit decodes every 64th of the steps of keys, and its slot's scales of values.
#[cube]
pub(super) fn load(words: &Tensor<u32>, region: usize, page: &mut Page, #[comptime] spec: Spec) {
    let unit = UNIT_POS as usize;
    if comptime!(spec.n_sets > 0) {
        for i in range_stepped(unit, comptime!(spec.n_sets * spec.n_coded), comptime!(UNITS)) {
            let pair = words[region + comptime!(spec.key_steps_at) + i];
            page.steps[i] = half(pair);
            page.lows[i] = half(pair >> 16u32);
        }
    }
    #[unroll]
    for g in 0..comptime!(spec.value_groups) {
        let at = comptime!(g * UNITS) + unit;
        if comptime!(spec.value_offsets) {
            let pair = words[region + comptime!(spec.value_scales_at) + at];
            page.scales[at] = half(pair);
            page.offsets[at] = half(pair >> 16u32);
        } else {
            let pair = words[region + comptime!(spec.value_scales_at) + at / 2];
            page.scales[at] = half(pair >> ((at % 2) * 16) as u32);
        }
    }
}

/// Stage *score*: each unit decodes one slot's key, channel by channel, and multiplies it with all queries;
/// the results are the unit's `scores`.
#[cube]
pub(super) fn score(
    words: &Tensor<u32>,
    meta: &Tensor<u32>,
    region: usize,
    page: &Page,
    tile: &mut Tile,
    #[comptime] n: usize,
    #[comptime] spec: Spec,
) {
    let unit = UNIT_POS as usize;
    let n_coded = comptime!(spec.n_coded);
    // Of the group of channels that is being read.
    let mut group_sums = Array::<f32>::new(n);
    #[unroll]
    for j in 0..n {
        tile.scores[j] = 0.0f32;
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
                page.levels[(table + code) as usize]
            } else {
                f32::cast_from(code) + comptime!(spec.key_offset as f32)
            };
            if comptime!(spec.n_sets > 0) {
                level = fma(page.steps[set + channel], level, page.lows[set + channel]);
            }
            #[unroll]
            for j in 0..n {
                group_sums[j] =
                    fma(tile.queries[comptime!(j * spec.n_coded) + place as usize], level, group_sums[j]);
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
            for j in 0..n {
                tile.scores[j] = fma(group_sums[j], factor, tile.scores[j]);
                group_sums[j] = 0.0f32;
            }
        }
    }
}

/// Stage *sum*: each unit decodes one channel of the values, slot by slot, or several channels, and adds them
/// to the queries' `sums` by their weights.
#[cube]
pub(super) fn sum(
    words: &Tensor<u32>,
    meta: &Tensor<u32>,
    region: usize,
    page: &Page,
    tile: &mut Tile,
    #[comptime] n: usize,
    #[comptime] spec: Spec,
) {
    let unit = UNIT_POS as usize;
    let head_dim = comptime!(spec.head_dim);
    let per_unit = comptime!(spec.head_dim.div_ceil(UNITS));
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
                    page.levels[(table + code) as usize]
                } else {
                    f32::cast_from(code) + comptime!(spec.value_offset as f32)
                };
                if comptime!(spec.value_steps) {
                    level = fma(step, level, low);
                }
                if comptime!(spec.value_offsets) {
                    level = fma(page.scales[group + slot], level, page.offsets[group + slot]);
                } else {
                    level *= page.scales[group + slot];
                }
                #[unroll]
                for j in 0..n {
                    let sum = comptime!(j * per_unit + i);
                    tile.sums[sum] = fma(tile.weights[comptime!(j * UNITS) + slot], level, tile.sums[sum]);
                }
            }
        }
    }
}
