//! Inner products of a signed eight-bit query with rows of eight-bit codes.
//!
//! Rows are stored with 128 added, because the processors' dot-product instructions multiply unsigned by
//! signed bytes; the sum of the query's codes corrects for it. Rows have a multiple of [`GATHER`] codes.

use breakers_cpu::{self as cpu, Isa};

/// Rows are padded to a multiple of this many codes: a cache line.
pub const GATHER: usize = 64;
/// The number added to a code before it is stored.
pub(crate) const OFFSET: i32 = 128;
/// How many rows ahead are prefetched.
const AHEAD: usize = 4;

/// A query in eight bits.
#[derive(Debug, Clone, Default)]
pub struct CodeQuery {
    codes: Vec<i8>,
    /// Sum of the codes times [`OFFSET`].
    correction: i32,
}

impl CodeQuery {
    /// A query from its codes, padded to a multiple of [`GATHER`].
    pub fn new(mut codes: Vec<i8>) -> Self {
        codes.resize(codes.len().next_multiple_of(GATHER), 0);
        let correction = OFFSET * codes.iter().map(|&c| i32::from(c)).sum::<i32>();
        Self { codes, correction }
    }

    /// Replaces the codes, a multiple of [`GATHER`].
    #[inline(always)]
    pub(crate) fn fill(&mut self, codes: impl Iterator<Item = i8>) {
        self.codes.clear();
        self.codes.extend(codes);
        debug_assert!(self.codes.len().is_multiple_of(GATHER));
        self.correction = OFFSET * self.codes.iter().map(|&c| i32::from(c)).sum::<i32>();
    }

    /// The codes.
    pub(crate) fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// Their sum.
    pub(crate) fn sum(&self) -> i32 {
        self.correction / OFFSET
    }

    /// Number of codes, a multiple of [`GATHER`].
    pub fn stride(&self) -> usize {
        self.codes.len()
    }
}

/// The inner product with one row.
///
/// # Shapes
/// - `row`: `[query.stride()]`
///
/// # Panics
/// If the row has another length.
pub fn dot_codes(query: &CodeQuery, row: &[u8]) -> i32 {
    let mut out = [0];
    scan_dots(query, row, &mut out);
    out[0]
}

/// The inner products with consecutive rows.
///
/// # Shapes
/// - `rows`: `[n, query.stride()]`
/// - `out`: `[n]`
///
/// # Panics
/// If the shapes do not fit each other.
pub fn scan_dots(query: &CodeQuery, rows: &[u8], out: &mut [i32]) {
    assert_eq!(rows.len(), query.stride() * out.len());
    run(Side::Query(query), rows, Rows::All(out.len()), out);
}

/// The inner products with the rows of these numbers.
///
/// # Shapes
/// - `rows`: `[n, query.stride()]`
/// - `ids`, `out`: `[m]`
///
/// # Panics
/// If a row does not exist, or the lengths differ.
pub fn gather_dots(query: &CodeQuery, rows: &[u8], ids: &[u32], out: &mut [i32]) {
    assert_eq!(ids.len(), out.len());
    let n_rows = rows.len() / query.stride().max(1);
    let highest = ids.iter().fold(0, |most, &id| most.max(id as usize));
    assert!(ids.is_empty() || highest < n_rows, "row {highest} of {n_rows}");
    run(Side::Query(query), rows, Rows::Some(ids), out);
}

/// The inner products of a stored row with the rows of these numbers.
///
/// # Shapes
/// - `row`: `[stride]`, a multiple of [`GATHER`]
/// - `rows`: `[n, stride]`
/// - `ids`, `out`: `[m]`
///
/// # Panics
/// If a row does not exist, or the lengths differ or are not a multiple.
pub fn gather_row_dots(row: &[u8], rows: &[u8], ids: &[u32], out: &mut [i32]) {
    assert_eq!(ids.len(), out.len());
    assert!(row.len().is_multiple_of(GATHER));
    let n_rows = rows.len() / row.len().max(1);
    let highest = ids.iter().fold(0, |most, &id| most.max(id as usize));
    assert!(ids.is_empty() || highest < n_rows, "row {highest} of {n_rows}");
    run(Side::Row(row), rows, Rows::Some(ids), out);
}

