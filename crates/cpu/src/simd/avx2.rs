//! AVX2 with FMA and F16C: sixteen lanes in two registers, the lower eight first.

use std::arch::x86_64::*;

use super::{Quad, Simd, Stored};
use crate::{Isa, float16::MAX as F16_MAX};

/// Needs AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2;

// SAFETY of all blocks: the trait's contract gives the instructions and the validity of pointers.
#[allow(clippy::undocumented_unsafe_blocks)] // The same one-line reason for each intrinsic stands above.
impl Simd for Avx2 {
    type V = [__m256; 2];
    type W = [__m256i; 2];
    type Table = [__m256i; 2];
    /// The even bytes of each half, then the odd ones, in 16 bits each.
    type Bytes = [[__m256i; 2]; 2];
    type Factors = [__m256i; 2];
    type Sum = [__m256i; 2];
    // Of 16 registers, 2 each; a tile of 3 rows and 2 blocks would spill.
    const ISA: Isa = Isa::Avx2;
    const ACCUMULATORS: usize = 5;
    const HAS_PLANES: bool = false;

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
            if E::IS_HALF {
                [
                    _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
                ]
            } else {
                Self::load(from.cast())
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
    unsafe fn indices(from: *const u8) -> Self::W {
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            [low, _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast()))]
        }
    }

    #[inline(always)]
    unsafe fn pick(from: *const f32, _: usize, indices: Self::W) -> Self::V {
        unsafe { [_mm256_i32gather_ps::<4>(from, indices[0]), _mm256_i32gather_ps::<4>(from, indices[1])] }
    }

    #[inline(always)]
    unsafe fn narrow<E: Stored>(to: *mut E, x: Self::V) {
        unsafe {
            if E::IS_HALF {
                narrow_half(to.cast(), x[0]);
                narrow_half(to.add(8).cast(), x[1]);
            } else {
                Self::store(to.cast(), x)
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
    unsafe fn words(from: *const u32) -> Self::W {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())] }
    }

    #[inline(always)]
    unsafe fn store_words(to: *mut u32, x: Self::W) {
        unsafe {
            _mm256_storeu_si256(to.cast(), x[0]);
            _mm256_storeu_si256(to.add(8).cast(), x[1]);
        }
    }

    #[inline(always)]
    unsafe fn splat_word(x: u32) -> Self::W {
        unsafe { [_mm256_set1_epi32(x as i32); 2] }
    }

    #[inline(always)]
    unsafe fn add_words(a: Self::W, b: Self::W) -> Self::W {
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn and(a: Self::W, b: Self::W) -> Self::W {
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W {
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn shift_right(x: Self::W, by: Self::W) -> Self::W {
        unsafe { [_mm256_srlv_epi32(x[0], by[0]), _mm256_srlv_epi32(x[1], by[1])] }
    }

    #[inline(always)]
    unsafe fn shift_left(x: Self::W, by: Self::W) -> Self::W {
        unsafe { [_mm256_sllv_epi32(x[0], by[0]), _mm256_sllv_epi32(x[1], by[1])] }
    }

    #[inline(always)]
    unsafe fn float(x: Self::W) -> Self::V {
        unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
    }

    #[inline(always)]
    unsafe fn table(from: *const u8) -> Self::Table {
        unsafe {
            let low = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast()));
            [low, _mm256_broadcastsi128_si256(_mm_loadu_si128(from.add(16).cast()))]
        }
    }

    #[inline(always)]
    unsafe fn look_up<const BITS: u32>(table: Self::Table, x: Self::W) -> Self::W {
        unsafe { [look_up_half::<BITS>(table, x[0]), look_up_half::<BITS>(table, x[1])] }
    }

    #[inline(always)]
    unsafe fn pack<const PLANES: usize>(x: Self::V, to: *mut Quad) {
        unsafe {
            for (half, x) in x.into_iter().enumerate() {
                let x = _mm256_cvtps_epi32(x);
                // Of each four, the low halves of the first, the third, the second and the fourth.
                let order = _mm256_set1_epi64x(0x0d0c_0504_0908_0100);
                let quads = _mm256_shuffle_epi8(x, order);
                _mm_storel_epi64(to.add(2 * half).cast(), _mm256_castsi256_si128(quads));
                _mm_storel_epi64(to.add(2 * half + 1).cast(), _mm256_extracti128_si256::<1>(quads));
            }
        }
    }

    #[inline(always)]
    unsafe fn bytes(x: Self::W) -> Self::Bytes {
        unsafe {
            let even = _mm256_set1_epi16(0xff);
            [
                [_mm256_and_si256(x[0], even), _mm256_and_si256(x[1], even)],
                [_mm256_srli_epi16::<8>(x[0]), _mm256_srli_epi16::<8>(x[1])],
            ]
        }
    }

    #[inline(always)]
    unsafe fn factors(from: *const Quad) -> Self::Factors {
        unsafe { [_mm256_set1_epi32((*from)[0] as i32), _mm256_set1_epi32((*from)[1] as i32)] }
    }

    #[inline(always)]
    unsafe fn no_sum() -> Self::Sum {
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn dot<const PLANES: usize>(
        sum: Self::Sum,
        bytes: Self::Bytes,
        factors: Self::Factors,
    ) -> Self::Sum {
        unsafe {
            let mut sum = sum;
            for i in 0..2 {
                let even = _mm256_madd_epi16(bytes[0][i], factors[0]);
                let odd = _mm256_madd_epi16(bytes[1][i], factors[1]);
                sum[i] = _mm256_add_epi32(sum[i], _mm256_add_epi32(even, odd));
            }
            sum
        }
    }

    #[inline(always)]
    unsafe fn total<const PLANES: usize>(sum: Self::Sum) -> Self::W {
        sum
    }
}

// These are functions, not closures, because a closure would be compiled without the instructions.

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
/// The processor has AVX2.
#[inline(always)]
unsafe fn look_up_half<const BITS: u32>(table: [__m256i; 2], x: __m256i) -> __m256i {
    // SAFETY: the caller's promise. A byte's highest bit tells the blend which operand to take.
    unsafe {
        let low = _mm256_shuffle_epi8(table[0], x);
        if BITS <= 4 {
            return low;
        }
        let high = _mm256_shuffle_epi8(table[1], x);
        _mm256_blendv_epi8(low, high, _mm256_slli_epi16::<3>(x))
    }
}
