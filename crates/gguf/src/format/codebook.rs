//! Blocks of 32 values that are four-bit indices into a fixed table.

use super::{block32::nibbles, half};

/// What the codes of [`Format::IQ4_NL`](crate::Format::IQ4_NL) stand for, before the scale.
pub const IQ4_NL_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What the codes of [`Format::MXFP4`](crate::Format::MXFP4) stand for: twice the numbers of E2M1. The scale
/// is halved to compensate; this way the levels are integers.
pub const MXFP4_LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `d: f16, q: [u4; 32]`
#[inline]
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], |j, q| out[j] = d * f32::from(IQ4_NL_LEVELS[usize::from(q)]));
}

/// `exponent: u8, q: [u4; 32]`
#[inline]
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = half_power_of_two(block[0]);
    nibbles(&block[1..], |j, q| out[j] = f32::from(MXFP4_LEVELS[usize::from(q)]) * d);
}

/// `2^(exponent - 127) / 2`; the two smallest are subnormal.
#[inline]
pub fn half_power_of_two(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 | 1 => 0x0020_0000 << exponent,
        _ => (u32::from(exponent) - 1) << 23,
    })
}
