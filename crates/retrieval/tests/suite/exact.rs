//! Exact search against a plain scan in 64 bits.

use breakers_cpu as cpu;
use breakers_retrieval::{
    Bitset, Error, Metric,
    index::{Exact, Index, Search},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// The vectors of a test: how they are spread.
#[derive(Debug, Clone, Copy)]
enum Spread {
    Even,
    /// One coordinate is far larger than the others.
    Outlier,
    /// Many are nearly the same.
    Close,
    /// Lengths differ by orders of magnitude.
    Lengths,
}

fn vector(random: &mut StdRng, dimension: usize, spread: Spread) -> Vec<f32> {
    let scale = match spread {
        Spread::Lengths => 10f32.powi(random.random_range(-4..5)),
        _ => 1.0,
    };
    (0..dimension)
        .map(|i| {
            let x: f32 = random.random_range(-1.0..1.0);
            scale
                * match spread {
                    Spread::Outlier if i == 0 => 100.0 * x,
                    Spread::Close => 1.0 + 1e-4 * x,
                    _ => x,
                }
        })
        .collect()
}

fn check(metric: Metric, dimension: usize, spread: Spread) {
    let mut random = StdRng::seed_from_u64(dimension as u64);
    let mut index = Exact::new(metric, dimension).unwrap();
    let n = 500;
    let base: Vec<Vec<f32>> = (0..n).map(|_| vector(&mut random, dimension, spread)).collect();
    for (slot, v) in base.iter().enumerate() {
        assert_eq!(index.insert(v).unwrap(), slot as u32);
    }
    let mut allowed = Bitset::new(n);
    (0..n as u32).filter(|slot| slot % 7 != 3 && slot / 64 != 4).for_each(|slot| allowed.insert(slot));
    let mut few = Bitset::new(n);
    [3, 64, 499].into_iter().for_each(|slot| few.insert(slot));
    let removed: Vec<u32> = (0..n as u32).filter(|slot| slot % 11 == 5).collect();
    let prepared_base: Vec<Vec<f32>> = base
        .iter()
        .map(|v| {
            let mut v = v.clone();
            metric.prepare("the vector", &mut v).unwrap();
            v
        })
        .collect();
    for round in 0..2 {
        for _ in 0..3 {
            let query = vector(&mut random, dimension, spread);
            let mut prepared = query.clone();
            metric.prepare("the query", &mut prepared).unwrap();
            for (allowed, k) in [(None, 10), (None, 0), (None, 2000), (Some(&allowed), 10), (Some(&few), 10)]
            {
                let mut search = Search::new(k);
                search.allowed = allowed;
                let found = index.search(&query, &search).unwrap();
                // The definition: full distances of all that may be returned, in this crate's arithmetic.
                let mut all: Vec<(f32, u32)> = (0..n as u32)
                    .filter(|slot| allowed.is_none_or(|a| a.contains(*slot)))
                    .filter(|slot| round == 0 || slot % 11 != 5)
                    .map(|slot| (metric.distance(&prepared, &prepared_base[slot as usize]), slot))
                    .collect();
                all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                all.truncate(k);
                let found: Vec<(f32, u32)> = found.iter().map(|n| (n.distance, n.slot)).collect();
                assert_eq!(found, all, "{metric}, {dimension}, {spread:?}, k {k}");
            }
        }
        if round == 0 {
            removed.iter().for_each(|&slot| assert!(index.remove(slot)));
        }
    }
    assert_eq!(index.len(), n - removed.len());
    // Freed slots are used again.
    let slot = index.insert(&base[0]).unwrap();
    assert!(removed.contains(&slot));
}

#[test]
fn exact_search_is_a_plain_scan() {
    for isa in cpu::available() {
        cpu::with_isa(isa, || {
            for metric in Metric::ALL {
                for (dimension, spread) in [
                    (1, Spread::Even),
                    (3, Spread::Lengths),
                    (50, Spread::Outlier),
                    (64, Spread::Close),
                    (384, Spread::Even),
                    (384, Spread::Close),
                    (769, Spread::Lengths),
                ] {
                    check(metric, dimension, spread);
                }
            }
        })
        .unwrap();
    }
}

#[test]
fn vectors_that_cannot_be_compared_are_refused() {
    let mut index = Exact::new(Metric::Cosine, 2).unwrap();
    let errors = [
        (vec![1.0], "the vector has 1 numbers; expected 2"),
        (
            vec![f32::NAN, 1.0],
            "the vector: number 0 is NaN; finite numbers of magnitude below 1e15 are needed",
        ),
        (
            vec![1.0, f32::INFINITY],
            "the vector: number 1 is inf; finite numbers of magnitude below 1e15 are needed",
        ),
        (vec![0.0, -0.0], "the vector is zero; the cosine metric needs a direction"),
    ];
    for (vector, expected) in errors {
        assert_eq!(index.insert(&vector).unwrap_err().to_string(), expected);
        assert!(index.search(&vector, &Search::new(1)).is_err());
    }
    assert!(index.is_empty());
    for dimension in [0, 32_769, usize::MAX] {
        assert!(matches!(Exact::new(Metric::L2, dimension), Err(Error::DimensionRange { .. })));
    }
    // The smallest and the largest numbers that are allowed.
    for x in [f32::MIN_POSITIVE, 1e-45, 9e14] {
        let mut index = Exact::new(Metric::L2, 2).unwrap();
        index.insert(&[x, -x]).unwrap();
        assert_eq!(index.search(&[x, -x], &Search::new(1)).unwrap()[0].distance, 0.0);
    }
}
