//! The crate's tests: real models and small made-up ones.
//!
//! One program, because each one links all of Burn.

mod device;
mod encoders;
mod invariance;
mod llama_cpp;
mod odd_files;
mod reference;
mod stages;
mod support;
mod transformers;
mod walk;
