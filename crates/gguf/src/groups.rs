//! Formats of our own, for which GGUF has no blocks: any number of bits in groups of any size, NF4, NVFP4.
//!
//! # Memory
//! Bits per weight: `bits + 32 / group` with offsets, `bits + 16 / group` without; NF4 4 + 8 / 64 + 32 / (64
//! · 256), NVFP4 4 + 8 / 16 (and 32 bits a matrix).

use crate::{Error, Levels, Result};
use breakers_cpu::pool;

/// The 16 quantiles of a normal distribution that NF4 rounds to: the numbers of the QLoRA paper, appendix E.
pub static NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The numbers of E2M1, ascending.
pub static E2M1_LEVELS: [f32; 15] =
    [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Weights of NF4 that share a scale.
const NF4_GROUP: usize = 64;
/// Scales of NF4 that share a scale of their own.
pub(crate) const NF4_SCALES: usize = 256;
/// Weights of NVFP4 that share a scale.
const NVFP4_GROUP: usize = 16;
/// The largest number of E4M3.
const E4M3_MAX: f32 = 448.0;

/// A format of groups of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
// Exhaustive on purpose: a new format needs kernels, and the compiler shows where.
pub enum GroupFormat {
    /// Integers with a half-precision scale and offset: `scale · q + offset`.
    Affine {
        /// 2 to 8.
        bits: u8,
        /// Weights that share scale and offset; divides a row.
        group: usize,
    },
    /// Integers around zero with a half-precision scale.
    Symmetric {
        /// 2 to 8.
        bits: u8,
        /// Weights that share a scale; divides a row.
        group: usize,
    },
    /// Quantiles of a normal distribution in groups of 64, scales in eight bits (QLoRA, arXiv
    /// 2305.14314, section 3).
    ///
    /// After subtracting their mean, scales are quantized to eight-bit integers in groups of 256; the paper's
    /// code uses an eight-bit floating-point format instead.
    Nf4,
    /// E2M1 in groups of 16 with E4M3 scales and one single-precision scale for the matrix.
    NvFp4,
}

impl GroupFormat {
    /// Checks that rows of `n_cols` values can be packed.
    ///
    /// # Errors
    /// [`Error::Bits`], [`Error::GroupSize`].
    pub(crate) fn check(self, n_cols: usize) -> Result<()> {
        if let GroupFormat::Affine { bits, .. } | GroupFormat::Symmetric { bits, .. } = self
            && !(2..=8).contains(&bits)
        {
            return Err(Error::Bits { found: bits });
        }
        let group = self.group();
        if group == 0 || !n_cols.is_multiple_of(group) {
            return Err(Error::GroupSize { group, n_cols });
        }
        Ok(())
    }

    /// Weights that share a scale.
    pub fn group(self) -> usize {
        match self {
            GroupFormat::Affine { group, .. } | GroupFormat::Symmetric { group, .. } => group,
            GroupFormat::Nf4 => NF4_GROUP,
            GroupFormat::NvFp4 => NVFP4_GROUP,
        }
    }

    /// Bits of a code.
    pub fn bits(self) -> u8 {
        match self {
            GroupFormat::Affine { bits, .. } | GroupFormat::Symmetric { bits, .. } => bits,
            GroupFormat::Nf4 | GroupFormat::NvFp4 => 4,
        }
    }

    /// The format of a [`name`](Self::name).
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "nf4" => return Some(GroupFormat::Nf4),
            "nvfp4" => return Some(GroupFormat::NvFp4),
            _ => {}
        }
        let (kind, rest) = name.split_at_checked(3)?;
        let (bits, group) = rest.split_once("-g")?;
        let (bits, group) = (bits.parse().ok()?, group.parse().ok()?);
        match kind {
            "int" => Some(GroupFormat::Affine { bits, group }),
            "sym" => Some(GroupFormat::Symmetric { bits, group }),
            _ => None,
        }
    }

    /// Bytes of codes and scales of a matrix whose rows are whole groups.
    pub(crate) fn matrix_bytes(self, n_rows: usize, n_cols: usize) -> usize {
        let n_values = n_rows.saturating_mul(n_cols);
        let n_groups = n_values / self.group().max(1);
        let scales = match self {
            GroupFormat::Affine { .. } => 4 * n_groups,
            GroupFormat::Symmetric { .. } => 2 * n_groups,
            GroupFormat::Nf4 => n_groups + 4 * n_groups.div_ceil(NF4_SCALES) + 4,
            GroupFormat::NvFp4 => n_groups + 4,
        };
        n_values.saturating_mul(self.bits().into()).div_ceil(8).saturating_add(scales)
    }

    /// The numbers that codes stand for, before scale and offset.
    pub fn levels(self) -> Levels {
        match self {
            GroupFormat::Affine { bits, .. } => Levels::Steps { least: 0, n: 1 << bits },
            // One level fewer than there are codes, so that zero is in the middle.
            GroupFormat::Symmetric { bits, .. } => {
                Levels::Steps { least: 1 - (1 << (bits - 1)), n: (1 << bits) - 1 }
            }
            GroupFormat::Nf4 => Levels::Table(&NF4_LEVELS),
            GroupFormat::NvFp4 => Levels::Table(&E2M1_LEVELS),
        }
    }

    /// Codes that have a level.
    fn n_levels(self) -> u16 {
        match self.levels() {
            Levels::Steps { n, .. } => n,
            Levels::Table(table) => table.len() as u16,
        }
    }

    /// The name, such as `int4-g128`.
    pub fn name(self) -> String {
        match self {
            GroupFormat::Affine { bits, group } => format!("int{bits}-g{group}"),
            GroupFormat::Symmetric { bits, group } => format!("sym{bits}-g{group}"),
            GroupFormat::Nf4 => "nf4".to_owned(),
            GroupFormat::NvFp4 => "nvfp4".to_owned(),
        }
    }
}

