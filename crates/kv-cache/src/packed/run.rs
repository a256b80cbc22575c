//! Runs: codes of one width in a lane's stream, laid out so that no code that is read in order has to be put together.
//!
//! A run is cut into chunks of [`CHUNK`] codes, which take as many words as the codes have bits. A word holds as many
//! whole codes as fit, from its lowest bits up; the bits that are left over on top of a chunk's words, lowest word
//! first, are the stream of the chunk's last codes. So a reader shifts each word by the width again and again, gathers
//! what is left of it in another register, and goes on in that one: three bits cost hardly more than four.

use crate::page::LANES;

/// Codes of a chunk. A divisor of a word's 32 bits times any width.
pub(crate) const CHUNK: usize = 32;

/// Consecutive codes of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Index of the first code, a channel or a slot.
    pub(crate) from: usize,
    pub(crate) len: usize,
    pub(crate) width: u32,
    /// Words before it in the lane.
    pub(crate) word: usize,
    /// Which table the codes stand in; `None`: they stand for themselves.
    pub(crate) table: Option<u8>,
}

/// Words of `n` codes.
pub(crate) fn n_words(n: usize, width: u32) -> usize {
    // Chunks but the last one are whole words.
    (n * width as usize).div_ceil(u32::BITS as usize)
}

impl Run {
    pub(crate) fn n_words(&self) -> usize {
        n_words(self.len, self.width)
    }

    /// Adds the run's code number `at` to a lane of zeros, which begins at `lane`.
    pub(crate) fn put(&self, region: &mut [u32], lane: usize, at: usize, code: u8) {
        let width = self.width as usize;
        let (chunk, at) = (at / CHUNK, at % CHUNK);
        let n_words = n_words(CHUNK.min(self.len - chunk * CHUNK), self.width);
        let first = self.word + chunk * width;
        let mut set = |word: usize, bits: u32| region[lane + (first + word) * LANES] |= bits;
        let per_word = u32::BITS as usize / width;
        if at < n_words * per_word {
            return set(at / per_word, u32::from(code) << (at % per_word * width));
        }
        let n_left = u32::BITS as usize - per_word * width;
        for bit in 0..width {
            let place = (at - n_words * per_word) * width + bit;
            let set_bit = u32::from(code) >> bit & 1;
            set(place / n_left, set_bit << (per_word * width + place % n_left));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_fill_their_words() {
        for width in 1..=8 {
            for len in [16, 32, 48, 64] {
                let run = Run { from: 0, len, width, word: 3, table: None };
                let mut region = vec![0u32; (3 + run.n_words()) * LANES];
                // Every bit of every code has a place of its own.
                for at in 0..len {
                    for bit in 0..width {
                        let before: u32 = region.iter().map(|word| word.count_ones()).sum();
                        run.put(&mut region, 5, at, 1 << bit);
                        let after: u32 = region.iter().map(|word| word.count_ones()).sum();
                        assert_eq!(after, before + 1, "{width} bits, code {at} of {len}, bit {bit}");
                    }
                }
                let lane = region[5..].iter().step_by(LANES);
                assert_eq!(lane.map(|word| word.count_ones()).sum::<u32>(), len as u32 * width);
                assert!(region[..3 * LANES].iter().all(|word| *word == 0));
            }
        }
    }
}
