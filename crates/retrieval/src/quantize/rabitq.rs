//! RaBitQ: one to eight bits a coordinate, with an unbiased estimate of inner products and a bound on its error.
//!
//! A vector less its center is rotated at random and scaled to length 1, o′. Its code is the grid vector that has the
//! smallest angle to o′: for one bit the signs of the coordinates, for more the values k − (2ᵇ − 1)/2 of some scale that
//! is searched for. With y the code as a vector,
//!
//! ⟨o′, q′⟩ ≈ ⟨y, q′⟩ / ⟨y, o′⟩,
//!
//! which over the random rotation is right on average, and whose error is at most
//! ε₀·‖q′‖·√((1 − c²)/(c²·(d − 1))) with c = ⟨y, o′⟩/‖y‖, except with a probability that falls as a Gaussian's tail in ε₀.
//!
//! Queries are quantized to eight bits when codes have more than one bit, and to four bit planes otherwise, so that a scan
//! is integer dot products, or `AND` and `POPCNT`.
//!
//! # Memory
//! `bits` a coordinate, rounded up to 64 coordinates, and 16 bytes a vector.
//!
//! # Source
//! Gao and Long, "RaBitQ: Quantizing high-dimensional vectors with a theoretical error bound for approximate nearest
//! neighbor search", arXiv 2405.12497, section 3 (one bit); Gao et al., "Practical and asymptotically optimal quantization
//! of high-dimensional vectors", arXiv 2409.09913, section 3 (more bits). Deviations: the rotation is a Hadamard transform
//! with random signs, twice; the scale of several bits is searched over the points where a code changes, as there, but
//! over a coarser grid.

use crate::{
    Error, Metric, Result,
    metric::{check_dimension, check_length},
};
use breakers_backend::{bits, cpu, hadamard::Rotation, math::per_isa};

/// The factor of the error bound that the paper proposes: 2.9 % of a Gaussian lie beyond it on one side.
pub const EPSILON: f32 = 1.9;
/// Bits of a query's coordinates when codes have a single bit.
const PLANES: usize = 4;
/// Scales that are tried for codes of several bits.
const SCALES: usize = 24;

/// Vectors in one to eight bits a coordinate.
#[derive(Debug, Clone)]
pub struct RabitqCodes {
    metric: Metric,
    dimension: usize,
    /// Coordinates after padding.
    width: usize,
    bits: u32,
    rotations: [Rotation; 2],
    center: Vec<f32>,
    /// One bit: words of signs. More: packed codes.
    words: Vec<u64>,
    packed: Vec<u8>,
    factors: Vec<Factors>,
}

/// What is stored with a code.
#[derive(Debug, Clone, Copy)]
struct Factors {
    /// ‖o − center‖² for L2, ⟨o, center⟩ otherwise.
    add: f32,
    /// What ⟨y, q′⟩ is multiplied by: ‖o − center‖/⟨y, o′⟩.
    scale: f32,
    /// What the bound is multiplied by: ‖o − center‖·√((1 − c²)/(c²·(d − 1))).
    error: f32,
    /// Bits that are set, if there is one for each coordinate.
    ones: f32,
}

/// A query in the terms of [`RabitqCodes`].
#[derive(Debug, Clone)]
pub struct RabitqQuery {
    /// ‖q − center‖² for L2, ⟨q, center⟩... taken into account once for all vectors.
    add: f32,
    /// Length of the rotated rest.
    norm: f32,
    rotated: Vec<f32>,
    sum: f32,
    /// Bit planes of the quantized query, `[PLANES, width / 64]`, its smallest value and its step.
    planes: Vec<u64>,
    low: f32,
    step: f32,
}

/// An estimate of a distance with its bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The distance.
    pub distance: f32,
    /// What it is at least, except with the probability that belongs to ε₀.
    pub lower: f32,
}

