//! Statistics of repeated measurements.
//!
//! Times on a shared machine have heavy tails, so report medians, with an interval from the percentile
//! bootstrap (Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979,
//! section 2). Two programs are measured in turn and compared by [`ratio_of_medians`], which resamples
//! *rounds*, so that a slow phase of the machine affects both alike.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A statistic with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The statistic of the sample itself.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// The share of intervals of this kind that contain the true value.
    pub level: f64,
}

/// How a bootstrap resamples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootstrapConfig {
    /// Number of resamples.
    pub n_resamples: usize,
    /// Confidence level, between 0 and 1.
    pub level: f64,
    /// Seed of the resampling; the same seed gives the same interval.
    pub seed: u64,
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self { n_resamples: 2000, level: 0.95, seed: 0 }
    }
}

impl BootstrapConfig {
    fn validate(&self) -> Result<()> {
        if self.n_resamples == 0 {
            return Err(Error::Parameter { name: "n_resamples", found: 0.0, expected: "at least 1" });
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            return Err(Error::Parameter { name: "level", found: self.level, expected: "between 0 and 1" });
        }
        Ok(())
    }
}

/// The arithmetic mean.
///
/// # Errors
/// [`Error::TooFewValues`] for none, [`Error::NotFinite`].
pub fn mean(values: &[f64]) -> Result<f64> {
    check(values, "the mean", 1)?;
    Ok(values.iter().sum::<f64>() / values.len() as f64)
}

/// The sample standard deviation (denominator n − 1).
///
/// # Errors
/// [`Error::TooFewValues`] for fewer than two, [`Error::NotFinite`].
///
/// # Example
/// ```
/// # use breakers_eval::stats::standard_deviation;
/// assert_eq!(standard_deviation(&[1.0, 3.0, 5.0])?, 2.0);
/// # Ok::<(), breakers_eval::Error>(())
/// ```
pub fn standard_deviation(values: &[f64]) -> Result<f64> {
    check(values, "the standard deviation", 2)?;
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    Ok((squares / (values.len() - 1) as f64).sqrt())
}

/// The middle value, or the mean of the two in the middle if their number is even.
///
/// # Errors
/// [`Error::TooFewValues`] for none, [`Error::NotFinite`].
///
/// # Example
/// ```
/// # use breakers_eval::stats::median;
/// assert_eq!(median(&[3.0, 1.0, 2.0, 100.0])?, 2.5);
/// # Ok::<(), breakers_eval::Error>(())
/// ```
pub fn median(values: &[f64]) -> Result<f64> {
    quantile(values, 0.5)
}

/// The value below which a share `q` of the values lies, interpolated linearly between neighbors.
///
/// # Errors
/// [`Error::TooFewValues`] for none, [`Error::NotFinite`], [`Error::Parameter`] for `q` outside of 0 to 1.
///
/// # Source
/// Hyndman and Fan, "Sample quantiles in statistical packages", 1996, definition 7.
///
/// # Example
/// ```
/// # use breakers_eval::stats::quantile;
/// assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0], 0.25)?, 1.75);
/// # Ok::<(), breakers_eval::Error>(())
/// ```
pub fn quantile(values: &[f64], q: f64) -> Result<f64> {
    check(values, "a quantile", 1)?;
    if !(0.0..=1.0).contains(&q) {
        return Err(Error::Parameter { name: "q", found: q, expected: "0 to 1" });
    }
    let mut sorted = values.to_vec();
    Ok(quantile_in_place(&mut sorted, q))
}

/// A statistic of one sample with its percentile-bootstrap interval.
///
/// `statistic` receives resamples of the sample's own length, which it may reorder.
///
/// # Errors
/// [`Error::TooFewValues`] for fewer than two, [`Error::NotFinite`], [`Error::Parameter`].
///
/// # Example
/// ```
/// use breakers_eval::stats::{BootstrapConfig, bootstrap};
///
/// let mean = |v: &mut [f64]| v.iter().sum::<f64>() / v.len() as f64;
/// let e = bootstrap(&[1.0, 2.0, 3.0, 4.0], mean, &BootstrapConfig::default())?;
/// assert_eq!(e.value, 2.5);
/// assert!(e.low < 2.5 && 2.5 < e.high);
/// # Ok::<(), breakers_eval::Error>(())
/// ```
pub fn bootstrap(
    values: &[f64],
    statistic: impl Fn(&mut [f64]) -> f64,
    config: &BootstrapConfig,
) -> Result<Estimate> {
    check(values, "a bootstrap", 2)?;
    config.validate()?;
    let mut resample = values.to_vec();
    let value = statistic(&mut resample);
    let resampled = resampled(values.len(), config, |indices| {
        for (slot, &i) in resample.iter_mut().zip(indices) {
            *slot = values[i];
        }
        statistic(&mut resample)
    });
    Ok(interval(value, resampled, config.level))
}

