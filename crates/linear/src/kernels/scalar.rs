//! The reference that runs everywhere, and the decoding of single blocks.

use super::{
    BLOCK, Codes, Outputs, Scales, TILE, Tile,
    code_bits::{MAX_WORDS, unpack},
};
use crate::repack::E4M3_SHIFT;
use breakers_cpu::activations::Panel;
use breakers_gguf::{from_e4m3, half_power_of_two};

/// One row's part of a block: `scale[half] * level (+ min[half])`.
pub(crate) struct BlockRow {
    levels: [i16; BLOCK],
    scale: [f32; 2],
    min: [f32; 2],
}

/// Unpacks a block of one of the sixteen rows.
fn block_row<C: Codes>(tile: Tile<'_>, block: usize, row: usize) -> BlockRow {
    let codes = &tile.codes[block * C::BLOCK_BYTES..][..C::BLOCK_BYTES];
    let mut words = [0; MAX_WORDS];
    for (word, line) in words.iter_mut().zip(codes.chunks_exact(4 * TILE)) {
        *word = u32::from_le_bytes(line[4 * row..][..4].try_into().unwrap_or_default());
    }
    let groups = unpack::<C>(words).map(u32::to_le_bytes);
    let levels = std::array::from_fn(|k| {
        let code = groups[k / 4][k % 4];
        let code = C::TABLE.map_or(code, |table| table[usize::from(code)]);
        i16::from(code) - C::OFFSET as i16
    });
    let (scale, min) = scales::<C>(tile.scales, block, row);
    BlockRow { levels, scale, min }
}

fn scales<C: Codes>(scales: &[u8], block: usize, row: usize) -> ([f32; 2], [f32; 2]) {
    let lines = &scales[block / C::SCALES.blocks() * C::SCALES.bytes()..];
    let half = |line: usize| {
        let at = 2 * (line * TILE + row);
        half::f16::from_le_bytes([lines[at], lines[at + 1]]).to_f32()
    };
    // Bytes after `halves` lines of half-precision numbers.
    let byte = |halves: usize, line: usize| lines[(2 * halves + line) * TILE + row];
    let within = block % C::SCALES.blocks();
    match C::SCALES {
        Scales::Half | Scales::HalfOf(_) => ([half(0); 2], [0.0; 2]),
        Scales::HalfMin | Scales::HalfMinOf(_) => ([half(0); 2], [half(1); 2]),
        Scales::Exponent => ([half_power_of_two(byte(0, 0)); 2], [0.0; 2]),
        Scales::ByteMin => (
            [half(0) * f32::from(byte(2, 2 * within)); 2],
            [-(half(1) * f32::from(byte(2, 2 * within + 1))); 2],
        ),
        Scales::HalvesByte => ([0, 1].map(|i| half(0) * f32::from(byte(1, 2 * within + i) as i8)), [0.0; 2]),
        Scales::HalvesE4M3 => {
            ([0, 1].map(|i| half(0) * (from_e4m3(byte(1, 2 * within + i)) * E4M3_SHIFT)), [0.0; 2])
        }
        Scales::HalvesNibbleMin => (
            [0, 1].map(|i| half(0) * f32::from(byte(2, 2 * within + i) & 15)),
            [0, 1].map(|i| -(half(1) * f32::from(byte(2, 2 * within + i) >> 4))),
        ),
    }
}

/// Decodes a block of one row, with the bits of [`Format::decode_row`](breakers_gguf::Format::decode_row).
pub(crate) fn decode_block<C: Codes>(tile: Tile<'_>, block: usize, row: usize, out: &mut [f32; BLOCK]) {
    let BlockRow { levels, scale, min } = block_row::<C>(tile, block, row);
    for (k, (out, level)) in out.iter_mut().zip(levels).enumerate() {
        let scaled = scale[k / (BLOCK / 2)] * f32::from(level);
        *out = if C::SCALES.has_min() { scaled + min[k / (BLOCK / 2)] } else { scaled };
    }
}

/// # Safety
/// - None beyond those of [`CodesKernel`](super::CodesKernel); this one is safe and checks its indices.
pub(super) unsafe fn multiply<C: Codes>(tile: Tile<'_>, panel: Panel<'_>, out: &mut Outputs) {
    let out = &mut out[..panel.n_rows];
    out.fill([0.0; TILE]);
    let (blocks, _) = panel.quants.as_chunks::<BLOCK>();
    for (block, inputs) in blocks.chunks_exact(panel.n_rows).enumerate() {
        for lane in 0..TILE {
            let weights = block_row::<C>(tile, block, lane);
            for (row, input) in inputs.iter().enumerate() {
                let at = block * panel.n_rows + row;
                out[row][lane] = add::<C>(out[row][lane], &weights, input, panel, at);
            }
        }
    }
}

/// Adds the product of one block, in the order that every kernel keeps.
#[inline(always)]
fn add<C: Codes>(sum: f32, weights: &BlockRow, input: &[i8; BLOCK], panel: Panel<'_>, at: usize) -> f32 {
    let BlockRow { levels, scale, min } = weights;
    let dot = |range: std::ops::Range<usize>| -> i32 {
        range.map(|k| i32::from(levels[k]) * i32::from(input[k])).sum()
    };
    if C::SCALES.per_half() {
        let halves = [dot(0..BLOCK / 2), dot(BLOCK / 2..BLOCK)].map(|dot| dot as f32);
        let mut t = halves[1].mul_add(scale[1], halves[0] * scale[0]);
        if C::SCALES.has_min() {
            for (min, sum) in min.iter().zip(panel.negative_half_sums[at]) {
                t = (-min).mul_add(sum as f32, t);
            }
        }
        t.mul_add(panel.scales[at], sum)
    } else {
        let sum = (dot(0..BLOCK) as f32).mul_add(scale[0] * panel.scales[at], sum);
        if C::SCALES.has_min() { min[0].mul_add(panel.scaled_sums[at], sum) } else { sum }
    }
}
