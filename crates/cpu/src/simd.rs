//! Sixteen lanes of `f32`, the unit that all kernels of this crate are written in.
//!
//! Each instruction set gives the same bits: every operation is defined lane by lane and correctly rounded,
//! and the two sums across lanes have one fixed order.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) use {avx2::Avx2, avx512::Avx512};

use breakers_cpu::Isa;

use crate::pages::page::Stored;

/// An instruction set.
///
/// # Safety
/// Of every method: the processor has the instructions, which whoever names the implementing type answers
/// for, and pointers are valid for [`LANES`](crate::pages::page::LANES) elements.
pub(crate) trait Simd: Copy {
    /// Sixteen lanes.
    type V: Copy;
    /// Sixteen lanes of 32 bits.
    type W: Copy;
    /// Bytes to be looked up.
    type Table: Copy;
    /// Four bytes in each lane, ready for [`dot`](Self::dot).
    type Bytes: Copy;
    /// The same four factors in all lanes.
    type Factors: Copy;
    /// Sixteen integers that grow by [`dot`](Self::dot).
    type Sum: Copy;
    /// How many values a kernel may keep in registers, a few being left for operands.
    const ACCUMULATORS: usize;
    /// Query rows that are processed together, at most [`TILE_ROWS`](crate::attention::flex::page::TILE_ROWS).
    const TILE_ROWS: usize;
    /// The same over packed pages, 1, 4 or 6.
    const PACKED_ROWS: usize;
    /// Sums that are added up together over packed pages, a factor's planes apart: codes want registers, too.
    const PACKED_SUMS: usize;
    /// Whether factors of more than a byte are two planes of bytes, with a sum each.
    const HAS_PLANES: bool;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    /// Sixteen stored elements, widened exactly.
    unsafe fn widen<E: Stored>(from: *const E) -> Self::V;
    unsafe fn store(to: *mut f32, x: Self::V);
    /// Sixteen bytes as words.
    unsafe fn indices(from: *const u8) -> Self::W;
    /// Of `n` numbers, a multiple of [`LANES`](crate::pages::page::LANES) up to 256, the sixteen that the indices name.
    unsafe fn pick(from: *const f32, n: usize, indices: Self::W) -> Self::V;
    /// Stores sixteen elements, rounded as [`Stored::from_f32`] does; none is a NaN.
    unsafe fn narrow<E: Stored>(to: *mut E, x: Self::V);
    /// Hints that the cache line at `at`, which need not be valid, is read soon.
    unsafe fn prefetch(at: *const u8);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a·b + c, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of both; neither is a NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn reduce_max(x: Self::V) -> f32;
    /// The sum of the lanes: i and i + 8 first, then i and i + 4, i + 2, i + 1.
    unsafe fn reduce_add(x: Self::V) -> f32;
    /// −∞ in lanes outside of `from..to`, which may reach beyond the register on both sides.
    unsafe fn mask(x: Self::V, from: i32, to: i32) -> Self::V;
    /// y · 2ⁿ where x ≥ −126, else 0; n stands in the low bits of `shifted` = n + [`ROUND`].
    unsafe fn scale_by_power(x: Self::V, y: Self::V, shifted: Self::V) -> Self::V;
    /// Sixteen words.
    unsafe fn words(from: *const u32) -> Self::W;
    unsafe fn store_words(to: *mut u32, x: Self::W);
    unsafe fn splat_word(x: u32) -> Self::W;
    unsafe fn add_words(a: Self::W, b: Self::W) -> Self::W;
    unsafe fn and(a: Self::W, b: Self::W) -> Self::W;
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W;
    /// Each word shifted by as many bits, less than 32, as `by` says.
    unsafe fn shift_right(x: Self::W, by: Self::W) -> Self::W;
    unsafe fn shift_left(x: Self::W, by: Self::W) -> Self::W;
    /// Signed integers as numbers, rounded to nearest even.
    unsafe fn float(x: Self::W) -> Self::V;
    /// The [`TABLE`](crate::pages::packed::TABLE) bytes at `from`, ready to be looked up.
    unsafe fn table(from: *const u8) -> Self::Table;
    /// What each byte, below 2^`BITS`, stands for; `BITS` is 4 or 5.
    unsafe fn look_up<const BITS: u32>(table: Self::Table, x: Self::W) -> Self::W;
    /// Writes sixteen integers as factors, four to a [`Quad`]: at most [`LARGEST_BYTE`] in magnitude in one plane,
    /// [`LARGEST`] in two.
    unsafe fn pack<const PLANES: usize>(x: Self::V, to: *mut Quad);
    unsafe fn bytes(x: Self::W) -> Self::Bytes;
    unsafe fn factors(from: *const Quad) -> Self::Factors;
    unsafe fn no_sum() -> Self::Sum;
    /// Adds to each lane its four bytes times the four factors, exactly.
    unsafe fn dot<const PLANES: usize>(
        sum: Self::Sum,
        bytes: Self::Bytes,
        factors: Self::Factors,
    ) -> Self::Sum;
    /// The sums as signed integers.
    unsafe fn total<const PLANES: usize>(sum: Self::Sum) -> Self::W;

