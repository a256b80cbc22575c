//! From weights to the blocks of a GGUF file: the choice of scales, and the packing of codes.
//!
//! The two are separate, because codes are chosen by the nearest value in plain rounding and by error
//! feedback in GPTQ. Scales minimize the squared error, with each column weighted by its importance: first
//! the best unrestricted scales, then the super-block's factor, and then the small integers around each
//! quotient, which are tried one by one.

mod pack;
mod search;

use super::grid::{Grid, LANES};
use breakers_cpu::{
    self as cpu, per_isa,
    pool::{self, DisjointMut},
};
use breakers_gguf::{Format, IQ4_NL_LEVELS, Levels, MXFP4_LEVELS, half_power_of_two};
use search::{error, error_of, scale, scale_and_offset};

/// Levels of IQ4_NL as numbers.
static IQ4_NL: [f32; 16] = floats(IQ4_NL_LEVELS);
/// Levels of MXFP4, ascending: codes 15 to 9, then 0 to 7; a second zero is never used.
static MXFP4: [f32; 15] = {
    let all = floats(MXFP4_LEVELS);
    let mut sorted = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        sorted[i] = if i < 7 { all[15 - i] } else { all[i - 7] };
        i += 1;
    }
    sorted
};

const fn floats(levels: [i8; 16]) -> [f32; 16] {
    let mut out = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = levels[i] as f32;
        i += 1;
    }
    out
}

/// The layout of a format's scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One half-precision scale for 32 values.
    Half,
    /// Half-precision scale and offset for 32 values.
    HalfMin,
    /// A power of two for 32 values.
    Exponent,
    /// Unsigned scales and minima up to the number, for groups of this many values, and two factors.
    Minima { most: u8, group: usize },
    /// Signed scales down to the number for groups of 16 values, and one factor.
    Signed { least: i8 },
}

/// Layout and levels of a format of integer codes; nothing for floats.
fn shape(format: Format) -> Option<(Layout, Levels)> {
    let steps = |least, n| Levels::Steps { least, n };
    Some(match format {
        Format::F32 | Format::F16 | Format::BF16 => return None,
        Format::Q4_0 => (Layout::Half, steps(-8, 16)),
        Format::Q4_1 => (Layout::HalfMin, steps(0, 16)),
        Format::Q5_0 => (Layout::Half, steps(-16, 32)),
        Format::Q5_1 => (Layout::HalfMin, steps(0, 32)),
        Format::Q8_0 => (Layout::Half, steps(-127, 255)),
        Format::Q2_K => (Layout::Minima { most: 15, group: 16 }, steps(0, 4)),
        Format::Q3_K => (Layout::Signed { least: -32 }, steps(-4, 8)),
        Format::Q4_K => (Layout::Minima { most: 63, group: 32 }, steps(0, 16)),
        Format::Q5_K => (Layout::Minima { most: 63, group: 32 }, steps(0, 32)),
        Format::Q6_K => (Layout::Signed { least: -128 }, steps(-32, 64)),
        Format::IQ4_NL => (Layout::Half, Levels::Table(&IQ4_NL)),
        Format::MXFP4 => (Layout::Exponent, Levels::Table(&MXFP4)),
    })
}

/// The scales of a block, as they are stored.
#[derive(Debug, Clone, Copy, Default)]
struct BlockScales {
    /// Half-precision factor of the scales, or the exponent.
    factor: u16,
    /// Half-precision factor of the minima, or the offset.
    offset: u16,
    scales: [i8; 16],
    minima: [u8; 16],
}

/// Scales of all blocks of a matrix, and the values that they allow.
pub(crate) struct Blocks {
    format: Format,
    scales: Vec<BlockScales>,
    pub(crate) grid: Grid,
}

