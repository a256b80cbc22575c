//! Kinds of problems that users of vector stores report; `docs/reports.md` lists them.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use breakers_retrieval::{
    Error, Metric,
    store::{Collection, Config, Element, Filter, Indexed, Number, Options, Payload, Point, Query, Store},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

fn config(dimension: usize) -> Config {
    Config { links: 4, build_effort: 16, ..Config::new(dimension, Metric::L2) }
}

fn plain() -> Options {
    let mut options = Options::default();
    options.save_on_close = false;
    options
}

fn point(id: u64, x: f32, payload: Value) -> Point {
    Point::new(id, [x, 0.0]).with_payload(payload).unwrap()
}

fn ids(collection: &Collection, filter: &Filter) -> BTreeSet<u64> {
    let hits = collection.search(&Query::new([0.0, 0.0], 1000).filter(filter.clone())).unwrap();
    let found: BTreeSet<u64> = hits.iter().map(|hit| hit.id).collect();
    assert_eq!(found.len(), hits.len());
    assert_eq!(collection.count(filter).unwrap(), found.len(), "{filter:?}");
    let scrolled = collection.scroll(0, 1000, Some(filter)).unwrap();
    assert!(scrolled.iter().map(|point| point.id).eq(found.iter().copied()), "{filter:?}");
    found
}

/// Whatever renumbers the slots, a filter that was asked before finds what matches.
#[test]
fn filters_outlive_no_numbering() {
    type Change = fn(&Store, &Collection);
    let changes: [(&str, Change); 6] = [
        ("rebuild", |_, collection| collection.rebuild_index().unwrap()),
        ("save and rebuild", |_, collection| {
            collection.save_index().unwrap();
            collection.rebuild_index().unwrap();
        }),
        ("compact", |store, _| store.compact().unwrap()),
        ("replace", |_, collection| {
            let points: Vec<Point> =
                (0..6).map(|id| point(id, 1.0, json!({"a": (["x", "y"][id as usize % 2])}))).collect();
            points.iter().for_each(|point| collection.upsert(std::slice::from_ref(point)).unwrap());
        }),
        ("tune", |_, collection| assert_eq!(collection.tune(&[vec![0.0, 0.0]], 3, 1.0).unwrap().recall, 1.0)),
        ("nothing", |_, _| {}),
    ];
    for (name, change) in changes {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with(folder.path(), plain()).unwrap();
        let collection = store.create("c", &config(2)).unwrap();
        // In an order that is not that of the ids, with a gap.
        for id in [5, 1, 4, 9, 2, 0, 3] {
            collection.upsert(&[point(id, id as f32, json!({"a": (["x", "y"][id as usize % 2])}))]).unwrap();
        }
        collection.delete(&[9]).unwrap();
        let filters = [Filter::eq("a", "x"), Filter::eq("a", "y"), Filter::not(Filter::eq("a", "x"))];
        let before: Vec<_> = filters.iter().map(|filter| ids(&collection, filter)).collect();
        assert_eq!(before[0], BTreeSet::from([0, 2, 4]));
        change(&store, &collection);
        let after: Vec<_> = filters.iter().map(|filter| ids(&collection, filter)).collect();
        assert_eq!(before, after, "{name}");
    }
}

#[test]
fn bounds_that_look_alike_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_with(folder.path(), plain()).unwrap();
    let collection = store.create("c", &config(2)).unwrap();
    for (id, n) in
        [json!(1), json!(-5.5), json!("text"), Value::Null, json!(u64::MAX)].into_iter().enumerate()
    {
        collection.upsert(&[point(id as u64, 0.0, json!({"n": n}))]).unwrap();
    }
    let range =
        |at_least, at_most| Filter::Range { field: "n".into(), at_least, above: None, at_most, below: None };
    let all = BTreeSet::from([0, 1, 4]);
    let none = BTreeSet::new();
    let (up, down) = (Some(Number::Float(f64::INFINITY)), Some(Number::Float(f64::NEG_INFINITY)));
    // One after the other: each finds the sets that were cached for those before it.
    for _ in 0..2 {
        for (at_least, at_most, expected) in [
            (None, None, &all),
            (up, None, &none),
            (None, up, &all),
            (down, None, &all),
            (None, down, &none),
            (down, up, &all),
            (up, down, &none),
        ] {
            let filter = range(at_least, at_most);
            assert_eq!(&ids(&collection, &filter), expected, "{filter:?}");
            // As JSON it is the same filter.
            let text = serde_json::to_string(&filter).unwrap();
            assert_eq!(serde_json::from_str::<Filter>(&text).unwrap(), filter, "{text}");
        }
    }
}

#[test]
fn numbers_come_back_as_they_went_in() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_with(folder.path(), plain()).unwrap();
    let collection = store.create("c", &config(2)).unwrap();
    let mut random = StdRng::seed_from_u64(1);
    let mut numbers = vec![
        json!(117.63331139400017),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(9_007_199_254_740_993u64),
        json!(5e-324),
        json!(f64::MAX),
        json!(-0.0),
        json!(0.1 + 0.2),
    ];
    numbers.extend((0..20_000).map(|_| json!(f64::from_bits(random.random()))).filter(|n| !n.is_null()));
    numbers.extend((0..2000).map(|_| json!(random.random_range(0.0..200.0))));
    let points: Vec<Point> = numbers.iter().zip(0..).map(|(n, id)| point(id, 0.0, json!({"n": n}))).collect();
    collection.upsert(&points).unwrap();
    for (found, expected) in collection.scroll(0, usize::MAX, None).unwrap().iter().zip(&points) {
        assert_eq!(found, expected);
    }
}

