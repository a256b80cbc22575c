//! Compressed vectors: what scans and graphs read in place of 32-bit floats.

mod scalar;

pub use scalar::{ScalarCodes, ScalarQuery, Tail};
