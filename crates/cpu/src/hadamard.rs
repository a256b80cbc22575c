//! Orthonormal Walsh–Hadamard rotations, also for lengths that are not powers of two.
//!
//! A rotation spreads every coordinate of a vector evenly over all of them, so that outliers disappear before
//! the vector is quantized. For a length n = m·2ᵏ it is (M ⊗ H)·D / √n: random signs D, the fast
//! Walsh–Hadamard transform H over the power of two, and a small dense matrix M over the rest. M is a
//! Hadamard matrix wherever one of the two Paley constructions gives one of four times the odd part of n, so
//! that all entries of the rotation have the same size (576 = 36·16, 640 = 20·32, 896 = 28·32). For other
//! lengths it is a cosine transform, which is orthonormal too but spreads less evenly.
//!
//! # Cost
//! n·(m + k) additions, in chunks that vectorize. The order of operations is fixed, so every instruction set
//! gives the same bits.
//!
//! # Source
//! Signs and Walsh–Hadamard: Ailon and Chazelle, "The fast Johnson–Lindenstrauss transform", SIAM J. Comput.
//! 39 (2009), section 2. Small matrices: Paley, "On orthogonal matrices", J. Math. Phys. 12 (1933). Odd
//! factors by Kronecker products: Ashkboos et al., "QuaRot", arXiv 2404.00456, section 3.
//!
//! # Example
//! ```
//! use breakers_cpu::hadamard::Rotation;
//!
//! let rotation = Rotation::random(640, 42).unwrap();
//! let mut vector = vec![0.0; 640];
//! vector[3] = 8.0;
//! rotation.forward(&mut vector).unwrap();
//! assert!(vector.iter().all(|x| (x.abs() - 8.0 / 640f32.sqrt()).abs() < 1e-5));
//! rotation.inverse(&mut vector).unwrap();
//! assert!((vector[3] - 8.0).abs() < 1e-5);
//! ```

use crate::{self as cpu, Error, Isa, Result, per_isa, pool, random::SplitMix64};

/// The largest odd factor of a length: beyond it the dense part would be too slow to be useful.
pub const MAX_ODD_FACTOR: usize = 1023;
/// Columns that the dense matrix processes at a time, and coordinates that the first butterflies process.
const LANES: usize = 16;
/// With fewer elements than this, over all rows, the calling thread works alone.
const MIN_PARALLEL: usize = 16 * 1024;

/// An orthonormal rotation of vectors of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    len: usize,
    /// Order of the dense matrix M; the rest of `len` is a power of two.
    order: usize,
    /// M, and M transposed, by rows; empty if `order` is 1.
    dense: [Vec<f32>; 2],
    /// One factor for each input coordinate; empty stands for ones.
    signs: Vec<f32>,
    scale: f32,
}

impl Rotation {
    /// The rotation without random signs.
    ///
    /// # Errors
    /// [`Error::RotationLength`] for 0 and for lengths whose odd factor is above [`MAX_ODD_FACTOR`].
    pub fn new(len: usize) -> Result<Self> {
        let odd = if len == 0 { 0 } else { len >> len.trailing_zeros() };
        if !(1..=MAX_ODD_FACTOR).contains(&odd) {
            return Err(Error::RotationLength { len, odd_factor: odd, max_odd_factor: MAX_ODD_FACTOR });
        }
        let paley = if odd > 1 && len.is_multiple_of(4) { hadamard_of_four_times(odd) } else { None };
        let (order, matrix, squared_norm) = match paley {
            Some(matrix) => (4 * odd, matrix, len),
            None if odd > 1 => (odd, cosine_matrix(odd), len / odd),
            None => (1, Vec::new(), len),
        };
        let transposed = (0..matrix.len()).map(|i| matrix[i % order * order + i / order]).collect();
        let scale = (1.0 / (squared_norm as f64).sqrt()) as f32;
        Ok(Self { len, order, dense: [matrix, transposed], signs: Vec::new(), scale })
    }

