//! Activations quantized to signed bytes, once for all products that read the same input.
//!
//! Every block of 32 consecutive values of a row becomes 32 integers `q` in -127..=127 and one scale: `x ≈
//! scale * q` with `scale = max |x| / 127`, rounded to nearest with ties to even. A block that holds an
//! infinity or a NaN gets the scale NaN, so that results computed from it are NaN and not a plausible number.
//!
//! Stored with the integers are the sums that matrix products need to undo the offsets and minima of the
//! weights: the integer sum of a block, those of its two halves, and the sum times the scale.
//!
//! # Layout
//! Rows are stored in panels of [`PANEL_ROWS`] (the last one has what is left). Within a panel the blocks
//! follow each other, and within a block the panel's rows: `quants[block][row][32]`, `scales[block][row]`,
//! and so on. A product that holds one block of weights in registers reads the panel in one forward sweep.
//!
//! # Memory
//! 52 bytes per 32 values.
//!
//! # Example
//! ```
//! use breakers_cpu::activations::QuantizedActivations;
//!
//! let row: Vec<f32> = (0..64).map(|i| i as f32 - 20.0).collect();
//! let quantized = QuantizedActivations::quantize(&row, 64).unwrap();
//! assert_eq!(quantized.panel(0).scales.len(), 2);
//! let restored = quantized.to_f32();
//! assert!(row.iter().zip(&restored).all(|(x, y)| (x - y).abs() <= 43.0 / 127.0 / 2.0));
//! ```

use crate::{
    self as cpu, Error, Isa, Result,
    pool::{self, DisjointMut},
};

/// Values that share a scale.
pub const BLOCK: usize = 32;
/// Rows that are interleaved; matrix products take this many at a time.
pub const PANEL_ROWS: usize = 8;

/// The fewest values that a task of the pool quantizes.
const TASK_VALUES: usize = 16 * 1024;

/// Rows of activations as signed bytes, with a scale for each block of 32.
#[derive(Debug, Clone)]
pub struct QuantizedActivations {
    n_rows: usize,
    n_cols: usize,
    quants: Vec<i8>,
    scales: Vec<f32>,
    scaled_sums: Vec<f32>,
    negative_sums: Vec<i32>,
    negative_half_sums: Vec<[i32; 2]>,
}

/// Up to [`PANEL_ROWS`] interleaved rows.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// Rows in the panel.
    pub n_rows: usize,
    /// `[block][row][32]` integers.
    pub quants: &'a [i8],
    /// `[block][row]` factors of the integers.
    pub scales: &'a [f32],
    /// `[block][row]` sums of a block's integers times the scale.
    pub scaled_sums: &'a [f32],
    /// `[block][row]` sums of a block's integers, negated.
    pub negative_sums: &'a [i32],
    /// `[block][row]` sums of the integers of a block's two halves, negated.
    pub negative_half_sums: &'a [[i32; 2]],
}

impl QuantizedActivations {
    /// Quantizes the rows of `n_cols` values in `values`, on several threads if there are many.
    ///
    /// # Shapes
    /// `values`: `[n_rows, n_cols]`, where `n_cols` is a multiple of [`BLOCK`].
    ///
    /// # Errors
    /// [`Error::RowLength`] if `n_cols` is not a multiple of the block, or `values` does not hold whole rows.
    pub fn quantize(values: &[f32], n_cols: usize) -> Result<Self> {
        if n_cols == 0 || !n_cols.is_multiple_of(BLOCK) || !values.len().is_multiple_of(n_cols) {
            return Err(Error::RowLength { block: BLOCK, n_cols, n_values: values.len() });
        }
        let (n_rows, n_blocks) = (values.len() / n_cols, values.len() / BLOCK);
        let mut quantized = Self {
            n_rows,
            n_cols,
            quants: vec![0; values.len()],
            scales: vec![0.0; n_blocks],
            scaled_sums: vec![0.0; n_blocks],
            negative_sums: vec![0; n_blocks],
            negative_half_sums: vec![[0; 2]; n_blocks],
        };
        quantized.fill(values);
        Ok(quantized)
    }

