use breakers_cpu::{self as cpu, per_isa};

/// Bits in which two rows differ.
///
/// # Shapes
/// - `a`, `b`: `[n / 64]` words
///
/// # Panics
/// If the lengths differ.
pub fn hamming(a: &[u64], b: &[u64]) -> u32 {
    assert_eq!(a.len(), b.len());
    per_isa!(cpu::isa(), || count(a, b))
}

/// Bits in which each row differs from the query.
///
/// # Shapes
/// - `query`: `[words]`
/// - `rows`: `[n, words]`
/// - `out`: `[n]`
///
/// # Panics
/// If the shapes do not fit each other.
///
/// # Example
/// ```
/// use breakers_retrieval::distance::{hamming, hamming_many};
///
/// let mut out = [0; 2];
/// hamming_many(&[0b1011], &[0b1011, 0b0100], &mut out);
/// assert_eq!(out, [0, 4]);
/// assert_eq!(hamming(&[0b1011], &[0b1000]), 2);
/// ```
pub fn hamming_many(query: &[u64], rows: &[u64], out: &mut [u32]) {
    assert_eq!(rows.len(), query.len() * out.len());
    if query.is_empty() {
        return out.fill(0);
    }
    #[cfg(target_arch = "x86_64")]
    if cpu::isa() == cpu::Isa::Avx512 && std::arch::is_x86_feature_detected!("avx512vpopcntdq") {
        // SAFETY: the processor has the instructions, and the shapes were checked.
        return unsafe { popcount(query, rows, out) };
    }
    per_isa!(cpu::isa(), || {
        for (row, out) in rows.chunks_exact(query.len()).zip(out.iter_mut()) {
            *out = count(query, row);
        }
    });
}

#[inline(always)]
fn count(a: &[u64], b: &[u64]) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

/// # Safety
/// - The processor has the instructions.
/// - `rows` has `query.len()` words for each number of `out`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
unsafe fn popcount(query: &[u64], rows: &[u64], out: &mut [u32]) {
    use std::arch::x86_64::*;
    let words = query.len();
    let (full, rest) = (words / 8, words % 8);
    let mask = (1u8 << rest).wrapping_sub(1);
    for (i, out) in out.iter_mut().enumerate() {
        debug_assert!((i + 1) * words <= rows.len());
        let mut sum = _mm512_setzero_si512();
        // SAFETY: the loads lie within the query and within row `i`; the masked ones touch `rest` words.
        unsafe {
            let (query, row) = (query.as_ptr().cast::<i64>(), rows.as_ptr().add(i * words).cast::<i64>());
            for at in 0..full {
                let a = _mm512_loadu_si512(query.add(8 * at).cast());
                let b = _mm512_loadu_si512(row.add(8 * at).cast());
                sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(a, b)));
            }
            if rest > 0 {
                let a = _mm512_maskz_loadu_epi64(mask, query.add(8 * full));
                let b = _mm512_maskz_loadu_epi64(mask, row.add(8 * full));
                sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(a, b)));
            }
        }
        *out = _mm512_reduce_add_epi64(sum) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt as _, SeedableRng as _};

    #[test]
    fn every_path_counts_the_same_bits() {
        let mut random = rand::rngs::StdRng::seed_from_u64(2);
        for words in 0..40 {
            let query: Vec<u64> = (0..words).map(|_| random.random()).collect();
            let rows: Vec<u64> = (0..words * 7).map(|_| random.random()).collect();
            let slow = |row: &[u64]| -> u32 {
                (0..words * 64).filter(|&i| (query[i / 64] ^ row[i / 64]) >> (i % 64) & 1 == 1).count() as u32
            };
            let expected: Vec<u32> = (0..7).map(|i| slow(&rows[i * words..][..words])).collect();
            for isa in cpu::available() {
                let mut found = vec![u32::MAX; 7];
                cpu::with_isa(isa, || hamming_many(&query, &rows, &mut found)).unwrap();
                assert_eq!(found, expected, "{isa}, {words} words");
                let single = cpu::with_isa(isa, || hamming(&query, &rows[..words])).unwrap();
                assert_eq!(single, expected[0], "{isa}, {words} words");
            }
        }
    }
}
