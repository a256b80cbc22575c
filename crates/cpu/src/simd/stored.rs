use bytemuck::Pod;
use half::f16;

use super::sealed::Sealed;
use crate::float16;

/// A type in which numbers are stored: [`struct@f16`] or [`f32`].
pub trait Stored: Pod + Sealed {
    /// Whether it is [`struct@f16`].
    const IS_HALF: bool;
    /// Rounds to nearest even; magnitudes beyond the largest finite value become that value.
    fn from_f32(x: f32) -> Self;
    /// The number, exactly.
    fn to_f32(self) -> f32;
}

impl Stored for f16 {
    const IS_HALF: bool = true;

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        float16::saturating(x)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

impl Stored for f32 {
    const IS_HALF: bool = false;

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}