impl RabitqCodes {
    /// No vectors yet. `center` is usually the mean of the vectors to come.
    ///
    /// # Errors
    /// [`Error::DimensionRange`], [`Error::Dimension`] for the center, [`Error::Parameter`] unless `bits` is 1 to 8.
    pub fn new(metric: Metric, center: &[f32], bits: u32, seed: u64) -> Result<Self> {
        let dimension = center.len();
        check_dimension(dimension)?;
        if !(1..=8).contains(&bits) {
            return Err(Error::parameter("bits", "1 to 8", bits));
        }
        let width = dimension.next_multiple_of(64);
        let rotations = [Rotation::random(width, seed)?, Rotation::random(width, seed ^ 0x9e37_79b9)?];
        Ok(Self {
            metric,
            dimension,
            width,
            bits,
            rotations,
            center: center.to_vec(),
            words: Vec::new(),
            packed: Vec::new(),
            factors: Vec::new(),
        })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.factors.len()
    }

    /// Whether there is no vector.
    pub fn is_empty(&self) -> bool {
        self.factors.is_empty()
    }

    /// Bits of a coordinate.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.words.len() * 8 + self.packed.len() + self.factors.len() * size_of::<Factors>()
    }

    /// The rest of a vector after its center is taken away, rotated, and its length.
    fn rest(&self, vector: &[f32]) -> (Vec<f32>, f32) {
        let mut rest: Vec<f32> = vector.iter().zip(&self.center).map(|(x, c)| x - c).collect();
        rest.resize(self.width, 0.0);
        for rotation in &self.rotations {
            // The length is the rotation's own.
            let _ = rotation.forward(&mut rest);
        }
        let norm = rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32;
        (rest, norm)
    }

    /// Appends a vector that was [prepared](Metric::prepare).
    ///
    /// # Errors
    /// [`Error::Dimension`].
    pub fn push(&mut self, vector: &[f32]) -> Result<()> {
        check_length("the vector", vector, self.dimension)?;
        let (rest, norm) = self.rest(vector);
        let codes = if self.bits == 1 { signs(&rest) } else { self.grid(&rest) };
        let middle = self.middle();
        let (mut product, mut squares) = (0.0f64, 0.0f64);
        for (&x, &code) in rest.iter().zip(&codes) {
            let y = f64::from(code) - middle;
            product += y * f64::from(x);
            squares += y * y;
        }
        // ⟨y, o′⟩ is product / norm; its cosine is that over ‖y‖.
        let cosine = if norm > 0.0 { (product / f64::from(norm) / squares.sqrt()).min(1.0) } else { 1.0 };
        let spread =
            ((1.0 - cosine * cosine) / (cosine * cosine * (self.width as f64 - 1.0).max(1.0))).sqrt();
        let add = match self.metric {
            Metric::L2 => norm * norm,
            _ => crate::distance::dot(vector, &self.center),
        };
        self.factors.push(Factors {
            add,
            scale: if product > 0.0 { (f64::from(norm) * f64::from(norm) / product) as f32 } else { 0.0 },
            error: (f64::from(norm) * spread) as f32,
            ones: if self.bits == 1 { codes.iter().map(|&bit| f32::from(bit)).sum() } else { 0.0 },
        });
        if self.bits == 1 {
            let word = |bits: &[u8]| bits.iter().rev().fold(0u64, |word, &bit| word << 1 | u64::from(bit));
            self.words.extend(codes.chunks_exact(64).map(word));
        } else {
            self.packed.extend(bits::pack(&codes, self.bits)?);
        }
        Ok(())
    }

    fn middle(&self) -> f64 {
        (f64::from(1u32 << self.bits) - 1.0) / 2.0
    }

    /// The codes with the smallest angle to the vector, over scales of the grid.
    fn grid(&self, rest: &[f32]) -> Vec<u8> {
        let (middle, most) = (self.middle() as f32, (1u32 << self.bits) as f32 - 1.0);
        let largest = rest.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        if largest == 0.0 {
            return vec![(most / 2.0) as u8; rest.len()];
        }
        // From the scale at which no coordinate is cut off to one at which most of the grid is used for the smaller ones.
        let widest = (middle + 0.5) / largest;
        let isa = cpu::isa();
        let mut best = (f32::NEG_INFINITY, widest);
        for i in 0..SCALES {
            let factor = widest * (1.0 + 3.0 * i as f32 / SCALES as f32);
            let cosine = per_isa!(isa, || grid_cosine(rest, factor, middle, most));
            if cosine > best.0 {
                best = (cosine, factor);
            }
        }
        rest.iter().map(|&x| grid_code(x, best.1, middle, most) as u8).collect()
    }

    /// Brings a [prepared](Metric::prepare) query into the form that scans take.
    ///
    /// # Errors
    /// [`Error::Dimension`].
    pub fn query(&self, vector: &[f32]) -> Result<RabitqQuery> {
        check_length("the query", vector, self.dimension)?;
        let (rotated, norm) = self.rest(vector);
        let center = crate::distance::dot(&self.center, &self.center);
        let add = match self.metric {
            Metric::L2 => norm * norm,
            // ⟨o, q⟩ = ⟨o − c, q − c⟩ + ⟨o, c⟩ + ⟨q, c⟩ − ⟨c, c⟩
            _ => crate::distance::dot(vector, &self.center) - center,
        };
        let (low, high) = rotated.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
        let levels = (1 << PLANES) as f32 - 1.0;
        let step = (high - low) / levels;
        let factor = if step > f32::MIN_POSITIVE { 1.0 / step } else { 0.0 };
        let words = self.width / 64;
        let mut planes = vec![0; PLANES * words];
        if self.bits == 1 {
            for (i, &x) in rotated.iter().enumerate() {
                let level = ((x - low) * factor).round_ties_even().clamp(0.0, levels) as u64;
                for plane in 0..PLANES {
                    planes[plane * words + i / 64] |= (level >> plane & 1) << (i % 64);
                }
            }
        }
        let sum = rotated.iter().map(|&x| f64::from(x)).sum::<f64>() as f32;
        Ok(RabitqQuery { add, norm, rotated, sum, planes, low, step })
    }

    /// Estimates of all distances, with bounds at this ε₀ ([`EPSILON`]); of [`Metric::L2`] and [`Metric::Cosine`] as
    /// [`Metric::distance`] has them.
    ///
    /// # Shapes
    /// - `out`: `[len]`
    ///
    /// # Errors
    /// [`Error::Dimension`] for `out` of another length.
    pub fn scan(&self, query: &RabitqQuery, epsilon: f32, out: &mut [Estimate]) -> Result<()> {
        if out.len() != self.len() {
            return Err(Error::Dimension { what: "the output", expected: self.len(), found: out.len() });
        }
        if self.bits == 1 {
            self.scan_signs(query, out);
        } else {
            self.scan_packed(query, out)?;
        }
        let (metric, bound) = (self.metric, epsilon * query.norm);
        let query_error = if self.bits == 1 { query_rounding(query, self.width) } else { 0.0 };
        per_isa!(cpu::isa(), || {
            for (estimate, factors) in out.iter_mut().zip(&self.factors) {
                // ⟨o − c, q − c⟩ and how far it may be off.
                let product = factors.scale * estimate.distance;
                let error = factors.error * bound + factors.scale * query_error;
                let (distance, slack) = match metric {
                    Metric::L2 => (factors.add + query.add - 2.0 * product, 2.0 * error),
                    Metric::Dot => (-(product + factors.add + query.add), error),
                    Metric::Cosine => (1.0 - (product + factors.add + query.add), error),
                };
                *estimate = Estimate { distance, lower: distance - slack };
            }
        });
        Ok(())
    }

    /// ⟨y, q̂⟩ for signs: y = bit − ½.
    fn scan_signs(&self, query: &RabitqQuery, out: &mut [Estimate]) {
        let words = self.width / 64;
        let level_sum: u32 = (0..PLANES)
            .map(|plane| {
                let bits: u32 = query.planes[plane * words..][..words].iter().map(|w| w.count_ones()).sum();
                bits << plane
            })
            .sum();
        let isa = cpu::isa();
        let all = query.low * self.width as f32 + query.step * level_sum as f32;
        // Σ bit·q̂ − ½·Σ q̂, with q̂ = low + step·level.
        let terms = [query.low, query.step, 0.5 * all];
        #[cfg(target_arch = "x86_64")]
        if isa == cpu::Isa::Avx512 && words <= 8 && std::arch::is_x86_feature_detected!("avx512vpopcntdq") {
            // SAFETY: the processor has the instructions; rows and planes have `words` words each.
            return unsafe { popcounts(&self.words, &query.planes, words, &self.factors, terms, out) };
        }
        per_isa!(isa, || {
            for ((estimate, factors), row) in
                out.iter_mut().zip(&self.factors).zip(self.words.chunks_exact(words))
            {
                let mut sum = 0;
                for plane in 0..PLANES {
                    let and = row.iter().zip(&query.planes[plane * words..][..words]);
                    sum += and.map(|(a, b)| (a & b).count_ones()).sum::<u32>() << plane;
                }
                estimate.distance = terms[0] * factors.ones + terms[1] * sum as f32 - terms[2];
            }
        });
    }

    fn scan_packed(&self, query: &RabitqQuery, out: &mut [Estimate]) -> Result<()> {
        let bytes = bits::packed_len(self.width, self.bits)?;
        let middle = self.middle() as f32;
        let mut codes = vec![0u8; self.width];
        let mut floats = vec![0.0f32; self.width];
        for (estimate, row) in out.iter_mut().zip(self.packed.chunks_exact(bytes)) {
            bits::unpack(row, self.bits, &mut codes)?;
            floats.iter_mut().zip(&codes).for_each(|(x, &code)| *x = code.into());
            estimate.distance = crate::distance::dot(&floats, &query.rotated) - middle * query.sum;
        }
        Ok(())
    }
}

