//! AVX-512 with VNNI: sixteen rows and four columns per instruction.

use super::{AHEAD, BLOCK, Codes, Outputs, Scales, TILE, Tile};
use breakers_cpu::activations::Panel;
use std::arch::x86_64::*;

/// Bytes of a cache line.
const LINE: usize = 64;
/// # Safety
/// Those of [`CodesKernel`](super::CodesKernel) for AVX-512, `C` and `R`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn multiply<C: Codes, const R: usize>(tile: Tile<'_>, panel: Panel<'_>, out: &mut Outputs) {
    debug_assert_eq!(panel.n_rows, R);
    let n_blocks = panel.quants.len() / (BLOCK * R);
    debug_assert!(tile.codes.len() >= n_blocks * C::BLOCK_BYTES);
    debug_assert!(tile.scales.len() >= n_blocks / C::SCALES.blocks() * C::SCALES.bytes());
    let mut sums = [_mm512_setzero_ps(); R];
    for block in 0..n_blocks {
        // SAFETY: the tile and the panel are `n_blocks` long.
        unsafe {
            if tile.is_cold {
                prefetch::<C>(tile, block);
            }
            let groups = unpack::<C>(tile.codes.as_ptr().add(block * C::BLOCK_BYTES));
            let scales = scales::<C>(tile.scales.as_ptr(), block);
            each_row!(R, row => {
                sums[row] = add::<C>(sums[row], &groups, scales, &panel, block * R + row);
            });
        }
    }
    each_row!(R, row => {
        // SAFETY: a row of the outputs is sixteen numbers.
        unsafe { _mm512_storeu_ps(out[row].as_mut_ptr(), sums[row]) };
    });
}

/// Prefetches the bytes that are [`AHEAD`] of a block.
#[inline(always)]
fn prefetch<C: Codes>(tile: Tile<'_>, block: usize) {
    let codes = tile.codes.as_ptr().wrapping_add(AHEAD + block * C::BLOCK_BYTES);
    let scale_bytes = |code_bytes| code_bytes * C::SCALES.bytes() / (C::SCALES.blocks() * C::BLOCK_BYTES);
    let scales = tile.scales.as_ptr().wrapping_add(scale_bytes(AHEAD) + scale_bytes(block * C::BLOCK_BYTES));
    // SAFETY: a prefetch reads nothing, whatever the address.
    unsafe {
        for line in 0..C::BLOCK_BYTES / LINE {
            _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(LINE * line).cast());
        }
        _mm_prefetch::<_MM_HINT_T0>(scales.cast());
    }
}

/// Adds the product of one block and the `at`-th block of the panel.
///
/// # Safety
/// - The panel must have more than `at` blocks.
#[inline(always)]
unsafe fn add<C: Codes>(
    sum: __m512,
    groups: &[__m512i; 8],
    (scale, min): ([__m512; 2], [__m512; 2]),
    panel: &Panel<'_>,
    at: usize,
) -> __m512 {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let input = panel.quants.as_ptr().add(at * BLOCK);
        let factor = _mm512_set1_ps(*panel.scales.as_ptr().add(at));
        if C::SCALES.per_half() {
            let halves = panel.negative_half_sums.as_ptr().add(at).cast::<i32>();
            let first = dot::<C, 4>(&groups[..4], input, halves);
            let second = dot::<C, 4>(&groups[4..], input.add(BLOCK / 2), halves.add(1));
            let mut t = _mm512_mul_ps(_mm512_cvtepi32_ps(first), scale[0]);
            t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), scale[1], t);
            if C::SCALES.has_min() {
                for (half, min) in min.into_iter().enumerate() {
                    let sum = _mm512_cvtepi32_ps(_mm512_set1_epi32(*halves.add(half)));
                    t = _mm512_fmadd_ps(min, sum, t);
                }
            }
            _mm512_fmadd_ps(t, factor, sum)
        } else {
            let offset = panel.negative_sums.as_ptr().add(at);
            let dot = _mm512_cvtepi32_ps(dot::<C, 8>(groups, input, offset));
            let sum = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale[0], factor), sum);
            if C::SCALES.has_min() {
                _mm512_fmadd_ps(min[0], _mm512_set1_ps(*panel.scaled_sums.as_ptr().add(at)), sum)
            } else {
                sum
            }
        }
    }
}