#[test]
fn comparisons_of_numbers_are_exact() {
    let numbers = [
        Number::Float(-1e300),
        Number::Integer(i64::MIN),
        Number::Float(-9_223_372_036_854_774_784.0),
        Number::Integer(-9_007_199_254_740_993),
        Number::Float(-9_007_199_254_740_992.0),
        Number::Float(-0.5),
        Number::Integer(0),
        Number::Float(5e-324),
        Number::Integer(9_007_199_254_740_992),
        Number::Integer(9_007_199_254_740_993),
        Number::Float(9_007_199_254_740_994.0),
        Number::Integer(i64::MAX - 1),
        Number::Integer(i64::MAX),
        Number::Float(9_223_372_036_854_775_808.0),
        Number::Unsigned((1 << 63) + 1),
        Number::Float(9_223_372_036_854_777_856.0),
        Number::Unsigned(u64::MAX - 1),
        Number::Unsigned(u64::MAX),
        Number::Float(18_446_744_073_709_551_616.0),
        Number::Float(1e300),
    ];
    for indexed in [Indexed::All, Indexed::Only(Vec::new())] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with(folder.path(), plain()).unwrap();
        let collection = store.create("c", &config(2).indexed(indexed)).unwrap();
        for (id, number) in numbers.iter().enumerate() {
            collection.upsert(&[point(id as u64, 0.0, json!({"n": number}))]).unwrap();
        }
        let range = |at_least, above, at_most, below| Filter::Range {
            field: "n".into(),
            at_least,
            above,
            at_most,
            below,
        };
        for (i, &bound) in numbers.iter().enumerate() {
            let (i, n) = (i as u64, numbers.len() as u64);
            for (filter, expected) in [
                (range(Some(bound), None, None, None), i..n),
                (range(None, Some(bound), None, None), i + 1..n),
                (range(None, None, Some(bound), None), 0..i + 1),
                (range(None, None, None, Some(bound)), 0..i),
                (range(Some(bound), None, Some(bound), None), i..i + 1),
                (serde_json::from_value(json!({"eq": {"field": "n", "value": bound}})).unwrap(), i..i + 1),
                (serde_json::from_value(json!({"in": {"field": "n", "values": [bound]}})).unwrap(), i..i + 1),
            ] {
                assert_eq!(ids(&collection, &filter), expected.collect(), "{filter:?}");
            }
        }
    }
}

/// A refused write leaves the collection as it was, and what is accepted can be read.
#[test]
fn nothing_is_accepted_that_cannot_be_read() {
    let nested = |depth: usize, array: bool| {
        let inner = (1..depth).fold(json!(1), |v, _| if array { json!([v]) } else { json!({"a": v}) });
        json!({"a": inner})
    };
    for (element, vector, payload, accepted) in [
        (Element::F32, [1.0, 2.0], nested(127, true), true),
        (Element::F32, [1.0, 2.0], nested(128, true), false),
        (Element::F32, [1.0, 2.0], nested(127, false), true),
        (Element::F32, [1.0, 2.0], nested(128, false), false),
        (Element::F32, [1.0, 2.0], nested(600, true), false),
        (
            Element::F32,
            [1.0, 2.0],
            json!({"\0": "\0", "": {"": []}, "a.b": {"c": 1}, "long": "é".repeat(5000)}),
            true,
        ),
        (Element::F16, [1e6, 1.0], json!({}), false),
        (Element::F16, [65_504.0, 1.0], json!({}), true),
        (Element::F16, [1e-9, 1e-6], json!({}), false),
        (Element::I8, [1e-41, 0.0], json!({}), false),
        (Element::I8, [9e14, 1.0], json!({}), true),
        (Element::Binary, [-0.0, 1.0], json!({}), true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with(folder.path(), plain()).unwrap();
        let collection = store.create("c", &config(2).element(element)).unwrap();
        collection.upsert(&[point(1, 1.0, json!({}))]).unwrap();
        let refused = collection.upsert(&[Point::new(2, vector).with_payload(payload.clone()).unwrap()]);
        assert_eq!(refused.is_ok(), accepted, "{element:?} {vector:?}: {refused:?}");
        let n = 1 + usize::from(accepted);
        assert_eq!(collection.len().unwrap(), n);
        assert_eq!(collection.scroll(0, 10, None).unwrap().len(), n);
        assert_eq!(collection.get(&[2]).unwrap()[0].is_some(), accepted);
        let hits = collection.search(&Query::new([1.0, 1.0], 5).with_payload()).unwrap();
        assert_eq!(hits.len(), n);
        if accepted {
            let hit = hits.iter().find(|hit| hit.id == 2).unwrap();
            assert_eq!(hit.payload.as_ref(), payload.as_object());
        }
    }
}

#[test]
fn a_backup_does_not_write_over_its_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let collection = store.create("c", &config(2)).unwrap();
    collection.upsert(&[point(1, 1.0, json!({"a": 1}))]).unwrap();
    collection.save_index().unwrap();
    let sub = folder.path().join("sub");
    std::fs::create_dir(&sub).unwrap();
    #[allow(unused_mut)]
    let mut names =
        vec!["store.db", "store.db-wal", "store.db-shm", "index-1.bin", "index-77.bin", "sub/../store.db"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.path().join("store.db"), folder.path().join("link")).unwrap();
        std::fs::hard_link(folder.path().join("store.db"), sub.join("hard")).unwrap();
        names.extend(["link", "sub/hard"]);
    }
    for name in names {
        let error = store.backup(folder.path().join(name)).unwrap_err();
        assert!(matches!(error, Error::Parameter { .. }), "{name}: {error}");
        store.verify().unwrap();
    }
    let backup = sub.join("store.db");
    assert_eq!(store.backup(&backup).unwrap().n_points, 1);
    assert_eq!(store.backup(&backup).unwrap().n_points, 1);
    assert!(store.jobs().unwrap().is_empty());
}

