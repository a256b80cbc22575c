//! The gated activation of a feed-forward layer (GLU variants, arXiv 2002.05202).

use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension, tensor::FloatTensor};
use burn::tensor::{FloatDType, Shape, Slice, Tensor};

use breakers_backend::flex;
use breakers_cpu::{self as cpu, math, per_isa, pool};

/// The function applied to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// x · sigmoid(x), as in Llama and Qwen.
    Silu,
    /// The tanh approximation of GELU, as in Gemma.
    GeluTanh,
}

/// √(2/π), of the tanh approximation (arXiv 1606.08415, section 2).
pub(super) const SQRT_2_OVER_PI: f32 = 0.797_884_6;
pub(super) const GELU_CUBIC: f32 = 0.044_715;

/// Extension of Burn's backends: see [`gated_activation`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait GatedOps: Backend {
    /// See [`gated_activation`].
    fn gated(gate_up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        gated_reference::<Self>(gate_up, activation)
    }
}

/// The reference, in tensor operations.
pub fn gated_reference<B: Backend>(gate_up: FloatTensor<B>, activation: Activation) -> FloatTensor<B> {
    let shape = gate_up.shape();
    let (rows, width) = (shape[0], shape[1] / 2);
    if rows * width == 0 {
        return B::float_zeros(Shape::new([rows, width]), &gate_up.device(), FloatDType::F32);
    }
    let half = |from: usize| [Slice::from(0..rows), Slice::from(from..from + width)];
    let gate = B::float_slice(gate_up.clone(), &half(0));
    let up = B::float_slice(gate_up, &half(width));
    let activated = match activation {
        Activation::Silu => B::float_mul(gate.clone(), B::sigmoid(gate)),
        Activation::GeluTanh => {
            // 0.5·x·(1 + tanh u) = x·sigmoid(2u)
            let cube = B::float_mul(B::float_mul(gate.clone(), gate.clone()), gate.clone());
            let u = B::float_add(gate.clone(), B::float_mul_scalar(cube, GELU_CUBIC.into()));
            B::float_mul(gate, B::sigmoid(B::float_mul_scalar(u, (2.0 * SQRT_2_OVER_PI).into())))
        }
    };
    B::float_mul(activated, up)
}

impl GatedOps for burn_flex::Flex {
    fn gated(gate_up: burn_flex::FlexTensor, activation: Activation) -> burn_flex::FlexTensor {
        let gate_up = flex::contiguous(gate_up);
        let shape = gate_up.layout().shape().clone();
        let (rows, width) = (shape[0], shape[1] / 2);
        let x = flex::as_slice(&gate_up);
        let isa = cpu::isa();
        let mut out = vec![0.0; rows * width];
        let shared = pool::DisjointMut::new(&mut out);
        pool::parallel_chunks(rows, 1.max(8192 / width.max(1)), |rows| {
            for row in rows {
                // SAFETY: every row is visited by one task only.
                let out = unsafe { shared.slice_mut(row * width..(row + 1) * width) };
                let (gate, up) = x[row * 2 * width..(row + 1) * 2 * width].split_at(width);
                per_isa!(isa, || gated_row(gate, up, activation, out));
            }
        });
        flex::from_vec(out, Shape::new([rows, width]))
    }
}

#[inline(always)]
fn gated_row(gate: &[f32], up: &[f32], activation: Activation, out: &mut [f32]) {
    match activation {
        Activation::Silu => {
            for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *o = g / (1.0 + math::exp(-g)) * u;
            }
        }
        Activation::GeluTanh => {
            for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                let v = 2.0 * SQRT_2_OVER_PI * (g + GELU_CUBIC * g * g * g);
                *o = g / (1.0 + math::exp(-v)) * u;
            }
        }
    }
}

/// Activates the gate and multiplies it with the other half.
///
/// # Shapes
/// `gate_up`: `[rows, 2·width]`, a row holding the gate first. Result: `[rows, width]`.
///
/// # Source
/// GLU Variants Improve Transformer, arXiv 2002.05202, section 2.
///
/// # Example
/// ```
/// use breakers_model::ops::{Activation, gated_activation};
/// use burn::tensor::{Device, Tensor};
/// let x = Tensor::<2>::from_floats([[0.0, 2.0, 3.0, 5.0]], &Device::flex());
/// let y = gated_activation(x, Activation::Silu).into_data().to_vec::<f32>().unwrap();
/// assert_eq!(y[0], 0.0);
/// assert!((y[1] - 2.0 / (1.0 + (-2.0f32).exp()) * 5.0).abs() < 1e-5);
/// ```
pub fn gated_activation(gate_up: Tensor<2>, activation: Activation) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::gated(gate_up.into_dispatch(), activation))
}
