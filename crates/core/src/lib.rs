//! The vocabulary that every breakers crate shares: token ids, what a forward pass is asked for and
//! answers, sampling from logits, and the traits [`LanguageModel`], [`TextGenerator`] and [`Embedder`].
//!
//! There is no I/O here and no tensor: a crate that only drives a model (speculative decoding, routing,
//! serving) depends on this crate alone, and any engine that implements [`LanguageModel`] works with it.
//!
//! # Example
//! ```
//! use breakers_core::{Sampler, SamplingConfig};
//!
//! let logits = [0.1, 2.0, -1.0];
//! let mut greedy = Sampler::new(SamplingConfig::greedy(), 0);
//! assert_eq!(greedy.sample(&logits, &[]).unwrap(), 1);
//! ```

mod error;
mod language_model;
mod sampling;
mod text;

pub use error::{BoxError, Error, Result};
pub use language_model::{
    LanguageModel, LayerTap, ModelInfo, Output, RowOutput, SequenceId, Step, TokenLogprob, Want,
};
pub use sampling::{
    Distribution, Sampler, SamplingConfig, SamplingError, argmax, log_softmax, log_sum_exp, top_k,
};
pub use text::{Embedder, FinishReason, GenerateRequest, Generated, TextGenerator};

/// A token's index in a model's vocabulary.
pub type TokenId = u32;
