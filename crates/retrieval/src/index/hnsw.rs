//! The graph of the crate `hnsw_rs`, for comparison, wrapped so that none of its hazards reaches a user.
//!
//! | hazard of hnsw_rs 0.3 | what is done here |
//! |---|---|
//! | ends the process for more than 256 links | settings are checked first |
//! | panics on NaN and on negative distances | vectors are checked first; distances are squared Euclidean ones, which order normalized vectors as the cosine does; [`Metric::Dot`] is refused |
//! | a search can get stuck in the part of the graph where it starts | a vector that a search for itself does not find goes into a list that every search scans; a search that finds too few becomes an exact one |
//! | has no removal | removed vectors are left out of results; when they make up a third, the graph is built anew |
//! | has no file that survives a crash | no file is written; the store's own graph is the persistent one |
//!
//! Distances come from this crate's kernels, which are faster than its own.

use super::{Exact, GraphConfig, Index, Neighbor, Search, TopK};
use crate::{Bitset, Error, Metric, Result, distance};
use hnsw_rs::prelude::{Distance, Hnsw};
use std::fmt;

/// With more links than this, `hnsw_rs` ends the process.
const MAX_LINKS: usize = 256;
/// The number of layers that the crate's own documentation proposes.
const LAYERS: usize = 16;
/// Width of the beam that checks whether a new vector can be found.
const PROBE: usize = 32;

#[derive(Clone, Copy, Default)]
struct Squared;

impl Distance<f32> for Squared {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        distance::l2(a, b)
    }
}

/// A graph of `hnsw_rs`, with full vectors behind it as in every index.
pub struct HnswRs {
    flat: Exact,
    config: GraphConfig,
    graph: Hnsw<'static, f32, Squared>,
    /// Vectors that the graph does not find.
    lost: Vec<u32>,
    n_removed: usize,
    effort: usize,
}

impl fmt::Debug for HnswRs {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("HnswRs")
            .field("config", &self.config)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl HnswRs {
    /// An empty index; of the settings, `occlusion` has no counterpart and is ignored.
    ///
    /// # Errors
    /// [`Error::Parameter`] for [`Metric::Dot`] and for settings out of range, [`Error::DimensionRange`].
    pub fn new(metric: Metric, dimension: usize, config: GraphConfig) -> Result<Self> {
        config.check()?;
        if config.links > MAX_LINKS {
            return Err(Error::parameter("links", format!("at most {MAX_LINKS}"), config.links));
        }
        if metric == Metric::Dot {
            return Err(Error::parameter("metric", "cosine or l2", metric));
        }
        let (flat, graph) = (Exact::new(metric, dimension)?, empty(&config));
        Ok(Self { flat, config, graph, lost: Vec::new(), n_removed: 0, effort: config.effort })
    }

    fn link(&mut self, slot: u32, prepared: &[f32]) {
        self.graph.insert((prepared, slot as usize));
        let probe = self.graph.search(prepared, PROBE, PROBE);
        if !probe.iter().any(|n| n.d_id == slot as usize) {
            self.lost.push(slot);
        }
    }

    /// Builds the graph anew from the live vectors.
    fn rebuild(&mut self) {
        self.graph = empty(&self.config);
        self.lost.clear();
        self.n_removed = 0;
        for slot in self.flat.slots.live.clone().iter() {
            if let Some(vector) = self.flat.vectors.get(slot).map(<[f32]>::to_vec) {
                self.link(slot, &vector);
            }
        }
    }
}

fn empty(config: &GraphConfig) -> Hnsw<'static, f32, Squared> {
    // The number of elements is a hint for its tables.
    Hnsw::new(config.links, 1 << 16, LAYERS, config.build_effort, Squared)
}

impl Index for HnswRs {
    fn name(&self) -> &'static str {
        "hnsw_rs"
    }

    fn metric(&self) -> Metric {
        self.flat.metric()
    }

    fn dimension(&self) -> usize {
        self.flat.dimension()
    }

    fn len(&self) -> usize {
        self.flat.len()
    }

    /// The crate does not tell the size of its tables: this is the least that links and vectors must take.
    fn bytes(&self) -> usize {
        self.flat.n_slots() * (4 * self.dimension() + 2 * self.config.links * size_of::<usize>())
    }

    fn insert(&mut self, vector: &[f32]) -> Result<u32> {
        let prepared = self.flat.prepared("the vector", vector)?;
        let slot = self.flat.add(&prepared)?;
        self.link(slot, &prepared);
        Ok(slot)
    }

    fn remove(&mut self, slot: u32) -> bool {
        let was = self.flat.slots.retire(slot);
        if was {
            self.lost.retain(|&lost| lost != slot);
            self.n_removed += 1;
            if self.n_removed > self.flat.len() / 2 {
                self.rebuild();
            }
        }
        was
    }

    fn search(&self, query: &[f32], search: &Search<'_>) -> Result<Vec<Neighbor>> {
        let prepared = self.flat.prepared("the query", query)?;
        let n = match search.allowed {
            None => self.len(),
            Some(allowed) => {
                let mut live: Bitset = allowed.clone();
                live.intersect(&self.flat.slots.live);
                live.count()
            }
        };
        let k = search.k.min(n);
        if k == 0 {
            return Ok(Vec::new());
        }
        let effort = search.effort.unwrap_or(self.effort).max(k);
        let wanted = |slot: u32| {
            self.flat.slots.live.contains(slot) && search.allowed.is_none_or(|a| a.contains(slot))
        };
        let filter = |id: &usize| wanted(*id as u32);
        let found = if self.n_removed == 0 && search.allowed.is_none() {
            self.graph.search(&prepared, k, effort)
        } else {
            self.graph.search_filter(&prepared, k, effort, Some(&filter))
        };
        let mut top = TopK::new(k);
        let found = found.iter().map(|n| n.d_id as u32);
        for slot in found.chain(self.lost.iter().copied()).filter(|&slot| wanted(slot)) {
            top.push(slot, self.flat.vectors.distance(self.metric(), &prepared, slot, None)?);
        }
        if top.len() < k {
            self.flat.scan(&prepared, &Search { k, ..*search })
        } else {
            Ok(top.into_neighbors())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hazards_are_refused_or_survived() {
        let config = GraphConfig { links: 8, build_effort: 32, ..GraphConfig::default() };
        assert!(HnswRs::new(Metric::Dot, 2, config).is_err());
        assert!(HnswRs::new(Metric::L2, 2, GraphConfig { links: 300, ..config }).is_err());
        let mut index = HnswRs::new(Metric::L2, 2, config).unwrap();
        assert!(index.insert(&[f32::NAN, 0.0]).is_err());
        assert!(index.search(&[0.0, 0.0], &Search::new(3)).unwrap().is_empty());
        // Two groups that are far apart, each of many equal points.
        for i in 0..200 {
            index.insert(&[if i % 2 == 0 { 0.0 } else { 1e6 }, (i / 20) as f32]).unwrap();
        }
        for (x, parity) in [(0.0, 0), (1e6, 1)] {
            let found = index.search(&[x, 3.0], &Search::new(20)).unwrap();
            assert_eq!(found.len(), 20);
            assert!(found.iter().all(|n| n.slot % 2 == parity), "{found:?}");
        }
        for slot in 0..150 {
            assert!(index.remove(slot) && !index.remove(slot));
        }
        let found = index.search(&[0.0, 3.0], &Search::new(100)).unwrap();
        assert_eq!(found.len(), 50);
        assert!(found.iter().all(|n| n.slot >= 150));
    }
}
