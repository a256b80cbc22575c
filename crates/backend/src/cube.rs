//! What CubeCL kernels share. Present only with a GPU feature.
//!
//! # Shared memory
//! CubeCL 0.11.3 compiles shared memory to SPIR-V wrongly unless the driver has
//! `VK_KHR_workgroup_memory_explicit_layout`. GPU drivers have it. Software Vulkan (Mesa's lavapipe) has had
//! it only recently, and older versions crash on CubeCL's code. The feature `wgpu` without `vulkan` compiles
//! to WGSL instead, which software Vulkan runs: that is how kernels are tested where there is no GPU.
//!
//! A kernel that must also run on software Vulkan through SPIR-V takes a `#[comptime]` flag from
//! [`has_shared_memory`] and does without shared memory where the flag is false; [`norm`](crate::norm) shows
//! how. The other kernels need shared memory, as Burn's own matrix product does.

#![allow(missing_docs)] // `#[cube]` adds modules without documentation.

use burn::backend::TensorMetadata;
use burn_cubecl::{CubeDevice, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::{device::WgpuDeviceKind, prelude::*};

/// The number of cubes along one axis that every device accepts.
const MAX_CUBES: usize = 65_535;

/// Whether kernels on the tensor's device may use shared memory.
pub fn has_shared_memory(tensor: &CubeTensor) -> bool {
    let software = match &tensor.device {
        CubeDevice::Wgpu(device) => {
            matches!(device.kind, WgpuDeviceKind::Cpu | WgpuDeviceKind::DefaultDevice)
        }
        _ => false,
    };
    !(software && tensor.client.name().contains("spirv"))
}

/// A new tensor with the shape, element type and device of another, in row-major order, not initialized.
pub fn empty_like(tensor: &CubeTensor) -> CubeTensor {
    let (client, device) = (tensor.client.clone(), tensor.device.clone());
    empty_device_contiguous_dtype(client, device, tensor.shape(), tensor.dtype)
}

/// A grid with at least one cube for each row; the kernel gets its row from [`row_of_cube()`].
pub fn cube_per_row(n_rows: usize) -> CubeCount {
    CubeCount::Static(n_rows.min(MAX_CUBES) as u32, n_rows.div_ceil(MAX_CUBES) as u32, 1)
}

/// The row that this cube computes; cubes beyond the last row repeat it, so that all reach the barriers.
#[cube]
pub fn row_of_cube(n_rows: usize) -> usize {
    let row = CUBE_POS;
    let last = n_rows - 1;
    if row < last { row } else { last }
}

/// The sum of one value from each unit, always added in the same order and returned to all units.
///
/// `units` is the number of units of the cube, a power of two. Every unit of the cube must get here.
#[cube]
pub fn sum_of_units(value: f32, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    let mut sums = Shared::<[f32]>::new_slice(units);
    sums[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2() as usize) {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let other = sums[unit + half];
            sums[unit] += other;
        }
        sync_cube();
    }
    sums[0]
}
