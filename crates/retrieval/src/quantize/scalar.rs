//! Eight bits a coordinate, with a bound on the error that holds for every vector and query.
//!
//! Codes are relative to a *center* c near the middle of the vectors, so they tell vectors apart however far
//! from zero these lie. The difference from the center is padded with zeros to a multiple of 64, rotated so
//! that no coordinate stands out, and divided by a step of its own. With o a vector and q a query, both less
//! the center, ô the vector that the codes of o stand for, and q̂ = q − r the one that the query's codes
//! stand for,
//!
//! |⟨q, o⟩ − ⟨q̂, ô⟩| ≤ ‖q‖·‖o − ô‖ + ‖r‖·‖ô‖
//!
//! by the Cauchy–Schwarz inequality, without any assumption about the data. ‖o − ô‖ is stored with each
//! vector, rounded up, and covers the rounding of floating-point sums. This is why a scan over codes can give
//! exact neighbors.
//!
//! # Distances
//! Half of ‖q − o‖² is ‖q‖²/2 + (‖o‖²/2 − ⟨q, o⟩): the first term is the same for all vectors, the second is
//! stored. For vectors of length 1 this is one minus the cosine. An inner product is split so that the query
//! has no part along the center: with q = a·c + p, ⟨q, c + o⟩ = ⟨q, c⟩ + a·⟨c, o⟩ + ⟨p, o⟩, and ⟨c, o⟩ is
//! stored.
//!
//! The step is the one that brings ô nearest to o, which makes o − ô orthogonal to ô. Then ‖o‖²/2 − ⟨q, ô⟩
//! differs from half of ‖q − ô‖² by ‖o − ô‖²/2 and by a term that is the same for all: when codes rank near
//! vectors, their error is relative to the distance from the query, not from the center.
//!
//! # Memory
//! 8 bits a coordinate, rounded up to 64 coordinates, and 16 bytes a vector.

use crate::{
    Metric, Result,
    distance::{CodeQuery, GATHER, gather_dots, gather_row_dots, length_squared, scan_dots},
    metric::check_dimension,
};
use breakers_cpu::{self as cpu, hadamard::Rotation, per_isa};
use breakers_files::Buffer;

/// Seed of the rotation; a part of the file format.
const ROTATION_SEED: u64 = 0x5eed_c0de_0005;
/// Numbers that are worked on together; codes are a multiple of them.
const LANES: usize = 16;
/// The offset of vectors without codes.
const NOWHERE: f32 = 1e37;

/// A query that is longer than this many centers is not split further.
const MAX_ALONG: f64 = 65536.0;

/// What is stored with each vector's codes.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Tail {
    /// The step between codes.
    pub step: f32,
    /// The offset added to a distance: −⟨c, o⟩ for [`Metric::Dot`], otherwise ‖o‖²/2.
    pub offset: f32,
    /// An upper bound of ‖o − ô‖, rounding included.
    pub error: f32,
    /// An upper bound of ‖o‖ and of ‖ô‖, both relative to the center.
    pub norm: f32,
}

/// Vectors in eight bits a coordinate.
#[derive(Debug, Clone)]
pub struct ScalarCodes {
    metric: Metric,
    dimension: usize,
    stride: usize,
    rotation: Rotation,
    /// `[dimension]`, or empty for zero.
    center: Vec<f32>,
    center_norm: f32,
    codes: Buffer<u8>,
    tails: Buffer<Tail>,
}

/// A query in the terms of [`ScalarCodes`].
#[derive(Debug, Clone, Default)]
pub struct ScalarQuery {
    /// Eight bits of each coordinate.
    pub(crate) codes: CodeQuery,
    /// Eight bits more, for the residual of the first ones.
    pub(crate) rest: CodeQuery,
    pub(crate) step: f32,
    pub(crate) rest_step: f32,
    pub(crate) norm: f32,
    /// The factor of the vectors' offsets: the query's part along the center for [`Metric::Dot`], otherwise
    /// 1.
    pub(crate) along: f32,
    /// The part that all distances share: ‖q‖²/2, or −⟨q, c⟩ for [`Metric::Dot`].
    pub(crate) base: f64,
    pub(crate) rounding: Rounding,
    /// ‖r‖ of the first part alone, if both are computed.
    pub(crate) first_error: f32,
    /// ‖r‖ if both parts are used.
    pub(crate) error: f32,
    rotated: Vec<f32>,
}