/// A folder that held another store: its database is gone, its other files remain.
#[test]
fn a_restored_store_takes_nothing_from_an_older_one() {
    let home = tempfile::tempdir().unwrap();
    let make = |name: &str, n: u64| {
        let store = Store::open_with(home.path().join(name), plain()).unwrap();
        let collection = store.create("c", &config(2)).unwrap();
        collection
            .upsert(&(0..n).map(|id| point(id, id as f32, json!({"n": n}))).collect::<Vec<_>>())
            .unwrap();
        collection.save_index().unwrap();
        store
    };
    let new = make("new", 5);
    new.backup(home.path().join("backup")).unwrap();
    for kept in [
        &["store.db-wal"][..],
        &["store.db-wal", "store.db-shm"],
        &["index-1.bin"],
        &["store.db-wal", "index-1.bin"],
    ] {
        let name = format!("old {}", kept.join(" "));
        let old = make(&name, 40);
        let folder = home.path().join(&name);
        // Copied while the store is open, since it takes its log away when it closes.
        let copies: Vec<(&str, Vec<u8>)> =
            kept.iter().map(|file| (*file, std::fs::read(folder.join(file)).unwrap())).collect();
        drop(old);
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::create_dir(&folder).unwrap();
        copies.iter().for_each(|(file, bytes)| std::fs::write(folder.join(file), bytes).unwrap());
        let restored = Store::restore(home.path().join("backup"), &folder, plain()).unwrap();
        assert_eq!(restored.verify().unwrap().n_points, 5, "{name}");
        assert_eq!(
            restored.collection("c").unwrap().search(&Query::new([0.0, 0.0], 50)).unwrap().len(),
            5,
            "{name}"
        );
    }
    // The database of a store that is open, whose last changes are in its log.
    new.collection("c").unwrap().upsert(&[point(9, 9.0, json!({}))]).unwrap();
    let copy = home.path().join("copied");
    std::fs::create_dir(&copy).unwrap();
    for file in ["store.db", "store.db-wal"] {
        std::fs::copy(home.path().join("new").join(file), copy.join(file)).unwrap();
    }
    let restored = Store::restore(copy.join("store.db"), home.path().join("last"), plain()).unwrap();
    assert_eq!(restored.verify().unwrap().n_points, 6);
}

fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn files_of_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = [
        "thesis.tmp",
        "index-x.bin.1.tmp",
        "store.tmp",
        "a.breakers-tmp",
        ".x.1-2.breakers-tmp",
        "index.bin",
    ];
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(10_000);
    for name in foreign {
        let file = std::fs::File::create(folder.path().join(name)).unwrap();
        file.set_modified(long_ago).unwrap();
    }
    let own = ".index-1.bin.1-ab-0.breakers-tmp";
    std::fs::write(folder.path().join(own), "half").unwrap();
    drop(Store::open(folder.path()).unwrap());
    let left = names(folder.path());
    #[cfg(unix)]
    assert!(!left.contains(own), "{left:?}");
    assert!(foreign.iter().all(|name| left.contains(*name)), "{left:?}");
}

/// While a thread writes whole batches, every answer comes from exactly one of them.
#[test]
fn an_answer_is_of_one_state() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = plain();
    options.durability = breakers_retrieval::store::Durability::Process;
    let store = Store::open_with(folder.path(), options).unwrap();
    let collection = store.create("c", &config(2)).unwrap();
    let batch = |version: u64| -> Vec<Point> {
        (0..40).map(|id| point(id, version as f32, json!({"version": version, "odd": version % 2}))).collect()
    };
    collection.upsert(&batch(0)).unwrap();
    let done = AtomicBool::new(false);
    let version = |payload: &Option<Payload>| payload.as_ref().unwrap()["version"].as_u64().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..150 {
                collection.upsert(&batch(n)).unwrap();
                if n % 50 == 0 {
                    collection.rebuild_index().unwrap();
                    collection.save_index().unwrap();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        for reader in 0..2u64 {
            let (collection, done) = (&collection, &done);
            scope.spawn(move || {
                let mut n = 0;
                while !done.load(Ordering::Relaxed) || n < 20 {
                    n += 1;
                    let odd = (n + reader) % 2;
                    let query = Query::new([0.0, 0.0], 40).filter(Filter::eq("odd", odd)).with_payload();
                    let hits = collection.search(&query).unwrap();
                    assert!(hits.is_empty() || hits.len() == 40, "{} of a batch", hits.len());
                    for hit in &hits {
                        let version = version(&hit.payload);
                        assert_eq!(version % 2, odd);
                        assert_eq!(hit.distance, (version * version) as f32);
                    }
                    let found = collection.get(&(0..40).collect::<Vec<_>>()).unwrap();
                    let versions: BTreeSet<u64> =
                        found.iter().map(|point| version(&point.as_ref().unwrap().payload)).collect();
                    assert_eq!(versions.len(), 1, "two writes in one answer");
                    let hits = collection.search(&Query::new([0.0, 0.0], 40)).unwrap();
                    assert!(hits.len() == 40 && hits.iter().all(|hit| hit.distance == hits[0].distance));
                    let filter = Filter::eq("odd", odd);
                    let n = collection.count(&filter).unwrap();
                    assert!(n == 0 || n == 40, "{n} counted");
                    for page in [collection.scroll(0, 40, None), collection.scroll(0, 40, Some(&filter))] {
                        let page = page.unwrap();
                        let versions: BTreeSet<u64> = page.iter().map(|p| version(&p.payload)).collect();
                        assert!(versions.len() <= 1 && page.len() == 40 * versions.len(), "{versions:?}");
                        assert!(page.iter().all(|p| p.vector[0] == version(&p.payload) as f32));
                    }
                    let exact =
                        collection.search(&Query::new([0.0, 0.0], 40).exact().with_payload()).unwrap();
                    assert!(exact.len() == 40 && exact.iter().all(|hit| hit.payload == exact[0].payload));
                }
            });
        }
    });
}

