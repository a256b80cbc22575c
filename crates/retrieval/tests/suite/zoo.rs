//! The default search on vectors of every kind: what share of the true nearest it finds. `BREAKERS_SOAK`
//! takes each distribution with every metric and element type, `BREAKERS_ZOO=cluster` those whose names have
//! that part; otherwise each takes its turn.

use breakers_retrieval::{
    Error, Metric,
    store::{Collection, Config, Element, Options, Point, Query, Store},
};
use rand::{SeedableRng as _, rngs::StdRng};

use crate::distributions::{Draw, STRANGERS, ZOO};

/// Enough points that the planner chooses the walk.
const N: usize = 11_000;
const N_QUERIES: usize = 60;
const K: usize = 10;

/// A collection of these vectors, written in their order; nothing if 16-bit floats cannot hold them.
struct Zoo {
    collection: Collection,
    _folder: tempfile::TempDir,
}

impl Zoo {
    fn of(vectors: impl IntoIterator<Item = Vec<f32>>, metric: Metric, element: Element) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut options = Options::default();
        options.save_on_close = false;
        options.durability = breakers_retrieval::store::Durability::Process;
        let store = Store::open_with(folder.path(), options).unwrap();
        let points: Vec<Point> =
            vectors.into_iter().zip(0..).map(|(vector, id)| Point::new(id, vector)).collect();
        let config = Config::new(points[0].vector.len(), metric).element(element);
        let collection = store.create("c", &config).unwrap();
        match collection.upsert(&points) {
            Err(Error::ElementRange { element: "f16", .. }) => return None,
            result => result.unwrap(),
        }
        Some(Self { collection, _folder: folder })
    }

    fn recall(&self, queries: impl IntoIterator<Item = Vec<f32>>) -> f64 {
        self.recall_of(K, queries)
    }

    /// The share of the nearest `k` that the default search finds, by distance.
    fn recall_of(&self, k: usize, queries: impl IntoIterator<Item = Vec<f32>>) -> f64 {
        let (mut found, mut wanted) = (0, 0);
        for query in queries {
            let query = Query::new(query, k);
            let near = self.collection.search(&query).unwrap();
            let truth = self.collection.search(&query.exact()).unwrap();
            assert_eq!((near.len(), truth.len()), (k, k));
            let bound = truth[k - 1].distance;
            found += near.iter().filter(|hit| hit.distance <= bound).count().min(k);
            wanted += k;
        }
        f64::from(found as u32) / f64::from(wanted as u32)
    }
}

/// The share of the nearest that the default search finds; nothing if 16-bit floats cannot hold such vectors.
fn recall(draw: Draw, metric: Metric, element: Element) -> Option<f64> {
    let mut random = StdRng::seed_from_u64(77);
    let zoo = Zoo::of((0..n_points()).map(|_| draw(&mut random)), metric, element)?;
    Some(zoo.recall((0..N_QUERIES).map(|_| draw(&mut random))))
}

