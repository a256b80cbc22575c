//! Changes of basis that preserve a model's function: rotated hidden states, scaled channels.

use breakers_cpu::{hadamard::Rotation, matrix::transposed};

use crate::Error;
use crate::statistics::Statistics;

/// Norm weights below this share of the largest are not divided by.
const SMALLEST_NORM: f32 = 1e-6;

/// A rotation of the hidden states. RMS norms commute with it once their weights are ones, so the weights are
/// moved into the matrices that read the normalized states.
pub(super) struct HiddenRotation {
    pub(super) rotation: Rotation,
}

impl HiddenRotation {
    pub(super) fn new(width: usize, seed: u64) -> Result<Self, Error> {
        Ok(Self { rotation: Rotation::random(width, seed)? })
    }

    /// A matrix `[out, width]` that reads states normed with these weights.
    pub(super) fn reader(&self, values: &mut [f32], norm: &[f32]) -> Result<(), Error> {
        for row in values.chunks_exact_mut(norm.len()) {
            row.iter_mut().zip(norm).for_each(|(x, weight)| *x *= weight);
        }
        self.rows(values)
    }

    /// Rows of hidden states, such as embeddings.
    pub(super) fn rows(&self, values: &mut [f32]) -> Result<(), Error> {
        Ok(self.rotation.forward(values)?)
    }

    /// A matrix `[width, in]` that adds to the states.
    pub(super) fn writer(&self, values: &mut [f32], n_cols: usize) -> Result<(), Error> {
        let width = self.rotation.len();
        let mut columns = transposed(values, n_cols);
        self.rows(&mut columns)?;
        values.copy_from_slice(&transposed(&columns, width));
        Ok(())
    }

    /// Statistics of normed states as the rotated model has them.
    pub(super) fn statistics(&self, statistics: &Statistics, norm: &[f32]) -> Result<Statistics, Error> {
        let largest = norm.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        if let Some(at) = norm.iter().position(|x| x.abs() <= SMALLEST_NORM * largest) {
            let reason = format!("a norm has the weight {} at {at}, which cannot be divided by", norm[at]);
            return Err(Error::Unfoldable { reason });
        }
        statistics.transformed(|rows| {
            for row in rows.chunks_exact_mut(norm.len()) {
                row.iter_mut().zip(norm).for_each(|(x, weight)| *x /= weight);
            }
            Ok(self.rotation.forward(rows)?)
        })
    }
}

/// Multiplies the columns of `[out, in]`.
pub(super) fn scale_columns(values: &mut [f32], factors: &[f32]) {
    for row in values.chunks_exact_mut(factors.len()) {
        row.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
    }
}

/// Divides the rows of `[out, in]`.
pub(super) fn divide_rows(values: &mut [f32], divisors: &[f32], n_cols: usize) {
    for (row, divisor) in values.chunks_exact_mut(n_cols).zip(divisors) {
        row.iter_mut().for_each(|x| *x /= divisor);
    }
}
