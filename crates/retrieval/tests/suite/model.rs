//! The store against a model in memory: the same random operations, the same answers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use breakers_retrieval::{
    Metric,
    store::{
        Collection, Config, Element, Filter, Indexed, Number, Options, Payload, Point, Query, Scalar, Store,
    },
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

const DIMENSION: usize = 6;

/// Calls of the store that were compared with the model.
static CALLS: AtomicUsize = AtomicUsize::new(0);

fn called() {
    CALLS.fetch_add(1, Relaxed);
}

/// A vector that all element types keep as it is, if `signs`, or any.
fn vector(random: &mut StdRng, signs: bool) -> Vec<f32> {
    let sign = |random: &mut StdRng| if random.random_bool(0.5) { 1.0 } else { -1.0 };
    (0..DIMENSION).map(|_| if signs { sign(random) } else { random.random_range(-1.0..1.0) }).collect()
}

fn payload(random: &mut StdRng) -> Option<Payload> {
    if random.random_bool(0.1) {
        return None;
    }
    let word = |random: &mut StdRng| ["", "a", "ä", "b\0c", "a.b"][random.random_range(0..5)].to_owned();
    let long = |random: &mut StdRng| "x".repeat(198) + ["é", "éa", "éb", ""][random.random_range(0..4)];
    let number = |random: &mut StdRng| match random.random_range(0..5) {
        4 => json!(u64::MAX - random.random_range(0u64..3)),
        0 => json!(random.random_range(-3i64..4)),
        1 => json!(f64::from(random.random_range(-6i32..7)) / 2.0),
        2 => json!(9_007_199_254_740_992i64 + random.random_range(0i64..3)),
        _ => json!(1e300),
    };
    let mut fields = Payload::new();
    for field in ["n", "s", "mix", "deep"] {
        let value = match (field, random.random_range(0..5)) {
            (_, 0) => continue,
            ("n", _) => number(random),
            ("s", 1) => json!(long(random)),
            ("s", _) => json!(word(random)),
            ("mix", 1) => Value::Null,
            ("mix", 2) => json!(random.random_bool(0.5)),
            ("mix", 3) => json!([number(random), word(random), []]),
            ("mix", _) => number(random),
            _ => json!({"er": number(random), "list": [{"w": word(random)}]}),
        };
        fields.insert(field.to_owned(), value);
    }
    Some(fields)
}

fn scalar(random: &mut StdRng) -> Scalar {
    match random.random_range(0..9) {
        7 => Scalar::from(u64::MAX - random.random_range(0u64..3)),
        8 => Scalar::Float(18_446_744_073_709_551_616.0),
        0 => Scalar::Bool(random.random_bool(0.5)),
        1 => Scalar::Integer(random.random_range(-3..4)),
        2 => Scalar::Integer(9_007_199_254_740_992 + random.random_range(0..3)),
        3 => Scalar::Float(f64::from(random.random_range(-6i32..7)) / 2.0),
        4 => Scalar::Float(9_007_199_254_740_992.0),
        5 => Scalar::Text(["", "a", "ä", "b\0c"][random.random_range(0..4)].to_owned()),
        _ => Scalar::Text("x".repeat(198) + ["é", "éa", "éb", ""][random.random_range(0..4)]),
    }
}

/// Near zero, or as large as numbers get.
fn bound(random: &mut StdRng) -> Number {
    match random.random_range(0..12) {
        0 => Number::Float(f64::INFINITY),
        1 => Number::Float(f64::NEG_INFINITY),
        2 => Number::Float(1e300),
        3 => Number::Integer(9_007_199_254_740_992 + random.random_range(0..3)),
        4 => Number::Unsigned(u64::MAX - random.random_range(0..3)),
        5 => Number::Float(18_446_744_073_709_551_616.0),
        6 => [Number::Integer(i64::MIN), Number::Integer(i64::MAX)][random.random_range(0..2)],
        7 => Number::Integer(random.random_range(-3..4)),
        _ => Number::Float(f64::from(random.random_range(-6i32..7)) / 2.0),
    }
}

fn filter(random: &mut StdRng, depth: usize) -> Filter {
    let field = ["n", "s", "mix", "deep.er", "deep.list.w", "nothing"][random.random_range(0..6)].to_owned();
    let n = if depth == 0 { 4 } else { 7 };
    let some = |random: &mut StdRng| {
        (0..random.random_range(0..3)).map(|_| filter(random, depth.saturating_sub(1))).collect()
    };
    match random.random_range(0..n) {
        0 => Filter::Eq { field, value: scalar(random) },
        1 => Filter::In { field, values: (0..random.random_range(0..3)).map(|_| scalar(random)).collect() },
        2 => {
            let mut bound = || random.random_bool(0.4).then(|| bound(random));
            Filter::Range { field, at_least: bound(), above: bound(), at_most: bound(), below: bound() }
        }
        3 => Filter::exists(field),
        4 => Filter::And(some(random)),
        5 => Filter::Or(some(random)),
        _ => Filter::not(filter(random, depth - 1)),
    }
}

