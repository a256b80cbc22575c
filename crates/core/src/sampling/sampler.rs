use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::config::Scratch;
use super::distribution::index_at;
use super::logits::{log_probability_given, log_sum_exp, top_k_given};
use super::{Distribution, SamplingConfig, SamplingError};
use crate::{TokenId, TokenLogprob, TokenMask};

/// Draws tokens, reproducibly: the same seed and logits give the same tokens on every machine.
///
/// # Cost
/// Without filters, one exponential in `f64` for each token. With top-p, one in `f32` for each token and one
/// in `f64` for the likely ones; with top-k or min-p, the latter only. Nothing is allocated after the first
/// draw, except for a list of the block maxima that top-k looks at.
///
/// # Memory
/// Up to 20 bytes for each token of the vocabulary, kept between draws; with top-p or min-p of real models a
/// few kB, and 4 bytes a token with penalties, biases or a mask.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplingConfig,
    rng: ChaCha8Rng,
    scratch: Scratch,
}

/// A drawn token and how likely the model found it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampled {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability under the model's full softmax, before penalties,
    /// biases, mask and temperature.
    pub logprob: f32,
    /// The most likely tokens of its place under the same softmax, best first.
    pub top: Vec<TokenLogprob>,
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

    /// Draws the next token. Greedy settings take no random number.
    ///
    /// It is the token that [`draw`](Self::draw) would draw from [`SamplingConfig::distribution`], for less.
    ///
    /// # Errors
    /// Those of [`SamplingConfig::distribution`].
    pub fn sample(&mut self, logits: &[f32], history: &[TokenId]) -> Result<TokenId, SamplingError> {
        self.sample_within(logits, history, None)
    }

    /// Draws the next token of those that a mask allows.
    ///
    /// # Errors
    /// Those of [`SamplingConfig::distribution_within`]; no random number is taken then.
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

    /// Draws the next token like [`sample_within`](Self::sample_within), and tells its log-probability and
    /// the `n_top` most likely tokens of its place.
    ///
    /// # Errors
    /// Those of [`SamplingConfig::distribution_within`].
    ///
    /// # Example
    /// ```
    /// use breakers_core::{Sampler, SamplingConfig};
    ///
    /// let mut sampler = Sampler::new(SamplingConfig::greedy(), 0);
    /// let drawn = sampler.sample_scored(&[0.0, 0.0], &[], None, 2)?;
    /// assert_eq!((drawn.token, drawn.logprob, drawn.top.len()), (0, 0.5f32.ln(), 2));
    /// # Ok::<(), breakers_core::SamplingError>(())
    /// ```
    pub fn sample_scored(
        &mut self,
        logits: &[f32],
        history: &[TokenId],
        mask: Option<&TokenMask>,
        n_top: usize,
    ) -> Result<Sampled, SamplingError> {
        let token = self.sample_within(logits, history, mask)?;
        let z = self.scratch.log_sum_exp.unwrap_or_else(|| log_sum_exp(logits));
        let logprob = log_probability_given(logits, token, z)? as f32;
        Ok(Sampled { token, logprob, top: top_k_given(logits, n_top, z) })
    }

    /// Draws from a given distribution.
    pub fn draw(&mut self, distribution: &Distribution) -> TokenId {
        distribution.at(self.uniform())
    }

    /// How far its random numbers have been used, for [`rewind`](Self::rewind).
    pub fn position(&self) -> u128 {
        self.rng.get_word_pos()
    }

    /// Goes back to a position, so that the same random numbers come again: for a step that is repeated.
    pub fn rewind(&mut self, position: u128) {
        self.rng.set_word_pos(position);
    }

    /// A uniform number in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.rng.random()
    }
}
