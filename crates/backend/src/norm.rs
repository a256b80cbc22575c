//! Normalization of rows: [`rms_norm`] and [`layer_norm`].
//!
//! The module also shows the pattern that custom operations follow in all breakers crates:
//! 1. an extension trait over Burn's `Backend` ([`NormOps`]), whose default bodies are the references
//!    in tensor operations;
//! 2. `impl … for Flex` in `norm/flex.rs`, a thin call into a function over slices that needs no Burn;
//! 3. `impl … for CubeBackend` in `norm/cube.rs`, one CubeCL kernel for every GPU;
//! 4. free functions over `Tensor<D>`, which check the shapes once;
//! 5. a test that sends the same inputs through all of them ([`harness`](crate::harness)).
//!
//! # Numbers
//! Every row is computed by itself and in one order: on the CPU in 16 interleaved partial sums that are added
//! pairwise, with the same bits on every instruction set; on a GPU in 64, by one cube per row. A row's result
//! therefore depends neither on the number of rows in the call nor on the number of threads.
//!
//! # Source
//! Zhang and Sennrich, "Root mean square layer normalization", arXiv 1910.07467, equation 4; Ba, Kiros and
//! Hinton, "Layer normalization", arXiv 1607.06450, section 3.

#[cfg(feature = "cube")]
mod cube;
mod flex;
#[cfg(test)]
mod tests;

pub use flex::{layer_norm_rows, rms_norm_rows};

use burn::{
    backend::{Backend, Dispatch, TensorMetadata, backend_extension, tensor::FloatTensor},
    tensor::{Shape, Tensor},
};

/// The operations of this module on a backend; use the free functions instead.
///
/// `x` is `[rows, width]`, `weight` and `bias` are `[width]`.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait NormOps: Backend {
    /// See [`rms_norm_offset`].
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        offset: f32,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        rms_norm_generic::<Self>(x, weight, offset, epsilon)
    }

    /// See [`layer_norm`].
    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        layer_norm_generic::<Self>(x, weight, bias, epsilon)
    }
}

/// Divides each row by its root mean square and multiplies it by `weight`:
/// y = x / √(mean(x²) + epsilon) · weight.
///
/// # Shapes
/// - `x`: `[rows, width]`
/// - `weight`: `[width]`
/// - result: `[rows, width]`
///
/// The result has the element type of `x`; sums are in `f32` whatever the type.
///
/// # Panics
/// If `weight` is not as long as a row, if the tensors are on different devices, or if our kernels do not run
/// on the device (see [`device::require`](crate::device::require)).
///
/// # Source
/// Zhang and Sennrich, arXiv 1910.07467, equation 4, with the epsilon that every model adds.
///
/// # Example
/// ```
/// use breakers_backend::{device, norm::rms_norm};
/// use burn::tensor::Tensor;
///
/// let device = device::open("flex").unwrap();
/// let x = Tensor::<2>::from_floats([[3.0, 4.0]], &device);
/// let weight = Tensor::<1>::from_floats([1.0, 10.0], &device);
/// let y = rms_norm(x, weight, 0.0).into_data().to_vec::<f32>().unwrap();
/// assert!((y[0] - 3.0 / 12.5f32.sqrt()).abs() < 1e-6);
/// assert!((y[1] - 40.0 / 12.5f32.sqrt()).abs() < 1e-5);
/// ```
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f32) -> Tensor<2> {
    rms_norm_offset(x, weight, 0.0, epsilon)
}

/// As [`rms_norm`], with `weight + offset` as the weight: Gemma's checkpoints store weight − 1 (its GGUF
/// files store the weight itself).
///
/// # Shapes
/// As [`rms_norm`].
///
/// # Panics
/// As [`rms_norm`].
pub fn rms_norm_offset(x: Tensor<2>, weight: Tensor<1>, offset: f32, epsilon: f32) -> Tensor<2> {
    let weight = vector_for(&x, "weight", weight);
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as NormOps>::rms_norm(x, weight, offset, epsilon))
}

