//! Distances by run-time SIMD dispatch: 32-bit floats, eight-bit codes, single bits.
//!
//! The floats give the same bits on every instruction set: sixteen times four partial sums in a fixed order,
//! with fused multiply-adds everywhere. Codes and bits are integers and exact.

mod bits;
mod codes;
mod floats;

pub use bits::{hamming, hamming_many};
pub use codes::{CodeQuery, GATHER, dot_codes, gather_dots, gather_row_dots, scan_dots};
pub(crate) use floats::length_squared;
pub use floats::{dot, l2, norm_squared};

/// Prefetches the cache lines of `bytes` bytes from `start` on.
#[inline(always)]
pub(crate) fn prefetch(start: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..bytes).step_by(64) {
        // SAFETY: a prefetch has no effect on the program's state, whatever the address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                start.wrapping_add(offset).cast(),
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (start, bytes);
}
