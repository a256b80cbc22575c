//! Packed pages: the keys and values of [`PAGE_TOKENS`] consecutive slots of one layer, in a few bits each.
//!
//! A page never changes once it is written. It holds one region after the other for the layer's key-value heads:
//! - codes of keys: for each 16 slots `[n_words][16]` words of 32 bits; a slot's lane holds the codes of its elements,
//!   in [`Run`]s of one width; where widths differ from page to page, as one stream of bits instead, least significant
//!   first;
//! - codes of values: for each 16 elements `[n_words][16]` words; an element's lane is the run of its slots' codes;
//! - numbers of 16 bits: a step and a low end for each channel (element of the head), a scale and an offset for
//!   each slot and group of channels; which of them there are is the method's choice ([`SideFormat`]).
//!
//! A code c stands for `scale · (step · level(c) + low) + offset`, where level(c) is c itself or a codebook's entry.
//! The first slots of the first page may be exact: they are kept as 16-bit floats beside their codes.

mod accumulate;
pub(crate) mod kernel;
pub(crate) mod layer;
mod run;

use half::f16;

use crate::page::{LANES, Line, PAGE_BLOCKS, PAGE_TOKENS};
use bytemuck::Zeroable;
use run::Run;

/// Codes of a codebook at most.
pub(crate) const TABLE: usize = 32;
/// Elements of a head at most.
pub(crate) const MAX_HEAD_DIM: usize = 256;
/// Coded elements of a head at most: a sketch of signs doubles them.
pub(crate) const MAX_CODED: usize = 2 * MAX_HEAD_DIM;
/// Groups of channels with a scale of their own, at most.
pub(crate) const MAX_GROUPS: usize = MAX_HEAD_DIM / LANES;
/// Bits of the number that tells an adaptive channel's width.
const WIDTH_BITS: usize = 4;

/// Widths of the codes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Widths {
    /// One for each channel.
    Fixed(Vec<u8>),
    /// Chosen page by page; a slot's codes have this many bits in all.
    Adaptive { bits: usize },
}

/// What codes stand for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Levels {
    /// Themselves, plus a constant.
    Uniform { offset: f32 },
    /// Entries of the tables, which repeat themselves; the second list tells each channel's table.
    Tables(Vec<[f32; TABLE]>, Vec<u8>),
}

/// Channels whose codes share a scale.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Whether keys of the group are multiplied with the projected query.
    pub(crate) sketch: bool,
}

/// How one side, keys or values, is coded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SideFormat {
    pub(crate) widths: Widths,
    pub(crate) levels: Levels,
    /// Slots that share the step and the low end of each channel, a divisor of [`PAGE_TOKENS`]; `None`: there are
    /// none.
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
    fn code(&self, channel: usize) -> (u32, Option<u8>) {
        let width = match &self.widths {
            Widths::Fixed(widths) => widths[channel].into(),
            Widths::Adaptive { .. } => 0,
        };
        match &self.levels {
            Levels::Uniform { .. } => (width, None),
            Levels::Tables(_, of) => (width, Some(of[channel])),
        }
    }

    fn tables(&self) -> &[[f32; TABLE]] {
        if let Levels::Tables(tables, _) = &self.levels { tables } else { &[] }
    }

    /// Whether scores need sums of the query over groups.
    fn needs_group_sums(&self) -> bool {
        self.offsets || matches!(self.levels, Levels::Uniform { offset } if offset != 0.0)
    }

    /// Whether keys' levels meet the query itself.
    fn takes_queries_as_they_are(&self) -> bool {
        self.channel_slots.is_none()
            && !self.needs_group_sums()
            && self.groups.iter().all(|group| !group.sketch)
    }

    fn meta(&self) -> [usize; 5] {
        let (n, sets, groups) = (self.n_coded(), self.n_sets(), self.groups.len() * PAGE_TOKENS);
        let widths = match self.widths {
            Widths::Fixed(_) => 0,
            Widths::Adaptive { .. } => (n * WIDTH_BITS).div_ceil(16),
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
    pub(crate) widths: usize,
    pub(crate) steps: usize,
    pub(crate) lows: usize,
    pub(crate) scales: usize,
    pub(crate) offsets: usize,
}

/// Where the code of an adaptive channel stands in its lane: the bits of a word above `right`, and those of the next
/// one below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the word, lanes included.
    pub(crate) word: u32,
    pub(crate) right: u32,
    /// 32 − `right`.
    pub(crate) left: u32,
    pub(crate) mask: u32,
}

