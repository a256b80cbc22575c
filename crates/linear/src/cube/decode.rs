//! Decoding in registers, with the bits of [`Format::decode_row`] (but for subnormal results, which
//! GPUs may flush to zero): every product of scales and codes is exact in `f32`, so fused and
//! separate operations agree.
//!
//! The unit of work is a granule of eight values that share few words: two runs of four
//! neighbors, [`gap`] apart.

// `div_ceil` is not known inside `#[cube]` functions.
#![allow(clippy::manual_div_ceil)]

use super::{at_most, decode_groups};
use crate::{
    kernels::{self, Codes},
    records,
};
use breakers_gguf::{Encoding, Format};
use cubecl::prelude::*;

/// Values in a granule.
pub(super) const GRANULE: usize = 8;

/// From a granule's first run of four values to its second.
const fn gap(encoding: Encoding) -> usize {
    let Encoding::Gguf(format) = encoding else { return 4 };
    match format {
        Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0 => 4,
        Format::Q6_K => 64,
        Format::Q2_K | Format::Q3_K | Format::Q4_K | Format::Q5_K => 32,
        _ => 16,
    }
}

/// Column of value `v` of a granule, counted from the granule's first.
const fn offset(encoding: Encoding, v: usize) -> usize {
    v % 4 + v / 4 * gap(encoding)
}

/// Whether blocks are single values, so that the last granule of a row may be a part of one.
const fn is_plain(encoding: Encoding) -> bool {
    matches!(encoding, Encoding::Gguf(Format::F32 | Format::F16 | Format::BF16))
}

/// Columns of a block, its bytes, and the bytes before the first block of a row.
const fn blocks(encoding: Encoding) -> (usize, usize, usize) {
    match encoding {
        Encoding::Gguf(format) => (format.block_size(), format.block_bytes(), 0),
        Encoding::Groups(format) => {
            let (columns, bytes, _) = records::block(format);
            (columns, bytes, records::header(format))
        }
    }
}

/// Whether every block of a matrix begins on a word.
const fn on_words(format: Format) -> bool {
    format.block_bytes().is_multiple_of(4)
}

/// Bytes before the four-bit codes of a block of 32 values, and before its fifth bits.
const fn header(format: Format) -> (usize, usize) {
    match format {
        Format::Q4_1 => (4, 0),
        Format::Q5_0 => (6, 2),
        Format::Q5_1 => (8, 4),
        Format::MXFP4 => (1, 0),
        _ => (2, 0),
    }
}

/// Levels of four-bit codes and what is added to them in the table.
#[derive(Clone, Copy)]
pub(super) struct Table {
    levels: [u8; 16],
    offset: i32,
}

impl Table {
    /// The table of a format that has one.
    pub(super) fn of<C: Codes>() -> Self {
        Self { levels: C::TABLE.expect("a format of levels"), offset: C::OFFSET }
    }

    fn of_format(format: Format) -> Self {
        match format {
            Format::IQ4_NL => Self::of::<kernels::IQ4_NL>(),
            _ => Self::of::<kernels::MXFP4>(),
        }
    }

    /// Four entries as the bytes of a word.
    fn word(self, first: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.levels[first..first + 4]);
        u32::from_le_bytes(bytes)
    }
}

/// Granules in a row.
#[cube]
pub(super) fn granules(n_cols: usize) -> usize {
    (n_cols + comptime!(GRANULE - 1)) / comptime!(GRANULE)
}

/// Bytes of a row.
#[cube]
pub(super) fn row_bytes(n_cols: usize, #[comptime] encoding: Encoding) -> usize {
    n_cols / comptime!(blocks(encoding).0) * comptime!(blocks(encoding).1) + comptime!(blocks(encoding).2)
}

/// The first column of a granule.
#[cube]
pub(super) fn first_column(granule: usize, #[comptime] encoding: Encoding) -> usize {
    if comptime!(gap(encoding) == 4) {
        granule * 8
    } else if comptime!(gap(encoding) == 16) {
        granule / 4 * 32 + granule % 4 * 4
    } else if comptime!(gap(encoding) == 32) {
        granule / 8 * 64 + granule % 8 * 4
    } else {
        granule / 16 * 128 + granule % 16 * 4
    }
}

/// Value `v` of a granule of activations whose row begins at `start`; zero beyond the row's end.
#[cube]
pub(super) fn activation(
    x: &Tensor<f32>,
    start: usize,
    column: usize,
    n_cols: usize,
    #[comptime] v: usize,
    #[comptime] encoding: Encoding,
) -> f32 {
    let column = column + comptime!(offset(encoding, v));
    if comptime!(is_plain(encoding)) {
        let value = x[start + at_most(column, n_cols - 1)];
        select(column < n_cols, value, 0.0f32)
    } else {
        x[start + column]
    }
}

