//! Four bits a coordinate in blocks of sixteen vectors: the first look of an exact scan.
//!
//! The codes are computed from those of [`ScalarCodes`], so they need no place in a file. With ô the vector
//! that the eight-bit codes stand for, y the odd numbers −15 to 15 nearest to it at some scale, and g the
//! factor that brings y nearest to ô, a coordinate is the four bits (y + 15) / 2, and
//!
//! ‖ô − g·y‖² = ‖ô‖² − ⟨ô, y⟩²/‖y‖²
//!
//! is a sum of integers. Together with the known bound on the error of eight bits it bounds the error of four
//! bits, for every vector and query, by the same Cauchy–Schwarz inequality that [`ScalarCodes`] uses. A
//! vector whose lower end exceeds the k-th upper end cannot be among the nearest; in practice one percent is
//! left for the eight bits.
//!
//! A line of 64 bytes holds eight coordinates of sixteen vectors, and each lane of a register sums one
//! vector: a scan is a stream of whole lines, without sums across lanes.
//!
//! # Memory
//! 4 bits a coordinate, rounded up to 64 coordinates, and 16 bytes a vector, in whole blocks.
//!
//! # Source
//! The layout: André, Kermarrec and Le Scouarnec, "Accelerated nearest neighbor search with Quick ADC", arXiv
//! 1704.07355, section 3. Deviation: products of bytes in place of tables.

use super::scalar::{Rounding, ScalarCodes, ScalarQuery, round_up};
use breakers_cpu::{self as cpu, Isa, per_isa};
use breakers_files::Buffer;

/// Vectors of a block.
const BLOCK: usize = 16;
/// Coordinates of a line.
const LINE: usize = 8;
/// Vectors that are compared at a time.
pub(crate) const GROUP: usize = 4 * BLOCK;
/// Half the distance between neighboring levels that is best for numbers of a Gaussian with variance 1 (Max
/// 1960).
const HALF_STEP: f64 = 0.1676;

/// What is stored with a block, for each vector: the scale of its codes, the offset of its distance, and
/// upper bounds on the error of the codes and on its length.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Tails {
    scale: [f32; BLOCK],
    offset: [f32; BLOCK],
    error: [f32; BLOCK],
    norm: [f32; BLOCK],
}

/// Vectors in four bits a coordinate.
#[derive(Debug, Clone)]
pub(crate) struct CoarseCodes {
    /// Coordinates, a multiple of 64.
    width: usize,
    codes: Buffer<u8>,
    tails: Buffer<Tails>,
}

/// What the bounds need to know of a query.
#[derive(Clone, Copy)]
struct Terms {
    step: f32,
    /// Fifteen times the sum of the query's codes.
    shift: i32,
    norm: f32,
    error: f32,
    /// The factor of the offsets.
    along: f32,
    rounding: Rounding,
}

impl CoarseCodes {
    pub(crate) fn new(width: usize) -> Self {
        Self { width, codes: Buffer::new(), tails: Buffer::new() }
    }

    /// Of all vectors.
    pub(crate) fn of(codes: &ScalarCodes) -> Self {
        let mut coarse = Self::new(codes.stride());
        (0..codes.len()).for_each(|slot| coarse.set(codes, slot));
        coarse
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.codes) + size_of_val(&*self.tails)
    }

    fn block_bytes(&self) -> usize {
        self.width * BLOCK / 2
    }

    /// Follows a vector that was added or changed.
    pub(crate) fn set(&mut self, codes: &ScalarCodes, slot: usize) {
        let missing = (slot / BLOCK + 1).saturating_sub(self.tails.len());
        if missing > 0 {
            self.codes.extend_zeroed(missing * self.block_bytes());
            self.tails.extend_zeroed(missing);
        }
        let (row, tail) = (codes.row(slot), &codes.tails()[slot]);
        let bytes = self.block_bytes();
        let block = &mut self.codes.make_mut()[slot / BLOCK * bytes..][..bytes];
        let (squares, products, lengths) = per_isa!(cpu::isa(), || narrow(row, block, slot % BLOCK));
        let step = f64::from(tail.step);
        let lost = (squares - products * products / lengths).max(0.0).sqrt() * step;
        let (tails, at) = (&mut self.tails.make_mut()[slot / BLOCK], slot % BLOCK);
        tails.scale[at] = (step * products / lengths) as f32;
        tails.offset[at] = tail.offset;
        // The scale was rounded.
        let norm = f64::from(tail.norm);
        tails.error[at] = round_up((lost + f64::from(tail.error)) * (1.0 + 1e-6) + 1e-7 * norm);
        tails.norm[at] = tail.norm;
    }

    /// The vectors of a group whose distance, less the part that is the same for all, may be at most `bound`:
    /// one bit for each. Bits beyond the last vector may have any value.
    pub(crate) fn open(&self, query: &ScalarQuery, group: usize, bound: f32) -> u64 {
        let blocks = 4 * group..(4 * group + 4).min(self.tails.len());
        let bytes = self.block_bytes();
        let rows = &self.codes[blocks.start * bytes..blocks.end * bytes];
        let tails = &self.tails[blocks];
        let terms = Terms {
            step: query.step,
            shift: 15 * query.codes.sum(),
            norm: query.norm,
            error: query.first_error,
            along: query.along,
            rounding: query.rounding,
        };
        let codes = query.codes.codes();
        assert_eq!(codes.len(), self.width);
        match cpu::isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has the instructions, and there is a block of `8 · width` bytes for each
            // tail.
            Isa::Avx512 => unsafe { x86::avx512(codes, rows, tails, terms, bound) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                // SAFETY: the processor has the instructions; a block has `8 · width` bytes.
                let dots = |block: &[u8]| unsafe { x86::dots_avx2(codes, block) };
                open_blocks(rows, bytes, tails, terms, bound, dots)
            }
            _ => open_blocks(rows, bytes, tails, terms, bound, |block| dots(codes, block)),
        }
    }
}