/// Shifts each row to mean 0, scales it to variance 1, multiplies it by `weight` and adds `bias`:
/// y = (x − mean(x)) / √(variance(x) + epsilon) · weight + bias, with the variance over all of the row.
///
/// # Shapes
/// - `x`: `[rows, width]`
/// - `weight`: `[width]`
/// - `bias`: `[width]`
/// - result: `[rows, width]`
///
/// # Panics
/// As [`rms_norm`].
///
/// # Source
/// Ba, Kiros and Hinton, arXiv 1607.06450, section 3, with the epsilon that every model adds.
///
/// # Example
/// ```
/// use breakers_backend::{device, norm::layer_norm};
/// use burn::tensor::Tensor;
///
/// let device = device::open("flex").unwrap();
/// let x = Tensor::<2>::from_floats([[1.0, 3.0]], &device);
/// let weight = Tensor::<1>::from_floats([2.0, 2.0], &device);
/// let bias = Tensor::<1>::from_floats([0.0, 1.0], &device);
/// let y = layer_norm(x, weight, bias, 0.0).into_data().to_vec::<f32>().unwrap();
/// assert_eq!(y, [-2.0, 3.0]);
/// ```
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f32) -> Tensor<2> {
    let (weight, bias) = (vector_for(&x, "weight", weight), vector_for(&x, "bias", bias));
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(<Dispatch as NormOps>::layer_norm(x, weight, bias, epsilon))
}

/// [`rms_norm_offset`] in tensor operations, on any device: the reference of the kernels.
pub fn rms_norm_reference(x: Tensor<2>, weight: Tensor<1>, offset: f32, epsilon: f32) -> Tensor<2> {
    let weight = vector_for(&x, "weight", weight);
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(rms_norm_generic::<Dispatch>(x, weight, offset, epsilon))
}

/// [`layer_norm`] in tensor operations, on any device: the reference of the kernels.
pub fn layer_norm_reference(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f32) -> Tensor<2> {
    let (weight, bias) = (vector_for(&x, "weight", weight), vector_for(&x, "bias", bias));
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(layer_norm_generic::<Dispatch>(x, weight, bias, epsilon))
}

/// The vector in the element type of `x`, as kernels expect it.
fn vector_for(x: &Tensor<2>, what: &str, vector: Tensor<1>) -> Tensor<1> {
    let ([_, width], [found]) = (x.dims(), vector.dims());
    assert_eq!(found, width, "the {what} has {found} elements for rows of {width}");
    if vector.dtype() == x.dtype() { vector } else { vector.cast(x.dtype()) }
}

fn rms_norm_generic<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    offset: f32,
    epsilon: f32,
) -> FloatTensor<B> {
    if x.shape().num_elements() == 0 {
        return x;
    }
    let weight = B::float_add_scalar(as_row::<B>(weight), offset.into());
    let mean_square = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 1);
    let root = B::float_sqrt(B::float_add_scalar(mean_square, epsilon.into()));
    B::float_mul(B::float_div(x, root), weight)
}

fn layer_norm_generic<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    epsilon: f32,
) -> FloatTensor<B> {
    if x.shape().num_elements() == 0 {
        return x;
    }
    let centered = B::float_sub(x.clone(), B::float_mean_dim(x, 1));
    let variance = B::float_mean_dim(B::float_mul(centered.clone(), centered.clone()), 1);
    let deviation = B::float_sqrt(B::float_add_scalar(variance, epsilon.into()));
    let scaled = B::float_mul(B::float_div(centered, deviation), as_row::<B>(weight));
    B::float_add(scaled, as_row::<B>(bias))
}

fn as_row<B: Backend>(vector: FloatTensor<B>) -> FloatTensor<B> {
    let width = vector.shape()[0];
    B::float_reshape(vector, Shape::new([1, width]))
}
