//! AVX-512: sixteen lanes in one register.

use std::arch::x86_64::*;

use super::{Quad, ROUND, Simd, Stored};
use crate::{Isa, float16::MAX as F16_MAX};

/// Needs AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy)]
pub struct Avx512;

// SAFETY of all blocks: the trait's contract gives the instructions and the validity of pointers.
#[allow(clippy::undocumented_unsafe_blocks)] // The same one-line reason for each intrinsic stands above.
impl Simd for Avx512 {
    type V = __m512;
    type W = __m512i;
    type Table = [__m512i; 2];
    type Bytes = __m512i;
    type Factors = [__m512i; 2];
    type Sum = [__m512i; 2];
    const ISA: Isa = Isa::Avx512;
    const ACCUMULATORS: usize = 24;
    const HAS_PLANES: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn widen<E: Stored>(from: *const E) -> Self::V {
        unsafe {
            if E::IS_HALF {
                _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
            } else {
                _mm512_loadu_ps(from.cast())
            }
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::V) {
        unsafe { _mm512_storeu_ps(to, x) }
    }

    #[inline(always)]
    unsafe fn indices(from: *const u8) -> Self::W {
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn pick(from: *const f32, n: usize, order: Self::W) -> Self::V {
        unsafe {
            if n == 16 {
                return _mm512_permutexvar_ps(order, _mm512_loadu_ps(from));
            }
            // Two registers at a time, of which the lowest five bits of an index choose one lane.
            let (pair, mut picked) = (_mm512_srli_epi32::<5>(order), _mm512_setzero_ps());
            for at in 0..n.div_ceil(32) {
                let first = from.add(32 * at);
                let second = if 32 * at + 16 < n { first.add(16) } else { first };
                let of = _mm512_permutex2var_ps(_mm512_loadu_ps(first), order, _mm512_loadu_ps(second));
                let is_here = _mm512_cmpeq_epi32_mask(pair, _mm512_set1_epi32(at as i32));
                picked = _mm512_mask_mov_ps(picked, is_here, of);
            }
            picked
        }
    }

    #[inline(always)]
    unsafe fn narrow<E: Stored>(to: *mut E, x: Self::V) {
        unsafe {
            if E::IS_HALF {
                let largest = _mm512_set1_ps(F16_MAX);
                let x = _mm512_max_ps(_mm512_min_ps(x, largest), _mm512_set1_ps(-F16_MAX));
                let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
                _mm256_storeu_si256(to.cast(), halves);
            } else {
                _mm512_storeu_ps(to.cast(), x)
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn reduce_max(x: Self::V) -> f32 {
        unsafe {
            let x = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    unsafe fn reduce_add(x: Self::V) -> f32 {
        unsafe {
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    unsafe fn mask(x: Self::V, from: i32, to: i32) -> Self::V {
        let below = |n: i32| (1u32 << n.clamp(0, 16)) as u16;
        let lanes = below(to).wrapping_sub(1) & !below(from).wrapping_sub(1);
        unsafe { _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), lanes, x) }
    }

    #[inline(always)]
    unsafe fn scale_by_power(x: Self::V, y: Self::V, shifted: Self::V) -> Self::V {
        unsafe {
            let one = _mm512_set1_epi32(1f32.to_bits() as i32);
            let power = _mm512_add_epi32(_mm512_slli_epi32::<23>(_mm512_castps_si512(shifted)), one);
            let normal = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(-126.0));
            _mm512_maskz_mul_ps(normal, y, _mm512_castsi512_ps(power))
        }
    }

    #[inline(always)]
    unsafe fn words(from: *const u32) -> Self::W {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_words(to: *mut u32, x: Self::W) {
        unsafe { _mm512_storeu_si512(to.cast(), x) }
    }

    #[inline(always)]
    unsafe fn splat_word(x: u32) -> Self::W {
        unsafe { _mm512_set1_epi32(x as i32) }
    }

    #[inline(always)]
    unsafe fn add_words(a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn and(a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W {
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn shift_right(x: Self::W, by: Self::W) -> Self::W {
        unsafe { _mm512_srlv_epi32(x, by) }
    }

    #[inline(always)]
    unsafe fn shift_left(x: Self::W, by: Self::W) -> Self::W {
        unsafe { _mm512_sllv_epi32(x, by) }
    }

    #[inline(always)]
    unsafe fn float(x: Self::W) -> Self::V {
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    unsafe fn table(from: *const u8) -> Self::Table {
        unsafe {
            let low = _mm512_broadcast_i32x4(_mm_loadu_si128(from.cast()));
            [low, _mm512_broadcast_i32x4(_mm_loadu_si128(from.add(16).cast()))]
        }
    }

    #[inline(always)]
    unsafe fn look_up<const BITS: u32>(table: Self::Table, x: Self::W) -> Self::W {
        unsafe {
            let low = _mm512_shuffle_epi8(table[0], x);
            if BITS <= 4 {
                return low;
            }
            let is_high = _mm512_test_epi8_mask(x, _mm512_set1_epi8(16));
            _mm512_mask_shuffle_epi8(low, is_high, table[1], x)
        }
    }

    #[inline(always)]
    unsafe fn pack<const PLANES: usize>(x: Self::V, to: *mut Quad) {
        unsafe {
            let x = _mm512_cvtps_epi32(x);
            let (high, low) = if PLANES == 1 {
                (x, _mm512_setzero_si512())
            } else {
                let high = _mm512_srai_epi32::<7>(_mm512_add_epi32(x, _mm512_set1_epi32(64)));
                (high, _mm512_sub_epi32(x, _mm512_slli_epi32::<7>(high)))
            };
            let (high, low) = (_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(low));
            _mm_storeu_si128(to.cast(), _mm_unpacklo_epi32(high, low));
            _mm_storeu_si128(to.add(2).cast(), _mm_unpackhi_epi32(high, low));
        }
    }

    #[inline(always)]
    unsafe fn bytes(x: Self::W) -> Self::Bytes {
        x
    }

    #[inline(always)]
    unsafe fn factors(from: *const Quad) -> Self::Factors {
        unsafe { [_mm512_set1_epi32((*from)[0] as i32), _mm512_set1_epi32((*from)[1] as i32)] }
    }

    #[inline(always)]
    unsafe fn no_sum() -> Self::Sum {
        unsafe { [_mm512_setzero_si512(); 2] }
    }

    #[inline(always)]
    unsafe fn dot<const PLANES: usize>(
        sum: Self::Sum,
        bytes: Self::Bytes,
        factors: Self::Factors,
    ) -> Self::Sum {
        unsafe {
            let high = _mm512_dpbusd_epi32(sum[0], bytes, factors[0]);
            [high, if PLANES == 1 { sum[1] } else { _mm512_dpbusd_epi32(sum[1], bytes, factors[1]) }]
        }
    }

    #[inline(always)]
    unsafe fn total<const PLANES: usize>(sum: Self::Sum) -> Self::W {
        unsafe { if PLANES == 1 { sum[0] } else { _mm512_add_epi32(_mm512_slli_epi32::<7>(sum[0]), sum[1]) } }
    }
}

const _: () = assert!(ROUND.to_bits() << 23 == 0);