/// The format of one layer's packed pages.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PackedFormat {
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) keys: SideFormat,
    pub(crate) values: SideFormat,
    /// First slots of the sequence that are exact.
    pub(crate) n_exact: usize,
    /// Words of a slot's lane.
    pub(crate) key_words: usize,
    /// Of keys of fixed width, in the order of the channels; none goes over the end of a group.
    pub(crate) key_runs: Vec<Run>,
    /// Registers of 16 elements of a value: how many have codes of one kind, and the slots' run in the first one's
    /// lanes. `word` counts from the region's beginning.
    pub(crate) value_runs: Vec<(usize, Run)>,
    pub(crate) key_meta: Meta,
    pub(crate) value_meta: Meta,
    /// Words of a head's region, a multiple of a cache line.
    region_words: usize,
}

impl PackedFormat {
    pub(crate) fn new(
        n_kv_heads: usize,
        head_dim: usize,
        keys: SideFormat,
        values: SideFormat,
        n_exact: usize,
    ) -> Self {
        debug_assert!(head_dim.is_multiple_of(LANES) && keys.n_coded() <= MAX_CODED);
        debug_assert!(values.n_coded() == head_dim && n_exact < PAGE_TOKENS);
        let bits = match &keys.widths {
            Widths::Fixed(widths) => widths.iter().map(|&w| usize::from(w)).sum(),
            Widths::Adaptive { bits } => *bits,
        };
        let key_runs = key_runs(&keys);
        let key_words = match key_runs.last() {
            Some(run) => run.word + run.n_words(),
            None => bits.div_ceil(32),
        };
        let mut at = PAGE_BLOCKS * key_words;
        let mut value_runs: Vec<(usize, Run)> = Vec::new();
        for group in &values.groups {
            let mut first = true;
            for channel in (group.from..group.to).step_by(LANES) {
                let (width, table) = values.code(channel);
                let run = Run { from: 0, len: PAGE_TOKENS, width, word: at, table };
                at += run.n_words();
                match value_runs.last_mut() {
                    Some((n, last)) if !first && (last.width, last.table) == (width, table) => *n += 1,
                    _ => value_runs.push((1, run)),
                }
                first = false;
            }
        }
        let at = at * LANES;
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
            n_exact,
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
        // The last line is for reads of a whole word behind the last code.
        (self.n_kv_heads * self.region_words + LANES) * size_of::<u32>()
    }
}

/// Runs of channels with codes of the same kind; none for adaptive widths.
fn key_runs(keys: &SideFormat) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    if matches!(keys.widths, Widths::Adaptive { .. }) {
        return runs;
    }
    for group in &keys.groups {
        let first = runs.len();
        for channel in group.from..group.to {
            let (width, table) = keys.code(channel);
            let word = runs.last().map_or(0, |run| run.word + run.n_words());
            match runs[first..].last_mut() {
                Some(run) if (run.width, run.table) == (width, table) => run.len += 1,
                _ => runs.push(Run { from: channel, len: 1, width, word, table }),
            }
        }
    }
    runs
}

/// Where the code at `bit` of a stream of bits stands; `bit` goes on to the next one.
#[inline(always)]
pub(crate) fn place_code(bit: &mut u32, width: u32) -> Place {
    let (word, right) = (*bit / u32::BITS * LANES as u32, *bit % u32::BITS);
    *bit += width;
    Place { word, right, left: u32::BITS - right, mask: (1 << width) - 1 }
}

