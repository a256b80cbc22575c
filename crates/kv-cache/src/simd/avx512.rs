//! AVX-512: sixteen lanes in one register.

use std::arch::x86_64::*;

use super::{ROUND, Simd};
use crate::Element;
use crate::page::{F16_MAX, Stored};

/// Needs AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

// SAFETY of all blocks: the trait's contract gives the instructions and the validity of pointers.
#[allow(clippy::undocumented_unsafe_blocks)] // The same one-line reason for each intrinsic stands above.
impl Simd for Avx512 {
    type V = __m512;
    type W = __m512i;
    type Table = [__m512; 2];
    const ACCUMULATORS: usize = 24;
    const TILE_ROWS: usize = 7;
    const PACKED_ROWS: usize = 6;
    const PACKED_SUMS: usize = 16;

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
            match E::ELEMENT {
                Element::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
                Element::F32 => _mm512_loadu_ps(from.cast()),
            }
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::V) {
        unsafe { _mm512_storeu_ps(to, x) }
    }

    #[inline(always)]
    unsafe fn narrow<E: Stored>(to: *mut E, x: Self::V) {
        unsafe {
            match E::ELEMENT {
                Element::F16 => {
                    let largest = _mm512_set1_ps(F16_MAX);
                    let x = _mm512_max_ps(_mm512_min_ps(x, largest), _mm512_set1_ps(-F16_MAX));
                    let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
                    _mm256_storeu_si256(to.cast(), halves);
                }
                Element::F32 => _mm512_storeu_ps(to.cast(), x),
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
    unsafe fn splat_word(x: u32) -> Self::W {
        unsafe { _mm512_set1_epi32(x as i32) }
    }

    #[inline(always)]
    unsafe fn shift_right(x: Self::W, by: Self::W) -> Self::W {
        unsafe { _mm512_srlv_epi32(x, by) }
    }

    #[inline(always)]
    unsafe fn shift_left_or(x: Self::W, by: Self::W, other: Self::W) -> Self::W {
        unsafe { _mm512_or_si512(_mm512_sllv_epi32(x, by), other) }
    }

    #[inline(always)]
    unsafe fn numbers(x: Self::W, mask: Self::W) -> Self::V {
        unsafe { _mm512_cvtepi32_ps(_mm512_and_si512(x, mask)) }
    }

    #[inline(always)]
    unsafe fn table(from: *const f32) -> Self::Table {
        unsafe { [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))] }
    }

    #[inline(always)]
    unsafe fn look_up<const BITS: u32>(table: Self::Table, x: Self::W) -> Self::V {
        unsafe {
            if BITS <= 4 {
                return _mm512_permutexvar_ps(x, table[0]);
            }
            _mm512_permutex2var_ps(table[0], x, table[1])
        }
    }
}

const _: () = assert!(ROUND.to_bits() << 23 == 0);
