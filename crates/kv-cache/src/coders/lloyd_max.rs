//! Codebooks for the coordinates of randomly rotated vectors.
//!
//! A coordinate t of a random unit vector of d dimensions has the density ∝ (1 − t²)^((d−3)/2). The scalar
//! quantizer with the least mean squared error for it has its boundaries halfway between its levels, and its
//! levels at the means of their cells: here both are computed alternately until nothing changes.
//!
//! # Source
//! Max 1960, "Quantizing for minimum distortion"; Lloyd 1982, "Least squares quantization in PCM". The
//! density: Zandieh et al. 2025, "TurboQuant", arXiv 2504.19874, lemma 1.

use crate::{Error, Result};

/// Most bits of a codebook: its levels fit two registers of 16 numbers.
pub const MAX_CODEBOOK_BITS: u32 = 5;
/// Standard deviations from the center beyond which the density counts for nothing.
const REACH: f64 = 10.0;
/// Cells of the integrals over one level's cell.
const STEPS: usize = 64;
/// The most rounds; 5 bits take a few hundred.
const ROUNDS: usize = 4000;

/// The levels of a quantizer for coordinates of rotated vectors, scaled to the root mean square 1.
///
/// # Example
/// ```
/// use breakers_kv_cache::coders::Codebook;
///
/// let codebook = Codebook::new(128, 2)?;
/// assert_eq!(codebook.levels().len(), 4);
/// let code = codebook.encode(0.3);
/// assert!((codebook.levels()[code as usize] - 0.45).abs() < 0.01);
/// # Ok::<(), breakers_kv_cache::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    bits: u32,
    levels: Vec<f32>,
    boundaries: Vec<f32>,
    distortion: f64,
}

impl Codebook {
    /// The best codebook of 2^`bits` levels for vectors of `dim` elements.
    ///
    /// # Errors
    /// [`Error::BitWidth`] unless `bits` is 1 to [`MAX_CODEBOOK_BITS`]; [`Error::HeadWidth`]
    /// below 4 elements.
    pub fn new(dim: usize, bits: u32) -> Result<Self> {
        if !(1..=MAX_CODEBOOK_BITS).contains(&bits) {
            return Err(Error::BitWidth { what: "a codebook", expected: "1 to 5", found: f64::from(bits) });
        }
        if dim < 4 {
            return Err(Error::HeadWidth { expected: "4 or more elements", found: dim });
        }
        let density = Density::new(dim);
        let mut levels = density.first_levels(1 << bits);
        for _ in 0..ROUNDS {
            let (means, _) = density.means(&levels);
            let moved = means.iter().zip(&levels).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            levels = means;
            if moved < 1e-12 {
                break;
            }
        }
        let (_, masses) = density.means(&levels);
        // At the means of the cells, the error is the variance less that of the levels.
        let distortion =
            1.0 - levels.iter().zip(&masses).map(|(level, mass)| mass * level * level).sum::<f64>();
        let levels: Vec<f32> = levels.iter().map(|&level| level as f32).collect();
        let boundaries = levels.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
        Ok(Self { bits, levels, boundaries, distortion })
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The levels, ascending.
    pub fn levels(&self) -> &[f32] {
        &self.levels
    }

    /// Mean squared error of a coordinate, in units of its variance: `D_mse` of TurboQuant's theorem 1.
    pub fn distortion(&self) -> f64 {
        self.distortion
    }

    /// The code of the nearest level.
    #[inline]
    pub fn encode(&self, x: f32) -> u8 {
        self.boundaries.iter().map(|&boundary| u8::from(x > boundary)).sum()
    }
}

/// The density of a coordinate, times √dim.
struct Density {
    dim: f64,
    /// 1 over the integral of `value`.
    norm: f64,
    end: f64,
}

impl Density {
    fn new(dim: usize) -> Self {
        let dim = dim as f64;
        let mut density = Self { dim, norm: 1.0, end: REACH.min(dim.sqrt()) };
        let (cells, end) = (256, density.end);
        let mass: f64 = (0..cells)
            .map(|i| density.integrals(end * i as f64 / cells as f64, end * (i + 1) as f64 / cells as f64).0)
            .sum();
        density.norm = 0.5 / mass;
        density
    }

    fn value(&self, x: f64) -> f64 {
        self.norm * (1.0 - x * x / self.dim).max(0.0).powf(0.5 * (self.dim - 3.0))
    }

