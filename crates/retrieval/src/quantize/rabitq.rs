//! RaBitQ: one to eight bits a coordinate, with an unbiased estimate of inner products and a
//! bound on its error.
//!
//! A vector less its center is rotated at random and scaled to length 1, o′. Its code is the grid vector that
//! has the smallest angle to o′: the signs of the coordinates for one bit, and for more bits the values k −
//! (2ᵇ − 1)/2 at a scale that is searched for. With y the code as a vector,
//!
//! ⟨o′, q′⟩ ≈ ⟨y, q′⟩ / ⟨y, o′⟩,
//!
//! which is right on average over the random rotation, and whose error is at most ε₀·‖q′‖·√((1 − c²)/(c²·(d −
//! 1))) with c = ⟨y, o′⟩/‖y‖, except with a probability that falls like the tail of a Gaussian in ε₀.
//!
//! Codes are stored as bit planes, and queries are quantized to three bits more than the codes have. A scan
//! is then `AND` and `POPCNT` of each pair of planes: Σᵢⱼ 2ⁱ⁺ʲ·|codeᵢ ∧ queryⱼ|.
//!
//! # Memory
//! `bits` a coordinate, rounded up to 64 coordinates, and 20 bytes a vector.
//!
//! # Source
//! Gao and Long, "RaBitQ: Quantizing high-dimensional vectors with a theoretical error bound for approximate
//! nearest neighbor search", arXiv 2405.12497, section 3 (one bit); Gao et al., "Practical and asymptotically
//! optimal quantization of high-dimensional vectors", arXiv 2409.09913, section 3 (more bits). Deviations:
//! the rotation is a Hadamard transform with random signs, twice; the scale of several bits is searched over
//! the points where a code changes, as there, but over a coarser grid.

use crate::{
    Error, Metric, Result,
    metric::{check_dimension, check_length},
};
use breakers_cpu::{self as cpu, hadamard::Rotation, per_isa};

/// The factor of the error bound that the paper proposes: 2.9 % of a Gaussian lies beyond it on one side.
pub const EPSILON: f32 = 1.9;
/// Bits of a query's coordinates beyond those of the codes: its rounding is then an eighth of theirs.
const MORE_PLANES: usize = 3;
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
    /// Bit planes, `[n, bits, width / 64]`, the lowest bits first.
    words: Vec<u64>,
    factors: Vec<Factors>,
}

/// What is stored with a code.
#[derive(Debug, Clone, Copy)]
struct Factors {
    /// ‖o − center‖² for L2, ⟨o, center⟩ otherwise.
    add: f32,
    /// The factor of ⟨y, q′⟩: ‖o − center‖/⟨y, o′⟩.
    scale: f32,
    /// The factor of the bound: ‖o − center‖·√((1 − c²)/(c²·(d − 1))).
    error: f32,
    /// The factor of the rounding of queries: ‖o − center‖/c.
    rounding: f32,
    /// The sum of the codes.
    sum: f32,
}

/// A query in the terms of [`RabitqCodes`].
#[derive(Debug, Clone)]
pub struct RabitqQuery {
    /// ‖q − center‖² for L2, ⟨q, center⟩... taken into account once for all vectors.
    add: f32,
    /// Length of the rotated rest.
    norm: f32,
    /// Bit planes of the quantized query, `[bits + 3, width / 64]`, its smallest value and its step.
    planes: Vec<u64>,
    low: f32,
    step: f32,
    /// The sum of the rounded coordinates.
    sum: f64,
}

/// An estimate of a distance with its bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The distance.
    pub distance: f32,
    /// The distance is at least this, except with the probability that belongs to ε₀.
    pub lower: f32,
}

