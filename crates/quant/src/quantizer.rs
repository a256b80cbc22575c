//! What all quantizers have in common: weights in, a packed matrix and a report out.

use crate::{
    Error, Result,
    linalg::{Operand, Part, add_product},
    statistics::{Statistics, StatisticsConfig},
};
use breakers_cpu::matrix::transposed;
use breakers_gguf::{Encoding, QuantizedMatrix};
use std::{fmt::Debug, time::Duration};

/// How weights are chosen for a smaller format. Each method is one file of [`methods`](crate::methods).
///
/// [`name`](Self::name) and [`quantize`](Self::quantize) are enough to quantize a matrix, and a whole model
/// with [`job::quantize`](crate::job::quantize). The other methods say what it needs from a job: statistics
/// of the inputs, the formats that it supports, work shared by several matrices, factors that are folded into
/// the model.
///
/// `Debug` must show all settings of a method, because an interrupted job is only resumed with the same
/// settings.
///
/// ```
/// use breakers_gguf::Format;
/// use breakers_quant::{quantizer::{Quantizer, WeightMatrix}, methods::RoundToNearest};
///
/// # fn main() -> Result<(), breakers_quant::Error> {
/// let values: Vec<f32> = (0..2 * 64).map(|i| (i as f32 * 0.1).sin()).collect();
/// let weights = WeightMatrix::new(&values, 2, 64)?;
/// let quantized = RoundToNearest::new().quantize(&weights, Format::Q4_0.into(), None)?;
/// assert_eq!(quantized.matrix.bytes(), 2 * 2 * 18);
/// assert!(quantized.report.weight_error < 0.01);
/// # Ok(())
/// # }
/// ```
pub trait Quantizer: Debug + Send + Sync {
    /// The method's name, such as `gptq`: lower case, without `+` and `:`, so that it can be part of a
    /// [`JobSpec`](crate::job::JobSpec).
    fn name(&self) -> String;

    /// The statistics of the inputs that the method works with; `None` for a method that looks only at
    /// weights; a job then needs no text.
    fn needs(&self) -> Option<StatisticsConfig> {
        None
    }

    /// Whether the method can choose weights of a format. A job asks before it begins.
    ///
    /// # Errors
    /// [`Error::Unsuited`], which says what formats the method is for.
    fn check(&self, encoding: Encoding) -> Result<()> {
        let _ = encoding;
        Ok(())
    }

    /// Factors on the columns, for methods that search for them. Whole-model jobs fold them into the
    /// preceding norms and matrices.
    fn folding(&self) -> Option<&dyn Folding> {
        None
    }

    /// Work that matrices with the same inputs share, done once for all of them, such as factoring a Hessian:
    /// a quantizer for these matrices alone. `None` for a method without such work.
    ///
    /// # Errors
    /// Those of [`quantize`](Self::quantize) that concern the statistics.
    fn prepare(&self, statistics: &Statistics) -> Result<Option<Box<dyn Quantizer>>> {
        let _ = statistics;
        Ok(None)
    }

    /// Chooses the packed weights of a format.
    ///
    /// # Errors
    /// [`Error::Gguf`] when rows are not whole blocks or groups, [`Error::Unsuited`] for a format that the
    /// method has no codes for, [`Error::NoStatistics`] if the method needs statistics that are missing,
    /// [`Error::Columns`] if they are of other inputs, [`Error::TooFewRows`], [`Error::Indefinite`].
    fn quantize(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: Option<&Statistics>,
    ) -> Result<Quantized>;
}

/// A method that multiplies columns by factors before it rounds them.
///
/// In a whole model the inputs are not divided at run time. Instead, a job multiplies the factors into the
/// columns of all matrices that read the same inputs, and divides the preceding norm or matrix by them.
pub trait Folding {
    /// The factors for the columns of matrices with the same inputs, whose rows are given together.
    ///
    /// # Errors
    /// As [`Quantizer::quantize`].
    fn factors(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: &Statistics,
    ) -> Result<Vec<f32>>;

    /// The quantizer that rounds the matrices afterwards. It also rounds matrices without a preceding norm or
    /// matrix that could absorb the factors.
    fn rounding(&self) -> &dyn Quantizer;
}

/// Weights to be quantized: finite numbers, `[n_rows, n_cols]` (output and input features).
#[derive(Debug, Clone, Copy)]
pub struct WeightMatrix<'a> {
    values: &'a [f32],
    n_rows: usize,
    n_cols: usize,
}

