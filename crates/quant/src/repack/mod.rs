//! From the blocks of a GGUF file to the tiles that the kernels read.

mod source;

use crate::{
    Format,
    kernels::{BLOCK, TILE, pack::pack, with_codes},
};
use source::Source;

/// Packs up to sixteen rows of a GGUF tensor into a tile; rows that are missing are left as they are (zero).
///
/// `rows` holds whole rows of `row_bytes`, `codes` and `scales` a tile of the format.
pub(crate) fn pack_tile(format: Format, rows: &[u8], row_bytes: usize, codes: &mut [u8], scales: &mut [u8]) {
    if row_bytes == 0 {
        return;
    }
    debug_assert!(rows.len().is_multiple_of(row_bytes) && rows.len() / row_bytes <= TILE);
    with_codes!(
        format,
        C => pack_codes::<C>(rows, row_bytes, codes, scales),
        else pack_floats(rows, row_bytes, format.block_bytes(), codes)
    );
}

fn pack_codes<S: Source>(rows: &[u8], row_bytes: usize, codes: &mut [u8], scales: &mut [u8]) {
    let n_blocks = S::SCALES.blocks();
    for (row_idx, row) in rows.chunks_exact(row_bytes).enumerate() {
        let blocks = row.chunks_exact(S::SOURCE_BYTES);
        let codes = codes.chunks_exact_mut(S::BLOCK_BYTES * n_blocks);
        let scales = scales.chunks_exact_mut(S::SCALES.bytes());
        for ((block, codes), scales) in blocks.zip(codes).zip(scales) {
            for (within, codes) in codes.chunks_exact_mut(S::BLOCK_BYTES).enumerate() {
                let words = pack::<S>(S::groups(block, within));
                for (line, word) in codes.chunks_exact_mut(4 * TILE).zip(words) {
                    line[4 * row_idx..4 * row_idx + 4].copy_from_slice(&word.to_le_bytes());
                }
            }
            S::scales(block, |line, bytes| {
                let at = line + row_idx * bytes.len();
                scales[at..at + bytes.len()].copy_from_slice(bytes);
            });
        }
    }
}

/// Transposes numbers of `width` bytes.
fn pack_floats(rows: &[u8], row_bytes: usize, width: usize, tile: &mut [u8]) {
    for (row_idx, row) in rows.chunks_exact(row_bytes).enumerate() {
        let at = row_idx * width;
        for (line, number) in tile.chunks_exact_mut(TILE * width).zip(row.chunks_exact(width)) {
            line[at..at + width].copy_from_slice(number);
        }
    }
}

const _: () = assert!(BLOCK == 8 * 4, "a block is eight groups of four");
