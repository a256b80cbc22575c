//! From our own formats to the tiles that the kernels read.

use crate::kernels::{
    BLOCK, Codes, Scales, TILE,
    code_bits::pack,
    group::{E2M1_STEPS, GroupLayout, NF4_STEPS, code_offset, with_group_codes},
};
use breakers_gguf::{GroupMatrix, GroupScales};

/// The ratio between how E4M3 scales are interpreted in a tile and their true values. It keeps the factor of
/// typical weights out of the subnormal range of half precision.
pub(crate) const E4M3_SHIFT: f32 = 1.0 / 1024.0;

/// Packs up to sixteen rows from `first_row` on; rows that are missing are left as they are (zero).
pub(crate) fn pack_group_tile(
    layout: GroupLayout,
    groups: &GroupMatrix,
    first_row: usize,
    codes: &mut [u8],
    scales: &mut [u8],
) {
    let n_rows = TILE.min(groups.n_rows() - first_row);
    with_group_codes!(layout, C => {
        for row in 0..n_rows {
            pack_codes::<C>(groups, code_offset::<C>(groups.format()), first_row + row, row, codes);
            pack_scales::<C>(groups, first_row + row, row, scales);
        }
    });
}

fn pack_codes<C: Codes>(groups: &GroupMatrix, offset: u8, from: usize, row: usize, codes: &mut [u8]) {
    for (block_idx, codes) in codes.chunks_exact_mut(C::BLOCK_BYTES).enumerate() {
        let mut fours = [0u32; 8];
        for (i, four) in fours.iter_mut().enumerate() {
            let first = from * groups.n_cols() + block_idx * BLOCK + 4 * i;
            let bytes = [0, 1, 2, 3].map(|k| groups.code(first + k) + offset);
            *four = u32::from_le_bytes(bytes);
        }
        let words = pack::<C>(fours);
        let (lines, _) = codes.as_chunks_mut::<4>().0.as_chunks_mut::<TILE>();
        for (line, word) in lines.iter_mut().zip(words) {
            line[row] = word.to_le_bytes();
        }
    }
}

fn pack_scales<C: Codes>(groups: &GroupMatrix, from: usize, row: usize, scales: &mut [u8]) {
    let (group, columns) = (groups.format().group(), C::SCALES.blocks() * BLOCK);
    let first = from * (groups.n_cols() / group);
    let half = |x: f32| breakers_cpu::float16::saturating(x).to_le_bytes();
    for (i, lines) in scales.chunks_exact_mut(C::SCALES.bytes()).enumerate() {
        let at = first + i * columns / group;
        let mut put =
            |line: usize, bytes: [u8; 2]| lines[2 * (line * TILE + row)..][..2].copy_from_slice(&bytes);
        match groups.scales() {
            GroupScales::Affine(found) => {
                put(0, found[at][0].to_le_bytes());
                put(1, found[at][1].to_le_bytes());
            }
            GroupScales::Symmetric(found) => put(0, found[at].to_le_bytes()),
            GroupScales::Nf4 { .. } => put(0, half(groups.scales().value(at).0 / NF4_STEPS)),
            GroupScales::NvFp4 { codes, scale } => {
                put(0, half(scale / E2M1_STEPS / E4M3_SHIFT));
                // There may be fewer last lines in a row than there is room for.
                let end = codes.len().min(first + groups.n_cols() / group);
                for (half, &code) in codes[at..end.min(at + 2 * C::SCALES.blocks())].iter().enumerate() {
                    lines[2 * TILE + half * TILE + row] = code;
                }
            }
        }
        debug_assert!(matches!(
            C::SCALES,
            Scales::Half | Scales::HalfOf(_) | Scales::HalfMin | Scales::HalfMinOf(_) | Scales::HalvesE4M3
        ));
    }
}