/// One side of the products.
#[derive(Clone, Copy)]
enum Side<'a> {
    Query(&'a CodeQuery),
    Row(&'a [u8]),
}

impl Side<'_> {
    #[inline(always)]
    fn stride(self) -> usize {
        match self {
            Self::Query(query) => query.stride(),
            Self::Row(row) => row.len(),
        }
    }

    fn code(self, i: usize) -> i32 {
        match self {
            Self::Query(query) => query.codes[i].into(),
            Self::Row(row) => i32::from(row[i]) - OFFSET,
        }
    }

    fn correction(self) -> i32 {
        match self {
            Self::Query(query) => query.correction,
            Self::Row(row) => OFFSET * row.iter().map(|&byte| i32::from(byte) - OFFSET).sum::<i32>(),
        }
    }

    /// The signed codes, once they are xored with the second.
    #[inline(always)]
    fn start(self) -> (*const u8, u8) {
        match self {
            Self::Query(query) => (query.codes.as_ptr().cast(), 0),
            Self::Row(row) => (row.as_ptr(), 0x80),
        }
    }
}

#[derive(Clone, Copy)]
enum Rows<'a> {
    All(usize),
    Some(&'a [u32]),
}

impl Rows<'_> {
    #[inline(always)]
    fn len(self) -> usize {
        match self {
            Self::All(n) => n,
            Self::Some(ids) => ids.len(),
        }
    }

    #[inline(always)]
    fn at(self, i: usize) -> usize {
        match self {
            Self::All(_) => i,
            Self::Some(ids) => ids[i] as usize,
        }
    }
}

