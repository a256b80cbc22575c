//! A navigable graph over eight-bit codes, re-ranked in full precision, with real removal.
//!
//! Every vector has up to 2·M links to near vectors in varied directions. A search keeps a beam of the
//! nearest vectors seen, and follows the links of the nearest whose links it has not followed yet, until
//! there are no more. It starts at the best of a few hundred pivots, which are scanned, so the graph needs no
//! upper layers.
//!
//! # Every point is reachable
//! Each vector but one has a *parent* among its links, and the parent has it among its own; these links are
//! never dropped for others. They form a tree, so every vector can be reached from every other one, whatever
//! is inserted or removed. [`Graph::check`] verifies it.
//!
//! # Removal
//! A removed vector is unlinked at once from the vectors that link to it, if a search from it finds them, and
//! each of these gets a link to one of its neighbors instead; its children in the tree get new parents. Links
//! that were not found are dead ends until a sweep removes them. Each removal sweeps a few vectors, and only
//! after a whole sweep is the slot used again.
//!
//! # Memory
//! 8 bits a coordinate, and 16 + 4·(2·M + 1) bytes a vector; full vectors come on top of it, on disk or in
//! memory.
//!
//! # Source
//! Beam search and choice of links: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor
//! search using hierarchical navigable small world graphs", arXiv 1603.09320, algorithms 2 and 4, on the
//! ground layer alone; the factor on the occlusion rule is that of Subramanya et al., "DiskANN", NeurIPS
//! 2019, section 2.3. Removal by searching for the links that lead to a vector: Xu et al., "In-place updates
//! of a graph index for streaming approximate nearest neighbor search", arXiv 2502.13826, without its
//! periodic scan; tree, pivots and sweep are ours.

mod beam;
mod check;
pub(crate) mod file;
mod link;
mod remove;
#[cfg(test)]
mod tests;

use super::{Exact, Index, Neighbor, Search, Strategy, TopK, watch::Watches};
use crate::{
    Bitset, Error, Metric, Result,
    quantize::{CoarseCodes, ScalarCodes, Tail},
};
use beam::{SCRATCH, Scratch, distance_of, slot_of};
use breakers_files::Buffer;
use std::collections::VecDeque;

/// No vector.
pub(crate) const NONE: u32 = u32::MAX;

/// How a graph is built and searched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GraphConfig {
    /// M: links that a new vector chooses; a vector holds up to 2·M.
    pub links: usize,
    /// Width of the beam that finds a new vector's links.
    pub build_effort: usize,
    /// Width of the beam of a search that sets none.
    pub effort: usize,
    /// A link is left out if a shorter one leads to a vector that is nearer to its end, by this factor on
    /// squared distances.
    pub occlusion: f32,
}

impl Default for GraphConfig {
    fn default() -> Self {
        Self { links: 16, build_effort: 200, effort: 128, occlusion: 1.0 }
    }
}

impl GraphConfig {
    pub(crate) fn check(&self) -> Result<()> {
        if !(4..=128).contains(&self.links) {
            return Err(Error::parameter("links", "4 to 128", self.links));
        }
        for (name, value) in [("build_effort", self.build_effort), ("effort", self.effort)] {
            if !(1..=1 << 20).contains(&value) {
                return Err(Error::parameter(name, "1 to 1048576", value));
            }
        }
        if !(1.0..=2.0).contains(&self.occlusion) {
            return Err(Error::parameter("occlusion", "1 to 2", self.occlusion));
        }
        Ok(())
    }
}