/// Dot products of `N` groups of codes, less their offset, with the same activations.
///
/// # Safety
/// - `input` must point to `4 * N` values, `negative_sum` to the negated sum of these.
#[inline(always)]
unsafe fn dot<C: Codes, const N: usize>(
    groups: &[__m512i],
    input: *const i8,
    negative_sum: *const i32,
) -> __m512i {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let mut sum = if C::OFFSET_SHIFT < 0 {
            _mm512_setzero_si512()
        } else {
            let shift = _mm_cvtsi32_si128(C::OFFSET_SHIFT);
            _mm512_sll_epi32(_mm512_set1_epi32(*negative_sum), shift)
        };
        for g in 0..N {
            let four = _mm512_set1_epi32(input.add(4 * g).cast::<i32>().read_unaligned());
            sum = _mm512_dpbusd_epi32(sum, groups[g], four);
        }
        sum
    }
}

/// # Safety
/// - `codes` must point to a block of codes.
#[inline(always)]
unsafe fn unpack<C: Codes>(codes: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let word = |i: usize| _mm512_loadu_si512(codes.add(64 * i).cast());
        let mut groups = [_mm512_setzero_si512(); 8];
        match C::BITS {
            8 => {
                for g in 0..8 {
                    groups[g] = word(g);
                }
            }
            4..=6 => {
                let low = _mm512_set1_epi8(15);
                for j in 0..4 {
                    let both = word(j);
                    groups[j] = _mm512_and_si512(both, low);
                    groups[j + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                }
                match C::BITS {
                    5 => merge_bits(&mut groups, word(4), 4),
                    6 => merge_pairs(&mut groups, [word(4), word(5)]),
                    _ => {}
                }
            }
            3 => {
                let seven = _mm512_set1_epi8(7);
                for j in 0..3 {
                    let pair = word(j);
                    groups[2 * j] = _mm512_and_si512(pair, seven);
                    groups[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16::<3>(pair), seven);
                }
                let (three, four) = (_mm512_set1_epi8(3), _mm512_set1_epi8(4));
                let low =
                    [word(0), word(1)].map(|word| _mm512_and_si512(_mm512_srli_epi16::<6>(word), three));
                let high = [_mm512_srli_epi16::<4>(word(2)), _mm512_srli_epi16::<5>(word(2))];
                for j in 0..2 {
                    groups[6 + j] = _mm512_ternarylogic_epi32::<0xf8>(low[j], high[j], four);
                }
            }
            _ => {
                let low = _mm512_set1_epi8(3);
                for g in 0..8 {
                    let pairs = word(g / 4);
                    groups[g] = _mm512_and_si512(shift(pairs, 2 * (g as i16 % 4)), low);
                }
            }
        }
        if let Some(table) = C::TABLE {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            groups = groups.map(|group| _mm512_shuffle_epi8(table, group));
        }
        groups
    }
}

/// Shifts 16-bit lanes to the right, or to the left for negative numbers.
#[inline(always)]
unsafe fn shift(word: __m512i, right: i16) -> __m512i {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        match right {
            0 => word,
            1.. => _mm512_srlv_epi16(word, _mm512_set1_epi16(right)),
            _ => _mm512_sllv_epi16(word, _mm512_set1_epi16(-right)),
        }
    }
}

/// Puts bit `g` of each byte of `word` to bit `at` of group `g`.
#[inline(always)]
unsafe fn merge_bits(groups: &mut [__m512i; 8], word: __m512i, at: i16) {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let mask = _mm512_set1_epi8(1 << at);
        for g in 0..8 {
            // a | (b & c)
            groups[g] = _mm512_ternarylogic_epi32::<0xf8>(groups[g], shift(word, g as i16 - at), mask);
        }
    }
}