/// Decodes a granule of the row that begins at byte `row`, to `out[at..at + 8]`; zeros beyond the row's end.
#[cube]
pub(super) fn decode(
    words: &Tensor<u32>,
    row: usize,
    granule: usize,
    n_cols: usize,
    out: &mut Array<f32>,
    #[comptime] at: usize,
    #[comptime] encoding: Encoding,
) {
    match comptime!(encoding) {
        Encoding::Gguf(format) => decode_blocks(words, row, granule, n_cols, out, at, format),
        Encoding::Groups(format) => decode_groups::decode(words, row, granule, out, at, format),
    }
}

#[cube]
fn decode_blocks(
    words: &Tensor<u32>,
    row: usize,
    granule: usize,
    n_cols: usize,
    out: &mut Array<f32>,
    #[comptime] at: usize,
    #[comptime] format: Format,
) {
    if comptime!(format.block_size() == 1) {
        plain(words, row, granule, n_cols, out, at, format);
    } else if comptime!(matches!(format, Format::Q8_0)) {
        q8_0(words, row, granule, out, at);
    } else if comptime!(format.block_size() == 32) {
        four_or_five_bits(words, row, granule, out, at, format);
    } else if comptime!(matches!(format, Format::Q4_K | Format::Q5_K)) {
        q4_or_q5_k(words, row, granule, out, at, format);
    } else if comptime!(matches!(format, Format::Q6_K)) {
        q6_k(words, row, granule, out, at);
    } else {
        q2_or_q3_k(words, row, granule, out, at, format);
    }
}

#[cube]
fn plain(
    words: &Tensor<u32>,
    row: usize,
    granule: usize,
    n_cols: usize,
    out: &mut Array<f32>,
    #[comptime] at: usize,
    #[comptime] format: Format,
) {
    #[unroll]
    for v in 0..8usize {
        let column = granule * 8 + v;
        let byte = row + at_most(column, n_cols - 1) * comptime!(format.block_bytes());
        let value = if comptime!(matches!(format, Format::F32)) {
            f32::reinterpret(words[byte / 4])
        } else if comptime!(matches!(format, Format::F16)) {
            half_at(words, byte)
        } else {
            f32::reinterpret(bits_at(words, byte) << 16u32)
        };
        out[at + v] = select(column < n_cols, value, 0.0f32);
    }
}

#[cube]
fn q8_0(words: &Tensor<u32>, row: usize, granule: usize, out: &mut Array<f32>, #[comptime] at: usize) {
    let block = row + granule / 4 * 34;
    let d = half_at(words, block);
    #[unroll]
    for run in 0..2usize {
        let codes = word_at(words, block + 2 + granule % 4 * 8 + run * 4, false);
        #[unroll]
        for v in 0..4usize {
            out[at + run * 4 + v] = signed(codes >> comptime!(v as u32 * 8)) * d;
        }
    }
}

#[cube]
fn four_or_five_bits(
    words: &Tensor<u32>,
    row: usize,
    granule: usize,
    out: &mut Array<f32>,
    #[comptime] at: usize,
    #[comptime] format: Format,
) {
    let block = row + granule / 4 * comptime!(format.block_bytes());
    let i = granule % 4;
    let codes = word_at(words, block + comptime!(header(format).0) + i * 4, comptime!(on_words(format)));
    let d = if comptime!(matches!(format, Format::MXFP4)) {
        half_power_of_two(byte_at(words, block))
    } else {
        half_at(words, block)
    };
    let m = if comptime!(matches!(format, Format::Q4_1 | Format::Q5_1)) {
        half_at(words, block + 2)
    } else {
        0.0f32.runtime()
    };
    let fifths = if comptime!(header(format).1 > 0) {
        word_at(words, block + comptime!(header(format).1), comptime!(on_words(format))) >> (i * 4) as u32
    } else {
        0u32.runtime()
    };
    #[unroll]
    for run in 0..2usize {
        #[unroll]
        for v in 0..4usize {
            let code = (codes >> comptime!((v * 8 + run * 4) as u32)) & 15u32;
            let value = if comptime!(matches!(format, Format::Q4_0)) {
                (f32::cast_from(code) - 8.0f32) * d
            } else if comptime!(matches!(format, Format::Q4_1)) {
                f32::cast_from(code) * d + m
            } else if comptime!(matches!(format, Format::IQ4_NL | Format::MXFP4)) {
                level(code, comptime!(Table::of_format(format))) * d
            } else {
                let fifth = (fifths >> comptime!((v + run * 16) as u32)) & 1u32;
                let code = f32::cast_from(code | (fifth << 4u32));
                if comptime!(matches!(format, Format::Q5_0)) { (code - 16.0f32) * d } else { code * d + m }
            };
            out[at + run * 4 + v] = value;
        }
    }
}

