//! Reproducible random numbers, for seeds that must mean the same in every version.

/// The SplitMix64 generator: equal seeds give equal numbers on every machine and in every version.
///
/// # Example
/// ```
/// use breakers_cpu::random::SplitMix64;
///
/// let mut random = SplitMix64::new(42);
/// let (first, second) = (random.next(), random.next());
/// assert_ne!(first, second);
/// assert_eq!(first, SplitMix64::new(42).next());
/// ```
///
/// # Source
/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17, with the
/// mixing constants of Stafford's variant 13.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The generator that starts from this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    #[allow(clippy::should_implement_trait)] // An iterator would end.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in (0, 1], a multiple of 2⁻⁵³.
    pub fn next_unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and variance 1.
    ///
    /// # Source
    /// Box and Muller, "A note on the generation of random normal deviates", Ann. Math. Stat. 29 (1958).
    pub fn next_normal(&mut self) -> f32 {
        let radius = (-2.0 * self.next_unit().ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.next_unit()).cos()) as f32
    }

    /// A random orthogonal matrix: normal numbers, made orthonormal row by row. This is done twice, because
    /// rounding errors grow if it is done once.
    ///
    /// # Shapes
    /// Returns `[n, n]` by rows.
    ///
    /// # Example
    /// ```
    /// let matrix = breakers_cpu::random::SplitMix64::new(3).orthogonal(2);
    /// let product = matrix[0] * matrix[2] + matrix[1] * matrix[3];
    /// assert!(product.abs() < 1e-6);
    /// ```
    pub fn orthogonal(&mut self, n: usize) -> Vec<f32> {
        let mut rows: Vec<f64> = (0..n * n).map(|_| f64::from(self.next_normal())).collect();
        for i in 0..n {
            let (before, rest) = rows.split_at_mut(i * n);
            let row = &mut rest[..n];
            for _ in 0..2 {
                for other in before.chunks_exact(n) {
                    let product: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                    row.iter_mut().zip(other).for_each(|(a, b)| *a -= product * b);
                }
            }
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        }
        rows.into_iter().map(|x| x as f32).collect()
    }

    /// Uniform in [−1, 1), a multiple of 2⁻²³.
    pub fn next_symmetric(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_these_numbers_forever() {
        let mut random = SplitMix64::new(1_234_567);
        let first: Vec<_> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn normal_numbers_have_the_moments() {
        let mut random = SplitMix64::new(5);
        let numbers: Vec<f64> = (0..20_000).map(|_| f64::from(random.next_normal())).collect();
        let moment = |k| numbers.iter().map(|x| x.powi(k)).sum::<f64>() / 20_000.0;
        // Standard errors are 0.007, 0.01 and 0.07.
        assert!(moment(1).abs() < 0.035 && (moment(2) - 1.0).abs() < 0.05 && (moment(4) - 3.0).abs() < 0.35);
    }

    #[test]
    fn matrices_are_orthogonal() {
        let n = 48;
        let matrix = SplitMix64::new(3).orthogonal(n);
        for (i, a) in matrix.chunks_exact(n).enumerate() {
            for (j, b) in matrix.chunks_exact(n).enumerate() {
                let product: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                assert!((product - f32::from(u8::from(i == j))).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn symmetric_numbers_fill_their_interval() {
        let mut random = SplitMix64::new(7);
        let numbers: Vec<_> = (0..10_000).map(|_| random.next_symmetric()).collect();
        assert!(numbers.iter().all(|n| (-1.0..1.0).contains(n)));
        let mean = numbers.iter().sum::<f32>() / 10_000.0;
        let variance = numbers.iter().map(|n| n * n).sum::<f32>() / 10_000.0;
        // Standard errors are 0.006 and 0.003.
        assert!(mean.abs() < 0.03 && (variance - 1.0 / 3.0).abs() < 0.015, "{mean} {variance}");
    }
}
