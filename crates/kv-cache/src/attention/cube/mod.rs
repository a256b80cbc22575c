//! The GPU kernel: one cube for each row and query head, with the online softmax over chunks of 64 keys.
//!
//! Chunks begin at multiples of 64 along the row's own path, and their results are joined in ascending order.
//! So a row's bits depend only on the keys that it sees, and not on the other rows or their number.

// A compile-time condition must stand alone: combined with another one it would be evaluated at run time.
#![allow(clippy::collapsible_if)]

pub(crate) mod online;
pub(crate) mod packed;

use breakers_backend::cube::cube_per_row;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{TensorMetadata, ops::IntTensorOps};
use burn::tensor::{DType, Shape, TensorData};
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::{CubeBackend, CubeDevice, tensor::CubeTensor};
use cubecl::prelude::*;

use self::online::{LOWEST, Marks, UNITS, add_chunk, new_softmax, place_of_cube, score_of, write_mean};
use super::{AttentionOps, attention_generic};
use crate::Visible;

/// Numbers before a row's path in the table of visible keys: its first key, and the one after its last.
const SPAN: usize = 2;
/// Largest head that the cube's registers and shared memory hold.
const MAX_HEAD_DIM: usize = 1024;

impl AttentionOps for CubeBackend {
    fn attention(q: CubeTensor, k: CubeTensor, v: CubeTensor, visible: Visible, scale: f32) -> CubeTensor {
        let (n_rows, n_heads, head_dim) = (q.shape()[0], q.shape()[1], q.shape()[2]);
        let (n_keys, n_kv_heads) = (k.shape()[0], k.shape()[1]);
        let (client, device) = (q.client.clone(), q.device.clone());
        let out_shape = Shape::new([n_rows, n_heads * head_dim]);
        if n_rows * n_keys * head_dim == 0 {
            return zeros_client(client, device, out_shape, DType::F32);
        }
        // The kernel computes offsets in 32 bits.
        let positions = [n_keys * n_kv_heads * head_dim, n_rows * n_heads * head_dim];
        if head_dim > MAX_HEAD_DIM || positions.iter().any(|&n| u32::try_from(n).is_err()) {
            return attention_generic::<Self>(q, k, v, &visible, scale);
        }
        let q = into_contiguous(if q.dtype == DType::F32 { q } else { cast(q, DType::F32) });
        let v = into_contiguous(if v.dtype == k.dtype { v } else { cast(v, k.dtype) });
        let k = into_contiguous(k);
        let dtype = dtype_to_storage_type(k.dtype);
        let seen = seen(&visible, &device);
        let (prefix, is_tree) = visible.tree.as_ref().map_or((0, false), |tree| (tree.prefix, true));
        let out = empty_device_contiguous_dtype(client.clone(), device, out_shape, DType::F32);
        // SAFETY: `Visible` names only keys that exist, because `attention` compared its size with the
        // tensors', and so do the tables of spans and paths; other positions are limited by the tensors' own
        // shapes. Loops end.
        unsafe {
            attention_kernel::launch_unchecked(
                &client,
                cube_per_row(n_rows * n_heads),
                CubeDim::new_1d(UNITS as u32),
                q.into_tensor_arg(),
                k.into_tensor_arg(),
                v.into_tensor_arg(),
                seen.into_tensor_arg(),
                out.clone().into_tensor_arg(),
                prefix as u32,
                scale,
                head_dim,
                is_tree,
                dtype,
            );
        }
        out
    }
}

/// For each row its span, and in a tree its path: `[n_rows, 2 + length of the longest path]`.
fn seen(visible: &Visible, device: &CubeDevice) -> CubeTensor {
    let paths = visible.tree.as_ref().map(|tree| &tree.paths);
    let longest = paths.map_or(0, |paths| paths.iter().map(Vec::len).max().unwrap_or(0));
    let width = SPAN + longest;
    let mut table = Vec::with_capacity(visible.n_rows() * width);
    for (row, span) in visible.spans.iter().enumerate() {
        table.extend([span.start as i32, span.end as i32]);
        table.extend(paths.iter().flat_map(|paths| &paths[row]).map(|&at| at as i32));
        table.resize((row + 1) * width, 0);
    }
    let n_rows = visible.n_rows();
    CubeBackend::int_from_data(TensorData::new(table, [n_rows, width]), device)
}

#[cube(launch_unchecked)]
fn attention_kernel<F: Float>(
    q: &Tensor<f32>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    seen: &Tensor<i32>,
    out: &mut Tensor<f32>,
    prefix: u32,
    scale: f32,
    #[comptime] head_dim: usize,
    #[comptime] is_tree: bool,
    #[define(F)] _dtype: ElemType,
) {
    let place = place_of_cube(0usize, q.shape(0), q.shape(1), k.shape(1), head_dim);
    let seen_start = place.row * seen.shape(1);
    let (first, end) = (seen[seen_start] as usize, seen[seen_start + 1] as usize);
    let mut softmax = new_softmax(q, place.query, scale, head_dim);
    let mut largest = comptime!(LOWEST).runtime();
    let mut total = 0.0f32.runtime();
    sync_cube();

    let mut chunk = first / comptime!(UNITS) * comptime!(UNITS);
    while chunk < end {
        let key = chunk + UNIT_POS as usize;
        let mut score = comptime!(LOWEST).runtime();
        if key >= first && key < end {
            let mut slot = key;
            if comptime!(is_tree) {
                if key >= prefix as usize {
                    let path = seen[seen_start + comptime!(SPAN) + key - prefix as usize];
                    slot = prefix as usize + path as usize;
                }
            }
            score = score_of(&mut softmax, k, slot, &place, head_dim);
        }
        let from = select(first > chunk, first - chunk, 0usize);
        let to = select(end - chunk < comptime!(UNITS), end - chunk, comptime!(UNITS).runtime());
        let marks = add_chunk(&mut softmax, Marks { largest, total }, score, v, &place, from, to, head_dim);
        largest = marks.largest;
        total = marks.total;
        chunk += comptime!(UNITS);
    }
    write_mean(&softmax, total, out, place.query, head_dim);
}
