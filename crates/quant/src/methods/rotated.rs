//! A rotation of the inputs before another method: incoherence processing.
//!
//! # Source
//! Chee et al., "QuIP", arXiv 2307.13304, section 4; with Hadamard matrices: Tseng et al., "QuIP#", arXiv
//! 2402.04396, section 3, and Ashkboos et al., "QuaRot", arXiv 2404.00456, section 3. Inputs alone are
//! rotated here; rotations of the outputs are folded into the matrices that read them, if a model allows it.

use crate::{
    Result,
    quantizer::{Quantized, Quantizer, WeightMatrix},
    statistics::{Statistics, StatisticsConfig},
};
use breakers_cpu::hadamard::Rotation;
use breakers_gguf::Encoding;

/// Rotates the space of the inputs and quantizes there; the inputs are then rotated before each product.
///
/// Every weight becomes a mixture of its row, close to normally distributed: there are no outliers among
/// weights or inputs anymore.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotated<Q> {
    inner: Q,
    seed: u64,
}

impl<Q: Quantizer> Rotated<Q> {
    /// The other method after a random Hadamard rotation.
    pub fn new(inner: Q, seed: u64) -> Self {
        Self { inner, seed }
    }
}

impl<Q: Quantizer> Quantizer for Rotated<Q> {
    fn name(&self) -> String {
        format!("rotated-{}", self.inner.name())
    }

    fn needs(&self) -> Option<StatisticsConfig> {
        self.inner.needs()
    }

    fn check(&self, encoding: Encoding) -> Result<()> {
        self.inner.check(encoding)
    }

    fn quantize(
        &self,
        weights: &WeightMatrix<'_>,
        encoding: Encoding,
        statistics: Option<&Statistics>,
    ) -> Result<Quantized> {
        weights.check(statistics)?;
        let rotation = Rotation::random(weights.n_cols(), self.seed)?;
        let rotate = |rows: &mut [f32]| Ok(rotation.forward(rows)?);
        let mut values = weights.values().to_vec();
        rotate(&mut values)?;
        let statistics = statistics.map(|s| s.transformed(rotate)).transpose()?;
        let rotated = WeightMatrix::new(&values, weights.n_rows(), weights.n_cols())?;
        let quantized = self.inner.quantize(&rotated, encoding, statistics.as_ref())?;
        // Errors are the same on both sides of a rotation, so that the report stays true.
        let mut report = quantized.report;
        report.method = format!("rotated {}", report.method);
        Ok(Quantized { matrix: quantized.matrix.of_rotated_inputs(self.seed)?, report })
    }
}
