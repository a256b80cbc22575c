//! Packed pages: the keys and values of [`PAGE_TOKENS`] consecutive slots of one layer, in a few bits each.
//!
//! A page never changes once it is written. It holds one region after the other for the
//! layer's key-value heads:
//! - codes of keys: for each 16 slots `[n_words][16]` words of 32 bits; a slot's lane holds the
//!   codes of its elements, in [`Run`]s of one width; where widths differ from page to page, in
//!   an order of the page's own;
//! - codes of values: for each 16 elements `[n_words][16]` words; an element's lane is the
//!   run of its slots' codes;
//! - numbers of 16 bits: a step and a low end for each channel (element of the head), and a scale and an
//!   offset for each slot and group of channels. The method decides which of them there are ([`SideFormat`]).
//!
//! A code c stands for `scale · (step · level(c) + low) + offset`, where level(c) is the group's step times c
//! itself, or a byte that c stands for, plus the group's offset. The first slots of the first page may be
//! exact: they are kept as 16-bit floats in addition to their codes.

pub(crate) mod bytes;
#[cfg(feature = "cube")]
pub(crate) mod device;
pub(crate) mod layer;
pub(crate) mod run;

use half::f16;

use super::meter::{Lease, PageMeter};

use crate::pages::page::{LANES, Line, PAGE_BLOCKS, PAGE_TOKENS};
use bytemuck::Zeroable;
use run::{Place, QUAD, Run, n_words};

/// Codes of a codebook at most.
pub(crate) const TABLE: usize = 32;
/// Elements of a head at most.
pub(crate) const MAX_HEAD_DIM: usize = 256;
/// Coded elements of a head at most: a sketch of signs doubles them.
pub(crate) const MAX_CODED: usize = 2 * MAX_HEAD_DIM;
/// Groups of channels with a scale of their own, at most.
pub(crate) const MAX_GROUPS: usize = MAX_HEAD_DIM / LANES;
/// Bits of the number that tells the width of an adaptive quad.
pub(crate) const WIDTH_BITS: usize = 4;

/// Widths of the codes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Widths {
    /// One for each channel.
    Fixed(Vec<u8>),
    /// Chosen page by page, four channels at a time; a slot's codes have this many bits in
    /// all, a multiple of 32.
    Adaptive { bits: usize },
}

/// Channels whose codes share a scale.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Whether keys of the group are multiplied with the projected query.
    pub(crate) sketch: bool,
    /// A code's byte b stands for `step · b + offset`.
    pub(crate) step: f32,
    pub(crate) offset: f32,
}

/// How one side, keys or values, is coded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SideFormat {
    pub(crate) widths: Widths,
    /// Tables of the bytes that codes stand for, repeated to fill the table; none if codes stand for
    /// themselves.
    pub(crate) tables: Vec<[u8; TABLE]>,
    pub(crate) table_of: Vec<u8>,
    /// Slots that share the step and the low end of each channel, a divisor of
    /// [`PAGE_TOKENS`]; `None`: there are none.
    pub(crate) channel_slots: Option<usize>,
    /// In ascending order; together all channels.
    pub(crate) groups: Vec<Group>,
    /// Whether each slot has a scale for each group.
    pub(crate) scales: bool,
    /// Whether each slot has an offset for each group.
    pub(crate) offsets: bool,
}

impl SideFormat {
    /// Channels that are coded.
    pub(crate) fn n_coded(&self) -> usize {
        self.groups.last().map_or(0, |group| group.to)
    }

    /// Sets of channel steps in a page.
    pub(crate) fn n_sets(&self) -> usize {
        self.channel_slots.map_or(0, |slots| PAGE_TOKENS / slots)
    }

    /// The width of a channel's codes and the table they stand in; of fixed widths.
    pub(crate) fn code(&self, channel: usize) -> (u8, Option<u8>) {
        let width = match &self.widths {
            Widths::Fixed(widths) => widths[channel],
            Widths::Adaptive { .. } => 0,
        };
        (width, self.table_of.get(channel).copied())
    }