    fn fill(&mut self, values: &[f32]) {
        let (n_rows, n_cols, isa) = (self.n_rows, self.n_cols, cpu::isa());
        let blocks_per_row = n_cols / BLOCK;
        let n_panels = n_rows.div_ceil(PANEL_ROWS);
        let panels_per_task = TASK_VALUES.div_ceil(PANEL_ROWS * n_cols);
        let quants = DisjointMut::new(&mut self.quants);
        let scales = DisjointMut::new(&mut self.scales);
        let scaled_sums = DisjointMut::new(&mut self.scaled_sums);
        let negative_sums = DisjointMut::new(&mut self.negative_sums);
        let negative_half_sums = DisjointMut::new(&mut self.negative_half_sums);
        pool::parallel_for(n_panels.div_ceil(panels_per_task), |task| {
            let first = task * panels_per_task * PANEL_ROWS;
            for start in (first..n_rows.min(first + panels_per_task * PANEL_ROWS)).step_by(PANEL_ROWS) {
                let rows = PANEL_ROWS.min(n_rows - start);
                let blocks = start * blocks_per_row..(start + rows) * blocks_per_row;
                let elements = blocks.start * BLOCK..blocks.end * BLOCK;
                // SAFETY: panels do not overlap, and each belongs to one task.
                let panel = unsafe {
                    PanelMut {
                        n_rows: rows,
                        quants: quants.slice_mut(elements.clone()),
                        scales: scales.slice_mut(blocks.clone()),
                        scaled_sums: scaled_sums.slice_mut(blocks.clone()),
                        negative_sums: negative_sums.slice_mut(blocks.clone()),
                        negative_half_sums: negative_half_sums.slice_mut(blocks),
                    }
                };
                panel.fill(&values[elements], isa);
            }
        });
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Values in a row.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Number of panels.
    pub fn n_panels(&self) -> usize {
        self.n_rows.div_ceil(PANEL_ROWS)
    }

    /// The rows from `panel_idx * PANEL_ROWS` on.
    ///
    /// # Panics
    /// If there is no such panel.
    pub fn panel(&self, panel_idx: usize) -> Panel<'_> {
        let start = panel_idx * PANEL_ROWS;
        assert!(start < self.n_rows, "panel {panel_idx} of {}", self.n_panels());
        let n_rows = PANEL_ROWS.min(self.n_rows - start);
        let blocks_per_row = self.n_cols / BLOCK;
        let blocks = start * blocks_per_row..(start + n_rows) * blocks_per_row;
        Panel {
            n_rows,
            quants: &self.quants[blocks.start * BLOCK..blocks.end * BLOCK],
            scales: &self.scales[blocks.clone()],
            scaled_sums: &self.scaled_sums[blocks.clone()],
            negative_sums: &self.negative_sums[blocks.clone()],
            negative_half_sums: &self.negative_half_sums[blocks],
        }
    }

    /// The values that the integers stand for, `[n_rows, n_cols]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n_rows * self.n_cols];
        for panel_idx in 0..self.n_panels() {
            let panel = self.panel(panel_idx);
            for (i, (quants, scale)) in panel.quants.chunks_exact(BLOCK).zip(panel.scales).enumerate() {
                let (block, row) = (i / panel.n_rows, i % panel.n_rows);
                let start = (panel_idx * PANEL_ROWS + row) * self.n_cols + block * BLOCK;
                for (out, &q) in out[start..start + BLOCK].iter_mut().zip(quants) {
                    *out = f32::from(q) * scale;
                }
            }
        }
        out
    }
}

struct PanelMut<'a> {
    n_rows: usize,
    quants: &'a mut [i8],
    scales: &'a mut [f32],
    scaled_sums: &'a mut [f32],
    negative_sums: &'a mut [i32],
    negative_half_sums: &'a mut [[i32; 2]],
}

impl PanelMut<'_> {
    fn fill(self, values: &[f32], isa: Isa) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has what the path needs, or the path could not have been chosen.
            Isa::Avx512 => unsafe { x86::fill_avx512(self, values) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { x86::fill_avx2(self, values) },
            _ => self.fill_with(values, quantize_block),
        }
    }

    #[inline(always)]
    fn fill_with(
        self,
        values: &[f32],
        quantize: impl Fn(&[f32; BLOCK], &mut [i8; BLOCK]) -> (f32, [i32; 2]),
    ) {
        let blocks_per_row = values.len() / BLOCK / self.n_rows;
        let (sources, _) = values.as_chunks::<BLOCK>();
        let (quants, _) = self.quants.as_chunks_mut::<BLOCK>();
        for row in 0..self.n_rows {
            let sources = &sources[row * blocks_per_row..][..blocks_per_row];
            for (block, source) in sources.iter().enumerate() {
                let i = block * self.n_rows + row;
                let (scale, halves) = quantize(source, &mut quants[i]);
                let sum = halves[0] + halves[1];
                self.scales[i] = scale;
                self.scaled_sums[i] = scale * sum as f32;
                self.negative_sums[i] = -sum;
                self.negative_half_sums[i] = [-halves[0], -halves[1]];
            }
        }
    }
}

