//! The types and traits that every breakers crate shares. There is no I/O here and there are no tensors: a
//! crate that only drives a model (speculative decoding, routing, agents, evaluation) depends on this one
//! alone and works with any engine.
//!
//! | for | there is |
//! |---|---|
//! | driving an engine pass by pass | [`LanguageModel`], [`Step`], [`Want`] |
//! | drawing tokens | [`Sampler`], [`SamplingConfig`], [`Distribution`], [`TokenMask`] |
//! | keeping a text within a grammar, reading calls of functions | [`Constraint`], [`AnswerForms`] |
//! | text and tokens | [`Tokenizer`], [`Vocabulary`], [`ChatFormat`], [`Utf8Stream`] |
//! | asking any model, here or remote | [`ChatModel`] with [`ChatRequest`], [`Prompt`], [`Message`], [`ChatReply`] |
//! | likelihoods, scores of pairs, vectors | [`Likelihood`], [`PairScorer`], [`Embedder`] |
//! | tests of what calls a model | [`ScriptedModel`] |
//!
//! # Errors
//! A forward pass fails with [`Error`], whose [`AtStep`](Error::AtStep) names the step at fault. A call of a
//! [`ChatModel`] fails with [`CallError`], which has the same kinds for local and remote models.
//!
//! # Example
//! ```
//! use breakers_core::{Sampler, SamplingConfig};
//!
//! let logits = [0.1, 2.0, -1.0];
//! let mut greedy = Sampler::new(SamplingConfig::greedy(), 0);
//! assert_eq!(greedy.sample(&logits, &[]).unwrap(), 1);
//! ```

mod answer;
mod call_error;
mod card;
mod chat;
mod constraint;
mod error;
mod json;
mod language_model;
mod mask;
mod models;
mod prompt;
mod sampling;
mod scripted;
#[cfg(feature = "testing")]
pub mod testing;
mod vocabulary;

pub use answer::{AnswerForms, AnswerPlan, AnswerReader};
pub use call_error::{CallError, TimeoutPhase};
pub use card::{Capabilities, ModelCard, Price};
pub use chat::{
    Alternative, ChatReply, ChatRequest, Delta, FinishReason, Priority, PromptProgress, ScoredToken, Timings,
    ToolCallDelta, Usage,
};
pub use constraint::{Constraint, ConstraintError};
pub use error::{BoxError, Error, Result, SharedError, StepError, chain};
pub use json::{Json, JsonError};
pub use language_model::{
    LanguageModel, LayerTap, ModelInfo, Output, RowOutput, SequenceId, Snapshot, SnapshotBytes, Step,
    TokenLogprob, Want,
};
pub use mask::TokenMask;
pub use models::{ChatModel, Embedder, Likelihood, ModelLoad, OnDelta, PairScorer, ScoredText};
pub use prompt::{Message, Part, Prompt, ResponseFormat, ResponseSchema, Role, Tool, ToolCall, ToolChoice};
pub use sampling::{
    Distribution, Sampler, SamplingConfig, SamplingError, TokenScore, argmax, argmax_within,
    kullback_leibler, log_probability, log_softmax, log_sum_exp, token_score, top_k,
};
pub use scripted::{Scripted, ScriptedModel};
pub use vocabulary::{ChatFormat, EncodeOptions, Tokenizer, Utf8Stream, Vocabulary};

/// A token's index in a model's vocabulary.
pub type TokenId = u32;

/// The README, so that its example is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
