//! Decoding of our own formats from their [`records`] in registers, with the bits of the CPU's tiles:
//! products of scales and codes are exact here too.

use super::decode::{Table, byte_at, bytes_at, half_at, level};
use crate::{
    kernels::group::{Nf4, NvFp4},
    records,
};
use breakers_gguf::GroupFormat;
use cubecl::prelude::*;

/// A code's bits in the first four bytes of its granule: the shift, and how many lie there.
const fn in_low(v: usize, bits: usize) -> (usize, usize) {
    let at = v * bits;
    let n = if at >= 32 {
        0
    } else if at + bits > 32 {
        32 - at
    } else {
        bits
    };
    (at, n)
}

/// Decodes eight neighbors of the row that begins at byte `row`, to `out[at..at + 8]`.
#[cube]
pub(super) fn decode(
    words: &Tensor<u32>,
    row: usize,
    granule: usize,
    out: &mut Array<f32>,
    #[comptime] at: usize,
    #[comptime] format: GroupFormat,
) {
    let (columns, block_bytes, scale_bytes) = comptime!(records::block(format));
    let bits = comptime!(format.bits() as usize);
    let granules = comptime!(columns / 8);
    let start = row + comptime!(records::header(format));
    let block = start + granule / granules * block_bytes;
    let codes = block + scale_bytes + granule % granules * bits;
    let low = bytes_at(words, codes, comptime!(if bits < 4 { bits } else { 4 }));
    let high = if comptime!(bits > 4) {
        bytes_at(words, codes + 4, comptime!(if bits > 4 { bits - 4 } else { 1 }))
    } else {
        0u32.runtime()
    };
    let scale = if comptime!(matches!(format, GroupFormat::NvFp4)) {
        half_at(words, row) * e4m3(byte_at(words, block + granule % granules / 2))
    } else {
        half_at(words, block)
    };
    let offset = if comptime!(matches!(format, GroupFormat::Affine { .. })) {
        half_at(words, block + 2)
    } else {
        0.0f32.runtime()
    };
    let mask = comptime!((1u32 << bits) - 1);
    #[unroll]
    for v in 0..8usize {
        let (shift, n_low) = comptime!(in_low(v, bits));
        let code = if comptime!(n_low == bits) {
            (low >> comptime!(shift as u32)) & mask
        } else if comptime!(n_low == 0) {
            (high >> comptime!((shift % 32) as u32)) & mask
        } else {
            ((low >> comptime!((shift % 32) as u32)) | (high << comptime!(n_low as u32))) & mask
        };
        let value = if comptime!(matches!(format, GroupFormat::Affine { .. })) {
            f32::cast_from(code) * scale + offset
        } else if comptime!(matches!(format, GroupFormat::Symmetric { .. })) {
            (f32::cast_from(code) - comptime!(((1u32 << (bits - 1)) - 1) as f32)) * scale
        } else if comptime!(matches!(format, GroupFormat::Nf4)) {
            level(code, comptime!(Table::of::<Nf4>())) * scale
        } else {
            level(code, comptime!(Table::of::<NvFp4>())) * scale
        };
        out[at + v] = value;
    }
}

/// The number of E4M3 bits, less the shift of a tile. Its exponent is put together as an integer: as bits of
/// a float it would be subnormal, which devices may flush to zero.
#[cube]
fn e4m3(bits: u32) -> f32 {
    let exponent = (bits >> 3u32) & 15u32;
    let mantissa = select(exponent == 0u32, bits & 7u32, (bits & 7u32) + 8u32);
    // 2^(exponent - 10), at least 2^(1 - 10), times the shift of 2^-10.
    let power = f32::reinterpret((max(exponent, 1u32) + comptime!(127u32 - 10 - 10)) << 23u32);
    let magnitude = f32::cast_from(mantissa) * power;
    select((bits & 128u32) == 0u32, magnitude, -magnitude)
}
