//! TurboQuant's codes in pages: the estimators of [`TurboQuant`](super::TurboQuant) over a cache.
//!
//! Keys and values arrive rotated. A fractional number of bits gives the first channels one bit more than the
//! others, which a random rotation makes as good as any.

use breakers_cpu::random::SplitMix64;

use super::block::groups;
use super::coder::{Coder, Coding, PackedCoding, check_bits, check_width};
use super::lloyd_max::Codebook;
use super::turbo_quant::{Estimator, encode_row, root_mean_square, sketch_factor, sketch_matrix, to_f16};
use crate::pages::packed::{Coded, Group, SideFormat, TABLE, Tile, TileCoder, Widths};
use crate::pages::page::{LANES, PAGE_TOKENS};
use crate::{Error, Result};

/// Settings of TurboQuant in a cache, with the same number of bits for keys and values.
#[derive(Clone, Debug, PartialEq)]
pub struct TurboConfig {
    /// Bits of an element, 1 to 5; a fraction gives a part of the channels one bit more. A whole number for
    /// [`Estimator::Prod`].
    pub bits: f64,
    /// The estimator. *prod* is for keys alone, whose products it estimates; values are rescaled then.
    pub estimator: Estimator,
}

/// Seed of the sketch.
const SEED: u64 = 0x736b_6574;

impl Coder for TurboConfig {
    fn name(&self) -> String {
        let estimator = match self.estimator {
            Estimator::Mse => "-mse",
            Estimator::Rescaled => "",
            Estimator::Prod(_) => "-prod",
        };
        format!("turbo{estimator}-{}", self.bits)
    }

    fn coding(&self, head_dim: usize) -> Result<Coding> {
        let Self { bits, estimator } = *self;
        check_width(head_dim)?;
        check_bits("TurboQuant", "1 to 5", bits, 1.0, 5.0)?;
        let values = Turbo::new(head_dim, bits, estimator != Estimator::Mse)?;
        let Estimator::Prod(kind) = estimator else {
            let keys = Turbo::new(head_dim, bits, estimator == Estimator::Rescaled)?;
            return Ok(PackedCoding::new(keys, values).rotated(head_dim, true)?.into());
        };
        if bits.fract() != 0.0 {
            let (what, expected) = ("TurboQuant's sketch", "a whole number of");
            return Err(Error::BitWidth { what, expected, found: bits });
        }
        let sketch = sketch_matrix(head_dim, kind, &mut SplitMix64::new(SEED));
        let keys = TurboProd::new(head_dim, bits as u32, estimator, sketch.clone())?;
        let coding = PackedCoding::new(keys, values).rotated(head_dim, true)?;
        Ok(PackedCoding { sketch, ..coding }.into())
    }
}

/// A codebook whose levels are rounded to bytes: multiples of a 127th of the largest.
struct Bytes {
    codebook: Codebook,
    /// As they are read.
    levels: Vec<f32>,
}

/// What bytes mean: that of zero, and the largest distance from it.
const ZERO: u8 = 128;
const LARGEST: f32 = 127.0;

impl Bytes {
    /// A byte's step, for codebooks that share it.
    fn step(codebooks: &[&Codebook]) -> f32 {
        let levels = codebooks.iter().flat_map(|codebook| codebook.levels());
        levels.fold(0.0f32, |largest, level| largest.max(level.abs())) / LARGEST
    }

    fn new(codebook: Codebook, step: f32) -> Self {
        let levels = codebook.levels().iter().map(|level| (level / step).round() * step).collect();
        Self { codebook, levels }
    }

    /// The bytes, again and again.
    fn table(&self, step: f32) -> [u8; TABLE] {
        std::array::from_fn(|at| {
            let level = self.levels[at % self.levels.len()] / step;
            (level.round() + f32::from(ZERO)) as u8
        })
    }
}

/// A group of all channels whose codes stand for such bytes.
fn in_bytes(dim: usize, step: f32) -> Vec<Group> {
    let offset = -f32::from(ZERO) * step;
    groups(dim, dim).into_iter().map(|group| Group { step, offset, ..group }).collect()
}

/// Keys or values, coordinate by coordinate.
pub(crate) struct Turbo {
    format: SideFormat,
    /// Of the channels before and after `split`.
    codebooks: [Bytes; 2],
    split: usize,
    is_rescaled: bool,
}

impl Turbo {
    /// `bits` between 1 and 5, fractions in steps of 16 channels.
    pub(crate) fn new(dim: usize, bits: f64, is_rescaled: bool) -> Result<Self> {
        let whole = bits.floor();
        let split = (((bits - whole) * dim as f64 / LANES as f64).round() as usize * LANES).min(dim);
        let high = whole as u32 + u32::from(split > 0);
        let (high, low) = (Codebook::new(dim, high)?, Codebook::new(dim, whole as u32)?);
        let step = Bytes::step(&[&high, &low]);
        let codebooks = [Bytes::new(high, step), Bytes::new(low, step)];
        let of = |channel| usize::from(channel >= split);
        let width = |channel| codebooks[of(channel)].codebook.bits() as u8;
        let format = SideFormat {
            widths: Widths::Fixed((0..dim).map(width).collect()),
            tables: codebooks.iter().map(|bytes| bytes.table(step)).collect(),
            table_of: (0..dim).map(|channel| of(channel) as u8).collect(),
            channel_slots: None,
            groups: in_bytes(dim, step),
            scales: true,
            offsets: false,
        };
        Ok(Self { format, codebooks, split, is_rescaled })
    }
}

impl TileCoder for Turbo {
    fn format(&self) -> &SideFormat {
        &self.format
    }

