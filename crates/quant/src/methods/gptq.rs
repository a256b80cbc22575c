//! GPTQ: rounding with error feedback along the Hessian of the inputs.
//!
//! # Source
//! Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers", arXiv
//! 2210.17323, section 3; act-order from the authors' code. Deviation: the factor of the Hessian itself is
//! used instead of that of its inverse (the module `solver` shows that the results are the same).

mod solver;

use crate::{
    Error, Result,
    quantizer::{QuantizationReport, Quantized, Quantizer, RangeChoice, WeightMatrix},
    rounding::{Chosen, Grid, group_ranges},
    statistics::{Statistics, StatisticsConfig},
};
use breakers_gguf::{Encoding, GroupFormat, GroupScales};
pub use solver::ColumnOrder;
use solver::{BLOCK, Feedback};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

const NAME: &str = "gptq";

/// How much a column's error counts when scales are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScaleImportance {
    /// All the same.
    None,
    /// The mean square of the column's inputs.
    Diagonal,
    /// The part of it that later columns cannot compensate: U_ii² of the factor that is used for error
    /// feedback.
    Conditional,
}

/// When the scales of a group are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScaleTime {
    /// For all groups before the first column is rounded, so that any order of columns works with any blocks.
    Before,
    /// When the group's turn comes, from its updated weights. This needs columns in natural order and groups
    /// of whole blocks of 32 columns; otherwise it is the same as [`Before`](Self::Before).
    InTurn,
}

/// The settings of [`Gptq`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqConfig {
    /// The order in which columns are rounded.
    pub order: ColumnOrder,
    /// The share of the Hessian's mean diagonal that is added to the diagonal. If the Hessian is still
    /// indefinite, ten times as much is added, until it is not.
    pub damping: f32,
    /// This multiple of the Hessian's own diagonal is added to it: a text of finite length says less about
    /// pairs of columns than about single ones, and feedback would shift errors into directions that are
    /// empty only by chance. (A shrinkage towards the diagonal by λ is λ/(1 − λ) here.)
    pub shrinkage: f32,
    /// How the range of a group is chosen.
    pub range: RangeChoice,
    /// How much a column counts for that.
    pub importance: ScaleImportance,
    /// When the range is chosen.
    pub scales: ScaleTime,
}

impl GptqConfig {
    /// The paper's settings: columns in natural order, ranges from the smallest to the largest weight.
    pub fn paper() -> Self {
        Self {
            order: ColumnOrder::Natural,
            damping: 0.01,
            shrinkage: 0.0,
            range: RangeChoice::Extremes,
            importance: ScaleImportance::None,
            scales: ScaleTime::InTurn,
        }
    }
}

impl Default for GptqConfig {
    fn default() -> Self {
        Self {
            order: ColumnOrder::DescendingSquares,
            damping: 0.01,
            shrinkage: 0.5,
            range: RangeChoice::LeastSquares,
            importance: ScaleImportance::Conditional,
            scales: ScaleTime::Before,
        }
    }
}

/// Rounds columns one after the other; each takes over the errors of those before it.
///
/// # Example
/// ```
/// use breakers_gguf::GroupFormat;
/// use breakers_quant::methods::{Gptq, GptqConfig};
/// use breakers_quant::quantizer::{Quantizer, WeightMatrix};
/// use breakers_quant::statistics::Statistics;
///
/// # fn main() -> Result<(), breakers_quant::Error> {
/// let values: Vec<f32> = (0..4 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
/// let weights = WeightMatrix::new(&values, 4, 64)?;
/// // 128 rows of what the layer reads; a model's come from a text, as in `job::quantize`.
/// let inputs: Vec<f32> = (0..128 * 64).map(|i| ((i * i % 997) as f32 * 0.37).sin()).collect();
/// let gptq = Gptq::new(GptqConfig::default());
/// let mut statistics = Statistics::new(64, gptq.needs().unwrap_or_default());
/// statistics.observe(&inputs)?;
/// statistics.finish();
///
/// let int3 = GroupFormat::Affine { bits: 3, group: 32 };
/// let quantized = gptq.quantize(&weights, int3.into(), Some(&statistics))?;
/// assert_eq!((quantized.matrix.n_rows(), quantized.matrix.n_cols()), (4, 64));
/// println!("{:.4} of the weights' squares lost", quantized.report.weight_error);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Gptq {
    config: GptqConfig,
}

impl Gptq {
    /// GPTQ with these settings.
    pub const fn new(config: GptqConfig) -> Self {
        Self { config }
    }
}

impl Quantizer for Gptq {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn needs(&self) -> Option<StatisticsConfig> {
        Some(StatisticsConfig { hessian: true, ..Default::default() })
    }

