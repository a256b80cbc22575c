//! Compressed vectors, which scans and graphs read in place of 32-bit floats.

mod coarse;
mod kmeans;
mod opq;
mod pq;
mod rabitq;
mod scalar;

pub(crate) use coarse::{CoarseCodes, GROUP};
pub(crate) use kmeans::{Centers, kmeans};
pub use opq::OptimizedProductQuantizer;
pub use pq::{ProductQuantizer, table_product};
pub use rabitq::{EPSILON, Estimate, RabitqCodes, RabitqQuery};
pub use scalar::{ScalarCodes, ScalarQuery, Tail};