    /// The rotation applied after a multiplication by random signs, which depend on `seed` alone.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn random(len: usize, seed: u64) -> Result<Self> {
        let rotation = Self::new(len)?;
        let mut random = SplitMix64::new(seed);
        let signs = (0..len).map(|_| if random.next() >> 63 == 0 { 1.0 } else { -1.0 }).collect();
        Ok(Self { signs, ..rotation })
    }

    /// Length of the vectors.
    #[allow(clippy::len_without_is_empty)] // It is never 0.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Rotates one or several vectors, one after the other in `rows`, in place.
    ///
    /// # Shapes
    /// - `rows`: `[n_rows, len]`
    ///
    /// # Errors
    /// [`Error::Length`] if `rows` is not a multiple of the length.
    pub fn forward(&self, rows: &mut [f32]) -> Result<()> {
        let isa = self.isa();
        self.in_parallel(rows, |rows, scratch| per_isa!(isa, || self.forward_rows(rows, scratch)))
    }

    /// Undoes [`forward`](Self::forward).
    ///
    /// # Shapes
    /// - `rows`: `[n_rows, len]`
    ///
    /// # Errors
    /// [`Error::Length`] if `rows` is not a multiple of the length.
    pub fn inverse(&self, rows: &mut [f32]) -> Result<()> {
        let isa = self.isa();
        self.in_parallel(rows, |rows, scratch| per_isa!(isa, || self.inverse_rows(rows, scratch)))
    }

    /// The rotation in parts, for devices that have no butterflies: a factor for each coordinate, and small
    /// matrices. View the coordinates as an array whose last axis has the length of the first matrix, the
    /// axis before it the length of the second, and so on. The rotation multiplies by the factors, and then
    /// each axis by its matrix.
    ///
    /// # Shapes
    /// The factors: `[len]`; each matrix `[n, n]` by rows, the product of all n is `len`.
    pub fn parts(&self) -> (Vec<f32>, Vec<Vec<f32>>) {
        /// The most bits of an axis: more would mean more multiplications, fewer would mean more passes.
        const AXIS_BITS: u32 = 5;
        let signs = if self.signs.is_empty() { vec![1.0; self.len] } else { self.signs.clone() };
        let factors = signs.into_iter().map(|sign| sign * self.scale).collect();
        let bits = (self.len / self.order).trailing_zeros();
        let n_axes = bits.div_ceil(AXIS_BITS);
        let mut matrices: Vec<Vec<f32>> = (0..n_axes)
            .map(|axis| {
                let n = 1usize << ((bits + axis) / n_axes);
                by_entries(n, |row, column| if (row & column).count_ones() % 2 == 0 { 1.0 } else { -1.0 })
            })
            .collect();
        if self.order > 1 || matrices.is_empty() {
            matrices.push(if self.order > 1 { self.dense[0].clone() } else { vec![1.0] });
        }
        (factors, matrices)
    }

    /// The instruction set to use. A rotation of butterflies alone is faster without AVX-512, for which the
    /// compiler would emit gathers.
    fn isa(&self) -> Isa {
        match cpu::isa() {
            Isa::Avx512 if self.order == 1 => Isa::Avx2,
            isa => isa,
        }
    }

    /// Calls `rotate` with whole rows and scratch memory for [`mix`](Self::mix): with all rows at once, or
    /// with parts from several threads.
    fn in_parallel(&self, rows: &mut [f32], rotate: impl Fn(&mut [f32], &mut [f32]) + Sync) -> Result<()> {
        if !rows.len().is_multiple_of(self.len) {
            let expected = rows.len().next_multiple_of(self.len);
            return Err(Error::Length { what: "the rows of a rotation", expected, found: rows.len() });
        }
        let scratch = || vec![0.0; if self.order > 1 { self.order * LANES } else { 0 }];
        if rows.len() < MIN_PARALLEL {
            rotate(rows, &mut scratch());
        } else {
            let rows_per_task = MIN_PARALLEL.div_ceil(4 * self.len);
            pool::parallel_chunks_mut(rows, rows_per_task * self.len, |_, rows| rotate(rows, &mut scratch()));
        }
        Ok(())
    }

    #[inline(always)]
    fn forward_rows(&self, rows: &mut [f32], scratch: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.len) {
            self.multiply_signs(row);
            walsh_hadamard(row, self.len / self.order);
            self.mix(0, row, scratch);
            row.iter_mut().for_each(|x| *x *= self.scale);
        }
    }

    #[inline(always)]
    fn inverse_rows(&self, rows: &mut [f32], scratch: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.len) {
            self.mix(1, row, scratch);
            walsh_hadamard(row, self.len / self.order);
            row.iter_mut().for_each(|x| *x *= self.scale);
            self.multiply_signs(row);
        }
    }

    #[inline(always)]
    fn multiply_signs(&self, row: &mut [f32]) {
        row.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
    }

    /// Multiplies the row, seen as a matrix [order, len / order], by M (`which` 0) or its transpose (1).
    #[inline(always)]
    fn mix(&self, which: usize, row: &mut [f32], scratch: &mut [f32]) {
        if self.order == 1 {
            return;
        }
        let n_columns = self.len / self.order;
        let (columns, _) = scratch.as_chunks_mut::<LANES>();
        for start in (0..n_columns).step_by(LANES) {
            let n = LANES.min(n_columns - start);
            for (i, lanes) in columns.iter_mut().enumerate() {
                lanes[..n].copy_from_slice(&row[i * n_columns + start..][..n]);
            }
            for (i, weights) in self.dense[which].chunks_exact(self.order).enumerate() {
                let mut sum = [0.0f32; LANES];
                for (weight, lanes) in weights.iter().zip(&*columns) {
                    for lane in 0..LANES {
                        sum[lane] = weight.mul_add(lanes[lane], sum[lane]);
                    }
                }
                row[i * n_columns + start..][..n].copy_from_slice(&sum[..n]);
            }
        }
    }
}

