//! Runs: codes of one width in a lane.
//!
//! Four codes, a *quad*, are stored side by side in the four bytes of a lane's words, as byte products need
//! them: code 4t + j is in byte j. Each of the four columns of bytes is a stream of bits, least significant
//! first, eight to a word; a run of width w has its quad t at bit `bit + t·w` of all four. So reading a quad
//! takes one shift and one mask, or two of each if it spans two words.

use crate::pages::page::LANES;

/// Codes side by side.
pub(crate) const QUAD: usize = 4;

/// Bits of a column in a word.
const WORD_BITS: usize = 8;

/// How many words of a lane hold `bits` bits of each column.
pub(crate) fn n_words(bits: usize) -> usize {
    bits.div_ceil(WORD_BITS)
}

/// Consecutive codes of one width, a multiple of [`QUAD`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Index of the first code, a channel or a slot.
    pub(crate) from: usize,
    pub(crate) len: usize,
    pub(crate) width: u8,
    /// Which table the codes stand in; `None`: they stand for themselves.
    pub(crate) table: Option<u8>,
    /// Where its quads stand in a lane.
    pub(crate) places: Vec<Place>,
    /// Whether its words hold two quads each and nothing else.
    pub(crate) is_nibbles: bool,
}

impl Run {
    /// A run whose first quad is at the given bit of the columns.
    pub(crate) fn new(from: usize, len: usize, width: u8, table: Option<u8>, bit: usize) -> Self {
        debug_assert!(len.is_multiple_of(QUAD) && (1..=8).contains(&width));
        let places = (0..len / QUAD).map(|quad| Place::new(bit + quad * usize::from(width), width)).collect();
        let is_nibbles = width == 4 && len.is_multiple_of(2 * QUAD) && bit.is_multiple_of(WORD_BITS);
        Self { from, len, width, table, places, is_nibbles }
    }

    /// Bits of each column.
    pub(crate) fn bits(&self) -> usize {
        self.len / QUAD * usize::from(self.width)
    }
}

/// Where a quad stands in its lane: the bits of a word above `right`, and those of the next one below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the word, lanes included.
    pub(crate) word: u32,
    pub(crate) right: u32,
    /// 8 − `right`.
    pub(crate) left: u32,
    /// In each byte the code's bits that stand in the first word.
    pub(crate) low: u32,
    /// The same of the second word, shifted.
    pub(crate) high: u32,
}

impl Place {
    /// A quad of codes of the given width, up to eight bits, at a bit of the columns.
    #[inline(always)]
    pub(crate) fn new(bit: usize, width: u8) -> Self {
        let (word, right) = (bit / WORD_BITS * LANES, bit % WORD_BITS);
        let left = WORD_BITS - right;
        let (all, first) = ((1u32 << width) - 1, (1u32 << left) - 1);
        let bytes = |bits: u32| bits * 0x0101_0101;
        Self {
            word: word as u32,
            right: right as u32,
            left: left as u32,
            low: bytes(all & first),
            high: bytes(all & !first),
        }
    }

    /// Adds a code, the `column`th of the quad, to a lane of zeros which begins at `lane`.
    pub(crate) fn put(self, region: &mut [u32], lane: usize, column: usize, code: u8) {
        let bits = u32::from(code) << self.right;
        let at = lane + self.word as usize;
        region[at] |= (bits & 0xff) << (WORD_BITS * column);
        if bits > 0xff {
            region[at + LANES] |= (bits >> WORD_BITS) << (WORD_BITS * column);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quads_are_read_as_they_were_put() {
        for width in 1..=8u8 {
            for (bit, len) in [(0, 16), (3, 32), (8, 48), (20, 64)] {
                let run = Run::new(0, len, width, None, bit);
                let n_words = n_words(bit + run.bits());
                // A word more, which is read but does not count.
                let mut region = vec![0u32; (n_words + 1) * LANES];
                let code = |at: usize| (at * 37 + 11) as u8 & (((1u32 << width) - 1) as u8);
                for at in 0..len {
                    run.places[at / QUAD].put(&mut region, 5, at % QUAD, code(at));
                }
                assert!(region[n_words * LANES..].iter().all(|word| *word == 0));
                region[n_words * LANES..].fill(u32::MAX);
                for (quad, place) in run.places.iter().enumerate() {
                    let at = 5 + place.word as usize;
                    let first = region[at] >> place.right & place.low;
                    let bytes = (first | region[at + LANES] << place.left & place.high).to_le_bytes();
                    assert_eq!(
                        bytes,
                        std::array::from_fn(|j| code(QUAD * quad + j)),
                        "{width} bits from {bit}"
                    );
                }
            }
        }
    }

    #[test]
    fn nibbles_stand_two_to_a_byte() {
        assert!(Run::new(0, 64, 4, None, 0).is_nibbles);
        assert!(Run::new(0, 64, 4, None, 16).is_nibbles);
        assert!(!Run::new(0, 64, 4, None, 4).is_nibbles);
        assert!(!Run::new(0, 4, 4, None, 0).is_nibbles);
        assert!(!Run::new(0, 64, 2, None, 0).is_nibbles);
    }
}