/// What a method makes of one head's keys, or values, of a page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coded {
    /// Of adaptive formats, one for each channel.
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
        Self {
            widths: match format.widths {
                Widths::Fixed(_) => Vec::new(),
                Widths::Adaptive { .. } => vec![0; format.n_coded()],
            },
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
    /// How much an error of each channel matters; ones, if nothing is known.
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
    lines: Box<[Line]>,
    /// Keys and values of exact slots, `[n_kv_heads, n_exact, 2, head_dim]`.
    exact: Box<[f16]>,
}

impl PackedPage {
    /// A page that holds nothing and takes no memory, for slots that no row sees any more.
    pub(crate) fn evicted() -> Self {
        Self { lines: Box::default(), exact: Box::default() }
    }

    pub(crate) fn zeroed(format: &PackedFormat, n_exact: usize) -> Self {
        let n_lines = format.page_bytes().div_ceil(size_of::<Line>());
        let n_halves = format.n_kv_heads * n_exact * 2 * format.head_dim;
        Self {
            lines: vec![Line::zeroed(); n_lines].into_boxed_slice(),
            exact: vec![f16::ZERO; n_halves].into_boxed_slice(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.exact)
    }

    /// A head's region.
    pub(crate) fn region(&self, format: &PackedFormat, head: usize) -> &[u32] {
        // To the end: the kernel may read a word behind the region.
        &bytemuck::cast_slice(&self.lines)[head * format.region_words..]
    }

    /// A head's exact slots, `[n_exact, 2, head_dim]`.
    pub(crate) fn exact(&self, format: &PackedFormat, head: usize) -> &[f16] {
        let n = self.exact.len() / format.n_kv_heads;
        &self.exact[head * n..][..n]
    }

    pub(crate) fn exact_mut(&mut self, format: &PackedFormat, head: usize) -> &mut [f16] {
        let n = self.exact.len() / format.n_kv_heads;
        &mut self.exact[head * n..][..n]
    }

    /// Writes one head's codes.
    pub(crate) fn write(&mut self, format: &PackedFormat, head: usize, keys: &Coded, values: &Coded) {
        let words: &mut [u32] = bytemuck::cast_slice_mut(&mut self.lines);
        let region = &mut words[head * format.region_words..][..format.region_words];
        let n_coded = format.keys.n_coded();
        let mut bit = 0;
        let places = keys.widths.iter().map(|width| place_code(&mut bit, (*width).into()));
        let places: Vec<Place> = places.collect();
        for (slot, codes) in keys.codes.chunks_exact(n_coded).enumerate() {
            let lane = slot / LANES * format.key_words * LANES + slot % LANES;
            for run in &format.key_runs {
                for (at, &code) in codes[run.from..run.from + run.len].iter().enumerate() {
                    run.put(region, lane, at, code);
                }
            }
            for (place, &code) in places.iter().zip(codes) {
                let bits = u64::from(code) << place.right;
                let at = lane + place.word as usize;
                region[at] |= bits as u32;
                if bits >> u32::BITS != 0 {
                    region[at + LANES] |= (bits >> u32::BITS) as u32;
                }
            }
        }
        for (slot, codes) in values.codes.chunks_exact(format.head_dim).enumerate() {
            let mut codes = codes.chunks_exact(LANES);
            for (n, run) in &format.value_runs {
                for (block, codes) in codes.by_ref().take(*n).enumerate() {
                    let run = Run { word: run.word + block * run.n_words(), ..*run };
                    for (lane, &code) in codes.iter().enumerate() {
                        run.put(region, lane, slot, code);
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
            for (at, widths) in coded.widths.chunks(2 * size_of::<u16>()).enumerate() {
                let nibbles = widths.iter().rev().fold(0u16, |all, &w| all << WIDTH_BITS | u16::from(w));
                halves[meta.widths + at] = f16::from_bits(nibbles);
            }
        }
    }
}
