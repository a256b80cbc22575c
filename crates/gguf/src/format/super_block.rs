//! Super-blocks of 256 values ("k-quants"): groups of 16 or 32 values with small integer scales, which one
//! half-precision number (or two: scale and minimum) scales in turn.

use super::half;

/// `scales: [u4 scale | u4 min; 16], q: [u2; 256], d: f16, dmin: f16`
///
/// The 64 bytes hold two halves of 128 values; in each, bits `2 s ..` of byte `l` are value `32 s + l`.
#[inline]
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, d_min) = (half(block, 80), half(block, 82));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(block[group] & 15);
        let min = d_min * f32::from(block[group] >> 4);
        let (shift, first) = quarter(group);
        for (l, out) in out.iter_mut().enumerate() {
            let q = block[16 + first + l] >> shift & 3;
            *out = scale * f32::from(q) - min;
        }
    }
}

/// `high: [u1; 256], q: [u2; 256], scales: [u6; 16] in 12 bytes, d: f16`
///
/// Low bits as in Q2_K; bit `b` of high byte `l` belongs to value `32 b + l`, and a clear bit subtracts 4.
#[inline]
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half(block, 108);
    let scales = &block[96..108];
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Low four bits: bytes 0..8, first their low halves; high two bits: bytes 8..12, two bits a group.
        let low = scales[group % 8] >> (4 * (group / 8)) & 15;
        let high = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        let scale = d * f32::from((low | high << 4) as i8 - 32);
        let (shift, first) = quarter(group);
        for (l, out) in out.iter_mut().enumerate() {
            let q = (block[32 + first + l] >> shift & 3) as i8;
            let high = block[group % 2 * 16 + l] >> (group / 2) & 1;
            *out = scale * f32::from(q - if high == 0 { 4 } else { 0 });
        }
    }
}

/// `d: f16, dmin: f16, scales and mins: [u6; 8 + 8] in 12 bytes, q: [u4; 256]`
///
/// Each 32 bytes hold 64 values: the low halves, then the high halves.
#[inline]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, d_min) = (half(block, 0), half(block, 2));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], group);
        let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
        let bytes = &block[16 + group / 2 * 32..][..32];
        for (out, &byte) in out.iter_mut().zip(bytes) {
            *out = scale * f32::from(byte >> (4 * (group % 2)) & 15) - min;
        }
    }
}

/// `d: f16, dmin: f16, scales and mins: [u6; 8 + 8] in 12 bytes, high: [u1; 256], q: [u4; 256]`
///
/// Low four bits as in Q4_K; bit `b` of high byte `l` belongs to value `32 b + l`.
#[inline]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, d_min) = (half(block, 0), half(block, 2));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], group);
        let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
        let (high, low) = (&block[16..48], &block[48 + group / 2 * 32..][..32]);
        for (l, out) in out.iter_mut().enumerate() {
            let q = (low[l] >> (4 * (group % 2)) & 15) | (high[l] >> group & 1) << 4;
            *out = scale * f32::from(q) - min;
        }
    }
}

/// `low: [u4; 256], high: [u2; 256], scales: [i8; 16], d: f16`
///
/// Two halves of 128 values: in each, 64 low bytes hold values 0..64 in their low halves and 64..128 in
/// their high halves; bits `2 s ..` of high byte `l` belong to value `32 s + l`.
#[inline]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half(block, 208);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(block[192 + group] as i8);
        let within = group % 8 * 16;
        let low = &block[group / 8 * 64 + within % 64..][..16];
        let high = &block[128 + group / 8 * 32 + within % 32..][..16];
        for (l, out) in out.iter_mut().enumerate() {
            let q = (low[l] >> (within / 64 * 4) & 15) | (high[l] >> (within / 32 * 2) & 3) << 4;
            *out = scale * f32::from(q as i8 - 32);
        }
    }
}

/// Shift and first byte of a group of 16 two-bit values.
#[inline]
fn quarter(group: usize) -> (usize, usize) {
    let (half, within) = (group / 8, group % 8);
    (within / 2 * 2, half * 32 + within % 2 * 16)
}

/// The six-bit scale and minimum of a group of 32, from 12 bytes. Groups 0..4 are in the low bits of bytes
/// 0..4 and 4..8. Groups 4..8 have their low four bits in bytes 8..12, and their high two bits in the top
/// bits of the former.
#[inline]
fn scale_and_min(bytes: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (bytes[group] & 63, bytes[group + 4] & 63)
    } else {
        let low = bytes[group + 4];
        ((low & 15) | (bytes[group - 4] >> 6) << 4, (low >> 4) | (bytes[group] >> 6) << 4)
    }
}
