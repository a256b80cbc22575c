//! Language models from GGUF and safetensors: tokenizers, chat templates, transformer blocks.
//!
//! - [`tokenizer`] turns text into token ids and back;
//! - [`chat`] renders a conversation into the prompt that a model was trained on.

mod arch;
mod error;
mod load;
mod runner;

pub mod chat;
pub mod generate;
pub mod ops;
pub mod score;
pub mod tokenizer;

//BERT pub use arch::bert::Bert;
pub use error::{Error, Result};
pub use load::{LoadOptions, Model};
pub use runner::{CacheFactory, Runner};