    /// Planes of the factors that the codes of keys are multiplied by: coarse codes need only coarse queries,
    /// unless the queries contain the channels' steps.
    pub(crate) fn query_planes(&self) -> usize {
        match &self.widths {
            Widths::Fixed(widths) if self.channel_slots.is_none() && widths.iter().all(|&w| w < 5) => 1,
            _ => 2,
        }
    }

    /// Whether sums of the query over groups are needed.
    pub(crate) fn needs_sums(&self) -> bool {
        self.offsets || self.groups.iter().any(|group| group.offset != 0.0)
    }

    fn meta(&self) -> [usize; 5] {
        let (n, sets, groups) = (self.n_coded(), self.n_sets(), self.groups.len() * PAGE_TOKENS);
        let widths = match self.widths {
            Widths::Fixed(_) => 0,
            Widths::Adaptive { .. } => n / 2 + (n / QUAD * WIDTH_BITS).div_ceil(16),
        };
        [
            widths,
            n * sets,
            n * sets,
            if self.scales { groups } else { 0 },
            if self.offsets { groups } else { 0 },
        ]
    }
}

/// Where one side's numbers stand in a head's region, in halves of words from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The adaptive channels in their order, a byte each, then the quads' widths.
    pub(crate) widths: usize,
    pub(crate) steps: usize,
    pub(crate) lows: usize,
    pub(crate) scales: usize,
    pub(crate) offsets: usize,
}

/// Registers of 16 elements of a value with codes of one kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValueRun {
    pub(crate) n_blocks: usize,
    /// Words of the region before the first register's lanes, and in each lane.
    pub(crate) first: usize,
    pub(crate) n_words: usize,
    /// The slots' codes in each lane.
    pub(crate) run: Run,
}

/// The format of one layer's packed pages.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PackedFormat {
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) keys: SideFormat,
    pub(crate) values: SideFormat,
    /// Words of a slot's lane.
    pub(crate) key_words: usize,
    /// Of keys of fixed width, in the order of the channels; none goes over the end of a group.
    pub(crate) key_runs: Vec<Run>,
    pub(crate) value_runs: Vec<ValueRun>,
    pub(crate) key_meta: Meta,
    pub(crate) value_meta: Meta,
    /// Words of a head's region, a multiple of a cache line.
    region_words: usize,
}

impl PackedFormat {
    pub(crate) fn new(n_kv_heads: usize, head_dim: usize, keys: SideFormat, values: SideFormat) -> Self {
        debug_assert!(head_dim.is_multiple_of(LANES) && keys.n_coded() <= MAX_CODED);
        debug_assert!(values.n_coded() == head_dim && values.scales);
        let bits = match &keys.widths {
            Widths::Fixed(widths) => widths.iter().map(|&w| usize::from(w)).sum(),
            Widths::Adaptive { bits } => *bits,
        };
        let key_runs = key_runs(&keys);
        let key_words = n_words(bits / QUAD);
        let mut at = PAGE_BLOCKS * key_words * LANES;
        let mut value_runs: Vec<ValueRun> = Vec::new();
        for group in &values.groups {
            let mut is_first = true;
            for channel in (group.from..group.to).step_by(LANES) {
                let (width, table) = values.code(channel);
                match value_runs.last_mut() {
                    Some(last) if !is_first && (last.run.width, last.run.table) == (width, table) => {
                        last.n_blocks += 1;
                    }
                    _ => {
                        let run = Run::new(0, PAGE_TOKENS, width, table, 0);
                        value_runs.push(ValueRun {
                            n_blocks: 1,
                            first: at,
                            n_words: n_words(run.bits()),
                            run,
                        });
                    }
                }
                at += value_runs.last().map_or(0, |last| last.n_words * LANES);
                is_first = false;
            }
        }
        let mut half = 2 * at;
        let mut place = |side: &SideFormat| {
            let [widths, steps, lows, scales, offsets] = side.meta().map(|n| {
                half += n;
                half - n
            });
            Meta { widths, steps, lows, scales, offsets }
        };
        let (key_meta, value_meta) = (place(&keys), place(&values));
        let region_words = half.div_ceil(2).next_multiple_of(LANES);
        Self {
            n_kv_heads,
            head_dim,
            keys,
            values,
            key_words,
            key_runs,
            value_runs,
            key_meta,
            value_meta,
            region_words,
        }
    }