type Model = BTreeMap<u64, Point>;

fn matching<'a>(model: &'a Model, filter: Option<&'a Filter>) -> impl Iterator<Item = &'a Point> {
    model.values().filter(move |point| {
        let empty = Payload::new();
        filter.is_none_or(|f| f.matches(point.payload.as_ref().unwrap_or(&empty)))
    })
}

/// Distances of the nearest, by the metric's definition in 64 bits.
fn nearest(model: &Model, metric: Metric, query: &[f32], k: usize, filter: Option<&Filter>) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let distance = |v: &[f32]| match metric {
        Metric::Cosine => 1.0 - dot(v, query) / (dot(v, v) * dot(query, query)).sqrt(),
        Metric::Dot => -dot(v, query),
        _ => dot(v, v) + dot(query, query) - 2.0 * dot(v, query),
    };
    let mut all: Vec<f64> = matching(model, filter).map(|point| distance(&point.vector)).collect();
    all.sort_by(f64::total_cmp);
    all.truncate(k);
    all
}

fn check(collection: &Collection, model: &Model, metric: Metric, random: &mut StdRng, signs: bool) {
    assert_eq!(collection.len().unwrap(), model.len());
    called();
    // Two that are asked every time, so that what is kept of them is used.
    let usual = [Filter::not(Filter::exists("n")), Filter::within("mix", -1..=2)];
    for i in 0..6 {
        let filter = match usual.get(i) {
            Some(usual) => Some(usual.clone()),
            None => random.random_bool(0.8).then(|| filter(random, 3)),
        };
        let query = vector(random, signs);
        let k = random.random_range(0..12);
        let expected = nearest(model, metric, &query, k, filter.as_ref());
        let mut asked = Query::new(query, k);
        asked.filter.clone_from(&filter);
        let hits = collection.search(&asked).unwrap();
        called();
        let plan = || collection.explain(&asked).unwrap();
        let context = || format!("call {}: {metric}, k {k}, {filter:?}\n{}", CALLS.load(Relaxed), plan());
        assert_eq!(hits.len(), expected.len(), "{}", context());
        let empty = Payload::new();
        for (hit, expected) in hits.iter().zip(&expected) {
            assert!((f64::from(hit.distance) - expected).abs() < 1e-5, "{} {hit:?} {expected}", context());
            let payload = model[&hit.id].payload.as_ref().unwrap_or(&empty);
            assert!(filter.as_ref().is_none_or(|f| f.matches(payload)), "{} {hit:?}", context());
        }
        if let Some(filter) = &filter {
            called();
            assert_eq!(
                collection.count(filter).unwrap(),
                matching(model, Some(filter)).count(),
                "{filter:?}"
            );
        }
        let (start, limit) = (random.random_range(0..60), random.random_range(0..20));
        let page = collection.scroll(start, limit, filter.as_ref()).unwrap();
        called();
        let expected: Vec<&Point> =
            matching(model, filter.as_ref()).filter(|p| p.id >= start).take(limit).collect();
        assert_eq!(page.iter().collect::<Vec<_>>(), expected);
    }
}

const FOLDER: &str = "BREAKERS_TEST_MODEL_FOLDER";
const SEED: &str = "BREAKERS_TEST_MODEL_SEED";

/// One random write, to the collection and to the model.
fn write(collection: &Collection, model: &mut Model, random: &mut StdRng, signs: bool) {
    if random.random_bool(0.6) {
        let points: Vec<Point> = (0..random.random_range(0..8))
            .map(|_| Point {
                id: random.random_range(0..60),
                vector: vector(random, signs),
                payload: payload(random),
            })
            .collect();
        collection.upsert(&points).unwrap();
        // A later point of a batch replaces an earlier one of the same id.
        model.extend(points.into_iter().map(|p| (p.id, p)));
    } else {
        let ids: Vec<u64> = (0..random.random_range(0..6)).map(|_| random.random_range(0..70)).collect();
        let before: Vec<u64> = collection.scroll(0, usize::MAX, None).unwrap().iter().map(|p| p.id).collect();
        let n_there = before.iter().filter(|id| ids.contains(id)).count();
        model.retain(|id, _| !ids.contains(id));
        assert_eq!(collection.delete(&ids).unwrap(), n_there);
    }
}

/// What another process does, and this one repeats on the model.
fn writes_of_a_process(seed: u64, collection: &Collection, model: &mut Model) {
    let mut random = StdRng::seed_from_u64(seed);
    let signs = collection.config().element != Element::F32;
    (0..6).for_each(|_| write(collection, model, &mut random, signs));
}

