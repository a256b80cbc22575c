//! Seeded random numbers and matrices.

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1].
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Normal, by Box and Muller's method.
    pub(crate) fn normal(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }

    /// A random orthogonal matrix `[n, n]` by rows: normal numbers, made orthonormal row by row. Twice, since
    /// once leaves rounding errors that grow.
    pub(crate) fn orthogonal(&mut self, n: usize) -> Vec<f32> {
        let mut rows: Vec<f64> = (0..n * n).map(|_| f64::from(self.normal())).collect();
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_orthogonal() {
        let n = 48;
        let matrix = Random::new(3).orthogonal(n);
        for (i, a) in matrix.chunks_exact(n).enumerate() {
            for (j, b) in matrix.chunks_exact(n).enumerate() {
                let product: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                assert!((product - f32::from(u8::from(i == j))).abs() < 1e-5);
            }
        }
    }
}
