//! Local language models without the bottlenecks: the breakers crates behind one name.
//!
//! Each feature adds a room; each room is a crate of its own, which can be used without this one.
//!
//! | wish | feature | room |
//! |---|---|---|
//! | words that all rooms share: requests, replies, sampling, traits | always | [`core`] |
//! | run a model of a GGUF file | `model` | `model` |
//! | generate text, plain or speculative, streamed or in batches | `decode` | `decode` |
//! | keep keys and values in fewer bits, or fewer tokens | `kv-cache` | `kv_cache` |
//! | read and write GGUF files and files of quantized matrices | `gguf` | `gguf` |
//! | text to token ids and back, conversations to prompts | `tokenizer` | `tokenizer` |
//! | tokenizers of tokenizer.json files | `tokenizer-json` | `tokenizer_json` |
//! | products with quantized weights | `linear` | `linear` |
//! | quantize weights, of one matrix or a whole model | `quant` | `quant` |
//! | obtain models by name | `hub` | `hub` |
//! | talk to a model behind an OpenAI-compatible endpoint | `remote` | `remote` |
//! | find the nearest vectors | `retrieval` | `retrieval` |
//! | vectors of texts | `embed` | `embed` |
//! | statistics and reports | `eval` | `eval` |
//! | the program `breakers`, and flags and progress bars for programs like it | `cli` | `cli` |
//!
//! `wgpu`, `vulkan`, `cuda` and `metal` add a GPU to the rooms with kernels.
//!
//! # Example
//! ```
//! use breakers::core::{Sampler, SamplingConfig};
//!
//! let mut sampler = Sampler::new(SamplingConfig::greedy(), 0);
//! assert_eq!(sampler.sample(&[0.1, 2.0, -1.0], &[]).unwrap(), 1);
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

pub use breakers_core as core;
#[cfg(feature = "embed")]
pub use breakers_embed as embed;
#[cfg(feature = "eval")]
pub use breakers_eval as eval;
#[cfg(feature = "gguf")]
pub use breakers_gguf as gguf;
#[cfg(feature = "hub")]
pub use breakers_hub as hub;
#[cfg(feature = "kv-cache")]
pub use breakers_kv_cache as kv_cache;
#[cfg(feature = "linear")]
pub use breakers_linear as linear;
#[cfg(feature = "model")]
pub use breakers_model as model;
#[cfg(feature = "quant")]
pub use breakers_quant as quant;
#[cfg(feature = "remote")]
pub use breakers_remote as remote;
#[cfg(feature = "retrieval")]
pub use breakers_retrieval as retrieval;
#[cfg(feature = "decode")]
pub use breakers_spec_decode as decode;
#[cfg(feature = "tokenizer")]
pub use breakers_tokenizer as tokenizer;
#[cfg(feature = "tokenizer-json")]
pub use breakers_tokenizer_json as tokenizer_json;

#[cfg(feature = "cli")]
pub mod cli;