/// The stored scales of all groups, `[row][group]`.
#[derive(Debug, Clone, PartialEq)]
pub enum GroupScales {
    /// Half-precision bits of scale and offset.
    Affine(Vec<[u16; 2]>),
    /// Half-precision bits.
    Symmetric(Vec<u16>),
    /// Eight-bit scales, a scale for every 256 of them, and the mean of all.
    Nf4 {
        /// For each group, in 127ths of `scales`.
        codes: Vec<i8>,
        /// One for every 256 groups, counted through all rows.
        scales: Vec<f32>,
        /// The mean, which is added to each scale.
        mean: f32,
    },
    /// E4M3 bits, and the scale of the matrix.
    NvFp4 {
        /// For each group.
        codes: Vec<u8>,
        /// The factor for all of them.
        scale: f32,
    },
}

impl GroupScales {
    /// Rounds and stores scales and offsets `[row][group]`. (Formats without offsets ignore these.)
    pub fn store(format: GroupFormat, wanted: &[(f32, f32)]) -> Self {
        let half = |x: f32| breakers_cpu::float16::saturating(x).to_bits();
        match format {
            GroupFormat::Affine { .. } => {
                GroupScales::Affine(wanted.iter().map(|w| [half(w.0), half(w.1)]).collect())
            }
            GroupFormat::Symmetric { .. } => {
                GroupScales::Symmetric(wanted.iter().map(|w| half(w.0)).collect())
            }
            GroupFormat::Nf4 => {
                let mean =
                    (wanted.iter().map(|w| f64::from(w.0)).sum::<f64>() / wanted.len().max(1) as f64) as f32;
                let (mut codes, mut scales) = (Vec::with_capacity(wanted.len()), Vec::new());
                for block in wanted.chunks(NF4_SCALES) {
                    let most = block.iter().fold(0.0f32, |a, w| a.max((w.0 - mean).abs()));
                    let scale = most / 127.0;
                    scales.push(scale);
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    codes.extend(block.iter().map(|w| ((w.0 - mean) * inverse).round_ties_even() as i8));
                }
                GroupScales::Nf4 { codes, scales, mean }
            }
            GroupFormat::NvFp4 => {
                let most = wanted.iter().fold(0.0f32, |a, w| a.max(w.0.abs()));
                let scale = if most > 0.0 { most / E4M3_MAX } else { 1.0 };
                GroupScales::NvFp4 { codes: wanted.iter().map(|w| to_e4m3(w.0 / scale)).collect(), scale }
            }
        }
    }