/// The rounding error of a distance by codes, or of the full distance that it stands for, in multiples of
/// [`f32::EPSILON`]: `square · (‖q‖ + ‖o‖)² + slope · ‖o‖ + flat`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rounding {
    pub(crate) square: f32,
    pub(crate) slope: f32,
    pub(crate) flat: f32,
}

impl ScalarCodes {
    /// No vectors yet.
    ///
    /// # Errors
    /// [`Error::DimensionRange`](crate::Error::DimensionRange).
    pub fn new(metric: Metric, dimension: usize) -> Result<Self> {
        check_dimension(dimension)?;
        let stride = dimension.next_multiple_of(GATHER);
        let rotation = Rotation::random(stride, ROTATION_SEED)?;
        let (center, codes, tails) = (Vec::new(), Buffer::new(), Buffer::new());
        Ok(Self { metric, dimension, stride, rotation, center, center_norm: 0.0, codes, tails })
    }

    /// Room for `n` vectors around a center (`[dimension]`, or empty for zero). The codes of each have to be
    /// [set](Self::set); until then it is farther than any vector.
    pub(crate) fn around(&self, center: Vec<f32>, n: usize) -> Self {
        debug_assert!(center.is_empty() || center.len() == self.dimension);
        let (mut codes, mut tails) = (Buffer::new(), Buffer::new());
        codes.extend_zeroed(n * self.stride);
        codes.make_mut().fill(0x80);
        tails.extend_zeroed(n);
        tails.make_mut().fill(Tail { step: 0.0, offset: NOWHERE, error: 0.0, norm: 0.0 });
        let (metric, dimension, stride) = (self.metric, self.dimension, self.stride);
        let center_norm = length(&center);
        Self { metric, dimension, stride, rotation: self.rotation.clone(), center, center_norm, codes, tails }
    }

    /// Reserves room for `n` vectors.
    pub(crate) fn reserve(&mut self, n: usize) {
        self.codes.reserve(n.saturating_mul(self.stride));
        self.tails.reserve(n);
    }

    /// The center: `[dimension]`, or empty for zero.
    pub(crate) fn center(&self) -> &[f32] {
        &self.center
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.tails.len()
    }

    /// Whether there are no vectors.
    pub fn is_empty(&self) -> bool {
        self.tails.is_empty()
    }

    /// Numbers of a vector.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The metric that offsets are for.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Bytes of a row of codes.
    pub fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn codes(&self) -> &[u8] {
        &self.codes
    }

    pub(crate) fn tails(&self) -> &[Tail] {
        &self.tails
    }

    pub(crate) fn row(&self, slot: usize) -> &[u8] {
        &self.codes[slot * self.stride..][..self.stride]
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.tails.len() * size_of::<Tail>()
    }

    /// Appends a vector that was [prepared](Metric::prepare).
    pub(crate) fn push(&mut self, vector: &[f32]) {
        let slot = self.len();
        self.codes.extend_zeroed(self.stride);
        self.tails.extend_zeroed(1);
        self.set(slot, vector);
    }

