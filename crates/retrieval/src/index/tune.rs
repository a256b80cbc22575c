//! The beam that a graph needs for a wanted recall, measured by searches.

use super::{Graph, Index as _, Neighbor, Search};
use crate::{Error, Result};

/// The widest beam that is tried.
const MAX_EFFORT: usize = 1 << 14;

/// A width of the beam and what it found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuned {
    /// Width of the beam.
    pub effort: usize,
    /// Share of the true nearest `k` that was found, over all queries.
    pub recall: f64,
}

impl Graph {
    /// The narrowest beam, to within an eighth, that finds this share of the nearest `k` of these queries.
    ///
    /// The truth comes from exact search over the same vectors. Take queries of the kind that will be asked;
    /// with stored vectors, each of which finds itself, the result is too good. Without vectors there is
    /// nothing to measure, and the beam stays as wide as it is.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a recall outside of 0 to 1 and for no queries, and those of searches.
    pub fn tune(&self, queries: &[Vec<f32>], k: usize, recall: f64) -> Result<Tuned> {
        let now = Size { n: self.len(), effort: self.config.effort };
        tune(now, queries, k, recall, |query, effort| match effort {
            None => self.exact().search(query, &Search::new(k)),
            Some(effort) => self.search(query, &Search::new(k).effort(effort)),
        })
    }
}

/// What can be tuned: it has a number of vectors and a width of the beam.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) n: usize,
    pub(crate) effort: usize,
}

/// [`Graph::tune`], with a function that searches with a given width of the beam or, without one, exactly.
pub(crate) fn tune(
    now: Size,
    queries: &[Vec<f32>],
    k: usize,
    recall: f64,
    search: impl Fn(&[f32], Option<usize>) -> Result<Vec<Neighbor>>,
) -> Result<Tuned> {
    if !(0.0..=1.0).contains(&recall) {
        return Err(Error::parameter("recall", "0 to 1", recall));
    }
    if queries.is_empty() || k == 0 {
        return Err(Error::parameter("queries and k", "at least one", queries.len().min(k)));
    }
    let truth: Vec<_> = queries.iter().map(|query| search(query, None)).collect::<Result<_>>()?;
    if now.n == 0 {
        return Ok(Tuned { effort: now.effort, recall: 1.0 });
    }
    let measure = |effort: usize| -> Result<f64> {
        let (mut found, mut all) = (0usize, 0usize);
        for (query, truth) in queries.iter().zip(&truth) {
            let near = search(query, Some(effort))?;
            // By distance, so any of several equally near vectors counts.
            let bound = truth.last().map_or(f32::NEG_INFINITY, |last| last.distance);
            found += near.iter().filter(|n| n.distance <= bound).count().min(truth.len());
            all += truth.len();
        }
        Ok(found as f64 / all.max(1) as f64)
    };
    // Nobody finds more than there are.
    let mut enough = k.min(now.n).clamp(8, MAX_EFFORT);
    let mut too_few = enough;
    let mut reached = measure(enough)?;
    while reached < recall && enough < MAX_EFFORT.min(2 * now.n.max(8)) {
        too_few = enough;
        enough *= 2;
        reached = measure(enough)?;
    }
    while enough > too_few + too_few / 8 {
        let middle = too_few.midpoint(enough);
        let found = measure(middle)?;
        if found >= recall {
            (enough, reached) = (middle, found);
        } else {
            too_few = middle;
        }
    }
    Ok(Tuned { effort: enough, recall: reached })
}
