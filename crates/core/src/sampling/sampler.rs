use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::config::Scratch;
use super::distribution::index_at;
use super::{Distribution, SamplingConfig, SamplingError};
use crate::{TokenId, TokenMask};

/// Draws tokens, reproducibly: the same seed and logits give the same tokens on every machine.
///
/// # Cost
/// Without filters, one exponential in `f64` for each token. With top-p, one in `f32` for each token and one
/// in `f64` for the likely ones; with top-k or min-p, only the latter. After the first draw nothing is
/// allocated, except for the list of block maxima that top-k looks at.
///
/// # Memory
/// Up to 20 bytes for each token of the vocabulary, kept between draws. With top-p or min-p it is a few kB
/// for real models, plus 4 bytes per token with penalties, biases or a mask.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplingConfig,
    rng: ChaCha8Rng,
    scratch: Scratch,
}

impl Sampler {
    /// A sampler with its own stream of random numbers.
    pub fn new(config: SamplingConfig, seed: u64) -> Self {
        Self { config, rng: ChaCha8Rng::seed_from_u64(seed), scratch: Scratch::default() }
    }

    /// The configuration.
    pub fn config(&self) -> &SamplingConfig {
        &self.config
    }

    /// Draws the next token. Greedy settings use no random number.
    ///
    /// The result is the token that [`draw`](Self::draw) would draw from [`SamplingConfig::distribution`], at
    /// a lower cost.
    ///
    /// # Errors
    /// Those of [`SamplingConfig::distribution`].
    pub fn sample(&mut self, logits: &[f32], history: &[TokenId]) -> Result<TokenId, SamplingError> {
        self.sample_within(logits, history, None)
    }

    /// Draws the next token among those that a mask allows.
    ///
    /// # Errors
    /// Those of [`SamplingConfig::distribution_within`]; then no random number is used.
    pub fn sample_within(
        &mut self,
        logits: &[f32],
        history: &[TokenId],
        mask: Option<&TokenMask>,
    ) -> Result<TokenId, SamplingError> {
        self.config.select(logits, history, mask, &mut self.scratch)?;
        let u = if self.config.is_greedy() { 0.0 } else { self.uniform() };
        let tokens = &self.scratch.tokens;
        Ok(tokens.ids[index_at(tokens.ids.len(), |i| tokens.weights[i], u)])
    }

    /// Draws from a given distribution.
    pub fn draw(&mut self, distribution: &Distribution) -> TokenId {
        distribution.at(self.uniform())
    }

    /// The position in its stream of random numbers, for [`rewind`](Self::rewind).
    pub fn position(&self) -> u128 {
        self.rng.get_word_pos()
    }

    /// Goes back to an earlier position, so that a repeated step gets the same random numbers again.
    pub fn rewind(&mut self, position: u128) {
        self.rng.set_word_pos(position);
    }

    /// A uniform number in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.rng.random()
    }
}