impl RabitqCodes {
    /// No vectors yet. `center` is usually the mean of the vectors to come.
    ///
    /// # Errors
    /// [`Error::DimensionRange`], [`Error::Dimension`] for the center, [`Error::Parameter`]
    /// unless `bits` is 1 to 8.
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
            factors: Vec::new(),
        })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.factors.len()
    }

    /// Whether there are no vectors.
    pub fn is_empty(&self) -> bool {
        self.factors.is_empty()
    }

    /// Bits of a coordinate.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.words.len() * 8 + self.factors.len() * size_of::<Factors>()
    }

    /// The rotated difference of a vector from the center, and its length.
    fn rest(&self, vector: &[f32]) -> (Vec<f32>, f32) {
        let mut rest: Vec<f32> = vector.iter().zip(&self.center).map(|(x, c)| x - c).collect();
        rest.resize(self.width, 0.0);
        for rotation in &self.rotations {
            // The length fits the rotation.
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
        let (factors, words) = self.encode(vector)?;
        self.factors.push(factors);
        self.words.extend(words);
        Ok(())
    }

    /// Replaces an existing vector.
    pub(crate) fn set(&mut self, slot: usize, vector: &[f32]) -> Result<()> {
        let (factors, words) = self.encode(vector)?;
        self.factors[slot] = factors;
        self.words[slot * words.len()..][..words.len()].copy_from_slice(&words);
        Ok(())
    }

    fn encode(&self, vector: &[f32]) -> Result<(Factors, Vec<u64>)> {
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
        let norm = f64::from(norm);
        // ⟨y, o′⟩ is product / norm; its cosine is that over ‖y‖.
        let cosine = if norm > 0.0 { (product / norm / squares.sqrt()).min(1.0) } else { 1.0 };
        let spread =
            ((1.0 - cosine * cosine) / (cosine * cosine * (self.width as f64 - 1.0).max(1.0))).sqrt();
        let factors = Factors {
            add: match self.metric {
                Metric::L2 => (norm * norm) as f32,
                _ => crate::distance::dot(vector, &self.center),
            },
            scale: if product > 0.0 { (norm * norm / product) as f32 } else { 0.0 },
            error: (norm * spread) as f32,
            rounding: (norm / cosine) as f32,
            sum: codes.iter().map(|&code| u32::from(code)).sum::<u32>() as f32,
        };
        let mut words = Vec::with_capacity(self.bits as usize * self.width / 64);
        push_planes(&mut words, self.bits as usize, &codes);
        Ok((factors, words))
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
        // From the scale at which no coordinate is clipped to one at which most of the grid serves the
        // smaller ones.
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

    /// Brings a [prepared](Metric::prepare) query into the form that scans need.
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
        let n_planes = self.bits as usize + MORE_PLANES;
        let levels = (1u32 << n_planes) as f32 - 1.0;
        let step = (high - low) / levels;
        let factor = if step > f32::MIN_POSITIVE { 1.0 / step } else { 0.0 };
        let level = |&x: &f32| ((x - low) * factor).round_ties_even().clamp(0.0, levels) as u16;
        let rounded: Vec<u16> = rotated.iter().map(level).collect();
        let mut planes = Vec::with_capacity(n_planes * self.width / 64);
        push_planes(&mut planes, n_planes, &rounded);
        let level_sum: u64 = rounded.iter().map(|&level| u64::from(level)).sum();
        let sum = f64::from(low) * self.width as f64 + f64::from(step) * level_sum as f64;
        Ok(RabitqQuery { add, norm, planes, low, step, sum })
    }

    /// Estimates of all distances, with bounds at this ε₀ ([`EPSILON`]); for [`Metric::L2`] and
    /// [`Metric::Cosine`] on the scale of [`Metric::distance`].
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
        self.products(query, out);
        let (metric, bound) = (self.metric, epsilon * query.norm);
        // The query's rounding at three standard deviations: errors of up to half a step, evenly spread.
        let query_error = 3.0 * query.step / 12f32.sqrt();
        per_isa!(cpu::isa(), || {
            for (estimate, factors) in out.iter_mut().zip(&self.factors) {
                // ⟨o − c, q − c⟩ and the bound on its error.
                let product = factors.scale * estimate.distance;
                let error = factors.error * bound + factors.rounding * query_error;
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

    /// Turns ⟨y, q̂⟩ of each vector into its estimated distance.
    fn products(&self, query: &RabitqQuery, out: &mut [Estimate]) {
        let (bits, words) = (self.bits as usize, self.width / 64);
        // Σ code·q̂ − middle·Σ q̂, with q̂ = low + step·level.
        let (low, step) = (f64::from(query.low), f64::from(query.step));
        let rest = self.middle() * query.sum;
        let finish =
            |sum: u64, factors: &Factors| (low * f64::from(factors.sum) + step * sum as f64 - rest) as f32;
        let isa = cpu::isa();
        #[cfg(target_arch = "x86_64")]
        if isa == cpu::Isa::Avx512 && std::arch::is_x86_feature_detected!("avx512vpopcntdq") {
            let all = (&self.words[..], &query.planes[..], words);
            let out = out.iter_mut().zip(&self.factors);
            let out = out.map(|(estimate, factors)| (&mut estimate.distance, factors));
            // SAFETY: the processor has the instructions; there are `bits` planes of `words` words for each
            // vector, and as many planes of the query as are named.
            unsafe {
                match bits {
                    1 => popcounts::<4>(all, out, finish),
                    2 => popcounts::<5>(all, out, finish),
                    3 => popcounts::<6>(all, out, finish),
                    4 => popcounts::<7>(all, out, finish),
                    5 => popcounts::<8>(all, out, finish),
                    6 => popcounts::<9>(all, out, finish),
                    7 => popcounts::<10>(all, out, finish),
                    _ => popcounts::<11>(all, out, finish),
                }
            }
            return;
        }
        per_isa!(isa, || {
            let rows = self.words.chunks_exact(bits * words);
            for ((estimate, factors), row) in out.iter_mut().zip(&self.factors).zip(rows) {
                let mut sum = 0u64;
                for (i, plane) in row.chunks_exact(words).enumerate() {
                    for (j, levels) in query.planes.chunks_exact(words).enumerate() {
                        let both = plane.iter().zip(levels).map(|(a, b)| (a & b).count_ones());
                        sum += u64::from(both.sum::<u32>()) << (i + j);
                    }
                }
                estimate.distance = finish(sum, factors);
            }
        });
    }
}

/// Appends the bit planes of numbers, the lowest bits first.
fn push_planes(out: &mut Vec<u64>, n_planes: usize, numbers: &[impl Copy + Into<u16>]) {
    for plane in 0..n_planes {
        let word = |numbers: &[_]| {
            let bits = numbers.iter().rev();
            bits.fold(0u64, |word, &number| word << 1 | u64::from(Into::<u16>::into(number) >> plane & 1))
        };
        out.extend(numbers.chunks_exact(64).map(word));
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

fn signs(rest: &[f32]) -> Vec<u8> {
    rest.iter().map(|&x| u8::from(x >= 0.0)).collect()
}

/// Σ 2ⁱ⁺ʲ·|rowᵢ ∧ planeⱼ| for each row, of [`MORE_PLANES`] fewer bits than the query has planes.
///
/// # Safety
/// - The processor has the instructions.
/// - `rows` has `PLANES - 3` times `words` words for each of `out`, and `planes` has `PLANES` times as many.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
unsafe fn popcounts<'a, const PLANES: usize>(
    (rows, planes, words): (&[u64], &[u64], usize),
    out: impl Iterator<Item = (&'a mut f32, &'a Factors)>,
    finish: impl Fn(u64, &Factors) -> f32,
) {
    use std::arch::x86_64::*;
    let bits = PLANES - MORE_PLANES;
    debug_assert!(rows.len().is_multiple_of(bits * words) && planes.len() == PLANES * words);
    let load = |numbers: &[u64], plane: usize, at: usize| {
        let mask = if words - at < 8 { (1u8 << (words - at)) - 1 } else { u8::MAX };
        debug_assert!((plane + 1) * words <= numbers.len());
        // SAFETY: the mask keeps to the words of the plane.
        unsafe { _mm512_maskz_loadu_epi64(mask, numbers.as_ptr().add(plane * words + at).cast()) }
    };
    // The first words of the query's planes stay in registers; most vectors have no more.
    let first: [__m512i; PLANES] = std::array::from_fn(|plane| load(planes, plane, 0));
    for (row, (out, factors)) in out.enumerate() {
        let mut total = _mm512_setzero_si512();
        for at in (0..words).step_by(8) {
            // Horner, over the row's bits and the query's.
            let mut sum = _mm512_setzero_si512();
            for i in (0..bits).rev() {
                let bits = load(rows, row * bits + i, at);
                let mut part = _mm512_setzero_si512();
                for j in (0..PLANES).rev() {
                    let plane = if at == 0 { first[j] } else { load(planes, j, at) };
                    let count = _mm512_popcnt_epi64(_mm512_and_si512(bits, plane));
                    part = _mm512_add_epi64(_mm512_slli_epi64::<1>(part), count);
                }
                sum = _mm512_add_epi64(_mm512_slli_epi64::<1>(sum), part);
            }
            total = _mm512_add_epi64(total, sum);
        }
        *out = finish(_mm512_reduce_add_epi64(total) as u64, factors);
    }
}
