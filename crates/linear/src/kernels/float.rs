//! Weights that are floating-point numbers, against activations in `f32`.
//!
//! The tile holds, for each column, the numbers of its sixteen rows side by side. Each (row, output) has two
//! accumulators, one for even and one for odd columns, to which products are added in ascending order
//! by fused multiply-adds; the result is their sum. (With one, a single row would wait for the
//! latency of its additions.)

use super::{Outputs, TILE, Tile, by_rows};
use breakers_cpu::{Isa, activations::PANEL_ROWS};
use breakers_gguf::Format;

/// Multiplies up to [`PANEL_ROWS`] rows of activations with a tile. As many rows of the outputs are
/// written as `inputs` holds.
///
/// # Safety
/// - The CPU must have the instructions of the path that the kernel was chosen for.
/// - The tile must hold `n_cols` columns of the format that the kernel was chosen for.
/// - `inputs` must hold the number of rows that the kernel was chosen for, each of `n_cols` values.
pub(crate) type FloatKernel = unsafe fn(tile: Tile<'_>, inputs: &[f32], n_cols: usize, out: &mut Outputs);

/// How weights become `f32`.
trait Weights {
    const BYTES: usize;
    fn scalar(bytes: &[u8]) -> f32;
    /// # Safety
    /// - The CPU must have AVX-512, and `weights` point to sixteen numbers.
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx512(weights: *const u8) -> std::arch::x86_64::__m512;
    /// # Safety
    /// - The CPU must have AVX2 and F16C, and `weights` point to eight numbers.
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx2(weights: *const u8) -> std::arch::x86_64::__m256;
}

struct F32;
struct F16;
struct BF16;

/// The kernel for a format of floats, an instruction set and a number of rows; none for integer codes.
pub(crate) fn float_kernel(format: Format, isa: Isa, n_rows: usize) -> Option<FloatKernel> {
    match format {
        Format::F32 => Some(kernel_of::<F32>(isa, n_rows)),
        Format::F16 => Some(kernel_of::<F16>(isa, n_rows)),
        Format::BF16 => Some(kernel_of::<BF16>(isa, n_rows)),
        _ => None,
    }
}

fn kernel_of<W: Weights>(isa: Isa, n_rows: usize) -> FloatKernel {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => by_rows!(n_rows, R => x86::multiply_avx512::<W, R>),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => by_rows!(n_rows, R => x86::multiply_avx2::<W, R>),
        _ => multiply_scalar::<W>,
    }
}

/// # Safety
/// - None beyond those of [`FloatKernel`]; this one is safe and checks its indices.
unsafe fn multiply_scalar<W: Weights>(tile: Tile<'_>, inputs: &[f32], n_cols: usize, out: &mut Outputs) {
    let n_rows = inputs.len().checked_div(n_cols).unwrap_or(PANEL_ROWS);
    let mut sums = [[[0.0f32; TILE]; PANEL_ROWS]; 2];
    for (col, line) in tile.codes.chunks_exact(TILE * W::BYTES).take(n_cols).enumerate() {
        for (lane, weight) in line.chunks_exact(W::BYTES).enumerate() {
            let weight = W::scalar(weight);
            for row in 0..n_rows {
                let sum = &mut sums[col % 2][row][lane];
                *sum = weight.mul_add(inputs[row * n_cols + col], *sum);
            }
        }
    }
    for row in 0..n_rows {
        for lane in 0..TILE {
            out[row][lane] = sums[0][row][lane] + sums[1][row][lane];
        }
    }
}

impl Weights for F32 {
    const BYTES: usize = 4;

