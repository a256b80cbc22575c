//! The crate's tests on toy models: losslessness, the driver, drafters, adaptive lengths.

mod toy;

mod adaptive;
mod batch;
mod bytes;
mod constrained;
mod draft_model;
mod driver;
mod ending;
mod engine;
mod enumeration;
mod greedy;
mod language;
mod prefixes;
mod sampling;
mod saved;
mod support;
mod table;
mod text;
