//! Distributions of vectors of every kind for tests of searches.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

pub(crate) type Draw = fn(&mut StdRng) -> Vec<f32>;

/// A number of the Gaussian with variance 1.
fn gauss(random: &mut StdRng) -> f32 {
    let (a, b): (f32, f32) = (random.random_range(1e-7..1.0), random.random_range(0.0..1.0));
    (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
}

fn gaussian(random: &mut StdRng, n: usize) -> Vec<f32> {
    (0..n).map(|_| gauss(random)).collect()
}

fn scaled(random: &mut StdRng, n: usize, factor: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..n).map(|i| factor(i) * gauss(random)).collect()
}

fn shifted(random: &mut StdRng, n: usize, by: f32) -> Vec<f32> {
    (0..n).map(|_| by + gauss(random)).collect()
}

/// Of `n_centers` places, by a generator of their own, so that all vectors share them.
fn clustered(random: &mut StdRng, n: usize, n_centers: u64, width: f32) -> Vec<f32> {
    let mut centers = StdRng::seed_from_u64(1000 + random.random_range(0..n_centers));
    (0..n).map(|_| 3.0 * gauss(&mut centers) + width * gauss(random)).collect()
}

fn times(vector: Vec<f32>, factor: f32) -> Vec<f32> {
    vector.into_iter().map(|x| factor * x).collect()
}

/// Name, and what draws a vector.
pub(crate) const ZOO: &[(&str, Draw)] = &[
    ("gaussian 8", |r| gaussian(r, 8)),
    ("gaussian 48", |r| gaussian(r, 48)),
    ("uniform", |r| (0..16).map(|_| r.random_range(0.0..1.0)).collect()),
    ("latitude and longitude of a city", |r| vec![52.5 + 0.05 * gauss(r), 13.4 + 0.08 * gauss(r)]),
    ("latitude and longitude of the world", |r| {
        vec![r.random_range(-60.0..70.0), r.random_range(-180.0..180.0)]
    }),
    ("one number", |r| vec![1.0 + r.random_range(0.0f32..1000.0)]),
    ("a line in 16", |r| {
        let t = 1.0 + gauss(r);
        (0..16).map(|i| t * (i + 1) as f32).collect()
    }),
    ("a plane in 24", |r| {
        let (a, b) = (gauss(r), gauss(r));
        (0..24).map(|i| a * (i as f32).sin() + b * (i as f32).cos()).collect()
    }),
    ("shifted by 10", |r| shifted(r, 32, 10.0)),
    ("shifted by 100", |r| shifted(r, 32, 100.0)),
    ("shifted by 10,000", |r| shifted(r, 16, 1e4)),
    ("one coordinate shifted", |r| {
        let mut v = gaussian(r, 32);
        v[3] += 500.0;
        v
    }),
    ("scales from 1 to 1000", |r| scaled(r, 24, |i| 1000f32.powf(i as f32 / 23.0))),
    ("one large coordinate", |r| scaled(r, 32, |i| if i == 5 { 1000.0 } else { 1.0 })),
    ("falling scales", |r| scaled(r, 48, |i| 1.0 / (i + 1) as f32)),
    ("tiny", |r| scaled(r, 24, |_| 0.01)),
    ("large", |r| scaled(r, 24, |_| 3000.0)),
    ("clusters", |r| clustered(r, 32, 50, 0.5)),
    ("tight clusters", |r| clustered(r, 32, 200, 0.01)),
    ("many clusters", |r| clustered(r, 24, 3000, 0.05)),
    ("each vector about twice", |r| {
        let mut copy = StdRng::seed_from_u64(r.random_range(0..5500));
        gaussian(&mut copy, 24)
    }),
    ("each vector about ten times", |r| {
        let mut copy = StdRng::seed_from_u64(r.random_range(0..1100));
        gaussian(&mut copy, 24)
    }),
    ("a hundred vectors", |r| {
        let mut copy = StdRng::seed_from_u64(r.random_range(0..100));
        gaussian(&mut copy, 24)
    }),
    ("a cone", |r| {
        let s = 0.05;
        (0..32).map(|i| (i as f32).cos() + s * gauss(r)).collect()
    }),
    ("heavy-tailed lengths", |r| {
        let length = r.random_range(0.002f32..1.0).powi(-1);
        times(gaussian(r, 24), length)
    }),
    ("lengths from 1 to 100", |r| {
        let length = 100f32.powf(r.random_range(0.0..1.0));
        times(gaussian(r, 24), length)
    }),
    ("counts", |r| {
        (0..24).map(|i| (r.random_range(1e-6f32..1.0).ln() * -8.0 / (i + 1) as f32).floor() + 0.5).collect()
    }),
    ("pixels", |r| {
        let (a, b) = (r.random_range(0.0f32..6.0), r.random_range(20.0..120.0));
        (0..64)
            .map(|i| (128.0 + b * (a + i as f32 * 0.2).sin() + 8.0 * gauss(r)).clamp(0.0, 255.0).round())
            .collect()
    }),
    ("signs", |r| (0..64).map(|_| if r.random_bool(0.5) { 1.0 } else { -1.0 }).collect()),
    ("sparse", |r| (0..64).map(|_| if r.random_bool(0.1) { gauss(r) } else { 0.01 }).collect()),
];