    /// The nearest integers, even ones where two are as near, of |x| < 2²².
    #[inline(always)]
    unsafe fn round(x: Self::V) -> Self::V {
        // SAFETY: the caller answers for the instructions; no pointers are involved.
        unsafe { Self::sub(Self::add(x, Self::splat(ROUND)), Self::splat(ROUND)) }
    }

    /// 2ˣ for x ≤ 0, within 1 unit in the last place; 0 below −126. See [`exp2`].
    #[inline(always)]
    unsafe fn exp2(x: Self::V) -> Self::V {
        // SAFETY: the caller answers for the instructions; no pointers are involved.
        unsafe {
            let round = Self::splat(ROUND);
            let shifted = Self::add(x, round);
            let r = Self::sub(x, Self::sub(shifted, round));
            let mut p = Self::splat(EXP2[0]);
            for &c in &EXP2[1..] {
                p = Self::fma(r, p, Self::splat(c));
            }
            Self::scale_by_power(x, p, shifted)
        }
    }
}

/// Four integer factors, as an instruction set wants them.
///
/// With planes: the high bytes of n = 128 · high + low in the first word, the low ones in the second. Otherwise 16 bits
/// each: the first and the third factor in the first word, the others in the second.
pub(crate) type Quad = [u32; 2];

/// The largest magnitude of a factor in one plane.
pub(crate) const LARGEST_BYTE: f32 = 127.0;
/// The same in two planes.
pub(crate) const LARGEST: f32 = 127.0 * 128.0;

/// A loop that is compiled for each instruction set.
pub(crate) trait Kernel {
    /// Its result.
    type Output;

    /// Runs it; implementations are `#[inline(always)]`, so that they take on the caller's instructions.
    ///
    /// # Safety
    /// The processor has `S`'s instructions.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs a kernel with the given instruction set, which the processor must have, as [`cpu::isa`] promises.
///
/// [`cpu::isa`]: breakers_cpu::isa
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    debug_assert!(isa.is_available());
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has them.
        Isa::Avx512 => unsafe { with_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has them.
        Isa::Avx2 => unsafe { with_avx2(kernel) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the processor has them.
        Isa::Neon => unsafe { kernel.run::<Neon>() },
        // SAFETY: plain Rust runs everywhere.
        _ => unsafe { kernel.run::<Scalar>() },
    }
}

/// # Safety
/// The processor has these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx512>() }
}

/// # Safety
/// The processor has these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx2>() }
}

/// 1.5 · 2²³: adding it to a small number rounds that to an integer, which stands in the low bits then.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// 2^r on |r| ≤ 1/2, highest power first: a least-maximum fit of the relative error (2e-9 before rounding)
/// with the constant held at 1, so that 2⁰ is exactly 1.
const EXP2: [f32; 7] = [
    0.000_153_533_62,
    0.001_339_887_5,
    0.009_618_437,
    0.055_503_324,
    0.240_226_48,
    std::f32::consts::LN_2,
    1.0,
];

