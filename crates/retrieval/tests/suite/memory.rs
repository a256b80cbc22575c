//! A memory budget decides where full vectors are kept, and answers do not depend on it.

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

#[cfg(target_os = "linux")]
const FOLDER: &str = "BREAKERS_TEST_BUDGET_FOLDER";
#[cfg(target_os = "linux")]
const BATCH: &str = "BREAKERS_TEST_BUDGET_BATCH";
#[cfg(target_os = "linux")]
const N: u64 = 30_000;
#[cfg(target_os = "linux")]
const DIMENSION: usize = 384;
#[cfg(target_os = "linux")]
const BUDGET: usize = 19_000_000;

/// A figure of this process in bytes, as the system counts it.
#[cfg(target_os = "linux")]
fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
}

/// Not a test but a program for a separate process, which has nothing else in memory.
#[cfg(target_os = "linux")]
#[test]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let batch = std::env::var(BATCH).unwrap().parse().unwrap();
    let config = Config { build_effort: 24, ..Config::new(DIMENSION, Metric::L2) };
    let mut random = StdRng::seed_from_u64(3);
    let mut draw = || -> Vec<f32> { (0..DIMENSION).map(|_| 5.0 + random.random_range(-1.0..1.0)).collect() };
    // Those of the caller, which are not the store's.
    let points: Vec<Point> = (0..N).map(|id| Point::new(id, draw())).collect();
    let queries: Vec<Query> = (0..20).map(|_| Query::new(draw(), 10)).collect();
    let run = |folder: &std::path::Path, points: &[Point]| {
        let options = Options::default().within(BUDGET, N as usize, &config).unwrap();
        assert!(options.vectors_on_disk);
        let store = Store::open_with(folder, options).unwrap();
        let collection = store.create("c", &config).unwrap();
        points.chunks(batch).for_each(|batch| collection.upsert(batch).unwrap());
        collection.save_index().unwrap();
        for query in &queries {
            assert_eq!(collection.search(query).unwrap().len(), 10);
            assert_eq!(collection.search(&query.clone().effort(64)).unwrap().len(), 10);
        }
    };
    // Once small, so that the program's own pages and SQLite's are there.
    run(&std::path::Path::new(&folder).join("small"), &points[..500]);
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    run(&std::path::Path::new(&folder).join("large"), &points);
    eprintln!("\n@{}", status("VmHWM:") - before);
}

/// While points are written, a few at a time or all at once, the index is saved and searches run.
#[cfg(target_os = "linux")]
#[test]
fn a_budget_holds_while_writing_and_saving() {
    for batch in [100, 1000, 7000, N] {
        let folder = tempfile::tempdir().unwrap();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory::child", "--nocapture", "--test-threads", "1"])
            .env(FOLDER, folder.path())
            .env(BATCH, batch.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let grown = text.lines().find_map(|line| line.strip_prefix('@')?.parse::<usize>().ok());
        let grown = grown.unwrap_or_else(|| panic!("{text}"));
        eprintln!("{grown} bytes of {BUDGET}, in batches of {batch}");
        assert!(grown <= BUDGET, "{grown} bytes of {BUDGET}, in batches of {batch}");
    }
}
