//! Attention of an encoder: every token of a text sees every other one.

use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension, tensor::FloatTensor};
use burn::tensor::{Shape, Slice, Tensor};

use breakers_backend::{cpu, flex, math, pool};

/// Extension of Burn's backends: see [`bidirectional_attention`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait BidirectionalOps: Backend {
    /// See [`bidirectional_attention`].
    fn bidirectional(qkv: FloatTensor<Self>, lengths: Vec<usize>, n_heads: usize) -> FloatTensor<Self> {
        bidirectional_reference::<Self>(qkv, lengths, n_heads)
    }
}

/// The reference, in tensor operations.
pub fn bidirectional_reference<B: Backend>(
    qkv: FloatTensor<B>,
    lengths: Vec<usize>,
    n_heads: usize,
) -> FloatTensor<B> {
    let width = qkv.shape()[1] / 3;
    let d = width / n_heads;
    let mut from = 0;
    let mut outs = Vec::with_capacity(lengths.len());
    for n in lengths.into_iter().filter(|&n| n > 0) {
        let part = |i: usize| {
            let x = B::float_slice(
                qkv.clone(),
                &[Slice::from(from..from + n), Slice::from(i * width..(i + 1) * width)],
            );
            B::float_swap_dims(B::float_reshape(x, Shape::new([n, n_heads, d])), 0, 1)
        };
        let scores = B::float_matmul(part(0), B::float_swap_dims(part(1), 1, 2));
        let scores = B::float_mul_scalar(scores, (1.0 / (d as f32).sqrt()).into());
        let out = B::float_matmul(B::softmax(scores, 2), part(2));
        outs.push(B::float_reshape(B::float_swap_dims(out, 0, 1), Shape::new([n, width])));
        from += n;
    }
    if outs.is_empty() {
        return B::float_slice(qkv, &[Slice::from(0..0), Slice::from(0..width)]);
    }
    B::float_cat(outs, 0)
}

impl BidirectionalOps for burn_flex::Flex {
    fn bidirectional(
        qkv: burn_flex::FlexTensor,
        lengths: Vec<usize>,
        n_heads: usize,
    ) -> burn_flex::FlexTensor {
        let qkv = flex::contiguous(qkv);
        let rows = qkv.layout().shape()[0];
        let width = qkv.layout().shape()[1] / 3;
        let isa = cpu::isa();
        let x = flex::as_slice(&qkv);
        let mut out = vec![0.0; rows * width];
        let shared = pool::DisjointMut::new(&mut out);
        let starts: Vec<usize> = lengths
            .iter()
            .scan(0, |sum, n| {
                let at = *sum;
                *sum += n;
                Some(at)
            })
            .collect();
        let d = width / n_heads;
        pool::parallel_for(lengths.len() * n_heads, |task| {
            let (text, head) = (task / n_heads, task % n_heads);
            let (start, n) = (starts[text], lengths[text]);
            let mut scores = vec![0.0; n];
            let at = |row: usize, part: usize| {
                let from = (start + row) * 3 * width + part * width + head * d;
                &x[from..from + d]
            };
            for row in 0..n {
                let from = (start + row) * width + head * d;
                // SAFETY: a task owns its head's columns of its text's rows.
                let out = unsafe { shared.slice_mut(from..from + d) };
                math::per_isa!(isa, || attend_row(n, d, row, &at, &mut scores, out));
            }
        });
        flex::from_vec(out, Shape::new([rows, width]))
    }
}

#[cfg(feature = "cube")]
impl BidirectionalOps for burn_cubecl::CubeBackend {}

/// Lanes of the dot product: a fixed order of accumulation, whatever the instruction set.
const LANES: usize = 16;

#[inline(always)]
fn attend_row<'a>(
    n: usize,
    d: usize,
    row: usize,
    at: &impl Fn(usize, usize) -> &'a [f32],
    scores: &mut [f32],
    out: &mut [f32],
) {
    let scale = 1.0 / (d as f32).sqrt();
    let q = at(row, 0);
    for (j, score) in scores.iter_mut().enumerate() {
        let mut lanes = [0.0f32; LANES];
        for (q, k) in q.chunks(LANES).zip(at(j, 1).chunks(LANES)) {
            for ((lane, q), k) in lanes.iter_mut().zip(q).zip(k) {
                *lane = q.mul_add(*k, *lane);
            }
        }
        *score = lanes.iter().sum::<f32>() * scale;
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = math::exp(*score - max);
        sum += *score;
    }
    out.fill(0.0);
    for j in 0..n {
        let weight = scores[j] / sum;
        for (o, v) in out.iter_mut().zip(at(j, 2)) {
            *o = weight.mul_add(*v, *o);
        }
    }
}

/// Attention without a mask, within each of several texts.
///
/// # Shapes
/// `qkv`: `[rows, 3·width]`, a row holding query, key and value; `lengths`: rows of each text, which sum to
/// `rows`. Result: `[rows, width]`.
///
/// # Panics
/// If the lengths do not sum to the rows, or `n_heads` does not divide the width.
///
/// # Source
/// Attention Is All You Need, arXiv 1706.03762, section 3.2.
pub fn bidirectional_attention(qkv: Tensor<2>, lengths: &[usize], n_heads: usize) -> Tensor<2> {
    let [rows, columns] = qkv.dims();
    assert_eq!(lengths.iter().sum::<usize>(), rows, "rows of all texts");
    assert!(n_heads > 0 && columns.is_multiple_of(3 * n_heads), "{columns} columns for {n_heads} heads");
    Tensor::from_dispatch(Dispatch::bidirectional(qkv.into_dispatch(), lengths.to_vec(), n_heads))
}
