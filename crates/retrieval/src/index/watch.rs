//! Whether walks find what they should: some are compared with an exact scan, and where too little was found,
//! the beam is widened, by √2 where little is missing and otherwise twofold, until a scan is the cheaper way.
//!
//! A graph over eight-bit codes finds nearly all of the nearest among vectors of the kind that models make.
//! Among others it may not: codes may not tell neighbors apart, because all vectors lie far from the origin
//! or one coordinate drowns the others, or many vectors may be copies of each other. Only a comparison shows
//! it.
//!
//! Queries are not all alike either: those that come from elsewhere than the vectors need a wider beam, and
//! so do those that want nearly as many as the beam holds; too few of them are compared to show among the
//! others. So queries are told apart by the distance of the nearest that their walks find and by how many
//! they want, and each kind is watched by itself. A walk of a kind that needs a wider beam than all of them
//! together is repeated with it.

use super::Neighbor;
use crate::Metric;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The first walks of a width, up to this number, are all compared.
const FIRST: u64 = 16;
/// After that, comparing takes about this part of the time.
const SHARE: f64 = 1.0 / 64.0;
/// At least this share of the neighbors that were compared must have been found.
const ENOUGH: f64 = 0.97;
/// Where less than this share was found, the beam is doubled.
const FAR_TOO_FEW: f64 = 0.9;
/// Fewer neighbors than this say nothing.
const MIN_WANTED: u64 = 32;
/// Each time that there are this many samples, older ones count half.
const MEMORY: u64 = 4096;

/// Powers of two of distances that are told apart; after that they begin anew.
const POWERS: i64 = 32;
/// Queries that want at least so many are told apart from those that want fewer.
const WANTED: [usize; 3] = [16, 64, 256];
/// Kinds of queries: powers of two of the distance, its sign, and how many are wanted.
const KINDS: usize = 2 * POWERS as usize * (WANTED.len() + 1);

/// A watch over all walks, and one over each kind of queries.
#[derive(Debug)]
pub(super) struct Watches {
    pub(super) all: Watch,
    kinds: [Watch; KINDS],
}

impl Default for Watches {
    fn default() -> Self {
        Self { all: Watch::default(), kinds: std::array::from_fn(|_| Watch::default()) }
    }
}

impl Watches {
    /// The watch over queries that want `k`, by what their walks found, nearest first.
    pub(super) fn kind(&self, metric: Metric, query: &[f32], k: usize, found: &[Neighbor]) -> &Watch {
        let distance = found.first().map_or(0.0, |nearest| f64::from(nearest.distance));
        // A product grows with the query's length, which makes it no harder.
        let unit = match metric {
            Metric::Dot => query.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt(),
            _ => 1.0,
        };
        let size = (distance.abs() / unit).max(f64::MIN_POSITIVE);
        let power = (size.log2().floor() as i64).rem_euclid(POWERS) as usize;
        let wanted = WANTED.partition_point(|&least| least <= k);
        &self.kinds[(wanted * POWERS as usize + power) * 2 + usize::from(distance < 0.0)]
    }

    /// Takes in what a walk with the beam for all found of the truth, and what the walk of its kind did.
    pub(super) fn note(&self, kind: &Watch, first: &[Neighbor], walked: &[Neighbor], truth: &[Neighbor]) {
        if self.all.note(first, truth) {
            // What was seen of kinds was seen with a narrower beam.
            self.kinds.iter().for_each(Watch::forget);
        } else {
            kind.note(walked, truth);
        }
    }

    /// How many kinds of queries need a wider beam than all together.
    pub(super) fn n_widened(&self) -> usize {
        self.kinds.iter().filter(|kind| kind.widenings.load(Relaxed) > 0).count()
    }
}

/// Samples of walks, and the width of the beam that follows from them.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// How often the beam was widened by √2.
    widenings: AtomicUsize,
    /// Walks of this width.
    walks: AtomicU64,
    found: AtomicU64,
    wanted: AtomicU64,
    /// Vectors that the samples of all widths looked at, and how wide their beams were together.
    looked_at: AtomicU64,
    widths: AtomicU64,
}

impl Watch {
    /// The width of the beam in place of this one.
    pub(super) fn widened(&self, effort: usize) -> usize {
        (effort as f64 * 2f64.powf(self.widenings.load(Relaxed) as f64 / 2.0)) as usize
    }

    /// Counts a walk. Returns whether it is to be compared with a scan, whose cost is given relative to the
    /// walk's.
    pub(super) fn is_sample(&self, cost_ratio: f64) -> bool {
        let walk = self.walks.fetch_add(1, Relaxed);
        let every = (cost_ratio.max(1.0) / SHARE).min(1e9) as u64;
        walk < FIRST || walk.is_power_of_two() || walk.is_multiple_of(every)
    }

    /// Takes in how many vectors a walk looked at.
    pub(super) fn note_cost(&self, looked_at: usize, width: usize) {
        self.looked_at.fetch_add(looked_at as u64, Relaxed);
        self.widths.fetch_add(width as u64, Relaxed);
    }

    /// How many vectors walks look at for each of their beam's width, if there were any.
    pub(super) fn looked_at(&self) -> Option<f64> {
        let widths = self.widths.load(Relaxed);
        (widths > 0).then(|| self.looked_at.load(Relaxed) as f64 / widths as f64)
    }

