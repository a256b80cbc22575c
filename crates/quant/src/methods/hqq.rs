//! HQQ: offsets that minimize a norm of the error which forgives outliers. No calibration.
//!
//! # Source
//! Badri and Shaji, "Half-quadratic quantization of large machine learning models", 2023
//! (mobiusml.github.io/hqq_blog); the settings are those of the authors' code. Scales span the range of a
//! group and are not changed.

use crate::{
    Error, Result,
    quantizer::{QuantizationReport, Quantized, Quantizer, RangeChoice, WeightMatrix},
    rounding::{Chosen, LANES, group_ranges},
    statistics::Statistics,
};
use breakers_cpu::{self as cpu, per_isa, pool};
use breakers_gguf::{Encoding, GroupFormat};
use std::time::Instant;

/// The settings of [`Hqq`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HqqConfig {
    /// The norm's exponent p, between 0 and 1.
    pub exponent: f32,
    /// How strongly the auxiliary error is tied to the true one at first.
    pub beta: f32,
    /// What `beta` is multiplied by in each round.
    pub growth: f32,
    /// Rounds at most; a group stops when its error no longer falls.
    pub rounds: usize,
}

impl HqqConfig {
    /// The authors' settings.
    pub fn paper() -> Self {
        Self { exponent: 0.7, beta: 10.0, growth: 1.01, rounds: 20 }
    }
}

impl Default for HqqConfig {
    fn default() -> Self {
        Self::paper()
    }
}

/// Alternates between the codes, an error with a few large elements, and the offset that fits the rest.
///
/// Only for integers with offsets ([`GroupFormat::Affine`]).
///
/// # Example
/// ```
/// use breakers_gguf::GroupFormat;
/// use breakers_quant::methods::Hqq;
/// use breakers_quant::quantizer::{Quantizer, WeightMatrix};
///
/// # fn main() -> Result<(), breakers_quant::Error> {
/// let values: Vec<f32> = (0..4 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
/// let weights = WeightMatrix::new(&values, 4, 64)?;
/// let int4 = GroupFormat::Affine { bits: 4, group: 32 };
/// let quantized = Hqq::default().quantize(&weights, int4.into(), None)?; // no text is needed
/// assert!(quantized.report.weight_error < 0.1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Hqq {
    config: HqqConfig,
}

impl Hqq {
    /// HQQ with these settings.
    pub const fn new(config: HqqConfig) -> Self {
        Self { config }
    }

    /// The format, if it has offsets.
    fn format(&self, encoding: Encoding) -> Result<GroupFormat> {
        match encoding {
            Encoding::Groups(format @ GroupFormat::Affine { .. }) => Ok(format),
            _ => Err(Error::Unsuited {
                method: self.name(),
                expected: "integers with offsets, such as int4-g64",
                found: encoding,
            }),
        }
    }

    /// The offset of a group of weights.
    #[inline(always)]
    fn offset(&self, x: &[f32], (scale, offset): (f32, f32), most: f32) -> f32 {
        if scale == 0.0 {
            return offset;
        }
        // In units of the scale, as the authors have it: the norm is not homogeneous.
        let inverse = 1.0 / scale;
        let (mut zero, mut best, mut best_error) = (-offset * inverse, offset, f32::INFINITY);
        let mut beta = self.config.beta;
        for _ in 0..self.config.rounds {
            let (mut sum, mut error) = (0.0f32, 0.0f32);
            for &x in x {
                let q = (x * inverse + zero).round_ties_even().clamp(0.0, most);
                let difference = x - (q - zero) * scale;
                error += difference.abs();
                // The proximal step of |·|^p.
                let size = difference.abs();
                let shrunk = (size - size.powf(self.config.exponent - 1.0) / beta).max(0.0);
                let kept = if size > 0.0 { shrunk.copysign(difference) } else { 0.0 };
                sum += q - (x - kept) * inverse;
            }
            if error >= best_error {
                break;
            }
            (best, best_error) = (-zero * scale, error);
            zero = sum / x.len() as f32;
            beta *= self.config.growth;
        }
        best
    }
}

impl Quantizer for Hqq {
    fn name(&self) -> String {
        "hqq".to_owned()
    }

    fn check(&self, encoding: Encoding) -> Result<()> {
        self.format(encoding).map(|_| ())
    }

    fn quantize(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: Option<&Statistics>,
    ) -> Result<Quantized> {
        weights.check(statistics)?;
        let format = self.format(encoding)?;
        encoding.check(weights.n_cols())?;
        if !(self.config.exponent > 0.0 && self.config.exponent <= 1.0 && self.config.beta > 0.0) {
            return Err(Error::Setting {
                what: "exponent (0 to 1) and beta (above 0) of HQQ",
                found: self.config.exponent.min(self.config.beta),
            });
        }
        let start = Instant::now();
        let (values, n_cols, group) = (weights.values(), weights.n_cols(), format.group());
        let mut wanted = group_ranges(format, values, n_cols, None, RangeChoice::Extremes);
        let (most, isa) = (format.levels().range().1, cpu::isa());
        pool::parallel_chunks_mut(&mut wanted, LANES, |first, wanted| {
            for (i, wanted) in wanted.iter_mut().enumerate() {
                let x = &values[(first + i) * group..][..group];
                wanted.1 = per_isa!(isa, || self.offset(x, *wanted, most));
            }
        });
        let chosen = Chosen::of_groups(format, values, n_cols, &wanted);
        let codes = chosen.nearest(values);
        let report = QuantizationReport {
            method: format!("{} {encoding}", self.name()),
            time: start.elapsed(),
            ..QuantizationReport::default()
        };
        Quantized::new(chosen.pack(weights, &codes)?, weights, statistics, report)
    }
}
