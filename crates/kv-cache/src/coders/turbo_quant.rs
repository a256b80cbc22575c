//! TurboQuant: vectors are rotated at random, so that one scalar codebook suits every coordinate.
//!
//! Three estimators share the codes: *mse* is nearest to the vector but shortens it; *rescaled* stores
//! another length, at no extra cost, which makes inner products unbiased; *prod* spends one of its bits on
//! signs of a random projection of what the codes leave over, which makes inner products unbiased, too.
//!
//! # Memory
//! `bits` for each element and one 16-bit float for each vector; *prod* has a second one.
//!
//! # Source
//! Zandieh et al. 2025, arXiv 2504.19874, algorithms 1 (mse) and 2 (prod). The sketch of signs: Zandieh et
//! al. 2024, "QJL", arXiv 2406.03482. The rescaled estimator: arXiv 2604.19528 and 2605.08114. Deviations:
//! the rotation may be signs and a Walsh–Hadamard transform instead of a dense matrix, the sketch an
//! orthogonal matrix instead of a Gaussian one (a third of the variance), and lengths are rounded to 16 bits.

use std::f32::consts::PI;

use breakers_cpu::{float16, hadamard::Rotation, random::SplitMix64};
use half::f16;

use super::lloyd_max::Codebook;
use crate::{Error, Result};

/// How inner products with a coded vector are estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Estimator {
    /// The least squared error; inner products come out too small, by the distortion of the codebook.
    Mse,
    /// Unbiased inner products by the stored length.
    #[default]
    Rescaled,
    /// Unbiased inner products by signs of a random projection, which replace one of the bits.
    Prod(Sketch),
}

/// The random matrix that *prod* projects with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Sketch {
    /// Independent normal numbers, as published.
    Gaussian,
    /// A random orthogonal matrix.
    #[default]
    Orthogonal,
}

/// The random rotation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RotationKind {
    /// Random signs and a Walsh–Hadamard transform: dim · log₂ dim additions.
    #[default]
    Hadamard,
    /// A dense orthogonal matrix from a QR decomposition, as published: dim² products.
    Dense,
}

/// Settings of [`TurboQuant`].
#[derive(Clone, Debug, PartialEq)]
pub struct TurboQuantConfig {
    /// Bits of an element, 1 to 5.
    pub bits: u32,
    /// The estimator.
    pub estimator: Estimator,
    /// The rotation.
    pub rotation: RotationKind,
    /// Seed of the rotation and the sketch.
    pub seed: u64,
}

impl TurboQuantConfig {
    /// As published: a dense rotation, a Gaussian sketch where there is one.
    pub fn paper(bits: u32, prod: bool) -> Self {
        let estimator = if prod { Estimator::Prod(Sketch::Gaussian) } else { Estimator::Mse };
        Self { bits, estimator, rotation: RotationKind::Dense, seed: 0 }
    }
}

impl Default for TurboQuantConfig {
    /// Four bits, rescaled, rotated by a Walsh–Hadamard transform.
    fn default() -> Self {
        Self { bits: 4, estimator: Estimator::Rescaled, rotation: RotationKind::Hadamard, seed: 0 }
    }
}

/// A coded vector.
#[derive(Clone, Debug, PartialEq)]
pub struct TurboCode {
    /// One code for each element of the rotated vector; empty for *prod* at one bit.
    pub codes: Vec<u8>,
    /// What the levels are multiplied by.
    pub scale: f16,
    /// *prod*: the signs of the projected rest.
    pub signs: Vec<bool>,
    /// *prod*: the length of the rest.
    pub rest: f16,
}

/// A quantizer of vectors of one length.
///
/// # Example
/// ```
/// use breakers_kv_cache::coders::{TurboQuant, TurboQuantConfig};
///
/// let quantizer = TurboQuant::new(64, TurboQuantConfig::default())?;
/// let key: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
/// let code = quantizer.encode(&key)?;
/// let product = quantizer.inner_product(&key, &code)?;
/// let exact: f32 = key.iter().map(|x| x * x).sum();
/// // The estimator is exact along the vector itself, up to the rounding of its length.
/// assert!((product / exact - 1.0).abs() < 1e-3);
/// # Ok::<(), breakers_kv_cache::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TurboQuant {
    dim: usize,
    config: TurboQuantConfig,
    rotation: Turn,
    codebook: Option<Codebook>,
    /// *prod*'s projection, `[dim, dim]` by rows.
    sketch: Vec<f32>,
}

#[derive(Clone, Debug)]
enum Turn {
    Fast(Rotation),
    /// `[dim, dim]` by rows.
    Dense(Vec<f32>),
}

