//! The crate's tests: tokenizers and chat templates against their originals, and real models.
//!
//! One program, because each one links all of Burn.

mod bert;
mod chat;
mod device;
mod invariance;
mod llama_cpp;
mod quantize;
mod support;
mod tokenizer;
mod tokenizer_hostile;
mod tokenizer_json;
