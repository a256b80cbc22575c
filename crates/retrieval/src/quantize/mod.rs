//! Compressed vectors: what scans and graphs read in place of 32-bit floats.

mod rabitq;
mod scalar;

pub use rabitq::{EPSILON, Estimate, RabitqCodes, RabitqQuery};
pub use scalar::{ScalarCodes, ScalarQuery, Tail};
