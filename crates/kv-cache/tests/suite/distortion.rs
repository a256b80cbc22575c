//! The error of TurboQuant's estimators, compared with figures computed by other means.

use crate::common::Random;
use breakers_kv_cache::Error;
use breakers_kv_cache::coders::{Estimator, RotationKind, Sketch, TurboQuant, TurboQuantConfig};

const DIM: usize = 128;

fn unit(random: &mut Random, dim: usize) -> Vec<f32> {
    // Sums of six uniform numbers are not normal enough in the tails: Box and Muller.
    let mut next = || {
        let (a, b) = (1.0 - f64::from(random.uniform()), f64::from(random.uniform()));
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    };
    let x: Vec<f32> = (0..dim).map(|_| next()).collect();
    let length = dot(&x, &x).sqrt() as f32;
    x.iter().map(|x| x / length).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Mean squared error of unit vectors (which is `dim` times the variance of an unbiased estimate of the
/// product with a random unit vector), and the mean of ⟨x, x̂⟩ − 1.
fn errors(bits: u32, estimator: Estimator, rotation: RotationKind) -> (f64, f64) {
    let (n_quantizers, n_vectors) = if rotation == RotationKind::Dense { (12, 60) } else { (40, 20) };
    let mut random = Random::new(bits.into());
    let (mut squares, mut bias) = (0.0, 0.0);
    for seed in 0..n_quantizers {
        let config = TurboQuantConfig { bits, estimator, rotation, seed };
        let quantizer = TurboQuant::new(DIM, config).unwrap();
        for _ in 0..n_vectors {
            let x = unit(&mut random, DIM);
            let decoded = quantizer.decode(&quantizer.encode(&x).unwrap()).unwrap();
            let error: Vec<f32> = x.iter().zip(&decoded).map(|(a, b)| b - a).collect();
            squares += dot(&error, &error);
            bias += dot(&x, &error);
        }
    }
    let n = (n_quantizers * n_vectors) as f64;
    (squares / n, bias / n)
}

fn check(estimator: Estimator, rotation: RotationKind, expected: [f64; 4]) -> [f64; 4] {
    let mut found = [0.0; 4];
    for (i, expected) in expected.into_iter().enumerate() {
        found[i] = errors(i as u32 + 1, estimator, rotation).0;
        let off = found[i] / expected - 1.0;
        assert!(off.abs() < 0.02, "{estimator:?} {rotation:?} {} bits: {} for {expected}", i + 1, found[i]);
    }
    found
}

#[test]
fn the_table_of_distortions() {
    for rotation in [RotationKind::Hadamard, RotationKind::Dense] {
        check(Estimator::Mse, rotation, [0.3609, 0.1160, 0.0340, 0.00931]);
        let rescaled = check(Estimator::Rescaled, rotation, [0.566, 0.131, 0.035, 0.0093]);
        let gaussian = check(Estimator::Prod(Sketch::Gaussian), rotation, [1.56, 0.565, 0.183, 0.0526]);
        check(Estimator::Prod(Sketch::Orthogonal), rotation, [0.565, 0.205, 0.065, 0.019]);
        for (i, least) in [2.7, 4.2, 5.0, 5.5].into_iter().enumerate() {
            assert!(gaussian[i] > least * rescaled[i], "{} bits: {} and {}", i + 1, gaussian[i], rescaled[i]);
        }
    }
}

#[test]
fn unbiased_estimators_have_no_bias() {
    for bits in 1..=4 {
        let (_, bias) = errors(bits, Estimator::Rescaled, RotationKind::Hadamard);
        assert!(bias.abs() < 1e-3, "{bits} bits: {bias}");
        // The plain estimator shortens: the test can fail.
        let (_, bias) = errors(bits, Estimator::Mse, RotationKind::Hadamard);
        assert!(bias < -5e-3, "{bits} bits: {bias}");
        for sketch in [Sketch::Gaussian, Sketch::Orthogonal] {
            let (variance, bias) = errors(bits, Estimator::Prod(sketch), RotationKind::Hadamard);
            // 800 samples of the sketch along the vector itself.
            let tolerance = 4.0 * (variance / DIM as f64 / 800.0).sqrt() + 1e-3;
            assert!(bias.abs() < tolerance, "{sketch:?} {bits} bits: {bias}");
        }
    }
}

/// The rescaled estimate of a product with any query is right on average.
#[test]
fn the_rescaled_estimate_is_unbiased_for_any_query() {
    let mut random = Random::new(5);
    for bits in 1..=4 {
        let config = |seed| TurboQuantConfig { bits, seed, ..TurboQuantConfig::default() };
        let (n_seeds, n_vectors) = (100, 60);
        let n = n_seeds * n_vectors;
        let mut estimates = Vec::new();
        for seed in 0..n_seeds {
            let quantizer = TurboQuant::new(64, config(seed)).unwrap();
            for _ in 0..n_vectors {
                let (x, y) = (unit(&mut random, 64), unit(&mut random, 64));
                let query: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 0.8 * x + 0.6 * y).collect();
                let estimate = quantizer.inner_product(&query, &quantizer.encode(&x).unwrap()).unwrap();
                estimates.push(f64::from(estimate) - dot(&query, &x));
            }
        }
        let mean = estimates.iter().sum::<f64>() / n as f64;
        let variance = estimates.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / n as f64;
        let tolerance = 1e-3_f64.max(3.5 * (variance / n as f64).sqrt());
        assert!(mean.abs() < tolerance, "{bits} bits: {mean}, {tolerance}");
    }
}

#[test]
fn impossible_quantizers_and_vectors_are_refused() {
    let make = |dim, bits| TurboQuant::new(dim, TurboQuantConfig { bits, ..Default::default() }).map(|_| ());
    for dim in [0, 2, 80, 96, 2048] {
        assert!(matches!(make(dim, 4), Err(Error::HeadWidth { found, .. }) if found == dim), "{dim}");
    }
    for bits in [0, 6] {
        assert!(matches!(make(64, bits), Err(Error::BitWidth { .. })), "{bits}");
    }
    let quantizer = TurboQuant::new(64, TurboQuantConfig::default()).unwrap();
    assert_eq!(quantizer.encode(&[0.0; 63]), Err(Error::VectorLength { expected: 64, found: 63 }));
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(matches!(quantizer.encode(&[bad; 64]), Err(Error::NotFinite { .. })));
    }
    let mut code = quantizer.encode(&[0.0; 64]).unwrap();
    assert_eq!(quantizer.decode(&code).unwrap(), [0.0; 64]);
    code.codes.pop();
    assert_eq!(quantizer.decode(&code), Err(Error::VectorLength { expected: 64, found: 63 }));
}