#[cube]
fn q4_or_q5_k(
    words: &Tensor<u32>,
    row: usize,
    granule: usize,
    out: &mut Array<f32>,
    #[comptime] at: usize,
    #[comptime] format: Format,
) {
    let block = row + granule / 32 * comptime!(format.block_bytes());
    let (pair, i) = (granule % 32 / 8, granule % 8 * 4);
    let halves = words[block / 4];
    let (d, d_min) = (half(halves & 0xFFFFu32), half(halves >> 16u32));
    let first = if comptime!(matches!(format, Format::Q5_K)) { block + 48 } else { block + 16 };
    let codes = words[(first + pair * 32 + i) / 4];
    let fifths = if comptime!(matches!(format, Format::Q5_K)) {
        words[(block + 16 + i) / 4] >> (pair * 2) as u32
    } else {
        0u32.runtime()
    };
    // Six-bit scales and minima: groups 0..4 lie in the low bits of two words, the others in a third word and
    // in the high bits of the first two.
    let (scales, mins, rest) = (words[block / 4 + 1], words[block / 4 + 2], words[block / 4 + 3]);
    #[unroll]
    for run in 0..2usize {
        let group = pair * 2 + run;
        let shift = (group % 4 * 8) as u32;
        let (low_scale, low_min, high) = (scales >> shift, mins >> shift, rest >> shift);
        let upper = group >= 4;
        let scale = select(upper, (high & 15u32) | ((low_scale >> 2u32) & 48u32), low_scale & 63u32);
        let min = select(upper, ((high >> 4u32) & 15u32) | ((low_min >> 2u32) & 48u32), low_min & 63u32);
        let (scale, min) = (d * f32::cast_from(scale), d_min * f32::cast_from(min));
        #[unroll]
        for v in 0..4usize {
            let low = (codes >> comptime!((v * 8 + run * 4) as u32)) & 15u32;
            let code = if comptime!(matches!(format, Format::Q5_K)) {
                low | (((fifths >> comptime!((v * 8 + run) as u32)) & 1u32) << 4u32)
            } else {
                low
            };
            out[at + run * 4 + v] = scale * f32::cast_from(code) - min;
        }
    }
}

#[cube]
fn q6_k(words: &Tensor<u32>, row: usize, granule: usize, out: &mut Array<f32>, #[comptime] at: usize) {
    let block = row + granule / 32 * 210;
    let (part, i) = (granule % 32 / 16, granule % 16);
    let d = half_at(words, block + 208);
    let low = word_at(words, block + part * 64 + i * 4, false);
    let high = word_at(words, block + 128 + part * 32 + i % 8 * 4, false) >> (i / 8 * 2) as u32;
    #[unroll]
    for run in 0..2usize {
        let scale = d * signed(byte_at(words, block + 192 + part * 8 + i / 4 + run * 4));
        #[unroll]
        for v in 0..4usize {
            let low = (low >> comptime!((v * 8 + run * 4) as u32)) & 15u32;
            let high = (high >> comptime!((v * 8 + run * 4) as u32)) & 3u32;
            out[at + run * 4 + v] = scale * (f32::cast_from(low | (high << 4u32)) - 32.0f32);
        }
    }
}

