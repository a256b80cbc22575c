//! Water filling: every channel of the keys gets as many bits as its errors cost.
//!
//! Keys after rotary embeddings are not noise, for which a random rotation would be best: a few slow channels
//! carry most of the variance, drift along the text, and are multiplied by large queries, while others hardly
//! matter. An error e in channel i changes a score by qᵢ·e, so the error of all scores is the least, for a
//! given number of bits, if the channels' shares Σqᵢ²·rangeᵢ²·4^(−bitsᵢ) are as equal as whole bits allow.
//! Ranges are those of a page, which follows the drift and clips nothing; the queries are those of the
//! sequence's first page. Groups of four channels with about the same cost get the same number of bits, so
//! that their codes can be read together.
//!
//! Values are different: they have no such channels, and their errors average out over tokens. They are coded
//! by TurboQuant's rescaled estimator, with fewer bits.
//!
//! # Memory
//! Keys: `key_bits` + 41/64 bits an element (a step, a low end and a place for each channel of a page, a
//! width for every four); values: `value_bits` + 16/head_dim.
//!
//! # Source
//! The allocation: reverse water filling, Cover and Thomas, "Elements of Information Theory", section 10.3.3,
//! with the greedy rounding of Fox 1966. Steps for each channel of the keys: KIVI, arXiv 2402.02750. The
//! combination is this project's.

use half::f16;

use super::block::groups;
use super::coder::{Coder, Coding, PackedCoding, check_bits, check_width};
use super::kivi::nearest;
use super::turbo_cache::Turbo;
use super::turbo_quant::to_f16;
use crate::Result;
use crate::pages::packed::run::QUAD;
use crate::pages::packed::{Coded, SideFormat, Tile, TileCoder, Widths};

/// Most bits of a channel.
const MAX_BITS: u8 = 7;

/// Settings of water filling.
#[derive(Clone, Debug, PartialEq)]
pub struct WaterFillingConfig {
    /// Bits of a key's element, on average, 1 to 7, in steps of 32/head_dim.
    pub key_bits: f64,
    /// Bits of a value's element, on average, 1 to 5, in steps of 16/head_dim.
    pub value_bits: f64,
}

impl Default for WaterFillingConfig {
    /// 3.5 and 3 bits: below 4.25 bits an element with everything, at 2,048 tokens of heads of 64 elements.
    /// Whole bits of values are faster than fractions.
    fn default() -> Self {
        Self { key_bits: 3.5, value_bits: 3.0 }
    }
}

impl Coder for WaterFillingConfig {
    fn name(&self) -> String {
        format!("water-{}-{}", self.key_bits, self.value_bits)
    }

    fn coding(&self, head_dim: usize) -> Result<Coding> {
        check_width(head_dim)?;
        check_bits("water filling (keys)", "1 to 7", self.key_bits, 1.0, 7.0)?;
        check_bits("water filling (values)", "1 to 5", self.value_bits, 1.0, 5.0)?;
        let keys = WaterFillingKeys::new(head_dim, self.key_bits);
        let values = Turbo::new(head_dim, self.value_bits, true)?;
        let coding = PackedCoding::new(keys, values).rotated(head_dim, false)?;
        Ok(PackedCoding { weighs_channels: true, ..coding }.into())
    }
}

/// Keys, with widths that are chosen page by page.
pub(crate) struct WaterFillingKeys {
    format: SideFormat,
    bits: usize,
}

impl WaterFillingKeys {
    pub(crate) fn new(dim: usize, key_bits: f64) -> Self {
        // Whole words; a slot's lane would be filled up to one anyway.
        let bits = (key_bits * dim as f64 / 32.0).round().max(1.0) as usize * 32;
        let format = SideFormat {
            widths: Widths::Adaptive { bits },
            tables: Vec::new(),
            table_of: Vec::new(),
            channel_slots: Some(crate::pages::page::PAGE_TOKENS),
            groups: groups(dim, dim),
            scales: false,
            offsets: false,
        };
        Self { format, bits }
    }
}

impl TileCoder for WaterFillingKeys {
    fn format(&self) -> &SideFormat {
        &self.format
    }

