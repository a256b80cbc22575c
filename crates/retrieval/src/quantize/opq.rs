//! Optimized product quantization: the rotation that gives product codes the smallest error.
//!
//! The codewords of the parts and the rotation are learned alternately. With rows X, R the rotation and Y
//! what the codes of X·R stand for, the best rotation for these codes minimizes ‖X·R − Y‖: it is U·Vᵀ of the
//! singular value decomposition U·S·Vᵀ of Xᵀ·Y, its polar factor, which an iteration of matrix products
//! finds.
//!
//! # Memory
//! One byte for each part, and 4 · dimension² bytes for the rotation.
//!
//! # Source
//! Ge, He, Ke and Sun, "Optimized product quantization", IEEE TPAMI 36 (2014), section 3.1 (the
//! non-parametric solution). The polar factor: Higham, "Functions of Matrices" (2008), section 8.3 (Newton
//! and Schulz). Deviations: codewords are learned anew each turn; a little of the last rotation is added to
//! Xᵀ·Y, which keeps directions in which the rows do not vary as they are.

use super::pq::ProductQuantizer;
use crate::{Error, Result};
use breakers_cpu::{self as cpu, per_isa};

/// The most rows that a rotation is learned from.
const SAMPLE: usize = 1 << 14;
/// Steps towards the polar factor at most; each brings small singular values closer to 1 by a factor of 1.5.
const STEPS: usize = 60;
/// The share of the last rotation in the matrix whose polar factor becomes the next rotation.
const INERTIA: f32 = 1e-4;
/// How far the rows of a rotation may be from orthonormal.
const TOLERANCE: f32 = 1e-4;

/// Product codes of rotated vectors.
#[derive(Debug, Clone)]
pub struct OptimizedProductQuantizer {
    dimension: usize,
    /// `[dimension, dimension]`; x is rotated into x·R. `None` stands for no rotation.
    rotation: Option<Vec<f32>>,
    quantizer: ProductQuantizer,
}

impl OptimizedProductQuantizer {
    /// Learns a rotation in `turns` rounds, and codebooks of `n_parts` parts, from rows `[n, dimension]`.
    /// Without rounds it is a [`ProductQuantizer`].
    ///
    /// # Errors
    /// [`Error::Parameter`] unless the parts divide the dimension and there is a row.
    pub fn train(rows: &[f32], dimension: usize, n_parts: usize, turns: usize, seed: u64) -> Result<Self> {
        if turns == 0 {
            let quantizer = ProductQuantizer::train(rows, dimension, n_parts, seed)?;
            return Ok(Self { dimension, rotation: None, quantizer });
        }
        if dimension == 0 || rows.len() < dimension {
            return Err(Error::parameter("rows to learn from", "at least one", 0));
        }
        let n = rows.len() / dimension;
        let sample: Vec<f32> =
            rows.chunks_exact(dimension).step_by(n.div_ceil(SAMPLE)).flatten().copied().collect();
        let mut rotation = identity(dimension);
        let mut rotated = sample.clone();
        let mut quantizer = ProductQuantizer::train(&rotated, dimension, n_parts, seed)?;
        for _ in 0..turns {
            // Xᵀ·Y, a row at a time.
            let mut products = vec![0.0; dimension * dimension];
            for (x, turned) in sample.chunks_exact(dimension).zip(rotated.chunks_exact(dimension)) {
                let y = quantizer.decode(&quantizer.encode(turned));
                add_outer(&mut products, x, &y);
            }
            let Some(next) = polar(&products, &rotation, dimension) else { break };
            rotation = next;
            for (x, out) in sample.chunks_exact(dimension).zip(rotated.chunks_exact_mut(dimension)) {
                product(x, &rotation, out);
            }
            quantizer = ProductQuantizer::train(&rotated, dimension, n_parts, seed)?;
        }
        Ok(Self { dimension, rotation: Some(rotation), quantizer })
    }

