//! Decoding for any [`LanguageModel`]: plain and speculative, streamed, constrained, in batches.
//!
//! In speculative decoding a cheap drafter guesses several tokens, the target model evaluates all of them in
//! one forward pass, and only those that it would have produced itself are kept. The text is that of plain
//! decoding: the same tokens under greedy decoding, the same distribution under sampling (and the same tokens
//! for the same seed, unless the drafter samples, too). This rests on [`LanguageModel`]'s promise that a
//! row's logits do not depend on how many rows are in the call.
//!
//! | to | use |
//! |---|---|
//! | answer requests, from several threads at once | [`Engine`], a [`ChatModel`](breakers_core::ChatModel) |
//! | generate a text | [`Speculator`] and [`speculate`]; for several at once: [`BatchSpeculator`] |
//! | get text as it is produced, use stop strings, a constraint or log-probabilities | [`Decoding`], the underlying state machine |
//! | let texts join and leave a batch | [`Batch`] |
//! | draft | [`NgramDrafter`] (a suffix automaton), [`ModelDrafter`] (a small model), [`NoDrafter`] (plain decoding) |
//! | choose a drafter by name, such as `ngram` or `model:smollm2-135m` | [`DrafterSpec`]; [`DRAFTERS`] lists them |
//! | write a drafter of your own | [`Drafter`]; the rules of acceptance are in [`verify`] |
//! | decide how many tokens to draft | [`AdaptiveLength`], from measured costs; it turns drafting off where it would be slower |
//! | see what a run cost, and what it should cost | [`Stats`], [`theory`] |
//!
//! # Example
//! ```
//! # mod toy { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/toy.rs")); }
//! # use toy::Toy;
//! use std::ops::ControlFlow;
//! use breakers_spec_decode::{Config, DraftLength, NgramDrafter, NoDrafter, Speculator};
//!
//! # fn main() -> Result<(), breakers_spec_decode::Error> {
//! // Any `LanguageModel` will do; this one writes one passage over and over, with changes.
//! let mut model = Toy::repetitive(64, 7);
//! let prompt: Vec<u32> = (1..20).collect();
//! let config = Config { max_tokens: 200, draft_length: DraftLength::Fixed(8), ..Config::default() };
//!
//! let plain =
//!     Speculator::new(NoDrafter).generate(&mut model, &prompt, &config, |_| ControlFlow::Continue(()))?;
//! let mut pieces = Vec::new();
//! let fast = Speculator::new(NgramDrafter::default()).generate(&mut model, &prompt, &config, |tokens| {
//!     pieces.push(tokens.to_vec());
//!     ControlFlow::Continue(())
//! })?;
//!
//! assert_eq!(fast.tokens, plain.tokens);
//! assert_eq!(pieces.concat(), fast.tokens);
//! assert!(fast.stats.tokens_per_step() > 2.0);
//! # Ok(())
//! # }
//! ```
//!
//! A drafter of your own, which predicts that the text repeats what it said twenty tokens earlier. Wrong
//! guesses cost time and nothing else:
//! ```
//! # mod toy { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/toy.rs")); }
//! # use toy::Toy;
//! # use std::ops::ControlFlow;
//! # use breakers_spec_decode::NoDrafter;
//! use breakers_spec_decode::{Config, Draft, DraftLength, DraftRequest, Drafter, Result, Speculator};
//!
//! struct Period(usize);
//!
//! impl Drafter for Period {
//!     fn name(&self) -> &str {
//!         "period"
//!     }
//!     fn start(&mut self, _prompt: &[u32]) -> Result<()> {
//!         Ok(())
//!     }
//!     fn propose(&mut self, request: &mut DraftRequest<'_>) -> Result<Draft> {
//!         let first = request.context.len().saturating_sub(self.0);
//!         let tokens = request.context[first..].iter().copied().take(request.max_tokens);
//!         Ok(Draft::chain(tokens.collect()))
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let mut model = Toy::repetitive(64, 7);
//! let prompt: Vec<u32> = (1..20).collect();
//! let config = Config { max_tokens: 200, draft_length: DraftLength::Fixed(8), ..Config::default() };
//! let go_on = |_: &[u32]| ControlFlow::Continue(());
//! let fast = Speculator::new(Period(20)).generate(&mut model, &prompt, &config, go_on)?;
//! assert!(fast.stats.accepted > 0);
//! # let plain = Speculator::new(NoDrafter).generate(&mut model, &prompt, &config, go_on)?;
//! # assert_eq!(fast.tokens, plain.tokens);
//! # Ok(())
//! # }
//! ```
//!
//! # Source
//! Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding" (arXiv 2211.17192);
//! Chen et al., "Accelerating Large Language Model Decoding with Speculative Sampling" (arXiv 2302.01318).
//! The sources of each drafter are named where it is defined.
//!
//! [`LanguageModel`]: breakers_core::LanguageModel

mod acceptance;
mod adaptive;
mod batch;
mod batch_speculator;
mod config;
mod constrained;
mod costs;
mod decoding;
mod draft;
mod draft_model;
mod ending;
mod engine;
mod error;
mod fingerprint;
mod ngram;
mod none;
mod predicted;
mod speculator;
mod stats;
mod suffix_automaton;
mod table;
mod text;
pub mod theory;
pub mod verify;

pub use adaptive::AdaptiveLength;
pub use batch::{Batch, Progress, TextId};
pub use batch_speculator::BatchSpeculator;
pub use breakers_core::TokenScore;
pub use config::{AtLimit, Config, DraftLength, Speculated};
pub use decoding::{Decoding, Pass};
pub use draft::{Draft, DraftRequest, Drafter, Outcome};
pub use draft_model::{ModelDraftConfig, ModelDrafter, Proposal};
pub use engine::{Engine, EngineConfig, SavedPrefixes, SavedPrefixesError};
pub use error::{Error, Result};
pub use fingerprint::TokenizerFingerprint;
pub use ngram::{Continuation, NgramConfig, NgramDrafter};
pub use none::NoDrafter;
pub use predicted::PredictedDrafter;
pub use speculator::{Speculator, speculate};
pub use stats::{PositionStats, RowStats, Stats};
pub use table::{Build, DRAFTERS, DraftModel, DrafterSpec, Entry, NamedDrafter};
pub use text::{StopStrings, TextOutput};
pub use verify::{Chance, Verdict};

/// The README, so that its example is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
