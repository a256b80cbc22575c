//! Eight bits a coordinate, with a bound on the error that holds for every vector and query.
//!
//! A vector is padded with zeros to a multiple of 64, rotated, so that no coordinate stands out, and divided by a step
//! of its own, its largest magnitude over 127. With o the vector, ô what its codes stand for, q the query and q̂ = q − r
//! what the query's codes stand for,
//!
//! |⟨q, o⟩ − ⟨q̂, ô⟩| ≤ ‖q‖·‖o − ô‖ + ‖r‖·‖ô‖
//!
//! by the inequality of Cauchy and Schwarz: no assumption on the data. ‖o − ô‖ is stored with each vector, rounded up,
//! and takes in what floating-point sums can lose. That is what lets a scan over codes give exact neighbors.
//!
//! # Memory
//! 8 bits a coordinate, rounded up to 64 coordinates, and 16 bytes a vector.

use crate::{
    Metric, Result,
    distance::{CodeQuery, GATHER, gather_dots, gather_row_dots, scan_dots},
    metric::check_dimension,
};
use breakers_cpu::{self as cpu, hadamard::Rotation, per_isa};
use breakers_files::Buffer;

/// Seed of the rotation; a part of the file format.
const ROTATION_SEED: u64 = 0x5eed_c0de_0005;

/// What is stored with each vector's codes.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Tail {
    /// The step between codes.
    pub step: f32,
    /// What is added to a distance: half the squared length for [`Metric::L2`], otherwise 0.
    pub offset: f32,
    /// An upper bound of ‖o − ô‖, rounding included.
    pub error: f32,
    /// An upper bound of ‖o‖ and of ‖ô‖.
    pub norm: f32,
}

/// Vectors in eight bits a coordinate.
#[derive(Debug, Clone)]
pub struct ScalarCodes {
    metric: Metric,
    dimension: usize,
    stride: usize,
    rotation: Rotation,
    codes: Buffer<u8>,
    tails: Buffer<Tail>,
}

