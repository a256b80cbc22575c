//! Sixteen-bit floats that do not overflow.

use half::f16;

/// The largest finite number.
pub const MAX: f32 = 65_504.0;

/// The nearest sixteen-bit float, with ties to even. Magnitudes beyond [`MAX`] become [`MAX`], and NaN stays
/// NaN.
///
/// # Example
/// ```
/// use breakers_cpu::float16::saturating;
///
/// assert_eq!(saturating(1e9).to_f32(), 65_504.0);
/// assert_eq!(saturating(f32::NEG_INFINITY).to_f32(), -65_504.0);
/// assert_eq!(saturating(0.5).to_f32(), 0.5);
/// ```
#[inline(always)]
pub fn saturating(x: f32) -> f16 {
    f16::from_f32(x.clamp(-MAX, MAX))
}
