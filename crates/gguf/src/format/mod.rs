//! The formats that rows of weights are stored in.

mod block32;
mod codebook;
mod float;
mod super_block;

use crate::{Error, Result};
pub use codebook::{IQ4_NL_LEVELS, MXFP4_LEVELS, half_power_of_two};

/// How rows of weights are packed. A row is a sequence of blocks, and a block is a number of values with
/// shared scales.
///
/// ```
/// use breakers_gguf::Format;
///
/// # fn main() -> Result<(), breakers_gguf::Error> {
/// // A block of Q8_0 is a 16-bit scale and 32 signed bytes.
/// assert_eq!(Format::Q8_0.row_bytes(64)?, 2 * 34);
/// let mut block = vec![0u8; 34];
/// block[..2].copy_from_slice(&0x3800u16.to_le_bytes()); // 0.5 as a half
/// block[2] = 6;
/// block[33] = (-3i8) as u8;
/// let mut values = [0.0; 32];
/// Format::Q8_0.decode_row(&block, &mut values)?;
/// assert_eq!((values[0], values[31]), (3.0, -1.5));
/// # Ok(())
/// # }
/// ```
///
/// # Memory
/// Bits per value are `8 * block_bytes / block_size`:
///
/// | format | values per block | bytes per block | bits per value |
/// |---|---|---|---|
/// | F32 | 1 | 4 | 32 |
/// | F16, BF16 | 1 | 2 | 16 |
/// | Q8_0 | 32 | 34 | 8.5 |
/// | Q6_K | 256 | 210 | 6.5625 |
/// | Q5_1 | 32 | 24 | 6 |
/// | Q5_0 | 32 | 22 | 5.5 |
/// | Q5_K | 256 | 176 | 5.5 |
/// | Q4_1 | 32 | 20 | 5 |
/// | Q4_0, IQ4_NL | 32 | 18 | 4.5 |
/// | Q4_K | 256 | 144 | 4.5 |
/// | MXFP4 | 32 | 17 | 4.25 |
/// | Q3_K | 256 | 110 | 3.4375 |
/// | Q2_K | 256 | 84 | 2.625 |
///
/// # Source
/// Block layouts: `ggml/src/ggml-common.h` of ggml-org/llama.cpp; arithmetic: its `ggml-quants.c`, with
/// every operation rounded to `f32` (no fused multiply-add).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
// Exhaustive on purpose: a new format needs kernels, and the compiler shows where.
#[allow(non_camel_case_types)] // these are the formats' names
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// 4 bits, one scale: `d (q - 8)`.
    Q4_0,
    /// 4 bits, scale and minimum: `d q + m`.
    Q4_1,
    /// 5 bits, one scale: `d (q - 16)`.
    Q5_0,
    /// 5 bits, scale and minimum: `d q + m`.
    Q5_1,
    /// 8 bits, one scale: `d q`.
    Q8_0,
    /// 2 bits in groups of 16 with 4-bit scales and minima: `d s q - m t`.
    Q2_K,
    /// 3 bits in groups of 16 with 6-bit scales: `d (s - 32) (q - 4)`.
    Q3_K,
    /// 4 bits in groups of 32 with 6-bit scales and minima: `d s q - m t`.
    Q4_K,
    /// 5 bits in groups of 32 with 6-bit scales and minima: `d s q - m t`.
    Q5_K,
    /// 6 bits in groups of 16 with 8-bit scales: `d s (q - 32)`.
    Q6_K,
    /// 4 bits into a fixed table of 16 unevenly spaced levels, one scale.
    IQ4_NL,
    /// 4-bit floating point (1 sign, 2 exponent, 1 mantissa) with a power of two as scale (OCP MX).
    MXFP4,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 15] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2_K,
        Format::Q3_K,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::IQ4_NL,
        Format::MXFP4,
    ];

    /// Values in a block.
    pub const fn block_size(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Q8_0 => 32,
            Format::IQ4_NL | Format::MXFP4 => 32,
            Format::Q2_K | Format::Q3_K | Format::Q4_K | Format::Q5_K | Format::Q6_K => 256,
        }
    }

    /// Bytes in a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q4_0 | Format::IQ4_NL => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q2_K => 84,
            Format::Q3_K => 110,
            Format::Q4_K => 144,
            Format::Q5_K => 176,
            Format::Q6_K => 210,
            Format::MXFP4 => 17,
        }
    }

    /// The name, as GGUF spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Q8_0 => "Q8_0",
            Format::Q2_K => "Q2_K",
            Format::Q3_K => "Q3_K",
            Format::Q4_K => "Q4_K",
            Format::Q5_K => "Q5_K",
            Format::Q6_K => "Q6_K",
            Format::IQ4_NL => "IQ4_NL",
            Format::MXFP4 => "MXFP4",
        }
    }

    /// GGUF's number for the format.
    pub const fn to_ggml(self) -> u32 {
        match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::Q4_0 => 2,
            Format::Q4_1 => 3,
            Format::Q5_0 => 6,
            Format::Q5_1 => 7,
            Format::Q8_0 => 8,
            Format::Q2_K => 10,
            Format::Q3_K => 11,
            Format::Q4_K => 12,
            Format::Q5_K => 13,
            Format::Q6_K => 14,
            Format::IQ4_NL => 20,
            Format::BF16 => 30,
            Format::MXFP4 => 39,
        }
    }

    /// The format with this GGUF number, or `None` if this crate does not decode it.
    pub fn from_ggml(type_id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.to_ggml() == type_id)
    }

    /// The name of a type that GGUF defines but this crate does not decode.
    pub(crate) fn foreign_name(type_id: u32) -> &'static str {
        match type_id {
            4 => "Q4_2, removed",
            5 => "Q4_3, removed",
            9 => "Q8_1",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            31..=33 => "Q4_0 in a removed interleaving",
            34 => "TQ1_0",
            35 => "TQ2_0",
            36..=38 => "IQ4_NL in a removed interleaving",
            40 => "NVFP4",
            41 => "Q1_0",
            _ => "unknown",
        }
    }

    /// Bytes of a row of `n_cols` values.
    ///
    /// # Errors
    /// [`Error::RowLength`] when a row is not whole blocks, [`Error::CountTooLarge`] when its size overflows.
    pub fn row_bytes(self, n_cols: usize) -> Result<usize> {
        let block_size = self.block_size();
        if !n_cols.is_multiple_of(block_size) {
            return Err(Error::RowLength { format: self, block_size, found: n_cols });
        }
        (n_cols / block_size).checked_mul(self.block_bytes()).ok_or(Error::CountTooLarge {
            what: "values in a row",
            position: 0,
            found: n_cols as u64,
            limit: (usize::MAX / self.block_bytes()) as u64,
        })
    }

    /// Decodes a row, or several rows that follow each other, bit for bit as ggml does.
    ///
    /// # Errors
    /// [`Error::RowLength`] when `out` is not whole blocks, [`Error::Length`] when `bytes` holds more or
    /// fewer values than `out`.
    pub fn decode_row(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        let expected = self.row_bytes(out.len())?;
        if bytes.len() != expected {
            return Err(Error::Length { what: "bytes of a row", expected, found: bytes.len() });
        }
        match self {
            Format::F32 => each_block(bytes, out, float::f32),
            Format::F16 => each_block(bytes, out, float::f16),
            Format::BF16 => each_block(bytes, out, float::bf16),
            Format::Q4_0 => each_block(bytes, out, block32::q4_0),
            Format::Q4_1 => each_block(bytes, out, block32::q4_1),
            Format::Q5_0 => each_block(bytes, out, block32::q5_0),
            Format::Q5_1 => each_block(bytes, out, block32::q5_1),
            Format::Q8_0 => each_block(bytes, out, block32::q8_0),
            Format::Q2_K => each_block(bytes, out, super_block::q2_k),
            Format::Q3_K => each_block(bytes, out, super_block::q3_k),
            Format::Q4_K => each_block(bytes, out, super_block::q4_k),
            Format::Q5_K => each_block(bytes, out, super_block::q5_k),
            Format::Q6_K => each_block(bytes, out, super_block::q6_k),
            Format::IQ4_NL => each_block(bytes, out, codebook::iq4_nl),
            Format::MXFP4 => each_block(bytes, out, codebook::mxfp4),
        }
        Ok(())
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Applies a block decoder to all blocks. `BYTES` and `SIZE` come from the decoder's signature, so lengths
/// within a block are known at compile time.
#[inline]
fn each_block<const BYTES: usize, const SIZE: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; SIZE]),
) {
    let (blocks, rest) = bytes.as_chunks::<BYTES>();
    let (outs, out_rest) = out.as_chunks_mut::<SIZE>();
    debug_assert!(rest.is_empty() && out_rest.is_empty() && blocks.len() == outs.len());
    for (block, out) in blocks.iter().zip(outs) {
        decode(block, out);
    }
}

/// The half-precision number at `bytes[at..at + 2]`.
#[inline]
fn half(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
