//! Exact search: scans over four and eight bits with proven bounds, then the few vectors that the bounds
//! leave undecided in full precision.
//!
//! Eight bits give each distance an interval that holds for certain ([`ScalarCodes`]). With τ the k-th
//! smallest upper end, a vector whose lower end exceeds τ cannot be among the nearest k; all others are
//! compared in full precision, nearest lower end first, until the next lower end exceeds the k-th distance
//! found. The result is that of a plain scan of full vectors, ties aside. Four bits, where there is memory
//! for them, give wider intervals that hold as well (`quantize::coarse`); only where their lower ends do not
//! exceed τ are the eight bits read.
//!
//! # Cost
//! Half a byte a coordinate and vector is read, an eighth of what floats take, at the speed of the cache or
//! memory that holds them; a byte without the four bits.

use super::{
    Index, Neighbor, Search, TopK, Vectors,
    center::{self, Drift},
    slots::Slots,
};
use crate::{
    Metric, Result,
    metric::check_length,
    quantize::{CoarseCodes, GROUP, ScalarCodes, ScalarQuery},
};
use std::cell::RefCell;

/// Up to this many rows of a group are read one by one, in eight bits at once.
const FEW: usize = 12;

/// Exact search: codes for the scan, and full vectors.
///
/// # Example
/// ```
/// use breakers_retrieval::{Bitset, Metric, index::{Exact, Index, Search}};
///
/// let mut index = Exact::new(Metric::L2, 2)?;
/// let slots = [[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]].map(|vector| index.insert(&vector).unwrap());
/// assert_eq!(index.search(&[0.9, 0.1], &Search::new(1))?[0].slot, slots[1]);
///
/// // Only among some of the slots.
/// let mut allowed = Bitset::new(3);
/// allowed.insert(slots[2]);
/// assert_eq!(index.search(&[0.9, 0.1], &Search::new(3).among(&allowed))?.len(), 1);
/// # Ok::<(), breakers_retrieval::Error>(())
/// ```
#[derive(Debug)]
pub struct Exact {
    pub(crate) codes: ScalarCodes,
    /// The same in four bits, where there is memory for them.
    pub(crate) coarse: Option<CoarseCodes>,
    pub(crate) vectors: Vectors,
    pub(crate) slots: Slots,
    pub(crate) drift: Drift,
    /// The number of vectors that there is room for.
    expected: usize,
}

/// Buffers that the searches of one thread share.
#[derive(Debug, Default)]
struct Scratch {
    query: ScalarQuery,
    /// Lower ends, and slots.
    open: Vec<(f32, u32)>,
}

thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());

impl Exact {
    /// An empty index.
    ///
    /// # Errors
    /// [`Error::DimensionRange`](crate::Error::DimensionRange).
    pub fn new(metric: Metric, dimension: usize) -> Result<Self> {
        let codes = ScalarCodes::new(metric, dimension)?;
        let coarse = Some(CoarseCodes::new(codes.stride()));
        let vectors = Vectors::new(dimension)?;
        Ok(Self { codes, coarse, vectors, slots: Slots::default(), drift: Drift::default(), expected: 0 })
    }

    /// An empty index that keeps only eight bits a coordinate of each vector; the full vectors stay with its
    /// owner.
    ///
    /// # Errors
    /// [`Error::DimensionRange`](crate::Error::DimensionRange).
    pub(crate) fn lean(metric: Metric, dimension: usize) -> Result<Self> {
        let vectors = Vectors::elsewhere(dimension)?;
        Ok(Self { coarse: None, vectors, ..Self::new(metric, dimension)? })
    }

    /// Reserves room for `n` vectors. Without it, buffers are moved as they grow and are in memory twice for
    /// a moment.
    pub(crate) fn reserve(&mut self, n: usize) {
        self.expected = n;
        self.codes.reserve(n);
        self.vectors.reserve(n);
    }

    /// The number of slots, including removed ones.
    pub fn n_slots(&self) -> usize {
        self.codes.len()
    }

    /// Checks a vector and makes it comparable.
    pub(crate) fn prepared(&self, what: &'static str, vector: &[f32]) -> Result<Vec<f32>> {
        check_length(what, vector, self.codes.dimension())?;
        let mut prepared = vector.to_vec();
        self.codes.metric().prepare(what, &mut prepared)?;
        Ok(prepared)
    }

    /// Adds a prepared vector.
    pub(crate) fn add(&mut self, prepared: &[f32]) -> Result<u32> {
        self.look_at_center(prepared);
        let slot = self.place(prepared)?;
        self.slots.show(slot);
        Ok(slot)
    }

    /// Stores a prepared vector, which searches do not find yet, in a free slot if there is one.
    pub(crate) fn place(&mut self, prepared: &[f32]) -> Result<u32> {
        let slot = self.slots.take(self.codes.len())?;
        self.set(slot, prepared)?;
        self.drift.add(1);
        Ok(slot)
    }

    /// Sets the prepared vector of an existing slot, or of the one after the last.
    pub(crate) fn set(&mut self, slot: u32, prepared: &[f32]) -> Result<()> {
        self.vectors.set(slot, prepared)?;
        if slot as usize == self.codes.len() {
            self.codes.push(prepared);
        } else {
            self.codes.set(slot as usize, prepared);
        }
        if let Some(coarse) = &mut self.coarse {
            coarse.set(&self.codes, slot as usize);
        }
        Ok(())
    }