/// A navigable graph, its codes and its full vectors.
///
/// # Example
/// ```
/// use breakers_retrieval::{Metric, index::{Graph, GraphConfig, Index, Search}};
///
/// let mut graph = Graph::new(Metric::L2, 2, GraphConfig::default())?;
/// for i in 0..100 {
///     graph.insert(&[i as f32, (i % 7) as f32])?;
/// }
/// let near = graph.search(&[42.2, 0.0], &Search::new(1).effort(50))?;
/// assert_eq!(near[0].slot, 42);
///
/// assert!(graph.remove(42));
/// assert_ne!(graph.search(&[42.2, 0.0], &Search::new(1))?[0].slot, 42);
/// # Ok::<(), breakers_retrieval::Error>(())
/// ```
#[derive(Debug)]
pub struct Graph {
    pub(crate) flat: Exact,
    pub(crate) config: GraphConfig,
    /// `[n_slots, 2 · links]`, ended by [`NONE`].
    pub(crate) links: Buffer<u32>,
    /// The parent of each slot in the tree; the root is its own, and a slot that is not in the tree has
    /// [`NONE`].
    pub(crate) parents: Buffer<u32>,
    pivots: Vec<u32>,
    /// The pivots' codes, side by side.
    pivot_codes: Vec<u8>,
    pivot_tails: Vec<Tail>,
    root: u32,
    /// The slots in the graph: those that searches return, and those that wait to be shown or unlinked.
    linked: Bitset,
    n_linked: usize,
    /// Removed slots, each with how many slots had been swept when it was removed.
    retired: VecDeque<(u32, u64)>,
    swept: u64,
    scratch: Option<Box<Scratch>>,
    /// One for walks among all vectors, one for walks among those that match a filter.
    pub(super) watches: [Watches; 2],
}

impl Graph {
    /// An empty graph.
    ///
    /// # Errors
    /// [`Error::DimensionRange`], [`Error::Parameter`].
    pub fn new(metric: Metric, dimension: usize, config: GraphConfig) -> Result<Self> {
        Self::over(Exact::new(metric, dimension)?, config)
    }

    /// An empty graph over an empty index.
    ///
    /// # Errors
    /// [`Error::Parameter`].
    pub(crate) fn over(flat: Exact, config: GraphConfig) -> Result<Self> {
        config.check()?;
        Ok(Self {
            flat,
            config,
            links: Buffer::new(),
            parents: Buffer::new(),
            pivots: Vec::new(),
            pivot_codes: Vec::new(),
            pivot_tails: Vec::new(),
            root: NONE,
            linked: Bitset::new(0),
            n_linked: 0,
            retired: VecDeque::new(),
            swept: 0,
            scratch: None,
            watches: Default::default(),
        })
    }

    /// How it is built and searched.
    pub fn config(&self) -> &GraphConfig {
        &self.config
    }

    /// Sets the width of the beam of searches that set none.
    ///
    /// # Errors
    /// [`Error::Parameter`].
    pub fn set_effort(&mut self, effort: usize) -> Result<()> {
        let config = GraphConfig { effort, ..self.config };
        config.check()?;
        self.config = config;
        Ok(())
    }

    /// Adds a vector that was [prepared](Metric::prepare). Preparing it again could change its last bits.
    pub(crate) fn insert_prepared(&mut self, prepared: &[f32]) -> Result<u32> {
        if self.flat.look_at_center(prepared) {
            self.codes_are_new();
        }
        let slot = self.store(prepared)?;
        let place = self.find_place(slot);
        self.link(slot, &place);
        self.flat.slots.show(slot);
        Ok(slot)
    }

    /// Reserves room for `n` vectors.
    pub(crate) fn reserve(&mut self, n: usize) {
        self.flat.reserve(n);
        self.links.reserve(n.saturating_mul(self.width()));
        self.parents.reserve(n);
    }

    /// Takes over codes of the same vectors, seen from another center.
    pub(crate) fn adopt(&mut self, codes: ScalarCodes, coarse: Option<CoarseCodes>) {
        self.flat.adopt(codes, coarse);
        self.codes_are_new();
    }

    /// Adapts to new codes; what was measured of walks over the old ones no longer counts.
    fn codes_are_new(&mut self) {
        self.pivot_codes.clear();
        self.pivot_tails.clear();
        for &slot in &self.pivots {
            self.pivot_codes.extend_from_slice(self.flat.codes.row(slot as usize));
            self.pivot_tails.push(self.flat.codes.tails()[slot as usize]);
        }
        self.watches = Default::default();
    }

    /// Exact search over the same vectors.
    pub fn exact(&self) -> &Exact {
        &self.flat
    }

    /// Room for links of a slot.
    fn width(&self) -> usize {
        2 * self.config.links
    }

