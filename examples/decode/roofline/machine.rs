//! The peaks of this machine: bytes read per second, multiplications per second.

use std::hint::black_box;
use std::time::Instant;

use breakers_cpu::{self as cpu, per_isa, pool};

/// The memory that is read: larger than any cache.
const BUFFER_BYTES: usize = 512 << 20;
/// The best of this many measurements counts: a peak is what undisturbed hardware reaches.
const REPEAT: usize = 7;

/// Peaks of the machine with the threads and the instruction set in force.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// Bytes read from memory a second.
    pub(crate) read_bandwidth: f64,
    /// Integer operations a second: a multiplication of bytes and an addition count two.
    pub(crate) int8_ops: f64,
    /// Operations on `f32` a second, likewise.
    pub(crate) f32_ops: f64,
}

impl Machine {
    pub(crate) fn measure() -> Self {
        let buffer = vec![1u64; BUFFER_BYTES / 8];
        let read_bandwidth = best_rate(BUFFER_BYTES as f64, || {
            pool::parallel_chunks(buffer.len(), 1 << 15, |range| {
                black_box(sum(&buffer[range]));
            });
        });
        drop(buffer);
        Self { read_bandwidth, int8_ops: peak(int8_products), f32_ops: peak(f32_products) }
    }
}

/// The rate of a kernel, which returns the number of its operations, on all threads at once.
fn peak(kernel: fn(usize) -> f64) -> f64 {
    const ROUNDS: usize = 2_000_000;
    let threads = pool::threads();
    best_rate(kernel(1) * (ROUNDS * threads) as f64, || {
        pool::parallel_for(threads, |_| {
            black_box(kernel(ROUNDS));
        });
    })
}

/// Units a second.
fn best_rate(units: f64, mut run: impl FnMut()) -> f64 {
    run();
    let seconds = (0..REPEAT).map(|_| {
        let started = Instant::now();
        run();
        started.elapsed().as_secs_f64()
    });
    units / seconds.fold(f64::INFINITY, f64::min)
}

/// The sum of a part of the buffer, by the widest loads.
fn sum(values: &[u64]) -> u64 {
    match cpu::isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions.
        cpu::Isa::Avx512 => unsafe { x86::sum_avx512(values) },
        isa => per_isa!(isa, || sum_plain(values)),
    }
}

#[inline(always)]
fn sum_plain(values: &[u64]) -> u64 {
    let (chunks, rest) = values.as_chunks::<64>();
    let mut lanes = [0u64; 64];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*value);
        }
    }
    lanes.iter().chain(rest).fold(0, |a, b| a.wrapping_add(*b))
}

/// Independent sums that hide the latency of an instruction.
const CHAINS: usize = 12;

/// Runs `step` on each of the chains, `rounds` times; evaluates to the number of operations, two for each
/// lane. (A macro, because intrinsics must be compiled inside the function that enables them.)
macro_rules! chains {
    ($rounds:expr, $lanes:literal lanes, from $start:expr, |$sum:ident| $step:expr) => {{
        // Without this, the compiler would see that all chains are the same.
        let mut sums = black_box([$start; CHAINS]);
        for _ in 0..$rounds {
            for $sum in &mut sums {
                *$sum = $step;
            }
        }
        black_box(sums);
        (2 * $lanes * CHAINS * $rounds) as f64
    }};
}

/// Fused multiply-adds of `f32`; returns the number of operations.
fn f32_products(rounds: usize) -> f64 {
    match cpu::isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions.
        cpu::Isa::Avx512 => unsafe { x86::fused_avx512(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions.
        cpu::Isa::Avx2 => unsafe { x86::fused_avx2(rounds) },
        _ => {
            let (a, b) = (black_box(0.5f32), black_box(1.0f32));
            chains!(rounds, 4 lanes, from [0.0f32; 4], |sum| sum.map(|lane| a * lane + b))
        }
    }
}

/// Products of bytes, summed in 32 bits, by the instruction that the kernels use; returns the
/// number of operations.
fn int8_products(rounds: usize) -> f64 {
    match cpu::isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions.
        cpu::Isa::Avx512 => unsafe { x86::products_avx512(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions.
        cpu::Isa::Avx2 => unsafe { x86::products_avx2(rounds) },
        _ => {
            let (a, b) = (black_box(3i8), black_box(5i8));
            chains!(rounds, 4 lanes, from [0i32; 4], |sum| {
                sum.map(|lane| i32::from(a) * i32::from(lane as i8) + i32::from(b))
            })
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::CHAINS;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Prefetches memory 8 KiB ahead: the processor's own prefetching stops at the end of a page.
    #[target_feature(enable = "avx512f")]
    pub(super) fn sum_avx512(values: &[u64]) -> u64 {
        const AHEAD: usize = 8192;
        let (chunks, rest) = values.as_chunks::<32>();
        let mut sums = [_mm512_setzero_si512(); 4];
        for chunk in chunks {
            for (line, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a chunk is four lines of eight numbers; a prefetch reads nothing.
                unsafe {
                    let at = chunk.as_ptr().add(8 * line);
                    _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
                    *sum = _mm512_add_epi64(*sum, _mm512_loadu_si512(at.cast()));
                }
            }
        }
        let total =
            sums.iter().fold(0, |total: u64, &sum| total.wrapping_add(_mm512_reduce_add_epi64(sum) as u64));
        rest.iter().fold(total, |a, b| a.wrapping_add(*b))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn products_avx512(rounds: usize) -> f64 {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        chains!(rounds, 64 lanes, from _mm512_setzero_si512(), |sum| _mm512_dpbusd_epi32(*sum, a, b))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn products_avx2(rounds: usize) -> f64 {
        let (b, ones) = (black_box(_mm256_set1_epi8(5)), black_box(_mm256_set1_epi16(1)));
        // Each product depends on its own sum; otherwise one product would do for all chains.
        chains!(rounds, 32 lanes, from _mm256_setzero_si256(), |sum| {
            _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(*sum, b), ones))
        })
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn fused_avx512(rounds: usize) -> f64 {
        let (a, b) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(1.0)));
        chains!(rounds, 16 lanes, from _mm512_setzero_ps(), |sum| _mm512_fmadd_ps(a, *sum, b))
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fused_avx2(rounds: usize) -> f64 {
        let (a, b) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(1.0)));
        chains!(rounds, 8 lanes, from _mm256_setzero_ps(), |sum| _mm256_fmadd_ps(a, *sum, b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_numbers_are_summed() {
        for n in [0, 1, 15, 64, 1000, 1003] {
            let values: Vec<u64> = (0..n).collect();
            assert_eq!([sum(&values), sum_plain(&values)], [(0..n).sum::<u64>(); 2]);
        }
    }
}
