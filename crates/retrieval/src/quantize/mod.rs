//! Compressed vectors: what scans and graphs read in place of 32-bit floats.

mod coarse;
mod kmeans;
mod product;
mod rabitq;
mod scalar;

pub(crate) use coarse::{CoarseCodes, GROUP};
pub(crate) use kmeans::{Centers, kmeans};
pub use product::{ProductQuantizer, table_product};
pub use rabitq::{EPSILON, Estimate, RabitqCodes, RabitqQuery};
pub use scalar::{ScalarCodes, ScalarQuery, Tail};
