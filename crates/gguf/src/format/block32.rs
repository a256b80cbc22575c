//! Blocks of 32 values with one scale, and a minimum in the `_1` formats.
//!
//! Four-bit parts are stored in 16 bytes: value `j` in the low half of byte `j`, value `j + 16` in its high
//! half. Fifth bits are stored in one little-endian word, with bit `j` for value `j`.

use super::half;

/// `d: f16, q: [u4; 32]`
#[inline]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], |j, q| out[j] = f32::from(q as i8 - 8) * d);
}

/// `d: f16, m: f16, q: [u4; 32]`
#[inline]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], |j, q| out[j] = f32::from(q) * d + m);
}

/// `d: f16, high: u32, q: [u4; 32]`
#[inline]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    nibbles(&block[6..], |j, q| out[j] = f32::from(fifth(high, j, q) as i8 - 16) * d);
}

/// `d: f16, m: f16, high: u32, q: [u4; 32]`
#[inline]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    nibbles(&block[8..], |j, q| out[j] = f32::from(fifth(high, j, q)) * d + m);
}

/// `d: f16, q: [i8; 32]`
#[inline]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

#[inline]
fn fifth(high: u32, j: usize, q: u8) -> u8 {
    q | ((high >> j & 1) << 4) as u8
}

/// Calls `each(j, q)` for the 32 values of 16 bytes.
#[inline]
pub(super) fn nibbles(bytes: &[u8], mut each: impl FnMut(usize, u8)) {
    for (j, &byte) in bytes.iter().enumerate() {
        each(j, byte & 15);
        each(j + 16, byte >> 4);
    }
}
