//! Rounding to the nearest value, after a search for the scales with the least error.

use crate::{
    Result,
    quantizer::{QuantizationReport, Quantized, Quantizer, RangeChoice, WeightMatrix},
    rounding::Chosen,
    statistics::{Statistics, StatisticsConfig},
};
use breakers_gguf::Encoding;
use std::time::Instant;

/// Rounds each weight to the nearest value that its group's scale allows.
///
/// With statistics, the error of a column is weighted by the mean square of its inputs, which is its share of
/// the error of the outputs (the "importance matrix" of llama.cpp). Without them all columns count the same.
///
/// # Source
/// The importance of a column is the diagonal of the Hessian: LeCun et al., "Optimal brain damage", 1990,
/// section 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundToNearest {
    range: RangeChoice,
    weighted: bool,
}

impl RoundToNearest {
    /// The scales with the least squared error.
    pub const fn new() -> Self {
        Self { range: RangeChoice::LeastSquares, weighted: true }
    }

    /// Ranges from the smallest to the largest weight of a group: the simplest choice, for formats of our
    /// own.
    pub const fn extremes() -> Self {
        Self { range: RangeChoice::Extremes, weighted: false }
    }

    /// All columns count the same, even if there are statistics.
    pub const fn unweighted(self) -> Self {
        Self { weighted: false, ..self }
    }
}

impl Default for RoundToNearest {
    fn default() -> Self {
        Self::new()
    }
}

impl Quantizer for RoundToNearest {
    fn name(&self) -> String {
        let name = match (self.range, self.weighted) {
            (RangeChoice::Extremes, _) => "rtn-extremes",
            (_, true) => "imatrix",
            (_, false) => "rtn",
        };
        name.to_owned()
    }

    fn needs(&self) -> Option<StatisticsConfig> {
        self.weighted.then(StatisticsConfig::default)
    }

    fn quantize(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: Option<&Statistics>,
    ) -> Result<Quantized> {
        weights.check(statistics)?;
        let start = Instant::now();
        let importance = statistics.filter(|s| self.weighted && s.n_rows() > 0).map(Statistics::mean_square);
        let chosen =
            Chosen::new(encoding, weights.values(), weights.n_cols(), importance.as_deref(), self.range)?;
        let codes = chosen.nearest(weights.values());
        let report = QuantizationReport {
            method: format!("{} {encoding}", self.name()),
            time: start.elapsed(),
            ..QuantizationReport::default()
        };
        Quantized::new(chosen.pack(weights, &codes)?, weights, statistics, report)
    }
}
