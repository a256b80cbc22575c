//! An inverted file: vectors in lists by their nearest center, and product codes of their residuals from the
//! center.
//!
//! A search scans the lists whose centers are nearest to the query, ranks by codes, and compares the best in
//! full precision. ⟨q, o⟩ = ⟨q, center⟩ + ⟨q, rest⟩, so one table of products with codewords serves all
//! lists.
//!
//! # Memory
//! One byte for each part and 8 bytes for each vector; full vectors come on top of it.
//!
//! # Source
//! Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", IEEE TPAMI 33 (2011), section
//! IV. The codes are of rotated vectors: a random rotation evens out the parts, and one that is learned from
//! the residuals ([`OptimizedProductQuantizer`]) does better, at the cost of learning it.

use super::{Index, Neighbor, Search, TopK, Vectors, slots::Slots};
use crate::{
    Error, Metric, Result,
    metric::check_length,
    quantize::{Centers, OptimizedProductQuantizer, kmeans, table_product},
};
use breakers_cpu::hadamard::Rotation;

/// Rows for each list that centers are learned from.
const SAMPLE: usize = 64;

/// How an inverted file is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IvfConfig {
    /// The number of lists; 0 takes four times the square root of the number of training vectors.
    pub n_lists: usize,
    /// Bytes of a code; 0 takes an eighth of the dimension, rounded up to a divisor of it.
    pub n_parts: usize,
    /// Rounds of learning a rotation for the codes; 0 keeps a random rotation.
    pub turns: usize,
    /// Lists that a search scans if it sets no effort.
    pub probes: usize,
    /// Candidates compared in full precision for each neighbor wanted.
    pub refine: usize,
    /// Seed of everything that is random.
    pub seed: u64,
}

impl Default for IvfConfig {
    fn default() -> Self {
        Self { n_lists: 0, n_parts: 0, turns: 0, probes: 32, refine: 10, seed: 0 }
    }
}

#[derive(Debug, Default)]
struct List {
    slots: Vec<u32>,
    codes: Vec<u8>,
    /// Half the squared length of each vector for L2, otherwise 0.
    offsets: Vec<f32>,
}

/// An inverted file: lists of product codes.
///
/// # Example
/// ```
/// use breakers_retrieval::{Metric, index::{Index, Ivf, IvfConfig, Search}};
///
/// let vectors: Vec<[f32; 2]> = (0..400).map(|i| [(i % 20) as f32, (i / 20) as f32]).collect();
/// let sample = || vectors.iter().map(|vector| vector.as_slice());
/// let mut index = Ivf::train(Metric::L2, 2, sample(), IvfConfig::default())?;
/// for vector in sample() {
///     index.insert(vector)?;
/// }
/// assert_eq!(index.search(&[7.0, 3.1], &Search::new(1).effort(index.n_lists()))?[0].slot, 67);
/// # Ok::<(), breakers_retrieval::Error>(())
/// ```
#[derive(Debug)]
pub struct Ivf {
    metric: Metric,
    config: IvfConfig,
    width: usize,
    rotation: Rotation,
    centers: Centers,
    quantizer: OptimizedProductQuantizer,
    lists: Vec<List>,
    /// The list of each slot.
    places: Vec<u32>,
    vectors: Vectors,
    slots: Slots,
}

impl Ivf {
    /// An empty index, whose centers and codes are learned from these vectors.
    ///
    /// # Errors
    /// [`Error::DimensionRange`], [`Error::Parameter`], and those of [`Metric::prepare`].
    pub fn train<'a>(
        metric: Metric,
        dimension: usize,
        sample: impl Iterator<Item = &'a [f32]>,
        config: IvfConfig,
    ) -> Result<Self> {
        let vectors = Vectors::new(dimension)?;
        let width = dimension.next_multiple_of(64);
        let rotation = Rotation::random(width, config.seed)?;
        let mut rows = Vec::new();
        for vector in sample {
            check_length("a vector to learn from", vector, dimension)?;
            let start = rows.len();
            rows.extend_from_slice(vector);
            metric.prepare("a vector to learn from", &mut rows[start..])?;
            rows.resize(start + width, 0.0);
        }
        let n = rows.len() / width;
        if n == 0 {
            return Err(Error::parameter("vectors to learn from", "at least one", n));
        }
        rotation.forward(&mut rows)?;
        let n_lists = if config.n_lists == 0 { (4 * n.isqrt()).clamp(1, n) } else { config.n_lists };
        if n_lists > 1 << 20 {
            return Err(Error::parameter("n_lists", "at most 1048576", n_lists));
        }
        let n_parts = if config.n_parts == 0 { width / 8 } else { config.n_parts };
        let step = n.div_ceil(SAMPLE * n_lists);
        let chosen: Vec<f32> = rows.chunks_exact(width).step_by(step).flatten().copied().collect();
        let centers = kmeans(&chosen, width, n_lists, 8, config.seed);
        let mut scratch = Vec::new();
        for row in rows.chunks_exact_mut(width) {
            let (list, _) = centers.nearest(row, &mut scratch);
            row.iter_mut().zip(centers.row(list)).for_each(|(x, c)| *x -= c);
        }
        let quantizer = OptimizedProductQuantizer::train(&rows, width, n_parts, config.turns, config.seed)?;
        let lists = (0..n_lists).map(|_| List::default()).collect();
        let (places, slots) = (Vec::new(), Slots::default());
        Ok(Self { metric, config, width, rotation, centers, quantizer, lists, places, vectors, slots })
    }

    /// Number of lists.
    pub fn n_lists(&self) -> usize {
        self.lists.len()
    }

    fn prepared(&self, what: &'static str, vector: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        check_length(what, vector, self.vectors.dimension())?;
        let mut prepared = vector.to_vec();
        self.metric.prepare(what, &mut prepared)?;
        let mut rotated = prepared.clone();
        rotated.resize(self.width, 0.0);
        self.rotation.forward(&mut rotated)?;
        Ok((prepared, rotated))
    }
}

