//! Rounding to the nearest value, after a search for the scales with the least error.

use crate::{
    Result,
    quantizer::{Chosen, QuantizationReport, Quantized, Quantizer, RangeChoice, WeightMatrix},
    statistics::Statistics,
};
use breakers_gguf::Encoding;
use std::time::Instant;

/// Rounds each weight to the nearest value that its group's scale allows.
///
/// With statistics, the error of a column counts by the mean square of its inputs, its share in the error of the outputs
/// (the "importance matrix" of llama.cpp). Without them all columns count the same.
///
/// # Source
/// The importance of a column is the diagonal of the Hessian: LeCun et al., "Optimal brain damage", 1990, section 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundToNearest {
    encoding: Encoding,
    range: RangeChoice,
    weighted: bool,
}

impl RoundToNearest {
    /// The scales with the least squared error.
    pub fn new(encoding: Encoding) -> Self {
        Self { encoding, range: RangeChoice::LeastSquares, weighted: true }
    }

    /// Groups from the least to the largest weight: the plainest way, in formats of our own.
    pub fn extremes(encoding: Encoding) -> Self {
        Self { encoding, range: RangeChoice::Extremes, weighted: false }
    }

    /// All columns count the same, even if there are statistics.
    pub fn unweighted(self) -> Self {
        Self { weighted: false, ..self }
    }
}

impl Quantizer for RoundToNearest {
    fn name(&self) -> String {
        let name = self.encoding.name();
        match (self.range, self.weighted) {
            (RangeChoice::Extremes, _) => format!("rtn-extremes {name}"),
            (_, true) => format!("rtn-weighted {name}"),
            (_, false) => format!("rtn {name}"),
        }
    }

    fn quantize(&self, weights: &WeightMatrix<'_>, statistics: Option<&Statistics>) -> Result<Quantized> {
        weights.check(statistics)?;
        let start = Instant::now();
        let importance = statistics.filter(|s| self.weighted && s.n_rows() > 0).map(Statistics::mean_square);
        let chosen = Chosen::new(
            self.encoding,
            weights.values(),
            weights.n_cols(),
            importance.as_deref(),
            self.range,
        )?;
        let codes = chosen.nearest(weights.values());
        let report = QuantizationReport {
            method: self.name(),
            time: start.elapsed(),
            ..QuantizationReport::default()
        };
        Quantized::new(chosen.pack(weights, &codes)?, weights, statistics, report)
    }
}
