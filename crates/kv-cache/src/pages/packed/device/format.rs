//! The layout of packed pages in a GPU's memory.
//!
//! The numbers are those of [`packed`](crate::packed), but in another order: a cube has a unit for each slot
//! of a page, so the codes of all 64 slots are next to each other. A page holds for each key-value head, in
//! words of 32 bits:
//! - codes of keys, `[n_words][64]`: a slot's lane is one stream of bits, channel by channel,
//!   least significant first;
//! - codes of values: for each run of channels with one width `[n_words][n_channels]`; a channel's lane is
//!   the stream of its slots' codes;
//! - where widths are adaptive, the channels in the order of their codes, a byte each, and widths of four
//!   bits for every four of them;
//! - 16-bit floats: steps and low ends of channels side by side in a word, likewise scales and offsets of
//!   slots; scales alone two to a word.
//!
//! The only cost of streams is that each word is used twice: a unit keeps the word that it reads and the one
//! after it.

use crate::pages::packed::run::QUAD;
use crate::pages::packed::{Coded, Group, SideFormat, TABLE, WIDTH_BITS, Widths};
use crate::pages::page::PAGE_TOKENS;

/// Numbers that tell a run of key channels: its first channel and the one after its last, their width, where
/// their table begins, and, at the end of a group, the group's number plus one.
pub(crate) const RUN_WORDS: usize = 5;
/// Numbers that tell a value's channel: where its lane begins, words from one of its words to the next, its
/// width, where its table begins, and its group.
pub(crate) const LANE_WORDS: usize = 5;
/// Widths in a word.
const WIDTHS: usize = 32 / WIDTH_BITS;

/// What kernels are compiled for: sizes and places in a head's region, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Spec {
    pub(crate) head_dim: usize,
    pub(crate) n_coded: usize,
    pub(crate) n_runs: usize,
    pub(crate) n_tables: usize,
    /// Sets of channel steps of keys; 0: they have none.
    pub(crate) n_sets: usize,
    pub(crate) is_adaptive: bool,
    pub(crate) key_tables: bool,
    pub(crate) key_scales: bool,
    pub(crate) value_tables: bool,
    pub(crate) value_steps: bool,
    pub(crate) value_offsets: bool,
    pub(crate) value_groups: usize,
    /// Added to codes that stand for themselves.
    pub(crate) key_offset: i32,
    pub(crate) value_offset: i32,
    pub(crate) order_at: usize,
    pub(crate) widths_at: usize,
    pub(crate) key_steps_at: usize,
    pub(crate) key_scales_at: usize,
    pub(crate) value_steps_at: usize,
    pub(crate) value_scales_at: usize,
    pub(crate) region_words: usize,
}

/// A value's channel.
#[derive(Clone, Copy, Debug)]
struct Lane {
    at: usize,
    stride: usize,
    width: usize,
}

/// The format of one layer's pages.
pub(crate) struct DeviceFormat {
    pub(crate) spec: Spec,
    /// Runs of key channels, then channels of values.
    pub(crate) meta: Vec<u32>,
    /// Levels of keys, then of values.
    pub(crate) tables: Vec<f32>,
    /// Empty for adaptive widths.
    key_widths: Vec<u8>,
    lanes: Vec<Lane>,
}