impl<'a> WeightMatrix<'a> {
    /// Checks the weights.
    ///
    /// # Errors
    /// [`Error::Length`] when there are more or fewer than the rows hold, or none; [`Error::NotFinite`].
    pub fn new(values: &'a [f32], n_rows: usize, n_cols: usize) -> Result<Self> {
        let expected = n_rows.saturating_mul(n_cols);
        if values.len() != expected || values.is_empty() {
            return Err(Error::Length { what: "weights", expected: expected.max(1), found: values.len() });
        }
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            let (row, col) = (at / n_cols, at % n_cols);
            return Err(Error::NotFinite { what: "weights", row, col, found: values[at] });
        }
        Ok(Self { values, n_rows, n_cols })
    }

    /// The numbers, row by row.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Output features.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Input features.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    pub(crate) fn check(&self, statistics: Option<&Statistics>) -> Result<()> {
        match statistics {
            Some(statistics) if statistics.n_cols() != self.n_cols => {
                Err(Error::Columns { expected: self.n_cols, found: statistics.n_cols() })
            }
            _ => Ok(()),
        }
    }
}

/// How the range of a group is chosen in a [`GroupFormat`](breakers_gguf::GroupFormat). (Blocks of GGUF
/// always get the scales with the least error.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum RangeChoice {
    /// From the least to the largest weight.
    Extremes,
    /// The shorter range with the least squared error, each column weighted by its importance.
    #[default]
    LeastSquares,
}

/// A report on a quantization.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct QuantizationReport {
    /// The method and the format, such as `gptq Q3_K`.
    pub method: String,
    /// Squared error of the weights over their squares.
    pub weight_error: f64,
    /// Squared error of the outputs over their squares on the calibration rows, if there were any.
    pub output_error: Option<f64>,
    /// The share of the Hessian's mean diagonal that was added to it, for methods that factor it.
    pub damping: Option<f32>,
    /// A setting that the method has found, such as AWQ's exponent.
    pub setting: Option<f32>,
    /// How long it took.
    pub time: Duration,
}

/// The result of a quantization.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// The packed weights.
    pub matrix: QuantizedMatrix,
    /// The report.
    pub report: QuantizationReport,
}

impl Quantized {
    /// Adds the errors to a report, which may be the default one: those of the weights, and of the outputs if
    /// the statistics hold a sample of inputs. `weights` are the original ones.
    ///
    /// # Errors
    /// [`Error::Columns`] and [`Error::Length`] when the matrix is of another size.
    pub fn new(
        matrix: QuantizedMatrix,
        weights: &WeightMatrix<'_>,
        statistics: Option<&Statistics>,
        report: QuantizationReport,
    ) -> Result<Self> {
        if matrix.n_cols() != weights.n_cols {
            return Err(Error::Columns { expected: weights.n_cols, found: matrix.n_cols() });
        }
        if matrix.n_rows() != weights.n_rows {
            let (expected, found) = (weights.n_rows, matrix.n_rows());
            return Err(Error::Length { what: "rows of the quantized matrix", expected, found });
        }
        let decoded = matrix.to_f32();
        let (wrong, all) = squares(weights.values, &decoded);
        let weight_error = if all > 0.0 { wrong / all } else { 0.0 };
        let output_error = statistics.and_then(|s| output_error(weights, &decoded, s));
        Ok(Self { matrix, report: QuantizationReport { weight_error, output_error, ..report } })
    }
}

/// Squares of the differences, and of the first.
pub(crate) fn squares(original: &[f32], decoded: &[f32]) -> (f64, f64) {
    let mut sums = (0.0f64, 0.0f64);
    for (original, decoded) in original.chunks(256).zip(decoded.chunks(256)) {
        let (mut wrong, mut all) = (0.0f32, 0.0f32);
        for (x, y) in original.iter().zip(decoded) {
            wrong += (x - y) * (x - y);
            all += x * x;
        }
        sums.0 += f64::from(wrong);
        sums.1 += f64::from(all);
    }
    sums
}

/// The squared error of the outputs on the sampled rows over their squares; nothing without such rows.
pub(crate) fn output_error(
    weights: &WeightMatrix<'_>,
    decoded: &[f32],
    statistics: &Statistics,
) -> Option<f64> {
    let sample = statistics.sample();
    let n = weights.n_cols;
    if sample.is_empty() || statistics.n_cols() != n {
        return None;
    }
    let inputs = transposed(sample, n);
    let all = output_squares(weights.values, &inputs, n);
    let differences: Vec<f32> = weights.values.iter().zip(decoded).map(|(x, y)| x - y).collect();
    (all > 0.0).then(|| output_squares(&differences, &inputs, n) / all)
}

/// Squares of the outputs of a matrix `[n_rows, n]` for inputs `[n, n_inputs]`.
pub(crate) fn output_squares(values: &[f32], inputs: &[f32], n: usize) -> f64 {
    let (n_rows, n_inputs) = (values.len() / n, inputs.len() / n);
    let columns = transposed(values, n);
    let mut out = vec![0.0; n_rows * n_inputs];
    let left = Operand { values: &columns, stride: n_rows, n: n_rows };
    let right = Operand { values: inputs, stride: n_inputs, n: n_inputs };
    add_product(left, right, n, 1.0, &mut out, n_inputs, Part::All);
    out.chunks(256).map(|part| f64::from(part.iter().map(|x| x * x).sum::<f32>())).sum::<f64>()
}
