//! The crate's tests: what is fetched, resumed, verified and refused.
//!
//! One program, because each one links all of Burn.

mod catalog;
mod common;
mod huggingface;
mod packages;
