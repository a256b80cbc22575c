//! Advanced SIMD of 64-bit Arm: sixteen lanes in four registers.

use std::arch::aarch64::*;

use super::{LANES, Quad, Simd, Stored};
use crate::Isa;

/// Needs Advanced SIMD, which every 64-bit Arm processor has.
#[derive(Clone, Copy)]
pub struct Neon;

// SAFETY of all blocks: the trait's contract gives the instructions and the validity of pointers.
#[allow(clippy::undocumented_unsafe_blocks)] // The same one-line reason for each intrinsic stands above.
impl Simd for Neon {
    type V = [float32x4_t; 4];
    type W = [uint32x4_t; 4];
    type Table = uint8x16x2_t;
    /// The even bytes of each four lanes, then the odd ones, in 16 bits each.
    type Bytes = [[int16x8_t; 4]; 2];
    type Factors = [int16x8_t; 2];
    type Sum = [int32x4_t; 4];
    const ISA: Isa = Isa::Neon;
    const ACCUMULATORS: usize = 6;
    const HAS_PLANES: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { [0, 4, 8, 12].map(|lane| vld1q_f32(from.add(lane))) }
    }

    #[inline(always)]
    unsafe fn widen<E: Stored>(from: *const E) -> Self::V {
        let stored = unsafe { from.cast::<[E; LANES]>().read_unaligned() };
        let wide = stored.map(E::to_f32);
        unsafe { Self::load(wide.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::V) {
        unsafe {
            for i in 0..4 {
                vst1q_f32(to.add(4 * i), x[i]);
            }
        }
    }

    #[inline(always)]
    unsafe fn indices(from: *const u8) -> Self::W {
        unsafe {
            let wide = from.cast::<[u8; LANES]>().read().map(u32::from);
            Self::words(wide.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn pick(from: *const f32, _: usize, indices: Self::W) -> Self::V {
        unsafe {
            let mut at = [0u32; LANES];
            Self::store_words(at.as_mut_ptr(), indices);
            let picked = at.map(|at| *from.add(at as usize));
            Self::load(picked.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn narrow<E: Stored>(to: *mut E, x: Self::V) {
        let mut wide = [0.0; LANES];
        unsafe {
            Self::store(wide.as_mut_ptr(), x);
            to.cast::<[E; LANES]>().write_unaligned(wide.map(E::from_f32));
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { std::array::from_fn(|i| vaddq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { std::array::from_fn(|i| vsubq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { std::array::from_fn(|i| vmulq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { std::array::from_fn(|i| vdivq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { std::array::from_fn(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { std::array::from_fn(|i| vmaxq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn reduce_max(x: Self::V) -> f32 {
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(x[0], x[1]), vmaxq_f32(x[2], x[3]))) }
    }

    #[inline(always)]
    unsafe fn reduce_add(x: Self::V) -> f32 {
        unsafe {
            let x = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
            vget_lane_f32::<0>(x) + vget_lane_f32::<1>(x)
        }
    }

    #[inline(always)]
    unsafe fn mask(x: Self::V, from: i32, to: i32) -> Self::V {
        unsafe {
            let lanes = vld1q_s32([0, 1, 2, 3].as_ptr());
            let nothing = vdupq_n_f32(f32::NEG_INFINITY);
            std::array::from_fn(|i| {
                let base = 4 * i as i32;
                let seen = vandq_u32(
                    vcgeq_s32(lanes, vdupq_n_s32(from - base)),
                    vcltq_s32(lanes, vdupq_n_s32(to - base)),
                );
                vbslq_f32(seen, x[i], nothing)
            })
        }
    }

    #[inline(always)]
    unsafe fn scale_by_power(x: Self::V, y: Self::V, shifted: Self::V) -> Self::V {
        unsafe {
            std::array::from_fn(|i| {
                let bits = vshlq_n_u32::<23>(vreinterpretq_u32_f32(shifted[i]));
                let power = vreinterpretq_f32_u32(vaddq_u32(bits, vdupq_n_u32(1f32.to_bits())));
                let normal = vcgeq_f32(x[i], vdupq_n_f32(-126.0));
                let scaled = vmulq_f32(y[i], power);
                vreinterpretq_f32_u32(vandq_u32(normal, vreinterpretq_u32_f32(scaled)))
            })
        }
    }

    #[inline(always)]
    unsafe fn words(from: *const u32) -> Self::W {
        unsafe { std::array::from_fn(|i| vld1q_u32(from.add(4 * i))) }
    }

    #[inline(always)]
    unsafe fn store_words(to: *mut u32, x: Self::W) {
        unsafe {
            for i in 0..4 {
                vst1q_u32(to.add(4 * i), x[i]);
            }
        }
    }

    #[inline(always)]
    unsafe fn splat_word(x: u32) -> Self::W {
        unsafe { [vdupq_n_u32(x); 4] }
    }

    #[inline(always)]
    unsafe fn add_words(a: Self::W, b: Self::W) -> Self::W {
        unsafe { std::array::from_fn(|i| vaddq_u32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn and(a: Self::W, b: Self::W) -> Self::W {
        unsafe { std::array::from_fn(|i| vandq_u32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W {
        unsafe { std::array::from_fn(|i| vorrq_u32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn shift_right(x: Self::W, by: Self::W) -> Self::W {
        // A negative count shifts to the right.
        unsafe { std::array::from_fn(|i| vshlq_u32(x[i], vnegq_s32(vreinterpretq_s32_u32(by[i])))) }
    }

    #[inline(always)]
    unsafe fn shift_left(x: Self::W, by: Self::W) -> Self::W {
        unsafe { std::array::from_fn(|i| vshlq_u32(x[i], vreinterpretq_s32_u32(by[i]))) }
    }

    #[inline(always)]
    unsafe fn float(x: Self::W) -> Self::V {
        unsafe { std::array::from_fn(|i| vcvtq_f32_s32(vreinterpretq_s32_u32(x[i]))) }
    }

    #[inline(always)]
    unsafe fn table(from: *const u8) -> Self::Table {
        unsafe { uint8x16x2_t(vld1q_u8(from), vld1q_u8(from.add(16))) }
    }

    #[inline(always)]
    unsafe fn look_up<const BITS: u32>(table: Self::Table, x: Self::W) -> Self::W {
        unsafe {
            std::array::from_fn(|i| {
                let x = vreinterpretq_u8_u32(x[i]);
                vreinterpretq_u32_u8(if BITS <= 4 { vqtbl1q_u8(table.0, x) } else { vqtbl2q_u8(table, x) })
            })
        }
    }

    #[inline(always)]
    unsafe fn pack<const PLANES: usize>(x: Self::V, to: *mut Quad) {
        unsafe {
            for (at, x) in x.into_iter().enumerate() {
                let mut n = [0i32; 4];
                vst1q_s32(n.as_mut_ptr(), vcvtnq_s32_f32(x));
                let pair = |i: usize| u32::from(n[i] as u16) | u32::from(n[i + 2] as u16) << 16;
                *to.add(at) = [pair(0), pair(1)];
            }
        }
    }

    #[inline(always)]
    unsafe fn bytes(x: Self::W) -> Self::Bytes {
        unsafe {
            let even = vdupq_n_u16(0xff);
            let pairs = x.map(|x| vreinterpretq_u16_u32(x));
            [
                std::array::from_fn(|i| vreinterpretq_s16_u16(vandq_u16(pairs[i], even))),
                std::array::from_fn(|i| vreinterpretq_s16_u16(vshrq_n_u16::<8>(pairs[i]))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn factors(from: *const Quad) -> Self::Factors {
        unsafe { (*from).map(|word| vreinterpretq_s16_u32(vdupq_n_u32(word))) }
    }

    #[inline(always)]
    unsafe fn no_sum() -> Self::Sum {
        unsafe { [vdupq_n_s32(0); 4] }
    }

    #[inline(always)]
    unsafe fn dot<const PLANES: usize>(
        sum: Self::Sum,
        bytes: Self::Bytes,
        factors: Self::Factors,
    ) -> Self::Sum {
        unsafe {
            std::array::from_fn(|i| {
                let mut sum = sum[i];
                for (bytes, factors) in [(bytes[0][i], factors[0]), (bytes[1][i], factors[1])] {
                    let low = vmull_s16(vget_low_s16(bytes), vget_low_s16(factors));
                    sum = vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(bytes, factors)));
                }
                sum
            })
        }
    }

    #[inline(always)]
    unsafe fn total<const PLANES: usize>(sum: Self::Sum) -> Self::W {
        unsafe { sum.map(|sum| vreinterpretq_u32_s32(sum)) }
    }
}
