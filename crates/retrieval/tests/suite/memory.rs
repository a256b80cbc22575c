//! A memory budget chooses where full vectors lie, and answers do not depend on it.

use breakers_retrieval::{
    Error, Metric,
    store::{Config, Options, Point, Query, Store},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

#[test]
fn answers_do_not_depend_on_the_budget() {
    let (n, dimension) = (2000, 96);
    let mut random = StdRng::seed_from_u64(31);
    let mut draw = || -> Vec<f32> { (0..dimension).map(|_| random.random_range(-1.0..1.0)).collect() };
    let config = Config { links: 8, build_effort: 40, ..Config::new(dimension, Metric::L2) };
    let points: Vec<Point> = (0..n as u64).map(|id| Point::new(id, draw())).collect();
    let queries: Vec<Vec<f32>> = (0..20).map(|_| draw()).collect();
    let folder = tempfile::tempdir().unwrap();
    let full = config.full_bytes() * n;
    let least = config.code_bytes() * n;
    {
        let store = Store::open(folder.path()).unwrap();
        store.create("c", &config).unwrap().upsert(&points[..n - 10]).unwrap();
        store.checkpoint().unwrap();
    }
    let answers: Vec<_> = [full, full - 1, least]
        .into_iter()
        .map(|budget| {
            let options = Options::default().within(budget, n, &config).unwrap();
            assert_eq!(options.vectors_on_disk, budget < full);
            let store = Store::open_with(folder.path(), options).unwrap();
            let collection = store.collection("c").unwrap();
            // What comes after the file is in memory beside it, and is written with it.
            collection.upsert(&points[n - 10..]).unwrap();
            collection.delete(&[0, 1]).unwrap();
            collection.upsert(&points[..2]).unwrap();
            let ask = |query: &Vec<f32>| {
                let walk = collection.search(&Query::new(query.clone(), 5).effort(40)).unwrap();
                (walk, collection.search(&Query::new(query.clone(), 5).exact()).unwrap())
            };
            let answers: Vec<_> = queries.iter().map(ask).collect();
            collection.save_index().unwrap();
            assert!(collection.index_bytes() <= if budget < full { least } else { full - 4 * dimension * n });
            // Exact answers; the graph changes with every removal.
            answers.into_iter().map(|(_, exact)| exact).collect::<Vec<_>>()
        })
        .collect();
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    let error = Options::default().within(least - 1, n, &config).unwrap_err();
    assert!(matches!(error, Error::Parameter { .. }), "{error}");
    assert!(error.to_string().contains(&least.to_string()));
}