impl TurboQuant {
    /// A quantizer of vectors of `dim` elements.
    ///
    /// # Errors
    /// [`Error::BitWidth`] unless the bits are 1 to 5; [`Error::HeadWidth`] unless `dim` is a
    /// power of two from 4 to 1024.
    pub fn new(dim: usize, config: TurboQuantConfig) -> Result<Self> {
        if !dim.is_power_of_two() || !(4..=1024).contains(&dim) {
            return Err(Error::HeadWidth { expected: "a power of two from 4 to 1024", found: dim });
        }
        // Checks the range of bits before one of them is taken away.
        let whole = Codebook::new(dim, config.bits)?;
        let mut random = SplitMix64::new(config.seed ^ 0x5bd1_e995);
        let rotation = match config.rotation {
            RotationKind::Hadamard => Turn::Fast(rotation(dim, config.seed)?),
            RotationKind::Dense => Turn::Dense(random.orthogonal(dim)),
        };
        let (codebook, sketch) = match config.estimator {
            Estimator::Mse | Estimator::Rescaled => (Some(whole), Vec::new()),
            Estimator::Prod(sketch) => {
                let codebook = match config.bits {
                    1 => None,
                    bits => Some(Codebook::new(dim, bits - 1)?),
                };
                (codebook, sketch_matrix(dim, sketch, &mut random))
            }
        };
        Ok(Self { dim, config, rotation, codebook, sketch })
    }

    /// Bits of an element, lengths included.
    pub fn bits_per_element(&self) -> f64 {
        let lengths = if self.sketch.is_empty() { 16.0 } else { 32.0 };
        f64::from(self.config.bits) + lengths / self.dim as f64
    }

    /// Codes one vector.
    ///
    /// # Errors
    /// [`Error::VectorLength`]; [`Error::NotFinite`] for a NaN or an infinity.
    pub fn encode(&self, vector: &[f32]) -> Result<TurboCode> {
        self.check(vector)?;
        let mut y = vector.to_vec();
        self.rotate(&mut y)?;
        let rms = root_mean_square(&y);
        let codes = match &self.codebook {
            Some(codebook) => encode_row(codebook, &y, rms),
            None => Vec::new(),
        };
        let scale = match self.config.estimator {
            Estimator::Rescaled => self.codebook.as_ref().map_or(rms, |book| rescaled(book, &y, &codes, rms)),
            _ => rms,
        };
        let scale = to_f16(scale);
        let mut code = TurboCode { codes, scale, signs: Vec::new(), rest: f16::ZERO };
        if !self.sketch.is_empty() {
            for (y, &c) in y.iter_mut().zip(&code.codes) {
                *y -= scale.to_f32() * self.level(c);
            }
            code.rest = to_f16(y.iter().map(|x| x * x).sum::<f32>().sqrt());
            code.signs = self.sketch.chunks_exact(self.dim).map(|row| dot(row, &y) >= 0.0).collect();
        }
        Ok(code)
    }

    /// The vector whose inner product with a query is the estimate.
    ///
    /// # Errors
    /// [`Error::VectorLength`] for a code of another length.
    pub fn decode(&self, code: &TurboCode) -> Result<Vec<f32>> {
        let expected = if self.codebook.is_some() { self.dim } else { 0 };
        let n_signs = if self.sketch.is_empty() { 0 } else { self.dim };
        for (expected, found) in [(expected, code.codes.len()), (n_signs, code.signs.len())] {
            if expected != found {
                return Err(Error::VectorLength { expected, found });
            }
        }
        let scale = code.scale.to_f32();
        let mut y = vec![0.0; self.dim];
        for (y, &c) in y.iter_mut().zip(&code.codes) {
            *y = scale * self.level(c);
        }
        let factor = code.rest.to_f32() * sketch_factor(self.dim, self.config.estimator);
        for (row, &sign) in self.sketch.chunks_exact(self.dim).zip(&code.signs) {
            let factor = if sign { factor } else { -factor };
            y.iter_mut().zip(row).for_each(|(y, s)| *y += factor * s);
        }
        self.rotate_back(&mut y)?;
        Ok(y)
    }

    /// The estimate of the inner product of a query and a coded vector.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), and [`Error::VectorLength`], [`Error::NotFinite`] for the query.
    pub fn inner_product(&self, query: &[f32], code: &TurboCode) -> Result<f32> {
        self.check(query)?;
        Ok(dot(query, &self.decode(code)?))
    }

    fn level(&self, code: u8) -> f32 {
        let levels = self.codebook.as_ref().map_or(&[][..], Codebook::levels);
        levels.get(usize::from(code)).copied().unwrap_or(0.0)
    }