    /// Scale and offset of a group, counted through all rows.
    ///
    /// # Panics
    /// If there is no such group.
    #[inline]
    pub fn value(&self, at: usize) -> (f32, f32) {
        let half = |bits| half::f16::from_bits(bits).to_f32();
        match self {
            GroupScales::Affine(scales) => (half(scales[at][0]), half(scales[at][1])),
            GroupScales::Symmetric(scales) => (half(scales[at]), 0.0),
            GroupScales::Nf4 { codes, scales, mean } => {
                (f32::from(codes[at]) * scales[at / NF4_SCALES] + mean, 0.0)
            }
            GroupScales::NvFp4 { codes, scale } => (from_e4m3(codes[at]) * scale, 0.0),
        }
    }

    /// Compares the kind and the number of scales with those of a format.
    fn check(&self, format: GroupFormat, n_groups: usize) -> Result<()> {
        let found = match (self, format) {
            (GroupScales::Affine(scales), GroupFormat::Affine { .. }) => scales.len(),
            (GroupScales::Symmetric(scales), GroupFormat::Symmetric { .. }) => scales.len(),
            (GroupScales::Nf4 { codes, scales, .. }, GroupFormat::Nf4) => {
                let expected = n_groups.div_ceil(NF4_SCALES);
                if scales.len() != expected {
                    return Err(Error::Length { what: "scales of scales", expected, found: scales.len() });
                }
                codes.len()
            }
            (GroupScales::NvFp4 { codes, .. }, GroupFormat::NvFp4) => codes.len(),
            _ => return Err(Error::ScaleKind { format: format.name() }),
        };
        match found == n_groups {
            true => Ok(()),
            false => Err(Error::Length { what: "scales of a matrix", expected: n_groups, found }),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            GroupScales::Affine(scales) => 4 * scales.len(),
            GroupScales::Symmetric(scales) => 2 * scales.len(),
            GroupScales::Nf4 { codes, scales, .. } => codes.len() + 4 * scales.len() + 4,
            GroupScales::NvFp4 { codes, .. } => codes.len() + 4,
        }
    }
}

/// A matrix in a [`GroupFormat`]: codes and scales as stored in files.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupMatrix {
    format: GroupFormat,
    n_rows: usize,
    n_cols: usize,
    scales: GroupScales,
    /// Codes of all rows one after the other, the lowest bits first.
    codes: Vec<u8>,
}

impl GroupMatrix {
    /// Packs codes, one byte each.
    ///
    /// ```
    /// use breakers_gguf::{GroupFormat, GroupMatrix, GroupScales, QuantizedMatrix};
    ///
    /// # fn main() -> Result<(), breakers_gguf::Error> {
    /// // Two rows of one group: 0.5 · code - 1.
    /// let format = GroupFormat::Affine { bits: 2, group: 4 };
    /// let scales = GroupScales::store(format, &[(0.5, -1.0); 2]);
    /// let matrix = GroupMatrix::new(format, 2, 4, scales, &[0, 1, 2, 3, 3, 2, 1, 0])?;
    /// let matrix = QuantizedMatrix::from_groups(matrix);
    /// assert_eq!(matrix.to_f32(), [-1.0, -0.5, 0.0, 0.5, 0.5, 0.0, -0.5, -1.0]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Shapes
    /// `codes`: `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// [`Error::Bits`] and [`Error::GroupSize`] for a format that does not fit the rows, [`Error::Length`]
    /// when there are too many or too few codes or scales, [`Error::UnknownCode`].
    pub fn new(
        format: GroupFormat,
        n_rows: usize,
        n_cols: usize,
        scales: GroupScales,
        codes: &[u8],
    ) -> Result<Self> {
        format.check(n_cols)?;
        let expected = n_rows.saturating_mul(n_cols);
        if codes.len() != expected {
            return Err(Error::Length { what: "codes of a matrix", expected, found: codes.len() });
        }
        let n_levels = format.n_levels();
        if let Some(&found) = codes.iter().find(|&&code| u16::from(code) >= n_levels) {
            return Err(Error::UnknownCode { format: format.name(), found });
        }
        scales.check(format, expected / format.group())?;
        Ok(Self { format, n_rows, n_cols, scales, codes: pack_bits(codes, format.bits()) })
    }

