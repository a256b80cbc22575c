//! Plain Rust, for any processor: the reference of the other instruction sets.

use super::{LANES, Quad, Simd, Stored};
use crate::Isa;

/// Sixteen numbers in an array.
#[derive(Clone, Copy)]
pub struct Scalar;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn reduce(x: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut x = x;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
    }
    x[0]
}

// SAFETY comments: the arithmetic is safe code; pointers are read and written for LANES elements, for which
// they are valid by the trait's contract.
impl Simd for Scalar {
    type V = [f32; LANES];
    type W = [u32; LANES];
    type Table = *const u8;
    type Bytes = [u32; LANES];
    type Factors = [i32; 4];
    type Sum = [i32; LANES];
    const ISA: Isa = Isa::Scalar;
    const ACCUMULATORS: usize = 4;
    const HAS_PLANES: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: valid for LANES elements by the trait's contract.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn widen<E: Stored>(from: *const E) -> Self::V {
        // SAFETY: valid for LANES elements by the trait's contract.
        let stored = unsafe { from.cast::<[E; LANES]>().read_unaligned() };
        stored.map(E::to_f32)
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::V) {
        // SAFETY: valid for LANES elements by the trait's contract.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn indices(from: *const u8) -> Self::W {
        // SAFETY: valid for LANES bytes by the trait's contract.
        unsafe { from.cast::<[u8; LANES]>().read() }.map(u32::from)
    }

    #[inline(always)]
    unsafe fn pick(from: *const f32, _: usize, indices: Self::W) -> Self::V {
        // SAFETY: there are as many numbers, by the trait's contract.
        indices.map(|at| unsafe { *from.add(at as usize) })
    }

    #[inline(always)]
    unsafe fn narrow<E: Stored>(to: *mut E, x: Self::V) {
        // SAFETY: valid for LANES elements by the trait's contract.
        unsafe { to.cast::<[E; LANES]>().write_unaligned(x.map(E::from_f32)) }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn reduce_max(x: Self::V) -> f32 {
        reduce(x, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn reduce_add(x: Self::V) -> f32 {
        reduce(x, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn mask(x: Self::V, from: i32, to: i32) -> Self::V {
        std::array::from_fn(|i| if (from..to).contains(&(i as i32)) { x[i] } else { f32::NEG_INFINITY })
    }

    #[inline(always)]
    unsafe fn scale_by_power(x: Self::V, y: Self::V, shifted: Self::V) -> Self::V {
        std::array::from_fn(|i| super::scale_by_power(x[i], y[i], shifted[i]))
    }

    #[inline(always)]
    unsafe fn words(from: *const u32) -> Self::W {
        // SAFETY: valid for LANES words by the trait's contract.
        unsafe { from.cast::<[u32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_words(to: *mut u32, x: Self::W) {
        // SAFETY: valid for LANES words by the trait's contract.
        unsafe { to.cast::<[u32; LANES]>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn splat_word(x: u32) -> Self::W {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn add_words(a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    unsafe fn and(a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    unsafe fn or(a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    unsafe fn shift_right(x: Self::W, by: Self::W) -> Self::W {
        std::array::from_fn(|i| x[i] >> (by[i] % u32::BITS))
    }

    #[inline(always)]
    unsafe fn shift_left(x: Self::W, by: Self::W) -> Self::W {
        std::array::from_fn(|i| x[i] << (by[i] % u32::BITS))
    }

    #[inline(always)]
    unsafe fn float(x: Self::W) -> Self::V {
        x.map(|x| x as i32 as f32)
    }

    #[inline(always)]
    unsafe fn table(from: *const u8) -> Self::Table {
        from
    }

    #[inline(always)]
    unsafe fn look_up<const BITS: u32>(table: Self::Table, x: Self::W) -> Self::W {
        // SAFETY: the table has 32 bytes by the trait's contract.
        let level = |code: u8| unsafe { *table.add(usize::from(code & ((1 << BITS) - 1))) };
        x.map(|x| u32::from_le_bytes(x.to_le_bytes().map(level)))
    }

    #[inline(always)]
    unsafe fn pack<const PLANES: usize>(x: Self::V, to: *mut Quad) {
        for (at, x) in x.chunks_exact(4).enumerate() {
            let pair = |i: usize| u32::from(x[i] as i16 as u16) | u32::from(x[i + 2] as i16 as u16) << 16;
            // SAFETY: valid for four quads by the trait's contract.
            unsafe { *to.add(at) = [pair(0), pair(1)] };
        }
    }

    #[inline(always)]
    unsafe fn bytes(x: Self::W) -> Self::Bytes {
        x
    }

    #[inline(always)]
    unsafe fn factors(from: *const Quad) -> Self::Factors {
        // SAFETY: valid for a quad by the trait's contract.
        let [even, odd] = unsafe { *from };
        [even as i16, odd as i16, (even >> 16) as i16, (odd >> 16) as i16].map(i32::from)
    }

    #[inline(always)]
    unsafe fn no_sum() -> Self::Sum {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn dot<const PLANES: usize>(
        sum: Self::Sum,
        bytes: Self::Bytes,
        factors: Self::Factors,
    ) -> Self::Sum {
        std::array::from_fn(|lane| {
            let bytes = bytes[lane].to_le_bytes();
            sum[lane] + (0..4).map(|i| i32::from(bytes[i]) * factors[i]).sum::<i32>()
        })
    }

    #[inline(always)]
    unsafe fn total<const PLANES: usize>(sum: Self::Sum) -> Self::W {
        sum.map(|sum| sum as u32)
    }
}
