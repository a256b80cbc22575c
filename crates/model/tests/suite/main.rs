//! The crate's tests: real models, small ones made up, and quantized files.
//!
//! One program, because each one links all of Burn.

mod bert;
mod device;
mod invariance;
mod llama_cpp;
mod odd_files;
mod quantize;
mod reference;
mod support;
