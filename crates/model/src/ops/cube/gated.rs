use breakers_backend::cube::cube_per_row;
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::prelude::*;

use crate::ops::gated::{Activation, GELU_CUBIC, GatedOps, SQRT_2_OVER_PI};

/// Units of a cube, each with one element.
const UNITS: usize = 256;

impl GatedOps for CubeBackend {
    fn gated(gate_up: CubeTensor, activation: Activation) -> CubeTensor {
        let (rows, width) = (gate_up.shape()[0], gate_up.shape()[1] / 2);
        let (client, device) = (gate_up.client.clone(), gate_up.device.clone());
        let shape = Shape::new([rows, width]);
        if rows * width == 0 {
            return zeros_client(client, device, shape, DType::F32);
        }
        let gate_up =
            into_contiguous(if gate_up.dtype == DType::F32 { gate_up } else { cast(gate_up, DType::F32) });
        let out = empty_device_contiguous_dtype(client.clone(), device, shape, DType::F32);
        gated_kernel::launch(
            &client,
            cube_per_row((rows * width).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            gate_up.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            activation,
        );
        out
    }
}

#[cube(launch)]
fn gated_kernel(gate_up: &Tensor<f32>, out: &mut Tensor<f32>, #[comptime] activation: Activation) {
    let at = CUBE_POS * comptime!(UNITS) + UNIT_POS as usize;
    let (rows, width) = (out.shape(0), out.shape(1));
    if at < rows * width {
        // A row holds the gate and then the other factor.
        let start = at / width * width + at;
        let (gate, up) = (gate_up[start], gate_up[start + width]);
        let inner = if comptime!(matches!(activation, Activation::Silu)) {
            gate
        } else {
            // 0.5·x·(1 + tanh u) = x·sigmoid(2u)
            comptime!(2.0 * SQRT_2_OVER_PI) * (gate + comptime!(GELU_CUBIC) * gate * gate * gate)
        };
        out[at] = gate / (1.0f32 + (-inner).exp()) * up;
    }
}
