//! The crate's tests: the quantizers.

mod quantizers;
mod support;