/// The median with its bootstrap interval.
///
/// # Errors
/// As [`bootstrap`].
pub fn median_estimate(values: &[f64], config: &BootstrapConfig) -> Result<Estimate> {
    bootstrap(values, |resample| quantile_in_place(resample, 0.5), config)
}

/// A quantile of all values of several groups, with an interval that resamples *groups*: values of one group,
/// such as the gaps within one answer, depend on each other.
///
/// # Errors
/// As [`bootstrap`]; at least two groups must have values.
///
/// # Source
/// Field and Welsh, "Bootstrapping clustered data", 2007, section 3.
///
/// # Example
/// ```
/// use breakers_eval::stats::{BootstrapConfig, clustered_quantile};
///
/// let gaps = [vec![1.0, 2.0], vec![3.0], vec![4.0, 5.0]];
/// assert_eq!(clustered_quantile(&gaps, 0.5, &BootstrapConfig::default())?.value, 3.0);
/// # Ok::<(), breakers_eval::Error>(())
/// ```
pub fn clustered_quantile(groups: &[Vec<f64>], q: f64, config: &BootstrapConfig) -> Result<Estimate> {
    let groups: Vec<&Vec<f64>> = groups.iter().filter(|group| !group.is_empty()).collect();
    let mut pooled: Vec<f64> = groups.iter().flat_map(|group| group.iter().copied()).collect();
    if groups.len() < 2 {
        return Err(Error::TooFewValues { what: "a clustered quantile", expected: 2, found: groups.len() });
    }
    let value = quantile(&pooled, q)?;
    config.validate()?;
    let resampled = resampled(groups.len(), config, |indices| {
        pooled.clear();
        indices.iter().for_each(|&i| pooled.extend_from_slice(groups[i]));
        quantile_in_place(&mut pooled, q)
    });
    Ok(interval(value, resampled, config.level))
}

/// The ratio of the medians of two series of measurements that were taken in turn, with a bootstrap interval
/// over rounds.
///
/// # Shapes
/// `numerator`, `denominator`: `[n_rounds]`, entry `i` of both from round `i`.
///
/// # Errors
/// [`Error::Unpaired`], [`Error::TooFewValues`] for fewer than two rounds, [`Error::NotFinite`],
/// [`Error::ZeroDenominator`], [`Error::Parameter`].
///
/// # Example
/// ```
/// use breakers_eval::stats::{BootstrapConfig, ratio_of_medians};
///
/// let ours = [110.0, 120.0, 60.0];
/// let peer = [100.0, 110.0, 55.0];
/// assert_eq!(ratio_of_medians(&ours, &peer, &BootstrapConfig::default())?.value, 1.1);
/// # Ok::<(), breakers_eval::Error>(())
/// ```
pub fn ratio_of_medians(
    numerator: &[f64],
    denominator: &[f64],
    config: &BootstrapConfig,
) -> Result<Estimate> {
    if numerator.len() != denominator.len() {
        return Err(Error::Unpaired { expected: numerator.len(), found: denominator.len() });
    }
    check(numerator, "a ratio of medians", 2)?;
    check(denominator, "a ratio of medians", 2)?;
    config.validate()?;
    let (mut top, mut bottom) = (numerator.to_vec(), denominator.to_vec());
    let value = quantile_in_place(&mut top, 0.5) / quantile_in_place(&mut bottom, 0.5);
    if !value.is_finite() {
        return Err(Error::ZeroDenominator);
    }
    let mut resampled = resampled(numerator.len(), config, |indices| {
        for (slot, &i) in indices.iter().enumerate() {
            (top[slot], bottom[slot]) = (numerator[i], denominator[i]);
        }
        quantile_in_place(&mut top, 0.5) / quantile_in_place(&mut bottom, 0.5)
    });
    // A resample whose denominator is zero says nothing about the ratio.
    resampled.retain(|r| r.is_finite());
    Ok(interval(value, resampled, config.level))
}