    /// Begins anew, with a beam as wide as that for all.
    fn forget(&self) {
        for count in [&self.walks, &self.found, &self.wanted] {
            count.store(0, Relaxed);
        }
        self.widenings.store(0, Relaxed);
    }

    /// Takes in what a walk found of the truth. Returns whether the beam is wider now.
    pub(super) fn note(&self, walked: &[Neighbor], truth: &[Neighbor]) -> bool {
        // By distance, so any of several equally near vectors counts.
        let bound = truth.last().map_or(f32::NEG_INFINITY, |last| last.distance);
        let found = walked.iter().filter(|n| n.distance <= bound).count().min(truth.len()) as u64;
        let found = self.found.fetch_add(found, Relaxed) + found;
        let wanted = self.wanted.fetch_add(truth.len() as u64, Relaxed) + truth.len() as u64;
        let share = found as f64 / wanted.max(1) as f64;
        let is_short = wanted >= MIN_WANTED && share < ENOUGH;
        if is_short {
            // Threads that note at the same time may widen twice, which is only wider.
            let more = if share < FAR_TOO_FEW { 2 } else { 1 };
            self.widenings.fetch_update(Relaxed, Relaxed, |n| Some((n + more).min(48))).ok();
            for count in [&self.walks, &self.found, &self.wanted] {
                count.store(0, Relaxed);
            }
        } else if wanted >= MEMORY {
            self.found.store(found / 2, Relaxed);
            self.wanted.store(wanted / 2, Relaxed);
        }
        is_short
    }

    /// The recall of the samples of this width, if there are any.
    pub(super) fn recall(&self) -> Option<f64> {
        let wanted = self.wanted.load(Relaxed);
        (wanted > 0).then(|| self.found.load(Relaxed) as f64 / wanted as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbors(distances: &[f32]) -> Vec<Neighbor> {
        distances.iter().zip(0..).map(|(&distance, slot)| Neighbor { slot, distance }).collect()
    }

    #[test]
    fn the_beam_widens_where_too_little_is_found() {
        let truth = neighbors(&[0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.5, 3.0]);
        // Of 32 that are wanted: all, all but one, two, eight, and none.
        for (missing, width) in [
            ([0, 0, 0, 0], 100),
            ([0, 1, 0, 0], 141),
            ([0, 1, 1, 0], 141),
            ([2, 2, 2, 2], 200),
            ([8, 8, 8, 8], 200),
        ] {
            let watch = Watch::default();
            for n in missing {
                assert_eq!(watch.widened(100), 100);
                assert!(watch.is_sample(5.0));
                watch.note(&truth[n..], &truth);
            }
            assert_eq!(watch.widened(100), width, "{missing:?}");
            assert_eq!(watch.recall().is_none(), width > 100);
        }
        // Of equally near ones any will do.
        let watch = Watch::default();
        for _ in 0..4 {
            watch.note(&neighbors(&[0.0, 1.0, 3.0, 3.0]), &neighbors(&[0.0, 1.0, 2.0, 3.0]));
        }
        for _ in 0..100 {
            watch.note(&neighbors(&[]), &neighbors(&[]));
        }
        assert_eq!((watch.widened(100), watch.recall()), (100, Some(1.0)));
    }

    #[test]
    fn samples_become_seldom() {
        let watch = Watch::default();
        let n = (0..100_000).filter(|_| watch.is_sample(2.0)).count();
        assert!((700..1000).contains(&n), "{n}");
    }
    #[test]
    fn kinds_of_queries_are_judged_by_themselves() {
        let watches = Watches::default();
        let truth = neighbors(&[1.0; 10]);
        let at = |distance: f32| watches.kind(Metric::L2, &[3.0], 10, &neighbors(&[distance]));
        let (near, far) = (at(0.01), at(100.0));
        assert!(std::ptr::eq(near, at(0.011)) && !std::ptr::eq(near, far));
        let want = |k: usize| watches.kind(Metric::L2, &[3.0], k, &neighbors(&[0.01]));
        assert!(std::ptr::eq(near, want(1)) && std::ptr::eq(want(100), want(128)));
        assert!(!std::ptr::eq(near, want(100)) && !std::ptr::eq(want(100), want(usize::MAX)));
        // A product is far by its direction, not by the query's length.
        let product =
            |query: f32, distance: f32| watches.kind(Metric::Dot, &[query, 0.0], 10, &neighbors(&[distance]));
        assert!(std::ptr::eq(product(1.0, -5.0), product(1000.0, -5000.0)));
        assert!(!std::ptr::eq(product(1.0, -5.0), product(1.0, 5.0)));
        assert!(std::ptr::eq(at(0.0), watches.kind(Metric::L2, &[], 0, &[])));
        // Many that find everything, and a few that find half: these walk with a wider beam.
        (0..400).for_each(|_| watches.note(near, &truth, &truth, &truth));
        (0..4).for_each(|_| watches.note(far, &truth[5..], &truth[5..], &truth));
        assert_eq!((watches.all.widened(100), near.widened(100), far.widened(100)), (100, 100, 200));
        // Once most find too little, the beam for all is widened, and kinds begin anew.
        (0..80).for_each(|_| watches.note(far, &truth[5..], &truth, &truth));
        assert!(watches.all.widened(100) > 100);
        assert_eq!((near.widened(100), far.widened(100), watches.n_widened()), (100, 100, 0));
    }
}