/// Puts bits `2 (g % 4) ..` of each byte of word `g / 4` to bits 4 and 5 of group `g`.
#[inline(always)]
unsafe fn merge_pairs(groups: &mut [__m512i; 8], words: [__m512i; 2]) {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let mask = _mm512_set1_epi8(0x30);
        for g in 0..8 {
            let pairs = shift(words[g / 4], 2 * (g as i16 % 4) - 4);
            groups[g] = _mm512_ternarylogic_epi32::<0xf8>(groups[g], pairs, mask);
        }
    }
}

/// Scales and minima of the halves of a block (both the same if they share one). The minima of formats with a
/// scale per half have the opposite sign: what is subtracted.
///
/// # Safety
/// - `scales` must point to the scales of more than `block` blocks.
#[inline(always)]
unsafe fn scales<C: Codes>(scales: *const u8, block: usize) -> ([__m512; 2], [__m512; 2]) {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let zero = [_mm512_setzero_ps(); 2];
        let lines = scales.add(block / C::SCALES.blocks() * C::SCALES.bytes());
        let half = |line: usize| _mm512_cvtph_ps(_mm256_loadu_si256(lines.add(2 * TILE * line).cast()));
        let byte = |halves: usize, line: usize| _mm_loadu_si128(lines.add((2 * halves + line) * TILE).cast());
        let within = block % C::SCALES.blocks();
        match C::SCALES {
            Scales::Half | Scales::HalfOf(_) => ([half(0); 2], zero),
            Scales::HalfMin | Scales::HalfMinOf(_) => ([half(0); 2], [half(1); 2]),
            Scales::Exponent => ([power_of_two(_mm512_cvtepu8_epi32(byte(0, 0))); 2], zero),
            Scales::ByteMin => {
                let line = |line| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(byte(2, 2 * within + line)));
                let min = _mm512_mul_ps(half(1), line(1));
                ([_mm512_mul_ps(half(0), line(0)); 2], [_mm512_xor_ps(min, _mm512_set1_ps(-0.0)); 2])
            }
            Scales::HalvesByte => {
                let factor = half(0);
                let line = |i| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(byte(1, 2 * within + i)));
                ([_mm512_mul_ps(factor, line(0)), _mm512_mul_ps(factor, line(1))], zero)
            }
            Scales::HalvesE4M3 => {
                let factor = _mm512_mul_ps(half(0), _mm512_set1_ps(super::E4M3_REBIAS));
                // Not a closure: one of this size would be compiled separately, without the instructions.
                let first = e4m3(byte(1, 2 * within));
                let second = e4m3(byte(1, 2 * within + 1));
                ([_mm512_mul_ps(factor, first), _mm512_mul_ps(factor, second)], zero)
            }
            Scales::HalvesNibbleMin => {
                let factors = [half(0), half(1)];
                let lines = [0, 1].map(|i| _mm512_cvtepu8_epi32(byte(2, 2 * within + i)));
                let low = _mm512_set1_epi32(15);
                (
                    lines.map(|line| {
                        _mm512_mul_ps(factors[0], _mm512_cvtepi32_ps(_mm512_and_si512(line, low)))
                    }),
                    lines.map(|line| {
                        _mm512_mul_ps(factors[1], _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(line)))
                    }),
                )
            }
        }
    }
}

/// Numbers of E4M3 over 2^8: their bits make a half whose exponent is too small by that, also
/// where they are subnormal.
#[inline(always)]
unsafe fn e4m3(bits: __m128i) -> __m512 {
    // SAFETY: the caller has the instructions.
    unsafe {
        // The sign comes down to two bits, of which the lower one is not part of the number.
        let bits = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(bits));
        _mm512_cvtph_ps(_mm256_and_si256(bits, _mm256_set1_epi16(!0x4000)))
    }
}

/// [`half_power_of_two`](breakers_gguf::half_power_of_two) of each lane.
#[inline(always)]
unsafe fn power_of_two(exponents: __m512i) -> __m512 {
    // SAFETY: the caller has the instructions and grants the reads.
    unsafe {
        let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponents, _mm512_set1_epi32(1)));
        let subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), exponents);
        let small = _mm512_cmplt_epu32_mask(exponents, _mm512_set1_epi32(2));
        _mm512_castsi512_ps(_mm512_mask_blend_epi32(small, normal, subnormal))
    }
}
