//! What all quantizers have in common: weights in, a packed matrix and a report out.

mod chosen;

use crate::{
    Error, Format, PackedMatrix, Result,
    encode::floats_to_bytes,
    gguf::TensorView,
    groups::{GroupFormat, Groups},
    linalg::{Operand, Part, add_product, transposed},
    statistics::{Statistics, StatisticsConfig},
};
use breakers_cpu::{hadamard::Rotation, pool};
use chosen::ChosenScales;
pub(crate) use chosen::{Chosen, group_ranges};
use std::time::Duration;

/// How weights are chosen for a smaller format. Each method is one file of [`quantizers`](crate::quantizers).
///
/// ```
/// use breakers_quant::{Format, quantizer::{Encoding, Quantizer, WeightMatrix}, quantizers::RoundToNearest};
///
/// # fn main() -> Result<(), breakers_quant::Error> {
/// let values: Vec<f32> = (0..2 * 64).map(|i| (i as f32 * 0.1).sin()).collect();
/// let weights = WeightMatrix::new(&values, 2, 64)?;
/// let quantized = RoundToNearest::new(Encoding::Gguf(Format::Q4_0)).quantize(&weights, None)?;
/// assert_eq!(quantized.bytes(), 2 * 2 * 18);
/// assert!(quantized.report().weight_error < 0.01);
/// # Ok(())
/// # }
/// ```
pub trait Quantizer: Send + Sync {
    /// The method and its format, such as `gptq Q3_K`.
    fn name(&self) -> String;

    /// The statistics of the inputs that the method works with.
    fn needs(&self) -> StatisticsConfig {
        StatisticsConfig::default()
    }

    /// Chooses the packed weights.
    ///
    /// # Errors
    /// [`Error::RowLength`] and [`Error::GroupSize`] when rows are not whole blocks or groups, [`Error::NoStatistics`]
    /// without statistics that the method cannot do without, [`Error::Columns`] when they are of other inputs,
    /// [`Error::TooFewRows`], [`Error::Indefinite`].
    fn quantize(
        &self,
        weights: &WeightMatrix<'_>,
        statistics: Option<&Statistics>,
    ) -> Result<QuantizedMatrix>;
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

/// The format that weights are packed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// Blocks of a GGUF file.
    Gguf(Format),
    /// A format of our own.
    Groups(GroupFormat),
}

impl Encoding {
    /// The name of the format.
    pub fn name(self) -> String {
        match self {
            Encoding::Gguf(format) => format.name().to_owned(),
            Encoding::Groups(format) => format.name(),
        }
    }

    /// Whether rows of so many values can be packed.
    ///
    /// # Errors
    /// [`Error::RowLength`], [`Error::GroupSize`], [`Error::Bits`].
    pub fn check(self, n_cols: usize) -> Result<()> {
        match self {
            Encoding::Gguf(format) => format.row_bytes(n_cols).map(|_| ()),
            Encoding::Groups(format) => format.check(n_cols),
        }
    }

    /// Bytes of a matrix: codes and scales as files hold them.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn matrix_bytes(self, n_rows: usize, n_cols: usize) -> Result<usize> {
        match self {
            Encoding::Gguf(format) => Ok(format.row_bytes(n_cols)?.saturating_mul(n_rows)),
            Encoding::Groups(format) => {
                format.check(n_cols)?;
                Ok(format.matrix_bytes(n_rows, n_cols))
            }
        }
    }

    /// The format of a [`name`](Self::name); those of GGUF in any case.
    pub fn parse(name: &str) -> Option<Self> {
        let gguf = Format::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name));
        gguf.map(Encoding::Gguf).or_else(|| GroupFormat::parse(name).map(Encoding::Groups))
    }
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl From<Format> for Encoding {
    fn from(format: Format) -> Self {
        Encoding::Gguf(format)
    }
}

impl From<GroupFormat> for Encoding {
    fn from(format: GroupFormat) -> Self {
        Encoding::Groups(format)
    }
}

/// How the range of a group is chosen in a [`GroupFormat`]. (Blocks of GGUF always get the scales with the least error.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum RangeChoice {
    /// From the least to the largest weight.
    Extremes,
    /// The shorter range with the least squared error, each column weighted by its importance.
    #[default]
    LeastSquares,
}