/// Puts a row of eight bits into a lane of a block as four; ‖ô‖² in steps, ⟨ô, y⟩ and ‖y‖².
#[inline(always)]
fn narrow(row: &[u8], block: &mut [u8], lane: usize) -> (f64, f64, f64) {
    let signed = |byte: u8| i32::from(byte) - 128;
    // Below 2³¹: there are at most 2¹⁵ coordinates.
    let squares: i32 = row.iter().map(|&byte| signed(byte) * signed(byte)).sum();
    let half_step = HALF_STEP * (f64::from(squares) / row.len() as f64).sqrt();
    let factor = if half_step > 0.0 { (0.5 / half_step) as f32 } else { 0.0 };
    let nibble =
        |byte: u8| ((signed(byte) as f32).mul_add(factor, 7.5).round_ties_even()).clamp(0.0, 15.0) as u8;
    let (mut products, mut lengths) = ([0; LINE], [0; LINE]);
    for (eight, line) in row.as_chunks::<LINE>().0.iter().zip(block.as_chunks_mut::<64>().0) {
        let mut nibbles = [0; LINE];
        for i in 0..LINE {
            nibbles[i] = nibble(eight[i]);
            let y = 2 * i32::from(nibbles[i]) - 15;
            products[i] += signed(eight[i]) * y;
            lengths[i] += y * y;
        }
        for (i, byte) in line[lane * 4..][..4].iter_mut().enumerate() {
            *byte = nibbles[i] | nibbles[i + 4] << 4;
        }
    }
    let sum = |lanes: [i32; LINE]| f64::from(lanes.iter().sum::<i32>());
    (f64::from(squares), sum(products), sum(lengths))
}

fn open_blocks(
    rows: &[u8],
    bytes: usize,
    tails: &[Tails],
    terms: Terms,
    bound: f32,
    dots: impl Fn(&[u8]) -> [i32; BLOCK],
) -> u64 {
    let mut open = 0;
    for (i, (block, tails)) in rows.chunks_exact(bytes).zip(tails).enumerate() {
        let dots = dots(block);
        for lane in 0..BLOCK {
            let lower = terms.lower(dots[lane], tails, lane);
            open |= u64::from(lower <= bound) << (i * BLOCK + lane);
        }
    }
    open
}

impl Terms {
    /// The lower end of a distance.
    fn lower(&self, dot: i32, tails: &Tails, lane: usize) -> f32 {
        let product = self.step * tails.scale[lane] * (2 * dot - self.shift) as f32;
        let error = self.norm * tails.error[lane] + self.error * tails.norm[lane];
        let Rounding { square, slope, flat } = self.rounding;
        let sum = self.norm + tails.norm[lane];
        let rounding = square * (sum * sum) + (slope * tails.norm[lane] + flat);
        (self.along * tails.offset[lane] - product) - (error * (1.0 + 1e-5) + f32::EPSILON * rounding)
    }
}