/// `BREAKERS_ZOO_POINTS`, or enough that the planner chooses the walk.
fn n_points() -> usize {
    std::env::var("BREAKERS_ZOO_POINTS").ok().map_or(N, |n| n.parse().expect("a number of points"))
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

/// Queries of another kind than the vectors, after many of their own kind by which a walk is judged.
#[test]
fn queries_unlike_the_vectors_are_answered_as_well() {
    let part = std::env::var("BREAKERS_ZOO").ok();
    let soak = part.is_some() || std::env::var_os("BREAKERS_SOAK").is_some();
    let part = part.unwrap_or_default();
    let mut short = Vec::new();
    for (i, (name, draw, ask)) in STRANGERS.iter().enumerate().filter(|(_, (name, ..))| name.contains(&part))
    {
        for (j, metric) in Metric::ALL.into_iter().enumerate() {
            if soak || (i + i / 3) % 3 == j {
                let mut random = StdRng::seed_from_u64(78);
                let zoo = Zoo::of((0..n_points()).map(|_| draw(&mut random)), metric, Element::F32).unwrap();
                let own = zoo.recall((0..200).map(|_| draw(&mut random)));
                let strange = zoo.recall((0..2 * N_QUERIES).map(|_| ask(&mut random)));
                eprintln!("{name}, {metric}: {own:.4}, {strange:.4}");
                if own.min(strange) < 0.95 {
                    short.push(format!("{name}, {metric}: {own}, {strange}"));
                }
            }
        }
    }
    assert!(short.is_empty(), "{short:#?}");
}

/// As many neighbors as the beam holds, and more, after many queries for few.
#[test]
fn many_neighbors_are_found_as_well_as_few() {
    let soak = std::env::var_os("BREAKERS_SOAK").is_some();
    let some = ["a cone", "clusters", "gaussian 8", "signs"];
    let some = ZOO.iter().filter(|(name, _)| some.contains(name));
    let mut short = Vec::new();
    for (i, (name, draw)) in some.enumerate() {
        for (j, metric) in Metric::ALL.into_iter().enumerate() {
            if soak || (i + 1) % 3 == j {
                let mut random = StdRng::seed_from_u64(80);
                let zoo = Zoo::of((0..n_points()).map(|_| draw(&mut random)), metric, Element::F32).unwrap();
                for (k, n) in [(10, 150), (100, 50), (130, 50), (40, 50)] {
                    let recall = zoo.recall_of(k, (0..n).map(|_| draw(&mut random)));
                    eprintln!("{name}, {metric}, {k}: {recall:.4}");
                    if recall < 0.95 {
                        short.push(format!("{name}, {metric}, {k}: {recall}"));
                    }
                }
            }
        }
    }
    assert!(short.is_empty(), "{short:#?}");
}

/// The order in which vectors come, and what is removed in between.
#[test]
fn the_order_of_writes_does_not_matter() {
    let part = std::env::var("BREAKERS_ZOO").ok();
    let soak = part.is_some() || std::env::var_os("BREAKERS_SOAK").is_some();
    let part = part.unwrap_or_default();
    type Order = fn(&mut Vec<Vec<f32>>);
    let orders: [(&str, Order); 5] = [
        ("sorted", |all| all.sort_by(|a, b| a.partial_cmp(b).unwrap())),
        ("sorted, from both ends", |all| {
            all.sort_by(|a, b| a.partial_cmp(b).unwrap());
            let n = all.len();
            *all = (0..n).map(|i| all[if i % 2 == 0 { i / 2 } else { n - 1 - i / 2 }].clone()).collect();
        }),
        ("by length", |all| {
            let length = |v: &Vec<f32>| v.iter().map(|x| x * x).sum::<f32>();
            all.sort_by(|a, b| length(a).total_cmp(&length(b)));
        }),
        ("drifting", |all| {
            let n = all.len();
            for (i, vector) in all.iter_mut().enumerate() {
                let size = vector.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                vector[0] += 20.0 * size * i as f32 / n as f32;
            }
        }),
        ("moving away", |all| {
            let n = all.len();
            for (i, vector) in all.iter_mut().enumerate() {
                let factor = 100f32.powf(i as f32 / n as f32);
                vector.iter_mut().for_each(|x| *x *= factor);
            }
        }),
    ];
    let mut short = Vec::new();
    let some = [
        "gaussian 8",
        "uniform",
        "clusters",
        "tight clusters",
        "a curve in 32",
        "latitude and longitude of a city",
        "pixels",
        "a tree of clusters",
    ];
    let some = ZOO.iter().filter(|(name, _)| some.contains(name) && name.contains(&part));
    for (i, (name, draw)) in some.enumerate() {
        for (j, (order, change)) in orders.iter().enumerate() {
            for (l, metric) in Metric::ALL.into_iter().enumerate() {
                if !soak && (i % 5 != j || (i + i / 3) % 3 != l) {
                    continue;
                }
                let mut random = StdRng::seed_from_u64(79);
                let mut all: Vec<Vec<f32>> = (0..n_points()).map(|_| draw(&mut random)).collect();
                change(&mut all);
                let mut queries: Vec<Vec<f32>> = all.iter().rev().step_by(all.len() / 150).cloned().collect();
                queries.iter_mut().flatten().for_each(|x| *x *= 1.001);
                let zoo = Zoo::of(all, metric, Element::F32).unwrap();
                let recall = zoo.recall(queries);
                eprintln!("{name}, {order}, {metric}: {recall:.4}");
                if recall < 0.95 {
                    short.push(format!("{name}, {order}, {metric}: {recall}"));
                }
            }
        }
    }
    assert!(short.is_empty(), "{short:#?}");
}