/// The unscaled Walsh–Hadamard transform of each block of `block` values, a power of two.
#[inline(always)]
fn walsh_hadamard(values: &mut [f32], block: usize) {
    let mut half = 1;
    if block >= LANES {
        for lanes in values.as_chunks_mut::<LANES>().0 {
            *lanes = butterfly::<8>(butterfly::<4>(butterfly::<2>(butterfly::<1>(*lanes))));
        }
        half = LANES;
    }
    while half < block {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// Replaces each pair of lanes at the given distance by its sum and its difference.
#[inline(always)]
fn butterfly<const DISTANCE: usize>(lanes: [f32; LANES]) -> [f32; LANES] {
    // A product with ±1 is exact, so this rounds as a sum or a difference does, in one form for all lanes.
    std::array::from_fn(|i| {
        let sign = if i & DISTANCE == 0 { 1.0f32 } else { -1.0 };
        lanes[i ^ DISTANCE] + sign * lanes[i]
    })
}

/// A Hadamard matrix of order 4·`odd`, by rows, where one of Paley's constructions over a
/// prime field has one.
fn hadamard_of_four_times(odd: usize) -> Option<Vec<f32>> {
    let order = 4 * odd;
    if is_prime(order - 1) {
        let core = jacobsthal(order - 1);
        return Some(by_entries(order, |row, column| match (row, column) {
            (0, _) => 1.0,
            (_, 0) => -1.0,
            _ if row == column => 1.0,
            _ => core(row - 1, column - 1),
        }));
    }
    // The first construction needs a prime ≡ 3 (mod 4), this one a prime ≡ 1; 2·odd − 1 is always ≡ 1.
    let prime = 2 * odd - 1;
    if !is_prime(prime) {
        return None;
    }
    let core = jacobsthal(prime);
    let conference = move |row: usize, column: usize| match (row, column) {
        _ if row == column => 0.0,
        (0, _) | (_, 0) => 1.0,
        _ => core(row - 1, column - 1),
    };
    Some(by_entries(order, |row, column| {
        let (off_diagonal, diagonal) = match (row % 2, column % 2) {
            (0, 0) => (1.0, 1.0),
            (1, 1) => (-1.0, -1.0),
            _ => (1.0, -1.0),
        };
        if row / 2 == column / 2 { diagonal } else { conference(row / 2, column / 2) * off_diagonal }
    }))
}

/// The orthonormal cosine transform (DCT-II), by rows.
fn cosine_matrix(order: usize) -> Vec<f32> {
    let n = order as f64;
    by_entries(order, |row, column| {
        let norm = if row == 0 { 1.0 / n } else { 2.0 / n }.sqrt();
        let angle = std::f64::consts::PI * row as f64 * (2.0 * column as f64 + 1.0) / (2.0 * n);
        (norm * angle.cos()) as f32
    })
}

fn by_entries(order: usize, entry: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    (0..order * order).map(|i| entry(i / order, i % order)).collect()
}

/// χ(row − column), where χ is the quadratic character of the integers modulo `prime`.
fn jacobsthal(prime: usize) -> impl Fn(usize, usize) -> f32 {
    let mut character = vec![-1.0; prime];
    character[0] = 0.0;
    (1..prime).for_each(|x| character[x * x % prime] = 1.0);
    move |row, column| character[(row + prime - column) % prime]
}

fn is_prime(n: usize) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LENGTHS: [usize; 26] = [
        1, 2, 3, 4, 5, 6, 8, 12, 15, 16, 20, 24, 36, 44, 60, 64, 68, 96, 128, 144, 256, 512, 576, 640, 896,
        1536,
    ];

    /// The rotation's matrix by columns: the images of the unit vectors.
    fn images(rotation: &Rotation) -> Vec<f32> {
        let len = rotation.len();
        let mut images = by_entries(len, |row, column| f32::from(row == column));
        rotation.forward(&mut images).unwrap();
        images
    }

    fn random_vector(len: usize, seed: u64) -> Vec<f32> {
        let mut random = SplitMix64::new(seed);
        (0..len).map(|_| random.next_symmetric()).collect()
    }

    #[test]
    fn rotations_are_orthonormal() {
        for len in LENGTHS {
            for rotation in [Rotation::new(len).unwrap(), Rotation::random(len, 5).unwrap()] {
                let images = images(&rotation);
                let rows: Vec<_> = images.chunks_exact(len).collect();
                for (i, a) in rows.iter().enumerate().step_by(1 + len / 64) {
                    for (j, b) in rows.iter().enumerate() {
                        let product: f64 = a.iter().zip(*b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                        assert!((product - f64::from(i == j)).abs() < 2e-6, "{len}: {i}·{j} = {product}");
                    }
                }
            }
        }
    }

    #[test]
    fn parts_make_the_whole() {
        for len in LENGTHS.into_iter().chain([8960]) {
            let rotation = Rotation::random(len, 11).unwrap();
            let (factors, matrices) = rotation.parts();
            let vector = random_vector(len, 4);
            let mut found: Vec<f64> = vector.iter().zip(&factors).map(|(x, f)| f64::from(x * f)).collect();
            let mut stride = 1;
            for matrix in &matrices {
                let n = matrix.len().isqrt();
                let before = found.clone();
                for (at, out) in found.iter_mut().enumerate() {
                    let (row, first) = (at / stride % n, at - at / stride % n * stride);
                    let terms = (0..n).map(|i| f64::from(matrix[row * n + i]) * before[first + i * stride]);
                    *out = terms.sum();
                }
                stride *= n;
            }
            assert_eq!(stride, len);
            let mut expected = vector;
            rotation.forward(&mut expected).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - f64::from(*expected)).abs() < 1e-5, "{len}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn entries_are_equally_large_where_a_hadamard_matrix_exists() {
        for len in [1, 2, 4, 12, 20, 24, 28, 36, 44, 60, 128, 576, 640, 896, 1536] {
            let expected = 1.0 / (len as f32).sqrt();
            let images = images(&Rotation::random(len, 9).unwrap());
            assert!(images.iter().all(|x| (x.abs() - expected).abs() < 1e-6), "{len}");
        }
    }

    #[test]
    fn a_power_of_two_is_the_walsh_hadamard_matrix() {
        for len in [2usize, 8, 16, 128] {
            let sign = |row: usize, column: usize| {
                if (row & column).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
            };
            let expected = by_entries(len, |row, column| sign(row, column) / (len as f32).sqrt());
            let images = images(&Rotation::new(len).unwrap());
            assert!(images.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{len}");
        }
    }

    #[test]
    fn lengths_that_have_no_rotation() {
        for (len, odd_factor) in [(0, 0), (1025, 1025), (8 * 1025, 1025), (usize::MAX, usize::MAX)] {
            let error = Error::RotationLength { len, odd_factor, max_odd_factor: MAX_ODD_FACTOR };
            assert_eq!(Rotation::new(len), Err(error.clone()));
            assert_eq!(Rotation::random(len, 1), Err(error));
        }
        assert!(Rotation::new(MAX_ODD_FACTOR).is_ok());
        let rotation = Rotation::new(12).unwrap();
        let error = Error::Length { what: "the rows of a rotation", expected: 24, found: 13 };
        assert_eq!(rotation.forward(&mut [0.0; 13]), Err(error.clone()));
        assert_eq!(rotation.inverse(&mut [0.0; 13]), Err(error));
        assert_eq!(rotation.forward(&mut []), Ok(()));
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for len in [1, 7, 12, 40, 128, 576, 640, 896] {
            let rotation = Rotation::random(len, 3).unwrap();
            let run = |isa| {
                let mut vector = random_vector(3 * len, len as u64);
                cpu::with_isa(isa, || rotation.forward(&mut vector)).unwrap().unwrap();
                vector.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let expected = run(cpu::Isa::Scalar);
            for isa in cpu::available() {
                assert!(run(isa) == expected, "{len} with {isa}");
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbors() {
        let rotation = Rotation::random(640, 8).unwrap();
        let rows = random_vector(640 * 100, 4);
        let mut together = rows.clone();
        rotation.forward(&mut together).unwrap();
        for (row, expected) in rows.chunks_exact(640).zip(together.chunks_exact(640)) {
            let mut alone = row.to_vec();
            rotation.forward(&mut alone).unwrap();
            assert_eq!(alone, expected);
        }
    }

    #[test]
    fn a_seed_means_the_same_signs_forever() {
        let signs: String = Rotation::random(16, 42)
            .unwrap()
            .signs
            .iter()
            .map(|s| if *s > 0.0 { '+' } else { '-' })
            .collect();
        assert_eq!(signs, "-++++-+-+-++---+");
        assert_ne!(Rotation::random(64, 1), Rotation::random(64, 2));
    }

    proptest! {
        #[test]
        fn the_inverse_undoes_the_rotation(power in 0u32..8, odd in 1usize..40, seed: u64, rows in 0usize..4) {
            let len = odd << power;
            let rotation = Rotation::random(len, seed).unwrap();
            let original = random_vector(rows * len, seed);
            let mut vectors = original.clone();
            rotation.forward(&mut vectors).unwrap();
            let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            prop_assert!((norm(&vectors) - norm(&original)).abs() <= 1e-5 * norm(&original));
            rotation.inverse(&mut vectors).unwrap();
            for (a, b) in vectors.iter().zip(&original) {
                prop_assert!((a - b).abs() < 1e-5, "{} {}", a, b);
            }
        }
    }
}
