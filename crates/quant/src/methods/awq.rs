//! AWQ: columns with large inputs are scaled up before rounding, so that they lose less.
//!
//! # Source
//! Lin et al., "AWQ: activation-aware weight quantization", arXiv 2306.00978, section 3.2; the search for
//! clipped ranges from the authors' code. Deviation: the error of the matrix's own outputs is minimized,
//! while the authors' code uses the outputs of the whole block.

use crate::{
    Error, Result,
    methods::RoundToNearest,
    quantizer::{
        Folding, QuantizationReport, Quantized, Quantizer, RangeChoice, WeightMatrix, output_squares,
    },
    rounding::{Chosen, inverse},
    statistics::{Statistics, StatisticsConfig},
};
use breakers_cpu::{
    self as cpu,
    matrix::transposed,
    per_isa,
    pool::{self, DisjointMut},
};
use breakers_gguf::{Encoding, GroupFormat};
use std::time::Instant;

/// The least factor on a column.
const SMALLEST: f32 = 1e-4;

/// How [`Awq`] searches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AwqConfig {
    /// Exponents that are tried: `0, 1/n, …, (n - 1)/n`.
    pub n_exponents: usize,
    /// Rows of inputs that the error is measured on.
    pub sample_rows: usize,
    /// Rows of the weights that the error is measured on, evenly spread over the matrix.
    pub weight_rows: usize,
    /// How ranges are chosen once the factors are fixed. During the search they go from the least to the
    /// largest weight.
    pub range: RangeChoice,
    /// Whether the ranges of a [`GroupFormat`] are then cut off where the outputs on the sample lose least,
    /// in place of `range`: the largest magnitude is lowered by twentieths down to a half. (Blocks of GGUF
    /// have a search of their own.) Off by default: it makes the outputs of layers more accurate, but those
    /// of the encoder in `docs/quantization.md` less so.
    pub clip: bool,
}

impl AwqConfig {
    /// The authors' settings: twenty exponents, and the search for clipped ranges.
    pub fn paper() -> Self {
        Self {
            n_exponents: 20,
            sample_rows: 512,
            weight_rows: usize::MAX,
            range: RangeChoice::Extremes,
            clip: true,
        }
    }
}

impl Default for AwqConfig {
    fn default() -> Self {
        Self { weight_rows: 512, range: RangeChoice::LeastSquares, clip: false, ..Self::paper() }
    }
}

/// Scales columns by a power of the mean magnitude of their inputs; the exponent is found by trying several.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Awq {
    config: AwqConfig,
}

impl Awq {
    /// AWQ with these settings.
    pub const fn new(config: AwqConfig) -> Self {
        Self { config }
    }

    /// The factors on the columns with the least error, and their exponent. Matrices that read the same
    /// inputs share them, when their rows are given together.
    ///
    /// # Errors
    /// As [`Quantizer::quantize`].
    pub fn search(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: &Statistics,
    ) -> Result<(Vec<f32>, f32)> {
        weights.check(Some(statistics))?;
        encoding.check(weights.n_cols())?;
        if statistics.sample().is_empty() {
            return Err(Error::NoStatistics { needed: "a sample of the inputs" });
        }
        let n = weights.n_cols();
        let every = weights.n_rows().div_ceil(self.config.weight_rows.max(1));
        let some: Vec<f32> = weights.values().chunks_exact(n).step_by(every).flatten().copied().collect();
        let values = &some[..];
        let magnitudes = statistics.mean_magnitude();
        let inputs = transposed(statistics.sample(), n);
        let mut best = (f64::INFINITY, vec![1.0; n], 0.0);
        for i in 0..self.config.n_exponents.max(1) {
            let exponent = i as f32 / self.config.n_exponents.max(1) as f32;
            let factors = factors(&magnitudes, exponent);
            let scaled = scaled(values, &factors);
            let chosen = Chosen::new(encoding, &scaled, n, None, RangeChoice::Extremes)?;
            let mut wrong = chosen.rounded(&scaled);
            for (row, original) in wrong.chunks_exact_mut(n).zip(values.chunks_exact(n)) {
                for ((x, original), factor) in row.iter_mut().zip(original).zip(&factors) {
                    *x = *x / factor - original;
                }
            }
            let error = output_squares(&wrong, &inputs, n);
            if error < best.0 {
                best = (error, factors, exponent);
            }
        }
        Ok((best.1, best.2))
    }
}

/// `magnitude^exponent`, divided by the geometric mean of the largest and the smallest.
fn factors(magnitudes: &[f32], exponent: f32) -> Vec<f32> {
    let mut factors: Vec<f32> = magnitudes.iter().map(|m| m.powf(exponent).max(SMALLEST)).collect();
    let (least, most) = factors.iter().fold((f32::INFINITY, 0.0f32), |a, &x| (a.0.min(x), a.1.max(x)));
    let middle = (least * most).sqrt();
    factors.iter_mut().for_each(|x| *x /= middle);
    factors
}

fn scaled(values: &[f32], factors: &[f32]) -> Vec<f32> {
    let mut out = values.to_vec();
    for row in out.chunks_exact_mut(factors.len()) {
        row.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
    }
    out
}

/// Inputs of columns that were scaled.
fn scaled_inputs(sample: &[f32], factors: &[f32]) -> Vec<f32> {
    let mut out = sample.to_vec();
    for row in out.chunks_exact_mut(factors.len()) {
        row.iter_mut().zip(factors).for_each(|(x, factor)| *x /= factor);
    }
    out
}

