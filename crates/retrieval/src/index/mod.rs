//! Indexes behind one trait.
//!
//! A collection of the [store](crate::store) keeps a [`Graph`], which contains an [`Exact`] index; its
//! planner chooses between the two for each query. [`Ivf`], [`Rabitq`] and `HnswRs` are research indexes, for
//! comparison and for use by themselves: they are not saved in files and do not follow a database.
//! `DeviceScan` answers batches of queries on a device; it is filled once, so it is no [`Index`].
//!
//! An index keeps vectors under *slots*, numbers that it hands out and may hand out again after a removal.
//! The store maps slots to the ids of points.

pub(crate) mod center;
#[cfg(feature = "device")]
pub mod device;
pub mod exact;
pub mod graph;
#[cfg(feature = "hnsw-rs")]
pub mod hnsw;
pub mod ivf;
mod plan;
pub mod rabitq;
pub(crate) mod slots;
mod top;
mod tune;
mod vectors;
mod watch;

#[cfg(feature = "device")]
pub use device::DeviceScan;
pub use exact::Exact;
pub use graph::{Graph, GraphConfig};
#[cfg(feature = "hnsw-rs")]
pub use hnsw::HnswRs;
pub use ivf::{Ivf, IvfConfig};
pub use plan::{Plan, Strategy};
pub use rabitq::Rabitq;
pub use top::TopK;
pub use tune::Tuned;
pub(crate) use tune::{Size, tune};
pub(crate) use vectors::Source;
pub use vectors::Vectors;

use crate::{Bitset, Metric, Result};

/// The most vectors that an index holds: a slot and a mark fit into 32 bits.
pub const MAX_SLOTS: usize = (1 << 31) - 2;

/// A vector that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbor {
    /// The index's number of the vector.
    pub slot: u32,
    /// The distance in the index's metric, computed from the vector in full precision.
    pub distance: f32,
}

/// A search: what to look for.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Search<'a> {
    /// How many neighbors.
    pub k: usize,
    /// The effort of an approximate index: the width of a graph's beam, or the number of lists of an inverted
    /// file. `None` takes the index's own setting. An exact index ignores it.
    pub effort: Option<usize>,
    /// The slots that may be returned; `None` allows all.
    pub allowed: Option<&'a Bitset>,
    /// The source of full vectors that the index does not hold itself.
    pub(crate) source: Option<&'a dyn Source>,
}

impl<'a> Search<'a> {
    /// The nearest `k` of all.
    pub fn new(k: usize) -> Self {
        Self { k, effort: None, allowed: None, source: None }
    }

    /// With this effort.
    pub fn effort(self, effort: usize) -> Self {
        Self { effort: Some(effort), ..self }
    }

    /// Among these slots only.
    pub fn among(self, allowed: &'a Bitset) -> Self {
        Self { allowed: Some(allowed), ..self }
    }
}

/// The operations of every index.
pub trait Index: Send + Sync {
    /// The name of the index in reports.
    fn name(&self) -> &'static str;

    /// The metric that defines "near".
    fn metric(&self) -> Metric;

    /// Numbers of a vector.
    fn dimension(&self) -> usize;

    /// Number of vectors, without removed ones.
    fn len(&self) -> usize;

    /// Whether there are no vectors.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory, without the vectors in full precision.
    fn bytes(&self) -> usize;

    /// Adds a vector and returns its slot.
    ///
    /// # Errors
    /// [`Error::Dimension`](crate::Error::Dimension), [`Error::NotFinite`](crate::Error::NotFinite),
    /// [`Error::ZeroVector`](crate::Error::ZeroVector) for cosine, [`Error::Full`](crate::Error::Full).
    fn insert(&mut self, vector: &[f32]) -> Result<u32>;

    /// Removes the vector of a slot. Returns whether there was one.
    fn remove(&mut self, slot: u32) -> bool;

    /// The nearest vectors, nearest first; fewer than `k` only if fewer are allowed.
    ///
    /// # Errors
    /// As [`insert`](Self::insert), for the query, and the errors of reading full vectors from disk.
    fn search(&self, query: &[f32], search: &Search<'_>) -> Result<Vec<Neighbor>>;
}
