//! TurboQuant's codes in pages: the estimators of [`TurboQuant`](super::TurboQuant) over a cache.
//!
//! Keys and values arrive rotated. A fractional number of bits gives the first channels one bit more than the
//! others, which a random rotation makes as good as any.

use super::block::groups;
use super::lloyd_max::Codebook;
use super::turbo_quant::{Estimator, encode_row, root_mean_square, sketch_factor, to_f16};
use crate::Result;
use crate::packed::{Coded, Group, Levels, SideFormat, TABLE, Tile, TileCoder, Widths};
use crate::page::{LANES, PAGE_TOKENS};

/// Keys or values, coordinate by coordinate.
pub(crate) struct Turbo {
    format: SideFormat,
    /// Of the channels before and behind `split`.
    codebooks: [Codebook; 2],
    split: usize,
    is_rescaled: bool,
}

impl Turbo {
    /// `bits` between 1 and 5, fractions in steps of 16 channels.
    pub(crate) fn new(dim: usize, bits: f64, is_rescaled: bool) -> Result<Self> {
        let whole = bits.floor();
        let split = (((bits - whole) * dim as f64 / LANES as f64).round() as usize * LANES).min(dim);
        let high = whole as u32 + u32::from(split > 0);
        let codebooks = [Codebook::new(dim, high)?, Codebook::new(dim, whole as u32)?];
        let of = |channel| usize::from(channel >= split);
        let format = SideFormat {
            widths: Widths::Fixed((0..dim).map(|channel| codebooks[of(channel)].bits() as u8).collect()),
            levels: Levels::Tables(
                codebooks.iter().map(table).collect(),
                (0..dim).map(|channel| of(channel) as u8).collect(),
            ),
            channel_slots: None,
            groups: groups(dim, dim),
            scales: true,
            offsets: false,
        };
        Ok(Self { format, codebooks, split, is_rescaled })
    }
}

/// A codebook's levels, again and again.
fn table(codebook: &Codebook) -> [f32; TABLE] {
    let levels = codebook.levels();
    std::array::from_fn(|at| levels[at % levels.len()])
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
                let codebook = &self.codebooks[usize::from(channel >= self.split)];
                *code = codebook.encode(x * factor);
                product += x * codebook.levels()[usize::from(*code)];
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
    codebook: Option<Codebook>,
    /// `[dim, dim]` by rows.
    sketch: Vec<f32>,
    factor: f32,
}

impl TurboProd {
    /// `bits` 1 to 5, one of which is the sign's.
    pub(crate) fn new(dim: usize, bits: u32, estimator: Estimator, sketch: Vec<f32>) -> Result<Self> {
        let codebook = if bits > 1 { Some(Codebook::new(dim, bits - 1)?) } else { None };
        let signs: [f32; TABLE] = std::array::from_fn(|at| if at % 2 == 0 { -1.0 } else { 1.0 });
        let coded = if codebook.is_some() { dim } else { 0 };
        let mut format = SideFormat {
            widths: Widths::Fixed(vec![bits as u8 - 1; coded]),
            levels: Levels::Uniform { offset: 0.0 },
            channel_slots: None,
            groups: if coded > 0 { groups(dim, dim) } else { Vec::new() },
            scales: true,
            offsets: false,
        };
        let mut tables: Vec<_> = codebook.iter().map(table).collect();
        let mut which = vec![0; coded];
        which.resize(coded + dim, tables.len() as u8);
        tables.push(signs);
        if let Widths::Fixed(widths) = &mut format.widths {
            widths.resize(coded + dim, 1);
        }
        format.levels = Levels::Tables(tables, which);
        format.groups.push(Group { from: coded, to: coded + dim, sketch: true });
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
            if let Some(codebook) = &self.codebook {
                let rms = root_mean_square(row);
                let scale = to_f16(rms);
                let first = encode_row(codebook, row, rms);
                for (rest, &code) in rest.iter_mut().zip(&first) {
                    *rest -= scale.to_f32() * codebook.levels()[usize::from(code)];
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

/// For values, or keys without a sketch.
pub(super) fn is_rescaled(estimator: Estimator) -> bool {
    estimator == Estimator::Rescaled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantizers::turbo_quant::rescaled;

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
            assert_eq!(coded.scales[5], to_f16(rescaled(&codebook, &row, &codes, rms)));
        }
    }
}
