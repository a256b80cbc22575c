//! KIVI: keys are rounded channel by channel, values token by token.
//!
//! Some channels of the keys are large for all tokens, so a separate step for each keeps them from spoiling
//! the others. Values have no such channels, and sums over tokens work best if errors are independent from
//! token to token.
//!
//! # Memory
//! `bits` for each element, and 32 bits for each group: `bits` + 1 with the published groups of 32.
//!
//! # Source
//! Liu et al. 2024, arXiv 2402.02750, section 4 and algorithm 1. Deviations: steps and low ends are
//! 16-bit floats; the window of recent tokens ends at a page's boundary, so it has between `window`
//! and `window` + 63 tokens.

use half::f16;

use super::block::groups;
use super::coder::{Coder, Coding, PackedCoding, check_width, whole_bits};
use super::turbo_quant::to_f16;
use crate::pages::packed::{Coded, SideFormat, Tile, TileCoder, Widths};
use crate::pages::page::PAGE_TOKENS;
use crate::{Error, Result};

/// Settings of KIVI.
#[derive(Clone, Debug, PartialEq)]
pub struct KiviConfig {
    /// Bits of an element, 1 to 8; published: 2 and 4.
    pub bits: u32,
    /// Tokens (of keys) and channels (of values) that share a step: 32 or 64.
    pub group: usize,
    /// How many of the newest tokens at least stay exact.
    pub window: usize,
}

impl KiviConfig {
    /// Groups of 32 and a window of 128 tokens.
    pub fn paper(bits: u32) -> Self {
        Self { bits, group: 32, window: 128 }
    }
}

impl Default for KiviConfig {
    /// Four bits, groups of 64 tokens, no window.
    fn default() -> Self {
        Self { bits: 4, group: 64, window: 0 }
    }
}

impl Coder for KiviConfig {
    fn name(&self) -> String {
        format!("kivi-{}", self.bits)
    }

    fn window(&self) -> usize {
        self.window
    }

    fn coding(&self, head_dim: usize) -> Result<Coding> {
        check_width(head_dim)?;
        whole_bits("KIVI", self.bits)?;
        if ![32, PAGE_TOKENS].contains(&self.group) {
            return Err(Error::GroupSize { expected: "32 or 64", found: self.group });
        }
        Ok(PackedCoding::new(KiviKeys::new(head_dim, self), KiviValues::new(head_dim, self)).into())
    }
}

/// The step and the low end that spread `n_levels` levels over all of the numbers, both as stored.
pub(super) fn spread(low: f32, high: f32, n_levels: f32) -> (f16, f16) {
    let low = to_f16(low);
    // The low end may have been rounded up; the step makes up for it.
    (to_f16((high - low.to_f32()).max(0.0) / (n_levels - 1.0)), low)
}

/// The nearest code.
#[inline(always)]
pub(super) fn nearest(x: f32, low: f32, step: f32, most: f32) -> u8 {
    // A quotient, not a product with the inverse: numbers half-way between levels are common among 16-bit
    // floats, and must be rounded the same way everywhere. Without a step all levels are the low end.
    if step > 0.0 { ((x - low) / step).round().clamp(0.0, most) as u8 } else { 0 }
}

pub(super) fn inverse(step: f16) -> f32 {
    if step == f16::ZERO { 0.0 } else { 1.0 / step.to_f32() }
}

/// Keys, channel by channel.
pub(crate) struct KiviKeys {
    format: SideFormat,
    bits: u32,
    group: usize,
}

impl KiviKeys {
    pub(crate) fn new(dim: usize, config: &KiviConfig) -> Self {
        let format = SideFormat {
            widths: Widths::Fixed(vec![config.bits as u8; dim]),
            tables: Vec::new(),
            table_of: Vec::new(),
            channel_slots: Some(config.group),
            groups: groups(dim, dim),
            scales: false,
            offsets: false,
        };
        Self { format, bits: config.bits, group: config.group }
    }
}

impl TileCoder for KiviKeys {
    fn format(&self) -> &SideFormat {
        &self.format
    }

    fn code(&self, tile: &Tile<'_>, out: &mut Coded) {
        let (dim, n_levels) = (tile.head_dim, (1u32 << self.bits) as f32);
        for set in 0..PAGE_TOKENS / self.group {
            let slots = set * self.group..(set + 1) * self.group;
            let rows = tile.coded_rows().filter(|(slot, _)| slots.contains(slot));
            for channel in 0..dim {
                let column = rows.clone().map(|(_, row)| row[channel]);
                let (low, high) = column.fold((f32::MAX, f32::MIN), |(l, h), x| (l.min(x), h.max(x)));
                let (step, low) = spread(low, high, n_levels);
                out.steps[set * dim + channel] = step;
                out.lows[set * dim + channel] = low;
                let step = step.to_f32();
                for (slot, row) in rows.clone() {
                    out.codes[slot * dim + channel] =
                        nearest(row[channel], low.to_f32(), step, n_levels - 1.0);
                }
            }
        }
    }
}

/// Values, token by token.
pub(crate) struct KiviValues {
    format: SideFormat,
    bits: u32,
}

impl KiviValues {
    pub(crate) fn new(dim: usize, config: &KiviConfig) -> Self {
        let format = SideFormat {
            widths: Widths::Fixed(vec![config.bits as u8; dim]),
            tables: Vec::new(),
            table_of: Vec::new(),
            channel_slots: None,
            groups: groups(dim, config.group),
            scales: true,
            offsets: true,
        };
        Self { format, bits: config.bits }
    }
}

impl TileCoder for KiviValues {
    fn format(&self) -> &SideFormat {
        &self.format
    }

    fn code(&self, tile: &Tile<'_>, out: &mut Coded) {
        let n_levels = (1u32 << self.bits) as f32;
        for (slot, row) in tile.coded_rows() {
            for (g, group) in self.format.groups.iter().enumerate() {
                let row = &row[group.from..group.to];
                let (low, high) = row.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
                let (step, low) = spread(low, high, n_levels);
                out.scales[g * PAGE_TOKENS + slot] = step;
                out.offsets[g * PAGE_TOKENS + slot] = low;
                let step = step.to_f32();
                let codes = &mut out.codes[slot * tile.head_dim..][group.from..group.to];
                for (code, &x) in codes.iter_mut().zip(row) {
                    *code = nearest(x, low.to_f32(), step, n_levels - 1.0);
                }
            }
        }
    }
}
