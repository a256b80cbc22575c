//! The CPU kernels: functions over slices, and their calls from Burn.

use super::NormOps;
use crate::flex::{as_slice, contiguous_f32, from_f32};
use breakers_cpu::{self as cpu, Isa, per_isa, pool};
use burn_flex::{Flex, FlexTensor};

/// Partial sums of a row.
const LANES: usize = 16;
/// With fewer elements than this the calling thread works alone; a task has about this many.
const MIN_PARALLEL: usize = 16 * 1024;

impl NormOps for Flex {
    fn rms_norm(x: FlexTensor, weight: FlexTensor, offset: f32, epsilon: f32) -> FlexTensor {
        let dtype = x.dtype();
        let (x, weight) = (contiguous_f32(x), contiguous_f32(weight));
        let mut out = vec![0.0; x.layout().num_elements()];
        rms_norm_rows(cpu::isa(), as_slice(&x), as_slice(&weight), offset, epsilon, &mut out);
        from_f32(out, x.layout().shape().clone(), dtype)
    }

    fn layer_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, epsilon: f32) -> FlexTensor {
        let dtype = x.dtype();
        let (x, weight, bias) = (contiguous_f32(x), contiguous_f32(weight), contiguous_f32(bias));
        let mut out = vec![0.0; x.layout().num_elements()];
        layer_norm_rows(cpu::isa(), as_slice(&x), as_slice(&weight), as_slice(&bias), epsilon, &mut out);
        from_f32(out, x.layout().shape().clone(), dtype)
    }
}

/// [`rms_norm_offset`](super::rms_norm_offset) over slices.
///
/// # Shapes
/// - `x`, `out`: `[rows, width]`
/// - `weight`: `[width]`
///
/// # Panics
/// If `x` and `out` differ in length or hold no whole number of rows.
pub fn rms_norm_rows(isa: Isa, x: &[f32], weight: &[f32], offset: f32, epsilon: f32, out: &mut [f32]) {
    in_parallel(weight.len(), x, out, |x, out| {
        per_isa!(isa, || rms_norm_plain(x, weight, offset, epsilon, out))
    });
}

/// [`layer_norm`](super::layer_norm) over slices.
///
/// # Shapes
/// - `x`, `out`: `[rows, width]`
/// - `weight`, `bias`: `[width]`
///
/// # Panics
/// If `weight` and `bias`, or `x` and `out`, differ in length, or if the latter hold no whole number of rows.
pub fn layer_norm_rows(isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
    assert_eq!(bias.len(), weight.len(), "weight and bias differ in length");
    in_parallel(weight.len(), x, out, |x, out| {
        per_isa!(isa, || layer_norm_plain(x, weight, bias, epsilon, out))
    });
}

#[inline(always)]
fn rms_norm_plain(x: &[f32], weight: &[f32], offset: f32, epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let squares = sum(x, |sum, x| x.mul_add(x, sum));
        let scale = 1.0 / (squares / width as f32 + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * (weight + offset);
        }
    }
}

#[inline(always)]
fn layer_norm_plain(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = sum(x, |sum, x| sum + x) / width as f32;
        let squares = sum(x, |sum, x| (x - mean).mul_add(x - mean, sum));
        let scale = 1.0 / (squares / width as f32 + epsilon).sqrt();
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = ((x - mean) * scale).mul_add(*weight, *bias);
        }
    }
}

/// Calls `rows` with whole rows of input and output: with all of them, or with parts from several threads.
fn in_parallel(width: usize, x: &[f32], out: &mut [f32], rows: impl Fn(&[f32], &mut [f32]) + Sync) {
    assert_eq!(x.len(), out.len(), "input and output differ in length");
    if x.is_empty() {
        return;
    }
    assert!(width > 0 && x.len().is_multiple_of(width), "{} elements are no rows of {width}", x.len());
    if out.len() < 2 * MIN_PARALLEL {
        rows(x, out);
    } else {
        let chunk = MIN_PARALLEL.div_ceil(width) * width;
        pool::parallel_chunks_mut(out, chunk, |start, out| rows(&x[start..][..out.len()], out));
    }
}

/// The sum of a row in [`LANES`] interleaved partial sums, which are then added pairwise: an order that
/// depends neither on the instruction set nor on the number of rows. `add` adds one element's term to a
/// partial sum.
#[inline(always)]
fn sum(row: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = add(lanes[lane], chunk[lane]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = add(*lane, *x);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