const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;
/// Below this (`2^-119`) the reciprocal of a block's scale would overflow: the block counts as zero.
const SMALLEST: u32 = 0x0400_0000;

/// The scale of a block and the factor that turns its values into integers, from the bits of its largest
/// magnitude. (As integers, the bits order as the numbers do, with NaN above all.)
#[inline(always)]
fn scale_of(magnitude: u32) -> (f32, f32) {
    let largest = f32::from_bits(magnitude);
    match magnitude {
        INFINITY.. => (f32::NAN, 0.0),
        SMALLEST.. => (largest / 127.0, 127.0 / largest),
        _ => (0.0, 0.0),
    }
}

/// The reference.
fn quantize_block(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
    let magnitude = values.iter().map(|x| x.to_bits() & MAGNITUDE).fold(0, u32::max);
    let (scale, factor) = scale_of(magnitude);
    if factor == 0.0 {
        quants.fill(0);
        return (scale, [0; 2]);
    }
    let mut halves = [0; 2];
    for (i, (q, x)) in quants.iter_mut().zip(values).enumerate() {
        *q = (x * factor).round_ties_even() as i8;
        halves[i / (BLOCK / 2)] += i32::from(*q);
    }
    (scale, halves)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, MAGNITUDE, PanelMut, scale_of};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn fill_avx512(panel: PanelMut<'_>, values: &[f32]) {
        panel.fill_with(values, |values, quants| block_avx512(values, quants));
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    fn block_avx512(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
        // SAFETY: both halves lie within the array.
        let (low, high) =
            unsafe { (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16))) };
        let mask = _mm512_set1_epi32(MAGNITUDE as i32);
        let magnitudes = _mm512_max_epu32(
            _mm512_and_si512(_mm512_castps_si512(low), mask),
            _mm512_and_si512(_mm512_castps_si512(high), mask),
        );
        let (scale, factor) = scale_of(_mm512_reduce_max_epu32(magnitudes));
        if factor == 0.0 {
            quants.fill(0);
            return (scale, [0; 2]);
        }
        let factor = _mm512_set1_ps(factor);
        let low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(low, factor)));
        let high = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(high, factor)));
        // SAFETY: both halves lie within the array.
        unsafe {
            _mm_storeu_si128(quants.as_mut_ptr().cast(), low);
            _mm_storeu_si128(quants.as_mut_ptr().add(16).cast(), high);
        }
        let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
        let quads = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), both);
        (scale, half_sums(quads))
    }

    /// Sums of the lower and the upper four lanes.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn half_sums(quads: __m256i) -> [i32; 2] {
        let pairs = _mm256_add_epi32(quads, _mm256_shuffle_epi32::<0b1110>(quads));
        let sums = _mm256_add_epi32(pairs, _mm256_shuffle_epi32::<0b01>(pairs));
        [_mm256_extract_epi32::<0>(sums), _mm256_extract_epi32::<4>(sums)]
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn fill_avx2(panel: PanelMut<'_>, values: &[f32]) {
        panel.fill_with(values, |values, quants| block_avx2(values, quants));
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn block_avx2(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
        // SAFETY: the four loads lie within the array.
        let x: [__m256; 4] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(values.as_ptr().add(8 * i)) });
        let mask = _mm256_set1_epi32(MAGNITUDE as i32);
        let magnitude = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), mask));
        let most = _mm256_max_epu32(
            _mm256_max_epu32(magnitude[0], magnitude[1]),
            _mm256_max_epu32(magnitude[2], magnitude[3]),
        );
        let most = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
        let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b1110>(most));
        let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b01>(most));
        let (scale, factor) = scale_of(_mm_cvtsi128_si32(most) as u32);
        if factor == 0.0 {
            quants.fill(0);
            return (scale, [0; 2]);
        }
        let factor = _mm256_set1_ps(factor);
        let q = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, factor)));
        // Packing works within 128-bit lanes; the permutation puts the groups of four back in order.
        let words = [_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])];
        let bytes = _mm256_packs_epi16(words[0], words[1]);
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        // SAFETY: the store fills the array.
        unsafe { _mm256_storeu_si256(quants.as_mut_ptr().cast(), bytes) };
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        (scale, half_sums(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// Deterministic values of very different sizes.
    fn values(n: usize) -> Vec<f32> {
        let mut random = SplitMix64::new(1);
        (0..n).map(|i| random.next_symmetric() * 10f32.powi(i as i32 / 64 % 9 - 4)).collect()
    }

    type Bits = (Vec<i8>, [Vec<u32>; 2], Vec<i32>, Vec<[i32; 2]>);

    fn bits(quantized: &QuantizedActivations) -> Bits {
        let to_bits = |values: &[f32]| values.iter().map(|x| x.to_bits() & !(1 << 31)).collect();
        (
            quantized.quants.clone(),
            [to_bits(&quantized.scales), to_bits(&quantized.scaled_sums)],
            quantized.negative_sums.clone(),
            quantized.negative_half_sums.clone(),
        )
    }

    fn check(values: &[f32], n_cols: usize) {
        let reference =
            cpu::with_isa(Isa::Scalar, || QuantizedActivations::quantize(values, n_cols)).unwrap().unwrap();
        for isa in cpu::available() {
            let quantized =
                cpu::with_isa(isa, || QuantizedActivations::quantize(values, n_cols)).unwrap().unwrap();
            assert_eq!(bits(&quantized), bits(&reference), "{isa}");
        }
        let restored = reference.to_f32();
        let (blocks, _) = values.as_chunks::<BLOCK>();
        for (i, (block, restored)) in blocks.iter().zip(restored.as_chunks::<BLOCK>().0).enumerate() {
            if block.iter().any(|x| !x.is_finite()) {
                assert!(restored.iter().all(|x| x.is_nan()), "block {i}");
                continue;
            }
            let largest = block.iter().fold(0f32, |a, x| a.max(x.abs()));
            // Half a step, plus the rounding of the scale and of the product.
            let tolerance = largest / 127.0 * 0.5001 + f32::from_bits(SMALLEST);
            for (x, y) in block.iter().zip(restored) {
                assert!((x - y).abs() <= tolerance, "block {i}: {x} became {y}");
            }
        }
    }

    #[test]
    fn blocks_keep_half_a_step() {
        for (n_rows, n_cols) in
            [(1, 32), (1, 576), (3, 640), (8, 96), (9, 896), (17, 64), (70, 1024), (0, 32)]
        {
            check(&values(n_rows * n_cols), n_cols);
        }
    }

    #[test]
    fn extreme_values_are_kept_or_spoil_their_block() {
        for extreme in [
            0.0,
            -0.0,
            1e-45,
            f32::MIN_POSITIVE,
            f32::from_bits(SMALLEST),
            1e38,
            3e38,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ] {
            check(&[extreme; 64], 64);
            let mut row = values(96);
            row[40] = extreme;
            row[41] = -extreme;
            check(&row, 96);
        }
    }

    #[test]
    fn sums_are_those_of_the_integers() {
        let quantized = QuantizedActivations::quantize(&values(11 * 160), 160).unwrap();
        for panel_idx in 0..quantized.n_panels() {
            let panel = quantized.panel(panel_idx);
            assert_eq!(panel.n_rows, [8, 3][panel_idx]);
            for (i, block) in panel.quants.chunks_exact(BLOCK).enumerate() {
                let halves =
                    [&block[..16], &block[16..]].map(|half| half.iter().map(|&q| i32::from(q)).sum::<i32>());
                assert_eq!(panel.negative_half_sums[i], halves.map(|sum| -sum));
                assert_eq!(panel.negative_sums[i], -halves[0] - halves[1]);
                assert_eq!(panel.scaled_sums[i], panel.scales[i] * (halves[0] + halves[1]) as f32);
            }
        }
    }

    #[test]
    fn rows_must_be_whole_blocks() {
        for (n_values, n_cols) in [(33, 33), (32, 0), (65, 32), (16, 16)] {
            let error = QuantizedActivations::quantize(&vec![0.0; n_values], n_cols).unwrap_err();
            assert_eq!(error, Error::RowLength { block: BLOCK, n_cols, n_values });
        }
    }
}