impl Index for Ivf {
    fn name(&self) -> &'static str {
        "ivf-pq"
    }

    fn metric(&self) -> Metric {
        self.metric
    }

    fn dimension(&self) -> usize {
        self.vectors.dimension()
    }

    fn len(&self) -> usize {
        self.slots.n_live
    }

    fn bytes(&self) -> usize {
        let lists: usize = self.lists.iter().map(|l| l.codes.len() + 8 * l.slots.len()).sum();
        let rotation = if self.config.turns > 0 { self.width } else { 0 };
        lists + 4 * self.places.len() + 4 * self.width * (self.centers.k + 256 + rotation)
    }

    fn insert(&mut self, vector: &[f32]) -> Result<u32> {
        let (prepared, mut rotated) = self.prepared("the vector", vector)?;
        let slot = self.slots.take(self.places.len())?;
        self.vectors.set(slot, &prepared)?;
        self.places.resize(self.vectors.len(), 0);
        let (list, _) = self.centers.nearest(&rotated, &mut Vec::new());
        rotated.iter_mut().zip(self.centers.row(list)).for_each(|(x, c)| *x -= c);
        let offset =
            if self.metric == Metric::L2 { crate::distance::norm_squared(&prepared) / 2.0 } else { 0.0 };
        self.places[slot as usize] = list as u32;
        let list = &mut self.lists[list];
        list.slots.push(slot);
        list.codes.extend(self.quantizer.encode(&rotated));
        list.offsets.push(offset);
        self.slots.show(slot);
        Ok(slot)
    }

    fn remove(&mut self, slot: u32) -> bool {
        if !self.slots.remove(slot) {
            return false;
        }
        let list = &mut self.lists[self.places[slot as usize] as usize];
        if let Some(at) = list.slots.iter().position(|&s| s == slot) {
            let (last, n_parts) = (list.slots.len() - 1, self.quantizer.n_parts());
            list.slots.swap_remove(at);
            list.offsets.swap_remove(at);
            list.codes.copy_within(last * n_parts.., at * n_parts);
            list.codes.truncate(last * n_parts);
        }
        true
    }

    fn search(&self, query: &[f32], search: &Search<'_>) -> Result<Vec<Neighbor>> {
        let (prepared, rotated) = self.prepared("the query", query)?;
        let k = search.k.min(self.slots.n_live);
        let (mut scratch, mut products) = (Vec::new(), Vec::new());
        let ranking = self.centers.ranking(&rotated, &mut scratch);
        self.centers.products(&rotated, &mut products);
        let table = self.quantizer.table(&rotated);
        let n_parts = self.quantizer.n_parts();
        let probes = search.effort.unwrap_or(self.config.probes).max(1);
        let mut candidates = TopK::new(k.saturating_mul(self.config.refine.max(1)));
        for (i, &(_, list)) in ranking.iter().enumerate() {
            // Go on beyond the probes until there are enough: a search never returns fewer than `k` if more
            // exist.
            if i >= probes && candidates.len() >= k {
                break;
            }
            let entries = &self.lists[list as usize];
            let product = products[list as usize];
            for ((&slot, code), offset) in
                entries.slots.iter().zip(entries.codes.chunks_exact(n_parts)).zip(&entries.offsets)
            {
                if search.allowed.is_none_or(|allowed| allowed.contains(slot)) {
                    candidates.push(slot, offset - (product + table_product(&table, code)));
                }
            }
        }
        let mut top = TopK::new(k);
        for candidate in candidates.into_neighbors() {
            let distance = self.vectors.distance(self.metric, &prepared, candidate.slot, None)?;
            top.push(candidate.slot, distance);
        }
        Ok(top.into_neighbors())
    }
}
