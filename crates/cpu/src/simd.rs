//! SIMD written once: sixteen lanes of `f32`, on whichever registers the processor has.
//!
//! A kernel is a type that implements [`Kernel`]: its loop is written over the methods of [`Simd`], and
//! [`dispatch`] runs the copy that was compiled for an instruction set. A loop that the compiler vectorizes
//! by itself does not have to name registers: [`per_isa!`](crate::per_isa!) compiles it once for each
//! instruction set.
//!
//! Each instruction set gives the same bits: every operation is defined lane by lane and correctly rounded,
//! and the two sums across lanes have one fixed order. The tests compare all methods between all instruction
//! sets that the machine has.
//!
//! # Instruction sets
//! - AVX-512 (F, BW, DQ, VL, VNNI): sixteen lanes in one register.
//! - AVX2 with FMA and F16C: in two.
//! - NEON, on 64-bit Arm: in four. It is type-checked, but the machines that run this
//!   project's tests are x86-64.
//! - plain Rust anywhere, the reference.
//!
//! # Example
//! ```
//! use breakers_cpu::simd::{self, Kernel, LANES, Simd};
//!
//! /// The sum of the products of two slices of whole registers.
//! struct Dot<'a>(&'a [f32], &'a [f32]);
//!
//! impl Kernel for Dot<'_> {
//!     type Output = f32;
//!
//!     #[inline(always)]
//!     unsafe fn run<S: Simd>(self) -> f32 {
//!         assert!(self.0.len() == self.1.len() && self.0.len().is_multiple_of(LANES));
//!         // SAFETY: the caller has the instructions; sixteen elements are there from each index on.
//!         unsafe {
//!             let mut sum = S::splat(0.0);
//!             for i in (0..self.0.len()).step_by(LANES) {
//!                 sum = S::fma(S::load(self.0.as_ptr().add(i)), S::load(self.1.as_ptr().add(i)), sum);
//!             }
//!             S::reduce_add(sum)
//!         }
//!     }
//! }
//!
//! let (a, b) = ([1.0; 64], [0.5; 64]);
//! assert_eq!(simd::dispatch(breakers_cpu::isa(), Dot(&a, &b)), 32.0);
//! ```

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod stored;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use scalar::Scalar;
pub use stored::Stored;
#[cfg(target_arch = "x86_64")]
pub use {avx2::Avx2, avx512::Avx512};

use crate::Isa;

/// Elements of a register, on every instruction set.
pub const LANES: usize = 16;
/// Bytes of a table for [`Simd::look_up`].
pub const TABLE: usize = 32;

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for f32 {}
    impl Sealed for super::Scalar {}
    #[cfg(target_arch = "x86_64")]
    impl Sealed for super::Avx2 {}
    #[cfg(target_arch = "x86_64")]
    impl Sealed for super::Avx512 {}
    #[cfg(target_arch = "aarch64")]
    impl Sealed for super::Neon {}
}

/// An instruction set. It cannot be implemented outside of this crate, so methods may be added.
///
/// # Safety
/// For every method: the processor has the instructions, which is the responsibility of the code that names
/// the implementing type, and pointers are valid for [`LANES`] elements.
#[allow(clippy::missing_safety_doc)] // The section above holds for all methods.
pub trait Simd: Copy + sealed::Sealed {
    /// Sixteen lanes.
    type V: Copy;
    /// Sixteen lanes of 32 bits.
    type W: Copy;
    /// A table of bytes for [`look_up`](Self::look_up).
    type Table: Copy;
    /// Four bytes in each lane, ready for [`dot`](Self::dot).
    type Bytes: Copy;
    /// The same four factors in all lanes.
    type Factors: Copy;
    /// Sixteen integers that grow by [`dot`](Self::dot).
    type Sum: Copy;
    /// Which instruction set it is.
    const ISA: Isa;
    /// How many values a kernel may keep in registers, so that a few are left for operands.
    const ACCUMULATORS: usize;
    /// Whether factors larger than a byte are split into two planes of bytes, each with a sum of its own.
    const HAS_PLANES: bool;

