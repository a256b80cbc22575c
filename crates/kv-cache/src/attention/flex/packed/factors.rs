//! Queries and weights as integers: what the loop over codes multiplies with.
//!
//! A row's factors (a query's elements in one group of channels, or a page's weights) are rounded to
//! multiples of 1/16,256 of the largest one, or of 1/127 where codes of up to four bits cause larger errors
//! anyway. The levels of codes are exact, so the only error is that of the factors: at most 3·10⁻⁵ or 4·10⁻³
//! of the largest one.

use crate::pages::page::LANES;
use breakers_cpu::simd::{LARGEST, LARGEST_BYTE, Quad, Simd};

use crate::pages::packed::run::QUAD;

/// How a row's integer factors are to be interpreted.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Rounded {
    /// The value of the integer 1.
    pub(super) step: f32,
    /// The sum of all factors.
    pub(super) sum: f32,
}

/// Smaller factors count as zero, so that dividing by them cannot overflow.
const TINY: f32 = 1e-30;

/// Rounds `n` factors, a multiple of [`LANES`] up to 512; their sum is computed only if it is wanted.
///
/// # Safety
/// `S`'s instructions are there; `from` has `n` factors, `to` has room for as many.
#[inline(always)]
pub(super) unsafe fn round<S: Simd>(
    planes: usize,
    from: *const f32,
    n: usize,
    to: *mut Quad,
    needs_sum: bool,
) -> Rounded {
    // SAFETY: the caller's promises.
    unsafe {
        let zero = S::splat(0.0);
        let mut largest = zero;
        for at in (0..n).step_by(LANES) {
            let x = S::load(from.add(at));
            largest = S::max(largest, S::max(x, S::sub(zero, x)));
        }
        let largest = S::reduce_max(largest);
        let most = if planes == 1 { LARGEST_BYTE } else { LARGEST };
        let (step, inverse) = if largest > TINY { (largest / most, most / largest) } else { (0.0, 0.0) };
        // Sums of integers below 2²⁴: exact in any order.
        let mut sum = zero;
        for at in (0..n).step_by(LANES) {
            let x = S::round(S::mul(S::load(from.add(at)), S::splat(inverse)));
            sum = S::add(sum, x);
            let to = to.add(at / QUAD);
            if planes == 1 { S::pack::<1>(x, to) } else { S::pack::<2>(x, to) }
        }
        Rounded { step, sum: if needs_sum { step * S::reduce_add(sum) } else { 0.0 } }
    }
}

const _: () = assert!(512.0 * LARGEST < 16_777_216.0 && 512 * 255 * (LARGEST as i64) <= i32::MAX as i64);
