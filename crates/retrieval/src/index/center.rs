//! The center that codes are relative to: a point near the middle of the vectors, estimated anew as they
//! change.
//!
//! The error of a code grows with the distance of its vector from the center
//! ([`ScalarCodes`](crate::quantize::ScalarCodes)): seen from zero, vectors that all lie far from zero would
//! look alike. The center is the median of a sample, coordinate by coordinate, so a few outliers do not move
//! it. A new one is estimated whenever an eighth of the vectors has changed, and is adopted only if it at
//! least halves the squared error of the codes; building codes anew is therefore rare.

/// Vectors of a sample.
pub(crate) const SAMPLE: usize = 256;
/// The center is estimated for the first time after this many changes.
const FIRST: usize = 32;
/// A center is adopted if it brings the squared distances of the sample below this share.
const ENOUGH: f64 = 0.5;

/// Changes since the center was last estimated.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Drift(usize);

impl Drift {
    /// Counts changes.
    pub(crate) fn add(&mut self, n: usize) {
        self.0 = self.0.saturating_add(n);
    }

    /// Whether it is time to estimate it again, with `n` vectors stored and `coming` more about to be added.
    pub(crate) fn is_due(self, n: usize, coming: usize) -> bool {
        self.0 + coming >= FIRST.max(n / 8)
    }
}

/// The indices of up to [`SAMPLE`] of `n` things, evenly spread.
pub(crate) fn evenly(n: usize) -> impl Iterator<Item = usize> {
    let n_chosen = n.min(SAMPLE);
    (0..n_chosen).map(move |i| i * n / n_chosen.max(1))
}

/// A center that suits these prepared vectors much better than the one in use, if there is one. An empty
/// center means zero.
pub(crate) fn better(center: &[f32], sample: &[Vec<f32>]) -> Option<Vec<f32>> {
    let dimension = sample.first()?.len();
    let mut column = Vec::with_capacity(sample.len());
    let new: Vec<f32> = (0..dimension)
        .map(|i| {
            column.clear();
            column.extend(sample.iter().map(|vector| vector[i]));
            median(&mut column, f32::total_cmp)
        })
        .collect();
    let spread = |center: &[f32]| {
        let at = |i: usize| f64::from(center.get(i).copied().unwrap_or(0.0));
        let squared = |vector: &Vec<f32>| {
            vector.iter().enumerate().map(|(i, &x)| (f64::from(x) - at(i)).powi(2)).sum::<f64>()
        };
        median(&mut sample.iter().map(squared).collect::<Vec<_>>(), f64::total_cmp)
    };
    let (old, found) = (spread(center), spread(&new));
    (found < ENOUGH * old).then_some(new)
}

fn median<T: Copy>(values: &mut [T], order: impl Fn(&T, &T) -> std::cmp::Ordering) -> T {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, order).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_center_is_taken_where_it_helps() {
        let spread = |by: f32| -> Vec<Vec<f32>> {
            (0..99).map(|i| vec![by + (i as f32).sin(), (i as f32).cos() - by]).collect()
        };
        assert_eq!(better(&[], &[]), None);
        assert_eq!(better(&[], &spread(0.0)), None);
        let center = better(&[], &spread(10.0)).unwrap();
        assert!((center[0] - 10.0).abs() < 0.1 && (center[1] + 10.0).abs() < 0.1, "{center:?}");
        assert_eq!(better(&center, &spread(10.0)), None);
        assert_eq!(better(&center, &spread(10.5)), None);
        assert!(better(&center, &spread(20.0)).is_some() && better(&center, &spread(0.0)).is_some());
        // A few outliers do not count.
        let mut some = spread(10.0);
        some[..30].iter_mut().for_each(|vector| *vector = vec![1e14, -1e14]);
        let center = better(&[], &some).unwrap();
        assert!((center[0] - 10.0).abs() < 1.1, "{center:?}");
    }

    #[test]
    fn it_is_looked_for_as_vectors_change() {
        let mut drift = Drift::default();
        assert!(!drift.is_due(0, 31) && drift.is_due(0, 32) && !drift.is_due(8000, 999));
        drift.add(1000);
        assert!(drift.is_due(8000, 0) && !drift.is_due(8008, 0));
        assert_eq!(evenly(0).count(), 0);
        assert!(evenly(3).eq(0..3));
        assert_eq!((evenly(10_000).count(), evenly(10_000).last()), (SAMPLE, Some(9960)));
    }
}
