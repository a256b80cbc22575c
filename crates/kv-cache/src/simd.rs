//! Sixteen lanes of `f32`, the unit that all kernels of this crate are written in.
//!
//! Each instruction set gives the same bits: every operation is defined lane by lane and correctly rounded,
//! and the two sums across lanes have one fixed order.

mod scalar;

pub(crate) use scalar::Scalar;

use crate::page::Stored;

/// An instruction set.
///
/// # Safety
/// Of every method: the processor has the instructions, which whoever names the implementing type answers
/// for, and pointers are valid for [`LANES`](crate::page::LANES) elements.
pub(crate) trait Simd: Copy {
    /// Sixteen lanes.
    type V: Copy;
    /// How many values a kernel may keep in registers, a few being left for operands.
    const ACCUMULATORS: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    /// Sixteen stored elements, widened exactly.
    unsafe fn widen<E: Stored>(from: *const E) -> Self::V;
    unsafe fn store(to: *mut f32, x: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a·b + c, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of both; neither is a NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn reduce_max(x: Self::V) -> f32;
    /// The sum of the lanes: i and i + 8 first, then i and i + 4, i + 2, i + 1.
    unsafe fn reduce_add(x: Self::V) -> f32;
    /// −∞ in lanes outside of `from..to`, which may reach beyond the register on both sides.
    unsafe fn mask(x: Self::V, from: i32, to: i32) -> Self::V;
    /// y · 2ⁿ where x ≥ −126, else 0; n stands in the low bits of `shifted` = n + [`ROUND`].
    unsafe fn scale_by_power(x: Self::V, y: Self::V, shifted: Self::V) -> Self::V;

    /// 2ˣ for x ≤ 0, within 1 unit in the last place; 0 below −126. See [`exp2`].
    #[inline(always)]
    unsafe fn exp2(x: Self::V) -> Self::V {
        // SAFETY: the caller answers for the instructions; no pointers are involved.
        unsafe {
            let round = Self::splat(ROUND);
            let shifted = Self::add(x, round);
            let r = Self::sub(x, Self::sub(shifted, round));
            let mut p = Self::splat(EXP2[0]);
            for &c in &EXP2[1..] {
                p = Self::fma(r, p, Self::splat(c));
            }
            Self::scale_by_power(x, p, shifted)
        }
    }
}

/// 1.5 · 2²³: adding it to a small number rounds that to an integer, which stands in the low bits then.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// 2^r on |r| ≤ 1/2, highest power first: a least-maximum fit of the relative error (2e-9 before rounding)
/// with the constant held at 1, so that 2⁰ is exactly 1.
const EXP2: [f32; 7] = [
    0.000_153_533_62,
    0.001_339_887_5,
    0.009_618_437,
    0.055_503_324,
    0.240_226_48,
    std::f32::consts::LN_2,
    1.0,
];

/// 2ˣ for x ≤ 0, within 1 unit in the last place; 0 below −126. The same bits as [`Simd::exp2`].
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = EXP2[0];
    for &c in &EXP2[1..] {
        p = r.mul_add(p, c);
    }
    scale_by_power(x, p, shifted)
}

#[inline(always)]
fn scale_by_power(x: f32, y: f32, shifted: f32) -> f32 {
    // The bits of ROUND vanish in the shift.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    if x >= -126.0 { y * power } else { 0.0 }
}