/// Searches go on while a large batch is linked, and while the index is saved, built, tuned and compacted.
#[test]
fn readers_do_not_wait_for_writers() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_with(folder.path(), plain()).unwrap();
    let config = Config::new(48, Metric::L2);
    let collection = store.create("c", &config).unwrap();
    let mut random = StdRng::seed_from_u64(5);
    let mut draw = |n: u64, first: u64| -> Vec<Point> {
        (first..first + n)
            .map(|id| Point::new(id, (0..48).map(|_| random.random_range(-1.0f32..1.0)).collect::<Vec<_>>()))
            .collect()
    };
    collection.upsert(&draw(2000, 0)).unwrap();
    let (batch, queries) = (draw(6000, 2000), draw(40, 0));
    let queries: Vec<Vec<f32>> = queries.into_iter().map(|point| point.vector).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let begun = Instant::now();
            collection.upsert(&batch).unwrap();
            collection.save_index().unwrap();
            collection.tune(&queries, 10, 0.9).unwrap();
            collection.rebuild_index().unwrap();
            store.compact().unwrap();
            done.store(true, Ordering::Relaxed);
            begun.elapsed()
        });
        let mut waits = Vec::new();
        while !done.load(Ordering::Relaxed) {
            let begun = Instant::now();
            assert_eq!(collection.search(&Query::new(queries[0].clone(), 5)).unwrap().len(), 5);
            waits.push(begun.elapsed());
            std::thread::sleep(Duration::from_micros(500));
        }
        let all = worker.join().unwrap();
        waits.sort_unstable();
        let p90 = waits[waits.len() * 9 / 10];
        assert!(p90 < all / 20, "a search takes {p90:?} of {all:?}, over {} searches", waits.len());
    });
}

#[test]
fn waits_have_limits() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = plain();
    options.busy_timeout = Duration::from_millis(100);
    let store = Store::open_with(folder.path(), options.clone()).unwrap();
    let collection = store.create("c", &config(2)).unwrap();
    // Another connection holds the lock.
    let other = rusqlite::Connection::open(folder.path().join("store.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let begun = Instant::now();
    // Opening and reading do not need it.
    let second = Store::open_with(folder.path(), options).unwrap();
    assert_eq!(second.collection("c").unwrap().len().unwrap(), 0);
    assert!(collection.upsert(&[point(1, 1.0, json!({}))]).is_err());
    assert!(collection.search(&Query::new([1.0, 0.0], 5)).unwrap().is_empty());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    other.execute_batch("ROLLBACK").unwrap();
    collection.upsert(&[point(1, 1.0, json!({}))]).unwrap();
    assert_eq!(collection.search(&Query::new([1.0, 0.0], 5)).unwrap().len(), 1);
}

#[test]
fn handles_save_and_open_at_once() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..12u64 {
            let folder = folder.path();
            scope.spawn(move || {
                let store = Store::open(folder).unwrap();
                let collection = store.create("c", &config(2)).unwrap();
                for id in 0..3 {
                    collection.upsert(&[point(thread * 10 + id, id as f32, json!({}))]).unwrap();
                    collection.save_index().unwrap();
                }
            });
        }
    });
    let store = Store::open(folder.path()).unwrap();
    store.verify().unwrap();
    let collection = store.collection("c").unwrap();
    assert_eq!(collection.search(&Query::new([0.0, 0.0], 100)).unwrap().len(), 36);
    let left = names(folder.path());
    assert!(!left.iter().any(|name| name.ends_with("tmp")), "{left:?}");
}

#[test]
fn a_handle_of_a_removed_collection_says_so() {
    for elsewhere in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut options = plain();
        options.refresh = Duration::ZERO;
        let store = Store::open_with(folder.path(), options.clone()).unwrap();
        let collection = store.create("c", &config(2)).unwrap();
        collection.upsert(&[point(1, 1.0, json!({"a": 1}))]).unwrap();
        let other = Store::open_with(folder.path(), options).unwrap();
        assert!(if elsewhere { &other } else { &store }.remove("c").unwrap());
        // One of the same name is another one.
        other.create("c", &config(2)).unwrap();
        let query = Query::new([1.0, 0.0], 1);
        let results = [
            collection.upsert(&[point(2, 1.0, json!({}))]),
            collection.delete(&[1]).map(|_| ()),
            collection.search(&query).map(|_| ()),
            collection.search(&query.clone().with_payload()).map(|_| ()),
            collection.search(&query.clone().filter(Filter::eq("a", 2))).map(|_| ()),
            collection.explain(&query).map(|_| ()),
            collection.count(&Filter::eq("a", 3)).map(|_| ()),
            collection.estimate(&Filter::eq("a", 3), 5).map(|_| ()),
            collection.get(&[1]).map(|_| ()),
            collection.scroll(0, 5, None).map(|_| ()),
            collection.scroll(0, 5, Some(&Filter::eq("a", 1))).map(|_| ()),
            collection.len().map(|_| ()),
            collection.is_empty().map(|_| ()),
            collection.clone().search(&Query::new([1.0, 0.0], 0)).map(|_| ()),
            collection.upsert(&[]),
            collection.delete(&[]).map(|_| ()),
            collection.save_index(),
            collection.rebuild_index(),
            collection.tune(&[vec![0.0, 0.0]], 1, 0.5).map(|_| ()),
        ];
        for (i, result) in results.into_iter().enumerate() {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, Error::CollectionRemoved { name } if name == "c"),
                "{i}, {elsewhere}: {error:?}"
            );
        }
    }
}

