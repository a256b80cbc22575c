//! The default search on vectors of every kind: what share of the true nearest it finds. `BREAKERS_SOAK`
//! takes each distribution with every metric and element type, `BREAKERS_ZOO=cluster` those whose names have
//! that part; otherwise each takes its turn.

use breakers_retrieval::{
    Error, Metric,
    store::{Config, Element, Options, Point, Query, Store},
};
use rand::{SeedableRng as _, rngs::StdRng};

use crate::distributions::{Draw, ZOO};

/// Enough points that the planner chooses the walk.
const N: usize = 11_000;
const N_QUERIES: usize = 60;
const K: usize = 10;

/// The share of the nearest that the default search finds, by distance; nothing if 16-bit floats cannot hold
/// such vectors.
fn recall(draw: Draw, metric: Metric, element: Element) -> Option<f64> {
    let mut random = StdRng::seed_from_u64(77);
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.save_on_close = false;
    options.durability = breakers_retrieval::store::Durability::Process;
    let store = Store::open_with(folder.path(), options).unwrap();
    let points: Vec<Point> = (0..N as u64).map(|id| Point::new(id, draw(&mut random))).collect();
    let config = Config::new(points[0].vector.len(), metric).element(element);
    let collection = store.create("c", &config).unwrap();
    match collection.upsert(&points) {
        Err(Error::ElementRange { element: "f16", .. }) => return None,
        result => result.unwrap(),
    }
    let (mut found, mut wanted) = (0, 0);
    for _ in 0..N_QUERIES {
        let query = Query::new(draw(&mut random), K);
        let near = collection.search(&query).unwrap();
        let truth = collection.search(&query.exact()).unwrap();
        assert_eq!((near.len(), truth.len()), (K, K));
        let bound = truth[K - 1].distance;
        found += near.iter().filter(|hit| hit.distance <= bound).count().min(K);
        wanted += K;
    }
    Some(found as f64 / wanted as f64)
}

#[test]
fn the_default_search_finds_the_nearest_of_every_distribution() {
    let elements = [Element::F32, Element::F16, Element::I8];
    let all: Vec<(Metric, Element)> =
        Metric::ALL.into_iter().flat_map(|metric| elements.map(|element| (metric, element))).collect();
    let part = std::env::var("BREAKERS_ZOO").ok();
    let soak = part.is_some() || std::env::var_os("BREAKERS_SOAK").is_some();
    let part = part.unwrap_or_default();
    let mut short = Vec::new();
    for (i, (name, draw)) in ZOO.iter().enumerate().filter(|(_, (name, _))| name.contains(&part)) {
        for (j, &(metric, element)) in all.iter().enumerate() {
            if soak || (i + i / all.len()) % all.len() == j {
                let Some(recall) = recall(*draw, metric, element) else {
                    assert_eq!(element, Element::F16);
                    continue;
                };
                eprintln!("{name}, {metric}, {}: {recall:.4}", element.name());
                if recall < 0.95 {
                    short.push(format!("{name}, {metric}, {}: {recall}", element.name()));
                }
            }
        }
    }
    assert!(short.is_empty(), "{short:#?}");
}