    /// The number in all lanes.
    unsafe fn splat(x: f32) -> Self::V;
    /// Sixteen numbers from memory, aligned or not.
    unsafe fn load(from: *const f32) -> Self::V;
    /// Sixteen stored elements, widened exactly.
    unsafe fn widen<E: Stored>(from: *const E) -> Self::V;
    /// The lanes to memory, aligned or not.
    unsafe fn store(to: *mut f32, x: Self::V);
    /// Sixteen bytes as words.
    unsafe fn indices(from: *const u8) -> Self::W;
    /// Sixteen of `n` numbers, chosen by the indices; `n` is a multiple of [`LANES`] up to 256.
    unsafe fn pick(from: *const f32, n: usize, indices: Self::W) -> Self::V;
    /// Stores sixteen elements, rounded as [`Stored::from_f32`] does; none is a NaN.
    unsafe fn narrow<E: Stored>(to: *mut E, x: Self::V);
    /// Hints that the cache line at `at`, which need not be valid, will be read soon.
    unsafe fn prefetch(at: *const u8);
    /// a + b.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a − b.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// a · b.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a·b + c, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of both; neither is a NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The largest lane; none is a NaN.
    unsafe fn reduce_max(x: Self::V) -> f32;
    /// The sum of the lanes: i and i + 8 first, then i and i + 4, i + 2, i + 1.
    unsafe fn reduce_add(x: Self::V) -> f32;
    /// Sets the lanes outside of `from..to` to −∞. The range may reach beyond the register on both sides.
    unsafe fn mask(x: Self::V, from: i32, to: i32) -> Self::V;
    /// y · 2ⁿ where x ≥ −126, else 0; n is in the low bits of `shifted` = n + [`ROUND`].
    unsafe fn scale_by_power(x: Self::V, y: Self::V, shifted: Self::V) -> Self::V;
    /// Sixteen words.
    unsafe fn words(from: *const u32) -> Self::W;
    /// Sixteen words to memory, aligned or not.
    unsafe fn store_words(to: *mut u32, x: Self::W);
    /// The word in all lanes.
    unsafe fn splat_word(x: u32) -> Self::W;
    /// a + b, without the carry.
    unsafe fn add_words(a: Self::W, b: Self::W) -> Self::W;
    /// Bitwise and.
    unsafe fn and(a: Self::W, b: Self::W) -> Self::W;
    /// Bitwise or.
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W;
    /// Shifts each word by the number of bits in `by`, which is below 32.
    unsafe fn shift_right(x: Self::W, by: Self::W) -> Self::W;
    /// As [`shift_right`](Self::shift_right), to the left.
    unsafe fn shift_left(x: Self::W, by: Self::W) -> Self::W;
    /// Signed integers as numbers, rounded to nearest even.
    unsafe fn float(x: Self::W) -> Self::V;
    /// The [`TABLE`] bytes at `from`, as a table for [`look_up`](Self::look_up).
    unsafe fn table(from: *const u8) -> Self::Table;
    /// Looks up each byte, which is below 2^`BITS`; `BITS` is 4 or 5.
    unsafe fn look_up<const BITS: u32>(table: Self::Table, x: Self::W) -> Self::W;
    /// Writes sixteen integers as factors, four to a [`Quad`]. Their magnitude is at most [`LARGEST_BYTE`]
    /// with one plane and [`LARGEST`] with two.
    unsafe fn pack<const PLANES: usize>(x: Self::V, to: *mut Quad);
    /// Four bytes in each lane, made ready for [`dot`](Self::dot).
    unsafe fn bytes(x: Self::W) -> Self::Bytes;
    /// Four factors, made ready for [`dot`](Self::dot).
    unsafe fn factors(from: *const Quad) -> Self::Factors;
    /// Zeros.
    unsafe fn no_sum() -> Self::Sum;
    /// Adds to each lane its four bytes times the four factors, exactly.
    unsafe fn dot<const PLANES: usize>(
        sum: Self::Sum,
        bytes: Self::Bytes,
        factors: Self::Factors,
    ) -> Self::Sum;
    /// The sums as signed integers.
    unsafe fn total<const PLANES: usize>(sum: Self::Sum) -> Self::W;

