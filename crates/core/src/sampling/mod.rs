//! From logits to a token, on the host.
//!
//! [`SamplingConfig`] says how, [`Sampler`] draws, [`Distribution`] is what it draws from. The vocabulary is
//! never sorted: filters find their cutoff by selection, so a draw costs two or three passes over the logits
//! and some work on the tokens that are left.
//!
//! # Numbers
//! All arithmetic is written out here, in a fixed order and without the system's math library: the same
//! logits, settings and seed give the same tokens on every machine.

mod config;
mod distribution;
mod exp;
mod logits;
mod sampler;
mod select;

pub use config::SamplingConfig;
pub use distribution::Distribution;
pub use logits::{
    TokenScore, argmax, argmax_within, kullback_leibler, log_probability, log_softmax, log_sum_exp,
    token_score, top_k,
};
pub use sampler::Sampler;

use crate::TokenId;

/// Logits that cannot be sampled from, or settings that cannot be followed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// There are no logits.
    #[error("no logits to sample from")]
    Empty,
    /// A logit is NaN or +∞, or all are −∞.
    #[error("logit of token {token} is {value}; expected finite values (or -inf for excluded tokens)")]
    NotFinite {
        /// The token whose logit it is.
        token: TokenId,
        /// What was found.
        value: f32,
    },
    /// A parameter is outside of its range.
    #[error("{name} is {value}, expected {expected}")]
    Parameter {
        /// Name of the parameter.
        name: &'static str,
        /// Value received.
        value: f32,
        /// The range.
        expected: &'static str,
    },
    /// A token id is outside of the vocabulary.
    #[error("token {token} is outside of the vocabulary of {vocab_size}")]
    InvalidToken {
        /// The token received.
        token: TokenId,
        /// Number of logits; ids below it are valid.
        vocab_size: usize,
    },
    /// The mask allows none of the tokens that the model allows.
    #[error("no token can be drawn: the mask allows {allowed} of {vocab_size}, and the model none of these")]
    NothingAllowed {
        /// Tokens that the mask allows.
        allowed: usize,
        /// Number of logits.
        vocab_size: usize,
    },
    /// Two rows of logits are of different vocabularies.
    #[error("{found} logits, expected {expected}")]
    Length {
        /// Logits of the first row.
        expected: usize,
        /// Logits of the second row.
        found: usize,
    },
}
