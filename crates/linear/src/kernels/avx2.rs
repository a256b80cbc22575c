//! AVX2 with FMA and F16C: eight rows and four columns per step.
//!
//! The dot product of unsigned with signed bytes adds pairs in saturating 16-bit lanes. Codes of up to six
//! bits stay below the limit (`2 * 63 * 127 < 2^15`), with room for sums of several groups if the codes are
//! narrower. Eight-bit codes are made signed; their magnitudes (at most 128) are then multiplied with
//! activations that have taken over the sign.

use super::{BLOCK, Codes, Outputs, Scales, TILE, Tile};
use breakers_cpu::activations::Panel;
use std::arch::x86_64::*;

/// Rows of a register.
const LANES: usize = TILE / 2;

/// # Safety
/// Those of [`CodesKernel`](super::CodesKernel) for AVX2, `C` and `R`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<C: Codes, const R: usize>(tile: Tile<'_>, panel: Panel<'_>, out: &mut Outputs) {
    debug_assert_eq!(panel.n_rows, R);
    let n_blocks = panel.quants.len() / (BLOCK * R);
    debug_assert!(tile.codes.len() >= n_blocks * C::BLOCK_BYTES);
    debug_assert!(tile.scales.len() >= n_blocks / C::SCALES.blocks() * C::SCALES.bytes());
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for block in 0..n_blocks {
        for side in 0..2 {
            // SAFETY: the tile and the panel are `n_blocks` long.
            unsafe {
                let groups = unpack::<C>(tile.codes.as_ptr().add(block * C::BLOCK_BYTES + 4 * LANES * side));
                let (scale, min) = scales::<C>(tile.scales.as_ptr(), block, side);
                each_row!(R, row => {
                    sums[row][side] = add::<C>(sums[row][side], &groups, (scale, min), panel, block * R + row);
                });
            }
        }
    }
    for row in 0..R {
        for side in 0..2 {
            // SAFETY: a row of the outputs is sixteen numbers.
            unsafe { _mm256_storeu_ps(out[row].as_mut_ptr().add(LANES * side), sums[row][side]) };
        }
    }
}

/// Adds the product of one block and the `at`-th block of the panel.
///
/// # Safety
/// - The panel must have more than `at` blocks.
#[inline(always)]
unsafe fn add<C: Codes>(
    sum: __m256,
    groups: &[__m256i; 8],
    (scale, min): ([__m256; 2], [__m256; 2]),
    panel: Panel<'_>,
    at: usize,
) -> __m256 {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let input = panel.quants.as_ptr().add(at * BLOCK);
        let factor = _mm256_set1_ps(*panel.scales.as_ptr().add(at));
        if C::SCALES.per_half() {
            let halves = panel.negative_half_sums.as_ptr().add(at).cast::<i32>();
            let first = dot::<C, 4>(&groups[..4], input, halves);
            let second = dot::<C, 4>(&groups[4..], input.add(BLOCK / 2), halves.add(1));
            let mut t = _mm256_mul_ps(_mm256_cvtepi32_ps(first), scale[0]);
            t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(second), scale[1], t);
            if C::SCALES.has_min() {
                for (half, min) in min.into_iter().enumerate() {
                    let sum = _mm256_cvtepi32_ps(_mm256_set1_epi32(*halves.add(half)));
                    t = _mm256_fmadd_ps(min, sum, t);
                }
            }
            _mm256_fmadd_ps(t, factor, sum)
        } else {
            let offset = panel.negative_sums.as_ptr().add(at);
            let dot = _mm256_cvtepi32_ps(dot::<C, 8>(groups, input, offset));
            let sum = _mm256_fmadd_ps(dot, _mm256_mul_ps(scale[0], factor), sum);
            if C::SCALES.has_min() {
                _mm256_fmadd_ps(min[0], _mm256_set1_ps(*panel.scaled_sums.as_ptr().add(at)), sum)
            } else {
                sum
            }
        }
    }
}

/// Whether codes need all eight bits in the product.
const fn is_wide<C: Codes>() -> bool {
    C::BITS == 8 || C::OFFSET_SHIFT == 7
}

/// Groups whose products can be added in 16 bits.
const fn groups_per_sum<C: Codes>() -> usize {
    match C::BITS {
        2..=4 if C::TABLE.is_none() => 8,
        ..=5 => 4,
        _ => 2,
    }
}