impl Blocks {
    /// Chooses scales for weights `[n_rows, n_cols]`, with the importance of each column. Rows must be whole
    /// blocks of the format; formats of floats have none.
    pub(crate) fn choose(
        format: Format,
        weights: &[f32],
        n_cols: usize,
        importance: Option<&[f32]>,
    ) -> Option<Self> {
        let (layout, levels) = shape(format)?;
        let size = format.block_size();
        debug_assert!(n_cols.is_multiple_of(size));
        let n_rows = weights.len() / n_cols.max(1);
        let blocks_per_row = n_cols / size;
        let isa = cpu::isa();
        let mut scales = vec![BlockScales::default(); n_rows * blocks_per_row];
        pool::parallel_chunks_mut(&mut scales, 4 * blocks_per_row.max(1), |start, scales| {
            for (i, scales) in scales.iter_mut().enumerate() {
                let at = start + i;
                let x = &weights[at * size..(at + 1) * size];
                let w = importance.map(|w| &w[at % blocks_per_row * size..][..size]);
                *scales = per_isa!(isa, || block(layout, levels, x, w));
            }
        });
        let group = match layout {
            Layout::Minima { group, .. } => group,
            Layout::Signed { .. } => 16,
            _ => 32,
        };
        let grid = Grid::new(levels, group, n_rows, n_cols, |row, put| {
            for (block, scales) in scales[row * blocks_per_row..(row + 1) * blocks_per_row].iter().enumerate()
            {
                for within in 0..size / group {
                    let (scale, offset) = scales.values(layout, within);
                    put(block * (size / group) + within, scale, offset);
                }
            }
        });
        Some(Self { format, scales, grid })
    }

    /// Packs codes `[n_rows, n_cols]` into the format's blocks.
    pub(crate) fn pack(&self, codes: &[u8]) -> Vec<u8> {
        let (size, width) = (self.format.block_size(), self.format.block_bytes());
        let mut bytes = vec![0u8; self.scales.len() * width];
        let out = DisjointMut::new(&mut bytes);
        pool::parallel_chunks(self.scales.len(), 64, |blocks| {
            for i in blocks {
                // SAFETY: each block belongs to one task.
                let block = unsafe { out.slice_mut(i * width..(i + 1) * width) };
                pack::block(self.format, &self.scales[i], &codes[i * size..(i + 1) * size], block);
            }
        });
        bytes
    }
}

