//! How a query is answered, and why.

use super::{
    Graph, GraphConfig, Index as _, Neighbor, Search,
    graph::Walked,
    watch::{Watch, Watches},
};
use crate::Result;
use std::fmt;

/// The cost of a walk for each vector of its beam, in vectors scanned: links are followed one after the
/// other, and their codes are not adjacent in memory. Measured in `docs/vector-store.md`.
const WALK_COST: f64 = 80.0;
/// The cost of reading a single row, in rows scanned.
const GATHER_COST: f64 = 2.0;

/// What a walk costs for each vector that it looks at, in vectors of a scan: its codes lie apart, at twice
/// the bits. Measured at strides of 64 and 384: `docs/vector-store.md`.
fn look_cost(stride: usize) -> f64 {
    (300.0 + stride as f64) / (12.0 + 0.3 * stride as f64)
}

/// A way to answer a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// Nothing can be found.
    Nothing,
    /// The graph, among all points; exactly if it turns out that codes cannot tell the nearest apart.
    Walk,
    /// All points, exactly.
    Scan,
    /// The graph, with a beam wide enough that enough of it should satisfy the filter; an exact scan if too
    /// little of it does.
    FilteredWalk,
    /// The points that satisfy the filter, exactly.
    FilteredScan,
}

/// How a query is answered, and why. Displays as a few lines of text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// The way that was chosen.
    pub strategy: Strategy,
    /// Why.
    pub reason: String,
    /// Points in the collection.
    pub n_points: usize,
    /// Points that satisfy the filter.
    pub n_matching: usize,
    /// Width of the beam, if the graph is walked.
    pub effort: usize,
    /// What a walk would cost, in vectors scanned.
    pub walk_cost: f64,
    /// What a scan would cost, in vectors scanned.
    pub scan_cost: f64,
    /// Further remarks.
    pub notes: Vec<String>,
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.strategy {
            Strategy::Nothing => "nothing to search".to_owned(),
            Strategy::Walk => format!("walk the graph, beam of {}", self.effort),
            Strategy::Scan => "scan all points".to_owned(),
            Strategy::FilteredWalk => format!("walk the graph, beam of {}, keep what matches", self.effort),
            Strategy::FilteredScan => "scan the points that match".to_owned(),
        };
        writeln!(out, "{way}: {}", self.reason)?;
        let share = 100.0 * self.n_matching as f64 / self.n_points.max(1) as f64;
        writeln!(out, "  {} of {} points match ({share:.3} %)", self.n_matching, self.n_points)?;
        write!(out, "  cost in points scanned: walk {:.0}, scan {:.0}", self.walk_cost, self.scan_cost)?;
        self.notes.iter().try_for_each(|note| write!(out, "\n  {note}"))
    }
}

impl Graph {
    /// Chooses between walk and scan.
    pub(crate) fn plan(&self, search: &Search<'_>) -> Plan {
        let n_points = self.len();
        let n_matching = match search.allowed {
            None => n_points,
            Some(allowed) => {
                let live = self.flat.slots.live.words().iter().zip(allowed.words());
                live.map(|(a, b)| (a & b).count_ones() as usize).sum()
            }
        };
        let k = search.k.min(n_matching);
        let watches = self.watches(search);
        let watch = watches.map(|watches| &watches.all);
        let effort = match search.effort {
            Some(effort) => effort,
            None => watch.map_or(self.config.effort, |watch| watch.widened(self.config.effort)),
        };
        let effort = effort.max(k);
        // Wide enough to hold `effort` matching points if they are spread evenly.
        let slots = self.flat.n_slots() as f64;
        let wide = (effort as f64 * slots / n_matching.max(1) as f64).ceil().max(1.0);
        let looked_at = watch.and_then(Watch::looked_at);
        // A beam that had to be widened is held against a scan by what its walks look at.
        let by_sample = looked_at.filter(|_| effort > self.config.effort);
        let look_cost = look_cost(self.flat.codes.stride());
        let walk_cost = wide * by_sample.map_or(WALK_COST, |n| WALK_COST.max(look_cost * n));
        let scan_cost = (GATHER_COST * n_matching as f64).min(slots);
        let (strategy, reason) = if k == 0 {
            (Strategy::Nothing, "no point matches, or none is wanted")
        } else if scan_cost <= walk_cost {
            let scan = if search.allowed.is_some() { Strategy::FilteredScan } else { Strategy::Scan };
            (scan, "the cheaper way")
        } else {
            let walk = if search.allowed.is_some() { Strategy::FilteredWalk } else { Strategy::Walk };
            (walk, "the cheaper way")
        };
        Plan {
            strategy,
            reason: reason.to_owned(),
            n_points,
            n_matching,
            effort: wide as usize,
            walk_cost,
            scan_cost,
            notes: watch
                .and_then(Watch::recall)
                .map(|recall| format!("walks that were compared with a scan found {:.1} %", 100.0 * recall))
                .into_iter()
                .chain(looked_at.map(|n| format!("they looked at {n:.1} vectors for each of their beam")))
                .chain(
                    watches
                        .map(Watches::n_widened)
                        .filter(|&n| n > 0)
                        .map(|n| format!("queries of {n} kinds walk with a wider beam")),
                )
                .collect(),
        }
    }

    /// The watches over walks with a filter or over those without, if the caller chose no width.
    fn watches(&self, search: &Search<'_>) -> Option<&Watches> {
        let is_filtered = search.allowed.is_some();
        let is_chosen = search.effort.is_some() || self.config.effort != GraphConfig::default().effort;
        (is_filtered || !is_chosen)
            .then(|| &self.watches[usize::from(is_filtered)])
            .filter(|_| search.effort.is_none())
    }

    /// Answers a query, whose vector is prepared, as planned.
    pub(crate) fn execute(
        &self,
        prepared: &[f32],
        search: &Search<'_>,
        plan: &Plan,
    ) -> Result<Vec<Neighbor>> {
        let search = &Search { k: search.k.min(plan.n_matching), ..*search };
        match plan.strategy {
            Strategy::Nothing => Ok(Vec::new()),
            Strategy::Scan | Strategy::FilteredScan => self.flat.scan(prepared, search),
            Strategy::Walk | Strategy::FilteredWalk => {
                let Walked { mut found, looked_at, mut is_blind } =
                    self.walk(prepared, plan.effort, search)?;
                if let Some(watches) = self.watches(search) {
                    let kind = watches.kind(self.flat.metric(), prepared, search.k, &found);
                    let effort = kind.widened(plan.effort);
                    let cost = plan.walk_cost * effort as f64 / plan.effort as f64;
                    if cost > plan.scan_cost {
                        return self.flat.scan(prepared, search);
                    }
                    let is_sample = kind.is_sample(plan.scan_cost / cost);
                    let first = if is_sample { found.clone() } else { Vec::new() };
                    if effort > plan.effort {
                        Walked { found, is_blind, .. } = self.walk(prepared, effort, search)?;
                    }
                    if is_sample {
                        let truth = self.flat.scan(prepared, search)?;
                        watches.note(kind, &first, &found, &truth);
                        watches.all.note_cost(looked_at, plan.effort);
                        return Ok(truth);
                    }
                }
                // What matches may lie far from the query: then little of the beam does. Whoever chose the
                // beam's width gets what it sees.
                if found.len() < search.k || is_blind && search.effort.is_none() {
                    self.flat.scan(prepared, search)
                } else {
                    Ok(found)
                }
            }
        }
    }
}
