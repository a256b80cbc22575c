//! Queries and weights as integers: what the loop over codes multiplies with.
//!
//! A row's factors, those of a query in one group of channels or of a page's weights in one, are rounded to
//! multiples of a 16,256th of the largest one, or of a 127th where codes of up to four bits make larger
//! errors anyway. The levels of codes are exact, so the whole error is that of the factors: 3·10⁻⁵ of the
//! largest one at most, and 4·10⁻³.

use crate::pages::page::LANES;
use breakers_cpu::simd::{LARGEST, LARGEST_BYTE, Quad, Simd};

use crate::pages::packed::run::QUAD;

/// What a row's integer factors stand for.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Rounded {
    /// The factor of one.
    pub(super) step: f32,
    /// The sum of all factors.
    pub(super) sum: f32,
}

/// Factors below it are nothing: dividing by one must not overflow.
const TINY: f32 = 1e-30;

/// Rounds `n` factors, a multiple of [`LANES`] up to 512; adds them up only if the sum is wanted.
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
