//! The bits of a block: the inverse of [`Format::decode_row`](breakers_gguf::Format::decode_row).

use super::BlockScales;
use breakers_gguf::Format;

/// Packs the codes of a block, counted from the least level on.
pub(super) fn block(format: Format, scales: &BlockScales, codes: &[u8], out: &mut [u8]) {
    let factor = scales.factor.to_le_bytes();
    let offset = scales.offset.to_le_bytes();
    match format {
        Format::Q4_0 | Format::IQ4_NL => {
            out[..2].copy_from_slice(&factor);
            nibbles(codes, &mut out[2..]);
        }
        Format::Q4_1 => {
            out[..2].copy_from_slice(&factor);
            out[2..4].copy_from_slice(&offset);
            nibbles(codes, &mut out[4..]);
        }
        Format::Q5_0 => {
            out[..2].copy_from_slice(&factor);
            out[2..6].copy_from_slice(&fifth_bits(codes));
            nibbles(codes, &mut out[6..]);
        }
        Format::Q5_1 => {
            out[..2].copy_from_slice(&factor);
            out[2..4].copy_from_slice(&offset);
            out[4..8].copy_from_slice(&fifth_bits(codes));
            nibbles(codes, &mut out[8..]);
        }
        Format::Q8_0 => {
            out[..2].copy_from_slice(&factor);
            for (out, &code) in out[2..].iter_mut().zip(codes) {
                *out = code.wrapping_sub(127);
            }
        }
        Format::MXFP4 => {
            out[0] = scales.factor as u8;
            // Ascending levels back to sign and magnitude.
            let sign_first: Vec<u8> = codes.iter().map(|&c| if c < 7 { 15 - c } else { c - 7 }).collect();
            nibbles(&sign_first, &mut out[1..]);
        }
        Format::Q2_K => {
            for (i, out) in out[..16].iter_mut().enumerate() {
                *out = scales.scales[i] as u8 | scales.minima[i] << 4;
            }
            pairs(codes, &mut out[16..80]);
            out[80..82].copy_from_slice(&factor);
            out[82..84].copy_from_slice(&offset);
        }
        Format::Q3_K => {
            single_bits(codes, 2, &mut out[..32]);
            pairs(codes, &mut out[32..96]);
            out[96..108].fill(0);
            for (i, &scale) in scales.scales.iter().enumerate() {
                let code = scale.wrapping_add(32) as u8;
                out[96 + i % 8] |= (code & 15) << (4 * (i / 8));
                out[104 + i % 4] |= code >> 4 << (2 * (i / 4));
            }
            out[108..110].copy_from_slice(&factor);
        }
        Format::Q4_K => {
            out[..2].copy_from_slice(&factor);
            out[2..4].copy_from_slice(&offset);
            scales_and_minima(scales, &mut out[4..16]);
            halves(codes, &mut out[16..]);
        }
        Format::Q5_K => {
            out[..2].copy_from_slice(&factor);
            out[2..4].copy_from_slice(&offset);
            scales_and_minima(scales, &mut out[4..16]);
            single_bits(codes, 4, &mut out[16..48]);
            halves(codes, &mut out[48..]);
        }
        Format::Q6_K => {
            for (i, &code) in codes.iter().enumerate() {
                let (half, within) = (i / 128, i % 128);
                out[half * 64 + within % 64] |= (code & 15) << (within / 64 * 4);
                out[128 + half * 32 + within % 32] |= code >> 4 << (within / 32 * 2);
            }
            for (out, &scale) in out[192..208].iter_mut().zip(&scales.scales) {
                *out = scale as u8;
            }
            out[208..210].copy_from_slice(&factor);
        }
        Format::F32 | Format::F16 | Format::BF16 => debug_assert!(false, "floats have no codes"),
    }
}

/// 32 codes in 16 bytes: the low half of byte `j` is code `j`, the high half code `j + 16`.
fn nibbles(codes: &[u8], out: &mut [u8]) {
    for (j, out) in out[..16].iter_mut().enumerate() {
        *out = (codes[j] & 15) | codes[j + 16] << 4;
    }
}

/// Bit 4 of each of 32 codes.
fn fifth_bits(codes: &[u8]) -> [u8; 4] {
    codes.iter().enumerate().fold(0u32, |bits, (j, &code)| bits | u32::from(code >> 4 & 1) << j).to_le_bytes()
}

/// The low two bits of 256 codes: of each 128, bits `2 s ..` of byte `l` are code `32 s + l`.
fn pairs(codes: &[u8], out: &mut [u8]) {
    out.fill(0);
    for (i, &code) in codes.iter().enumerate() {
        out[i / 128 * 32 + i % 32] |= (code & 3) << (i % 128 / 32 * 2);
    }
}

/// Bit `at` of 256 codes: bit `b` of byte `l` is that of code `32 b + l`.
fn single_bits(codes: &[u8], at: u32, out: &mut [u8]) {
    out.fill(0);
    for (i, &code) in codes.iter().enumerate() {
        out[i % 32] |= (code >> at & 1) << (i / 32);
    }
}

/// The low four bits of 256 codes: 32 bytes hold 64 of them, low halves first.
fn halves(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes.chunks_exact(64).zip(out.chunks_exact_mut(32)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = (codes[l] & 15) | (codes[l + 32] & 15) << 4;
        }
    }
}

/// Eight six-bit scales and minima in twelve bytes.
fn scales_and_minima(scales: &BlockScales, out: &mut [u8]) {
    for i in 0..4 {
        let (scale, min) = (scales.scales[i] as u8, scales.minima[i]);
        let (high_scale, high_min) = (scales.scales[i + 4] as u8, scales.minima[i + 4]);
        out[i] = (scale & 63) | high_scale >> 4 << 6;
        out[i + 4] = (min & 63) | high_min >> 4 << 6;
        out[i + 8] = (high_scale & 15) | high_min << 4;
    }
}
