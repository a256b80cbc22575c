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

/// A vector of length 1 whose coordinates have falling scales, and a direction that all share.
fn like_a_model(random: &mut StdRng, n: usize, seed: u64) -> Vec<f32> {
    let mut shared = StdRng::seed_from_u64(seed);
    let vector: Vec<f32> =
        (0..n).map(|i| gauss(&mut shared) + 2.0 * gauss(random) / (1.0 + 0.2 * i as f32)).collect();
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    times(vector, 1.0 / length)
}

/// How often each of `n` words comes in a text of so many.
fn bag_of_words(random: &mut StdRng, n: usize, n_words: usize) -> Vec<f32> {
    let mut counts = vec![0.0; n];
    for _ in 0..n_words {
        let word = ((n as f32 + 1.0).powf(random.random_range(0.0..1.0)) - 1.0) as usize;
        counts[word.min(n - 1)] += 1.0;
    }
    counts
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
    ("words of short texts", |r| bag_of_words(r, 128, 12)),
    ("ones and zeros", |r| {
        let mut topic = StdRng::seed_from_u64(r.random_range(0..40));
        (0..64)
            .map(|_| f32::from(u8::from(topic.random_bool(0.3) ^ r.random_bool(0.1))))
            .chain([1.0])
            .collect()
    }),
    ("a huge coordinate now and then", |r| {
        let mut v = gaussian(r, 24);
        if r.random_bool(0.02) {
            v[r.random_range(0..24usize)] = 1e6 * gauss(r);
        }
        v
    }),
    ("windows of a time series", |r| {
        let (level, slope, phase) = (100.0 + 20.0 * gauss(r), 0.5 * gauss(r), r.random_range(0.0f32..6.3));
        (0..48).map(|i| level + slope * i as f32 + 5.0 * (phase + i as f32 / 4.0).sin() + gauss(r)).collect()
    }),
    ("addresses of a country", |r| {
        let mut town = StdRng::seed_from_u64((300.0 * r.random_range(0.0f32..1.0).powi(3)) as u64);
        let (north, east) = (town.random_range(47.3f32..55.0), town.random_range(5.9f32..15.0));
        vec![north + 0.02 * gauss(r), east + 0.03 * gauss(r)]
    }),
    ("two models", |r| {
        if r.random_bool(0.5) { like_a_model(r, 64, 1) } else { times(like_a_model(r, 64, 2), 20.0) }
    }),
    ("rounded to eighths", |r| {
        like_a_model(r, 24, 3).into_iter().map(|x| (8.0 * x).round() / 8.0).chain([0.125]).collect()
    }),
    ("one of 64 and noise", |r| {
        let which = r.random_range(0..64usize);
        (0..64).map(|i| f32::from(u8::from(i == which)) + 0.001 * gauss(r)).collect()
    }),
    ("a random walk", |r| {
        let mut at = 0.0;
        let step = |_| {
            at += gauss(r);
            at
        };
        (0..64).map(step).collect()
    }),
    ("heavy-tailed coordinates", |r| {
        let sign = |r: &mut StdRng| if r.random_bool(0.5) { 1.0 } else { -1.0 };
        (0..24).map(|_| sign(r) * r.random_range(1e-4f32..1.0).powf(-0.8)).collect()
    }),
    ("near copies", |r| {
        let mut original = StdRng::seed_from_u64(r.random_range(0..800));
        (0..32).map(|_| gauss(&mut original) + 1e-4 * gauss(r)).collect()
    }),
    ("seconds since 1970 and seven features", |r| {
        let mut v = gaussian(r, 7);
        v.push(1.7e9 + r.random_range(0.0f32..3e7));
        v
    }),
    ("colors", |r| {
        let base = r.random_range(0..256i32);
        (0..3).map(|_| (base + r.random_range(-40..41)).clamp(0, 255) as f32 + 1.0).collect()
    }),
    ("probabilities of 40 classes", |r| {
        let powers: Vec<f32> = (0..40).map(|_| (3.0 * gauss(r)).exp()).collect();
        let sum: f32 = powers.iter().sum();
        times(powers, 1.0 / sum)
    }),
    ("a tree of clusters", |r| {
        let mut path = 0u64;
        let mut v = vec![0.0; 24];
        for scale in [100.0, 10.0, 1.0, 0.1] {
            path = 8 * path + r.random_range(1..8u64);
            let mut place = StdRng::seed_from_u64(path);
            v.iter_mut().for_each(|x| *x += scale * gauss(&mut place));
        }
        v.iter_mut().for_each(|x| *x += 0.02 * gauss(r));
        v
    }),
    ("a curve in 32", |r| {
        let t = r.random_range(0.0f32..100.0);
        (0..32).map(|i| (t * (1.0 + i as f32 / 9.0) / 5.0 + i as f32).sin()).collect()
    }),
    ("log-normal coordinates", |r| (0..32).map(|_| (2.0 * gauss(r)).exp()).collect()),
    ("a lattice", |r| (0..5).map(|_| r.random_range(1..9i32) as f32).collect()),
    ("two far ends", |r| {
        let end = if r.random_bool(0.5) { 1000.0 } else { -1000.0 };
        shifted(r, 24, end)
    }),
    ("one number of 64", |r| {
        let mut v = vec![0.0; 64];
        v[r.random_range(0..64usize)] = r.random_range(0.1f32..10.0);
        v
    }),
    ("grams, meters and ages", |r| {
        let (size, age) = (1.7 + 0.1 * gauss(r), r.random_range(0.0f32..90.0));
        vec![1000.0 * (size - 1.0) * (90.0 + 10.0 * gauss(r)), size, age]
    }),
    ("five far places", |r| {
        let mut place = StdRng::seed_from_u64(r.random_range(0..5));
        (0..24).map(|_| 1e4 * gauss(&mut place) + gauss(r)).collect()
    }),
    ("scales from a millionth to a million", |r| scaled(r, 13, |i| 10f32.powi(i as i32 - 6))),
    ("shells", |r| {
        let radius = [1.0, 2.0, 5.0, 100.0][r.random_range(0..4usize)];
        let vector = gaussian(r, 16);
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        times(vector, radius / length)
    }),
    ("histograms", |r| {
        let mut peaks = StdRng::seed_from_u64(r.random_range(0..30));
        let (a, b) = (peaks.random_range(0..32usize), peaks.random_range(0..32usize));
        let mut counts = vec![0.0; 32];
        for _ in 0..100 {
            let at = if r.random_bool(0.6) { a } else { b } as f32 + 2.0 * gauss(r);
            counts[at.clamp(0.0, 31.0) as usize] += 0.01;
        }
        counts
    }),
    ("a dense core and a wide halo", |r| {
        let width = if r.random_bool(0.8) { 1e-3 } else { 10.0 };
        scaled(r, 16, |_| width)
    }),
    ("clusters of every size and width", |r| {
        let which = (400.0 * r.random_range(0.0f32..1.0).powi(4)) as u64;
        let mut center = StdRng::seed_from_u64(7000 + which);
        let width = 10f32.powf(center.random_range(-3.0..1.0));
        (0..24).map(|_| 5.0 * gauss(&mut center) + width * gauss(r)).collect()
    }),
    ("nearly all the same", |r| {
        let noise = if r.random_bool(0.97) { 0.0 } else { 1.0 };
        (0..24).map(|i| (i as f32).sin() + noise * gauss(r)).collect()
    }),
    ("four directions and a little noise", |r| {
        let weights = gaussian(r, 4);
        let mut shared = StdRng::seed_from_u64(4);
        let mut v = scaled(r, 64, |_| 1e-3);
        for weight in weights {
            v.iter_mut().for_each(|x| *x += weight * gauss(&mut shared));
        }
        v
    }),
    ("fingerprints", |r| {
        let mut molecule = StdRng::seed_from_u64(r.random_range(0..500));
        (0..256)
            .map(|_| f32::from(u8::from(molecule.random_bool(0.05) ^ r.random_bool(0.02))))
            .chain([1.0])
            .collect()
    }),
    ("two cones, opposite", |r| {
        let side = if r.random_bool(0.5) { 1.0 } else { -1.0 };
        (0..24).map(|i| side * (i as f32).cos() + 0.03 * gauss(r)).collect()
    }),
    ("a direction so narrow that floats end", |r| {
        (0..24).map(|i| if i == 0 { 1.0 } else { 1e-4 * gauss(r) }).collect()
    }),
    ("nine numbers of ten are zero", |r| {
        (0..128).map(|_| if r.random_bool(0.1) { gauss(r).abs() } else { 0.0 }).chain([1e-3]).collect()
    }),
    ("places on the earth in meters", |r| {
        let (a, b) = (r.random_range(0.0..std::f32::consts::TAU), r.random_range(-1.0f32..1.0));
        let flat = (1.0 - b * b).sqrt();
        [flat * a.cos(), flat * a.sin(), b].map(|x| 6_371_000.0 * x).to_vec()
    }),
    ("Gaussian, 200 numbers", |r| gaussian(r, 200)),
    ("a Swiss roll", |r| {
        let t = r.random_range(1.0f32..15.0);
        vec![t * t.cos(), r.random_range(0.0..20.0), t * t.sin()]
    }),
    ("yes, no and unknown", |r| (0..20).map(|_| r.random_range(-1..2i32) as f32).chain([0.5]).collect()),
    ("Cauchy coordinates", |r| {
        (0..12).map(|_| gauss(r) / gauss(r).abs().max(1e-6)).map(|x: f32| x.clamp(-1e6, 1e6)).collect()
    }),
    ("tiny noise on three vectors", |r| {
        let mut original = StdRng::seed_from_u64(r.random_range(0..3));
        (0..48).map(|_| gauss(&mut original) + 1e-6 * gauss(r)).collect()
    }),
    ("lengths by direction", |r| {
        let mut direction = StdRng::seed_from_u64(r.random_range(0..100));
        let length = 30f32.powf(direction.random_range(-1.0..1.0));
        (0..24).map(|_| length * (gauss(&mut direction) + 0.2 * gauss(r))).collect()
    }),
    ("bits of a counter", |r| {
        let n = r.random_range(1..1u32 << 20);
        (0..20).map(|i| (n >> i & 1) as f32).collect()
    }),
];