/// What a matrix became.
#[derive(Debug, Clone)]
pub struct QuantizedMatrix {
    n_rows: usize,
    n_cols: usize,
    body: Body,
    /// Inputs are divided by these first.
    pub(crate) input_scales: Option<Vec<f32>>,
    /// Inputs are rotated first (after the division), with this seed.
    rotation: Option<(Rotation, u64)>,
    pub(crate) report: QuantizationReport,
}

#[derive(Debug, Clone)]
enum Body {
    Blocks(Format, Vec<u8>),
    Groups(Groups),
}

/// What a matrix is made of.
pub(crate) enum Parts<'a> {
    Blocks(&'a [u8]),
    Groups(&'a Groups),
}

/// How quantization went.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct QuantizationReport {
    /// The quantizer's name.
    pub method: String,
    /// Squared error of the weights over their squares.
    pub weight_error: f64,
    /// Squared error of the outputs over their squares on the calibration rows, if these were there.
    pub output_error: Option<f64>,
    /// The share of the Hessian's mean diagonal that was added to it, for methods that factor it.
    pub damping: Option<f32>,
    /// What was found of the method's own settings: AWQ's exponent, for one.
    pub setting: Option<f32>,
    /// How long it took.
    pub time: Duration,
}

impl QuantizedMatrix {
    pub(crate) fn new(weights: &WeightMatrix<'_>, chosen: &Chosen, codes: &[u8]) -> Self {
        let (n_rows, n_cols) = (weights.n_rows, weights.n_cols);
        let body = match &chosen.scales {
            ChosenScales::Floats(format) => Body::Blocks(*format, floats_to_bytes(*format, weights.values)),
            ChosenScales::Blocks(format, blocks) => Body::Blocks(*format, blocks.pack(codes)),
            ChosenScales::Groups(format, scales, _) => {
                Body::Groups(Groups::new(*format, n_rows, n_cols, scales.clone(), codes))
            }
        };
        let report = QuantizationReport::default();
        Self { n_rows, n_cols, body, input_scales: None, rotation: None, report }
    }

    /// Fills the report; `weights` are the original ones.
    pub(crate) fn reported(
        mut self,
        weights: &WeightMatrix<'_>,
        statistics: Option<&Statistics>,
        report: QuantizationReport,
    ) -> Self {
        let decoded = self.to_f32();
        let (wrong, all) = squares(weights.values, &decoded);
        self.report = report;
        self.report.weight_error = if all > 0.0 { wrong / all } else { 0.0 };
        self.report.output_error = statistics.and_then(|s| output_error(weights, &decoded, s));
        self
    }

    /// Output features.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Input features.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The format.
    pub fn encoding(&self) -> Encoding {
        match &self.body {
            Body::Blocks(format, _) => Encoding::Gguf(*format),
            Body::Groups(groups) => Encoding::Groups(groups.format),
        }
    }

    /// Bytes of codes and scales, and of the factors on the inputs.
    pub fn bytes(&self) -> usize {
        let body = match &self.body {
            Body::Blocks(_, bytes) => bytes.len(),
            Body::Groups(groups) => groups.bytes(),
        };
        body + self.input_scales.as_ref().map_or(0, |scales| 4 * scales.len())
    }