    /// Words of a head's region that hold other numbers than codes.
    pub(crate) fn numbers(&self) -> std::ops::Range<usize> {
        self.key_meta.widths / 2..self.region_words
    }

    /// Bytes of a page's storage, exact slots apart.
    pub(crate) fn page_bytes(&self) -> usize {
        self.n_kv_heads * self.region_words * size_of::<u32>()
    }
}

/// Runs of channels with codes of the same kind; none for adaptive widths.
fn key_runs(keys: &SideFormat) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    if matches!(keys.widths, Widths::Adaptive { .. }) {
        return runs;
    }
    let mut bit = 0;
    for group in &keys.groups {
        let mut from = group.from;
        while from < group.to {
            let kind = keys.code(from);
            let len = (from..group.to).take_while(|&channel| keys.code(channel) == kind).count();
            let run = Run::new(from, len, kind.0, kind.1, bit);
            (bit, from) = (bit + run.bits(), from + len);
            runs.push(run);
        }
    }
    runs
}

/// Where quads of the given widths stand, one behind the other; those without a width take no room.
pub(crate) fn places_of(widths: impl Iterator<Item = u8>) -> impl Iterator<Item = Place> {
    widths.scan(0, |bit, width| {
        let place = Place::new(*bit, width);
        *bit += usize::from(width);
        Some(place)
    })
}

/// A method's codes of one head's keys, or values, of a page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coded {
    /// Of adaptive formats the channels in the order of all that follows, and one width for
    /// four of them, descending.
    pub(crate) order: Vec<u8>,
    pub(crate) widths: Vec<u8>,
    /// `[PAGE_TOKENS, n_coded]`
    pub(crate) codes: Vec<u8>,
    /// `[n_sets, n_coded]`
    pub(crate) steps: Vec<f16>,
    pub(crate) lows: Vec<f16>,
    /// `[n_groups, PAGE_TOKENS]`
    pub(crate) scales: Vec<f16>,
    pub(crate) offsets: Vec<f16>,
}

impl Coded {
    /// Room for what a format has, all zero.
    pub(crate) fn new(format: &SideFormat) -> Self {
        let [_, steps, lows, scales, offsets] = format.meta();
        let n_ordered = match format.widths {
            Widths::Fixed(_) => 0,
            Widths::Adaptive { .. } => format.n_coded(),
        };
        Self {
            order: vec![0; n_ordered],
            widths: vec![0; n_ordered / QUAD],
            codes: vec![0; PAGE_TOKENS * format.n_coded()],
            steps: vec![f16::ZERO; steps],
            lows: vec![f16::ZERO; lows],
            scales: vec![f16::ZERO; scales],
            offsets: vec![f16::ZERO; offsets],
        }
    }
}

/// One head's keys, or values, of a page, to be coded.
pub(crate) struct Tile<'a> {
    /// `[PAGE_TOKENS, head_dim]`
    pub(crate) rows: &'a [f32],
    pub(crate) head_dim: usize,
    /// Leading slots that are exact: their codes are never read.
    pub(crate) n_exact: usize,
    /// How much an error in each channel matters; all ones if nothing is known.
    pub(crate) weights: &'a [f32],
}

impl Tile<'_> {
    /// The rows that are not exact, with their slots.
    pub(crate) fn coded_rows(&self) -> impl Iterator<Item = (usize, &[f32])> + Clone {
        self.rows.chunks_exact(self.head_dim).enumerate().skip(self.n_exact)
    }
}

/// A method for keys or for values.
pub(crate) trait TileCoder: Send + Sync {
    /// How the codes are laid out.
    fn format(&self) -> &SideFormat;

    /// Codes a tile; `out` comes from [`Coded::new`], all zero.
    fn code(&self, tile: &Tile<'_>, out: &mut Coded);
}

/// The storage of one page.
pub(crate) struct PackedPage {
    lease: Option<Lease>,
    lines: Box<[Line]>,
    /// Keys and values of exact slots, `[n_kv_heads, n_exact, 2, head_dim]`.
    exact: Box<[f16]>,
}

impl PackedPage {
    /// A page that holds nothing and takes no memory, for slots that no row sees anymore.
    pub(crate) fn evicted() -> Self {
        Self { lease: None, lines: Box::default(), exact: Box::default() }
    }