#[test]
fn tuning_without_points_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_with(folder.path(), plain()).unwrap();
    let collection = store.create("c", &config(2)).unwrap();
    let effort = || collection.explain(&Query::new([0.0, 0.0], 10)).unwrap().effort;
    for recall in [0.0, 0.5, 1.0] {
        let before = effort();
        assert_eq!(collection.tune(&[vec![0.0, 1.0]], 10, recall).unwrap().recall, 1.0);
        assert_eq!(effort(), before);
    }
    collection.upsert(&[point(1, 1.0, json!({}))]).unwrap();
    collection.delete(&[1]).unwrap();
    let before = effort();
    collection.tune(&[vec![0.0, 1.0]], 10, 1.0).unwrap();
    assert_eq!(effort(), before);
}

/// Vectors of a cosine collection are bit for bit the same after the index is rebuilt.
#[test]
fn vectors_are_normalized_once() {
    for dimension in [2, 3, 17, 48, 100, 384] {
        let folder = tempfile::tempdir().unwrap();
        let mut random = StdRng::seed_from_u64(dimension as u64);
        let mut draw = || (0..dimension).map(|_| random.random_range(-3.0f32..3.0)).collect::<Vec<_>>();
        let points: Vec<Point> = (0..200).map(|id| Point::new(id, draw())).collect();
        let query = Query::new(draw(), 200);
        let config = Config { links: 4, build_effort: 16, ..Config::new(dimension, Metric::Cosine) };
        let ask = |collection: &Collection| -> Vec<(u64, u32)> {
            let hits = collection.search(&query.clone().exact()).unwrap();
            hits.iter().map(|hit| (hit.id, hit.distance.to_bits())).collect()
        };
        let live = {
            let store = Store::open_with(folder.path(), plain()).unwrap();
            let collection = store.create("c", &config).unwrap();
            collection.upsert(&points).unwrap();
            let live = ask(&collection);
            collection.rebuild_index().unwrap();
            assert_eq!(ask(&collection), live, "{dimension} numbers, rebuilt");
            live
        };
        let store = Store::open_with(folder.path(), plain()).unwrap();
        assert_eq!(ask(&store.collection("c").unwrap()), live, "{dimension} numbers, opened again");
        assert!(live.iter().all(|&(_, bits)| (0.0..=2.0).contains(&f32::from_bits(bits))));
    }
}

/// The cost of all points, nearest first, grows with n log n.
#[test]
fn all_points_in_order_cost_little_more_than_some() {
    type Ask = fn(Query) -> Query;
    let all: [(&str, Metric, Ask); 5] = [
        ("plain", Metric::L2, |query| query),
        ("exact", Metric::L2, |query| query.exact()),
        ("filtered", Metric::L2, |query| query.filter(Filter::exists("n"))),
        ("with payloads", Metric::L2, |query| query.with_payload()),
        ("cosine", Metric::Cosine, |query| query),
    ];
    for (what, metric, change) in all {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with(folder.path(), plain()).unwrap();
        let config = Config { links: 4, build_effort: 1, ..Config::new(2, metric) };
        let collection = store.create("c", &config).unwrap();
        let time = |n: usize| {
            let first = collection.len().unwrap() as u64;
            let vector = |id: u64| [1.0 + (id * 7919 % 10_007) as f32, 1.0 + (id % 13) as f32];
            let points: Vec<Point> = (first..n as u64)
                .map(|id| Point::new(id, vector(id)).with_payload(json!({"n": id})).unwrap())
                .collect();
            collection.upsert(&points).unwrap();
            let ask = || {
                let (query, begun) = (change(Query::new([1.0, 0.5], n)), Instant::now());
                assert_eq!(collection.search(&query).unwrap().len(), n, "{what}");
                begun.elapsed()
            };
            (0..3).map(|_| ask()).min().unwrap().as_secs_f64()
        };
        let (few, many) = (time(2500), time(20_000));
        // Eight times as many: by the square it would be sixty-four times the time.
        assert!(many < 28.0 * few + 0.002, "{what}: {few} s and {many} s");
    }
}

