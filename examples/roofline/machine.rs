//! What this machine can do at most: bytes read a second, multiplications a second.

use std::hint::black_box;
use std::time::Instant;

use breakers_backend::{cpu, math, pool};

/// Memory that is read: more than any cache.
const BUFFER_BYTES: usize = 512 << 20;
/// Measurements of which the best counts; a peak is what undisturbed hardware reaches.
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
                let isa = cpu::isa();
                let part = &buffer[range];
                black_box(math::per_isa!(isa, || sum(part)));
            });
        });
        drop(buffer);
        Self { read_bandwidth, int8_ops: peak(int8_products), f32_ops: peak(f32_products) }
    }
}

/// The rate of a kernel that gives the operations it did, on all threads at once.
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

#[inline(always)]
fn sum(values: &[u64]) -> u64 {
    let (chunks, rest) = values.as_chunks::<64>();
    let mut lanes = [0u64; 64];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*value);
        }
    }
    lanes.iter().chain(rest).fold(0, |a, b| a.wrapping_add(*b))
}

/// Independent sums that hide the latency of an instruction. They begin as numbers that the compiler does not know, or it
/// would see that they stay equal.
const CHAINS: usize = 12;

/// Fused multiply-adds of `f32`; returns the number of operations.
fn f32_products(rounds: usize) -> f64 {
    #[inline(always)]
    fn run(rounds: usize) -> [[f32; 16]; CHAINS] {
        let (a, b) = (black_box([1.000_001f32; 16]), black_box([0.999_999f32; 16]));
        let mut sums = black_box([[0.0f32; 16]; CHAINS]);
        for _ in 0..rounds {
            for sum in &mut sums {
                for lane in 0..16 {
                    sum[lane] = a[lane].mul_add(sum[lane], b[lane]);
                }
            }
        }
        sums
    }
    black_box(math::per_isa!(cpu::isa(), || run(rounds)));
    (2 * 16 * CHAINS * rounds) as f64
}

/// Products of bytes, summed in 32 bits, by the instruction that the kernels use; returns the number of operations.
fn int8_products(rounds: usize) -> f64 {
    match cpu::isa() {
        #[cfg(target_arch = "x86_64")]
        cpu::Isa::Avx512 => {
            // SAFETY: the processor has the instructions.
            unsafe { x86::products_avx512(rounds) };
            (2 * 64 * CHAINS * rounds) as f64
        }
        #[cfg(target_arch = "x86_64")]
        cpu::Isa::Avx2 => {
            // SAFETY: the processor has the instructions.
            unsafe { x86::products_avx2(rounds) };
            (2 * 32 * CHAINS * rounds) as f64
        }
        _ => {
            let (a, b) = (black_box([3i8; 16]), black_box([5i8; 16]));
            let mut sums = black_box([[0i32; 16]; CHAINS]);
            for _ in 0..rounds {
                for sum in &mut sums {
                    for lane in 0..16 {
                        sum[lane] = sum[lane].wrapping_add(i32::from(a[lane]) * i32::from(b[lane]));
                    }
                }
                black_box(&mut sums);
            }
            (2 * 16 * CHAINS * rounds) as f64
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::CHAINS;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn products_avx512(rounds: usize) {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        let mut sums = black_box([_mm512_setzero_si512(); CHAINS]);
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn products_avx2(rounds: usize) {
        let (b, ones) = (black_box(_mm256_set1_epi8(5)), black_box(_mm256_set1_epi16(1)));
        let mut sums = black_box([_mm256_setzero_si256(); CHAINS]);
        for _ in 0..rounds {
            // Each product depends on its sum; otherwise the compiler would compute one for all.
            for sum in &mut sums {
                let pairs = _mm256_maddubs_epi16(*sum, b);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_numbers_are_summed() {
        let values: Vec<u64> = (0..1000).collect();
        assert_eq!(sum(&values), 499_500);
    }
}