    /// As [`new`](Self::new), from packed codes: those of all rows one after the other, lowest bits first.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_packed(
        format: GroupFormat,
        n_rows: usize,
        n_cols: usize,
        scales: GroupScales,
        codes: Vec<u8>,
    ) -> Result<Self> {
        format.check(n_cols)?;
        let expected = n_rows.saturating_mul(n_cols).saturating_mul(format.bits().into()).div_ceil(8);
        if codes.len() != expected {
            return Err(Error::Length { what: "bytes of packed codes", expected, found: codes.len() });
        }
        scales.check(format, n_rows.saturating_mul(n_cols) / format.group())?;
        let groups = Self { format, n_rows, n_cols, scales, codes };
        match groups.unknown_code() {
            Some(found) => Err(Error::UnknownCode { format: format.name(), found }),
            None => Ok(groups),
        }
    }

    /// The format.
    #[inline]
    pub fn format(&self) -> GroupFormat {
        self.format
    }

    /// Output features.
    #[inline]
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Input features.
    #[inline]
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The scales of all groups.
    #[inline]
    pub fn scales(&self) -> &GroupScales {
        &self.scales
    }

    /// The packed codes of all rows one after the other, the lowest bits first.
    #[inline]
    pub fn packed_codes(&self) -> &[u8] {
        &self.codes
    }

    /// The first code that is beyond the format's levels, if there is one.
    fn unknown_code(&self) -> Option<u8> {
        let n_levels = self.format.n_levels();
        // Most formats have a level for every code, and nothing to look for.
        if n_levels == 1u16 << self.format.bits() {
            return None;
        }
        (0..self.n_rows * self.n_cols).map(|at| self.code(at)).find(|&code| u16::from(code) >= n_levels)
    }

    /// Bytes of codes and scales.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes()
    }

    /// The code of a weight, counted through all rows.
    ///
    /// # Panics
    /// If there is no such weight.
    #[inline]
    pub fn code(&self, at: usize) -> u8 {
        let bits = usize::from(self.format.bits());
        let bit = at * bits;
        let pair =
            u16::from(self.codes[bit / 8]) | u16::from(*self.codes.get(bit / 8 + 1).unwrap_or(&0)) << 8;
        (pair >> (bit % 8)) as u8 & ((1u16 << bits) - 1) as u8
    }

    /// The weights, `[n_rows, n_cols]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let (n_cols, group) = (self.n_cols, self.format.group());
        let levels = self.format.levels();
        let mut out = vec![0.0; self.n_rows * n_cols];
        pool::parallel_chunks_mut(&mut out, 8 * n_cols.max(1), |start, out| {
            for (i, out) in out.iter_mut().enumerate() {
                let at = start + i;
                let (scale, offset) = self.scales.value(at / group);
                *out = scale * levels.level(self.code(at)) + offset;
            }
        });
        out
    }
}

fn pack_bits(codes: &[u8], bits: u8) -> Vec<u8> {
    let bits = usize::from(bits);
    let mut out = vec![0u8; (codes.len() * bits).div_ceil(8)];
    for (i, &code) in codes.iter().enumerate() {
        let at = i * bits;
        let pair = u16::from(code) << (at % 8);
        out[at / 8] |= pair as u8;
        if at % 8 + bits > 8 {
            out[at / 8 + 1] |= (pair >> 8) as u8;
        }
    }
    out
}

/// The nearest number of E4M3 (no infinities; 448 is the largest), ties to even; magnitudes
/// beyond it are clamped.
fn to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let x = x.abs().min(E4M3_MAX);
    // Steps are 2^(e - 3), and 2^-9 below 2^-6.
    let exponent = ((x.to_bits() >> 23) as i32 - 127).max(-6);
    let quotient = (x * f32::from_bits(((3 - exponent + 127) as u32) << 23)).round_ties_even() as u32;
    // The quotient is 8 to 16 for normal numbers and below 8 for subnormal ones; a carry goes into the
    // exponent.
    sign | (quotient + 8 * (exponent + 6) as u32) as u8
}

