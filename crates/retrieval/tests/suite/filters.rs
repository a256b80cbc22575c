//! Filtered searches never return too few, compared with a plain scan of payloads and vectors.
//! `BREAKERS_SOAK` asks 10⁵ queries.

use breakers_retrieval::{
    Metric,
    index::Strategy,
    store::{Collection, Config, Filter, Options, Point, Query, Store},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

const DIMENSION: usize = 24;
const N: usize = 20_000;
const K: usize = 10;

fn vector(random: &mut StdRng, centers: &[Vec<f32>]) -> Vec<f32> {
    let center = &centers[random.random_range(0..centers.len())];
    let mut v: Vec<f32> = center.iter().map(|c| c + 0.7 * random.random_range(-1.0f32..1.0)).collect();
    Metric::Cosine.prepare("v", &mut v).unwrap();
    v
}

struct World {
    _folder: tempfile::TempDir,
    collection: Collection,
    vectors: Vec<Vec<f32>>,
    centers: Vec<Vec<f32>>,
}

fn world(random: &mut StdRng) -> World {
    let centers: Vec<Vec<f32>> =
        (0..20).map(|_| (0..DIMENSION).map(|_| random.random_range(-1.0..1.0)).collect()).collect();
    let vectors: Vec<Vec<f32>> = (0..N).map(|_| vector(random, &centers)).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.save_on_close = false;
    let store = Store::open_with(folder.path(), options).unwrap();
    let config = Config { links: 8, build_effort: 60, ..Config::new(DIMENSION, Metric::Cosine) };
    let collection = store.create("c", &config).unwrap();
    let points: Vec<Point> = vectors
        .iter()
        .enumerate()
        .map(|(id, v)| {
            let payload = json!({"id": id, "side": i64::from(v[0] > 0.0)});
            Point::new(id as u64, v.clone()).with_payload(payload).unwrap()
        })
        .collect();
    points.chunks(5000).for_each(|points| collection.upsert(points).unwrap());
    World { _folder: folder, collection, vectors, centers }
}

/// How many of the true nearest were found, and how many results were missing.
fn ask(
    world: &World,
    query: &[f32],
    filter: Filter,
    holds: impl Fn(usize) -> bool,
) -> (usize, usize, usize, Strategy) {
    let mut all: Vec<(f32, u64)> = (0..N)
        .filter(|&id| holds(id))
        .map(|id| (Metric::Cosine.distance(query, &world.vectors[id]), id as u64))
        .collect();
    let wanted = K.min(all.len());
    if wanted < all.len() {
        all.select_nth_unstable_by(wanted, |a, b| a.0.total_cmp(&b.0));
        all.truncate(wanted);
    }
    let query = Query::new(query, K).filter(filter);
    let hits = world.collection.search(&query).unwrap();
    assert!(hits.iter().all(|hit| holds(hit.id as usize)));
    let found = hits.iter().filter(|hit| all.iter().any(|(_, id)| *id == hit.id)).count();
    (found, wanted, wanted - hits.len().min(wanted), world.collection.explain(&query).unwrap().strategy)
}

#[test]
fn filtered_searches_find_enough_and_the_nearest() {
    let mut random = StdRng::seed_from_u64(3);
    let world = world(&mut random);
    let n_queries = if std::env::var_os("BREAKERS_SOAK").is_some() { 100_000 / 8 } else { 150 };
    let mut strategies = Vec::new();
    // Shares from a half to a ten-thousandth, in a range of ids, which has nothing to do with vectors; and
    // one side of space for queries on the other.
    for share in [0.5, 0.2, 0.1, 0.03, 0.01, 0.001, 0.0001, f64::NAN] {
        let (mut found, mut wanted) = (0, 0);
        for _ in 0..n_queries {
            let query = vector(&mut random, &world.centers);
            let (hits, all, missing, strategy) = if share.is_nan() {
                let side = query[0] <= 0.0;
                let holds = |id: usize| (world.vectors[id][0] > 0.0) == side;
                ask(&world, &query, Filter::eq("side", i64::from(side)), holds)
            } else {
                let width = (share * N as f64) as usize;
                let start = random.random_range(0..=N - width);
                let filter = Filter::within("id", start as f64..=(start + width - 1) as f64);
                ask(&world, &query, filter, |id| (start..start + width).contains(&id))
            };
            assert_eq!(missing, 0, "too few at {share}");
            (found, wanted) = (found + hits, wanted + all);
            if !strategies.contains(&strategy) {
                strategies.push(strategy);
            }
        }
        let recall = found as f64 / wanted as f64;
        eprintln!("share {share}: recall {recall:.4}");
        assert!(recall >= 0.95, "{recall} at {share}");
    }
    assert!(strategies.contains(&Strategy::FilteredWalk) && strategies.contains(&Strategy::FilteredScan));
    // The estimate knows the index, and does not count beyond its limit.
    let estimate = |filter: Filter| world.collection.estimate(&filter, 5000).unwrap();
    assert_eq!(estimate(Filter::within("id", 100.0..=299.0)), 200.0);
    assert_eq!(estimate(Filter::exists("id")), 5000.0);
    let both =
        Filter::And(vec![Filter::within("id", 0.0..=1999.0), Filter::not(Filter::within("id", 0.0..=999.0))]);
    assert!((estimate(both) - 1900.0).abs() < 1.0);
}
