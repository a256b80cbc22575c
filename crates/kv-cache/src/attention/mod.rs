//! Attention without a cache: over keys and values that are tensors.
//!
//! The three implementations of the operation: tensor operations (the reference), the CPU kernel that the
//! caches use, and GPU kernels.

#[cfg(feature = "cube")]
pub(crate) mod cube;
pub(crate) mod flex;
#[cfg(test)]
mod tests;
pub(crate) mod visible;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, Shape, Tensor, TensorData};

use crate::checks::{check_heads, check_scale, require};
use crate::{Error, Result, Visible};

/// The operation on a backend; use [`attention`] instead, which checks the shapes.
///
/// - `q`: `[n_rows, n_heads, head_dim]`, 32-bit floats
/// - `k`, `v`: `[n_keys, n_kv_heads, head_dim]`, 16- or 32-bit floats
/// - result: `[n_rows, n_heads * head_dim]`, 32-bit floats
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait AttentionOps: Backend {
    /// See [`attention`].
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        visible: Visible,
        scale: f32,
    ) -> FloatTensor<Self> {
        attention_generic::<Self>(q, k, v, &visible, scale)
    }
}

/// Softmax attention: each row's result is the mean of the values that it sees, weighted by
/// exp(scale · query · key).
///
/// On the CPU a row's result has the same bits whatever other rows are in the call: see
/// [`KvCache`](crate::KvCache).
///
/// # Shapes
/// - `q`: `[n_rows, n_heads, head_dim]`; query head h reads key-value head h / (n_heads / n_kv_heads)
/// - `k`, `v`: `[n_keys, n_kv_heads, head_dim]`
/// - result: `[n_rows, n_heads * head_dim]`
///
/// # Errors
/// [`Error::TensorShape`] and [`Error::HeadCount`] if the tensors' shapes do not match,
/// [`Error::VisibleShape`] if `visible` does not match them, [`Error::UnsupportedDevice`] and
/// [`Error::Device`] for devices that are not supported or differ, and, on the CPU only, [`Error::NotFinite`]
/// for a NaN or an infinity in the input.
///
/// # Source
/// Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1; shared key-value heads: Ainslie et al. 2023,
/// arXiv 2305.13245.
///
/// # Example
/// ```
/// use breakers_kv_cache::{Visible, attention};
/// use burn::tensor::{Device, Distribution, Tensor};
///
/// # fn main() -> Result<(), breakers_kv_cache::Error> {
/// // An encoder's layer over 7 tokens: every token sees every other one.
/// let random = || Tensor::<3>::random([7, 12, 32], Distribution::Default, &Device::flex());
/// let out = attention(random(), random(), random(), &Visible::all(7, 7), 1.0 / 32f32.sqrt())?;
/// assert_eq!(out.dims(), [7, 12 * 32]);
/// # Ok(())
/// # }
/// ```
pub fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    visible: &Visible,
    scale: f32,
) -> Result<Tensor<2>> {
    check(&q, &k, &v, visible, scale)?;
    if breakers_backend::device::is_cpu(&q.device()) {
        return flex::attention_tensors(q, k, v, visible, scale);
    }
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Ok(Tensor::from_dispatch(<Dispatch as AttentionOps>::attention(q, k, v, visible.clone(), scale)))
}

/// [`attention`] in tensor operations, on any device: the reference of the kernels.
///
/// # Errors
/// As [`attention`], but for [`Error::NotFinite`].
pub fn attention_reference(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    visible: &Visible,
    scale: f32,
) -> Result<Tensor<2>> {
    check(&q, &k, &v, visible, scale)?;
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Ok(Tensor::from_dispatch(attention_generic::<Dispatch>(q, k, v, visible, scale)))
}

fn check(q: &Tensor<3>, k: &Tensor<3>, v: &Tensor<3>, visible: &Visible, scale: f32) -> Result<()> {
    let ([n_rows, n_heads, head_dim], [n_keys, n_kv_heads, _]) = (q.dims(), k.dims());
    for (tensor, found, expected) in
        [("k", k.dims(), [n_keys, n_kv_heads, head_dim]), ("v", v.dims(), [n_keys, n_kv_heads, head_dim])]
    {
        if found != expected {
            return Err(Error::TensorShape { tensor, expected, found });
        }
    }
    check_heads(n_heads, n_kv_heads)?;
    check_scale(scale)?;
    visible.check(n_rows, n_keys)?;
    let device = q.device();
    require(&device)?;
    for (tensor, found) in [("k", k.device()), ("v", v.device())] {
        if found != device {
            return Err(Error::Device {
                tensor,
                expected: format!("{device:?}"),
                found: format!("{found:?}"),
            });
        }
    }
    Ok(())
}

fn attention_generic<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    visible: &Visible,
    scale: f32,
) -> FloatTensor<B> {
    let (n_rows, n_heads, head_dim) = (q.shape()[0], q.shape()[1], q.shape()[2]);
    let (n_keys, n_kv_heads) = (k.shape()[0], k.shape()[1]);
    if n_rows * n_keys * head_dim == 0 {
        let width = Shape::new([n_rows, n_heads * head_dim]);
        return B::float_zeros(width, &q.device(), FloatDType::F32);
    }
    let group = n_heads / n_kv_heads;
    // [heads, tokens, head_dim], each key-value head once for every query head that reads it.
    let by_head = |x: FloatTensor<B>| {
        let x = B::float_permute(B::float_cast(x, FloatDType::F32), &[1, 0, 2]);
        let x = B::float_reshape(x, Shape::new([n_kv_heads, 1, n_keys, head_dim]));
        let x = B::float_expand(x, Shape::new([n_kv_heads, group, n_keys, head_dim]));
        B::float_reshape(x, Shape::new([n_heads, n_keys, head_dim]))
    };
    let (k, v) = (by_head(k), by_head(v));
    let device = q.device();
    let q = B::float_permute(B::float_cast(q, FloatDType::F32), &[1, 0, 2]);
    let scores = B::float_mul_scalar(B::float_matmul(q, B::float_swap_dims(k, 1, 2)), scale.into());

    let mask = B::float_from_data(TensorData::new(visible.mask(), [1, n_rows, n_keys]), &device);
    let hidden = B::float_mul_scalar(B::float_sub_scalar(mask.clone(), 1.0.into()), 1e30.into());
    let scores = B::float_add(B::float_mul(scores, mask.clone()), hidden);
    let largest = B::float_max_dim(scores.clone(), 2);
    let weights = B::float_mul(B::float_exp(B::float_sub(scores, largest)), mask);
    // A row that sees nothing has the sum zero: the smallest positive number keeps it zero.
    let sum = B::float_clamp_min(B::float_sum_dim(weights.clone(), 2), f32::MIN_POSITIVE.into());
    let out = B::float_div(B::float_matmul(weights, v), sum);
    B::float_reshape(B::float_permute(out, &[1, 0, 2]), Shape::new([n_rows, n_heads * head_dim]))
}