    fn prepare(&self, statistics: &Statistics) -> Result<Option<Box<dyn Quantizer>>> {
        Ok(Some(Box::new(GptqFactor::new(statistics, self.config)?)))
    }

    fn quantize(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: Option<&Statistics>,
    ) -> Result<Quantized> {
        weights.check(statistics)?;
        let Some(statistics) = statistics else {
            return Err(Error::NoStatistics { needed: "second moments of pairs of columns" });
        };
        GptqFactor::new(statistics, self.config)?.quantize(weights, encoding, Some(statistics))
    }
}

/// A factored Hessian for all matrices that read the same inputs. It works with any statistics or none, since
/// these are only used for the report.
pub struct GptqFactor {
    config: GptqConfig,
    feedback: Feedback,
    importance: Option<Vec<f32>>,
    time: Duration,
}

impl GptqFactor {
    /// Factors the Hessian of the inputs.
    ///
    /// # Errors
    /// [`Error::NoStatistics`] without a Hessian, [`Error::TooFewRows`], [`Error::Indefinite`].
    pub fn new(statistics: &Statistics, config: GptqConfig) -> Result<Self> {
        if !(config.damping >= 0.0 && config.damping.is_finite()) {
            return Err(Error::Setting { what: "damping (0 or more)", found: config.damping });
        }
        if !(config.shrinkage >= 0.0 && config.shrinkage.is_finite()) {
            return Err(Error::Setting { what: "shrinkage (0 or more)", found: config.shrinkage });
        }
        let start = Instant::now();
        let feedback = Feedback::new(statistics, config.order, config.damping, config.shrinkage)?;
        let importance = match config.importance {
            ScaleImportance::None => None,
            ScaleImportance::Diagonal => Some(statistics.mean_square()),
            ScaleImportance::Conditional => Some(feedback.conditional_squares()),
        };
        Ok(Self { config, feedback, importance, time: start.elapsed() })
    }

    fn in_turn(&self, format: GroupFormat) -> bool {
        self.config.scales == ScaleTime::InTurn
            && self.config.order == ColumnOrder::Natural
            && format.group().is_multiple_of(BLOCK)
    }

    fn round_in_turn(&self, values: &[f32], n_cols: usize, format: GroupFormat) -> (Chosen, Vec<u8>) {
        let (group, n_groups) = (format.group(), n_cols / format.group());
        let wanted = Mutex::new(vec![(0.0, 0.0); values.len() / group]);
        let codes = self.feedback.round_by_groups(values, group, |remains, first_row, group_idx| {
            let importance =
                self.importance.as_deref().map(|w| &w[group_idx * group..(group_idx + 1) * group]);
            let ranges = group_ranges(format, remains, group, importance, self.config.range);
            if let Ok(mut wanted) = wanted.lock() {
                for (i, range) in ranges.iter().enumerate() {
                    wanted[(first_row + i) * n_groups + group_idx] = *range;
                }
            }
            let scales = GroupScales::store(format, &ranges);
            Grid::of_groups(format, ranges.len(), group, &scales)
        });
        let wanted = wanted.into_inner().unwrap_or_default();
        (Chosen::of_groups(format, values, n_cols, &wanted), codes)
    }
}

impl Quantizer for GptqFactor {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn quantize(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: Option<&Statistics>,
    ) -> Result<Quantized> {
        let start = Instant::now();
        let (values, n_cols) = (weights.values(), weights.n_cols());
        if n_cols != self.feedback.n_cols() {
            return Err(Error::Columns { expected: self.feedback.n_cols(), found: n_cols });
        }
        encoding.check(n_cols)?;
        let (chosen, codes) = match encoding {
            Encoding::Groups(format) if self.in_turn(format) => self.round_in_turn(values, n_cols, format),
            _ => {
                let importance = self.importance.as_deref();
                let chosen = Chosen::new(encoding, values, n_cols, importance, self.config.range)?;
                let codes = chosen.grid().map_or_else(Vec::new, |grid| self.feedback.round(values, grid).0);
                (chosen, codes)
            }
        };
        let report = QuantizationReport {
            method: format!("{NAME} {encoding}"),
            damping: Some(self.feedback.damping),
            time: self.time + start.elapsed(),
            ..QuantizationReport::default()
        };
        Quantized::new(chosen.pack(weights, &codes)?, weights, statistics, report)
    }
}

impl std::fmt::Debug for GptqFactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let n_cols = self.feedback.n_cols();
        f.debug_struct("GptqFactor").field("config", &self.config).field("n_cols", &n_cols).finish()
    }
}
