//! Inputs that several tests share.

use breakers_cpu::random::SplitMix64;

/// A small generator, so that inputs are the same everywhere.
pub(crate) struct Random(SplitMix64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    pub(crate) fn next(&mut self) -> u32 {
        (self.0.next() >> 32) as u32
    }

    /// In -1..1.
    pub(crate) fn float(&mut self) -> f32 {
        self.0.next_symmetric()
    }
}