    /// Replaces a vector.
    pub(crate) fn set(&mut self, slot: usize, vector: &[f32]) {
        let mut rotated = vec![0.0; self.stride];
        let norm_squared = self.rotate(vector, 1.0, &mut rotated);
        let row = &mut self.codes.make_mut()[slot * self.stride..][..self.stride];
        let (step, error_squared) = per_isa!(cpu::isa(), || quantize(&rotated, row));
        let norm = norm_squared.sqrt();
        let error = error_squared.sqrt() + slack(self.stride) * norm;
        let offset = match self.metric {
            Metric::Dot => -self.center.iter().zip(vector).map(|(&c, &x)| along(c, x)).sum::<f64>(),
            Metric::Cosine | Metric::L2 => norm_squared / 2.0,
        };
        self.tails.make_mut()[slot] =
            Tail { step, offset: offset as f32, error: round_up(error), norm: round_up(norm + error) };
    }

    /// An approximation of the vector that was [set](Self::set), from its codes.
    pub(crate) fn decode(&self, slot: usize) -> Vec<f32> {
        let step = self.tails[slot].step;
        let mut vector: Vec<f32> =
            self.row(slot).iter().map(|&byte| (i32::from(byte) - 128) as f32 * step).collect();
        // The length fits the rotation, so this cannot fail.
        let _ = self.rotation.inverse(&mut vector);
        vector.truncate(self.dimension);
        vector.iter_mut().zip(&self.center).for_each(|(x, c)| *x += c);
        vector
    }

    /// Subtracts the center this many times, pads and rotates; returns the squared length.
    fn rotate(&self, vector: &[f32], centers: f32, rotated: &mut [f32]) -> f64 {
        debug_assert_eq!(vector.len(), self.dimension);
        let (values, padding) = rotated.split_at_mut(self.dimension);
        padding.fill(0.0);
        let norm_squared = if self.center.is_empty() {
            values.copy_from_slice(vector);
            length_squared(vector)
        } else {
            for ((out, &x), &c) in values.iter_mut().zip(vector).zip(&self.center) {
                *out = (f64::from(x) - f64::from(centers) * f64::from(c)) as f32;
            }
            length_squared(values)
        };
        // The length is a multiple of the stride, so this cannot fail.
        let _ = self.rotation.forward(rotated);
        norm_squared
    }

    /// Brings a [prepared](Metric::prepare) query into codes; the second eight bits only if `both`.
    pub(crate) fn query(&self, vector: &[f32], both: bool, query: &mut ScalarQuery) {
        let mut rotated = std::mem::take(&mut query.rotated);
        rotated.resize(self.stride, 0.0);
        let product: f64 = self.center.iter().zip(vector).map(|(&c, &x)| f64::from(c) * f64::from(x)).sum();
        query.along = match self.metric {
            Metric::Dot if self.center.is_empty() => 0.0,
            // Any number is correct; this one leaves the smallest residual for the codes.
            Metric::Dot => {
                let squares = length_squared(&self.center).max(f64::MIN_POSITIVE);
                (product / squares).clamp(-MAX_ALONG, MAX_ALONG) as f32
            }
            Metric::Cosine | Metric::L2 => 1.0,
        };
        let norm_squared = self.rotate(vector, query.along, &mut rotated);
        query.norm = round_up(norm_squared.sqrt());
        query.base = if self.metric == Metric::Dot { -product } else { norm_squared / 2.0 };
        let depth = self.stride as f32 / 64.0 + 16.0;
        query.rounding = match self.metric {
            // The error of the distance by codes, and of the squared differences.
            Metric::L2 => Rounding { square: depth, slope: 0.0, flat: 0.0 },
            // The error of the lengths, which are 1 only up to rounding.
            Metric::Cosine => Rounding { square: depth, slope: 0.0, flat: 16.0 },
            // The error of the products with the vector and with the center.
            Metric::Dot => {
                let slope = 8.0 * (length(vector) + query.along.abs() * self.center_norm);
                Rounding { square: 0.0, slope, flat: slope * self.center_norm }
            }
        };
        query.step = query.codes.quantize(&mut rotated);
        if both {
            query.first_error = length(&rotated);
            query.rest_step = query.rest.quantize(&mut rotated);
            query.error = length(&rotated);
        }
        query.rotated = rotated;
    }

