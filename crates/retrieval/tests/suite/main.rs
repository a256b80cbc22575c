//! The crate's tests: indexes, filters and stores.
//!
//! One program, so that it is linked once.

mod distributions;
mod exact;
mod extremes;
mod file;
mod filters;
mod indexes;
mod memory;
mod model;
mod odd;
mod rabitq;
mod reports;
mod zoo;