/// Σ code · bits of each vector of a block.
fn dots(codes: &[i8], block: &[u8]) -> [i32; BLOCK] {
    let mut sums = [0; BLOCK];
    for (codes, line) in codes.as_chunks::<LINE>().0.iter().zip(block.as_chunks::<64>().0) {
        for (sum, bytes) in sums.iter_mut().zip(line.as_chunks::<4>().0) {
            for (i, byte) in bytes.iter().enumerate() {
                *sum += i32::from(codes[i]) * i32::from(byte & 15);
                *sum += i32::from(codes[i + 4]) * i32::from(byte >> 4);
            }
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, LINE, Rounding, Tails, Terms};
    use std::arch::x86_64::*;

    /// Sums of two blocks at a time, so that products need not wait for each other.
    ///
    /// # Safety
    /// - The processor has the instructions.
    /// - `rows` has `8 · codes.len()` bytes for each of `tails`, and `codes` a multiple of 64 numbers.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    pub(super) unsafe fn avx512(codes: &[i8], rows: &[u8], tails: &[Tails], terms: Terms, bound: f32) -> u64 {
        let bytes = codes.len() * BLOCK / 2;
        debug_assert!(rows.len() == bytes * tails.len() && codes.len().is_multiple_of(2 * LINE));
        let mut open = 0;
        for (i, pair) in tails.chunks(2).enumerate() {
            let first = rows.as_ptr().wrapping_add(2 * i * bytes);
            // A block without a second one is summed twice.
            let second = if pair.len() == 2 { first.wrapping_add(bytes) } else { first };
            // SAFETY: both blocks lie within the rows.
            let dots = unsafe { two_blocks(codes, first, second) };
            for (at, (dots, tails)) in dots.into_iter().zip(pair).enumerate() {
                // SAFETY: sixteen numbers each.
                let load = |numbers: &[f32; BLOCK]| unsafe { _mm512_loadu_ps(numbers.as_ptr()) };
                let (norm, error) = (load(&tails.norm), load(&tails.error));
                let doubled = _mm512_sub_epi32(_mm512_slli_epi32::<1>(dots), _mm512_set1_epi32(terms.shift));
                let scale = _mm512_mul_ps(_mm512_set1_ps(terms.step), load(&tails.scale));
                let product = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(doubled));
                let query_norm = _mm512_set1_ps(terms.norm);
                let lost = _mm512_add_ps(
                    _mm512_mul_ps(query_norm, error),
                    _mm512_mul_ps(_mm512_set1_ps(terms.error), norm),
                );
                let Rounding { square, slope, flat } = terms.rounding;
                let sum = _mm512_add_ps(query_norm, norm);
                let rounding = _mm512_add_ps(
                    _mm512_mul_ps(_mm512_set1_ps(square), _mm512_mul_ps(sum, sum)),
                    _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(slope), norm), _mm512_set1_ps(flat)),
                );
                let slack = _mm512_add_ps(
                    _mm512_mul_ps(lost, _mm512_set1_ps(1.0 + 1e-5)),
                    _mm512_mul_ps(_mm512_set1_ps(f32::EPSILON), rounding),
                );
                let offset = _mm512_mul_ps(_mm512_set1_ps(terms.along), load(&tails.offset));
                let lower = _mm512_sub_ps(_mm512_sub_ps(offset, product), slack);
                let below = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(lower, _mm512_set1_ps(bound));
                open |= u64::from(below) << ((2 * i + at) * BLOCK);
            }
        }
        open
    }

    /// # Safety
    /// - The processor has the instructions.
    /// - `first` and `second` have `8 · codes.len()` bytes each.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    unsafe fn two_blocks(codes: &[i8], first: *const u8, second: *const u8) -> [__m512i; 2] {
        let (low, high) = (_mm512_set1_epi8(0x0f), _mm512_set1_epi8(0xf0_u8 as i8));
        // Of the first and of the second block: the low bits, and the high bits, which count sixteen times.
        let mut sums = [_mm512_setzero_si512(); 4];
        let query = codes.as_ptr().cast::<i32>();
        for line in 0..codes.len() / LINE {
            // SAFETY: the line lies within the blocks, its eight codes within the query.
            unsafe {
                let (a, b) = (query.add(2 * line), query.add(2 * line + 1));
                let (a, b) = (_mm512_set1_epi32(a.read_unaligned()), _mm512_set1_epi32(b.read_unaligned()));
                for (i, block) in [first, second].into_iter().enumerate() {
                    let bits = _mm512_loadu_si512(block.add(line * 64).cast());
                    sums[2 * i] = _mm512_dpbusd_epi32(sums[2 * i], _mm512_and_si512(bits, low), a);
                    sums[2 * i + 1] = _mm512_dpbusd_epi32(sums[2 * i + 1], _mm512_and_si512(bits, high), b);
                }
            }
        }
        [0, 2].map(|i| _mm512_add_epi32(sums[i], _mm512_srai_epi32::<4>(sums[i + 1])))
    }

    /// # Safety
    /// - The processor has the instructions.
    /// - `block` has `8 · codes.len()` bytes, and `codes` a multiple of 64 numbers.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn dots_avx2(codes: &[i8], block: &[u8]) -> [i32; BLOCK] {
        debug_assert!(block.len() == codes.len() * BLOCK / 2 && codes.len().is_multiple_of(LINE));
        let (low, ones) = (_mm256_set1_epi8(0x0f), _mm256_set1_epi16(1));
        let mut sums = [_mm256_setzero_si256(); 2];
        let query = codes.as_ptr().cast::<i32>();
        for line in 0..codes.len() / LINE {
            // SAFETY: the line lies within the block, its eight codes within the query.
            unsafe {
                let a = _mm256_set1_epi32(query.add(2 * line).read_unaligned());
                let b = _mm256_set1_epi32(query.add(2 * line + 1).read_unaligned());
                for (half, sum) in sums.iter_mut().enumerate() {
                    let bits = _mm256_loadu_si256(block.as_ptr().add(line * 64 + half * 32).cast());
                    // Sums of two products of 15 and 128 fit into 16 bits, and so do sums of four.
                    let first = _mm256_maddubs_epi16(_mm256_and_si256(bits, low), a);
                    let bits = _mm256_and_si256(_mm256_srli_epi16::<4>(bits), low);
                    let both = _mm256_add_epi16(first, _mm256_maddubs_epi16(bits, b));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(both, ones));
                }
            }
        }
        let mut out = [0; BLOCK];
        // SAFETY: sixteen numbers.
        unsafe {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), sums[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), sums[1]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metric;
    use rand::{RngExt as _, SeedableRng as _};

    /// Lower ends hold for vectors of every kind, and every path lets through the same vectors as the
    /// definition in 64 bits, except at the bound itself.
    fn check(metric: Metric, dimension: usize, shift: f32, scale: impl Fn(usize) -> f32) {
        let mut random = rand::rngs::StdRng::seed_from_u64(dimension as u64);
        let mut draw = || {
            let mut v: Vec<f32> =
                (0..dimension).map(|i| scale(i) * (shift + random.random_range(-1.0f32..1.0))).collect();
            metric.prepare("v", &mut v).unwrap();
            v
        };
        let n: usize = 150;
        let rows: Vec<Vec<f32>> = (0..n).map(|_| draw()).collect();
        let center = if shift == 0.0 { Vec::new() } else { rows[0].clone() };
        let mut codes = ScalarCodes::new(metric, dimension).unwrap().around(center, 0);
        rows.iter().for_each(|row| codes.push(row));
        let coarse = CoarseCodes::of(&codes);
        assert_eq!(coarse.bytes(), (coarse.width / 2 + 16) * n.next_multiple_of(BLOCK));
        let vector = draw();
        let mut query = ScalarQuery::default();
        codes.query(&vector, true, &mut query);
        let distances: Vec<f64> = rows
            .iter()
            .map(|row| {
                let pairs = row.iter().zip(&vector).map(|(a, b)| (f64::from(*a), f64::from(*b)));
                let full: f64 = match metric {
                    Metric::Dot => pairs.map(|(a, b)| -a * b).sum(),
                    _ => pairs.map(|(a, b)| (a - b) * (a - b) / 2.0).sum(),
                };
                full - query.base
            })
            .collect();
        let mut sorted = distances.clone();
        sorted.sort_by(f64::total_cmp);
        for (i, bound) in [sorted[0], sorted[9], sorted[n / 2]].map(round_up).into_iter().enumerate() {
            let mut n_open = 0;
            for group in 0..n.div_ceil(GROUP) {
                let open: Vec<u64> = cpu::available()
                    .into_iter()
                    .map(|isa| cpu::with_isa(isa, || coarse.open(&query, group, bound)).unwrap())
                    .collect();
                let exists = if n - group * GROUP < GROUP { (1u64 << (n % GROUP)) - 1 } else { u64::MAX };
                assert!(
                    open.iter().all(|o| o & exists == open[0] & exists),
                    "{metric}, {dimension}: {open:x?}"
                );
                for i in (0..GROUP).take_while(|i| group * GROUP + i < n) {
                    let closed = open[0] >> i & 1 == 0;
                    assert!(
                        !closed || distances[group * GROUP + i] > f64::from(bound),
                        "{metric}, {dimension}"
                    );
                }
                n_open += (open[0] & exists).count_ones();
            }
            // It excludes some vectors even where none stands out. In few dimensions all are near.
            assert!(i > 0 || dimension < 100 || n_open < n as u32, "{metric}, {dimension}: {n_open}");
        }
    }

    #[test]
    fn lower_ends_hold_and_all_paths_agree() {
        for metric in Metric::ALL {
            for dimension in [1, 3, 64, 100, 384, 769] {
                for shift in [0.0, 1.0, -30.0] {
                    check(metric, dimension, shift, |_| 1.0);
                    check(metric, dimension, shift, |i| if i == 0 { 100.0 } else { 1.0 });
                    check(metric, dimension, shift, |_| 1e-6);
                    check(metric, dimension, shift, |_| 1e6);
                }
            }
        }
    }
}
