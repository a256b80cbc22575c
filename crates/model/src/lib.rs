//! Language models from GGUF files and sentence embeddings from safetensors: tokenizers, chat templates,
//! transformer blocks.
//!
//! - [`Model`] loads a file; its [`Runner`] holds sequences and is a
//!   [`LanguageModel`](breakers_core::LanguageModel), whose answers have the same bits in every batch;
//! - [`generate`] continues a text, [`score`] judges a given one;
//! - with the feature `bert`, `Bert` turns texts into vectors;
//! - [`tokenizer`] turns text into token ids and back;
//! - [`divergence`] says how far a model's predictions are from another's;
//! - [`quantize`](mod@quantize) writes a model's file with smaller matrices;
//! - [`walk`] leads a text through one block after the other, for those who change the weights on the way;
//! - [`chat`] renders a conversation into the prompt that a model was trained on;
//! - [`ops`] are the operations of a block that are no matrix product, norm or attention.
//!
//! # Example
//! ```no_run
//! use breakers_core::{GenerateRequest, SamplingConfig, TextGenerator};
//! use breakers_model::{LoadOptions, Model, generate::Generator};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load("model.gguf", &LoadOptions::default())?;
//! let request = GenerateRequest {
//!     prompt: model.tokenizer().encode("The capital of France is", Default::default())?,
//!     max_tokens: 16,
//!     sampling: SamplingConfig::greedy(),
//!     seed: 0,
//!     stop: vec![],
//! };
//! let mut generator = Generator::new(&model);
//! println!("{}", generator.generate(&request, &mut |_| std::ops::ControlFlow::Continue(()))?.text);
//! # Ok(())
//! # }
//! ```

mod arch;
mod error;
mod load;
mod runner;
#[cfg(feature = "bert")]
mod weights;

pub mod chat;
pub mod divergence;
pub mod generate;
pub mod ops;
pub mod quantize;
pub mod score;
pub mod tokenizer;
pub mod walk;

#[cfg(feature = "bert")]
pub use arch::bert::{Bert, SeeInputs};
pub use arch::decoder::ProductCost;
pub use error::{Error, Result};
pub use load::{LoadOptions, Model};
pub use runner::{CacheFactory, Runner};