/// Not a test but the program of the other process.
#[test]
fn child() {
    let (Ok(folder), Ok(seed)) = (std::env::var(FOLDER), std::env::var(SEED)) else { return };
    let collection = Store::open(folder).unwrap().collection("c").unwrap();
    writes_of_a_process(seed.parse().unwrap(), &collection, &mut Model::new());
}

/// The store's folder in another process, while this one has it open.
fn run_process(folder: &std::path::Path, seed: u64) {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "model::child", "--test-threads", "1"])
        .env(FOLDER, folder)
        .env(SEED, seed.to_string())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

fn run(metric: Metric, element: Element, indexed: Indexed, seed: u64, steps: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let home = tempfile::tempdir().unwrap();
    let signs = element != Element::F32;
    let config = Config { links: 4, build_effort: 20, ..Config::new(DIMENSION, metric) }
        .element(element)
        .indexed(indexed);
    // As if another process wrote: asks the database every time.
    let mut options = Options::default();
    options.refresh = Duration::ZERO;
    let open = |folder: &std::path::Path| {
        let store = Store::open_with(folder, options.clone()).unwrap();
        let collection = store.create("c", &config).unwrap();
        (store, collection)
    };
    let mut folder = home.path().join("0");
    let (mut first, mut second) = (open(&folder), open(&folder));
    let mut model = Model::new();
    for step in 0..steps {
        called();
        let what = random.random_range(0..60);
        let is_write = (0..44).contains(&what);
        if !is_write {
            // Nothing changes but the index, so that what was kept of these answers is asked for after it.
            check(&first.1, &model, metric, &mut random, signs);
        }
        match what {
            0..44 => write(&first.1, &mut model, &mut random, signs),
            44..46 => first.1.save_index().unwrap(),
            46..48 => first = open(&folder),
            48..52 => first.1.rebuild_index().unwrap(),
            52 => first.0.compact().unwrap(),
            53 => drop(first.1.tune(&[vector(&mut random, signs)], 3, 0.9).unwrap()),
            54 => {
                assert_eq!(first.0.verify().unwrap().n_points, model.len());
                assert!(first.0.repair().unwrap().removed.is_empty());
            }
            55 => {
                // Goes on with a copy in another folder.
                let backup = home.path().join("backup");
                first.0.backup(&backup).unwrap();
                let next = home.path().join(format!("{}", step + 1));
                drop(Store::restore(&backup, &next, options.clone()).unwrap());
                (first, second) = (open(&next), open(&next));
                std::fs::remove_dir_all(&folder).unwrap();
                folder = next;
            }
            56 => {
                let seed = random.random_range(0..1 << 40);
                run_process(&folder, seed);
                // The same on the model, by a store that ends with it.
                let mirror = tempfile::tempdir().unwrap();
                let (_store, collection) = open(mirror.path());
                let points: Vec<Point> = model.values().cloned().collect();
                collection.upsert(&points).unwrap();
                writes_of_a_process(seed, &collection, &mut model);
            }
            _ => std::mem::swap(&mut first, &mut second),
        }
        if step % 4 == 0 || !is_write {
            check(&first.1, &model, metric, &mut random, signs);
            check(&second.1, &model, metric, &mut random, signs);
        }
    }
    let ids: Vec<u64> = (0..70).collect();
    let expected: Vec<Option<Point>> = ids.iter().map(|id| model.get(id).cloned()).collect();
    assert_eq!(first.1.get(&ids).unwrap(), expected);
}

/// A step is a call, and every third or so is followed by some forty that ask: more than ten thousand in all.
/// `BREAKERS_SOAK` makes it a million, with seeds of its own if it is a number.
#[test]
fn the_store_does_what_the_model_does() {
    let soak = std::env::var("BREAKERS_SOAK").ok();
    let steps = if soak.is_some() { 8000 } else { 120 };
    let first = 1000 * soak.as_ref().and_then(|seed| seed.parse::<u64>().ok()).unwrap_or(0);
    for (seed, metric) in (first + 1..).zip(Metric::ALL) {
        run(metric, Element::F32, Indexed::All, seed, steps);
    }
    let some = Indexed::Only(vec!["n".to_owned(), "s".to_owned()]);
    run(Metric::Cosine, Element::F16, some, first + 11, steps);
    run(Metric::L2, Element::I8, Indexed::Only(Vec::new()), first + 12, steps);
    run(Metric::Dot, Element::Binary, Indexed::All, first + 13, steps);
    let (calls, least) = (CALLS.load(Relaxed), if soak.is_some() { 1_000_000 } else { 10_000 });
    eprintln!("{calls} calls");
    assert!(calls >= least, "{calls} calls");
}