    /// Integrals of the density and of x times the density, by Simpson's rule.
    fn integrals(&self, from: f64, to: f64) -> (f64, f64) {
        let h = (to - from) / STEPS as f64;
        let (mut mass, mut moment) = (0.0, 0.0);
        for i in 0..=STEPS {
            let x = from + h * i as f64;
            let factor = if i == 0 || i == STEPS { 1.0 } else { 2.0 + 2.0 * (i % 2) as f64 };
            let value = factor * self.value(x);
            mass += value;
            moment += x * value;
        }
        (mass * h / 3.0, moment * h / 3.0)
    }

    /// Means and masses of the cells of symmetric levels.
    fn means(&self, levels: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let n = levels.len();
        let (mut means, mut masses) = (vec![0.0; n], vec![0.0; n]);
        for i in n / 2..n {
            let from = if i == n / 2 { 0.0 } else { 0.5 * (levels[i - 1] + levels[i]) };
            let to = if i + 1 == n { self.end } else { 0.5 * (levels[i] + levels[i + 1]) };
            let (mass, moment) = self.integrals(from, to);
            (means[i], masses[i]) = (moment / mass, mass);
            (means[n - 1 - i], masses[n - 1 - i]) = (-means[i], mass);
        }
        (means, masses)
    }

    /// Levels to begin with: dense where the density's cube root is (Panter and Dite 1951), which
    /// is where many levels end.
    fn first_levels(&self, n: usize) -> Vec<f64> {
        let cells = 8192;
        let at = |i: usize| -self.end + 2.0 * self.end * (i as f64 + 0.5) / cells as f64;
        let total: f64 = (0..cells).map(|i| self.value(at(i)).cbrt()).sum();
        let (mut sum, mut cell) = (0.0, 0);
        (0..n)
            .map(|level| {
                let target = total * (level as f64 + 0.5) / n as f64;
                while sum < target && cell < cells {
                    sum += self.value(at(cell)).cbrt();
                    cell += 1;
                }
                at(cell.saturating_sub(1))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distortion_is_that_of_the_table() {
        // Monte-Carlo figures for 128 dimensions, computed by other means.
        for (bits, expected) in [(1, 0.3609), (2, 0.1160), (3, 0.0340), (4, 0.009_31)] {
            let found = Codebook::new(128, bits).unwrap().distortion();
            assert!((found / expected - 1.0).abs() < 0.02, "{bits} bits: {found}");
        }
    }

    #[test]
    fn few_levels_are_known_exactly() {
        // One bit: the level is the mean of |t|·√d, which is Γ(d/2)·√(d/π)/Γ((d+1)/2); for d
        // = 8: 96·√8/(105π).
        let codebook = Codebook::new(8, 1).unwrap();
        let expected = 96.0 * 8f64.sqrt() / (105.0 * std::f64::consts::PI);
        assert!((f64::from(codebook.levels()[1]) - expected).abs() < 1e-4, "{:?}", codebook.levels());
        assert!((codebook.distortion() - (1.0 - expected * expected)).abs() < 1e-4);
        // The normal distribution's two-bit quantizer (Max 1960, table I), which many dimensions approach.
        let levels = Codebook::new(1 << 14, 2).unwrap().levels().to_vec();
        for (found, expected) in levels.iter().zip([-1.510, -0.4528, 0.4528, 1.510]) {
            assert!((found - expected).abs() < 2e-3, "{levels:?}");
        }
    }

    #[test]
    fn codes_are_those_of_the_nearest_level() {
        for bits in 1..=MAX_CODEBOOK_BITS {
            let codebook = Codebook::new(64, bits).unwrap();
            for i in -400..=400 {
                let x = i as f32 * 0.01 + 0.001;
                let nearest = |code: u8| (codebook.levels()[usize::from(code)] - x).abs();
                let code = codebook.encode(x);
                assert!((0..1u8 << bits).all(|other| nearest(code) <= nearest(other)), "{bits} bits, {x}");
            }
        }
    }

    #[test]
    fn impossible_codebooks_are_refused() {
        for bits in [0, 6, 99] {
            assert!(matches!(Codebook::new(64, bits), Err(Error::BitWidth { .. })));
        }
        assert_eq!(Codebook::new(3, 2), Err(Error::HeadWidth { expected: "4 or more elements", found: 3 }));
    }
}