/// A query in the terms of [`ScalarCodes`].
#[derive(Debug, Clone, Default)]
pub struct ScalarQuery {
    /// Eight bits of each coordinate.
    pub(crate) codes: CodeQuery,
    /// Eight bits more, of what the first ones leave over.
    pub(crate) rest: CodeQuery,
    pub(crate) step: f32,
    pub(crate) rest_step: f32,
    pub(crate) norm: f32,
    /// ‖r‖ of the first part alone, if both are computed.
    pub(crate) first_error: f32,
    /// ‖r‖ if both parts are used.
    pub(crate) error: f32,
    rotated: Vec<f32>,
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
        Ok(Self { metric, dimension, stride, rotation, codes: Buffer::new(), tails: Buffer::new() })
    }

    pub(crate) fn from_buffers(
        metric: Metric,
        dimension: usize,
        codes: Buffer<u8>,
        tails: Buffer<Tail>,
    ) -> Result<Self> {
        Ok(Self { codes, tails, ..Self::new(metric, dimension)? })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.tails.len()
    }

    /// Whether there is no vector.
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
        self.rotate(vector, &mut rotated);
        let (step, factor) = step_of(&rotated);
        let row = &mut self.codes.make_mut()[slot * self.stride..][..self.stride];
        let mut error_squared = 0.0f64;
        for (byte, &x) in row.iter_mut().zip(&rotated) {
            let code = (x * factor).round_ties_even().clamp(-127.0, 127.0);
            let left = f64::from(x) - f64::from(code) * f64::from(step);
            error_squared += left * left;
            *byte = (code as i32 + 128) as u8;
        }
        let norm_squared = length_squared(vector);
        let norm = norm_squared.sqrt();
        let error = error_squared.sqrt() + slack(self.stride) * norm;
        self.tails.make_mut()[slot] = Tail {
            step,
            offset: if self.metric == Metric::L2 { (norm_squared / 2.0) as f32 } else { 0.0 },
            error: round_up(error),
            norm: round_up(norm + error),
        };
    }

    /// Pads and rotates.
    fn rotate(&self, vector: &[f32], rotated: &mut [f32]) {
        debug_assert_eq!(vector.len(), self.dimension);
        rotated[..self.dimension].copy_from_slice(vector);
        rotated[self.dimension..].fill(0.0);
        // The length is a multiple of the stride, so that this cannot fail.
        let _ = self.rotation.forward(rotated);
    }

    /// Brings a [prepared](Metric::prepare) query into codes; the second eight bits only if `both`.
    pub(crate) fn query(&self, vector: &[f32], both: bool, query: &mut ScalarQuery) {
        let mut rotated = std::mem::take(&mut query.rotated);
        rotated.resize(self.stride, 0.0);
        self.rotate(vector, &mut rotated);
        query.norm = round_up(length_squared(vector).sqrt());
        query.step = query.codes.quantize(&mut rotated);
        if both {
            query.first_error = length(&rotated);
            query.rest_step = query.rest.quantize(&mut rotated);
            query.error = length(&rotated);
        }
        query.rotated = rotated;
    }

    /// Distances, less what is the same for all vectors, by the query's first eight bits.
    pub(crate) fn gather(&self, query: &ScalarQuery, ids: &[u32], dots: &mut [i32], out: &mut [f32]) {
        gather_dots(&query.codes, &self.codes, ids, dots);
        for ((out, &dot), &id) in out.iter_mut().zip(&*dots).zip(ids) {
            let tail = &self.tails[id as usize];
            *out = tail.offset - query.step * tail.step * dot as f32;
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

    /// What [`gather_from`](Self::gather_from) leaves out, so that with it distances between stored vectors compare.
    pub(crate) fn base(&self, slot: u32) -> f32 {
        match self.metric {
            Metric::L2 => self.tails[slot as usize].offset,
            _ => 1.0,
        }
    }

    /// Distances of up to [`GATHER`] rows by both parts of the query, with bounds: the true distance of row `ids[i]`,
    /// less what is the same for all vectors, is within `out[i].0 ± out[i].1`.
    pub(crate) fn intervals(&self, query: &ScalarQuery, ids: &[u32], out: &mut [(f32, f32)]) {
        let (mut first, mut second) = ([0; GATHER], [0; GATHER]);
        let (first, second) = (&mut first[..ids.len()], &mut second[..ids.len()]);
        gather_dots(&query.codes, &self.codes, ids, first);
        gather_dots(&query.rest, &self.codes, ids, second);
        let (l2, depth) = (self.metric == Metric::L2, self.stride as f32 / 64.0 + 16.0);
        for ((&id, out), (first, second)) in ids.iter().zip(out).zip(first.iter().zip(second.iter())) {
            let tail = &self.tails[id as usize];
            let dot = query.step * *first as f32 + query.rest_step * *second as f32;
            *out = (tail.offset - tail.step * dot, query.bound(tail, l2, depth));
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
        let (l2, depth) = (self.metric == Metric::L2, self.stride as f32 / 64.0 + 16.0);
        per_isa!(cpu::isa(), || {
            for ((tail, out), (first, second)) in tails.iter().zip(out).zip(first.iter().zip(second.iter())) {
                let dot = query.step * *first as f32 + query.rest_step * *second as f32;
                *out = (tail.offset - tail.step * dot, query.bound(tail, l2, depth));
            }
        });
    }
}

impl ScalarQuery {
    /// How far a distance by both parts can be from the true one; `depth` is that of sums of squares.
    #[inline(always)]
    fn bound(&self, tail: &Tail, l2: bool, depth: f32) -> f32 {
        let bound = self.norm * tail.error + self.error * tail.norm;
        // Rounding: of this sum, of the distance by codes, and of the squared differences of L2.
        let sum = self.norm + tail.norm;
        let rounding = if l2 { depth * sum * sum } else { 8.0 * self.norm * tail.norm };
        bound * (1.0 + 1e-5) + f32::EPSILON * rounding
    }
}

impl CodeQuery {
    /// Takes the multiples of a step out of `values` and leaves the rest there; the step.
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

/// In sixteen partial sums, so that an addition need not wait for the one before it.
fn length_squared(vector: &[f32]) -> f64 {
    let mut sums = [0.0f64; 16];
    let (chunks, rest) = vector.as_chunks::<16>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
}

/// The step between codes, and its inverse; of numbers so small that a step has no inverse, zero.
fn step_of(values: &[f32]) -> (f32, f32) {
    let step = values.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
    if step >= f32::MIN_POSITIVE { (step, 1.0 / step) } else { (0.0, 0.0) }
}

/// What floating-point arithmetic can lose of an inner product, relative to the product of the lengths: in the sum
/// (64 partial sums), and in the rotation of both sides (a dense matrix over at most `stride / 64 · 4` numbers after
/// some ten butterflies).
fn slack(stride: usize) -> f64 {
    (stride as f64 / 4.0 + 128.0) * f64::from(f32::EPSILON) / 2.0
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
