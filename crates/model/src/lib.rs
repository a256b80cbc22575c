//! Language models from GGUF files.
//!
//! - [`Model`] loads a file; its [`Runner`] holds sequences and is a
//!   [`LanguageModel`](breakers_core::LanguageModel), whose answers have the same bits in every batch;
//! - [`walk`] runs a text through one block after the other, for code that changes the weights on the way, as
//!   `breakers-quant` does;
//! - [`stages`] runs a model whose layers are divided among several processes;
//! - [`ops`] has the operations of a block other than matrix products, norms and attention.
//!
//! For generating text (streams, stop strings, batches, speculation) there is `breakers-spec-decode`: its
//! `Engine` answers requests with any model of this crate.
//!
//! # Example
//! ```no_run
//! use breakers_core::{LanguageModel, Step, Want};
//! use breakers_model::{LoadOptions, Model};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The most likely next token.
//! let model = Model::load("model.gguf", &LoadOptions::default())?;
//! let tokens = model.tokenizer().encode("The capital of France is", Default::default())?;
//! let mut runner = model.runner();
//! let mut steps = [Step::last(runner.open()?, tokens, Want::ArgMax)];
//! runner.forward(&mut steps)?;
//! let best = steps[0].outputs.last().and_then(|row| row.output.best());
//! println!("{}", model.tokenizer().decode(best.as_slice(), Default::default())?);
//! # Ok(())
//! # }
//! ```

mod arch;
mod error;
mod load;
mod runner;
mod site;

pub mod ops;
pub mod stages;
pub mod walk;

pub use arch::decoder::ProductCost;
pub use error::{Error, Result};
pub use load::{LoadOptions, Model};
pub use runner::{CacheFactory, Runner};
pub use site::{InputObserver, InputSite};

/// The README, so that its example is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