fn check(values: &[f64], what: &'static str, expected: usize) -> Result<()> {
    if values.len() < expected {
        return Err(Error::TooFewValues { what, expected, found: values.len() });
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(Error::NotFinite { index, value: values[index] }),
        None => Ok(()),
    }
}

/// The statistic of each resample; the closure receives the indices drawn.
fn resampled(n: usize, config: &BootstrapConfig, mut statistic: impl FnMut(&[usize]) -> f64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut indices = vec![0; n];
    (0..config.n_resamples)
        .map(|_| {
            indices.iter_mut().for_each(|i| *i = rng.random_range(0..n));
            statistic(&indices)
        })
        .collect()
}

fn interval(value: f64, mut resampled: Vec<f64>, level: f64) -> Estimate {
    if resampled.is_empty() {
        return Estimate { value, low: value, high: value, level };
    }
    let tail = (1.0 - level) / 2.0;
    let low = quantile_in_place(&mut resampled, tail);
    let high = quantile_in_place(&mut resampled, 1.0 - tail);
    Estimate { value, low, high, level }
}

/// `values` is not empty, `q` within 0 to 1.
fn quantile_in_place(values: &mut [f64], q: f64) -> f64 {
    let position = q * (values.len() - 1) as f64;
    let below = position.floor() as usize;
    let fraction = position - below as f64;
    // Selection and no sort: resamples of many values are many.
    let (_, below, rest) = values.select_nth_unstable_by(below, f64::total_cmp);
    let below = *below;
    let above = rest.iter().copied().min_by(f64::total_cmp).unwrap_or(below);
    // A weighted sum, so that the middle of two huge values does not overflow; the clamp undoes what rounding
    // may add.
    (below * (1.0 - fraction) + above * fraction).clamp(below, above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_of_known_samples() {
        // Last column: numpy.quantile(values, q).
        let cases: &[(&[f64], f64, f64)] = &[
            (&[5.0], 0.5, 5.0),
            (&[1.0, 2.0], 0.5, 1.5),
            (&[4.0, 1.0, 3.0, 2.0], 0.25, 1.75),
            (&[4.0, 1.0, 3.0, 2.0], 0.95, 3.8499999999999996),
            (&[4.0, 1.0, 3.0, 2.0], 0.0, 1.0),
            (&[4.0, 1.0, 3.0, 2.0], 1.0, 4.0),
            (&[f64::MAX, f64::MAX], 0.5, f64::MAX),
        ];
        for &(values, q, expected) in cases {
            let found = quantile(values, q).unwrap();
            assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{values:?} at {q}: {found}");
        }
    }

    #[test]
    fn moments_of_known_samples() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]).unwrap(), 3.0);
        assert_eq!(
            standard_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap(),
            (32.0f64 / 7.0).sqrt()
        );
    }

    #[test]
    fn bad_input_is_refused() {
        let nan = [1.0, f64::NAN];
        let config = BootstrapConfig::default();
        assert!(matches!(median(&[]), Err(Error::TooFewValues { expected: 1, found: 0, .. })));
        assert!(matches!(mean(&nan), Err(Error::NotFinite { index: 1, .. })));
        assert!(matches!(standard_deviation(&[1.0]), Err(Error::TooFewValues { .. })));
        assert!(matches!(quantile(&[1.0], 1.5), Err(Error::Parameter { name: "q", .. })));
        assert!(matches!(quantile(&[1.0], f64::NAN), Err(Error::Parameter { name: "q", .. })));
        assert!(matches!(median_estimate(&[1.0], &config), Err(Error::TooFewValues { .. })));
        assert!(matches!(
            ratio_of_medians(&[1.0, 2.0], &[1.0], &config),
            Err(Error::Unpaired { expected: 2, found: 1 })
        ));
        assert!(matches!(ratio_of_medians(&[1.0, 2.0], &[0.0, 0.0], &config), Err(Error::ZeroDenominator)));
        let none = BootstrapConfig { n_resamples: 0, ..config.clone() };
        assert!(matches!(median_estimate(&[1.0, 2.0], &none), Err(Error::Parameter { .. })));
        let sure = BootstrapConfig { level: 1.0, ..config };
        assert!(matches!(median_estimate(&[1.0, 2.0], &sure), Err(Error::Parameter { name: "level", .. })));
    }

    /// The interval of a mean covers the truth about as often as its level says.
    #[test]
    fn intervals_cover_the_truth() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mean = |v: &mut [f64]| v.iter().sum::<f64>() / v.len() as f64;
        let mut covered = 0;
        for seed in 0..300 {
            let sample: Vec<f64> = (0..40).map(|_| rng.random_range(0.0..1.0)).collect();
            let config = BootstrapConfig { n_resamples: 400, level: 0.9, seed };
            let e = bootstrap(&sample, mean, &config).unwrap();
            covered += usize::from(e.low <= 0.5 && 0.5 <= e.high);
        }
        // Binomial(300, 0.9): mean 270, standard deviation 5.2; the bootstrap is a little narrow.
        assert!((248..=288).contains(&covered), "{covered} of 300 intervals hold the mean");
    }

    /// Groups whose values are all alike say no more than one value of each would.
    #[test]
    fn values_of_a_group_are_resampled_together() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let centers: Vec<f64> = (0..30).map(|_| rng.random_range(0.0..1.0)).collect();
        let groups: Vec<Vec<f64>> = centers.iter().map(|center| vec![*center; 50]).collect();
        let config = BootstrapConfig::default();
        let whole = clustered_quantile(&groups, 0.5, &config).unwrap();
        let one = median_estimate(&centers, &config).unwrap();
        let pooled = median_estimate(&groups.concat(), &config).unwrap();
        let width = |e: Estimate| e.high - e.low;
        assert!((whole.value - one.value).abs() < 0.05, "{whole:?} {one:?}");
        assert!((width(whole) / width(one) - 1.0).abs() < 0.4, "{whole:?} {one:?}");
        assert!(width(pooled) < 0.4 * width(whole), "{pooled:?} {whole:?}");
        assert!(matches!(
            clustered_quantile(&[vec![1.0, 2.0], vec![]], 0.5, &config),
            Err(Error::TooFewValues { found: 1, .. })
        ));
    }

    #[test]
    fn pairing_removes_what_both_share() {
        // Rounds differ by a factor of up to 4, ours is always 10 % faster.
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let peer: Vec<f64> = (0..9).map(|_| rng.random_range(50.0..200.0)).collect();
        let ours: Vec<f64> = peer.iter().map(|p| p * 1.1).collect();
        let e = ratio_of_medians(&ours, &peer, &BootstrapConfig::default()).unwrap();
        for v in [e.value, e.low, e.high] {
            assert!((v - 1.1).abs() < 1e-9, "{e:?}");
        }
    }

    proptest! {
        #[test]
        fn estimates_are_ordered_and_reproducible(
            values in prop::collection::vec(-1e6f64..1e6, 2..30),
            seed in any::<u64>(),
        ) {
            let config = BootstrapConfig { n_resamples: 200, seed, ..BootstrapConfig::default() };
            let e = median_estimate(&values, &config).unwrap();
            prop_assert_eq!(e, median_estimate(&values, &config).unwrap());
            prop_assert!(e.low <= e.high);
            let (min, max) = (quantile(&values, 0.0).unwrap(), quantile(&values, 1.0).unwrap());
            prop_assert!(min <= e.low && e.high <= max);
        }

        #[test]
        fn a_quantile_splits_the_sample(values in prop::collection::vec(-1e3f64..1e3, 1..40), q in 0.0f64..=1.0) {
            let x = quantile(&values, q).unwrap();
            let n = values.len() as f64;
            let below = values.iter().filter(|v| **v < x - 1e-9).count() as f64;
            let above = values.iter().filter(|v| **v > x + 1e-9).count() as f64;
            prop_assert!(below <= q * (n - 1.0) + 1.0);
            prop_assert!(above <= (1.0 - q) * (n - 1.0) + 1.0);
        }
    }
}