    /// A page of `n_bytes`, and `n_halves` numbers of exact slots.
    pub(crate) fn zeroed(n_bytes: usize, n_halves: usize, meter: &PageMeter) -> Self {
        let n_lines = n_bytes.div_ceil(size_of::<Line>());
        let mut page = Self {
            lease: None,
            lines: vec![Line::zeroed(); n_lines].into_boxed_slice(),
            exact: vec![f16::ZERO; n_halves].into_boxed_slice(),
        };
        page.lease = Some(meter.lease(page.bytes()));
        page
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.exact)
    }

    /// A head's region.
    pub(crate) fn region(&self, format: &PackedFormat, head: usize) -> &[u32] {
        &bytemuck::cast_slice(&self.lines)[head * format.region_words..][..format.region_words]
    }

    /// All that is stored but the exact slots.
    fn raw(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines)
    }

    fn raw_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }

    /// A head's exact slots, `[n_exact, 2, head_dim]`.
    pub(crate) fn exact(&self, n_kv_heads: usize, head: usize) -> &[f16] {
        let n = self.exact.len() / n_kv_heads;
        &self.exact[head * n..][..n]
    }

    pub(crate) fn exact_mut(&mut self, n_kv_heads: usize, head: usize) -> &mut [f16] {
        let n = self.exact.len() / n_kv_heads;
        &mut self.exact[head * n..][..n]
    }

    /// Writes one head's codes.
    pub(crate) fn write(&mut self, format: &PackedFormat, head: usize, keys: &Coded, values: &Coded) {
        let words: &mut [u32] = bytemuck::cast_slice_mut(&mut self.lines);
        let region = &mut words[head * format.region_words..][..format.region_words];
        let places: Vec<Place> = places_of(keys.widths.iter().copied()).collect();
        for (slot, codes) in keys.codes.chunks_exact(format.keys.n_coded()).enumerate() {
            let lane = slot / LANES * format.key_words * LANES + slot % LANES;
            for run in &format.key_runs {
                put(region, lane, &run.places, &codes[run.from..][..run.len]);
            }
            put(region, lane, &places, codes);
        }
        for (slot, codes) in values.codes.chunks_exact(format.head_dim).enumerate() {
            let mut codes = codes.chunks_exact(LANES);
            for ValueRun { n_blocks, first, n_words, run } in &format.value_runs {
                let place = run.places[slot / QUAD];
                for (block, codes) in codes.by_ref().take(*n_blocks).enumerate() {
                    for (lane, &code) in codes.iter().enumerate() {
                        place.put(region, first + block * n_words * LANES + lane, slot % QUAD, code);
                    }
                }
            }
        }
        let halves: &mut [f16] = bytemuck::cast_slice_mut(region);
        for (meta, coded) in [(format.key_meta, keys), (format.value_meta, values)] {
            for (at, from) in [
                (meta.steps, &coded.steps),
                (meta.lows, &coded.lows),
                (meta.scales, &coded.scales),
                (meta.offsets, &coded.offsets),
            ] {
                halves[at..][..from.len()].copy_from_slice(from);
            }
            let order = coded.order.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            let nibbles =
                |widths: &[u8]| widths.iter().rev().fold(0, |all, &w| all << WIDTH_BITS | u16::from(w));
            let widths = coded.widths.chunks(16 / WIDTH_BITS).map(nibbles);
            for (half, bits) in halves[meta.widths..].iter_mut().zip(order.chain(widths)) {
                *half = f16::from_bits(bits);
            }
        }
    }
}

/// Writes codes into a lane of zeros.
fn put(region: &mut [u32], lane: usize, places: &[Place], codes: &[u8]) {
    for (place, codes) in places.iter().zip(codes.chunks_exact(QUAD)) {
        for (column, &code) in codes.iter().enumerate() {
            place.put(region, lane, column, code);
        }
    }
}