fn run(query: Side<'_>, rows: &[u8], which: Rows<'_>, out: &mut [i32]) {
    if query.stride() == 0 {
        return out.fill(0);
    }
    match cpu::isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions, and the callers checked the shapes.
        Isa::Avx512 => unsafe {
            match query.stride() / GATHER {
                1 => x86::vnni::<1>(query, rows, which, out),
                2 => x86::vnni::<2>(query, rows, which, out),
                3 => x86::vnni::<3>(query, rows, which, out),
                4 => x86::vnni::<4>(query, rows, which, out),
                5 => x86::vnni::<5>(query, rows, which, out),
                6 => x86::vnni::<6>(query, rows, which, out),
                8 => x86::vnni::<8>(query, rows, which, out),
                12 => x86::vnni::<12>(query, rows, which, out),
                16 => x86::vnni::<16>(query, rows, which, out),
                _ => x86::vnni::<0>(query, rows, which, out),
            }
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::avx2(query, rows, which, out) },
        _ => {
            for (i, out) in out.iter_mut().enumerate() {
                let row = &rows[which.at(i) * query.stride()..][..query.stride()];
                let sum: i32 = row.iter().enumerate().map(|(i, &r)| query.code(i) * i32::from(r)).sum();
                *out = sum - query.correction();
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{AHEAD, GATHER, OFFSET, Rows, Side};
    use crate::distance::prefetch;
    use std::arch::x86_64::*;

    /// With the query in registers where it has `N` cache lines; an `N` of 0 stands for any number.
    ///
    /// # Safety
    /// - The processor has the instructions.
    /// - `rows` holds every row that `which` names, of `query.stride()` bytes, a multiple of [`GATHER`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2")]
    pub(super) unsafe fn vnni<const N: usize>(
        query: Side<'_>,
        rows: &[u8],
        which: Rows<'_>,
        out: &mut [i32],
    ) {
        let lines = if N > 0 { N } else { query.stride() / GATHER };
        let stride = lines * GATHER;
        let (start, (codes, flip)) = (rows.as_ptr(), query.start());
        debug_assert!(stride == query.stride());
        let flip = _mm512_set1_epi8(flip as i8);
        let correction = match query {
            Side::Query(query) => query.correction,
            Side::Row(_) => {
                let mut sum = _mm512_setzero_si512();
                for line in 0..lines {
                    // SAFETY: the line lies within the row.
                    let q = unsafe { _mm512_loadu_si512(codes.add(line * GATHER).cast()) };
                    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_xor_si512(q, flip));
                }
                OFFSET * _mm512_reduce_add_epi32(sum)
            }
        };
        let gathered = matches!(which, Rows::Some(_));
        let row = |i: usize| {
            debug_assert!((which.at(i) + 1) * stride <= rows.len());
            // SAFETY: the row exists.
            unsafe { start.add(which.at(i) * stride) }
        };
        if gathered {
            for i in 0..AHEAD.min(which.len()) {
                prefetch(row(i), stride);
            }
        }
        let mut i = 0;
        while i + 4 <= which.len() {
            if gathered {
                for next in i + AHEAD..(i + AHEAD + 4).min(which.len()) {
                    prefetch(row(next), stride);
                }
            }
            let four = [row(i), row(i + 1), row(i + 2), row(i + 3)];
            let mut sums = [_mm512_setzero_si512(); 4];
            for line in 0..lines {
                // SAFETY: the line lies within the query and within each row.
                unsafe {
                    let q = _mm512_xor_si512(_mm512_loadu_si512(codes.add(line * GATHER).cast()), flip);
                    for (sum, row) in sums.iter_mut().zip(four) {
                        let codes = _mm512_loadu_si512(row.add(line * GATHER).cast());
                        *sum = _mm512_dpbusd_epi32(*sum, codes, q);
                    }
                }
            }
            let halves = sums.map(|sum| {
                _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64::<1>(sum))
            });
            let pairs = _mm256_hadd_epi32(
                _mm256_hadd_epi32(halves[0], halves[1]),
                _mm256_hadd_epi32(halves[2], halves[3]),
            );
            let four = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
            let four = _mm_sub_epi32(four, _mm_set1_epi32(correction));
            // SAFETY: `out` has as many numbers as there are rows.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().add(i).cast(), four) };
            i += 4;
        }
        for i in i..which.len() {
            let row = row(i);
            let mut sum = _mm512_setzero_si512();
            for line in 0..lines {
                // SAFETY: the line lies within the query and within the row.
                unsafe {
                    let q = _mm512_xor_si512(_mm512_loadu_si512(codes.add(line * GATHER).cast()), flip);
                    sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(row.add(line * GATHER).cast()), q);
                }
            }
            out[i] = _mm512_reduce_add_epi32(sum) - correction;
        }
    }

    /// # Safety
    /// As [`vnni`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(query: Side<'_>, rows: &[u8], which: Rows<'_>, out: &mut [i32]) {
        let (stride, correction) = (query.stride(), query.correction());
        let (codes, flip) = query.start();
        let flip = _mm_set1_epi8(flip as i8);
        for (i, out) in out.iter_mut().enumerate() {
            debug_assert!((which.at(i) + 1) * stride <= rows.len());
            if i + AHEAD < which.len() && matches!(which, Rows::Some(_)) {
                prefetch(rows.as_ptr().wrapping_add(which.at(i + AHEAD) * stride), stride);
            }
            let mut sums = [_mm256_setzero_si256(); 2];
            for at in (0..stride).step_by(GATHER / 2) {
                // SAFETY: 32 bytes from `at` on lie within the query and within the row.
                unsafe {
                    let row = rows.as_ptr().add(which.at(i) * stride + at);
                    let codes = codes.add(at);
                    for (half, sum) in sums.iter_mut().enumerate() {
                        let r = _mm256_cvtepu8_epi16(_mm_loadu_si128(row.add(16 * half).cast()));
                        let q = _mm_xor_si128(_mm_loadu_si128(codes.add(16 * half).cast()), flip);
                        let q = _mm256_cvtepi8_epi16(q);
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(r, q));
                    }
                }
            }
            let sum = _mm256_add_epi32(sums[0], sums[1]);
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b1110>(sum));
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01>(sum));
            *out = _mm_cvtsi128_si32(sum) - correction;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt as _, SeedableRng as _};

    #[test]
    fn every_path_gives_the_exact_products() {
        let mut random = rand::rngs::StdRng::seed_from_u64(3);
        for n in (1..=17).map(|lines| lines * GATHER) {
            let mut codes: Vec<i8> = (0..n).map(|_| random.random()).collect();
            let mut rows: Vec<u8> = (0..n * 11).map(|_| random.random()).collect();
            // The extremes, where sums of products saturate if they are added in 16 bits.
            codes[..8].fill(i8::MIN);
            rows[..8].fill(u8::MAX);
            let query = CodeQuery::new(codes.clone());
            let expected: Vec<i32> = rows
                .chunks_exact(n)
                .map(|row| codes.iter().zip(row).map(|(&q, &r)| i32::from(q) * (i32::from(r) - 128)).sum())
                .collect();
            let ids = [3, 3, 0, 10, 7, 1, 2];
            let row: Vec<u8> = codes.iter().map(|&code| code as u8 ^ 0x80).collect();
            for isa in cpu::available() {
                let (mut all, mut some, mut stored) = ([0; 11], [0; 7], [0; 7]);
                cpu::with_isa(isa, || {
                    scan_dots(&query, &rows, &mut all);
                    gather_dots(&query, &rows, &ids, &mut some);
                    gather_row_dots(&row, &rows, &ids, &mut stored);
                })
                .unwrap();
                assert_eq!(all, *expected, "{isa}, {n} codes");
                assert_eq!(some, ids.map(|id| expected[id as usize]), "{isa}, {n} codes");
                assert_eq!(stored, some, "{isa}, {n} codes");
            }
        }
    }

    #[test]
    #[should_panic(expected = "row 2 of 2")]
    fn rows_beyond_the_end_are_refused() {
        gather_dots(&CodeQuery::new(vec![1; 64]), &[0; 128], &[0, 2], &mut [0; 2]);
    }
}
