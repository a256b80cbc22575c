//! Exact search: a scan over eight-bit codes with proven bounds, and the few vectors that it leaves open in full
//! precision.
//!
//! The scan gives each distance an interval that holds for certain ([`ScalarCodes`]). With τ the k-th smallest upper
//! end, a vector whose lower end exceeds τ cannot be among the nearest k; all others are compared in full precision,
//! nearest lower end first, until the next lower end exceeds the k-th distance found. The result is that of a plain
//! scan of full vectors, ties aside, for a quarter of the bytes.
//!
//! # Cost
//! A byte a coordinate and vector is read, at the speed of the cache or memory that holds them.

use super::{Index, MAX_SLOTS, Neighbor, Search, TopK, Vectors};
use crate::{
    Bitset, Error, Metric, Result,
    metric::check_length,
    quantize::{ScalarCodes, ScalarQuery},
};
use std::cell::RefCell;

/// Rows of codes that are scanned at a time; they stay in the first cache for the query's second part.
const BLOCK: usize = 64;

/// Codes for the scan, and full vectors.
#[derive(Debug)]
pub struct Exact {
    pub(crate) codes: ScalarCodes,
    pub(crate) vectors: Vectors,
    pub(crate) live: Bitset,
    pub(crate) n_live: usize,
    /// Slots to hand out again.
    pub(crate) free: Vec<u32>,
}

/// Room that searches of one thread share.
#[derive(Debug, Default)]
struct Scratch {
    query: ScalarQuery,
    vector: Vec<f32>,
    /// Lower ends, and slots.
    open: Vec<(f32, u32)>,
}

thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());

impl Exact {
    /// An empty index.
    ///
    /// # Errors
    /// [`Error::DimensionRange`].
    pub fn new(metric: Metric, dimension: usize) -> Result<Self> {
        Ok(Self {
            codes: ScalarCodes::new(metric, dimension)?,
            vectors: Vectors::new(dimension)?,
            live: Bitset::new(0),
            n_live: 0,
            free: Vec::new(),
        })
    }

    /// Slots that exist, removed ones included.
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

    /// Adds a prepared vector, into a free slot if there is one.
    pub(crate) fn add(&mut self, prepared: &[f32]) -> Result<u32> {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.codes.set(slot as usize, prepared);
                self.vectors.set(slot, prepared)?;
                slot
            }
            None if self.codes.len() >= MAX_SLOTS => return Err(Error::Full { max: MAX_SLOTS }),
            None => {
                self.vectors.push(prepared)?;
                self.codes.push(prepared);
                (self.codes.len() - 1) as u32
            }
        };
        self.live.insert(slot);
        self.n_live += 1;
        Ok(slot)
    }

    /// Marks a slot as removed without handing it out again.
    pub(crate) fn retire(&mut self, slot: u32) -> bool {
        let was = self.live.contains(slot);
        if was {
            self.live.remove(slot);
            self.n_live -= 1;
        }
        was
    }

    /// The nearest among the live and allowed, by prepared query.
    pub(crate) fn scan(&self, prepared: &[f32], k: usize, allowed: Option<&Bitset>) -> Result<Vec<Neighbor>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { query, vector, open, .. } = scratch;
            self.codes.query(prepared, true, query);
            open.clear();
            let mut uppers = TopK::new(k.min(self.n_live));
            let all = allowed.is_none() && self.n_live == self.n_slots();
            let mut mask = [u64::MAX; 1];
            let (mut first, mut second) = ([0; BLOCK], [0; BLOCK]);
            let (mut distances, mut bounds) = ([0.0; BLOCK], [0.0; BLOCK]);
            for start in (0..self.n_slots()).step_by(BLOCK) {
                let n = BLOCK.min(self.n_slots() - start);
                if !all {
                    mask[0] = self.live.words()[start / 64];
                    if let Some(allowed) = allowed {
                        mask[0] &= allowed.words().get(start / 64).copied().unwrap_or(0);
                    }
                    if mask[0] == 0 {
                        continue;
                    }
                }
                // Where few rows are wanted, those alone are read.
                if mask[0].count_ones() < BLOCK as u32 / 8 {
                    let mut left = mask[0];
                    while left != 0 {
                        let i = left.trailing_zeros() as usize;
                        left &= left - 1;
                        let row = start + i..start + i + 1;
                        let dots = [&mut first[i..=i], &mut second[i..=i]];
                        self.codes.scan(query, row, dots, &mut distances[i..=i], &mut bounds[i..=i]);
                    }
                } else {
                    let dots = [&mut first[..n], &mut second[..n]];
                    self.codes.scan(query, start..start + n, dots, &mut distances[..n], &mut bounds[..n]);
                }
                let bound = uppers.bound();
                let mut left = mask[0] & below(&distances, &bounds, n, bound);
                while left != 0 {
                    let i = left.trailing_zeros() as usize;
                    left &= left - 1;
                    let slot = (start + i) as u32;
                    open.push((distances[i] - bounds[i], slot));
                    uppers.push(slot, distances[i] + bounds[i]);
                }
            }
            let bound = uppers.bound();
            open.retain(|&(lower, _)| lower <= bound);
            open.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let mut top = TopK::new(k.min(self.n_live));
            let metric = self.codes.metric();
            let squares: f64 = prepared.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            for (i, &(lower, slot)) in open.iter().enumerate() {
                if true_distance(metric, lower, squares) > top.bound() {
                    break;
                }
                if let Some(&(_, next)) = open.get(i + 2) {
                    self.vectors.prefetch(next);
                }
                top.push(slot, self.vectors.distance(metric, prepared, slot, vector)?);
            }
            Ok(top.into_neighbors())
        })
    }
}

/// The rows whose lower ends do not exceed the bound, a bit for each.
fn below(distances: &[f32; BLOCK], bounds: &[f32; BLOCK], n: usize, bound: f32) -> u64 {
    let mut below = 0;
    for i in 0..BLOCK {
        below |= u64::from(distances[i] - bounds[i] <= bound) << i;
    }
    if n < BLOCK { below & ((1 << n) - 1) } else { below }
}

/// What a distance less the part that is the same for all vectors is in full.
fn true_distance(metric: Metric, reduced: f32, query_squares: f64) -> f32 {
    match metric {
        // 1 − x is rounded; a step down keeps a lower end a lower end.
        Metric::Cosine => (1.0 + reduced) - f32::EPSILON,
        Metric::Dot => reduced,
        Metric::L2 => ((query_squares + 2.0 * f64::from(reduced)) as f32).next_down(),
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
        self.n_live
    }

    fn bytes(&self) -> usize {
        self.codes.bytes() + self.live.words().len() * 8
    }

    fn insert(&mut self, vector: &[f32]) -> Result<u32> {
        let prepared = self.prepared("the vector", vector)?;
        self.add(&prepared)
    }

    fn remove(&mut self, slot: u32) -> bool {
        let was = self.retire(slot);
        if was {
            self.free.push(slot);
        }
        was
    }

    fn search(&self, query: &[f32], search: &Search<'_>) -> Result<Vec<Neighbor>> {
        let prepared = self.prepared("the query", query)?;
        self.scan(&prepared, search.k, search.allowed)
    }
}
