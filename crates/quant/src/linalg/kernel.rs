//! The kernel that adds the product of two panels to a tile, for each instruction set.

use breakers_cpu::Isa;

/// Columns of a panel of the left operand, each of which is broadcast.
pub(crate) const MR: usize = 8;
/// Columns of a panel of the right operand: two registers of AVX-512.
pub(crate) const NR: usize = 32;

/// Results for one panel of each operand: `[left column][right column]`.
pub(crate) type MicroTile = [[f32; NR]; MR];

/// Adds `PᵀQ` to a tile: `left` is `[k, MR]`, `right` `[k, NR]`.
///
/// # Safety
/// - The CPU must have the instructions of the path that the kernel was chosen for.
pub(crate) type Kernel = unsafe fn(left: &[[f32; MR]], right: &[[f32; NR]], tile: &mut MicroTile);

/// The kernel for an instruction set, which must be available.
pub(crate) fn kernel(isa: Isa) -> Kernel {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => x86::avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::avx2,
        _ => scalar,
    }
}

/// # Safety
/// - None beyond those of [`Kernel`]; this one is safe.
unsafe fn scalar(left: &[[f32; MR]], right: &[[f32; NR]], tile: &mut MicroTile) {
    for (left, right) in left.iter().zip(right) {
        for (sums, &factor) in tile.iter_mut().zip(left) {
            for (sum, &x) in sums.iter_mut().zip(right) {
                *sum = factor.mul_add(x, *sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{MR, MicroTile, NR};
    use std::arch::x86_64::*;

    /// Unrolls the body for each index: in a loop the compiler would keep the sums in memory.
    macro_rules! each {
        ([$($index:literal)*], $i:ident => $body:block) => {$(
            {
                const $i: usize = $index;
                $body
            }
        )*};
    }

    /// # Safety
    /// Those of [`Kernel`](super::Kernel) for AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) unsafe fn avx512(left: &[[f32; MR]], right: &[[f32; NR]], tile: &mut MicroTile) {
        let mut low = [_mm512_setzero_ps(); MR];
        let mut high = [_mm512_setzero_ps(); MR];
        each!([0 1 2 3 4 5 6 7], I => {
            // SAFETY: a row of the tile is two registers long.
            unsafe {
                low[I] = _mm512_loadu_ps(tile[I].as_ptr());
                high[I] = _mm512_loadu_ps(tile[I].as_ptr().add(16));
            }
        });
        for (left, right) in left.iter().zip(right) {
            // SAFETY: a row of the panel is two registers long.
            let (r0, r1) =
                unsafe { (_mm512_loadu_ps(right.as_ptr()), _mm512_loadu_ps(right.as_ptr().add(16))) };
            each!([0 1 2 3 4 5 6 7], I => {
                let factor = _mm512_set1_ps(left[I]);
                low[I] = _mm512_fmadd_ps(factor, r0, low[I]);
                high[I] = _mm512_fmadd_ps(factor, r1, high[I]);
            });
        }
        each!([0 1 2 3 4 5 6 7], I => {
            // SAFETY: a row of the tile is two registers long.
            unsafe {
                _mm512_storeu_ps(tile[I].as_mut_ptr(), low[I]);
                _mm512_storeu_ps(tile[I].as_mut_ptr().add(16), high[I]);
            }
        });
    }

    /// # Safety
    /// Those of [`Kernel`](super::Kernel) for AVX2.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(left: &[[f32; MR]], right: &[[f32; NR]], tile: &mut MicroTile) {
        // Eight sums at a time, as there are sixteen registers.
        for first in (0..MR).step_by(4) {
            for from in (0..NR).step_by(16) {
                let mut low = [_mm256_setzero_ps(); 4];
                let mut high = [_mm256_setzero_ps(); 4];
                each!([0 1 2 3], I => {
                    // SAFETY: sixteen columns from `from` on lie within a row of the tile.
                    unsafe {
                        low[I] = _mm256_loadu_ps(tile[first + I].as_ptr().add(from));
                        high[I] = _mm256_loadu_ps(tile[first + I].as_ptr().add(from + 8));
                    }
                });
                for (left, right) in left.iter().zip(right) {
                    // SAFETY: sixteen columns from `from` on lie within a row of the panel.
                    let (r0, r1) = unsafe {
                        let at = right.as_ptr().add(from);
                        (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8)))
                    };
                    each!([0 1 2 3], I => {
                        let factor = _mm256_set1_ps(left[first + I]);
                        low[I] = _mm256_fmadd_ps(factor, r0, low[I]);
                        high[I] = _mm256_fmadd_ps(factor, r1, high[I]);
                    });
                }
                each!([0 1 2 3], I => {
                    // SAFETY: as for the loads.
                    unsafe {
                        _mm256_storeu_ps(tile[first + I].as_mut_ptr().add(from), low[I]);
                        _mm256_storeu_ps(tile[first + I].as_mut_ptr().add(from + 8), high[I]);
                    }
                });
            }
        }
    }
}
