//! Index files: what they contain, and what happens to one that is older than the database.

use breakers_retrieval::{
    Metric,
    store::{Collection, Config, Element, Options, Origin, Point, Query, Store},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

fn plain(vectors_on_disk: bool) -> Options {
    let mut options = Options::default();
    options.save_on_close = false;
    options.vectors_on_disk = vectors_on_disk;
    options
}

fn draw(random: &mut StdRng, dimension: usize, by: f32) -> Vec<f32> {
    (0..dimension).map(|_| by + random.random_range(-1.0..1.0)).collect()
}

/// Bytes of index and database for each byte of the vectors, by element type.
#[test]
fn files_do_not_repeat_vectors() {
    let (n, dimension) = (3000, 384);
    for (element, index_most, all_most) in [
        (Element::F32, 0.06, 1.5),
        (Element::F16, 0.12, 1.5),
        (Element::I8, 0.24, 1.5),
        (Element::Binary, 2.0, 4.0),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with(folder.path(), plain(false)).unwrap();
        let config = Config { build_effort: 40, ..Config::new(dimension, Metric::Cosine) }.element(element);
        let collection = store.create("c", &config).unwrap();
        let mut random = StdRng::seed_from_u64(3);
        let points: Vec<Point> = (0..n).map(|id| Point::new(id, draw(&mut random, dimension, 0.0))).collect();
        collection.upsert(&points).unwrap();
        collection.save_index().unwrap();
        store.checkpoint().unwrap();
        let size = |name: &str| std::fs::metadata(folder.path().join(name)).map_or(0, |m| m.len()) as f64;
        let raw = (n as usize * element.bytes(dimension)) as f64;
        let index = size("index-1.bin") / raw;
        let all = index + (size("store.db") + size("store.db-wal")) / raw;
        eprintln!("{}: index {index:.3}, all {all:.3} of the vectors", element.name());
        assert!(index > 0.0 && index <= index_most && all <= all_most, "{}: {index}, {all}", element.name());
    }
}

/// The answers of walks and scans, which are the same on few vectors.
fn check(collection: &Collection, queries: &[Vec<f32>]) {
    for query in queries {
        let query = Query::new(query.clone(), 10);
        let exact = collection.search(&query.clone().exact()).unwrap();
        let walked = collection.search(&query.effort(300)).unwrap();
        assert_eq!(walked, exact);
    }
}

/// An old index file is put back after points were written, replaced and removed: what it lacks comes from
/// the database, and what it has too much is dropped.
#[test]
fn an_older_file_is_caught_up() {
    let dimension = 20;
    for (seed, on_disk) in [(1, false), (2, true), (3, false), (4, true)] {
        for (n_removed, n_replaced, n_new, kept) in
            [(0, 0, 0, true), (1, 0, 0, true), (60, 40, 50, true), (0, 190, 10, true), (150, 120, 30, false)]
        {
            let mut random = StdRng::seed_from_u64(seed);
            let folder = tempfile::tempdir().unwrap();
            let config = Config { links: 6, build_effort: 40, ..Config::new(dimension, Metric::Cosine) };
            let path = folder.path().join("index-1.bin");
            let queries: Vec<Vec<f32>> = (0..10).map(|_| draw(&mut random, dimension, 0.3)).collect();
            let expected = {
                let store = Store::open_with(folder.path(), plain(on_disk)).unwrap();
                let collection = store.create("c", &config).unwrap();
                let mut point = |id: u64| Point::new(id, draw(&mut random, dimension, 0.3));
                collection.upsert(&(0..400).map(&mut point).collect::<Vec<_>>()).unwrap();
                collection.save_index().unwrap();
                let old = std::fs::read(&path).unwrap();
                collection.delete(&(0..n_removed).collect::<Vec<_>>()).unwrap();
                let replaced = n_removed..n_removed + n_replaced;
                collection.upsert(&replaced.map(&mut point).collect::<Vec<_>>()).unwrap();
                collection.upsert(&(1000..1000 + n_new).map(&mut point).collect::<Vec<_>>()).unwrap();
                collection.save_index().unwrap();
                std::fs::write(&path, old).unwrap();
                let ask = |query: &Vec<f32>| collection.search(&Query::new(query.clone(), 10).exact());
                queries.iter().map(|query| ask(query).unwrap()).collect::<Vec<_>>()
            };
            let store = Store::open_with(folder.path(), plain(on_disk)).unwrap();
            let collection = store.collection("c").unwrap();
            let origin = collection.origin();
            assert_eq!(matches!(origin, Origin::File { .. }), kept, "{n_removed}, {n_replaced}: {origin}");
            for (query, expected) in queries.iter().zip(&expected) {
                assert_eq!(&collection.search(&Query::new(query.clone(), 10).exact()).unwrap(), expected);
            }
            check(&collection, &queries);
            // It goes on from there: removals and additions over the slots that became free.
            collection.delete(&(300..340).collect::<Vec<_>>()).unwrap();
            let points: Vec<Point> =
                (2000..2100).map(|id| Point::new(id, draw(&mut random, dimension, 0.3))).collect();
            collection.upsert(&points).unwrap();
            check(&collection, &queries);
            collection.save_index().unwrap();
            drop((collection, store));
            let store = Store::open_with(folder.path(), plain(!on_disk)).unwrap();
            let collection = store.collection("c").unwrap();
            assert_eq!(collection.origin(), Origin::File { caught_up: 0 });
            check(&collection, &queries);
        }
    }
}

/// Walks find the nearest however far from zero all vectors lie, and after they have moved: codes follow.
#[test]
fn codes_follow_vectors_that_drift() {
    let (n, dimension) = (1500u64, 32);
    for metric in [Metric::L2, Metric::Cosine] {
        for on_disk in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open_with(folder.path(), plain(on_disk)).unwrap();
            let config = Config { build_effort: 80, ..Config::new(dimension, metric) };
            let collection = store.create("c", &config).unwrap();
            let mut random = StdRng::seed_from_u64(9);
            // Another direction and another length each time.
            for (round, by) in [(0, 0.0), (1, 300.0), (2, 30_000.0), (3, -300.0)] {
                let mut vector = || {
                    let mut vector = draw(&mut random, dimension, by);
                    vector[round] += 2.0 * by;
                    vector
                };
                for first in (0..n).step_by(50) {
                    let points: Vec<Point> = (first..first + 50).map(|id| Point::new(id, vector())).collect();
                    collection.upsert(&points).unwrap();
                }
                let (mut found, mut wanted) = (0, 0);
                for _ in 0..30 {
                    let query = Query::new(vector(), 10);
                    let exact = collection.search(&query.clone().exact()).unwrap();
                    let walked = collection.search(&query.effort(100)).unwrap();
                    found += walked.iter().filter(|hit| hit.distance <= exact[9].distance).count().min(10);
                    wanted += 10;
                }
                assert!(found * 100 >= wanted * 95, "{metric}, round {round}: {found} of {wanted}");
            }
        }
    }
}