#[inline(always)]
fn grid_code(x: f32, factor: f32, middle: f32, most: f32) -> f32 {
    x.mul_add(factor, middle).round_ties_even().clamp(0.0, most)
}

/// The cosine of a vector's codes to it, but for the vector's length.
#[inline(always)]
fn grid_cosine(rest: &[f32], factor: f32, middle: f32, most: f32) -> f32 {
    let (mut products, mut squares) = ([0.0f32; 16], [0.0f32; 16]);
    // The width is a multiple of 64.
    for chunk in rest.as_chunks::<16>().0 {
        for lane in 0..16 {
            let y = grid_code(chunk[lane], factor, middle, most) - middle;
            products[lane] = y.mul_add(chunk[lane], products[lane]);
            squares[lane] = y.mul_add(y, squares[lane]);
        }
    }
    products.iter().sum::<f32>() / squares.iter().sum::<f32>().sqrt()
}

/// What the rounding of a query to bit planes can add to ⟨y, q′⟩, at three standard deviations: uniform errors of half a
/// step in each coordinate, against entries of ±½.
fn query_rounding(query: &RabitqQuery, width: usize) -> f32 {
    3.0 * 0.5 * query.step / 12f32.sqrt() * (width as f32).sqrt()
}

fn signs(rest: &[f32]) -> Vec<u8> {
    rest.iter().map(|&x| u8::from(x >= 0.0)).collect()
}

