//! KVarN: tiles are brought to equal spreads along tokens and along channels before they are rounded.
//!
//! A rotated tile is divided by its standard deviations, alternately over channels and over tokens, until
//! both are even (a Sinkhorn iteration on logarithms); the factors are stored. What is left is rounded to
//! evenly spread levels, keys channel by channel, values token by token.
//!
//! # Memory
//! Keys: `key_bits` + 32/64 + 16/head_dim bits an element; values: `value_bits` + 32/head_dim + 32/64.
//!
//! # Source
//! arXiv 2606.03458. Deviations: tiles are a page of 64 tokens instead of 128; the exact first
//! tokens are this crate's.

use half::f16;

use super::block::groups;
use super::coder::{Coder, Coding, PackedCoding, check_width, whole_bits};
use super::kivi::{inverse, nearest, spread};
use super::turbo_quant::to_f16;
use crate::Result;
use crate::pages::packed::{Coded, SideFormat, Tile, TileCoder, Widths};
use crate::pages::page::PAGE_TOKENS;

/// Settings of KVarN.
#[derive(Clone, Debug, PartialEq)]
pub struct KvarnConfig {
    /// Bits of a key's element, 1 to 8.
    pub key_bits: u32,
    /// Bits of a value's element, 1 to 8.
    pub value_bits: u32,
    /// Rounds of normalization.
    pub rounds: usize,
}

impl KvarnConfig {
    /// Four bits for keys, two for values, 16 rounds.
    pub fn paper() -> Self {
        Self { key_bits: 4, value_bits: 2, rounds: 16 }
    }
}

impl Default for KvarnConfig {
    /// Four bits for both.
    fn default() -> Self {
        Self { value_bits: 4, ..Self::paper() }
    }
}

impl Coder for KvarnConfig {
    fn name(&self) -> String {
        format!("kvarn-{}-{}", self.key_bits, self.value_bits)
    }

    fn coding(&self, head_dim: usize) -> Result<Coding> {
        check_width(head_dim)?;
        whole_bits("KVarN", self.key_bits)?;
        whole_bits("KVarN", self.value_bits)?;
        let keys = Kvarn::new(head_dim, self.key_bits, self.rounds, true);
        let values = Kvarn::new(head_dim, self.value_bits, self.rounds, false);
        Ok(PackedCoding::new(keys, values).rotated(head_dim, true)?.into())
    }
}

/// Keys or values.
pub(crate) struct Kvarn {
    format: SideFormat,
    bits: u32,
    rounds: usize,
    /// Whether levels are spread channel by channel, or else token by token.
    by_channel: bool,
}

impl Kvarn {
    pub(crate) fn new(dim: usize, bits: u32, rounds: usize, by_channel: bool) -> Self {
        let format = SideFormat {
            widths: Widths::Fixed(vec![bits as u8; dim]),
            tables: Vec::new(),
            table_of: Vec::new(),
            channel_slots: Some(PAGE_TOKENS),
            groups: groups(dim, dim),
            scales: true,
            offsets: false,
        };
        Self { format, bits, rounds, by_channel }
    }
}

/// Spreads of channels and of tokens, so that rows divided by both have a standard deviation near 1 both
/// ways. Rows that are left out have the spread 1.
pub(crate) fn spreads<'a>(
    rows: impl Iterator<Item = (usize, &'a [f32])> + Clone,
    dim: usize,
    rounds: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (mut channels, mut tokens) = (vec![0.0f64; dim], vec![0.0f64; PAGE_TOKENS]);
    let deviation = |sum: f64, squares: f64, n: f64| -> f64 {
        let variance = squares / n - (sum / n).powi(2);
        // A spread of nothing is left as it is.
        if variance > 1e-20 { 0.5 * variance.ln() } else { 0.0 }
    };
    for _ in 0..rounds {
        let (mut sums, mut n) = (vec![[0.0f64; 2]; dim], 0.0);
        for (slot, row) in rows.clone() {
            let factor = (-tokens[slot]).exp();
            for (channel, x) in row.iter().enumerate() {
                let x = f64::from(*x) * factor * (-channels[channel]).exp();
                sums[channel][0] += x;
                sums[channel][1] += x * x;
            }
            n += 1.0;
        }
        channels.iter_mut().zip(&sums).for_each(|(c, s)| *c += deviation(s[0], s[1], n));
        let factors: Vec<f64> = channels.iter().map(|c| (-c).exp()).collect();
        for (slot, row) in rows.clone() {
            let (mut sum, mut squares) = (0.0, 0.0);
            let factor = (-tokens[slot]).exp();
            for (x, channel) in row.iter().zip(&factors) {
                let x = f64::from(*x) * factor * channel;
                sum += x;
                squares += x * x;
            }
            tokens[slot] += deviation(sum, squares, dim as f64);
        }
    }
    let exp = |logs: Vec<f64>| logs.into_iter().map(|x| x.exp() as f32).collect();
    (exp(channels), exp(tokens))
}

