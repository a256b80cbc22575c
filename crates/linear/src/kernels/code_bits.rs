//! How codes of fewer than eight bits share the four-byte groups of a block.
//!
//! A block of one row is eight groups `g` of four codes, one code in each byte `i` of a 32-bit number.
//! Packed, it is as many 32-bit words as a code has bits:
//!
//! | bits | words |
//! |---|---|
//! | 8 | `g` |
//! | 4 | low half of word `g % 4` for groups 0..4, high half for groups 4..8 |
//! | 5 | as 4 bits, then one word: bit `g` of byte `i` |
//! | 6 | as 4 bits, then two words: bits `2 (g % 4) ..` of byte `i` of word `g / 4` |
//! | 2 | two words: bits `2 (g % 4) ..` of byte `i` of word `g / 4` |
//! | 3 | word `g / 2` from bit 0 or 3 on for groups 0..6; of groups 6 and 7 the low bits at bit 6 of words 0 and 1, the high ones in word 2 |

use super::Codes;

/// Most words that a packed block of one row takes.
pub(crate) const MAX_WORDS: usize = 8;

const LOW_HALF: u32 = 0x0f0f_0f0f;

/// Packs the eight groups of codes of one row; the first `C::BITS` words are used.
#[inline(always)]
pub(crate) fn pack<C: Codes>(groups: [u32; 8]) -> [u32; MAX_WORDS] {
    let mut words = [0; MAX_WORDS];
    match C::BITS {
        8 => return groups,
        4..=6 => {
            for j in 0..4 {
                words[j] = (groups[j] & LOW_HALF) | (groups[j + 4] & LOW_HALF) << 4;
            }
            match C::BITS {
                5 => words[4] = bits(groups, 4),
                6 => [words[4], words[5]] = pairs(groups, 4),
                _ => {}
            }
        }
        3 => {
            for j in 0..3 {
                words[j] = groups[2 * j] | groups[2 * j + 1] << 3;
            }
            for j in 0..2 {
                words[j] |= (groups[6 + j] & 0x0303_0303) << 6;
                words[2] |= (groups[6 + j] >> 2 & 0x0101_0101) << (6 + j);
            }
        }
        _ => [words[0], words[1]] = pairs(groups, 0),
    }
    words
}

/// Bit `at` of each code.
#[inline(always)]
fn bits(groups: [u32; 8], at: u32) -> u32 {
    (0..8).fold(0, |word, g| word | (groups[g] >> at & 0x0101_0101) << g)
}

/// Bits `at` and `at + 1` of each code.
#[inline(always)]
fn pairs(groups: [u32; 8], at: u32) -> [u32; 2] {
    [0, 4].map(|first| (0..4).fold(0, |word, g| word | (groups[first + g] >> at & 0x0303_0303) << (2 * g)))
}

/// The inverse of [`pack`].
#[inline(always)]
pub(crate) fn unpack<C: Codes>(words: [u32; MAX_WORDS]) -> [u32; 8] {
    if C::BITS == 8 {
        return words;
    }
    std::array::from_fn(|g| {
        let (high_half, pair) = (g / 4, 2 * (g % 4));
        let bit = |word: u32| word >> g & 0x0101_0101;
        let pair = |word: u32| word >> pair & 0x0303_0303;
        match C::BITS {
            2 => pair(words[high_half]),
            3 if g < 6 => words[g / 2] >> (3 * (g % 2)) & 0x0707_0707,
            3 => (words[g - 6] >> 6 & 0x0303_0303) | (words[2] >> g & 0x0101_0101) << 2,
            bits => {
                let low = words[g % 4] >> (4 * high_half) & LOW_HALF;
                match bits {
                    5 => low | bit(words[4]) << 4,
                    6 => low | pair(words[4 + high_half]) << 4,
                    _ => low,
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::*;
    use proptest::prelude::*;

    fn check<C: Codes>(groups: [u32; 8]) {
        let mask = u32::from_ne_bytes([((1u16 << C::BITS) - 1) as u8; 4]);
        let groups = groups.map(|group| group & mask);
        let words = pack::<C>(groups);
        assert_eq!(unpack::<C>(words), groups);
        assert!(words[C::BITS..].iter().all(|&word| word == 0));
    }

    proptest! {
        #[test]
        fn packing_keeps_every_code(groups: [u32; 8]) {
            check::<Q2_K>(groups);
            check::<Q3_K>(groups);
            check::<Q4_0>(groups);
            check::<Q5_0>(groups);
            check::<Q6_K>(groups);
            check::<Q8_0>(groups);
        }
    }
}