    fn code(&self, tile: &Tile<'_>, out: &mut Coded) {
        let dim = tile.head_dim;
        let (mut lows, mut highs) = (vec![f32::MAX; dim], vec![f32::MIN; dim]);
        for (_, row) in tile.coded_rows() {
            for (channel, &x) in row.iter().enumerate() {
                lows[channel] = lows[channel].min(x);
                highs[channel] = highs[channel].max(x);
            }
        }
        let costs: Vec<f32> =
            (0..dim).map(|i| tile.weights[i] * (highs[i] - lows[i]) * (highs[i] - lows[i])).collect();
        // The costly channels first; equal ones in their order.
        let mut order: Vec<usize> = (0..dim).collect();
        order.sort_by(|&a, &b| costs[b].total_cmp(&costs[a]));
        let quads: Vec<f32> =
            order.chunks_exact(QUAD).map(|quad| quad.iter().map(|&i| costs[i]).sum()).collect();
        out.widths = fill(&quads, self.bits / QUAD);
        let mut channels = Vec::with_capacity(dim);
        for (at, &channel) in order.iter().enumerate() {
            let width = out.widths[at / QUAD];
            let n_levels = (1u32 << width) as f32;
            // Levels in the middle of equal cells; a single one, without a step, where there are no bits.
            let cell = (highs[channel] - lows[channel]) / n_levels;
            let low = to_f16(lows[channel] + 0.5 * cell);
            let step = if width == 0 { f16::ZERO } else { to_f16(cell) };
            (out.order[at], out.steps[at], out.lows[at]) = (channel as u8, step, low);
            channels.push((channel, low.to_f32(), step.to_f32(), n_levels - 1.0));
        }
        for (slot, row) in tile.coded_rows() {
            let codes = &mut out.codes[slot * dim..][..dim];
            for (code, &(channel, low, step, most)) in codes.iter_mut().zip(&channels) {
                *code = nearest(row[channel], low, step, most);
            }
        }
    }
}

/// Shares `bits` out to quads of channels so that the sum of cost · 4^(−bits) is the least.
///
/// The gains of one more bit fall from bit to bit, so taking the largest gain each time is best.
fn fill(costs: &[f32], bits: usize) -> Vec<u8> {
    let mut widths = vec![0u8; costs.len()];
    let mut gains = costs.to_vec();
    for _ in 0..bits {
        let mut best = None;
        for (channel, &gain) in gains.iter().enumerate() {
            if widths[channel] < MAX_BITS && best.is_none_or(|best: usize| gain > gains[best]) {
                best = Some(channel);
            }
        }
        let Some(channel) = best else { break };
        widths[channel] += 1;
        gains[channel] *= 0.25;
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The best allocation by trying all of them.
    fn best(costs: &[f32], bits: usize) -> f64 {
        let Some((first, rest)) = costs.split_first() else { return 0.0 };
        let mut least = f64::MAX;
        for width in 0..=bits.min(MAX_BITS.into()) {
            if rest.is_empty() && width != bits.min(MAX_BITS.into()) {
                continue;
            }
            let error = 0.25f64.powi(width as i32);
            least = least.min(f64::from(*first) * error + best(rest, bits - width));
        }
        least
    }

    #[test]
    fn bits_are_shared_out_in_the_best_way() {
        for (costs, bits) in [
            (vec![1.0, 1.0, 1.0, 1.0], 8),
            (vec![100.0, 1.0, 0.01, 3.0], 9),
            (vec![0.0, 0.0, 5.0, 1e-6], 12),
            (vec![7.0, 6.0, 5.0], 2),
        ] {
            let widths = fill(&costs, bits);
            assert_eq!(widths.iter().map(|&w| usize::from(w)).sum::<usize>(), bits);
            let error = |w: u8| 0.25f64.powi(w.into());
            let found: f64 = costs.iter().zip(&widths).map(|(c, w)| f64::from(*c) * error(*w)).sum();
            let expected = best(&costs, bits);
            assert!(
                found <= expected * 1.000_01 + 1e-12,
                "{costs:?} {bits}: {widths:?}, {found} for {expected}"
            );
        }
        assert_eq!(fill(&[1.0, 2.0], 100), [MAX_BITS, MAX_BITS]);
    }
}