/// One byte of one vector is damaged: the others are found, and the store says which one is not.
#[test]
fn one_damaged_point_does_not_hide_the_others() {
    for (what, statement) in [
        ("vector", "UPDATE points_1 SET vector = zeroblob(8) WHERE id = 7"),
        ("length", "UPDATE points_1 SET vector = zeroblob(7) WHERE id = 7"),
        ("payload", "UPDATE points_1 SET payload = '{\"a\": 2}' WHERE id = 7"),
        ("type", "UPDATE points_1 SET vector = 'text' WHERE id = 7"),
        ("checksum", "UPDATE points_1 SET crc = crc + 1 WHERE id = 7"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        {
            let store = Store::open_with(folder.path(), plain()).unwrap();
            let collection = store.create("c", &config(2)).unwrap();
            let points: Vec<Point> = (0..30).map(|id| point(id, id as f32, json!({"a": 1}))).collect();
            collection.upsert(&points).unwrap();
        }
        rusqlite::Connection::open(folder.path().join("store.db")).unwrap().execute_batch(statement).unwrap();
        let store = Store::open_with(folder.path(), plain()).unwrap();
        let collection = store.collection("c").unwrap();
        let others: BTreeSet<u64> = (0..30).filter(|&id| id != 7).collect();
        assert_eq!(ids(&collection, &Filter::eq("a", 1)), others, "{what}");
        assert_eq!(ids(&collection, &Filter::And(vec![])), others, "{what}");
        assert_eq!(collection.damaged(), [7], "{what}");
        assert!(matches!(collection.get(&[7]), Err(Error::Corrupt { .. })), "{what}");
        assert!(matches!(store.verify(), Err(Error::Corrupt { .. })), "{what}");
        let repaired = store.repair().unwrap();
        assert_eq!(repaired.removed, [("c".to_owned(), 7)], "{what}");
        store.verify().unwrap();
        assert!(collection.damaged().is_empty());
        assert_eq!(collection.len().unwrap(), 29);
        assert_eq!(collection.get(&[7]).unwrap(), [None]);
        // It can be put back.
        collection.upsert(&[point(7, 7.0, json!({"a": 1}))]).unwrap();
        assert_eq!(ids(&collection, &Filter::eq("a", 1)).len(), 30);
        assert!(store.repair().unwrap().removed.is_empty());
    }
}

/// Rows are damaged while the collection is open: whatever reads them again goes on with the others.
#[test]
fn damage_to_an_open_store_does_not_hide_the_others() {
    let all: [(&str, &str, Vec<u64>); 11] = [
        ("another payload", "UPDATE points_1 SET payload = '{\"a\": 2}' WHERE id = 7", vec![7]),
        ("a payload cut short", "UPDATE points_1 SET payload = '{\"a\"' WHERE id = 7", vec![7]),
        ("no payload", "UPDATE points_1 SET payload = NULL WHERE id = 7", vec![7]),
        ("bytes as payload", "UPDATE points_1 SET payload = x'7b7d' WHERE id = 7", vec![7]),
        ("another vector", "UPDATE points_1 SET vector = zeroblob(8) WHERE id = 7", vec![7]),
        ("a vector cut short", "UPDATE points_1 SET vector = zeroblob(7) WHERE id = 7", vec![7]),
        ("text as vector", "UPDATE points_1 SET vector = 'text' WHERE id = 7", vec![7]),
        ("another checksum", "UPDATE points_1 SET crc = crc + 1 WHERE id = 7", vec![7]),
        ("three rows", "UPDATE points_1 SET crc = crc + 1 WHERE id IN (0, 7, 29)", vec![0, 7, 29]),
        ("most rows", "UPDATE points_1 SET payload = '' WHERE id < 24", (0..24).collect()),
        ("a row gone", "DELETE FROM points_1 WHERE id = 7", vec![7]),
    ];
    let text = "x".repeat(300);
    type Ask = fn(&Collection, &str) -> BTreeSet<u64>;
    let asks: [(&str, Indexed, bool, Ask); 7] = [
        ("a filter that reads payloads", Indexed::Only(vec![]), false, |c, _| ids_of(c, Filter::eq("a", 1))),
        ("its negation", Indexed::Only(vec![]), false, |c, _| ids_of(c, Filter::not(Filter::eq("a", 3)))),
        ("a long text", Indexed::All, false, |c, text| ids_of(c, Filter::eq("text", text))),
        ("counting", Indexed::Only(vec![]), false, |c, _| {
            let n = c.count(&Filter::exists("a")).unwrap();
            let ids = ids_of(c, Filter::exists("a"));
            assert_eq!(ids.len(), n);
            ids
        }),
        ("payloads of hits", Indexed::All, false, |c, _| {
            let hits = c.search(&Query::new([0.0, 0.0], 30).with_payload()).unwrap();
            assert!(hits.iter().all(|hit| hit.payload.as_ref().is_some_and(|p| p["a"] == json!(1))));
            hits.iter().map(|hit| hit.id).collect()
        }),
        ("payloads of few hits", Indexed::All, false, |c, _| {
            // As many as were asked for, as long as there are so many.
            let n = c.search(&Query::new([0.0, 0.0], 30).with_payload()).unwrap().len();
            let few = c.search(&Query::new([7.0, 0.0], 4).with_payload()).unwrap();
            assert_eq!(few.len(), n.min(4));
            c.search(&Query::new([0.0, 0.0], 30)).unwrap().iter().map(|hit| hit.id).collect()
        }),
        ("vectors on the disk", Indexed::All, true, |c, _| {
            c.search(&Query::new([0.0, 0.0], 30)).unwrap().iter().map(|hit| hit.id).collect()
        }),
    ];
    for (what, statement, damaged) in all {
        for (ask_what, indexed, on_disk, ask) in &asks {
            let context = format!("{what}, {ask_what}");
            let folder = tempfile::tempdir().unwrap();
            let mut options = plain();
            options.vectors_on_disk = *on_disk;
            let store = Store::open_with(folder.path(), options).unwrap();
            let collection = store.create("c", &config(2).indexed(indexed.clone())).unwrap();
            let points: Vec<Point> =
                (0..30).map(|id| point(id, id as f32, json!({"a": 1, "text": text}))).collect();
            collection.upsert(&points).unwrap();
            let everything: BTreeSet<u64> = (0..30).collect();
            assert_eq!(ask(&collection, &text), everything, "{context}");
            // What was kept of filters was right when it was kept.
            collection.upsert(&points[29..]).unwrap();
            let database = rusqlite::Connection::open(folder.path().join("store.db")).unwrap();
            database.execute_batch(statement).unwrap();
            let others: BTreeSet<u64> = (0..30).filter(|id| !damaged.contains(id)).collect();
            for _ in 0..2 {
                assert_eq!(ask(&collection, &text), others, "{context}");
            }
            if what == "a row gone" {
                assert!(collection.damaged().is_empty(), "{context}");
                store.repair().unwrap();
            } else {
                assert_eq!(collection.damaged(), damaged, "{context}");
                let named: Vec<u64> = store.repair().unwrap().removed.into_iter().map(|(_, id)| id).collect();
                assert_eq!(named, damaged, "{context}");
            }
            store.verify().unwrap();
            assert!(collection.damaged().is_empty(), "{context}");
            assert_eq!(ask(&collection, &text), others, "{context}");
            collection.upsert(&points).unwrap();
            assert_eq!(ask(&collection, &text), everything, "{context}");
        }
    }
}

fn ids_of(collection: &Collection, filter: Filter) -> BTreeSet<u64> {
    let hits = collection.search(&Query::new([0.0, 0.0], 1000).filter(filter)).unwrap();
    hits.iter().map(|hit| hit.id).collect()
}

/// Tables of fields are derived from payloads: differences are found and repaired.
#[test]
fn tables_of_fields_are_verified() {
    for statement in [
        "DELETE FROM fields_1 WHERE id = 3",
        "INSERT INTO fields_1(field, kind, value, id) VALUES ('a', 1, 5, 4)",
        "UPDATE fields_1 SET value = 9 WHERE id = 5",
        "INSERT INTO fields_1(field, kind, value, id) VALUES ('a', 1, 1, 999)",
        "UPDATE fields_1 SET kind = 2 WHERE id = 5",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with(folder.path(), plain()).unwrap();
        let collection = store.create("c", &config(2)).unwrap();
        let points: Vec<Point> =
            (0..30).map(|id| point(id, id as f32, json!({"a": 1, "b": {"c": [id, "x"]}}))).collect();
        collection.upsert(&points).unwrap();
        assert_eq!(store.verify().unwrap().n_fields_rebuilt, 0);
        rusqlite::Connection::open(folder.path().join("store.db")).unwrap().execute_batch(statement).unwrap();
        assert_eq!(store.verify().unwrap().n_fields_rebuilt, 1, "{statement}");
        assert_eq!(store.verify().unwrap().n_fields_rebuilt, 0, "{statement}");
        assert_eq!(ids(&collection, &Filter::eq("a", 1)).len(), 30, "{statement}");
        assert!(ids(&collection, &Filter::eq("a", 5)).is_empty(), "{statement}");
    }
}

/// The size of index files and tables is bounded by the live points.
#[test]
fn what_is_gone_takes_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("index-1.bin");
    let size = || std::fs::metadata(&index).unwrap().len();
    let batch = |ids: std::ops::Range<u64>, x: f32| -> Vec<Point> {
        ids.map(|id| point(id, x + id as f32, json!({}))).collect()
    };
    // Many openings, each of which replaces a few points.
    {
        let store = Store::open(folder.path()).unwrap();
        store.create("c", &config(2)).unwrap().upsert(&batch(0..600, 0.0)).unwrap();
    }
    let first = size();
    for opening in 0..40u64 {
        let store = Store::open(folder.path()).unwrap();
        let collection = store.collection("c").unwrap();
        let start = opening * 37 % 560;
        collection.upsert(&batch(start..start + 40, opening as f32)).unwrap();
    }
    assert!(size() < first + first / 4, "{first} bytes became {}", size());
    // Most of it removed, and compacted.
    let store = Store::open(folder.path()).unwrap();
    let collection = store.collection("c").unwrap();
    collection.delete(&(6..600).collect::<Vec<_>>()).unwrap();
    store.compact().unwrap();
    assert!(size() < first / 10, "{first} bytes became {}", size());
    assert_eq!(collection.search(&Query::new([0.0, 0.0], 20)).unwrap().len(), 6);
    // A window that moves: its removals are not remembered forever.
    let connection = rusqlite::Connection::open(folder.path().join("store.db")).unwrap();
    let n_removed =
        || -> i64 { connection.query_row("SELECT count(*) FROM removed_1", [], |row| row.get(0)).unwrap() };
    for start in (1000..14_000).step_by(500) {
        collection.upsert(&batch(start..start + 500, 0.0)).unwrap();
        collection.delete(&(start - 500..start).collect::<Vec<_>>()).unwrap();
    }
    assert!(n_removed() < 8000, "{} removals are remembered", n_removed());
    let other = Store::open_with(folder.path(), plain()).unwrap();
    assert_eq!(other.collection("c").unwrap().search(&Query::new([0.0, 0.0], 1000)).unwrap().len(), 506);
}

