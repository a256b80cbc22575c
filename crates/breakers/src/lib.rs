//! Local language models without the bottlenecks: the breakers crates behind one name.
//!
//! Each feature adds a module, which is a crate of its own and can be used without this one.
//!
//! | to | feature | module |
//! |---|---|---|
//! | use what all crates share: requests, replies, sampling, traits | always | [`core`] |
//! | run a model from a GGUF file | `model` | `model` |
//! | generate text, plain or speculative, streamed or in batches | `decode` | `decode` |
//! | keep keys and values in fewer bits, or fewer tokens | `kv-cache` | `kv_cache` |
//! | read and write GGUF files and files of quantized matrices | `gguf` | `gguf` |
//! | turn text into token ids and back, and conversations into prompts | `tokenizer` | `tokenizer` |
//! | read tokenizer.json files | `tokenizer-json` | `tokenizer_json` |
//! | multiply by quantized weights | `linear` | `linear` |
//! | quantize weights, of one matrix or a whole model | `quant` | `quant` |
//! | fetch models by name | `hub` | `hub` |
//! | talk to a model behind an OpenAI-compatible endpoint | `remote` | `remote` |
//! | serve models over HTTP, in OpenAI's protocol | `serve` | `serve` |
//! | find the nearest vectors | `retrieval` | `retrieval` |
//! | turn texts into vectors | `embed` | `embed` |
//! | compute statistics and write reports | `eval` | `eval` |
//! | have answers by a schema or a grammar | `structured` | `structured` |
//! | use the program's flags and progress bars in your own | `cli` | `cli` |
//! | build the program `breakers` | `program` | |
//!
//! `wgpu`, `vulkan`, `cuda` and `metal` add GPUs to the crates with kernels.
//!
//! # Example
//! ```
//! use breakers::core::{Sampler, SamplingConfig};
//!
//! let mut sampler = Sampler::new(SamplingConfig::greedy(), 0);
//! assert_eq!(sampler.sample(&[0.1, 2.0, -1.0], &[]).unwrap(), 1);
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "cli")]
pub use breakers_cli as cli;
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
#[cfg(feature = "serve")]
pub use breakers_serve as serve;
#[cfg(feature = "decode")]
pub use breakers_spec_decode as decode;
#[cfg(feature = "structured")]
pub use breakers_structured as structured;
#[cfg(feature = "tokenizer")]
pub use breakers_tokenizer as tokenizer;
#[cfg(feature = "tokenizer-json")]
pub use breakers_tokenizer_json as tokenizer_json;
