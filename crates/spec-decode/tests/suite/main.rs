//! The crate's tests on toy models: losslessness, the driver, drafters, adaptive lengths.

mod toy;

mod adaptive;
mod batch;
mod draft_model;
mod driver;
mod enumeration;
mod greedy;
mod sampling;
mod support;
