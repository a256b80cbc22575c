//! Plain Rust, for any processor: the reference of the other instruction sets.

use super::Simd;
use crate::page::{LANES, Stored};

/// Sixteen numbers in an array.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

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
    type Table = *const f32;
    const ACCUMULATORS: usize = 4;
    const TILE_ROWS: usize = 4;
    const PACKED_ROWS: usize = 1;
    const PACKED_SUMS: usize = 1;

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
    unsafe fn splat_word(x: u32) -> Self::W {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn shift_right(x: Self::W, by: Self::W) -> Self::W {
        std::array::from_fn(|i| x[i].checked_shr(by[i]).unwrap_or(0))
    }

    #[inline(always)]
    unsafe fn shift_left_or(x: Self::W, by: Self::W, other: Self::W) -> Self::W {
        std::array::from_fn(|i| x[i].checked_shl(by[i]).unwrap_or(0) | other[i])
    }

    #[inline(always)]
    unsafe fn numbers(x: Self::W, mask: Self::W) -> Self::V {
        std::array::from_fn(|i| (x[i] & mask[i]) as f32)
    }

    #[inline(always)]
    unsafe fn table(from: *const f32) -> Self::Table {
        from
    }

    #[inline(always)]
    unsafe fn look_up<const BITS: u32>(table: Self::Table, x: Self::W) -> Self::V {
        // SAFETY: the table has 32 numbers by the trait's contract.
        x.map(|code| unsafe { *table.add((code & ((1 << BITS) - 1)) as usize) })
    }
}
