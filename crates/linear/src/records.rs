//! Rows of our own formats as they are stored in a device's memory, one record per row:
//!
//! | format | record |
//! |---|---|
//! | `intB-gN` | for each group: scale and offset in half precision, N codes |
//! | `symB-gN` | for each group: a half-precision scale, N codes |
//! | NF4 | for each group of 64: a half-precision scale of levels in 127ths, 64 codes |
//! | NVFP4 | the matrix's factor in half precision and two bytes of zeros; for each 32 columns two E4M3 scales, 32 codes |
//!
//! Codes follow each other, the lowest bits first. The numbers are the same as in the CPU's tiles, so that
//! both have the same weights: scales of NF4 and the factor of NVFP4 are rounded to half precision.

use crate::{
    Result,
    kernels::{
        Codes,
        group::{E2M1_STEPS, GroupLayout, NF4_STEPS, Nf4, NvFp4},
    },
    repack::E4M3_SHIFT,
};
use breakers_cpu::pool;
use breakers_gguf::{Encoding, GroupFormat, GroupMatrix, GroupScales, from_e4m3};

/// The fewest rows that a task of the pool writes.
const TASK_ROWS: usize = 16;

/// Columns whose scales and codes are stored together, bytes of them, and of these the bytes
/// before the codes.
pub(crate) const fn block(format: GroupFormat) -> (usize, usize, usize) {
    match format {
        GroupFormat::Affine { bits, group } => (group, 4 + group * bits as usize / 8, 4),
        GroupFormat::Symmetric { bits, group } => (group, 2 + group * bits as usize / 8, 2),
        GroupFormat::Nf4 => (64, 34, 2),
        GroupFormat::NvFp4 => (32, 18, 2),
    }
}

/// Bytes before the first block of a row.
pub(crate) const fn header(format: GroupFormat) -> usize {
    if matches!(format, GroupFormat::NvFp4) { 4 } else { 0 }
}

/// Bytes of a row of blocks of GGUF, or of a record.
///
/// # Errors
/// [`Error::Gguf`](crate::Error::Gguf) and [`Error::NoProduct`](crate::Error::NoProduct) when
/// rows are not whole blocks.
pub(crate) fn row_bytes(encoding: Encoding, n_cols: usize) -> Result<usize> {
    match encoding {
        Encoding::Gguf(format) => Ok(format.row_bytes(n_cols)?),
        Encoding::Groups(format) => {
            GroupLayout::of(format, n_cols)?;
            let (columns, bytes, _) = block(format);
            Ok(header(format) + n_cols / columns * bytes)
        }
    }
}

/// All rows of a matrix.
pub(crate) fn from_groups(groups: &GroupMatrix) -> Result<Vec<u8>> {
    let format = groups.format();
    let row_bytes = row_bytes(Encoding::Groups(format), groups.n_cols())?;
    let (columns, bytes, scale_bytes) = block(format);
    let half = |x: f32| breakers_cpu::float16::saturating(x).to_le_bytes();
    let (per_row, code_bytes) = (groups.n_cols() / columns, bytes - scale_bytes);
    let mut out = vec![0; groups.n_rows() * row_bytes];
    if out.is_empty() {
        return Ok(out);
    }
    pool::parallel_chunks_mut(&mut out, TASK_ROWS * row_bytes, |start, rows| {
        for (i, record) in rows.chunks_exact_mut(row_bytes).enumerate() {
            let (head, blocks) = record.split_at_mut(header(format));
            if let GroupScales::NvFp4 { scale, .. } = *groups.scales() {
                head[..2].copy_from_slice(&half(scale / E2M1_STEPS / E4M3_SHIFT));
            }
            let first = (start / row_bytes + i) * per_row;
            for (block_idx, block) in blocks.chunks_exact_mut(bytes).enumerate() {
                let at = first + block_idx;
                let (scale, codes) = block.split_at_mut(scale_bytes);
                match groups.scales() {
                    GroupScales::Affine(found) => {
                        scale[..2].copy_from_slice(&found[at][0].to_le_bytes());
                        scale[2..].copy_from_slice(&found[at][1].to_le_bytes());
                    }
                    GroupScales::Symmetric(found) => scale.copy_from_slice(&found[at].to_le_bytes()),
                    GroupScales::Nf4 { .. } => {
                        scale.copy_from_slice(&half(groups.scales().value(at).0 / NF4_STEPS));
                    }
                    GroupScales::NvFp4 { codes, .. } => scale.copy_from_slice(&codes[2 * at..2 * at + 2]),
                }
                codes.copy_from_slice(&groups.packed_codes()[at * code_bytes..(at + 1) * code_bytes]);
            }
        }
    });
    Ok(out)
}

/// Decodes records of rows of `n_cols` values.
///
/// # Errors
/// As [`row_bytes`], and [`Error::Gguf`](crate::Error::Gguf) when there are more or fewer rows of GGUF.
pub(crate) fn decode_rows(encoding: Encoding, n_cols: usize, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let format = match encoding {
        Encoding::Gguf(format) => return Ok(format.decode_row(bytes, out)?),
        Encoding::Groups(format) => format,
    };
    let row_bytes = row_bytes(encoding, n_cols)?;
    let (columns, block_bytes, scale_bytes) = block(format);
    let bits = usize::from(format.bits());
    let half = |bytes: &[u8], at: usize| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
    for (record, out) in bytes.chunks_exact(row_bytes.max(1)).zip(out.chunks_exact_mut(n_cols.max(1))) {
        let (head, blocks) = record.split_at(header(format));
        for (block, out) in blocks.chunks_exact(block_bytes).zip(out.chunks_exact_mut(columns)) {
            let (scales, codes) = block.split_at(scale_bytes);
            for (i, out) in out.iter_mut().enumerate() {
                let at = i * bits;
                let pair = u16::from(codes[at / 8]) | u16::from(*codes.get(at / 8 + 1).unwrap_or(&0)) << 8;
                let code = (pair >> (at % 8)) as usize & ((1 << bits) - 1);
                let level = |table: Option<[u8; 16]>, offset: i32| {
                    (i32::from(table.map_or(0, |table| table[code])) - offset) as f32
                };
                *out = match format {
                    GroupFormat::Affine { .. } => half(scales, 0) * code as f32 + half(scales, 2),
                    GroupFormat::Symmetric { bits, .. } => {
                        half(scales, 0) * (code as f32 - ((1 << (bits - 1)) - 1) as f32)
                    }
                    GroupFormat::Nf4 => half(scales, 0) * level(Nf4::TABLE, Nf4::OFFSET),
                    GroupFormat::NvFp4 => {
                        let scale = half(head, 0) * (from_e4m3(scales[i / 16]) * E4M3_SHIFT);
                        scale * level(NvFp4::TABLE, NvFp4::OFFSET)
                    }
                };
            }
        }
    }
    Ok(())
}