/// The number that an E4M3 bit pattern stands for; the two patterns for NaN are read as ±480.
pub fn from_e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match exponent {
        0 => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_is_that_of_the_ocp_specification() {
        // S.EEEE.MMM, bias 7 (OCP 8-bit floating point, table 1).
        for (bits, value) in
            [(0x00, 0.0), (0x01, 2f32.powi(-9)), (0x07, 0.875 * 2f32.powi(-6)), (0x08, 2f32.powi(-6))]
        {
            assert_eq!((from_e4m3(bits), to_e4m3(value)), (value, bits));
        }
        assert_eq!((from_e4m3(0x38), from_e4m3(0x7e), from_e4m3(0xc0)), (1.0, 448.0, -2.0));
        for bits in (0..0x7f).chain(0x81..0xff) {
            assert_eq!(to_e4m3(from_e4m3(bits)), bits);
        }
        // Ties to even, and the nearest one otherwise.
        for bits in 0..0x7e {
            let (low, high) = (from_e4m3(bits), from_e4m3(bits + 1));
            let middle = 0.5 * (low + high);
            assert_eq!(to_e4m3(middle), if bits % 2 == 0 { bits } else { bits + 1 });
            assert_eq!(
                (to_e4m3(low + 0.4 * (high - low)), to_e4m3(low + 0.6 * (high - low))),
                (bits, bits + 1)
            );
        }
        assert_eq!((to_e4m3(1e9), to_e4m3(-1e9)), (0x7e, 0xfe));
    }

    #[test]
    fn nf4_levels_are_quantiles_of_the_normal_distribution() {
        // QLoRA, section 3: evenly spaced probabilities from 1/2 to 1 - (1/32 + 1/30)/2, eight steps above
        // zero and seven below, all over the largest quantile.
        let tail = 1.0 - 0.5 * (1.0 / 32.0 + 1.0 / 30.0);
        let quantile = |p: f64| {
            let (mut low, mut high) = (-10.0f64, 10.0f64);
            for _ in 0..200 {
                let middle = 0.5 * (low + high);
                if normal_distribution(middle) < p { low = middle } else { high = middle }
            }
            0.5 * (low + high)
        };
        let largest = quantile(tail);
        let mut levels: Vec<f64> = vec![0.0];
        levels.extend((1..=8).map(|i| quantile(0.5 + (tail - 0.5) * f64::from(i) / 8.0) / largest));
        levels.extend((1..=7).map(|i| -quantile(0.5 + (tail - 0.5) * f64::from(i) / 7.0) / largest));
        levels.sort_by(f64::total_cmp);
        for (level, expected) in NF4_LEVELS.iter().zip(levels) {
            assert!((f64::from(*level) - expected).abs() < 2e-5, "{level} {expected}");
        }
    }

    /// By integrating the density with Simpson's rule.
    fn normal_distribution(x: f64) -> f64 {
        let n = 2000;
        let h = x / f64::from(n);
        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let sum: f64 = (0..=n)
            .map(|i| {
                let factor = if i == 0 || i == n {
                    1.0
                } else if i % 2 == 1 {
                    4.0
                } else {
                    2.0
                };
                factor * density(h * f64::from(i))
            })
            .sum();
        0.5 + sum * h / 3.0
    }

    #[test]
    fn codes_of_every_width_are_packed() {
        for bits in 2..=8u8 {
            let format = GroupFormat::Affine { bits, group: 8 };
            let codes: Vec<u8> =
                (0..5 * 24).map(|i| (i * 37 % 251) as u8 & ((1u16 << bits) - 1) as u8).collect();
            let scales = GroupScales::store(format, &[(0.5, -1.0); 15]);
            let groups = GroupMatrix::new(format, 5, 24, scales, &codes).unwrap();
            let expected: Vec<f32> = codes.iter().map(|&c| 0.5 * f32::from(c) - 1.0).collect();
            assert_eq!(groups.to_f32(), expected);
            assert_eq!(groups.bytes(), 15 * usize::from(bits) + 60);
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let affine = |bits, group| GroupFormat::Affine { bits, group };
        assert!(affine(4, 128).check(512).is_ok());
        for (format, n_cols) in [(affine(4, 128), 100), (affine(4, 0), 100), (GroupFormat::Nf4, 96)] {
            assert!(matches!(format.check(n_cols), Err(Error::GroupSize { .. })));
        }
        for bits in [0, 1, 9] {
            assert!(matches!(affine(bits, 8).check(8), Err(Error::Bits { .. })));
        }
    }
}