    fn scalar(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn avx512(weights: *const u8) -> std::arch::x86_64::__m512 {
        // SAFETY: the caller grants instructions and reads.
        unsafe { std::arch::x86_64::_mm512_loadu_ps(weights.cast()) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn avx2(weights: *const u8) -> std::arch::x86_64::__m256 {
        // SAFETY: the caller grants instructions and reads.
        unsafe { std::arch::x86_64::_mm256_loadu_ps(weights.cast()) }
    }
}

impl Weights for F16 {
    const BYTES: usize = 2;

    fn scalar(bytes: &[u8]) -> f32 {
        half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn avx512(weights: *const u8) -> std::arch::x86_64::__m512 {
        // SAFETY: the caller grants instructions and reads.
        unsafe { std::arch::x86_64::_mm512_cvtph_ps(std::arch::x86_64::_mm256_loadu_si256(weights.cast())) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn avx2(weights: *const u8) -> std::arch::x86_64::__m256 {
        // SAFETY: the caller grants instructions and reads.
        unsafe { std::arch::x86_64::_mm256_cvtph_ps(std::arch::x86_64::_mm_loadu_si128(weights.cast())) }
    }
}

impl Weights for BF16 {
    const BYTES: usize = 2;

    fn scalar(bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn avx512(weights: *const u8) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;
        // SAFETY: the caller grants instructions and reads.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(weights.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn avx2(weights: *const u8) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: the caller grants instructions and reads.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(weights.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Outputs, TILE, Tile, Weights};
    use crate::kernels::AHEAD;
    use std::arch::x86_64::*;

    /// Bytes of a cache line.
    const LINE: usize = 64;

    /// # Safety
    /// Those of [`FloatKernel`](super::FloatKernel) for AVX-512, `W` and `R`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn multiply_avx512<W: Weights, const R: usize>(
        tile: Tile<'_>,
        inputs: &[f32],
        n_cols: usize,
        out: &mut Outputs,
    ) {
        debug_assert!(tile.codes.len() >= n_cols * TILE * W::BYTES && inputs.len() == R * n_cols);
        let (weights, inputs) = (tile.codes.as_ptr(), inputs.as_ptr());
        let mut even = [_mm512_setzero_ps(); R];
        let mut odd = [_mm512_setzero_ps(); R];
        for pair in 0..n_cols / 2 {
            let col = 2 * pair;
            // SAFETY: weights and inputs have `n_cols` columns; a prefetch reads nothing.
            unsafe {
                if tile.is_cold {
                    let ahead = weights.wrapping_add(AHEAD + col * TILE * W::BYTES);
                    for line in 0..2 * TILE * W::BYTES / LINE {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * LINE).cast());
                    }
                }
                let first = W::avx512(weights.add(col * TILE * W::BYTES));
                let second = W::avx512(weights.add((col + 1) * TILE * W::BYTES));
                each_row!(R, row => {
                    let input = inputs.add(row * n_cols + col);
                    even[row] = _mm512_fmadd_ps(first, _mm512_set1_ps(*input), even[row]);
                    odd[row] = _mm512_fmadd_ps(second, _mm512_set1_ps(*input.add(1)), odd[row]);
                });
            }
        }
        if n_cols % 2 == 1 {
            let col = n_cols - 1;
            // SAFETY: weights and inputs have `n_cols` columns.
            unsafe {
                let last = W::avx512(weights.add(col * TILE * W::BYTES));
                each_row!(R, row => {
                    let input = _mm512_set1_ps(*inputs.add(row * n_cols + col));
                    even[row] = _mm512_fmadd_ps(last, input, even[row]);
                });
            }
        }
        each_row!(R, row => {
            // SAFETY: a row of the outputs is sixteen numbers.
            unsafe { _mm512_storeu_ps(out[row].as_mut_ptr(), _mm512_add_ps(even[row], odd[row])) };
        });
    }

    /// # Safety
    /// Those of [`FloatKernel`](super::FloatKernel) for AVX2, `W` and `R`.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn multiply_avx2<W: Weights, const R: usize>(
        tile: Tile<'_>,
        inputs: &[f32],
        n_cols: usize,
        out: &mut Outputs,
    ) {
        debug_assert!(tile.codes.len() >= n_cols * TILE * W::BYTES && inputs.len() == R * n_cols);
        let inputs = inputs.as_ptr();
        for side in 0..2 {
            let weights = tile.codes.as_ptr().wrapping_add(side * TILE / 2 * W::BYTES);
            let mut even = [_mm256_setzero_ps(); R];
            let mut odd = [_mm256_setzero_ps(); R];
            for pair in 0..n_cols / 2 {
                let col = 2 * pair;
                // SAFETY: weights and inputs have `n_cols` columns.
                unsafe {
                    let first = W::avx2(weights.add(col * TILE * W::BYTES));
                    let second = W::avx2(weights.add((col + 1) * TILE * W::BYTES));
                    each_row!(R, row => {
                        let input = inputs.add(row * n_cols + col);
                        even[row] = _mm256_fmadd_ps(first, _mm256_set1_ps(*input), even[row]);
                        odd[row] = _mm256_fmadd_ps(second, _mm256_set1_ps(*input.add(1)), odd[row]);
                    });
                }
            }
            if n_cols % 2 == 1 {
                let col = n_cols - 1;
                // SAFETY: weights and inputs have `n_cols` columns.
                unsafe {
                    let last = W::avx2(weights.add(col * TILE * W::BYTES));
                    each_row!(R, row => {
                        let input = _mm256_set1_ps(*inputs.add(row * n_cols + col));
                        even[row] = _mm256_fmadd_ps(last, input, even[row]);
                    });
                }
            }
            each_row!(R, row => {
                let sum = _mm256_add_ps(even[row], odd[row]);
                // SAFETY: a row of the outputs is sixteen numbers.
                unsafe { _mm256_storeu_ps(out[row].as_mut_ptr().add(side * TILE / 2), sum) };
            });
        }
    }
}