    /// The blocks as a GGUF file holds them, if the format is one of GGUF's.
    pub fn blocks(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Blocks(_, bytes) => Some(bytes),
            Body::Groups(_) => None,
        }
    }

    /// What the inputs are divided by before the product; nothing stands for ones.
    pub fn input_scales(&self) -> Option<&[f32]> {
        self.input_scales.as_deref()
    }

    /// The rotation of the inputs (after the division) before the product.
    pub fn rotation(&self) -> Option<&Rotation> {
        self.rotation.as_ref().map(|(rotation, _)| rotation)
    }

    /// The seed of the rotation, which [`Rotation::random`] makes it from.
    pub fn rotation_seed(&self) -> Option<u64> {
        self.rotation.as_ref().map(|(_, seed)| *seed)
    }

    /// A tensor of a GGUF file, its blocks copied.
    pub fn from_gguf(view: &TensorView<'_>) -> Self {
        Self::from_blocks(view.format(), view.n_rows(), view.n_cols(), view.bytes().to_vec())
    }

    /// Rows of blocks as a GGUF file holds them.
    ///
    /// # Errors
    /// [`Error::RowLength`]; [`Error::Length`] when `bytes` holds more or less than the rows.
    pub fn from_bytes(format: Format, n_rows: usize, n_cols: usize, bytes: Vec<u8>) -> Result<Self> {
        let expected = Encoding::Gguf(format).matrix_bytes(n_rows, n_cols)?;
        if bytes.len() != expected {
            return Err(Error::Length { what: "bytes of a matrix", expected, found: bytes.len() });
        }
        Ok(Self::from_blocks(format, n_rows, n_cols, bytes))
    }

    pub(crate) fn parts(&self) -> Parts<'_> {
        match &self.body {
            Body::Blocks(_, bytes) => Parts::Blocks(bytes),
            Body::Groups(groups) => Parts::Groups(groups),
        }
    }

    /// Blocks of a format, as many as the rows have.
    pub(crate) fn from_blocks(format: Format, n_rows: usize, n_cols: usize, bytes: Vec<u8>) -> Self {
        let report = QuantizationReport::default();
        let body = Body::Blocks(format, bytes);
        Self { n_rows, n_cols, body, input_scales: None, rotation: None, report }
    }

    /// Groups whose codes and scales are those of their rows.
    pub(crate) fn from_groups(groups: Groups) -> Self {
        let (n_rows, n_cols, report) = (groups.n_rows, groups.n_cols, QuantizationReport::default());
        Self { n_rows, n_cols, body: Body::Groups(groups), input_scales: None, rotation: None, report }
    }

    /// The same stored weights for inputs that are rotated first, by [`Rotation::random`] with this seed.
    ///
    /// # Errors
    /// [`Error::Backend`] for rows that have no rotation.
    pub fn of_rotated_inputs(mut self, seed: u64) -> Result<Self> {
        self.rotation = Some((Rotation::random(self.n_cols, seed)?, seed));
        Ok(self)
    }

    /// The same stored weights for inputs that are divided first.
    pub(crate) fn of_divided_inputs(mut self, input_scales: Option<Vec<f32>>) -> Self {
        self.input_scales = input_scales;
        self
    }

    /// How quantization went.
    pub fn report(&self) -> &QuantizationReport {
        &self.report
    }

    /// The stored weights, `[n_rows, n_cols]`: those of divided and rotated inputs.
    pub fn stored_f32(&self) -> Vec<f32> {
        match &self.body {
            Body::Blocks(format, bytes) => {
                let mut out = vec![0.0; self.n_rows * self.n_cols];
                let row_bytes = bytes.len() / self.n_rows.max(1);
                pool::parallel_chunks_mut(&mut out, 8 * self.n_cols, |start, out| {
                    let first = start / self.n_cols * row_bytes;
                    let bytes = &bytes[first..first + out.len() / self.n_cols * row_bytes];
                    let decoded = format.decode_row(bytes, out);
                    debug_assert!(decoded.is_ok(), "{decoded:?}");
                });
                out
            }
            Body::Groups(groups) => groups.to_f32(),
        }
    }

    /// The weights that stand for the original ones, `[n_rows, n_cols]`: rotation and factors taken back.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = self.stored_f32();
        if let Some(rotation) = self.rotation() {
            // Rows of the stored matrix are rotated rows of the original one.
            let undone = rotation.inverse(&mut values);
            debug_assert!(undone.is_ok(), "{undone:?}");
        }
        // Stored weights are multiplied by what the inputs are divided by.
        if let Some(scales) = &self.input_scales {
            for row in values.chunks_exact_mut(self.n_cols) {
                row.iter_mut().zip(scales).for_each(|(x, scale)| *x /= scale);
            }
        }
        values
    }

    /// The matrix for the CPU's product, in its own format: that of inputs that were divided by
    /// [`input_scales`](Self::input_scales) and then rotated by [`rotation`](Self::rotation), where there are any.
    ///
    /// # Errors
    /// [`Error::NoProduct`] for groups that are not whole blocks of 32 columns, [`Error::OutOfMemory`].
    pub fn to_packed(&self) -> Result<PackedMatrix> {
        match &self.body {
            Body::Blocks(format, bytes) => PackedMatrix::from_bytes(*format, self.n_rows, self.n_cols, bytes),
            Body::Groups(groups) => PackedMatrix::from_groups(groups),
        }
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