/// Dot products of `N` groups of codes, less their offset, with the same activations.
///
/// # Safety
/// - `input` must point to `4 * N` values, `negative_sum` to the negated sum of these.
#[inline(always)]
unsafe fn dot<C: Codes, const N: usize>(
    groups: &[__m256i],
    input: *const i8,
    negative_sum: *const i32,
) -> __m256i {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let four = |g: usize| _mm256_set1_epi32(input.add(4 * g).cast::<i32>().read_unaligned());
        if is_wide::<C>() {
            // Codes without an offset exceed the signed bytes by this.
            let mut sum = if C::OFFSET_SHIFT < 0 {
                _mm256_slli_epi32::<7>(_mm256_set1_epi32(negative_sum.read().wrapping_neg()))
            } else {
                _mm256_setzero_si256()
            };
            for g in 0..N {
                let levels = _mm256_xor_si256(groups[g], _mm256_set1_epi8(-128));
                let signed = _mm256_sign_epi8(four(g), levels);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(levels), signed);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
            }
            return sum;
        }
        let mut sum = if C::OFFSET_SHIFT < 0 {
            _mm256_setzero_si256()
        } else {
            _mm256_sll_epi32(_mm256_set1_epi32(*negative_sum), _mm_cvtsi32_si128(C::OFFSET_SHIFT))
        };
        let per_sum = if groups_per_sum::<C>() < N { groups_per_sum::<C>() } else { N };
        for first in (0..N).step_by(per_sum) {
            let mut pairs = _mm256_maddubs_epi16(groups[first], four(first));
            for g in first + 1..first + per_sum {
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(groups[g], four(g)));
            }
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        }
        sum
    }
}

/// # Safety
/// - `codes` must point to one of the two sides of a block of codes.
#[inline(always)]
unsafe fn unpack<C: Codes>(codes: *const u8) -> [__m256i; 8] {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let word = |i: usize| _mm256_loadu_si256(codes.add(64 * i).cast());
        let mut groups = [_mm256_setzero_si256(); 8];
        match C::BITS {
            8 => {
                for g in 0..8 {
                    groups[g] = word(g);
                }
            }
            4..=6 => {
                let low = _mm256_set1_epi8(15);
                for j in 0..4 {
                    let both = word(j);
                    groups[j] = _mm256_and_si256(both, low);
                    groups[j + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
                }
                match C::BITS {
                    5 => merge_bits(&mut groups, word(4), 4),
                    6 => merge_pairs(&mut groups, [word(4), word(5)]),
                    _ => {}
                }
            }
            3 => {
                let seven = _mm256_set1_epi8(7);
                for j in 0..3 {
                    let pair = word(j);
                    groups[2 * j] = _mm256_and_si256(pair, seven);
                    groups[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16::<3>(pair), seven);
                }
                let (three, four) = (_mm256_set1_epi8(3), _mm256_set1_epi8(4));
                let low =
                    [word(0), word(1)].map(|word| _mm256_and_si256(_mm256_srli_epi16::<6>(word), three));
                let high = [_mm256_srli_epi16::<4>(word(2)), _mm256_srli_epi16::<5>(word(2))];
                for j in 0..2 {
                    groups[6 + j] = _mm256_or_si256(low[j], _mm256_and_si256(high[j], four));
                }
            }
            _ => {
                let low = _mm256_set1_epi8(3);
                for g in 0..8 {
                    groups[g] = _mm256_and_si256(shift(word(g / 4), 2 * (g as i32 % 4)), low);
                }
            }
        }
        if let Some(table) = C::TABLE {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            for group in &mut groups {
                *group = _mm256_shuffle_epi8(table, *group);
            }
        }
        groups
    }
}

/// Shifts 16-bit lanes to the right, or to the left for negative numbers.
#[inline(always)]
unsafe fn shift(word: __m256i, right: i32) -> __m256i {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        match right {
            0 => word,
            1.. => _mm256_srl_epi16(word, _mm_cvtsi32_si128(right)),
            _ => _mm256_sll_epi16(word, _mm_cvtsi32_si128(-right)),
        }
    }
}

/// Puts bit `g` of each byte of `word` to bit `at` of group `g`.
#[inline(always)]
unsafe fn merge_bits(groups: &mut [__m256i; 8], word: __m256i, at: i32) {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let mask = _mm256_set1_epi8(1 << at);
        for g in 0..8 {
            let bits = _mm256_and_si256(shift(word, g as i32 - at), mask);
            groups[g] = _mm256_or_si256(groups[g], bits);
        }
    }
}

