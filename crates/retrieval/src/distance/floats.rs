use breakers_cpu::{self as cpu, Isa};

/// Numbers in a register of the widest path.
const LANES: usize = 16;
/// Registers of partial sums, so that one addition need not wait for the one before it.
const REGISTERS: usize = 4;
/// What is added up: the sums of register `i`, lane `j` are those of the numbers `64 k + 16 i + j`, on every path; the
/// whole registers behind the last 64 numbers go on with register 0, and what is less than a register is added to the
/// last one.
type Sums = [[f32; LANES]; REGISTERS];

/// The inner product.
///
/// # Shapes
/// - `a`, `b`: `[n]`
///
/// # Panics
/// If the lengths differ.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    fold::<false>(a, b)
}

/// The squared Euclidean distance.
///
/// # Shapes
/// - `a`, `b`: `[n]`
///
/// # Panics
/// If the lengths differ.
pub fn l2(a: &[f32], b: &[f32]) -> f32 {
    fold::<true>(a, b)
}

/// The squared length.
pub fn norm_squared(a: &[f32]) -> f32 {
    dot(a, a)
}

/// The sum of products, or of squared differences.
#[inline]
fn fold<const DIFFERENCES: bool>(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let (registers_a, tail_a) = a.as_chunks::<LANES>();
    let (registers_b, tail_b) = b.as_chunks::<LANES>();
    let mut sums = match cpu::isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions; both have as many registers.
        Isa::Avx512 => unsafe { x86::avx512::<DIFFERENCES>(registers_a, registers_b) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::avx2::<DIFFERENCES>(registers_a, registers_b) },
        _ => scalar::<DIFFERENCES>(registers_a, registers_b),
    };
    for (lane, (a, b)) in tail_a.iter().zip(tail_b).enumerate() {
        sums[REGISTERS - 1][lane] = step::<DIFFERENCES>(*a, *b, sums[REGISTERS - 1][lane]);
    }
    let mut lanes: [f32; LANES] =
        std::array::from_fn(|lane| (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]));
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// One more product, or squared difference.
#[inline(always)]
fn step<const DIFFERENCES: bool>(a: f32, b: f32, sum: f32) -> f32 {
    if DIFFERENCES { (a - b).mul_add(a - b, sum) } else { a.mul_add(b, sum) }
}

fn scalar<const DIFFERENCES: bool>(a: &[[f32; LANES]], b: &[[f32; LANES]]) -> Sums {
    let mut sums = [[0.0; LANES]; REGISTERS];
    for (register, (a, b)) in a.iter().zip(b).enumerate() {
        for (sum, (a, b)) in sums[register % REGISTERS].iter_mut().zip(a.iter().zip(b)) {
            *sum = step::<DIFFERENCES>(*a, *b, *sum);
        }
    }
    sums
}

/// With intrinsics: of the loop over lanes the compiler makes single numbers in some programs and not in others.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, REGISTERS, Sums};
    use std::arch::x86_64::*;

    /// # Safety
    /// The processor must have the instructions, and `b` as many registers as `a`.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512<const DIFFERENCES: bool>(a: &[[f32; LANES]], b: &[[f32; LANES]]) -> Sums {
        let mut sums = [_mm512_setzero_ps(); REGISTERS];
        let step = |at: usize, sum: __m512| {
            // SAFETY: the caller has the instructions; `at` is below the number of registers of both.
            unsafe {
                let a = _mm512_loadu_ps(a.get_unchecked(at).as_ptr());
                let b = _mm512_loadu_ps(b.get_unchecked(at).as_ptr());
                let (a, b) = if DIFFERENCES { (_mm512_sub_ps(a, b), _mm512_sub_ps(a, b)) } else { (a, b) };
                _mm512_fmadd_ps(a, b, sum)
            }
        };
        let whole = a.len() / REGISTERS * REGISTERS;
        for first in (0..whole).step_by(REGISTERS) {
            sums[0] = step(first, sums[0]);
            sums[1] = step(first + 1, sums[1]);
            sums[2] = step(first + 2, sums[2]);
            sums[3] = step(first + 3, sums[3]);
        }
        for at in whole..a.len() {
            sums[at - whole] = step(at, sums[at - whole]);
        }
        let mut out = [[0.0; LANES]; REGISTERS];
        for (out, sum) in out.iter_mut().zip(sums) {
            // SAFETY: sixteen numbers.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
        }
        out
    }

    /// # Safety
    /// As [`avx512`].
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2<const DIFFERENCES: bool>(a: &[[f32; LANES]], b: &[[f32; LANES]]) -> Sums {
        let mut sums = [_mm256_setzero_ps(); 2 * REGISTERS];
        let step = |at: usize, half: usize, sum: __m256| {
            // SAFETY: as above; a half is eight numbers.
            unsafe {
                let a = _mm256_loadu_ps(a.get_unchecked(at).as_ptr().add(half * LANES / 2));
                let b = _mm256_loadu_ps(b.get_unchecked(at).as_ptr().add(half * LANES / 2));
                let (a, b) = if DIFFERENCES { (_mm256_sub_ps(a, b), _mm256_sub_ps(a, b)) } else { (a, b) };
                _mm256_fmadd_ps(a, b, sum)
            }
        };
        let whole = a.len() / REGISTERS * REGISTERS;
        for first in (0..whole).step_by(REGISTERS) {
            for half in 0..2 {
                sums[half] = step(first, half, sums[half]);
                sums[2 + half] = step(first + 1, half, sums[2 + half]);
                sums[4 + half] = step(first + 2, half, sums[4 + half]);
                sums[6 + half] = step(first + 3, half, sums[6 + half]);
            }
        }
        for at in whole..a.len() {
            for half in 0..2 {
                let sum = &mut sums[2 * (at - whole) + half];
                *sum = step(at, half, *sum);
            }
        }
        let mut out = [[0.0; LANES]; REGISTERS];
        for (out, sums) in out.iter_mut().zip(sums.as_chunks::<2>().0) {
            // SAFETY: two halves of eight numbers.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), sums[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(LANES / 2), sums[1]);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt as _, SeedableRng as _};

    #[test]
    fn floats_agree_with_sums_in_64_bits_and_with_themselves_on_every_path() {
        let mut random = rand::rngs::StdRng::seed_from_u64(1);
        for n in (0..200).chain([384, 1000, 1536]) {
            let mut draw = || -> Vec<f32> { (0..n).map(|_| random.random_range(-1.0..1.0)).collect() };
            let (a, b) = (draw(), draw());
            let pairs = || a.iter().zip(&b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
            let (exact_dot, size): (f64, f64) =
                (pairs().map(|(a, b)| a * b).sum(), pairs().map(|(a, b)| (a * b).abs()).sum());
            let exact_l2: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
            let reference = cpu::with_isa(Isa::Scalar, || (dot(&a, &b), l2(&a, &b))).unwrap();
            // Partial sums are at most n / 64 + 1 + 6 additions deep.
            let bound = (n as f64 / 64.0 + 8.0) * f64::from(f32::EPSILON);
            assert!((f64::from(reference.0) - exact_dot).abs() <= bound * size, "dot of {n}");
            assert!((f64::from(reference.1) - exact_l2).abs() <= 2.0 * bound * exact_l2, "l2 of {n}");
            for isa in cpu::available() {
                let found = cpu::with_isa(isa, || (dot(&a, &b), l2(&a, &b))).unwrap();
                assert_eq!(found, reference, "{isa}, {n} numbers");
            }
        }
    }
}
