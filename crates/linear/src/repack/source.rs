//! Where a GGUF block keeps its codes and scales. The layouts are described in
//! [`Format`](breakers_gguf::Format).

use crate::kernels::{
    Codes, IQ4_NL, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, Scales, TILE,
};

/// A GGUF block: the blocks of 32 columns whose scales are stored together.
pub(super) trait Source: Codes {
    /// Bytes of the block.
    const SOURCE_BYTES: usize;

    /// The codes of 32 columns, in groups of four.
    fn groups(block: &[u8], within: usize) -> [u32; 8];

    /// Calls `put(line, bytes)` for each scale, where `line` is the byte at which its line of sixteen begins.
    fn scales(block: &[u8], put: impl FnMut(usize, &[u8]));
}

const LOW_HALF: u32 = 0x0f0f_0f0f;

/// The `i`-th 32-bit word from byte `at` on.
#[inline(always)]
fn word(block: &[u8], at: usize, i: usize) -> u32 {
    let at = at + 4 * i;
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&block[at..at + 4]);
    u32::from_le_bytes(bytes)
}

/// A group of codes for each index. (`std::array::from_fn` is not always inlined, which costs
/// a call a group.)
#[inline(always)]
fn each(group: impl Fn(usize) -> u32) -> [u32; 8] {
    let mut groups = [0; 8];
    for (g, slot) in groups.iter_mut().enumerate() {
        *slot = group(g);
    }
    groups
}

/// The codes of 16 bytes: columns 0..16 in their low halves, 16..32 in their high halves.
#[inline(always)]
fn nibbles(block: &[u8], at: usize) -> [u32; 8] {
    each(|g| word(block, at, g % 4) >> (4 * (g / 4)) & LOW_HALF)
}

/// As [`nibbles`], with the fifth bits from a 32-bit word at `high`.
#[inline(always)]
fn nibbles_and_word(block: &[u8], high: usize, at: usize) -> [u32; 8] {
    let high = word(block, high, 0);
    let mut groups = nibbles(block, at);
    for (g, group) in groups.iter_mut().enumerate() {
        // Four neighboring bits go to bit 4 of four bytes.
        let four = high >> (4 * g) & 15;
        *group |= (four.wrapping_mul(0x0020_4081) & 0x0101_0101) << 4;
    }
    groups
}

/// The eight words of the 32 bytes from `at` on, shifted and masked.
#[inline(always)]
fn bytes(block: &[u8], at: usize, shift: usize, mask: u8) -> [u32; 8] {
    let mask = u32::from_ne_bytes([mask; 4]);
    each(|g| word(block, at, g) >> shift & mask)
}

/// Adds the other codes as bits from `at` on.
#[inline(always)]
fn merge(low: [u32; 8], high: [u32; 8], at: usize) -> [u32; 8] {
    each(|g| low[g] | high[g] << at)
}

/// The line of bytes after `halves` lines of half-precision numbers.
const fn byte_line(halves: usize, line: usize) -> usize {
    (2 * halves + line) * TILE
}

macro_rules! source {
    ($name:ident: $bytes:literal bytes,
     groups: |$block:ident, $within:ident| $groups:expr,
     scales: |$from:ident, $put:ident| $scales:expr) => {
        impl Source for $name {
            const SOURCE_BYTES: usize = $bytes;
            #[inline(always)]
            fn groups($block: &[u8], $within: usize) -> [u32; 8] {
                $groups
            }
            #[inline(always)]
            fn scales($from: &[u8], #[allow(unused_mut)] mut $put: impl FnMut(usize, &[u8])) {
                $scales
            }
        }
    };
}

source!(Q4_0: 18 bytes, groups: |block, _within| nibbles(block, 2), scales: |block, put| put(0, &block[..2]));
source!(IQ4_NL: 18 bytes, groups: |block, _within| nibbles(block, 2), scales: |block, put| put(0, &block[..2]));
source!(MXFP4: 17 bytes, groups: |block, _within| nibbles(block, 1), scales: |block, put| put(0, &block[..1]));
source!(Q4_1: 20 bytes,
groups: |block, _within| nibbles(block, 4),
scales: |block, put| {
    put(0, &block[..2]);
    put(byte_line(1, 0), &block[2..4]);
});
source!(Q5_0: 22 bytes,
    groups: |block, _within| nibbles_and_word(block, 2, 6),
    scales: |block, put| put(0, &block[..2]));
source!(Q5_1: 24 bytes,
groups: |block, _within| nibbles_and_word(block, 4, 8),
scales: |block, put| {
    put(0, &block[..2]);
    put(byte_line(1, 0), &block[2..4]);
});
source!(Q8_0: 34 bytes,
    groups: |block, _within| bytes(block, 2, 0, 255).map(|group| group ^ 0x8080_8080),
    scales: |block, put| put(0, &block[..2]));
source!(Q2_K: 84 bytes,
groups: |block, within| bytes(block, 16 + within / 4 * 32, 2 * (within % 4), 3),
scales: |block, put| {
    put(0, &block[80..82]);
    put(byte_line(1, 0), &block[82..84]);
    for half in 0..16 {
        put(byte_line(2, half), &block[half..half + 1]);
    }
});
source!(Q3_K: 110 bytes,
groups: |block, within| merge(
    bytes(block, 32 + within / 4 * 32, 2 * (within % 4), 3),
    bytes(block, 0, within, 1),
    2,
),
scales: |block, put| {
    put(0, &block[108..110]);
    let packed = &block[96..108];
    for half in 0..16 {
        let low = packed[half % 8] >> (4 * (half / 8)) & 15;
        let high = packed[8 + half % 4] >> (2 * (half / 4)) & 3;
        put(byte_line(1, half), &[(low | high << 4).wrapping_sub(32)]);
    }
});
source!(Q4_K: 144 bytes,
    groups: |block, within| bytes(block, 16 + within / 2 * 32, 4 * (within % 2), 15),
    scales: |block, put| scales_and_mins(block, put));
source!(Q5_K: 176 bytes,
    groups: |block, within| merge(
        bytes(block, 48 + within / 2 * 32, 4 * (within % 2), 15),
        bytes(block, 16, within, 1),
        4,
    ),
    scales: |block, put| scales_and_mins(block, put));
source!(Q6_K: 210 bytes,
groups: |block, within| {
    let (half, quarter) = (within / 4, within % 4);
    merge(
        bytes(block, 64 * half + 32 * (quarter % 2), 4 * (quarter / 2), 15),
        bytes(block, 128 + 32 * half, 2 * quarter, 3),
        4,
    )
},
scales: |block, put| {
    put(0, &block[208..210]);
    for half in 0..16 {
        put(byte_line(1, half), &block[192 + half..193 + half]);
    }
});

/// The six-bit scales and minima of Q4_K and Q5_K, widened to bytes.
#[inline(always)]
fn scales_and_mins(block: &[u8], mut put: impl FnMut(usize, &[u8])) {
    put(0, &block[..2]);
    put(byte_line(1, 0), &block[2..4]);
    let packed = &block[4..16];
    for group in 0..8 {
        let (scale, min) = if group < 4 {
            (packed[group] & 63, packed[group + 4] & 63)
        } else {
            let low = packed[group + 4];
            ((low & 15) | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
        };
        put(byte_line(2, 2 * group), &[scale]);
        put(byte_line(2, 2 * group + 1), &[min]);
    }
}

const _: () = assert!(Scales::ByteMin.bytes() == byte_line(2, 16), "the lines fill their place");
