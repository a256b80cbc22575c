//! RaBitQ's promises: no bias, a bound that holds as often as it says, fewer errors with more bits.

use breakers_cpu as cpu;
use breakers_retrieval::{
    Metric,
    quantize::{EPSILON, Estimate, RabitqCodes},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const DIMENSION: usize = 96;

/// Numbers with a skewed distribution around a few centers, of length 1.
fn vectors(random: &mut StdRng, n: usize) -> Vec<Vec<f32>> {
    let centers: Vec<Vec<f32>> =
        (0..5).map(|_| (0..DIMENSION).map(|_| random.random_range(-1.0..1.0)).collect()).collect();
    (0..n)
        .map(|_| {
            let center = &centers[random.random_range(0..5)];
            let mut v: Vec<f32> =
                center.iter().map(|c| c + 1.5 * random.random_range(-1.0f32..1.0).powi(3)).collect();
            Metric::Cosine.prepare("v", &mut v).unwrap();
            v
        })
        .collect()
}

fn mean(vectors: &[Vec<f32>]) -> Vec<f32> {
    (0..DIMENSION).map(|i| vectors.iter().map(|v| v[i]).sum::<f32>() / vectors.len() as f32).collect()
}

struct Errors {
    /// Mean error of each rotation.
    bias: Vec<f64>,
    /// Standard deviation of single errors.
    deviation: f64,
    /// Share of pairs whose distance is below the bound.
    violations: f64,
}

/// `n_rotations · n² ` pairs.
fn errors(metric: Metric, bits: u32, n_rotations: u64, n: usize) -> Errors {
    let mut random = StdRng::seed_from_u64(5);
    let (base, queries) = (vectors(&mut random, n), vectors(&mut random, n));
    let truth: Vec<Vec<f64>> =
        queries.iter().map(|q| base.iter().map(|v| f64::from(metric.distance(q, v))).collect()).collect();
    let center = mean(&base);
    let (mut bias, mut squares, mut violations) = (Vec::new(), 0.0, 0usize);
    for seed in 0..n_rotations {
        let mut codes = RabitqCodes::new(metric, &center, bits, seed).unwrap();
        base.iter().for_each(|v| codes.push(v).unwrap());
        let mut estimates = vec![Estimate { distance: 0.0, lower: 0.0 }; n];
        let mut sum = 0.0;
        for (query, truth) in queries.iter().zip(&truth) {
            codes.scan(&codes.query(query).unwrap(), EPSILON, &mut estimates).unwrap();
            for (estimate, truth) in estimates.iter().zip(truth) {
                let error = f64::from(estimate.distance) - truth;
                sum += error;
                squares += error * error;
                violations += usize::from(f64::from(estimate.lower) > *truth);
            }
        }
        bias.push(sum / (n * n) as f64);
    }
    let n_pairs = (n * n) as f64 * n_rotations as f64;
    Errors { bias, deviation: (squares / n_pairs).sqrt(), violations: violations as f64 / n_pairs }
}

#[test]
fn estimates_have_no_bias_and_keep_their_bound() {
    // A million pairs for single bits; fewer for others, which are slower.
    for (metric, bits, n_rotations, n) in [
        (Metric::Cosine, 1, 100, 100),
        (Metric::L2, 1, 100, 100),
        (Metric::Dot, 1, 40, 50),
        (Metric::Cosine, 2, 40, 50),
        (Metric::L2, 4, 40, 50),
        (Metric::Cosine, 8, 40, 50),
    ] {
        let e = errors(metric, bits, n_rotations, n);
        let count = e.bias.len() as f64;
        let mean = e.bias.iter().sum::<f64>() / count;
        // Of independent rotations, not of pairs, which share vectors.
        let variance = e.bias.iter().map(|b| (b - mean) * (b - mean)).sum::<f64>() / (count - 1.0);
        let standard_error = (variance / count).sqrt();
        eprintln!(
            "{metric}, {bits} bits: bias {mean:.2e} ± {standard_error:.2e}, deviation {:.4}, {:.2} % beyond the bound",
            e.deviation,
            100.0 * e.violations
        );
        assert!(mean.abs() <= 3.0 * standard_error, "{metric}, {bits} bits: {mean} ± {standard_error}");
        assert!(e.violations <= 0.032, "{metric}, {bits} bits: {}", e.violations);
    }
}

#[test]
fn each_bit_halves_the_error() {
    let deviations: Vec<f64> = (1..=8).map(|bits| errors(Metric::L2, bits, 4, 40).deviation).collect();
    for pair in deviations.windows(2) {
        assert!(pair[1] < 0.65 * pair[0], "{deviations:?}");
    }
}

#[test]
fn every_path_gives_the_same_estimates_and_bad_input_is_refused() {
    let mut random = StdRng::seed_from_u64(6);
    let base = vectors(&mut random, 33);
    let run = |bits| {
        let mut codes = RabitqCodes::new(Metric::L2, &mean(&base), bits, 3).unwrap();
        base.iter().for_each(|v| codes.push(v).unwrap());
        let mut out = vec![Estimate { distance: 0.0, lower: 0.0 }; base.len()];
        codes.scan(&codes.query(&base[7]).unwrap(), EPSILON, &mut out).unwrap();
        assert!(codes.scan(&codes.query(&base[7]).unwrap(), EPSILON, &mut out[1..]).is_err());
        assert_eq!(codes.len(), 33);
        assert!(codes.push(&base[0][1..]).is_err() && codes.query(&[]).is_err());
        out
    };
    for bits in [1, 3] {
        let reference = cpu::with_isa(cpu::Isa::Scalar, || run(bits)).unwrap();
        for isa in cpu::available() {
            assert_eq!(cpu::with_isa(isa, || run(bits)).unwrap(), reference, "{isa}");
        }
    }
    assert!(RabitqCodes::new(Metric::L2, &[0.0; 4], 9, 0).is_err());
    assert!(RabitqCodes::new(Metric::L2, &[], 1, 0).is_err());
    // All of a center's vectors, and a query that is the center.
    let mut codes = RabitqCodes::new(Metric::L2, &[1.0; 70], 1, 0).unwrap();
    codes.push(&[1.0; 70]).unwrap();
    let mut out = [Estimate { distance: 1.0, lower: 1.0 }];
    codes.scan(&codes.query(&[1.0; 70]).unwrap(), EPSILON, &mut out).unwrap();
    assert_eq!(out, [Estimate { distance: 0.0, lower: 0.0 }]);
}