/// 2ˣ for x ≤ 0, within 1 unit in the last place; 0 below −126. The same bits as [`Simd::exp2`].
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = EXP2[0];
    for &c in &EXP2[1..] {
        p = r.mul_add(p, c);
    }
    scale_by_power(x, p, shifted)
}

#[inline(always)]
fn scale_by_power(x: f32, y: f32, shifted: f32) -> f32 {
    // The bits of ROUND vanish in the shift.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    if x >= -126.0 { y * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::packed::TABLE;
    use crate::pages::page::LANES;
    use breakers_cpu as cpu;
    use half::f16;

    /// Everything that an instruction set computes from some inputs, as bits.
    struct Everything<'a>(&'a [f32; LANES], &'a [f32; LANES]);

    impl Kernel for Everything<'_> {
        type Output = Vec<u32>;

        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Vec<u32> {
            // SAFETY: the caller has the instructions.
            unsafe { everything::<S>(self.0, self.1) }
        }
    }

    #[inline(always)]
    unsafe fn everything<S: Simd>(a: &[f32; LANES], b: &[f32; LANES]) -> Vec<u32> {
        let halves = b.map(f16::from_f32);
        let mut bits = Vec::new();
        // SAFETY: the caller has the instructions; all arrays have LANES elements.
        unsafe {
            let (x, y) = (S::load(a.as_ptr()), S::load(b.as_ptr()));
            let negative = S::sub(S::splat(-0.0), S::mul(x, x));
            let mut results = vec![
                S::add(x, y),
                S::sub(x, y),
                S::mul(x, y),
                S::div(x, y),
                S::fma(x, y, S::splat(0.3)),
                S::max(x, y),
                S::widen(halves.as_ptr()),
                S::widen(b.as_ptr()),
                S::exp2(negative),
                S::exp2(S::mul(negative, S::splat(40.0))),
                S::exp2(S::splat(f32::NEG_INFINITY)),
            ];
            let [low, high] = [a, b].map(|x| x.map(|x| x.to_bits().wrapping_mul(0x9e37_79b9)));
            let table: [u8; TABLE] = std::array::from_fn(|i| low[i % LANES].to_le_bytes()[i / LANES]);
            let (table, words) = (S::table(table.as_ptr()), S::words(low.as_ptr()));
            let mut integers = vec![S::add_words(words, S::words(high.as_ptr()))];
            for shift in [0, 1, 3, 7] {
                let by = S::splat_word(shift);
                let both = S::or(S::shift_right(words, by), S::shift_left(S::words(high.as_ptr()), by));
                integers.push(both);
                let nibbles = S::and(both, S::splat_word(0x0f0f_0f0f));
                integers.push(S::look_up::<4>(table, nibbles));
                integers.push(S::look_up::<5>(table, S::and(both, S::splat_word(0x1f1f_1f1f))));
                integers.push(products::<S, 1>(x, LARGEST_BYTE / 8.0, nibbles));
                integers.push(products::<S, 1>(x, LARGEST_BYTE / 8.0, both));
                integers.push(products::<S, 2>(x, LARGEST / 8.0, both));
            }
            for integers in integers {
                results.push(S::float(integers));
                let mut lanes = [0; LANES];
                S::store_words(lanes.as_mut_ptr(), integers);
                bits.extend(lanes);
            }
            let many: [f32; 16 * LANES] = std::array::from_fn(|i| a[i % LANES] + (i / LANES) as f32);
            for n in [1, 2, 4, 6, 16] {
                let n = n * LANES;
                let order: [u8; LANES] = std::array::from_fn(|i| ((i * 41 + 7) % n) as u8);
                results.push(S::pick(many.as_ptr(), n, S::indices(order.as_ptr())));
            }
            for large in [1.0, 1e3, 1e4] {
                let (mut halves, mut singles) = ([f16::ZERO; LANES], [0.0f32; LANES]);
                S::narrow(halves.as_mut_ptr(), S::mul(x, S::splat(large)));
                S::narrow(singles.as_mut_ptr(), S::mul(y, S::splat(large)));
                bits.extend(halves.map(|h| h.to_bits() as u32));
                bits.extend(singles.map(f32::to_bits));
            }
            for from in -3..20 {
                for to in -3..20 {
                    results.push(S::mask(x, from, to));
                }
            }
            for result in results {
                let mut lanes = [0.0; LANES];
                S::store(lanes.as_mut_ptr(), result);
                bits.extend(lanes.map(f32::to_bits));
            }
            bits.extend([S::reduce_max(x).to_bits(), S::reduce_add(x).to_bits()]);
        }
        bits
    }

    /// Products of bytes with numbers below 8, which were rounded to integers.
    #[inline(always)]
    unsafe fn products<S: Simd, const PLANES: usize>(x: S::V, factor: f32, bytes: S::W) -> S::W {
        let mut quads = [Quad::default(); LANES / 4];
        // SAFETY: the caller has the instructions; sixteen factors are four quads.
        unsafe {
            S::pack::<PLANES>(S::round(S::mul(x, S::splat(factor))), quads.as_mut_ptr());
            let mut sum = S::no_sum();
            for quad in &quads {
                sum = S::dot::<PLANES>(sum, S::bytes(bytes), S::factors(quad));
            }
            S::total::<PLANES>(sum)
        }
    }

    #[test]
    fn products_are_those_of_integers() {
        let factors: [f32; LANES] = std::array::from_fn(|i| [LARGEST, -LARGEST, 64.0, -4_321.0][i % 4]);
        let words: [u32; LANES] = std::array::from_fn(|i| 0xff80_01ff_u32.rotate_left(i as u32));
        struct Products<'a>(&'a [f32; LANES], &'a [u32; LANES]);
        impl Kernel for Products<'_> {
            type Output = [u32; LANES];

            #[inline(always)]
            unsafe fn run<S: Simd>(self) -> Self::Output {
                let mut lanes = [0; LANES];
                // SAFETY: the caller has the instructions; all arrays have LANES elements.
                unsafe {
                    let sums = products::<S, 2>(S::load(self.0.as_ptr()), 1.0, S::words(self.1.as_ptr()));
                    S::store_words(lanes.as_mut_ptr(), sums);
                }
                lanes
            }
        }
        for isa in cpu::available() {
            for (lane, sum) in dispatch(isa, Products(&factors, &words)).into_iter().enumerate() {
                let bytes = words[lane].to_le_bytes();
                let expected: i32 =
                    factors.iter().enumerate().map(|(i, f)| *f as i32 * i32::from(bytes[i % 4])).sum();
                assert_eq!(sum as i32, expected, "{isa}, lane {lane}");
            }
        }
    }

    #[test]
    fn instruction_sets_agree_to_the_bit() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 20) as f32 - 8.0
        };
        for _ in 0..200 {
            let a: [f32; LANES] = std::array::from_fn(|_| next());
            let b: [f32; LANES] = std::array::from_fn(|_| next() * 1e-3);
            let want = dispatch(Isa::Scalar, Everything(&a, &b));
            for isa in cpu::available() {
                let got = dispatch(isa, Everything(&a, &b));
                assert!(got == want, "{isa}");
            }
        }
    }

    #[test]
    fn exp2_is_within_one_ulp() {
        let mut worst = 0.0f64;
        for i in 0..=2_000_000 {
            let x = -126.0 * i as f32 / 2_000_000.0;
            let want = (x as f64).exp2();
            let ulp = f32::from_bits(1 + (want as f32).to_bits()) as f64 - want as f32 as f64;
            worst = worst.max((exp2(x) as f64 - want).abs() / ulp);
        }
        assert!(worst <= 1.0, "{worst} ulp");
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(-126.5), 0.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
    }
}