    /// Makes the codes of a stored vector the query.
    pub(crate) fn stored_query(&self, slot: u32, query: &mut ScalarQuery) {
        query.codes.fill(self.row(slot as usize).iter().map(|&byte| (byte ^ 0x80) as i8));
        query.step = self.tails[slot as usize].step;
        query.along = 1.0;
    }

    /// Distances by the query's first eight bits, less the part that is the same for all vectors.
    pub(crate) fn gather(&self, query: &ScalarQuery, ids: &[u32], dots: &mut [i32], out: &mut [f32]) {
        gather_dots(&query.codes, &self.codes, ids, dots);
        for ((out, &dot), &id) in out.iter_mut().zip(&*dots).zip(ids) {
            *out = query.distance(&self.tails[id as usize], dot);
        }
    }

    /// As [`gather`](Self::gather), from a stored vector.
    pub(crate) fn gather_from(&self, slot: u32, ids: &[u32], dots: &mut [i32], out: &mut [f32]) {
        gather_row_dots(self.row(slot as usize), &self.codes, ids, dots);
        let step = self.tails[slot as usize].step;
        for ((out, &dot), &id) in out.iter_mut().zip(&*dots).zip(ids) {
            let tail = &self.tails[id as usize];
            *out = tail.offset - step * tail.step * dot as f32;
        }
    }

    /// Whether two slots have the same codes, as copies of a vector do.
    pub(crate) fn is_copy(&self, a: u32, b: u32) -> bool {
        let (a, b) = (a as usize, b as usize);
        self.tails[a] == self.tails[b] && self.row(a) == self.row(b)
    }

    /// The part that [`gather_from`](Self::gather_from) leaves out, less what is the same for all. With it,
    /// distances between stored vectors can be compared.
    pub(crate) fn base(&self, slot: u32) -> f32 {
        self.tails[slot as usize].offset + if self.metric == Metric::Dot { 1.0 } else { 0.0 }
    }

    /// Distances of up to [`GATHER`] rows by both parts of the query, with bounds: the true distance of row
    /// `ids[i]`, less the part that is the same for all vectors, is within `out[i].0 ± out[i].1`.
    pub(crate) fn intervals(&self, query: &ScalarQuery, ids: &[u32], out: &mut [(f32, f32)]) {
        let (mut first, mut second) = ([0; GATHER], [0; GATHER]);
        let (first, second) = (&mut first[..ids.len()], &mut second[..ids.len()]);
        gather_dots(&query.codes, &self.codes, ids, first);
        gather_dots(&query.rest, &self.codes, ids, second);
        for ((&id, out), (first, second)) in ids.iter().zip(out).zip(first.iter().zip(second.iter())) {
            let tail = &self.tails[id as usize];
            *out = query.interval(tail, *first, *second);
        }
    }

    /// [`intervals`](Self::intervals) of consecutive rows.
    pub(crate) fn scan(&self, query: &ScalarQuery, rows: std::ops::Range<usize>, out: &mut [(f32, f32)]) {
        let (mut first, mut second) = ([0; GATHER], [0; GATHER]);
        let (first, second) = (&mut first[..rows.len()], &mut second[..rows.len()]);
        let codes = &self.codes[rows.start * self.stride..rows.end * self.stride];
        scan_dots(&query.codes, codes, first);
        scan_dots(&query.rest, codes, second);
        let tails = &self.tails[rows];
        per_isa!(cpu::isa(), || {
            for ((tail, out), (first, second)) in tails.iter().zip(out).zip(first.iter().zip(second.iter())) {
                *out = query.interval(tail, *first, *second);
            }
        });
    }
}

impl ScalarQuery {
    /// The distance by the first part, less the part that is the same for all vectors.
    #[inline(always)]
    pub(crate) fn distance(&self, tail: &Tail, dot: i32) -> f32 {
        self.along * tail.offset - self.step * tail.step * dot as f32
    }