impl DeviceFormat {
    pub(crate) fn new(head_dim: usize, keys: &SideFormat, values: &SideFormat) -> Self {
        // No method has offsets of keys, or several sets of steps of values.
        debug_assert!(!keys.offsets && values.n_sets() <= 1 && values.scales);
        debug_assert!([keys, values].iter().all(|side| !side.tables.is_empty()
            || side.groups.iter().all(|g| g.step == 1.0 && g.offset == side.groups[0].offset)));
        let n_coded = keys.n_coded();
        let (key_widths, key_bits) = match &keys.widths {
            Widths::Fixed(widths) => (widths.clone(), widths.iter().map(|&w| usize::from(w)).sum()),
            Widths::Adaptive { bits } => (Vec::new(), *bits),
        };
        let mut tables = Vec::new();
        let mut meta = Vec::new();
        for (g, group) in keys.groups.iter().enumerate() {
            let mut from = group.from;
            while from < group.to {
                let (width, table) = keys.code(from);
                let same = (from..group.to).take_while(|channel| keys.code(*channel) == (width, table));
                let to = from + same.count();
                let ends = if to == group.to { g + 1 } else { 0 };
                let table = table.map_or(0, |table| levels(&mut tables, keys, table, group));
                meta.extend([from, to, width.into(), table, ends]);
                from = to;
            }
        }
        let n_runs = meta.len() / RUN_WORDS;

        let mut at = key_bits.div_ceil(32) * PAGE_TOKENS;
        let mut lanes = Vec::with_capacity(head_dim);
        while lanes.len() < head_dim {
            let from = lanes.len();
            let (width, table) = values.code(from);
            let n = (from..head_dim).take_while(|channel| values.code(*channel) == (width, table)).count();
            for channel in from..from + n {
                let (at, width) = (at + channel - from, usize::from(width));
                lanes.push(Lane { at, stride: n, width });
                let group = values.groups.iter().position(|group| channel < group.to).unwrap_or(0);
                let table =
                    table.map_or(0, |table| levels(&mut tables, values, table, &values.groups[group]));
                meta.extend([at, n, width, table, group]);
            }
            // Each width fills whole words with 64 slots.
            at += PAGE_TOKENS * usize::from(width) / 32 * n;
        }

        let mut place = |n: usize| {
            at += n;
            at - n
        };
        let is_adaptive = matches!(keys.widths, Widths::Adaptive { .. });
        let order_at = place(if is_adaptive { n_coded / QUAD } else { 0 });
        let widths_at = place(if is_adaptive { (n_coded / QUAD).div_ceil(WIDTHS) } else { 0 });
        let key_steps_at = place(keys.n_sets() * n_coded);
        let key_scales_at = place(if keys.scales { keys.groups.len() * PAGE_TOKENS / 2 } else { 0 });
        let value_steps_at = place(values.n_sets() * head_dim);
        let value_scales_at = place(values.groups.len() * PAGE_TOKENS / if values.offsets { 1 } else { 2 });
        // Codes that stand for themselves do so in whole numbers, in all groups alike.
        let offset = |side: &SideFormat| match side.tables.is_empty() {
            true => side.groups.first().map_or(0, |group| group.offset as i32),
            false => 0,
        };
        let spec = Spec {
            head_dim,
            n_coded,
            n_runs,
            n_tables: tables.len() / TABLE,
            n_sets: keys.n_sets(),
            is_adaptive,
            key_tables: !keys.tables.is_empty(),
            key_scales: keys.scales,
            value_tables: !values.tables.is_empty(),
            value_steps: values.n_sets() > 0,
            value_offsets: values.offsets,
            value_groups: values.groups.len(),
            key_offset: offset(keys),
            value_offset: offset(values),
            order_at,
            widths_at,
            key_steps_at,
            key_scales_at,
            value_steps_at,
            value_scales_at,
            region_words: at,
        };
        let meta = meta.into_iter().map(|number| number as u32).collect();
        Self { spec, meta, tables, key_widths, lanes }
    }

    /// Writes one head's codes into a region of zeros.
    pub(crate) fn write(&self, region: &mut [u32], keys: &Coded, values: &Coded) {
        let spec = &self.spec;
        for (slot, codes) in keys.codes.chunks_exact(spec.n_coded).enumerate() {
            let mut bit = 0;
            for (at, &code) in codes.iter().enumerate() {
                put(region, slot, PAGE_TOKENS, bit, code);
                bit +=
                    usize::from(if spec.is_adaptive { keys.widths[at / QUAD] } else { self.key_widths[at] });
            }
        }
        for (slot, codes) in values.codes.chunks_exact(spec.head_dim).enumerate() {
            for (&code, lane) in codes.iter().zip(&self.lanes) {
                put(region, lane.at, lane.stride, slot * lane.width, code);
            }
        }
        for (at, &channel) in keys.order.iter().enumerate() {
            region[spec.order_at + at / 4] |= u32::from(channel) << (at % 4 * 8);
        }
        for (quad, &width) in keys.widths.iter().enumerate() {
            region[spec.widths_at + quad / WIDTHS] |= u32::from(width) << (quad % WIDTHS * WIDTH_BITS);
        }
        for (at, side) in [(spec.key_steps_at, keys), (spec.value_steps_at, values)] {
            for (i, (step, low)) in side.steps.iter().zip(&side.lows).enumerate() {
                region[at + i] = u32::from(step.to_bits()) | u32::from(low.to_bits()) << 16;
            }
        }
        for (i, scale) in keys.scales.iter().enumerate() {
            region[spec.key_scales_at + i / 2] |= u32::from(scale.to_bits()) << (i % 2 * 16);
        }
        for (i, scale) in values.scales.iter().enumerate() {
            let bits = u32::from(scale.to_bits());
            match values.offsets.get(i) {
                Some(offset) => {
                    region[spec.value_scales_at + i] = bits | u32::from(offset.to_bits()) << 16;
                }
                None => region[spec.value_scales_at + i / 2] |= bits << (i % 2 * 16),
            }
        }
    }
}

/// Where the levels of a side's table, in one group, begin among all; they are put there if they are not yet.
fn levels(all: &mut Vec<f32>, side: &SideFormat, table: u8, group: &Group) -> usize {
    let bytes = side.tables[usize::from(table)];
    let levels = bytes.map(|byte| group.step.mul_add(f32::from(byte), group.offset));
    let found = all.chunks_exact(TABLE).position(|table| *table == levels);
    found.unwrap_or_else(|| {
        all.extend(levels);
        all.len() / TABLE - 1
    }) * TABLE
}

/// Adds a code at a bit of a lane's stream.
fn put(region: &mut [u32], lane: usize, stride: usize, bit: usize, code: u8) {
    let bits = u64::from(code) << (bit % 32);
    let at = lane + bit / 32 * stride;
    region[at] |= bits as u32;
    if bits >> 32 != 0 {
        region[at + stride] |= (bits >> 32) as u32;
    }
}