    /// Bytes of a code.
    pub fn n_parts(&self) -> usize {
        self.quantizer.n_parts()
    }

    /// The code of a vector.
    ///
    /// # Shapes
    /// - `vector`: `[dimension]`
    pub fn encode(&self, vector: &[f32]) -> Vec<u8> {
        self.quantizer.encode(&self.rotate(vector))
    }

    /// The vector that a code stands for.
    pub fn decode(&self, code: &[u8]) -> Vec<f32> {
        let turned = self.quantizer.decode(code);
        match &self.rotation {
            None => turned,
            // R is orthogonal: x = y·Rᵀ.
            Some(rotation) => {
                rotation.chunks_exact(self.dimension).map(|row| crate::distance::dot(row, &turned)).collect()
            }
        }
    }

    /// The inner products of a query with all codewords, as [`ProductQuantizer::table`].
    pub fn table(&self, query: &[f32]) -> Vec<f32> {
        self.quantizer.table(&self.rotate(query))
    }

    fn rotate(&self, vector: &[f32]) -> Vec<f32> {
        let mut out = vector.to_vec();
        if let Some(rotation) = &self.rotation {
            product(vector, rotation, &mut out);
        }
        out
    }
}

fn identity(n: usize) -> Vec<f32> {
    (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect()
}

/// `out = row · matrix`, `[n] · [n, m]`.
fn product(row: &[f32], matrix: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    let m = out.len();
    per_isa!(cpu::isa(), || for (&x, values) in row.iter().zip(matrix.chunks_exact(m)) {
        out.iter_mut().zip(values).for_each(|(sum, &value)| *sum = x.mul_add(value, *sum));
    });
}

/// `matrix += aᵀ · b`.
fn add_outer(matrix: &mut [f32], a: &[f32], b: &[f32]) {
    per_isa!(cpu::isa(), || for (&x, row) in a.iter().zip(matrix.chunks_exact_mut(b.len())) {
        row.iter_mut().zip(b).for_each(|(sum, &y)| *sum = x.mul_add(y, *sum));
    });
}

/// The orthogonal matrix nearest to a square one, if the steps converge.
fn polar(matrix: &[f32], last: &[f32], n: usize) -> Option<Vec<f32>> {
    let length = |matrix: &[f32]| matrix.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let size = length(matrix);
    if size.is_nan() || size <= 0.0 {
        return None;
    }
    // The Frobenius norm bounds the singular values: all begin below 1, where the steps converge.
    let (scale, inertia) = ((1.0 / size) as f32, INERTIA / (n as f32).sqrt());
    let mut now: Vec<f32> = matrix.iter().zip(last).map(|(x, r)| x * scale + inertia * r).collect();
    let scale = (1.0 / length(&now)) as f32;
    now.iter_mut().for_each(|x| *x *= scale);
    let (mut square, mut next) = (vec![0.0; n * n], vec![0.0; n * n]);
    for _ in 0..STEPS {
        square.fill(0.0);
        now.chunks_exact(n).for_each(|row| add_outer(&mut square, row, row));
        let off = |(i, x): (usize, &f32)| (x - if i / n == i % n { 1.0 } else { 0.0 }).abs();
        if square.iter().enumerate().map(off).fold(0.0, f32::max) < TOLERANCE {
            return Some(now);
        }
        // X ← X·(3 − XᵀX) / 2
        for (i, x) in square.iter_mut().enumerate() {
            *x = (if i / n == i % n { 1.5 } else { 0.0 }) - 0.5 * *x;
        }
        for (row, out) in now.chunks_exact(n).zip(next.chunks_exact_mut(n)) {
            product(row, &square, out);
        }
        std::mem::swap(&mut now, &mut next);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{distance, quantize::table_product};
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    fn gaussian(random: &mut StdRng) -> f32 {
        (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0
    }

    /// Gram–Schmidt of random rows: an orthogonal matrix that the code under test had no part in.
    fn orthogonal(random: &mut StdRng, n: usize) -> Vec<f32> {
        let mut rows: Vec<Vec<f32>> = Vec::new();
        while rows.len() < n {
            let mut row: Vec<f32> = (0..n).map(|_| gaussian(random)).collect();
            for other in &rows {
                let along = distance::dot(&row, other);
                row.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
            }
            let length = distance::norm_squared(&row).sqrt();
            rows.push(row.iter().map(|x| x / length).collect());
        }
        rows.concat()
    }

    fn error(rows: &[f32], dimension: usize, n_parts: usize, turns: usize) -> f32 {
        let q = OptimizedProductQuantizer::train(rows, dimension, n_parts, turns, 1).unwrap();
        let rows = rows.chunks_exact(dimension);
        let n = rows.len() as f32;
        rows.map(|row| distance::l2(row, &q.decode(&q.encode(row)))).sum::<f32>() / n
    }

    /// Rows whose parts are independent, with as much variance in each: no rotation of a Gaussian is better
    /// for product codes (Ge et al., section 3.2). Rotated away from it, product codes are as bad as any.
    #[test]
    fn a_learned_rotation_loses_less_than_none_and_no_less_than_the_best() {
        let (dimension, n_parts, n) = (16, 4, 3000);
        let mut random = StdRng::seed_from_u64(9);
        let deviations = [1.0, 0.5, 0.1, 0.05];
        let best: Vec<f32> = (0..n * dimension).map(|i| deviations[i % 4] * gaussian(&mut random)).collect();
        let hidden = orthogonal(&mut random, dimension);
        let mut rows = vec![0.0; best.len()];
        for (x, out) in best.chunks_exact(dimension).zip(rows.chunks_exact_mut(dimension)) {
            product(x, &hidden, out);
        }
        let [oracle, plain, learned] =
            [(&best, 0), (&rows, 0), (&rows, 12)].map(|(rows, turns)| error(rows, dimension, n_parts, turns));
        assert!(learned < 0.6 * plain && learned > 0.9 * oracle, "{oracle} {plain} {learned}");
    }

    #[test]
    fn rotations_are_orthogonal_and_tables_give_products() {
        let (dimension, n) = (12, 600);
        let mut random = StdRng::seed_from_u64(10);
        // The last four coordinates do not vary at all.
        let row = |random: &mut StdRng| -> Vec<f32> {
            let x = gaussian(random);
            (0..dimension).map(|i| if i < 8 { x * i as f32 + gaussian(random) } else { 0.0 }).collect()
        };
        let rows: Vec<f32> = (0..n).flat_map(|_| row(&mut random)).collect();
        let q = OptimizedProductQuantizer::train(&rows, dimension, 3, 3, 2).unwrap();
        let rotation = q.rotation.as_ref().unwrap();
        for (i, a) in rotation.chunks_exact(dimension).enumerate() {
            for (j, b) in rotation.chunks_exact(dimension).enumerate() {
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((distance::dot(a, b) - expected).abs() < 1e-3, "rows {i} and {j}");
            }
        }
        let query = &rows[..dimension];
        for row in rows.chunks_exact(dimension).take(20) {
            let code = q.encode(row);
            let expected = distance::dot(query, &q.decode(&code));
            assert!((table_product(&q.table(query), &code) - expected).abs() < 1e-2 * (1.0 + expected.abs()));
        }
    }

    #[test]
    fn what_cannot_be_learned_from_is_refused() {
        for (rows, n_parts) in [(&[][..], 1), (&[1.0; 6][..], 4), (&[1.0; 6][..], 0)] {
            assert!(OptimizedProductQuantizer::train(rows, 6, n_parts, 2, 0).is_err());
        }
        // Rows that do not vary, and rows of zeros.
        for x in [0.0, 3.0] {
            let q = OptimizedProductQuantizer::train(&[x; 24], 6, 2, 2, 0).unwrap();
            assert!(distance::l2(&q.decode(&q.encode(&[x; 6])), &[x; 6]) < 1e-6);
        }
    }
}
