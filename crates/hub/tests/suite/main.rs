//! The crate's tests: what is fetched, resumed, verified and refused.
//!
//! One program, because linking several takes longer.

mod catalog;
mod common;
mod huggingface;
mod packages;