#[test]
fn whatever_comes_and_goes_takes_the_room_of_what_lives() {
    fn batch(first: u64, field: &str, x: f32) -> Vec<Point> {
        (first..first + 600).map(|id| point(id, x + id as f32, json!({field: id}))).collect()
    }
    type Round = fn(&Collection, u64);
    let rounds: [(&str, Round); 5] = [
        ("once", |collection, n| {
            if n == 0 {
                collection.upsert(&batch(0, "a", 0.0)).unwrap();
            }
        }),
        ("replaced", |collection, n| {
            collection.upsert(&batch(0, "a", n as f32)).unwrap();
        }),
        ("removed before", |collection, n| {
            collection.delete(&(0..600).collect::<Vec<_>>()).unwrap();
            collection.upsert(&batch(0, "a", n as f32)).unwrap();
        }),
        ("other ids", |collection, n| {
            collection.upsert(&batch(600 * n, "a", 0.0)).unwrap();
            if n > 0 {
                collection.delete(&(600 * (n - 1)..600 * n).collect::<Vec<_>>()).unwrap();
            }
        }),
        ("other fields", |collection, n| {
            collection.upsert(&batch(0, ["a", "b", "c"][n as usize % 3], 0.0)).unwrap();
        }),
    ];
    let mut least = None;
    for (what, round) in rounds {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with(folder.path(), plain()).unwrap();
        let collection = store.create("c", &config(2)).unwrap();
        (0..10).for_each(|n| round(&collection, n));
        store.compact().unwrap();
        let size = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().len();
        let database = rusqlite::Connection::open(folder.path().join("store.db")).unwrap();
        let rows = |table: &str| -> i64 {
            database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
        };
        assert_eq!((rows("points_1"), rows("fields_1"), rows("removed_1")), (600, 600, 0), "{what}");
        let found = [size("index-1.bin"), size("store.db"), collection.index_bytes() as u64];
        let least = *least.get_or_insert(found);
        assert!(
            found.iter().zip(least).all(|(found, least)| *found <= 2 * least),
            "{what}: {found:?}, once {least:?}"
        );
    }
}