    /// The distance by both parts, and a bound on its error.
    #[inline(always)]
    fn interval(&self, tail: &Tail, first: i32, second: i32) -> (f32, f32) {
        let dot = self.step * first as f32 + self.rest_step * second as f32;
        let bound = self.norm * tail.error + self.error * tail.norm;
        let Rounding { square, slope, flat } = self.rounding;
        let sum = self.norm + tail.norm;
        let rounding = square * sum * sum + slope * tail.norm + flat;
        (self.along * tail.offset - tail.step * dot, bound * (1.0 + 1e-5) + f32::EPSILON * rounding)
    }
}

impl CodeQuery {
    /// Rounds `values` to multiples of a step, leaves the residuals in place, and returns the step.
    fn quantize(&mut self, values: &mut [f32]) -> f32 {
        let (step, factor) = step_of(values);
        per_isa!(cpu::isa(), || {
            self.fill(values.iter_mut().map(|x| {
                let code = (*x * factor).round_ties_even().clamp(-127.0, 127.0);
                *x = (-code).mul_add(step, *x);
                code as i8
            }));
        });
        step
    }
}

/// The product of the center with a vector relative to it.
fn along(center: f32, x: f32) -> f64 {
    f64::from(center) * (f64::from(x) - f64::from(center))
}

/// The step between codes, and its inverse; of numbers so small that a step has no inverse, zero.
#[inline(always)]
fn step_of(values: &[f32]) -> (f32, f32) {
    let larger = |most: f32, x: f32| if x.abs() > most { x.abs() } else { most };
    let mut most = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (most, &x) in most.iter_mut().zip(chunk) {
            *most = larger(*most, x);
        }
    }
    let step = most.iter().chain(rest).fold(0.0, |most, &x| larger(most, x)) / 127.0;
    if step >= f32::MIN_POSITIVE { (step, 1.0 / step) } else { (0.0, 0.0) }
}

/// Brings a rotated vector into codes; the step that brings them nearest to it, and the square of what they
/// lose.
#[inline(always)]
fn quantize(rotated: &[f32], row: &mut [u8]) -> (f32, f64) {
    let (_, factor) = step_of(rotated);
    let rotated = rotated.as_chunks::<LANES>().0;
    let row = row.as_chunks_mut::<LANES>().0;
    let (mut products, mut squares) = ([0.0f64; LANES], [0i32; LANES]);
    for (bytes, values) in row.iter_mut().zip(rotated) {
        for (i, &x) in values.iter().enumerate() {
            let code = (x * factor).round_ties_even().clamp(-127.0, 127.0);
            products[i] += f64::from(x) * f64::from(code);
            let code = code as i32;
            squares[i] += code * code;
            bytes[i] = (code + 128) as u8;
        }
    }
    let (products, squares) = (products.iter().sum::<f64>(), squares.iter().sum::<i32>());
    let step = if squares > 0 { (products / f64::from(squares)) as f32 } else { 0.0 };
    let mut lost = [0.0f64; LANES];
    for (bytes, values) in row.iter().zip(rotated) {
        for (i, &x) in values.iter().enumerate() {
            let left = f64::from(x) - f64::from(i32::from(bytes[i]) - 128) * f64::from(step);
            lost[i] += left * left;
        }
    }
    (step, lost.iter().sum())
}

/// The rounding error of an inner product, relative to the product of the lengths: in the differences from
/// the center, in the sum (64 partial sums), and in the rotation of both sides (a dense matrix over at most
/// `stride / 64 · 4` numbers after some ten butterflies).
fn slack(stride: usize) -> f64 {
    (stride as f64 / 4.0 + 130.0) * f64::from(f32::EPSILON) / 2.0
}

/// An upper bound of a vector's length.
fn length(values: &[f32]) -> f32 {
    round_up(length_squared(values).sqrt())
}

/// A 32-bit float that is not below the number.
pub(super) fn round_up(x: f64) -> f32 {
    let rounded = x as f32;
    if f64::from(rounded) < x { rounded.next_up() } else { rounded }
}
