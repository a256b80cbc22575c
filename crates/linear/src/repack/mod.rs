//! From the blocks of a GGUF file to the tiles that the kernels read.

mod group_tiles;
mod source;

use crate::kernels::{TILE, code_bits::pack, with_codes};
use breakers_cpu::Isa;
use breakers_gguf::Format;
pub(crate) use group_tiles::{E4M3_SHIFT, pack_group_tile};
use source::Source;

/// Packs up to sixteen rows of a GGUF tensor into a tile; rows that are missing are left as they are (zero).
///
/// `rows` holds whole rows of `row_bytes`, `codes` and `scales` a tile of the format. The result does not
/// depend on `isa`, which must be available.
pub(crate) fn pack_tile(
    format: Format,
    isa: Isa,
    rows: &[u8],
    row_bytes: usize,
    codes: &mut [u8],
    scales: &mut [u8],
) {
    if row_bytes == 0 {
        return;
    }
    debug_assert!(rows.len().is_multiple_of(row_bytes) && rows.len() / row_bytes <= TILE);
    debug_assert!(isa.is_available());
    with_codes!(
        format,
        C => match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions.
            Isa::Avx2 | Isa::Avx512 => unsafe { pack_codes_avx2::<C>(rows, row_bytes, codes, scales) },
            _ => pack_codes::<C>(rows, row_bytes, codes, scales),
        },
        else match format.block_bytes() {
            2 => pack_floats::<2>(rows, row_bytes, codes),
            _ => pack_floats::<4>(rows, row_bytes, codes),
        }
    );
}

/// [`pack_codes`], compiled for wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn pack_codes_avx2<S: Source>(rows: &[u8], row_bytes: usize, codes: &mut [u8], scales: &mut [u8]) {
    pack_codes::<S>(rows, row_bytes, codes, scales);
}

#[inline(always)]
fn pack_codes<S: Source>(rows: &[u8], row_bytes: usize, codes: &mut [u8], scales: &mut [u8]) {
    let n_rows = rows.len() / row_bytes;
    let codes = codes.chunks_exact_mut(S::BLOCK_BYTES * S::SCALES.blocks());
    let scales = scales.chunks_exact_mut(S::SCALES.bytes());
    for (block_idx, (codes, scales)) in codes.zip(scales).enumerate() {
        for row in 0..n_rows {
            let block = &rows[row * row_bytes + block_idx * S::SOURCE_BYTES..][..S::SOURCE_BYTES];
            for (within, codes) in codes.chunks_exact_mut(S::BLOCK_BYTES).enumerate() {
                let words = pack::<S>(S::groups(block, within));
                let (lines, _) = codes.as_chunks_mut::<4>().0.as_chunks_mut::<TILE>();
                for (line, word) in lines.iter_mut().zip(words) {
                    line[row] = word.to_le_bytes();
                }
            }
            S::scales(block, |line, bytes| {
                let at = line + row * bytes.len();
                scales[at..at + bytes.len()].copy_from_slice(bytes);
            });
        }
    }
}

/// Transposes numbers of `N` bytes.
fn pack_floats<const N: usize>(rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    let (lines, _) = tile.as_chunks_mut::<N>().0.as_chunks_mut::<TILE>();
    let (numbers, _) = rows.as_chunks::<N>();
    let n_cols = row_bytes / N;
    for (col, line) in lines.iter_mut().enumerate() {
        for (row, number) in numbers.iter().skip(col).step_by(n_cols).enumerate() {
            line[row] = *number;
        }
    }
}
