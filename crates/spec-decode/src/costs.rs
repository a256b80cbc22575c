//! Running medians of measured times by count (rows verified, tokens drafted).

/// How many of the latest measurements a median uses.
const WINDOW: usize = 7;
/// A measurement that is not repeated is forgotten after this many others, of any count.
const FORGET_AFTER: u64 = 256;

#[derive(Clone, Debug, Default)]
struct Entry {
    recent: [f64; WINDOW],
    n: usize,
    measured_at: u64,
}

impl Entry {
    fn median(&self) -> f64 {
        let n = self.n.min(WINDOW);
        let mut sorted = self.recent;
        sorted[..n].sort_unstable_by(f64::total_cmp);
        // The lower of the two middle values, because disturbances only add time.
        sorted[(n - 1) / 2]
    }
}

/// Seconds as a non-decreasing function of a count of at least 1.
#[derive(Clone, Debug)]
pub(crate) struct CostTable {
    /// `entries[i]`: measurements of count i + 1.
    entries: Vec<Option<Entry>>,
    /// Relative growth per count that is assumed until a second count has been measured: cost(n) ∝ 1 +
    /// growth·(n − 1).
    growth: f64,
    n_measured: u64,
}

impl CostTable {
    pub(crate) fn new(growth: f64) -> Self {
        Self { entries: Vec::new(), growth, n_measured: 0 }
    }

    /// Notes one measurement. Times that are not finite and counts of 0 are ignored.
    pub(crate) fn record(&mut self, count: usize, seconds: f64) {
        if count == 0 || !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        self.n_measured += 1;
        if self.entries.len() < count {
            self.entries.resize(count, None);
        }
        let entry = self.entries[count - 1].get_or_insert_default();
        entry.recent[entry.n % WINDOW] = seconds;
        entry.n += 1;
        entry.measured_at = self.n_measured;
        // The entry for a single row is kept, because everything is compared with it.
        for other in self.entries.iter_mut().skip(1) {
            if other.as_ref().is_some_and(|e| self.n_measured - e.measured_at > FORGET_AFTER) {
                *other = None;
            }
        }
    }

    /// Measurements, of any count, since this count was measured; `None` if it never was.
    pub(crate) fn age(&self, count: usize) -> Option<u64> {
        let entry = self.entries.get(count.checked_sub(1)?)?.as_ref()?;
        Some(self.n_measured - entry.measured_at)
    }

    /// Measured counts, ascending, with their seconds. A larger count never costs less, so its time is an
    /// upper bound for smaller ones.
    fn anchors(&self) -> Vec<(usize, f64)> {
        let mut anchors: Vec<(usize, f64)> = self
            .entries
            .iter()
            .enumerate()
            .filter_map(|(i, e)| Some((i + 1, e.as_ref()?.median())))
            .collect();
        for i in (1..anchors.len()).rev() {
            anchors[i - 1].1 = anchors[i - 1].1.min(anchors[i].1);
        }
        anchors
    }

    /// The estimates for counts 1 to `n`; `None` if nothing has been measured yet.
    pub(crate) fn estimates(&self, n: usize) -> Option<Vec<f64>> {
        let anchors = self.anchors();
        let (&first, &last) = (anchors.first()?, anchors.last()?);
        let shape = |count: usize| 1.0 + self.growth * (count as f64 - 1.0);
        let slope = match last.0 > first.0 {
            true => (last.1 - first.1) / (last.0 - first.0) as f64,
            false => last.1 * self.growth / shape(last.0),
        };
        let estimate = |count: usize| -> f64 {
            if count <= first.0 {
                return first.1 * shape(count) / shape(first.0);
            }
            match anchors.windows(2).find(|pair| count <= pair[1].0) {
                Some(pair) => {
                    let ((a, at_a), (b, at_b)) = (pair[0], pair[1]);
                    at_a + (at_b - at_a) * (count - a) as f64 / (b - a) as f64
                }
                None => last.1 + slope * (count - last.0) as f64,
            }
        };
        Some((1..=n).map(estimate).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_between_and_beyond_measurements() {
        let check = |growth, measured: &[(usize, f64)], expected: &[f64]| {
            let mut table = CostTable::new(growth);
            measured.iter().for_each(|&(count, seconds)| table.record(count, seconds));
            let found = table.estimates(expected.len()).unwrap();
            for (f, e) in found.iter().zip(expected) {
                assert!((f - e).abs() < 1e-12, "{measured:?}: {found:?}, expected {expected:?}");
            }
        };
        // With one anchor: the assumed growth, in both directions.
        check(0.5, &[(1, 2.0)], &[2.0, 3.0, 4.0]);
        check(1.0, &[(3, 3.0)], &[1.0, 2.0, 3.0, 4.0]);
        // With two: linear interpolation and extrapolation.
        check(0.5, &[(1, 1.0), (3, 2.0)], &[1.0, 1.5, 2.0, 2.5]);
        // A disturbed measurement is bounded by that of a larger count, and by the median.
        check(0.5, &[(1, 1.0), (2, 90.0), (3, 2.0)], &[1.0, 2.0, 2.0]);
        check(0.0, &[(1, 1.0), (1, 50.0), (1, 1.0)], &[1.0]);
        check(0.0, &[(1, 1.0), (1, 50.0)], &[1.0]);
        // Invalid measurements are ignored.
        check(0.0, &[(1, 1.0), (1, f64::NAN), (0, 3.0), (2, -1.0)], &[1.0, 1.0]);
        assert_eq!(CostTable::new(1.0).estimates(3), None);
    }

    #[test]
    fn the_window_follows_a_change() {
        let mut table = CostTable::new(0.0);
        (0..20).for_each(|_| table.record(1, 1.0));
        (0..WINDOW / 2 + 1).for_each(|_| table.record(1, 3.0));
        assert_eq!(table.estimates(1), Some(vec![3.0]));
    }

    #[test]
    fn old_measurements_are_forgotten_except_of_one_row() {
        let mut table = CostTable::new(0.0);
        table.record(1, 1.0);
        table.record(8, 100.0);
        (0..=FORGET_AFTER).for_each(|_| table.record(2, 2.0));
        assert_eq!((table.age(8), table.age(1)), (None, Some(FORGET_AFTER + 2)));
        assert_eq!(table.estimates(8).unwrap()[7], 8.0);
    }
}
