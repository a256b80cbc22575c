//! What "near" means, and which vectors may be compared.

use crate::{Error, Result, distance};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The largest dimension of a vector.
pub const MAX_DIMENSION: usize = 32_768;

/// The numbers of a vector must be smaller than this: sums of their squares then stay finite in 32 bits.
pub const MAX_MAGNITUDE: f32 = 1e15;

/// What "near" means. All metrics are expressed as distances: the smallest is the nearest.
///
/// # Example
/// ```
/// use breakers_retrieval::Metric;
///
/// let (a, b) = ([1.0, 0.0], [0.0, 1.0]);
/// assert_eq!(Metric::L2.distance(&a, &b), 2.0);
/// // All metrics are distances: the smaller, the nearer.
/// assert_eq!(Metric::Dot.distance(&a, &a), -1.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Metric {
    /// One minus the cosine of the angle: 0 for the same direction, 2 for opposite ones.
    Cosine,
    /// The negative inner product.
    Dot,
    /// The squared Euclidean distance.
    L2,
}

impl Metric {
    /// Every metric, for tests and reports.
    pub const ALL: [Self; 3] = [Self::Cosine, Self::Dot, Self::L2];

    /// The name in reports and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Dot => "dot",
            Self::L2 => "l2",
        }
    }

    /// The distance of two vectors that are [prepared](Self::prepare).
    ///
    /// # Shapes
    /// - `a`, `b`: `[dimension]`
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn distance(self, a: &[f32], b: &[f32]) -> f32 {
        match self {
            // Prepared vectors have length 1 only up to rounding.
            Self::Cosine => (1.0 - distance::dot(a, b)).clamp(0.0, 2.0),
            Self::Dot => -distance::dot(a, b),
            Self::L2 => distance::l2(a, b),
        }
    }

    /// Checks a vector and brings it into the form that distances need: length 1 for [`Metric::Cosine`].
    ///
    /// # Errors
    /// [`Error::NotFinite`]; [`Error::ZeroVector`] for cosine.
    pub fn prepare(self, what: &'static str, vector: &mut [f32]) -> Result<()> {
        check_finite(what, vector)?;
        if self == Self::Cosine {
            // In 64 bits, so that tiny vectors keep their direction.
            let squares = distance::length_squared(vector);
            if squares == 0.0 {
                return Err(Error::ZeroVector { what });
            }
            let factor = 1.0 / squares.sqrt();
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
        }
        Ok(())
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// # Errors
/// [`Error::DimensionRange`].
pub(crate) fn check_dimension(dimension: usize) -> Result<()> {
    if (1..=MAX_DIMENSION).contains(&dimension) {
        Ok(())
    } else {
        Err(Error::DimensionRange { found: dimension, max: MAX_DIMENSION })
    }
}

/// # Errors
/// [`Error::NotFinite`].
pub(crate) fn check_finite(what: &'static str, vector: &[f32]) -> Result<()> {
    match vector.iter().position(|x| x.is_nan() || x.abs() >= MAX_MAGNITUDE) {
        None => Ok(()),
        Some(index) => Err(Error::NotFinite { what, index, value: vector[index], max: MAX_MAGNITUDE }),
    }
}

/// # Errors
/// [`Error::Dimension`].
pub(crate) fn check_length(what: &'static str, vector: &[f32], dimension: usize) -> Result<()> {
    if vector.len() == dimension {
        Ok(())
    } else {
        Err(Error::Dimension { what, expected: dimension, found: vector.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_distances_are_within_0_and_2() {
        for n in 1..400usize {
            let mut a: Vec<f32> = (0..n).map(|i| ((i * n) as f32).sin() + 0.1).collect();
            Metric::Cosine.prepare("a", &mut a).unwrap();
            let b: Vec<f32> = a.iter().map(|x| -x).collect();
            let (same, opposite) = (Metric::Cosine.distance(&a, &a), Metric::Cosine.distance(&a, &b));
            assert!(
                (0.0..1e-6).contains(&same) && (2.0 - 1e-6..=2.0).contains(&opposite),
                "{n}: {same}, {opposite}"
            );
        }
    }
}