    /// Rounds to the nearest integers, ties to even, for |x| < 2²².
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

/// Four integer factors, in the form that an instruction set needs.
///
/// With planes: the high bytes of n = 128 · high + low in the first word, the low ones in the second.
/// Otherwise 16 bits each: the first and the third factor in the first word, the others in the second.
pub type Quad = [u32; 2];

/// The largest magnitude of a factor in one plane.
pub const LARGEST_BYTE: f32 = 127.0;
/// The same in two planes.
pub const LARGEST: f32 = 127.0 * 128.0;

/// A loop that is compiled for each instruction set.
pub trait Kernel {
    /// Its result.
    type Output;

    /// Runs the loop. Implementations are `#[inline(always)]`, so that they are compiled with the caller's
    /// instructions.
    ///
    /// # Safety
    /// The processor has `S`'s instructions.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs a kernel with the given instruction set, or with plain code if the processor lacks it.
/// [`isa`](crate::isa()) only returns sets that the processor has.
#[inline]
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    debug_assert!(isa.is_available());
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has them.
        Isa::Avx512 if isa.is_available() => unsafe { with_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has them.
        Isa::Avx2 if isa.is_available() => unsafe { with_avx2(kernel) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every 64-bit Arm processor that Rust's standard library supports has them.
        Isa::Neon => unsafe { kernel.run::<Neon>() },
        // SAFETY: plain Rust runs everywhere.
        _ => unsafe { kernel.run::<Scalar>() },
    }
}

/// # Safety
/// The processor has the instructions of [`Isa::Avx512`].
#[doc(hidden)]
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub unsafe fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx512>() }
}

/// # Safety
/// The processor has the instructions of [`Isa::Avx2`].
#[doc(hidden)]
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx2>() }
}

#[doc(hidden)]
#[inline(always)]
pub fn plain<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// A loop that does not name registers, for [`per_isa!`](crate::per_isa!).
#[doc(hidden)]
#[derive(Debug)]
pub struct Plain<F>(pub F);

impl<R, F: FnOnce() -> R> Kernel for Plain<F> {
    type Output = R;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> R {
        (self.0)()
    }
}

/// Evaluates an expression compiled for the given instruction set, or the plain code if the machine lacks
/// that set.
///
/// `per_isa!(isa, || expression)` has the expression's value. Kernels read [`isa`](crate::isa()) once,
/// before they fork into the pool, and pass it on.
///
/// The expression is compiled once for each instruction set, inside a function that has the set's features
/// enabled. There the compiler vectorizes it, and fused multiply-adds are single instructions. This applies
/// only to code that is inlined: let the expression be a loop over, or a call of, `#[inline(always)]`
/// functions, and pass no closures through it. The result has the same bits on every path, because Rust
/// neither fuses nor reorders floating-point operations by itself.
///
/// # Example
/// ```
/// use breakers_cpu::per_isa;
///
/// #[inline(always)]
/// fn dot(a: &[f32; 64], b: &[f32; 64]) -> f32 {
///     let mut lanes = [0.0; 16];
///     for i in 0..64 {
///         lanes[i % 16] = a[i].mul_add(b[i], lanes[i % 16]);
///     }
///     lanes.iter().sum()
/// }
///
/// let (a, b) = ([1.0; 64], [0.5; 64]);
/// assert_eq!(per_isa!(breakers_cpu::isa(), || dot(&a, &b)), 32.0);
/// ```
#[macro_export]
macro_rules! per_isa {
    ($isa:expr, || $body:expr) => {
        // A closure that is called from only one place is inlined there, whatever its size. That is why there
        // are three.
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512 if $crate::Isa::Avx512.is_available() => {
                // SAFETY: the processor has the features.
                unsafe { $crate::simd::with_avx512($crate::simd::Plain(|| $body)) }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx2 if $crate::Isa::Avx2.is_available() => {
                // SAFETY: the processor has the features.
                unsafe { $crate::simd::with_avx2($crate::simd::Plain(|| $body)) }
            }
            // All code for 64-bit Arm is compiled with NEON anyway.
            _ => $crate::simd::plain(|| $body),
        }
    };
}
/// 1.5 · 2²³: adding it to a small number rounds that to an integer, which is then in the low bits.
pub const ROUND: f32 = 12_582_912.0;

/// 2^r on |r| ≤ 1/2, highest power first: a minimax fit of the relative error (2e-9 before rounding), with
/// the constant term fixed at 1 so that 2⁰ is exactly 1.
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
pub fn exp2(x: f32) -> f32 {
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
