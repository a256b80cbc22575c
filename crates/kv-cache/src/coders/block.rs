//! Q8_0 and Q4_0: every 32 elements of a token share a scale.
//!
//! Q4_0 over heads that were rotated by a Walsh–Hadamard transform is the cheap baseline of
//! all rotated methods.
//!
//! # Memory
//! 8.5 and 4.5 bits an element.
//!
//! # Source
//! The block formats of ggml. Rotation before rounding: Ashkboos et al. 2024, "QuaRot", arXiv 2404.00456,
//! section 4.2.

use half::f16;

use super::coder::{Coder, Coding, PackedCoding, check_width};
use super::turbo_quant::to_f16;
use crate::pages::packed::{Coded, Group, SideFormat, Tile, TileCoder, Widths};
use crate::pages::page::PAGE_TOKENS;
use crate::{Error, Result};

/// Elements that share a scale.
const BLOCK: usize = 32;

/// Settings of block formats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Bits of an element, 4 or 8.
    pub bits: u32,
    /// Whether heads are rotated by a Walsh–Hadamard transform before.
    pub rotated: bool,
}

impl BlockConfig {
    /// Eight bits.
    pub fn q8_0() -> Self {
        Self { bits: 8, rotated: false }
    }

    /// Four bits.
    pub fn q4_0() -> Self {
        Self { bits: 4, rotated: false }
    }
}

impl Coder for BlockConfig {
    fn name(&self) -> String {
        format!("q{}_0{}", self.bits, if self.rotated { "-rotated" } else { "" })
    }

    fn coding(&self, head_dim: usize) -> Result<Coding> {
        check_width(head_dim)?;
        let bits = match self.bits {
            4 => 4,
            8 => 8,
            found => {
                let (what, expected) = ("a block format", "4 or 8");
                return Err(Error::BitWidth { what, expected, found: found.into() });
            }
        };
        let coding = PackedCoding::new(Block::new(head_dim, bits), Block::new(head_dim, bits));
        Ok(if self.rotated { coding.rotated(head_dim, true)? } else { coding }.into())
    }
}

/// Groups of `size` channels, or of as many as there are.
pub(super) fn groups(dim: usize, size: usize) -> Vec<Group> {
    let size = size.min(dim);
    let group = |from| Group { from, to: from + size, sketch: false, step: 1.0, offset: 0.0 };
    (0..dim).step_by(size).map(group).collect()
}

/// Keys or values in blocks with a scale.
pub(crate) struct Block {
    format: SideFormat,
    bits: u32,
}

impl Block {
    /// Of 4 or 8 bits.
    pub(crate) fn new(dim: usize, bits: u8) -> Self {
        let offset = -((1u32 << (bits - 1)) as f32);
        let groups = groups(dim, BLOCK).into_iter().map(|group| Group { offset, ..group }).collect();
        let format = SideFormat {
            widths: Widths::Fixed(vec![bits; dim]),
            tables: Vec::new(),
            table_of: Vec::new(),
            channel_slots: None,
            groups,
            scales: true,
            offsets: false,
        };
        Self { format, bits: bits.into() }
    }
}

impl TileCoder for Block {
    fn format(&self) -> &SideFormat {
        &self.format
    }

    fn code(&self, tile: &Tile<'_>, out: &mut Coded) {
        for (slot, row) in tile.coded_rows() {
            let codes = &mut out.codes[slot * tile.head_dim..][..tile.head_dim];
            for (g, group) in self.format.groups.iter().enumerate() {
                let row = &row[group.from..group.to];
                let largest = row.iter().fold(0.0f32, |a, &b| if b.abs() > a.abs() { b } else { a });
                // Eight bits are symmetric; four give the largest element the code that has no counterpart.
                let (scale, half) = match self.bits {
                    8 => (largest.abs() / 127.0, 128.0),
                    _ => (largest / -8.0, 8.0),
                };
                let scale = to_f16(scale);
                let factor = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
                let most = 2.0 * half - 1.0;
                for (code, x) in codes[group.from..group.to].iter_mut().zip(row) {
                    *code = (x * factor + half).round().clamp(0.0, most) as u8;
                }
                out.scales[g * PAGE_TOKENS + slot] = scale;
            }
        }
    }
}