    /// If it is time and all vectors are in memory, looks for a center that suits them better. Returns
    /// whether the codes are new. `coming` is about to be added.
    pub(crate) fn look_at_center(&mut self, coming: &[f32]) -> bool {
        if !self.drift.is_due(self.slots.n_live, 1) || !self.vectors.are_here() {
            return false;
        }
        self.drift = Drift::default();
        let live: Vec<u32> = self.slots.live.iter().collect();
        let found = center::evenly(live.len()).filter_map(|i| self.vectors.get(live[i]));
        let sample: Vec<Vec<f32>> = found.chain([coming]).map(<[f32]>::to_vec).collect();
        let better = center::better(self.codes.center(), &sample);
        let is_new = better.is_some();
        if let Some(center) = better {
            let mut codes = self.codes.around(center, self.codes.len());
            (0..codes.len() as u32).for_each(|slot| {
                if let Some(vector) = self.vectors.get(slot) {
                    codes.set(slot as usize, vector);
                }
            });
            let coarse = self.coarse.is_some().then(|| CoarseCodes::of(&codes));
            self.adopt(codes, coarse);
        }
        is_new
    }

    /// Replaces the codes by codes of the same vectors relative to another center.
    pub(crate) fn adopt(&mut self, mut codes: ScalarCodes, coarse: Option<CoarseCodes>) {
        codes.reserve(self.expected);
        (self.codes, self.coarse) = (codes, coarse);
    }

    /// The nearest vectors that are live and allowed; the query is prepared.
    pub(crate) fn scan(&self, prepared: &[f32], search: &Search<'_>) -> Result<Vec<Neighbor>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { query, open } = scratch;
            self.codes.query(prepared, true, query);
            open.clear();
            let k = search.k.min(self.slots.n_live);
            let mut uppers = TopK::new(k);
            let mut intervals = [(0.0, 0.0); GROUP];
            for (group, &live) in self.slots.live.words().iter().enumerate() {
                let mut mask =
                    live & search.allowed.map_or(u64::MAX, |a| a.words().get(group).copied().unwrap_or(0));
                if let Some(coarse) = &self.coarse
                    && mask.count_ones() as usize > FEW
                    && uppers.bound() < f32::INFINITY
                {
                    mask &= coarse.open(query, group, uppers.bound());
                }
                if mask == 0 {
                    continue;
                }
                let mut offer = |slot: u32, (distance, bound): (f32, f32)| {
                    if distance - bound <= uppers.bound() {
                        open.push((distance - bound, slot));
                        uppers.push(slot, distance + bound);
                    }
                };
                let first = group * GROUP;
                // If few rows are wanted, only those are read.
                if mask.count_ones() as usize <= FEW {
                    let mut slots = [0; FEW];
                    let n = bits(mask).zip(&mut slots).map(|(bit, slot)| *slot = first as u32 + bit).count();
                    self.codes.intervals(query, &slots[..n], &mut intervals[..n]);
                    slots[..n].iter().zip(&intervals).for_each(|(&slot, &interval)| offer(slot, interval));
                } else {
                    let rows = first..self.n_slots().min(first + GROUP);
                    self.codes.scan(query, rows.clone(), &mut intervals[..rows.len()]);
                    bits(mask).for_each(|bit| offer(first as u32 + bit, intervals[bit as usize]));
                }
            }
            let bound = uppers.bound();
            open.retain(|&(lower, _)| lower <= bound);
            open.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let mut top = TopK::new(k);
            let metric = self.codes.metric();
            for (i, &(lower, slot)) in open.iter().enumerate() {
                if true_distance(metric, lower, query.base) > top.bound() {
                    break;
                }
                if let Some(&(_, next)) = open.get(i + 2) {
                    self.vectors.prefetch(next);
                }
                top.push(slot, self.vectors.distance(metric, prepared, slot, search.source)?);
            }
            Ok(top.into_neighbors())
        })
    }
}

/// The positions of the bits that are set.
fn bits(mut mask: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then_some(mask.trailing_zeros());
        mask &= mask.wrapping_sub(1);
        bit
    })
}

/// A lower end of the distance in full, of one that lacks the part that is the same for all vectors.
fn true_distance(metric: Metric, reduced: f32, base: f64) -> f32 {
    let distance = base + f64::from(reduced);
    // Rounded to 32 bits; a step down keeps a lower end a lower end.
    match metric {
        Metric::Cosine => (distance as f32).next_down().min(2.0),
        Metric::Dot => (distance as f32).next_down(),
        Metric::L2 => ((2.0 * distance) as f32).next_down(),
    }
}

impl Index for Exact {
    fn name(&self) -> &'static str {
        "exact"
    }

    fn metric(&self) -> Metric {
        self.codes.metric()
    }

    fn dimension(&self) -> usize {
        self.codes.dimension()
    }

    fn len(&self) -> usize {
        self.slots.n_live
    }

    fn bytes(&self) -> usize {
        let coarse = self.coarse.as_ref().map_or(0, CoarseCodes::bytes);
        self.codes.bytes() + coarse + self.slots.live.words().len() * 8
    }

    fn insert(&mut self, vector: &[f32]) -> Result<u32> {
        let prepared = self.prepared("the vector", vector)?;
        self.add(&prepared)
    }

    fn remove(&mut self, slot: u32) -> bool {
        self.slots.remove(slot)
    }

    fn search(&self, query: &[f32], search: &Search<'_>) -> Result<Vec<Neighbor>> {
        let prepared = self.prepared("the query", query)?;
        self.scan(&prepared, search)
    }
}
