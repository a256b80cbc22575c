//! The crate's tests: products with packed matrices, quantizers, and files of them.
//!
//! One program, because each one links all of Burn.

mod devices;
mod groups;
mod product;
mod quantizers;
mod store;
mod support;