/// Steps that ranges are lowered by, in twentieths.
const CLIP_STEPS: u8 = 10;

/// For each group the scale and offset whose rounding changes the group's part of the outputs least.
fn clipped_ranges(format: GroupFormat, values: &[f32], sample: &[f32], n_cols: usize) -> Vec<(f32, f32)> {
    let (group, levels) = (format.group(), format.levels());
    let n_groups = n_cols / group;
    let mut out = vec![(0.0, 0.0); values.len() / group];
    let shared = DisjointMut::new(&mut out);
    let isa = cpu::isa();
    pool::parallel_for(n_groups, |group_idx| {
        // Second moments of the group's inputs, which all rows share.
        let mut inputs = Vec::with_capacity(sample.len() / n_groups.max(1));
        for row in sample.chunks_exact(n_cols) {
            inputs.extend_from_slice(&row[group_idx * group..(group_idx + 1) * group]);
        }
        let mut moments = vec![0.0f32; group * group];
        per_isa!(isa, || {
            for x in inputs.chunks_exact(group) {
                for (line, a) in moments.chunks_exact_mut(group).zip(x) {
                    line.iter_mut().zip(x).for_each(|(sum, b)| *sum += a * b);
                }
            }
        });
        let mut error = vec![0.0f32; group];
        for (row, weights) in values.chunks_exact(n_cols).enumerate() {
            let weights = &weights[group_idx * group..(group_idx + 1) * group];
            let best = per_isa!(isa, || {
                let mut best = (f32::INFINITY, (0.0, 0.0));
                for step in 0..=CLIP_STEPS {
                    let share = 1.0 - f32::from(step) / 20.0;
                    let range = range_below(format, weights, share);
                    let inverse = inverse(range.0);
                    for (error, &w) in error.iter_mut().zip(weights) {
                        let (mut code, mut level) = ([0], [0.0]);
                        levels.nearest(&[(w - range.1) * inverse], &mut code, &mut level);
                        *error = range.0 * level[0] + range.1 - w;
                    }
                    let mut loss = 0.0;
                    for (line, e) in moments.chunks_exact(group).zip(&error) {
                        loss += e * line.iter().zip(&error).map(|(m, e)| m * e).sum::<f32>();
                    }
                    if loss < best.0 {
                        best = (loss, range);
                    }
                }
                best.1
            });
            // SAFETY: each group belongs to one task.
            unsafe { shared.write(row * n_groups + group_idx, best) };
        }
    });
    out
}

/// Scale and offset of the weights cut off at a share of their largest magnitude.
#[inline(always)]
fn range_below(format: GroupFormat, weights: &[f32], share: f32) -> (f32, f32) {
    let (least, most) = format.levels().range();
    let (low, high) =
        weights.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |a, &x| (a.0.min(x), a.1.max(x)));
    let largest = share * low.abs().max(high.abs());
    match format {
        GroupFormat::Affine { .. } => {
            let (low, high) = (low.max(-largest), high.min(largest));
            ((high - low) / most, low)
        }
        _ => (largest / most.max(-least), 0.0),
    }
}

impl Folding for Awq {
    fn factors(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: &Statistics,
    ) -> Result<Vec<f32>> {
        Ok(self.search(weights, encoding, statistics)?.0)
    }

    fn rounding(&self) -> &dyn Quantizer {
        const ROUNDING: &RoundToNearest = &RoundToNearest::new();
        ROUNDING
    }
}

impl Quantizer for Awq {
    fn name(&self) -> String {
        "awq".to_owned()
    }

    fn needs(&self) -> Option<StatisticsConfig> {
        Some(StatisticsConfig { sample_rows: self.config.sample_rows, ..Default::default() })
    }

    fn folding(&self) -> Option<&dyn Folding> {
        Some(self)
    }

    fn quantize(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: Option<&Statistics>,
    ) -> Result<Quantized> {
        let Some(statistics) = statistics else {
            return Err(Error::NoStatistics { needed: "a sample of the inputs" });
        };
        let start = Instant::now();
        let (factors, exponent) = self.search(weights, encoding, statistics)?;
        let n = weights.n_cols();
        let scaled = scaled(weights.values(), &factors);
        let squares: Vec<f32> =
            statistics.mean_square().iter().zip(&factors).map(|(square, f)| square / (f * f)).collect();
        let chosen = match encoding {
            Encoding::Groups(format) if self.config.clip => {
                let ranges =
                    clipped_ranges(format, &scaled, &scaled_inputs(statistics.sample(), &factors), n);
                Chosen::of_groups(format, &scaled, n, &ranges)
            }
            _ => Chosen::new(encoding, &scaled, n, Some(&squares), self.config.range)?,
        };
        let codes = chosen.nearest(&scaled);
        let matrix = WeightMatrix::new(&scaled, weights.n_rows(), n)?;
        let matrix = chosen.pack(&matrix, &codes)?.of_divided_inputs(factors)?;
        let report = QuantizationReport {
            method: format!("{} {encoding}", self.name()),
            setting: Some(exponent),
            time: start.elapsed(),
            ..QuantizationReport::default()
        };
        Quantized::new(matrix, weights, Some(statistics), report)
    }
}