/// Encodes plain numbers in a format of floats.
pub(crate) fn floats_to_bytes(format: Format, values: &[f32]) -> Vec<u8> {
    match format {
        Format::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        Format::BF16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

impl BlockScales {
    /// Scale and offset of a group, with the bits that a decoder computes.
    fn values(&self, layout: Layout, group: usize) -> (f32, f32) {
        let half = |bits| half::f16::from_bits(bits).to_f32();
        match layout {
            Layout::Half => (half(self.factor), 0.0),
            Layout::HalfMin => (half(self.factor), half(self.offset)),
            Layout::Exponent => (half_power_of_two(self.factor as u8), 0.0),
            Layout::Minima { .. } => (
                half(self.factor) * f32::from(self.scales[group]),
                -(half(self.offset) * f32::from(self.minima[group])),
            ),
            Layout::Signed { .. } => (half(self.factor) * f32::from(self.scales[group]), 0.0),
        }
    }
}

/// The nearest half-precision number that is finite.
#[inline(always)]
fn to_half(x: f32) -> half::f16 {
    breakers_cpu::float16::saturating(x)
}

#[inline(always)]
fn block(layout: Layout, levels: Levels, x: &[f32], importance: Option<&[f32]>) -> BlockScales {
    match layout {
        Layout::Half | Layout::HalfMin | Layout::Exponent => simple(layout, levels, x, importance),
        Layout::Minima { most, group: 16 } => with_minima::<16>(levels, most, x, importance),
        Layout::Minima { most, .. } => with_minima::<32>(levels, most, x, importance),
        Layout::Signed { least } => signed(levels, least, x, importance),
    }
}

/// The values of a group, and their weights: ones without importance, or where nothing is important.
#[inline(always)]
fn group<const N: usize>(x: &[f32], importance: Option<&[f32]>, group: usize) -> ([f32; N], [f32; N]) {
    let (mut values, mut weights) = ([0.0; N], [1.0; N]);
    values.copy_from_slice(&x[group * N..(group + 1) * N]);
    if let Some(importance) = importance {
        let importance = &importance[group * N..(group + 1) * N];
        let sum: f32 = importance.iter().sum();
        if sum > 0.0 && sum.is_finite() {
            // Every column gets a little weight, so that inputs that were not seen in calibration still
            // count.
            let (factor, floor) = (N as f32 / sum, 1e-3);
            for i in 0..N {
                weights[i] = importance[i] * factor + floor;
            }
        }
    }
    (values, weights)
}

/// Blocks of 32 values with one scale.
#[inline(always)]
fn simple(layout: Layout, levels: Levels, x: &[f32], importance: Option<&[f32]>) -> BlockScales {
    let (x, w) = group::<32>(x, importance, 0);
    match layout {
        Layout::HalfMin => {
            let (scale, offset) = scale_and_offset(&x, &w, levels.range().1, false);
            let (factor, offset) = (to_half(scale).to_bits(), to_half(offset).to_bits());
            BlockScales { factor, offset, ..Default::default() }
        }
        Layout::Exponent => {
            let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
            // OCP MX, section 6.3: the exponent of the largest magnitude less that of the largest level (4);
            // the one above it is tried too.
            let exponent = ((largest.to_bits() >> 23) as i32 - 2).clamp(0, 253);
            let candidates = [exponent, exponent + 1].map(|e| {
                let error = error_of(&x, &w, half_power_of_two(e as u8), 0.0, levels);
                (if error.is_nan() { f32::INFINITY } else { error }, e)
            });
            let best = if candidates[1].0 < candidates[0].0 { candidates[1].1 } else { candidates[0].1 };
            BlockScales { factor: best as u16, ..Default::default() }
        }
        _ => BlockScales { factor: to_half(scale(&x, &w, levels)).to_bits(), ..Default::default() },
    }
}

/// Super-blocks with unsigned scales and minima.
#[inline(always)]
fn with_minima<const N: usize>(
    levels: Levels,
    most: u8,
    x: &[f32],
    importance: Option<&[f32]>,
) -> BlockScales {
    let n_groups = 256 / N;
    let top = levels.range().1;
    let mut wanted = [(0.0f32, 0.0f32); 16];
    for i in 0..n_groups {
        let (x, w) = group::<N>(x, importance, i);
        wanted[i] = scale_and_offset(&x, &w, top, true);
    }
    let largest = wanted.iter().fold((0.0f32, 0.0f32), |a, b| (a.0.max(b.0), a.1.max(-b.1)));
    let limit = f32::from(most);
    let (factor, offset) = (to_half(largest.0 / limit), to_half(largest.1 / limit));
    let (d, d_min) = (factor.to_f32(), offset.to_f32());
    let mut block = BlockScales { factor: factor.to_bits(), offset: offset.to_bits(), ..Default::default() };
    for i in 0..n_groups {
        let (x, w) = group::<N>(x, importance, i);
        let quotient = |x: f32, d: f32| if d == 0.0 { 0.0 } else { (x / d).round_ties_even() };
        let (near_scale, near_min) = (quotient(wanted[i].0, d), quotient(-wanted[i].1, d_min));
        let mut best = f32::INFINITY;
        for scale_step in [0.0, -1.0, 1.0] {
            let scale = (near_scale + scale_step).clamp(0.0, limit);
            for min_step in [0.0, -1.0, 1.0] {
                let min = (near_min + min_step).clamp(0.0, limit);
                let found = error(&x, &w, d * scale, -(d_min * min), top);
                if found < best {
                    best = found;
                    (block.scales[i], block.minima[i]) = (scale as i8, min as u8);
                }
            }
        }
    }
    block
}

/// Super-blocks with signed scales.
#[inline(always)]
fn signed(levels: Levels, least: i8, x: &[f32], importance: Option<&[f32]>) -> BlockScales {
    let mut wanted = [0.0f32; 16];
    let mut extreme = 0.0f32;
    for i in 0..16 {
        let (x, w) = group::<16>(x, importance, i);
        wanted[i] = scale(&x, &w, levels);
        if wanted[i].abs() > extreme.abs() {
            extreme = wanted[i];
        }
    }
    let limit = f32::from(least);
    let factor = to_half(extreme / limit);
    let d = factor.to_f32();
    let mut block = BlockScales { factor: factor.to_bits(), ..Default::default() };
    for i in 0..16 {
        let (x, w) = group::<16>(x, importance, i);
        let near = if d == 0.0 { 0.0 } else { (wanted[i] / d).round_ties_even() };
        let mut best = f32::INFINITY;
        for step in [0.0, -1.0, 1.0] {
            let scale = (near + step).clamp(limit, -limit - 1.0);
            let found = error_of(&x, &w, d * scale, 0.0, levels);
            if found < best {
                best = found;
                block.scales[i] = scale as i8;
            }
        }
    }
    block
}

const _: () = assert!(LANES == 32);

#[cfg(test)]
mod tests;
