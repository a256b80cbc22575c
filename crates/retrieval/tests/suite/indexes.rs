//! One matrix of tests for every index.

use breakers_retrieval::{
    Bitset, Error, Metric, Result,
    index::{Exact, Graph, GraphConfig, Index, Ivf, IvfConfig, Rabitq, Search},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const DIMENSION: usize = 40;
const N: usize = 1500;

type Make = fn(Metric, &[Vec<f32>]) -> Result<Box<dyn Index>>;

fn indexes() -> Vec<(&'static str, Make, f64)> {
    let mut all: Vec<(&'static str, Make, f64)> = vec![
        ("exact", |metric, _| Ok(Box::new(Exact::new(metric, DIMENSION)?)), 1.0),
        ("graph", |metric, _| Ok(Box::new(Graph::new(metric, DIMENSION, GraphConfig::default())?)), 0.97),
        (
            "ivf-pq",
            |metric, sample| {
                let sample = sample.iter().map(Vec::as_slice);
                Ok(Box::new(Ivf::train(metric, DIMENSION, sample, IvfConfig::default())?))
            },
            0.9,
        ),
        (
            "rabitq, 1 bit",
            |metric, sample| {
                Ok(Box::new(Rabitq::train(metric, DIMENSION, sample.iter().map(Vec::as_slice), 1, 0)?))
            },
            0.97,
        ),
        (
            "rabitq, 4 bits",
            |metric, sample| {
                Ok(Box::new(Rabitq::train(metric, DIMENSION, sample.iter().map(Vec::as_slice), 4, 0)?))
            },
            0.97,
        ),
        (
            "ivf-pq, learned rotation",
            |metric, sample| {
                let sample = sample.iter().map(Vec::as_slice);
                let config = IvfConfig { turns: 2, ..IvfConfig::default() };
                Ok(Box::new(Ivf::train(metric, DIMENSION, sample, config)?))
            },
            0.9,
        ),
    ];
    #[cfg(feature = "hnsw-rs")]
    all.push((
        "hnsw_rs",
        |metric, _| {
            Ok(Box::new(breakers_retrieval::index::HnswRs::new(metric, DIMENSION, GraphConfig::default())?))
        },
        0.97,
    ));
    // The list of Rust's own indexes stays mutable for builds with fewer features.
    all.sort_by_key(|(name, ..)| *name);
    all
}

fn vectors(random: &mut StdRng, n: usize) -> Vec<Vec<f32>> {
    let centers: Vec<Vec<f32>> =
        (0..12).map(|_| (0..DIMENSION).map(|_| random.random_range(-1.0..1.0)).collect()).collect();
    (0..n)
        .map(|_| {
            let center = &centers[random.random_range(0..12)];
            center.iter().map(|c| c + random.random_range(-0.5..0.5)).collect()
        })
        .collect()
}

/// The nearest by the definition, as slots.
fn nearest(
    metric: Metric,
    base: &[Vec<f32>],
    query: &[f32],
    k: usize,
    wanted: impl Fn(u32) -> bool,
) -> Vec<u32> {
    let prepare = |v: &[f32]| {
        let mut v = v.to_vec();
        metric.prepare("v", &mut v).unwrap();
        v
    };
    let query = prepare(query);
    let mut all: Vec<(f32, u32)> = (0..base.len() as u32)
        .filter(|&slot| wanted(slot))
        .map(|slot| (metric.distance(&query, &prepare(&base[slot as usize])), slot))
        .collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all.iter().take(k).map(|&(_, slot)| slot).collect()
}

#[test]
fn every_index_finds_keeps_and_forgets() {
    for (name, make, least) in indexes() {
        for metric in Metric::ALL {
            let mut random = StdRng::seed_from_u64(21);
            let all = vectors(&mut random, N + 40);
            let (base, queries) = all.split_at(N);
            let mut index = match make(metric, base) {
                Ok(index) => index,
                Err(Error::Parameter { name: "metric", .. }) => continue,
                Err(error) => panic!("{name}: {error}"),
            };
            assert!(name.starts_with(index.name()), "{name} is called {}", index.name());
            assert_eq!((index.metric(), index.dimension()), (metric, DIMENSION));
            assert!(index.is_empty() && index.search(&queries[0], &Search::new(5)).unwrap().is_empty());
            for (slot, v) in base.iter().enumerate() {
                assert_eq!(index.insert(v).unwrap(), slot as u32, "{name}");
            }
            let mut allowed = Bitset::new(N);
            (0..N as u32).filter(|slot| slot % 3 == 1).for_each(|slot| allowed.insert(slot));
            let mut three = Bitset::new(N);
            [5, 700, 1499].into_iter().for_each(|slot| three.insert(slot));
            let gone = |slot: u32| slot % 5 == 2;
            for removed in [false, true] {
                if removed {
                    for slot in (0..N as u32).filter(|&slot| gone(slot)) {
                        assert!(index.remove(slot) && !index.remove(slot), "{name}");
                    }
                    assert!(!index.remove(u32::MAX) && !index.remove(N as u32));
                }
                for (what, allowed, k) in
                    [("all", None, 10), ("some", Some(&allowed), 10), ("three", Some(&three), 10)]
                {
                    let wanted =
                        |slot: u32| allowed.is_none_or(|a| a.contains(slot)) && !(removed && gone(slot));
                    let (mut hits, mut n) = (0, 0);
                    for query in queries {
                        let mut search = Search::new(k);
                        search.allowed = allowed;
                        let found = index.search(query, &search).unwrap();
                        let truth = nearest(metric, base, query, k, wanted);
                        assert_eq!(found.len(), truth.len(), "{name}, {metric}, {what}");
                        assert!(found.is_sorted_by(|a, b| a.distance <= b.distance));
                        assert!(found.iter().all(|n| wanted(n.slot)));
                        hits += found.iter().filter(|n| truth.contains(&n.slot)).count();
                        n += truth.len();
                    }
                    let recall = hits as f64 / n as f64;
                    assert!(recall >= least, "{name}, {metric}, {what}, removed {removed}: {recall}");
                }
            }
            assert_eq!(index.len(), N - (0..N as u32).filter(|&slot| gone(slot)).count());
            // More than there are.
            assert_eq!(index.search(&queries[0], &Search::new(usize::MAX)).unwrap().len(), index.len());
            for bad in [vec![f32::NAN; DIMENSION], vec![1.0; DIMENSION + 1], vec![]] {
                assert!(
                    index.insert(&bad).is_err() && index.search(&bad, &Search::new(1)).is_err(),
                    "{name}"
                );
            }
            assert!(index.bytes() > 0);
        }
    }
}

#[test]
fn random_points_without_structure_are_found_by_default() {
    // 4,096 points in 384 dimensions, where all are about equally far from each other.
    let mut random = StdRng::seed_from_u64(22);
    let mut draw = || -> Vec<f32> { (0..384).map(|_| random.random_range(-1.0..1.0)).collect() };
    let mut graph = Graph::new(Metric::L2, 384, GraphConfig::default()).unwrap();
    for _ in 0..4096 {
        graph.insert(&draw()).unwrap();
    }
    graph.check().unwrap();
    let (mut hits, n) = (0, 50);
    for _ in 0..n {
        let query = draw();
        let truth = graph.exact().search(&query, &Search::new(10)).unwrap();
        let found = graph.search(&query, &Search::new(10)).unwrap();
        hits += found.iter().filter(|f| truth.iter().any(|t| t.slot == f.slot)).count();
    }
    assert!(hits as f64 >= 0.99 * 10.0 * f64::from(n), "{hits}");
}
