//! The crate's tests: indexes, filters and stores.
//!
//! One program, because each one links all of Burn.

mod exact;
mod filters;
mod indexes;
mod memory;
mod model;
mod rabitq;
