// A compile-time condition must stand alone: combined with another one it would be evaluated at run time.
#![allow(clippy::collapsible_if)]

use breakers_backend::cube::{cube_per_row, row_of_cube, sum_of_units};
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::prelude::*;

use crate::ops::heads::{HeadLayout, HeadOps, HeadTensors, OptionalVector, RopeStyle, heads_reference};

/// Units of a cube, a power of two; a cube computes one head of one row. It fixes the order of the norm's
/// sum.
const UNITS: usize = 64;
/// Largest head that shared memory holds.
const MAX_HEAD_DIM: usize = 1024;

impl HeadOps for CubeBackend {
    fn heads(
        qkv: CubeTensor,
        bias: OptionalVector<Self>,
        q_norm: OptionalVector<Self>,
        k_norm: OptionalVector<Self>,
        cos: CubeTensor,
        sin: CubeTensor,
        layout: HeadLayout,
    ) -> HeadTensors<Self> {
        let (rows, half) = (qkv.shape()[0], cos.shape()[1]);
        let HeadLayout { n_heads, n_kv_heads, head_dim, rope, norm_eps } = layout;
        let n_values = rows * layout.width();
        if n_values == 0 || half == 0 || head_dim > MAX_HEAD_DIM || u32::try_from(n_values).is_err() {
            return heads_reference::<Self>(qkv, bias, q_norm, k_norm, cos, sin, layout);
        }
        let input =
            |x: CubeTensor| into_contiguous(if x.dtype == DType::F32 { x } else { cast(x, DType::F32) });
        let (client, device) = (qkv.client.clone(), qkv.device.clone());
        let output = |heads: usize| {
            let shape = Shape::new([rows, heads, head_dim]);
            empty_device_contiguous_dtype(client.clone(), device.clone(), shape, DType::F32)
        };
        let (q, k, v) = (output(n_heads), output(n_kv_heads), output(n_kv_heads));
        let vectors = [bias, q_norm, k_norm].map(OptionalVector::into_option);
        let [has_bias, has_q_norm, has_k_norm] = vectors.each_ref().map(Option::is_some);
        let (qkv, cos, sin) = (input(qkv), input(cos), input(sin));
        // A kernel always needs all arguments; the placeholders are not read.
        let [bias, q_norm, k_norm] = vectors.map(|x| x.map_or_else(|| cos.clone(), input));
        heads_kernel::launch(
            &client,
            cube_per_row(rows * (n_heads + 2 * n_kv_heads)),
            CubeDim::new_1d(UNITS as u32),
            qkv.into_tensor_arg(),
            bias.into_tensor_arg(),
            q_norm.into_tensor_arg(),
            k_norm.into_tensor_arg(),
            cos.clone().into_tensor_arg(),
            sin.into_tensor_arg(),
            q.clone().into_tensor_arg(),
            k.clone().into_tensor_arg(),
            v.clone().into_tensor_arg(),
            norm_eps,
            has_bias,
            has_q_norm,
            has_k_norm,
            rope,
            head_dim,
        );
        HeadTensors { q, k, v }
    }
}

#[cube(launch)]
fn heads_kernel(
    qkv: &Tensor<f32>,
    bias: &Tensor<f32>,
    q_norm: &Tensor<f32>,
    k_norm: &Tensor<f32>,
    cos: &Tensor<f32>,
    sin: &Tensor<f32>,
    q: &mut Tensor<f32>,
    k: &mut Tensor<f32>,
    v: &mut Tensor<f32>,
    norm_eps: f32,
    #[comptime] has_bias: bool,
    #[comptime] has_q_norm: bool,
    #[comptime] has_k_norm: bool,
    #[comptime] rope: RopeStyle,
    #[comptime] head_dim: usize,
) {
    let (n_rows, n_heads, n_kv_heads, half) = (q.shape(0), q.shape(1), k.shape(1), cos.shape(1));
    let in_row = n_heads + 2 * n_kv_heads;
    let unit = UNIT_POS as usize;
    let place = row_of_cube(n_rows * in_row);
    let (row, head) = (place / in_row, place % in_row);
    let is_query = head < n_heads;
    let is_value = head >= n_heads + n_kv_heads;

    let mut values = Shared::<[f32]>::new_slice(head_dim);
    for i in range_stepped(unit, head_dim, comptime!(UNITS)) {
        let mut value = qkv[place * head_dim + i];
        if comptime!(has_bias) {
            value += bias[head * head_dim + i];
        }
        values[i] = value;
    }
    sync_cube();
    if comptime!(has_q_norm || has_k_norm) {
        let mut squares = 0.0f32.runtime();
        for i in range_stepped(unit, head_dim, comptime!(UNITS)) {
            squares += values[i] * values[i];
        }
        let squares = sum_of_units(squares, comptime!(UNITS));
        let scale = 1.0f32 / (squares / comptime!(head_dim as f32) + norm_eps).sqrt();
        for i in range_stepped(unit, head_dim, comptime!(UNITS)) {
            if comptime!(has_q_norm) {
                if is_query {
                    values[i] = values[i] * scale * q_norm[i];
                }
            }
            if comptime!(has_k_norm) {
                if !is_query && !is_value {
                    values[i] = values[i] * scale * k_norm[i];
                }
            }
        }
        sync_cube();
    }
    for i in range_stepped(unit, head_dim, comptime!(UNITS)) {
        let mut value = values[i];
        if !is_value && i < 2 * half {
            let interleaved = comptime!(matches!(rope, RopeStyle::Interleaved));
            let is_first = if interleaved { i % 2 == 0 } else { i < half };
            let step = if interleaved { 1usize.runtime() } else { half };
            let angle = if interleaved { i / 2 } else { i % half };
            let (c, s) = (cos[row * half + angle], sin[row * half + angle]);
            let other = values[select(is_first, i + step, i - select(is_first, 0usize, step))];
            value = value * c + select(is_first, -(other * s), other * s);
        }
        if is_query {
            q[(row * n_heads + head) * head_dim + i] = value;
        } else if is_value {
            v[(row * n_kv_heads + head - n_heads - n_kv_heads) * head_dim + i] = value;
        } else {
            k[(row * n_kv_heads + head - n_heads) * head_dim + i] = value;
        }
    }
}