/// Rows of up to eight words: a register each.
///
/// # Safety
/// - The processor has the instructions.
/// - `rows` has `words` words for each estimate, at most 8, and `planes` has [`PLANES`] times as many.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
unsafe fn popcounts(
    rows: &[u64],
    planes: &[u64],
    words: usize,
    factors: &[Factors],
    terms: [f32; 3],
    out: &mut [Estimate],
) {
    use std::arch::x86_64::*;
    debug_assert!(words <= 8 && out.len() * words <= rows.len() && planes.len() == PLANES * words);
    let mask = (u16::MAX >> (16 - words)) as u8;
    // SAFETY: the masked loads touch the words of each plane only.
    let planes: [__m512i; PLANES] = std::array::from_fn(|plane| unsafe {
        _mm512_maskz_loadu_epi64(mask, planes.as_ptr().add(plane * words).cast())
    });
    for (i, (estimate, factors)) in out.iter_mut().zip(factors).enumerate() {
        // SAFETY: the masked load touches the words of this row only.
        let row = unsafe { _mm512_maskz_loadu_epi64(mask, rows.as_ptr().add(i * words).cast()) };
        // Horner: one sum over lanes for all planes.
        let mut total = _mm512_setzero_si512();
        for plane in planes.iter().rev() {
            let count = _mm512_popcnt_epi64(_mm512_and_si512(row, *plane));
            total = _mm512_add_epi64(_mm512_slli_epi64::<1>(total), count);
        }
        let sum = _mm512_reduce_add_epi64(total) as u32;
        estimate.distance = terms[0] * factors.ones + terms[1] * sum as f32 - terms[2];
    }
}