/// Name, what draws a vector, and what draws a query that is of another kind.
#[allow(dead_code)] // The benchmark has no use for it.
pub(crate) const STRANGERS: &[(&str, Draw, Draw)] = &[
    ("Gaussian, from far away", |r| gaussian(r, 24), |r| shifted(r, 24, 20.0)),
    ("Gaussian, scaled down", |r| gaussian(r, 24), |r| scaled(r, 24, |_| 0.01)),
    ("Gaussian, scaled up", |r| gaussian(r, 24), |r| scaled(r, 24, |_| 100.0)),
    ("clusters, between them", |r| clustered(r, 32, 200, 0.05), |r| scaled(r, 32, |_| 3.0)),
    ("clusters, far from all", |r| clustered(r, 32, 200, 0.05), |r| scaled(r, 32, |_| 300.0)),
    ("two models, the other's", |r| like_a_model(r, 64, 1), |r| like_a_model(r, 64, 2)),
    ("a model, any direction", |r| like_a_model(r, 64, 1), |r| gaussian(r, 64)),
    ("a model, its opposite", |r| like_a_model(r, 64, 1), |r| times(like_a_model(r, 64, 1), -1.0)),
    (
        "falling scales, the scales reversed",
        |r| scaled(r, 32, |i| 1.0 / (i + 1) as f32),
        |r| scaled(r, 32, |i| 1.0 / (32 - i) as f32),
    ),
    (
        "a plane, from outside of it",
        |r| {
            let (a, b) = (gauss(r), gauss(r));
            (0..24).map(|i| a * (i as f32).sin() + b * (i as f32).cos()).collect()
        },
        |r| gaussian(r, 24),
    ),
    (
        "a curve, from outside of it",
        |r| {
            let t = r.random_range(0.0f32..100.0);
            (0..32).map(|i| (t * (1.0 + i as f32 / 9.0) / 5.0 + i as f32).sin()).collect()
        },
        |r| gaussian(r, 32),
    ),
    (
        "long texts, one word",
        |r| bag_of_words(r, 128, 60),
        |r| {
            let mut v = vec![0.0; 128];
            v[r.random_range(0..128usize)] = 1.0;
            v
        },
    ),
    (
        "a city, other cities",
        |r| vec![52.5 + 0.05 * gauss(r), 13.4 + 0.08 * gauss(r)],
        |r| vec![r.random_range(-60.0..70.0), r.random_range(-180.0..180.0)],
    ),
    (
        "positive numbers, negative ones",
        |r| (0..24).map(|_| r.random_range(0.01f32..1.0)).collect(),
        |r| (0..24).map(|_| -r.random_range(0.01f32..1.0)).collect(),
    ),
    (
        "shells, near the middle",
        |r| {
            let vector = gaussian(r, 16);
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            times(vector, 1.0 / length)
        },
        |r| scaled(r, 16, |_| 1e-3),
    ),
    (
        "signs, halves",
        |r| (0..64).map(|_| if r.random_bool(0.5) { 1.0 } else { -1.0 }).collect(),
        |r| (0..64).map(|_| r.random_range(-2..3i32) as f32 / 2.0 + 0.1).collect(),
    ),
    (
        "tight clusters, one of a kind in the middle",
        |r| clustered(r, 32, 200, 0.01),
        |r| {
            let (a, b) = (clustered(r, 32, 200, 0.0), clustered(r, 32, 200, 0.0));
            a.iter().zip(b).map(|(a, b)| (a + b) / 2.0).collect()
        },
    ),
];