    fn code(&self, tile: &Tile<'_>, out: &mut Coded) {
        for (slot, row) in tile.coded_rows() {
            let rms = root_mean_square(row);
            let factor = if rms > 0.0 { 1.0 / rms } else { 0.0 };
            let (mut product, mut squares) = (0.0f32, 0.0f32);
            let codes = &mut out.codes[slot * tile.head_dim..][..tile.head_dim];
            for (channel, (code, &x)) in codes.iter_mut().zip(row).enumerate() {
                let Bytes { codebook, levels } = &self.codebooks[usize::from(channel >= self.split)];
                *code = codebook.encode(x * factor);
                product += x * levels[usize::from(*code)];
                squares += x * x;
            }
            let scale = if self.is_rescaled && product > 0.0 { squares / product } else { rms };
            out.scales[slot] = to_f16(scale);
        }
    }
}

/// Keys with a sketch of signs.
pub(crate) struct TurboProd {
    format: SideFormat,
    codebook: Option<Bytes>,
    /// `[dim, dim]` by rows.
    sketch: Vec<f32>,
    factor: f32,
}

impl TurboProd {
    /// `bits` 1 to 5, one of which is the sign's.
    pub(crate) fn new(dim: usize, bits: u32, estimator: Estimator, sketch: Vec<f32>) -> Result<Self> {
        let codebook = if bits > 1 { Some(Codebook::new(dim, bits - 1)?) } else { None };
        let step = codebook.as_ref().map_or(1.0, |codebook| Bytes::step(&[codebook]));
        let codebook = codebook.map(|codebook| Bytes::new(codebook, step));
        let coded = if codebook.is_some() { dim } else { 0 };
        let mut tables: Vec<_> = codebook.iter().map(|bytes| bytes.table(step)).collect();
        tables.push(std::array::from_fn(|at| if at % 2 == 0 { ZERO - 1 } else { ZERO + 1 }));
        let signs = Group { from: coded, to: coded + dim, sketch: true, step: 1.0, offset: -f32::from(ZERO) };
        let mut groups = if coded > 0 { in_bytes(dim, step) } else { Vec::new() };
        groups.push(signs);
        let of = |channel| usize::from(channel >= coded);
        let format = SideFormat {
            widths: Widths::Fixed((0..coded + dim).map(|i| [bits as u8 - 1, 1][of(i)]).collect()),
            table_of: (0..coded + dim).map(|i| if i < coded { 0 } else { tables.len() as u8 - 1 }).collect(),
            tables,
            channel_slots: None,
            groups,
            scales: true,
            offsets: false,
        };
        Ok(Self { format, codebook, sketch, factor: sketch_factor(dim, estimator) })
    }
}

impl TileCoder for TurboProd {
    fn format(&self) -> &SideFormat {
        &self.format
    }

    fn code(&self, tile: &Tile<'_>, out: &mut Coded) {
        let (dim, n_coded) = (tile.head_dim, self.format.n_coded());
        for (slot, row) in tile.coded_rows() {
            let mut rest = row.to_vec();
            let codes = &mut out.codes[slot * n_coded..][..n_coded];
            if let Some(Bytes { codebook, levels }) = &self.codebook {
                let rms = root_mean_square(row);
                let scale = to_f16(rms);
                let first = encode_row(codebook, row, rms);
                for (rest, &code) in rest.iter_mut().zip(&first) {
                    *rest -= scale.to_f32() * levels[usize::from(code)];
                }
                codes[..dim].copy_from_slice(&first);
                out.scales[slot] = scale;
            }
            let signs = &mut codes[n_coded - dim..];
            for (sign, projection) in signs.iter_mut().zip(self.sketch.chunks_exact(dim)) {
                let product: f32 = projection.iter().zip(&rest).map(|(a, b)| a * b).sum();
                *sign = u8::from(product >= 0.0);
            }
            let length = rest.iter().map(|x| x * x).sum::<f32>().sqrt();
            let group = self.format.groups.len() - 1;
            out.scales[group * PAGE_TOKENS + slot] = to_f16(length * self.factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_those_of_single_vectors() {
        let row: Vec<f32> = (0..64).map(|i| (i as f32 * 1.3).sin() * 3.0).collect();
        let rows: Vec<f32> = row.iter().copied().cycle().take(64 * PAGE_TOKENS).collect();
        let tile = Tile { rows: &rows, head_dim: 64, n_exact: 0, weights: &[] };
        for bits in 1..=5 {
            let coder = Turbo::new(64, bits.into(), true).unwrap();
            let mut coded = Coded::new(coder.format());
            coder.code(&tile, &mut coded);
            let codebook = Codebook::new(64, bits).unwrap();
            let rms = root_mean_square(&row);
            let codes = encode_row(&codebook, &row, rms);
            assert_eq!(coded.codes[..64], codes);
            // The product with what the codes stand for is the vector's own.
            let Group { step, offset, .. } = coder.format().groups[0];
            let table = coder.format().tables[0];
            let level = |code: u8| step * f32::from(table[usize::from(code)]) + offset;
            let scale = coded.scales[5].to_f32();
            let product: f32 = row.iter().zip(codes).map(|(x, code)| x * scale * level(code)).sum();
            let squares: f32 = row.iter().map(|x| x * x).sum();
            assert!((product / squares - 1.0).abs() < 1e-3, "{bits} bits: {product} for {squares}");
            // And no level is off by more than half of a byte's step.
            for (code, exact) in codebook.levels().iter().enumerate() {
                assert!((level(code as u8) - exact).abs() < 0.501 * step, "{bits} bits: {exact}");
            }
        }
    }
}
