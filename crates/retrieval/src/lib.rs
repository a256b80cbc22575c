//! An embedded vector store that is fast, exact about filters, and cannot lose data.
//!
//! | module | what it is for |
//! |---|---|
//! | [`store`] | collections of vectors with payloads in a folder: durable in SQLite, searched through derived indexes |
//! | [`index`] | exact search and a graph with real removal, both used by the store, and research indexes, all behind one trait |
//! | [`quantize`] | compressed vectors, with bounds on the error of compression |
//! | [`distance`] | distances by run-time SIMD dispatch |
//!
//! # Example
//! ```
//! use breakers_retrieval::{Metric, store::{Config, Point, Query, Store}};
//!
//! let folder = tempfile::tempdir().unwrap();
//! let store = Store::open(folder.path())?;
//! let words = store.create("words", &Config::new(2, Metric::Cosine))?;
//! words.upsert(&[Point::new(7, [0.9, 0.1]), Point::new(8, [0.0, 1.0])])?;
//! assert_eq!(words.search(&Query::new([1.0, 0.0], 1))?[0].id, 7);
//! # Ok::<(), breakers_retrieval::Error>(())
//! ```
//!
//! # Features
//! By default the crate is only the store and compiles no tensor library. `device` adds `index::DeviceScan`,
//! exact search on Burn's devices; `wgpu`, `vulkan`, `metal` and `cuda` are Burn's features for GPUs.
//! `hnsw-rs` adds the graph of the crate of that name, behind the same trait.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod bitset;
pub mod distance;
mod error;
pub mod index;
mod metric;
pub mod quantize;
pub mod store;

pub use bitset::Bitset;
pub use error::{Error, Result};
pub use metric::{MAX_DIMENSION, MAX_MAGNITUDE, Metric};