    /// The links of a slot.
    pub(crate) fn links_of(&self, slot: u32) -> &[u32] {
        let links = &self.links[slot as usize * self.width()..][..self.width()];
        let n = links.iter().position(|&link| link == NONE).unwrap_or(links.len());
        &links[..n]
    }

    /// The nearest by codes of a beam of this width, allowed ones re-ranked.
    pub(super) fn walk(&self, prepared: &[f32], effort: usize, search: &Search<'_>) -> Result<Walked> {
        let (k, allowed) = (search.k, search.allowed);
        SCRATCH.with_borrow_mut(|scratch| {
            let codes = &self.flat.codes;
            let mut query = std::mem::take(&mut scratch.query);
            codes.query(prepared, false, &mut query);
            self.beam(scratch, &query, effort.max(k));
            // The error of a product by codes, at four standard deviations, on either side.
            let root = (codes.stride() as f32).sqrt();
            let margin = |slot: u32| {
                let tail = &codes.tails()[slot as usize];
                4.0 * (query.norm * tail.error + query.step * root / 3.46 * tail.norm) / root
            };
            let wanted =
                |slot| self.flat.slots.live.contains(slot) && allowed.is_none_or(|a| a.contains(slot));
            let Scratch { pool, ids, .. } = scratch;
            ids.clear();
            let mut bound = f32::INFINITY;
            for &entry in &*pool {
                let (slot, distance) = (slot_of(entry), distance_of(entry));
                if distance > bound {
                    break;
                }
                if wanted(slot) {
                    ids.push(slot);
                    if ids.len() == k {
                        bound = distance + margin(slot);
                    }
                }
            }
            let mut top = TopK::new(k);
            let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
            for (i, &slot) in ids.iter().enumerate() {
                if let Some(&next) = ids.get(i + 2) {
                    self.flat.vectors.prefetch(next);
                }
                let distance = self.flat.vectors.distance(codes.metric(), prepared, slot, search.source)?;
                (least, most) = (least.min(distance), most.max(distance));
                top.push(slot, distance);
            }
            let is_blind = match (pool.first(), pool.last()) {
                (Some(&first), Some(&last)) if pool.len() >= effort.max(k) => {
                    let spread = distance_of(last) - distance_of(first);
                    // Copies of one vector are equal in codes and in full.
                    (least < most || spread > 0.0) && spread <= margin(slot_of(last))
                }
                _ => false,
            };
            scratch.query = query;
            Ok(Walked { found: top.into_neighbors(), looked_at: scratch.looked_at, is_blind })
        })
    }
}

/// What a walk found.
#[derive(Debug)]
pub(super) struct Walked {
    pub(super) found: Vec<Neighbor>,
    /// How many vectors were looked at.
    pub(super) looked_at: usize,
    /// Whether codes cannot tell the vectors of the beam apart, though they differ: then others, which did
    /// not find room, may be nearer.
    pub(super) is_blind: bool,
}

impl Index for Graph {
    fn name(&self) -> &'static str {
        "graph"
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

    fn bytes(&self) -> usize {
        let pivots = self.pivot_codes.len() + size_of_val(&*self.pivot_tails) + 4 * self.pivots.len();
        self.flat.bytes() + 4 * (self.links.len() + self.parents.len()) + pivots
    }

    fn insert(&mut self, vector: &[f32]) -> Result<u32> {
        let prepared = self.flat.prepared("the vector", vector)?;
        self.insert_prepared(&prepared)
    }

    fn remove(&mut self, slot: u32) -> bool {
        let was = self.flat.slots.retire(slot);
        if was {
            self.unlink(slot);
        }
        was
    }

    fn search(&self, query: &[f32], search: &Search<'_>) -> Result<Vec<Neighbor>> {
        let prepared = self.flat.prepared("the query", query)?;
        let mut plan = self.plan(search);
        // A search that sets an effort asks for a walk.
        if search.effort.is_some() && plan.strategy == Strategy::Scan {
            plan.strategy = Strategy::Walk;
        }
        self.execute(&prepared, search, &plan)
    }
}