#[cube]
fn q2_or_q3_k(
    words: &Tensor<u32>,
    row: usize,
    granule: usize,
    out: &mut Array<f32>,
    #[comptime] at: usize,
    #[comptime] format: Format,
) {
    let block = row + granule / 32 * comptime!(format.block_bytes());
    // Runs are the even and the odd one of a pair of 32 values.
    let (pair, i) = (granule % 32 / 8, granule % 8);
    let codes_start = if comptime!(matches!(format, Format::Q3_K)) { block + 32 } else { block + 16 };
    let codes = word_at(words, codes_start + pair / 2 * 32 + i * 4, comptime!(on_words(format)))
        >> (pair % 2 * 4) as u32;
    #[unroll]
    for run in 0..2usize {
        let group = pair * 4 + run * 2 + i / 4;
        if comptime!(matches!(format, Format::Q3_K)) {
            let d = half_at(words, block + 108);
            let low = byte_at(words, block + 96 + group % 8) >> (group / 8 * 4) as u32;
            let high = byte_at(words, block + 104 + group % 4) >> (group / 4 * 2) as u32;
            let scale = d * (f32::cast_from((low & 15u32) | ((high & 3u32) << 4u32)) - 32.0f32);
            let thirds = word_at(words, block + i * 4, false) >> (pair * 2 + run) as u32;
            #[unroll]
            for v in 0..4usize {
                let low = (codes >> comptime!((v * 8 + run * 2) as u32)) & 3u32;
                let third = (thirds >> comptime!((v * 8) as u32)) & 1u32;
                out[at + run * 4 + v] = scale * (f32::cast_from(low | (third << 2u32)) - 4.0f32);
            }
        } else {
            let (d, d_min) = (half_at(words, block + 80), half_at(words, block + 82));
            let scales = byte_at(words, block + group);
            let scale = d * f32::cast_from(scales & 15u32);
            let min = d_min * f32::cast_from(scales >> 4u32);
            #[unroll]
            for v in 0..4usize {
                let code = (codes >> comptime!((v * 8 + run * 2) as u32)) & 3u32;
                out[at + run * 4 + v] = scale * f32::cast_from(code) - min;
            }
        }
    }
}

/// The level that a four-bit code stands for.
#[cube]
pub(super) fn level(code: u32, #[comptime] table: Table) -> f32 {
    let lower = select(code < 4u32, comptime!(table.word(0)).runtime(), comptime!(table.word(4)).runtime());
    let upper = select(code < 12u32, comptime!(table.word(8)).runtime(), comptime!(table.word(12)).runtime());
    let four = select(code < 8u32, lower, upper);
    f32::cast_from((four >> ((code & 3u32) * 8u32)) & 255u32) - comptime!(table.offset as f32)
}

/// The low byte as a signed number.
#[cube]
fn signed(byte: u32) -> f32 {
    f32::cast_from((byte & 255u32) ^ 128u32) - 128.0f32
}

/// `2^(exponent - 127) / 2`
#[cube]
fn half_power_of_two(exponent: u32) -> f32 {
    let subnormal = 0x0020_0000u32 << (exponent & 1u32);
    f32::reinterpret(select(exponent < 2u32, subnormal, (exponent - 1u32) << 23u32))
}

/// The number that 16 bits stand for in half precision.
#[cube]
fn half(bits: u32) -> f32 {
    // Exponent and fraction in their new places; the exponent's bias grows by 112.
    let magnitude = (bits & 0x7FFFu32) << 13u32;
    let normal = magnitude + 0x3800_0000u32;
    // Infinities and NaN keep the largest exponent.
    let finite_or_not = select(magnitude >= 0x0F80_0000u32, normal + 0x3800_0000u32, normal);
    // A subnormal number is its fraction with an exponent of 2^-14, minus the leading one that this adds.
    let subnormal = f32::reinterpret(magnitude + 0x3880_0000u32) - f32::reinterpret(0x3880_0000u32.runtime());
    let value = select(magnitude < 0x0080_0000u32, u32::reinterpret(subnormal), finite_or_not);
    f32::reinterpret(value | ((bits & 0x8000u32) << 16u32))
}

/// The half-precision number at an even byte.
#[cube]
pub(super) fn half_at(words: &Tensor<u32>, byte: usize) -> f32 {
    half(bits_at(words, byte))
}

/// The 16 bits at an even byte.
#[cube]
fn bits_at(words: &Tensor<u32>, byte: usize) -> u32 {
    (words[byte / 4] >> (byte % 4 * 8) as u32) & 0xFFFFu32
}

#[cube]
pub(super) fn byte_at(words: &Tensor<u32>, byte: usize) -> u32 {
    (words[byte / 4] >> (byte % 4 * 8) as u32) & 255u32
}

/// Four bytes, `on_word` when they are known to begin on a word.
#[cube]
fn word_at(words: &Tensor<u32>, byte: usize, #[comptime] on_word: bool) -> u32 {
    if comptime!(on_word) { words[byte / 4] } else { bytes_at(words, byte, 4usize) }
}

/// Up to four bytes; the bits above them in the result are unspecified.
#[cube]
pub(super) fn bytes_at(words: &Tensor<u32>, byte: usize, #[comptime] n: usize) -> u32 {
    let shift = (byte % 4 * 8) as u32;
    // The word of the last byte, shifted in two steps since a shift by 32 is not defined.
    let next = words[(byte + comptime!(n - 1)) / 4] << (31u32 - shift);
    (words[byte / 4] >> shift) | (next << 1u32)
}
