//! The crate's tests: products with packed matrices, on slices and on devices.
//!
//! One program, because each one links all of Burn.

mod adapters;
mod devices;
mod groups;
mod hostile;
mod product;
mod support;
