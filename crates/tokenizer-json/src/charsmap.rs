//! SentencePiece's compiled normalization rules (`precompiled_charsmap`), checked.
//!
//! They are a double-array trie over bytes, whose leaves are positions in a block of texts. The reader in
//! `tokenizers` follows the offsets without checking bounds, so every position that a text can lead to is
//! visited here once.
//!
//! # Source
//! `normalizer.cc` of google/sentencepiece for the layout (a 32-bit size, the trie, the texts), `darts.h` of
//! s-yata/darts-clone for the units.

use serde_json::Value;

use crate::error::unexpected;
use crate::{Error, Result};

/// The longest replacement in bytes; Unicode has none above 33.
const TEXT_BYTES: usize = 64;

/// Checks the rules, which are base 64 in the file.
pub(crate) fn check(charsmap: &Value) -> Result<()> {
    let wrong = |found: &str| -> Error {
        unexpected("normalizer.precompiled_charsmap", found, "SentencePiece's rules in base 64")
    };
    let text = charsmap.as_str().ok_or_else(|| wrong("no text"))?;
    let bytes = decode_base64(text).ok_or_else(|| wrong("not base 64"))?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| wrong("shorter than its size"))?;
    let size = u32::from_le_bytes(*size) as usize;
    if size < 4 || !size.is_multiple_of(4) || size > rest.len() {
        return Err(wrong("a trie that does not fit the data"));
    }
    let (trie, texts) = rest.split_at(size);
    let units: Vec<u32> = trie.as_chunks::<4>().0.iter().map(|&unit| u32::from_le_bytes(unit)).collect();
    let texts = std::str::from_utf8(texts).map_err(|_| wrong("texts that are not UTF-8"))?;
    if leads_outside(&units, texts) {
        return Err(wrong("a trie that leads out of the data"));
    }
    Ok(())
}

/// Whether some text leads to a unit or a replacement that does not exist.
fn leads_outside(units: &[u32], texts: &str) -> bool {
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let mut visited = vec![false; units.len()];
    let mut bases = vec![offset(units[0])];
    while let Some(base) = bases.pop() {
        for byte in 1..=255usize {
            let at = base ^ byte;
            let Some(&unit) = units.get(at) else { return true };
            if unit & ((1 << 31) | 0xff) != byte as u32 || std::mem::replace(&mut visited[at], true) {
                continue;
            }
            let next = at ^ offset(unit);
            let is_leaf = (unit >> 8) & 1 == 1;
            if is_leaf {
                let Some(&leaf) = units.get(next) else { return true };
                let text = texts.get((leaf & !(1 << 31)) as usize..);
                if text.is_none_or(|text| {
                    text.bytes().take(TEXT_BYTES + 1).take_while(|&b| b != 0).count() > TEXT_BYTES
                }) {
                    return true;
                }
            }
            bases.push(next);
        }
    }
    false
}

/// Standard base 64, with or without padding.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    let mut out = Vec::with_capacity(digits.len() / 4 * 3 + 3);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for &digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..group.len().max(1)]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_64_is_decoded() {
        // RFC 4648, section 10.
        for (text, expected) in [
            ("", Some("")),
            ("Zg==", Some("f")),
            ("Zm8=", Some("fo")),
            ("Zm9v", Some("foo")),
            ("Zm9vYg==", Some("foob")),
            ("Zm9vYmE=", Some("fooba")),
            ("Zm9vYmFy", Some("foobar")),
            ("Zm9*", None),
        ] {
            assert_eq!(decode_base64(text), expected.map(|e| e.as_bytes().to_vec()), "{text}");
        }
    }

    #[test]
    fn tries_that_lead_outside_are_found() {
        // A root whose children start at unit 256, one child `a` there, and the leaf of `a` at 512.
        let root = 256 << 10;
        let child = |to: u32| ((256 ^ u32::from(b'a') ^ to) << 10) | 1 << 8 | u32::from(b'a');
        let units = |child: u32, value: u32| {
            let mut units = vec![0u32; 1024];
            (units[0], units[256 ^ b'a' as usize], units[512]) = (root, child, 1 << 31 | value);
            units
        };
        assert!(!leads_outside(&units(child(512), 2), "ab\0"));
        assert!(!leads_outside(&units(child(512), 3), "ab\0"), "an empty text at the end");
        assert!(leads_outside(&units(child(512), 4), "ab\0"), "no such text");
        assert!(leads_outside(&units(child(512), 1), "é\0"), "within a letter");
        assert!(leads_outside(&units(child(4096), 2), "ab\0"), "no such unit");
        assert!(leads_outside(&[0], ""), "too short for one byte");
    }
}