#[test]
fn index_files_are_written_without_being_asked() {
    // By size, and by age.
    for (n, after) in [(3000, Duration::from_secs(600)), (5, Duration::from_millis(50))] {
        let folder = tempfile::tempdir().unwrap();
        let mut options = Options::default();
        options.save_after = after;
        let store = Store::open_with(folder.path(), options).unwrap();
        let collection = store.create("c", &config(2)).unwrap();
        collection.upsert(&(0..n).map(|id| point(id, id as f32, json!({}))).collect::<Vec<_>>()).unwrap();
        let begun = Instant::now();
        while !folder.path().join("index-1.bin").exists() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{n} points are not saved");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(collection.search(&Query::new([0.0, 0.0], 3)).unwrap().len(), 3);
    }
}

/// Handles that come and go share the loaded index.
#[test]
fn a_handle_for_each_write_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.create("c", &config(2)).unwrap();
    let mut written = BTreeSet::new();
    for id in 0..200 {
        store.collection("c").unwrap().upsert(&[point(id, id as f32, json!({}))]).unwrap();
        written.extend(std::fs::metadata(folder.path().join("index-1.bin")).and_then(|m| m.modified()).ok());
    }
    assert!(written.len() <= 1, "the index file was written {} times", written.len());
    assert_eq!(store.collection("c").unwrap().search(&Query::new([0.0, 0.0], 500)).unwrap().len(), 200);
}

const OPEN: &str = "BREAKERS_TEST_OPEN";

/// Not a test but a program that twelve processes run at once.
#[test]
fn child() {
    let Ok(folder) = std::env::var(OPEN) else { return };
    let store = Store::open(folder).unwrap();
    let collection = store.create("c", &config(2)).unwrap();
    let id = u64::from(std::process::id());
    collection.upsert(&[point(id, 1.0, json!({}))]).unwrap();
}

#[test]
fn a_new_folder_is_opened_by_many_processes_at_once() {
    for _ in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let children: Vec<_> = (0..12)
            .map(|_| {
                std::process::Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "reports::child", "--test-threads", "1"])
                    .env(OPEN, folder.path())
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.verify().unwrap().n_points, 12);
        assert_eq!(store.collection("c").unwrap().search(&Query::new([0.0, 0.0], 50)).unwrap().len(), 12);
    }
}

/// `docs/reports.md` says which test guards each kind: these exist.
#[test]
fn the_tests_that_the_list_names_exist() {
    fn sources(folder: &Path) -> String {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| if path.is_dir() { sources(&path) } else { std::fs::read_to_string(path).unwrap() })
            .collect()
    }
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = sources(&home.join("tests")) + &sources(&home.join("src"));
    let list = std::fs::read_to_string(home.join("../../docs/reports.md")).unwrap();
    let (_, table) = list.split_once("## Vector store").unwrap();
    let (mut n_rows, mut n_names) = (0, 0);
    for row in table.lines().filter(|line| line.starts_with("| ")).skip(1) {
        n_rows += 1;
        let guards = row.trim_end_matches(" |").rsplit('|').next().unwrap();
        let in_code: Vec<&str> = guards.split('`').skip(1).step_by(2).collect();
        assert!(!in_code.is_empty(), "nothing guards: {row}");
        for name in in_code {
            let exists = match name.strip_suffix(".rs") {
                Some(_) => home.join("tests").join(name).exists() || home.join(name).exists(),
                None if name.starts_with("BREAKERS_") => true,
                None => text.contains(&format!("fn {name}(")),
            };
            assert!(exists, "there is no {name}");
            n_names += 1;
        }
    }
    assert!(n_rows > 20 && n_names > n_rows, "{n_rows} rows, {n_names} names");
}
