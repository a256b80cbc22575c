//! AVX2 with FMA and F16C: sixteen lanes in two registers, the lower eight first.

use std::arch::x86_64::*;

use super::Simd;
use crate::Element;
use crate::page::{F16_MAX, Stored};

/// Needs AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

// SAFETY of all blocks: the trait's contract gives the instructions and the validity of pointers.
#[allow(clippy::undocumented_unsafe_blocks)] // The same one-line reason for each intrinsic stands above.
impl Simd for Avx2 {
    type V = [__m256; 2];
    // Of 16 registers, 2 each; a tile of 3 rows and 2 blocks would spill.
    const ACCUMULATORS: usize = 5;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn widen<E: Stored>(from: *const E) -> Self::V {
        unsafe {
            match E::ELEMENT {
                Element::F16 => [
                    _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
                ],
                Element::F32 => Self::load(from.cast()),
            }
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::V) {
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
    }

    #[inline(always)]
    unsafe fn narrow<E: Stored>(to: *mut E, x: Self::V) {
        unsafe {
            match E::ELEMENT {
                Element::F16 => {
                    narrow_half(to.cast(), x[0]);
                    narrow_half(to.add(8).cast(), x[1]);
                }
                Element::F32 => Self::store(to.cast(), x),
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn reduce_max(x: Self::V) -> f32 {
        unsafe {
            let x = _mm256_max_ps(x[0], x[1]);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    unsafe fn reduce_add(x: Self::V) -> f32 {
        unsafe {
            let x = _mm256_add_ps(x[0], x[1]);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    unsafe fn mask(x: Self::V, from: i32, to: i32) -> Self::V {
        unsafe { [mask_half(x[0], from, to), mask_half(x[1], from - 8, to - 8)] }
    }

    #[inline(always)]
    unsafe fn scale_by_power(x: Self::V, y: Self::V, shifted: Self::V) -> Self::V {
        unsafe { [scale_half(x[0], y[0], shifted[0]), scale_half(x[1], y[1], shifted[1])] }
    }

    #[inline(always)]
    unsafe fn codes(words: *const u32, next: *const u32, shift: u32, mask: u32) -> Self::V {
        unsafe {
            let (low, high) = (
                extract_half(words, next, shift, mask),
                extract_half(words.add(8), next.add(8), shift, mask),
            );
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    unsafe fn levels(
        words: *const u32,
        next: *const u32,
        shift: u32,
        mask: u32,
        table: *const f32,
    ) -> Self::V {
        unsafe {
            let (low, high) = (
                extract_half(words, next, shift, mask),
                extract_half(words.add(8), next.add(8), shift, mask),
            );
            [level_half(low, mask, table), level_half(high, mask, table)]
        }
    }

    #[inline(always)]
    unsafe fn codes_within(words: *const u32, shift: u32, mask: u32) -> Self::V {
        unsafe {
            let count = _mm_cvtsi32_si128(shift as i32);
            let mask = _mm256_set1_epi32(mask as i32);
            let low = _mm256_srl_epi32(_mm256_loadu_si256(words.cast()), count);
            let high = _mm256_srl_epi32(_mm256_loadu_si256(words.add(8).cast()), count);
            [
                _mm256_cvtepi32_ps(_mm256_and_si256(low, mask)),
                _mm256_cvtepi32_ps(_mm256_and_si256(high, mask)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn levels_within(words: *const u32, shift: u32, mask: u32, table: *const f32) -> Self::V {
        unsafe {
            let count = _mm_cvtsi32_si128(shift as i32);
            let low = _mm256_srl_epi32(_mm256_loadu_si256(words.cast()), count);
            let high = _mm256_srl_epi32(_mm256_loadu_si256(words.add(8).cast()), count);
            [level_half(low, mask, table), level_half(high, mask, table)]
        }
    }
}

// Functions instead of closures: a closure would be compiled without the instructions.

/// # Safety
/// The processor has F16C; `to` is valid for 16 bytes.
#[inline(always)]
unsafe fn narrow_half(to: *mut __m128i, x: __m256) {
    // SAFETY: the caller's promise.
    unsafe {
        let x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(F16_MAX)), _mm256_set1_ps(-F16_MAX));
        _mm_storeu_si128(to, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
    }
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn mask_half(x: __m256, from: i32, to: i32) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let before = _mm256_cmpgt_epi32(_mm256_set1_epi32(from), lanes);
        let within = _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lanes);
        let seen = _mm256_castsi256_ps(_mm256_andnot_si256(before, within));
        _mm256_blendv_ps(_mm256_set1_ps(f32::NEG_INFINITY), x, seen)
    }
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn scale_half(x: __m256, y: __m256, shifted: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let one = _mm256_set1_epi32(1f32.to_bits() as i32);
        let power = _mm256_add_epi32(_mm256_slli_epi32::<23>(_mm256_castps_si256(shifted)), one);
        let normal = _mm256_cmp_ps::<_CMP_GE_OQ>(x, _mm256_set1_ps(-126.0));
        _mm256_and_ps(normal, _mm256_mul_ps(y, _mm256_castsi256_ps(power)))
    }
}

/// # Safety
/// The processor has AVX2; both pointers are valid for 8 words.
#[inline(always)]
unsafe fn extract_half(words: *const u32, next: *const u32, shift: u32, mask: u32) -> __m256i {
    // SAFETY: the caller's promise. A shift by 32 gives zero.
    unsafe {
        let low = _mm256_srl_epi32(_mm256_loadu_si256(words.cast()), _mm_cvtsi32_si128(shift as i32));
        let high = _mm256_sll_epi32(_mm256_loadu_si256(next.cast()), _mm_cvtsi32_si128(32 - shift as i32));
        _mm256_and_si256(_mm256_or_si256(low, high), _mm256_set1_epi32(mask as i32))
    }
}

/// # Safety
/// The processor has AVX2; the table has 32 numbers, or as many as `mask` allows, rounded up to 8.
#[inline(always)]
unsafe fn level_half(codes: __m256i, mask: u32, table: *const f32) -> __m256 {
    // SAFETY: the caller's promise. Each permutation looks at the lower three bits of a code, and the sign bit
    // of a lane tells a blend which one counts.
    unsafe {
        let first = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), codes);
        if mask < 8 {
            return first;
        }
        let bit_3 = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
        let low =
            _mm256_blendv_ps(first, _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.add(8)), codes), bit_3);
        if mask < 16 {
            return low;
        }
        let third = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.add(16)), codes);
        let high =
            _mm256_blendv_ps(third, _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.add(24)), codes), bit_3);
        _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<27>(codes)))
    }
}
