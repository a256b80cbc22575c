//! Rotations of a layer's inputs before its products.

use crate::{QuantizedLinear, Result};
use breakers_backend::device;
use breakers_cpu::hadamard::Rotation;
use burn::tensor::{Device, Tensor, TensorData};

/// The fewest rows of a product with a small matrix: the kernels for few and for many rows sum in different
/// orders, and a row's bits must not depend on how many others there are.
const MANY_ROWS: usize = 64;

/// A rotation in the same place as the layer's weights.
#[derive(Debug, Clone)]
pub(crate) enum InputRotation {
    /// In the host's memory.
    Host(Rotation),
    /// On a device, by parts: products of all axes with small matrices, which the kernel of plain
    /// weights does row by row.
    Device { factors: Box<Tensor<1>>, matrices: Vec<QuantizedLinear> },
}

impl InputRotation {
    pub(crate) fn new(rotation: &Rotation, device: &Device) -> Result<Self> {
        if device::is_cpu(device) {
            return Ok(Self::Host(rotation.clone()));
        }
        let (factors, matrices) = rotation.parts();
        let matrices: Result<_> = matrices
            .iter()
            .map(|matrix| {
                let n = matrix.len().isqrt();
                QuantizedLinear::from_f32(n, n, matrix, device)
            })
            .collect();
        let factors = Tensor::from_data(TensorData::new(factors, [rotation.len()]), device).into();
        Ok(Self::Device { factors, matrices: matrices? })
    }

    /// # Shapes
    /// `x`: `[n_rows, len]`, and so is the result.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let [n_rows, len] = x.dims();
        match self {
            Self::Host(rotation) => {
                let device = x.device();
                let values = x.into_data().convert::<f32>().try_into_vec::<f32>();
                let mut values =
                    values.unwrap_or_else(|error| panic!("numbers of a tensor in memory: {error:?}"));
                // Rows are as long as the rotation: both were checked against the matrices.
                let done = rotation.forward(&mut values);
                debug_assert!(done.is_ok(), "{done:?}");
                Tensor::from_data(TensorData::new(values, [n_rows, len]), &device)
            }
            Self::Device { factors, matrices } => {
                let mut x = x * factors.as_ref().clone().unsqueeze::<2>();
                for matrix in matrices {
                    let n = matrix.n_inputs();
                    // Each product is along the last axis, which then becomes the first. After all axes the
                    // order is the original one.
                    let turned = matrix.forward(filled(x.reshape([n_rows * len / n, n])));
                    let turned = turned.narrow(0, 0, n_rows * len / n).reshape([n_rows, len / n, n]);
                    x = turned.swap_dims(1, 2).reshape([n_rows, len]);
                }
                x
            }
        }
    }
}

/// The rows, padded with rows of zeros if there are few.
fn filled(x: Tensor<2>) -> Tensor<2> {
    let [n, n_cols] = x.dims();
    if n >= MANY_ROWS {
        return x;
    }
    let zeros = Tensor::zeros([MANY_ROWS - n, n_cols], &x.device());
    Tensor::cat(vec![x, zeros], 0)
}
