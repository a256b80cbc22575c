//! The most likely tokens of rows of logits.

use breakers_backend::flex;
use breakers_core::top_k;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension, tensor::FloatTensor};
use burn::tensor::{FloatDType, IntDType, Shape, Slice, Tensor};

/// Ids below this are exact as `f32`.
pub(crate) const MAX_VOCAB: usize = 1 << 24;
/// The most tokens that are searched for on a device: each costs another pass over the row.
pub(crate) const MAX_K: usize = 64;

/// Extension of Burn's backends: see [`best`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait BestOps: Backend {
    /// See [`best`].
    fn best(logits: FloatTensor<Self>, k: usize) -> FloatTensor<Self> {
        best_reference::<Self>(logits, k)
    }
}

/// The reference, in tensor operations. It does not notice NaN.
pub fn best_reference<B: Backend>(logits: FloatTensor<B>, k: usize) -> FloatTensor<B> {
    let n_rows = logits.shape()[0];
    let first = |n: usize| [Slice::from(0..n_rows), Slice::from(0..n)];
    let (values, ids) = B::float_sort_with_indices(logits, 1, true, IntDType::I32);
    let largest = B::float_slice(values.clone(), &first(1));
    let shifted = B::float_sub(values, largest);
    let log_sum = B::float_log(B::float_sum_dim(B::float_exp(shifted.clone()), 1));
    let logprobs = B::float_sub(B::float_slice(shifted, &first(k)), log_sum);
    let ids = B::int_into_float(B::int_slice(ids, &first(k)), FloatDType::F32);
    B::float_cat(vec![ids, logprobs], 1)
}

impl BestOps for burn_flex::Flex {
    fn best(logits: burn_flex::FlexTensor, k: usize) -> burn_flex::FlexTensor {
        let logits = flex::contiguous_f32(logits);
        let shape = logits.layout().shape();
        let (n_rows, vocab) = (shape[0], shape[1]);
        let mut out = Vec::with_capacity(n_rows * 2 * k);
        for row in flex::as_slice(&logits).chunks_exact(vocab.max(1)) {
            match top_k(row, k) {
                Ok(best) => {
                    out.extend(best.iter().map(|best| best.token as f32));
                    out.extend(best.iter().map(|best| best.logprob));
                }
                Err(_) => out.extend((0..2 * k).map(|i| if i == 0 { -1.0 } else { f32::NAN })),
            }
        }
        flex::from_vec(out, Shape::new([n_rows, 2 * k]))
    }
}

/// The `k` most likely tokens of each row: their ids, best first and the lowest id first among equal logits,
/// followed by their log-probabilities under the row's softmax. Where a logit is NaN, the first id is −1.
///
/// # Shapes
/// `logits`: `[rows, vocab]`; result: `[rows, 2·k]`, ids as numbers and then log-probabilities. `k` beyond
/// the vocabulary counts as the vocabulary.
///
/// # Panics
/// If the vocabulary is larger than 2²⁴, whose ids `f32` does not hold.
///
/// # Example
/// ```
/// use breakers_model::ops::best;
/// use burn::tensor::{Device, Tensor};
///
/// let logits = Tensor::<2>::from_floats([[0.0, 2.0, 0.0, 2.0]], &Device::flex());
/// let best = best(logits, 2).into_data().try_to_vec::<f32>().unwrap();
/// assert_eq!(best[..2], [1.0, 3.0]);
/// assert!((best[2].exp() - 0.44).abs() < 0.01);
/// ```
pub fn best(logits: Tensor<2>, k: usize) -> Tensor<2> {
    let vocab = logits.dims()[1];
    assert!(vocab <= MAX_VOCAB, "a vocabulary of {vocab}; at most {MAX_VOCAB} are possible");
    Tensor::from_dispatch(Dispatch::best(logits.into_dispatch(), k.min(vocab)))
}