impl TileCoder for Kvarn {
    fn format(&self) -> &SideFormat {
        &self.format
    }

    fn code(&self, tile: &Tile<'_>, out: &mut Coded) {
        let dim = tile.head_dim;
        let (channels, tokens) = spreads(tile.coded_rows(), dim, self.rounds);
        let most = ((1u32 << self.bits) - 1) as f32;
        let tokens: Vec<f16> = tokens.into_iter().map(to_f16).collect();
        let even = |slot: usize, x: f32| x * inverse(tokens[slot]);
        if self.by_channel {
            for channel in 0..dim {
                let column = tile.coded_rows().map(|(slot, row)| even(slot, row[channel]));
                let (low, high) = column.fold((f32::MAX, f32::MIN), |(l, h), x| (l.min(x), h.max(x)));
                (out.steps[channel], out.lows[channel]) = spread(low, high, most + 1.0);
            }
        } else {
            // A range for all: after the normalization every token fills about the same one.
            let (mut low, mut high) = (f32::MAX, f32::MIN);
            for (slot, row) in tile.coded_rows() {
                for (x, channel) in row.iter().zip(&channels) {
                    let x = even(slot, *x) / channel;
                    (low, high) = (low.min(x), high.max(x));
                }
            }
            for (channel, spread) in channels.iter().enumerate() {
                out.steps[channel] = to_f16((high - low) / most * spread);
                out.lows[channel] = to_f16(low * spread);
            }
        }
        for (slot, row) in tile.coded_rows() {
            out.scales[slot] = tokens[slot];
            for (channel, &x) in row.iter().enumerate() {
                let (step, low) = (out.steps[channel], out.lows[channel].to_f32());
                out.codes[slot * dim + channel] = nearest(even(slot, x), low, step.to_f32(), most);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use breakers_cpu::random::SplitMix64;

    #[test]
    fn spreads_become_even() {
        let mut random = SplitMix64::new(1);
        let dim = 32;
        let rows: Vec<f32> = (0..PAGE_TOKENS * dim)
            .map(|i| random.next_normal() * ((i % dim) as f32 * 0.2).exp() * (1.0 + (i / dim) as f32))
            .collect();
        let tile = Tile { rows: &rows, head_dim: dim, n_exact: 0, weights: &[] };
        let (channels, tokens) = spreads(tile.coded_rows(), dim, 16);
        let even =
            |slot: usize, channel: usize| rows[slot * dim + channel] / tokens[slot] / channels[channel];
        let deviation = |x: Vec<f32>| {
            let mean = x.iter().sum::<f32>() / x.len() as f32;
            (x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / x.len() as f32).sqrt()
        };
        for slot in 0..PAGE_TOKENS {
            let spread = deviation((0..dim).map(|channel| even(slot, channel)).collect());
            assert!((spread - 1.0).abs() < 1e-3, "slot {slot}: {spread}");
        }
        // Tokens come last in a round, so that channels are as even as the rounds before have made them.
        for channel in 0..dim {
            let spread = deviation((0..PAGE_TOKENS).map(|slot| even(slot, channel)).collect());
            assert!((spread - 1.0).abs() < 2e-2, "channel {channel}: {spread}");
        }
    }
}