/// Puts bits `2 (g % 4) ..` of each byte of word `g / 4` to bits 4 and 5 of group `g`.
#[inline(always)]
unsafe fn merge_pairs(groups: &mut [__m256i; 8], words: [__m256i; 2]) {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let mask = _mm256_set1_epi8(0x30);
        for g in 0..8 {
            let pairs = _mm256_and_si256(shift(words[g / 4], 2 * (g as i32 % 4) - 4), mask);
            groups[g] = _mm256_or_si256(groups[g], pairs);
        }
    }
}

/// Scales and minima of the halves of a block (both the same if they share one), for one side of the tile.
/// The minima of formats with a scale per half have the opposite sign: what is subtracted.
///
/// # Safety
/// - `scales` must point to the scales of more than `block` blocks.
#[inline(always)]
unsafe fn scales<C: Codes>(scales: *const u8, block: usize, side: usize) -> ([__m256; 2], [__m256; 2]) {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let zero = [_mm256_setzero_ps(); 2];
        let lines = scales.add(block / C::SCALES.blocks() * C::SCALES.bytes());
        let half = |line: usize| {
            _mm256_cvtph_ps(_mm_loadu_si128(lines.add(2 * (TILE * line + LANES * side)).cast()))
        };
        let byte = |halves: usize, line: usize| {
            _mm_loadl_epi64(lines.add((2 * halves + line) * TILE + LANES * side).cast())
        };
        let within = block % C::SCALES.blocks();
        match C::SCALES {
            Scales::Half | Scales::HalfOf(_) => ([half(0); 2], zero),
            Scales::HalfMin | Scales::HalfMinOf(_) => ([half(0); 2], [half(1); 2]),
            Scales::Exponent => ([power_of_two(_mm256_cvtepu8_epi32(byte(0, 0))); 2], zero),
            Scales::ByteMin => {
                let line = |line| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(byte(2, 2 * within + line)));
                let min = _mm256_mul_ps(half(1), line(1));
                ([_mm256_mul_ps(half(0), line(0)); 2], [_mm256_xor_ps(min, _mm256_set1_ps(-0.0)); 2])
            }
            Scales::HalvesByte => {
                let factor = half(0);
                let line = |i| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(byte(1, 2 * within + i)));
                ([_mm256_mul_ps(factor, line(0)), _mm256_mul_ps(factor, line(1))], zero)
            }
            Scales::HalvesE4M3 => {
                let factor = _mm256_mul_ps(half(0), _mm256_set1_ps(super::E4M3_REBIAS));
                // Not a closure: one of this size would be compiled separately, without the instructions.
                let first = e4m3(byte(1, 2 * within));
                let second = e4m3(byte(1, 2 * within + 1));
                ([_mm256_mul_ps(factor, first), _mm256_mul_ps(factor, second)], zero)
            }
            Scales::HalvesNibbleMin => {
                let factors = [half(0), half(1)];
                let lines = [0, 1].map(|i| _mm256_cvtepu8_epi32(byte(2, 2 * within + i)));
                let low = _mm256_set1_epi32(15);
                (
                    lines.map(|line| {
                        _mm256_mul_ps(factors[0], _mm256_cvtepi32_ps(_mm256_and_si256(line, low)))
                    }),
                    lines.map(|line| {
                        _mm256_mul_ps(factors[1], _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(line)))
                    }),
                )
            }
        }
    }
}

/// Numbers of E4M3 over 2^8: their bits make a half whose exponent is too small by that, also
/// where they are subnormal.
#[inline(always)]
unsafe fn e4m3(bits: __m128i) -> __m256 {
    // SAFETY: the caller has the instructions.
    unsafe {
        // The sign comes down to two bits, of which the lower one is not part of the number.
        let bits = _mm_slli_epi16::<7>(_mm_cvtepi8_epi16(bits));
        _mm256_cvtph_ps(_mm_and_si128(bits, _mm_set1_epi16(!0x4000)))
    }
}

/// [`half_power_of_two`](breakers_gguf::half_power_of_two) of each lane.
#[inline(always)]
unsafe fn power_of_two(exponents: __m256i) -> __m256 {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponents, _mm256_set1_epi32(1)));
        let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponents);
        let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), exponents);
        _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, small))
    }
}
