//! A scan over RaBitQ codes, and full vectors for those that the lower ends of their bounds do not exclude.
//!
//! The k nearest by their estimates are compared in full precision first. With τ the k-th of these distances,
//! all others whose lower end does not exceed it are compared too, lowest end first. A vector is missed only
//! if its bound does not hold, which happens for about one in thirty at [`EPSILON`], and if it is nearer than
//! its bound by more than the margin to τ.
//!
//! # Memory
//! `bits` a coordinate and 20 bytes a vector; full vectors come on top of it.
//!
//! # Source
//! As [`RabitqCodes`]; re-ranking by the bound: arXiv 2405.12497, section 4.

use super::{Index, Neighbor, Search, TopK, Vectors, slots::Slots};
use crate::{
    Error, Metric, Result,
    metric::check_length,
    quantize::{EPSILON, Estimate, RabitqCodes},
};
use std::cell::RefCell;

/// RaBitQ codes of one to eight bits, and full vectors.
#[derive(Debug)]
pub struct Rabitq {
    metric: Metric,
    codes: RabitqCodes,
    vectors: Vectors,
    slots: Slots,
}

thread_local!(static ESTIMATES: RefCell<Vec<Estimate>> = RefCell::default());

impl Rabitq {
    /// An empty index, whose center is the mean of these vectors.
    ///
    /// # Errors
    /// [`Error::DimensionRange`], [`Error::Parameter`] unless `bits` is 1 to 8 and there is a vector, and
    /// those of [`Metric::prepare`].
    pub fn train<'a>(
        metric: Metric,
        dimension: usize,
        sample: impl IntoIterator<Item = &'a [f32]>,
        bits: u32,
        seed: u64,
    ) -> Result<Self> {
        let vectors = Vectors::new(dimension)?;
        let (mut sum, mut n) = (vec![0.0f64; dimension], 0u32);
        for vector in sample {
            check_length("a vector to learn from", vector, dimension)?;
            let mut prepared = vector.to_vec();
            metric.prepare("a vector to learn from", &mut prepared)?;
            sum.iter_mut().zip(&prepared).for_each(|(sum, &x)| *sum += f64::from(x));
            n += 1;
        }
        if n == 0 {
            return Err(Error::parameter("vectors to learn from", "at least one", n));
        }
        let center: Vec<f32> = sum.iter().map(|sum| (sum / f64::from(n)) as f32).collect();
        let codes = RabitqCodes::new(metric, &center, bits, seed)?;
        Ok(Self { metric, codes, vectors, slots: Slots::default() })
    }

    fn prepared(&self, what: &'static str, vector: &[f32]) -> Result<Vec<f32>> {
        check_length(what, vector, self.vectors.dimension())?;
        let mut prepared = vector.to_vec();
        self.metric.prepare(what, &mut prepared)?;
        Ok(prepared)
    }
}

impl Index for Rabitq {
    fn name(&self) -> &'static str {
        "rabitq"
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
        self.codes.bytes() + self.slots.live.words().len() * 8
    }

    fn insert(&mut self, vector: &[f32]) -> Result<u32> {
        let prepared = self.prepared("the vector", vector)?;
        let slot = self.slots.take(self.codes.len())?;
        if slot as usize == self.codes.len() {
            self.codes.push(&prepared)?;
        } else {
            self.codes.set(slot as usize, &prepared)?;
        }
        self.vectors.set(slot, &prepared)?;
        self.slots.show(slot);
        Ok(slot)
    }

    fn remove(&mut self, slot: u32) -> bool {
        self.slots.remove(slot)
    }

    /// The effort is the largest number of vectors that are compared in full precision; without it, only the
    /// bounds decide.
    fn search(&self, query: &[f32], search: &Search<'_>) -> Result<Vec<Neighbor>> {
        let prepared = self.prepared("the query", query)?;
        let k = search.k.min(self.slots.n_live);
        ESTIMATES.with_borrow_mut(|estimates| {
            estimates.resize(self.codes.len(), Estimate { distance: 0.0, lower: 0.0 });
            self.codes.scan(&self.codes.query(&prepared)?, EPSILON, estimates)?;
            let wanted = |slot| search.allowed.is_none_or(|allowed| allowed.contains(slot));
            let mut near = TopK::new(k);
            for slot in self.slots.live.iter().filter(|&slot| wanted(slot)) {
                near.push(slot, estimates[slot as usize].distance);
            }
            let mut top = TopK::new(k);
            let compare = |top: &mut TopK, slot| -> Result<()> {
                top.push(slot, self.vectors.distance(self.metric, &prepared, slot, None)?);
                Ok(())
            };
            let farthest = near.bound();
            let near = near.into_neighbors();
            near.iter().try_for_each(|n| compare(&mut top, n.slot))?;
            // A vector that was compared already is no farther than the last of them; of equal estimates, the
            // slot tells.
            let last = near.last().map_or(0, |n| n.slot);
            let compared =
                |slot: u32, distance: f32| distance < farthest || (distance == farthest && slot <= last);
            let bound = top.bound();
            let mut open: Vec<(f32, u32)> = self
                .slots
                .live
                .iter()
                .map(|slot| (slot, estimates[slot as usize]))
                .filter(|&(slot, e)| e.lower <= bound && !compared(slot, e.distance) && wanted(slot))
                .map(|(slot, e)| (e.lower, slot))
                .collect();
            open.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let most = search.effort.map_or(usize::MAX, |effort| effort.saturating_sub(near.len()));
            for &(lower, slot) in open.iter().take(most) {
                if lower > top.bound() {
                    break;
                }
                compare(&mut top, slot)?;
            }
            Ok(top.into_neighbors())
        })
    }
}