    fn check(&self, vector: &[f32]) -> Result<()> {
        if vector.len() != self.dim {
            return Err(Error::VectorLength { expected: self.dim, found: vector.len() });
        }
        match vector.iter().find(|x| !x.is_finite()) {
            Some(&value) => Err(Error::NotFinite { tensor: "vector", row: 0, value }),
            None => Ok(()),
        }
    }

    fn rotate(&self, y: &mut [f32]) -> Result<()> {
        match &self.rotation {
            Turn::Fast(rotation) => rotation.forward(y).map_err(|_| self.width()),
            Turn::Dense(matrix) => {
                let x = y.to_vec();
                matrix.chunks_exact(self.dim).zip(y).for_each(|(row, y)| *y = dot(row, &x));
                Ok(())
            }
        }
    }

    fn rotate_back(&self, y: &mut [f32]) -> Result<()> {
        match &self.rotation {
            Turn::Fast(rotation) => rotation.inverse(y).map_err(|_| self.width()),
            Turn::Dense(matrix) => {
                let x = y.to_vec();
                y.fill(0.0);
                for (row, x) in matrix.chunks_exact(self.dim).zip(x) {
                    y.iter_mut().zip(row).for_each(|(y, m)| *y += m * x);
                }
                Ok(())
            }
        }
    }

    fn width(&self) -> Error {
        Error::HeadWidth { expected: "a power of two from 4 to 1024", found: self.dim }
    }
}

/// The fast rotation of a head's vectors.
///
/// # Errors
/// [`Error::HeadWidth`] for a length that is not a power of two.
pub(crate) fn rotation(dim: usize, seed: u64) -> Result<Rotation> {
    let error = Error::HeadWidth { expected: "a power of two", found: dim };
    if !dim.is_power_of_two() {
        return Err(error);
    }
    Rotation::random(dim, seed).map_err(|_| error)
}

/// *prod*'s random matrix.
pub(crate) fn sketch_matrix(dim: usize, sketch: Sketch, random: &mut SplitMix64) -> Vec<f32> {
    match sketch {
        Sketch::Gaussian => (0..dim * dim).map(|_| random.next_normal()).collect(),
        Sketch::Orthogonal => random.orthogonal(dim),
    }
}

/// What a sketch's signs are multiplied by, for a rest of length 1: √(π/2)/d for rows of length √d; rows of
/// length 1 make up for the missing √d.
pub(crate) fn sketch_factor(dim: usize, estimator: Estimator) -> f32 {
    let d = dim as f32;
    match estimator {
        Estimator::Prod(Sketch::Gaussian) => (PI / 2.0).sqrt() / d,
        // E|t| of a coordinate of a random unit vector, times d: the exact counterpart of √(2d/π).
        Estimator::Prod(Sketch::Orthogonal) => 1.0 / (d * mean_coordinate(dim)),
        _ => 0.0,
    }
}

/// E|t| of a coordinate of a random unit vector of an even number of dimensions: Γ(d/2) / (√π·Γ((d+1)/2)).
fn mean_coordinate(dim: usize) -> f32 {
    // Γ(1)/Γ(3/2) for d = 2, times k/(k + 1/2) for each further step k = 1, 2, … to d/2 − 1.
    let mut ratio = 2.0 / std::f64::consts::PI.sqrt();
    for k in 1..dim / 2 {
        ratio *= k as f64 / (k as f64 + 0.5);
    }
    (ratio / std::f64::consts::PI.sqrt()) as f32
}

/// The codes of a rotated vector.
pub(crate) fn encode_row(codebook: &Codebook, y: &[f32], rms: f32) -> Vec<u8> {
    let factor = if rms > 0.0 { 1.0 / rms } else { 0.0 };
    y.iter().map(|y| codebook.encode(y * factor)).collect()
}

/// The scale that makes the inner product of a vector and its decoded self exact: ‖y‖² / ⟨y, levels⟩.
fn rescaled(codebook: &Codebook, y: &[f32], codes: &[u8], rms: f32) -> f32 {
    let levels = codebook.levels();
    let product: f32 = y.iter().zip(codes).map(|(y, &c)| y * levels[usize::from(c)]).sum();
    let squares: f32 = y.iter().map(|y| y * y).sum();
    if product > 0.0 { squares / product } else { rms }
}

pub(crate) fn root_mean_square(y: &[f32]) -> f32 {
    (y.iter().map(|y| y * y).sum::<f32>() / y.len() as f32).sqrt()
}

/// Rounded to 16 bits; beyond their range the largest finite one.
pub(crate) fn to_f16(x: f32) -> f16 {
    float16::saturating(x)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
